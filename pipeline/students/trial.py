"""One trial of a search: a student with the settings of a point, trained on some rows and judged on others.

Trials train directly in the worker that Ray Tune gives them; a student that needs several workers is trained by
`students/train.py`, with settings that a search of its smaller sister found.
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np

from pipeline.config import validate
from pipeline.errors import RaystillError
from pipeline.identity import canonical_json
from pipeline.records import Example, from_table
from pipeline.storage import Folder
from pipeline.students.config import AnyStudentConfig, FineTunedConfig, FrozenConfig
from pipeline.students.fine_tuning import Epoch, Hooks
from pipeline.students.fits import Fit, plan_fits
from pipeline.students.frozen import fit_head, measure_head
from pipeline.students.search import DevConfig, HeldOutConfig
from pipeline.students.space import Value
from pipeline.students.train import prepare_fits

SCORE, TIME, COURSE, WHOLE, FAILURE = "score", "epochs_done", "course", "is_whole", "failure"
"""What a trial reports: the value so far, epochs trained over all its splits, what each epoch measured, whether nothing
is left to train, and why it can't be trained."""
_COURSE_FILE = "course.json"

Point = Mapping[str, Value]
"""A value for each dimension of the space, by names such as `student.learning_rate`."""
Split = tuple[Sequence[Example], Sequence[Example]]
"""Rows to train on, and rows to be judged on."""


@dataclass(frozen=True)
class TrialWork:
    """What all trials of a search share; picklable."""

    student: AnyStudentConfig
    """With its default settings; a folder as its model is an absolute path."""
    labels: tuple[str, ...]
    rows: Mapping[str, Folder]
    """Data sets by `name_data` of a point, each with `examples.parquet`."""
    objective: HeldOutConfig | DevConfig
    base: str
    """The data set that held-out rows are taken from, for all trials the same."""
    dev: tuple[Example, ...]
    """Items that trials are judged on where the objective is a benchmark's dev split."""
    read_vectors: Callable[[Sequence[str]], np.ndarray] | None
    """Texts to vectors, for a frozen encoder; shape (texts, dimensions)."""
    seed: int
    threads: int
    use_gpu: bool
    is_population: bool


def name_data(point: Point) -> str:
    """Return the name of what a point says of the rows; points that differ in the student alone share it."""
    return canonical_json({name: value for name, value in point.items() if not name.startswith("student.")})


def configure(student: AnyStudentConfig, point: Point) -> AnyStudentConfig:
    """Return a student with a point's settings.

    Raises:
        ConfigError: They are none that such a student can have.
    """
    settings = {name.removeprefix("student."): v for name, v in point.items() if name.startswith("student.")}
    return validate(type(student), {**student.model_dump(), **settings})


def make_splits(work: TrialWork, data: str) -> list[Split]:
    """Return what a trial is trained on and judged on, once or several times.

    Held-out rows are whole groups of the base's rows, whatever rows a trial trains on: values of trials would not
    compare otherwise. Rows of those groups are not trained on.
    """
    rows = _read_rows(work.rows[data])
    if isinstance(work.objective, DevConfig):
        return [(rows, work.dev)]
    base = _read_rows(work.rows[work.base])
    folds = plan_fits(base, work.student.model_copy(update={"folds": work.objective.folds}), work.seed)
    splits: list[Split] = []
    for fold in folds[: work.objective.measured]:
        held_out = [base[position] for position in fold.held_out]
        groups = {example.group for example in held_out}
        splits.append(([example for example in rows if example.group not in groups], held_out))
    return splits


