"""Logs: what one process did, a JSON line each, which others may read at any time.

Its writer holds a lock on a log for as long as it lives; the system lets go of it however the process ends. So a log
that can be locked has no writer any more.
"""

import fcntl
import logging
import os
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from pydantic import ConfigDict, TypeAdapter, ValidationError

from pipeline.errors import StorageError
from pipeline.records import Completion

LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Session:
    """First line of a log: the job that its writer works for."""

    session: str


@dataclass(frozen=True, slots=True)
class InFlight:
    """A request was sent."""

    in_flight: tuple[str, int]
    """Request id and attempt."""
    at: float
    """Unix time in seconds."""


Entry = Completion | InFlight | Session
_ENTRY: TypeAdapter[Entry] = TypeAdapter(Entry, config=ConfigDict(ser_json_inf_nan="constants"))


class LogWriter:
    """A new log. It is whole lines at any moment, and from the moment others can see it its head stands in it."""

    def __init__(self, folder: Path, head: Iterable[Entry]) -> None:
        name = f"{time.time_ns()}-{os.getpid()}-{uuid.uuid4().hex[:6]}"
        self.path = folder / f"{name}.new"  # locked before any other process can take it for a dead writer's log
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(self.path, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o644)
            fcntl.flock(self._descriptor, fcntl.LOCK_EX)
            for entry in head:
                self.append(entry)
            self.path = self.path.rename(folder / f"{name}.log")
        except OSError as error:
            raise StorageError(f"cannot open a log in {folder}: {error}; give a root you may write to") from error

    def append(self, entry: Entry) -> None:
        """Put a line on disk with one `write()`.

        Raises:
            StorageError: The disk is full or gone; the line does not stand in the log.
        """
        line = _ENTRY.dump_json(entry) + b"\n"
        try:
            n_written = os.write(self._descriptor, line)
        except OSError as error:
            raise StorageError(f"cannot write to {self.path}: {error.strerror}; make room on its disk") from error
        if n_written != len(line):
            os.ftruncate(self._descriptor, os.fstat(self._descriptor).st_size - n_written)  # or the next line joins it
            raise StorageError(f"{self.path} took only part of a line; make room on its disk")

    def delete(self) -> None:
        """Delete the log and let go of it."""
        self.path.unlink(missing_ok=True)
        os.close(self._descriptor)


@dataclass
class LogContent:
    """What whole lines of a log say."""

    end: int
    """Bytes up to the end of the last whole line."""
    completions: list[Completion] = field(default_factory=list)
    in_flight: dict[tuple[str, int], InFlight] = field(default_factory=dict)
    """What was sent and has not come back, by request id and attempt."""
    session: str = ""
    n_broken: int = 0
    """Lines that can't be read."""


def read_log(path: Path, offset: int = 0) -> LogContent:
    """Return what stands in a log behind an offset in bytes; lines that can't be read are left out, and told once.

    Raises:
        FileNotFoundError: Its writer rolled it meanwhile.
    """
    raw = path.read_bytes()
    content = LogContent(end=raw.rfind(b"\n") + 1)  # what a killed writer had not finished does not count
    first = raw.count(b"\n", 0, offset) + 1
    for number, line in enumerate(raw[offset : content.end].split(b"\n")[:-1], first):
        try:
            entry = _ENTRY.validate_json(line)
        except ValidationError:
            content.n_broken += 1
            _tell_broken(path, number)
            continue
        match entry:
            case Completion():
                content.completions.append(entry)
                content.in_flight.pop((entry.request_id, entry.attempt), None)
            case InFlight():
                content.in_flight[entry.in_flight] = entry
            case Session():
                content.session = entry.session
    return content


@cache  # a log is read many times
def _tell_broken(path: Path, number: int) -> None:
    LOG.warning(
        "line %d of %s is no completion; it is left out, and the log is kept in set_aside/ once its writer is gone",
        *(number, path),
    )


@contextmanager
def try_lock(path: Path) -> Iterator[bool]:
    """Say whether the lock on a file was free, and hold it for the body.

    Raises:
        FileNotFoundError: There is no such file.
    """
    descriptor = os.open(path, os.O_RDWR)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(descriptor)
