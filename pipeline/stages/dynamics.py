"""Training dynamics of a data set's rows: a classifier is trained on all of them and watched after each epoch.

The classifier is not kept. What it said of each row is, for filters that select rows by it: a filter set otherwise
trains nothing anew.
"""

from collections.abc import Iterator, Sequence
from statistics import mean
from typing import Any

import pyarrow as pa

from pipeline.cluster import Cluster
from pipeline.identity import digest
from pipeline.quality.cartography import measure_dynamics
from pipeline.records import Example, RowDynamics, from_table, to_table
from pipeline.stages.dataset import EXAMPLES, ROWS
from pipeline.stages.train import FINE_TUNED_CODE, identify_training
from pipeline.steps import Outputs, Step, Steps
from pipeline.storage import Folder
from pipeline.students.config import ClassifierConfig
from pipeline.students.dynamics import check_cartographer, read_epochs
from pipeline.students.train import FITS, TrainingConfig, train_student
from pipeline.weights import PinnedModel

ROW_DYNAMICS = "dynamics.parquet"
TRACED = "dynamics"
"""Name of the digest of what was measured of all rows."""
_STUDENT_CODE = tuple(f"pipeline.students.{name}" for name in ("classifier", "dynamics", "scoring"))


def trace_dynamics(
    arm: str,
    dataset: Step,
    student: ClassifierConfig,
    pinned: PinnedModel,
    labels: Sequence[str],
    training: TrainingConfig,
    steps: Steps,
    cluster: Cluster,
) -> Step:
    """Return the step of what a classifier says of a data set's rows while it learns them.

    Its folder holds `dynamics.parquet`, a `RowDynamics` for each row, in their order; `dynamics/`, the predictions of
    each epoch; and `fits/`, how the one fit went.

    Args:
        arm: What the rows belong to.
        dataset: The step of the rows.
        student: The classifier, trained once on all of them.
        pinned: Its weights.
        labels: Class names by index.
        training: Where and how wide it is trained.
        steps: Where the step is found or runs.
        cluster: Where it is trained.

    Raises:
        ConfigError: The classifier has folds or several seeds.
        TrainingError: Workers failed too often, or the training diverged.
    """
    check_cartographer(student)
    (seed,) = student.seeds
    runnable = student.model_copy(update={"model": pinned.location, "revision": pinned.revision})

    def produce(folder: Folder) -> Outputs:
        with cluster.progress(f"trace {arm}", "epochs", student.epochs) as report:
            if (folder / FITS).names(".json"):
                report({"done": student.epochs})
            train_student(dataset.folder, folder, tuple(labels), runnable, training, seed, report, traces_dynamics=True)
        examples = list(from_table(Example, dataset.folder.read_table(EXAMPLES)))
        predictions = read_epochs(folder, student.epochs)
        dynamics = measure_dynamics(predictions, examples, student.epochs)
        folder.write_table(ROW_DYNAMICS, to_table(RowDynamics, dynamics))
        fit = (folder / FITS).read_json(f"final-{seed}.json")
        return Outputs(
            counts={"rows": len(dynamics), "epochs": student.epochs},
            metrics={**_summarise(dynamics), "duration_s": fit["duration_s"]},
            digests={TRACED: digest([[r.row_id, r.confidence, r.variability, r.correctness] for r in dynamics])},
            series=tuple(_trace(predictions, fit)),
        )

    return steps.run(
        "dynamics",
        produce,
        arm=arm,
        config={"student": student, "labels": labels, **identify_training(student, training)},
        inputs={ROWS: dataset.manifest["digests"][ROWS], "model": pinned.identity},
        code=[*FINE_TUNED_CODE, *_STUDENT_CODE, "pipeline.quality.cartography", __name__],
    )


def _summarise(dynamics: Sequence[RowDynamics]) -> dict[str, float]:
    """Return the means of all rows and of each label's, by `statistic` and `statistic/label`."""
    summary = {}
    for statistic in ("confidence", "variability", "correctness"):
        summary[statistic] = mean(getattr(row, statistic) for row in dynamics)
        for label in sorted({row.label for row in dynamics}):
            summary[f"{statistic}/{label}"] = mean(getattr(row, statistic) for row in dynamics if row.label == label)
    return summary


def _trace(predictions: pa.Table, fit: dict[str, Any]) -> Iterator[tuple[str, int, float, float]]:
    """Yield each epoch's training loss, and what the classifier then said of all rows."""
    means = predictions.group_by("epoch").aggregate([("probability", "mean"), ("is_correct", "mean")])
    of_epoch = {row["epoch"]: row for row in means.to_pylist()}
    for epoch in fit["epochs"]:
        number, at = epoch["epoch"], epoch["at"]
        yield "train_loss", number, epoch["train_loss"], at
        yield "probability", number, of_epoch[number]["probability_mean"], at
        yield "accuracy", number, of_epoch[number]["is_correct_mean"], at