@dataclass
class _Reports:
    """Tells Ray Tune of each epoch of a trial."""

    course: list[dict[str, Any]]
    """What each epoch measured, of all splits so far."""
    n_epochs: int
    """Of the whole trial, where nothing stops a split early."""
    counts_last: bool
    """Whether a split's value is that of its last epoch rather than its best. In a population, whose course is partly
    another's, the best may be due to settings that the trial no longer has."""
    finished: list[float] = field(default_factory=list)
    """The best score of each finished split."""

    def add(self, epoch: Epoch, checkpoint: Path | None = None) -> None:
        """Report an epoch of the split at hand, with the folder to go on from where there is one."""
        self.course.append({"split": len(self.finished), **asdict(epoch)})
        self._send(mean([*self.finished, self._value()]), len(self.course) == self.n_epochs, checkpoint)

    def end_split(self) -> None:
        """The next epoch is of another split."""
        self.finished.append(self._value())

    def end(self) -> None:
        """Report that nothing is left to train."""
        self._send(mean(self.finished), True, None)

    def fail(self, error: RaystillError) -> None:
        """Report that the trial can't be trained, which trying again would not change; the value is the least."""
        self._send(0.0, False, None, str(error))

    def _value(self) -> float:
        split = len(self.finished)
        scores = [float(epoch["held_out_score"]) for epoch in self.course if epoch["split"] == split]
        return scores[-1] if self.counts_last else max(scores)

    def _send(self, score: float, is_whole: bool, checkpoint: Path | None, failure: str | None = None) -> None:
        from ray import tune

        values = {SCORE: score, TIME: len(self.course), COURSE: list(self.course), WHOLE: is_whole, FAILURE: failure}
        if checkpoint is None:
            tune.report(values)
            return
        (checkpoint / _COURSE_FILE).write_text(json.dumps(self.course))
        tune.report(values, checkpoint=tune.Checkpoint.from_directory(checkpoint))


def run_trial(point: dict[str, Value], work: TrialWork) -> None:
    """Train and judge a point, reporting to Ray Tune after each epoch; runs in a worker of Tune's.

    The value so far is the mean over splits of the best score; splits not yet begun are left out. So after the same
    number of epochs trials are compared on the same splits. A mistake or a diverged training is a report as well; only
    a worker that dies is tried again.
    """
    import torch

    torch.set_num_threads(work.threads)
    student, splits = configure(work.student, point), make_splits(work, name_data(point))
    with _resuming() as (resume_from, course):
        n_epochs = len(splits) * (student.epochs if isinstance(student, FineTunedConfig) else 1)
        reports = _Reports(course, n_epochs, counts_last=work.is_population)
        try:
            for split in splits:
                if isinstance(student, FrozenConfig):
                    _fit_frozen(student, split, work, reports)
                else:
                    _fine_tune(student, split, work, resume_from, reports)
                reports.end_split()
            reports.end()
        except RaystillError as error:
            reports.fail(error)


def _fine_tune(
    student: FineTunedConfig,
    split: Split,
    work: TrialWork,
    resume_from: Path | None,
    reports: _Reports,
) -> None:
    train, held_out = split
    run_fit = prepare_fits([*train, *held_out], work.labels, student)
    positions = tuple(range(len(train) + len(held_out)))
    fit = Fit("trial", work.seed, positions[: len(train)], positions[len(train) :])

    def on_epoch(epoch: Epoch) -> None:
        # A population's trial reports an epoch with its checkpoint; only the last has none.
        if not work.is_population or epoch.epoch == student.epochs:
            reports.add(epoch)

    run_fit(
        fit,
        epochs=student.epochs,
        use_gpu=work.use_gpu,
        save_to=None,
        hooks=Hooks(
            on_epoch,
            on_checkpoint=(lambda folder, epoch: reports.add(epoch, folder)) if work.is_population else None,
            resume_from=resume_from,
        ),
    )


def _fit_frozen(student: FrozenConfig, split: Split, work: TrialWork, reports: _Reports) -> None:
    assert work.read_vectors is not None
    (train_vectors, train_labels), (vectors, labels) = (
        (work.read_vectors([row.text for row in rows]), [row.label for row in rows]) for rows in split
    )
    head = fit_head(
        train_vectors,
        train_labels,
        work.labels,
        inverse_regularisation=student.inverse_regularisation,
        class_weights=student.class_weights,
    )
    train_loss, _ = measure_head(head, train_vectors, train_labels)
    loss, score = measure_head(head, vectors, labels)
    reports.add(Epoch(1, train_loss, loss, score, time.time()))


@contextmanager
def _resuming() -> Iterator[tuple[Path | None, list[dict[str, Any]]]]:
    """Give the checkpoint that Tune hands to a trial and the course that led there; none at its start."""
    from ray import tune

    checkpoint = tune.get_checkpoint()
    if checkpoint is None:
        yield None, []
        return
    with checkpoint.as_directory() as folder:
        yield Path(folder), json.loads((Path(folder) / _COURSE_FILE).read_text())


def _read_rows(folder: Folder) -> list[Example]:
    return list(from_table(Example, folder.read_table("examples.parquet")))
