"""The errors a user can meet, one class per kind of cause.

A message says what was given, what was needed and what to do, with the id or path. Each class takes
exactly one argument, the message, because exceptions cross process borders by pickle in Ray. A bad
completion is no error: it is data (see `pipeline.records.Outcome`).
"""


class RaystillError(Exception):
    """Root of everything Raystill raises on purpose; `ray_jobs` prints it without a traceback."""


class ConfigError(RaystillError, ValueError):
    """The configuration is wrong. Raised before any cluster work."""


class SourceError(RaystillError, ValueError):
    """An input file is missing, broken, or not the file it should be."""


class StorageError(RaystillError, OSError):
    """The root can't be read or written."""


class LeakageError(RaystillError, ValueError):
    """Too many training rows repeat a benchmark's test items."""


class NotMeasuredError(RaystillError, ValueError):
    """A measure can't be taken with what is given or installed; the message says why, and stands in the result."""


class TeacherError(RaystillError, RuntimeError):
    """A teacher could not answer requests at all."""


class RepetitionError(TeacherError):
    """A teacher was stopped because its answers are too much like each other; other topics may help."""


class TeacherDiedError(TeacherError):
    """The engine behind a teacher is gone or makes no step any more; a new one has to take its place."""


class TrainingError(RaystillError, RuntimeError):
    """A student could not be trained."""


class ExportError(RaystillError, RuntimeError):
    """A student in another form can't run, or does not say what the student says."""


class WorkerError(RaystillError, RuntimeError):
    """A task's worker died each time that it was tried."""
