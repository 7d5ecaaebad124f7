"""From a data set to a trained student: one step for all its folds and final fits."""

from collections.abc import Mapping
from statistics import mean
from typing import Any

from pipeline.cluster import Cluster
from pipeline.experiment import ExperimentConfig
from pipeline.records import Example, from_table
from pipeline.stages.dataset import EXAMPLES, ROWS
from pipeline.stages.embed import embed, read_vectors
from pipeline.stages.inputs import Inputs
from pipeline.steps import Outputs, Step, Steps
from pipeline.storage import Folder
from pipeline.students.config import FineTunedConfig, FrozenConfig
from pipeline.students.fits import plan_fits
from pipeline.students.frozen import check_classes, train_frozen
from pipeline.students.train import FITS, TrainingConfig, train_student
from pipeline.weights import PinnedModel

FINE_TUNED_CODE = tuple(f"pipeline.students.{name}" for name in ("fine_tuning", "fits", "train"))
_FROZEN_CODE = tuple(f"pipeline.students.{name}" for name in ("fits", "frozen"))


def train(
    arm: str,
    student: str,
    dataset: Step,
    experiment: ExperimentConfig,
    inputs: Inputs,
    steps: Steps,
    cluster: Cluster,
) -> Step:
    """Return the step of one student trained on one arm's rows.

    Raises:
        TrainingError: Workers failed too often, or a solver did not arrive.
        ConfigError: The rows have too few groups for the student's folds, or none of some class.
    """
    match experiment.students[student]:
        case FineTunedConfig() as config:
            return _fine_tune(arm, student, config, dataset, experiment, inputs, steps, cluster)
        case FrozenConfig() as config:
            return _fit_on_vectors(arm, student, config, dataset, experiment, inputs, steps, cluster)
        case config:
            raise AssertionError(f"no task has students of kind {config.kind}")


def _fine_tune(
    arm: str,
    student: str,
    config: FineTunedConfig,
    dataset: Step,
    experiment: ExperimentConfig,
    inputs: Inputs,
    steps: Steps,
    cluster: Cluster,
) -> Step:
    training, pinned = experiment.scale.training, inputs.models[student]
    runnable = config.model_copy(update={"model": pinned.location, "revision": pinned.revision})

    def produce(folder: Folder) -> Outputs:
        n_epochs = (config.folds + len(config.seeds)) * config.epochs
        n_fits_kept = len((folder / FITS).names(".json"))
        with cluster.progress(f"train {student}@{arm}", "epochs", n_epochs) as report:
            report({"done": n_fits_kept * config.epochs, "fits": n_fits_kept})
            labels = inputs.task.labels
            train_student(dataset.folder, folder, labels, runnable, training, experiment.seed, report)
        return _describe_fits(folder / FITS, dataset)

    return steps.run(
        "student",
        produce,
        arm=f"{arm}/{student}",
        config={
            "student": config,
            "labels": inputs.task.labels,
            "seed": experiment.seed,
            **identify_training(config, training),
        },
        inputs={ROWS: dataset.manifest["digests"][ROWS], "model": pinned.identity},
        code=[*FINE_TUNED_CODE, f"pipeline.students.{config.kind}"],
    )


def identify_training(student: FineTunedConfig, training: TrainingConfig) -> dict[str, Any]:
    """Return what of where a student is trained can change what it learns."""
    return {
        # Workers draw their own dropout, and a GPU computes in half precision.
        "workers": list(training.worker_counts),
        "mixed_precision": student.precision == "auto" and training.gpus_per_worker > 0,
    }


def _fit_on_vectors(
    arm: str,
    student: str,
    config: FrozenConfig,
    dataset: Step,
    experiment: ExperimentConfig,
    inputs: Inputs,
    steps: Steps,
    cluster: Cluster,
) -> Step:
    labels, pinned, seed = inputs.task.labels, inputs.models[student], experiment.seed
    examples = list(from_table(Example, dataset.folder.read_table(EXAMPLES)))
    # Both before anything is encoded.
    check_classes(f"{student}@{arm}", [example.label for example in examples], labels)
    plan_fits(examples, config, seed)
    vectors = embed(arm, [example.text for example in examples], pinned, config.encoder, steps, cluster)

    def produce(folder: Folder) -> Outputs:
        cluster.call(_train_frozen, examples, vectors.folder, folder / FITS, labels, config, pinned, seed, gpus=0)
        return _describe_fits(folder / FITS, dataset)

    return steps.run(
        "student",
        produce,
        arm=f"{arm}/{student}",
        config={"student": config, "labels": labels, "seed": seed},
        inputs={ROWS: dataset.manifest["digests"][ROWS], "vectors": vectors.fingerprint},
        code=_FROZEN_CODE,
    )


def _train_frozen(
    examples: list[Example],
    vectors: Folder,
    output: Folder,
    labels: tuple[str, ...],
    student: FrozenConfig,
    model: PinnedModel,
    seed: int,
) -> None:
    """Fit on vectors that were computed before; runs in a task."""
    known = read_vectors(vectors, [example.text for example in examples])
    train_frozen(examples, known, output, labels, student, model, seed)


def _describe_fits(fits: Folder, dataset: Step) -> Outputs:
    results = {name.removesuffix(".json"): fits.read_json(name) for name in fits.names(".json")}
    return Outputs(
        counts={"rows": dataset.manifest["counts"]["rows"], "fits": len(results)},
        metrics=_summarise(results),
        series=tuple(_trace(results)),
    )


def _summarise(results: Mapping[str, Any]) -> dict[str, float]:
    """Return what the held-out rows said, which are synthetic: it selects, and promises nothing of a benchmark."""
    finals = [result for name, result in results.items() if name.startswith("final")]
    folds = [result for name, result in results.items() if name.startswith("fold")]
    summary = {"final/duration_s": sum(final["duration_s"] for final in finals)}
    if "epochs" in finals[0]:
        summary["final/epochs"] = float(finals[0]["best_epoch"])
    if folds:
        summary[f"folds/held_out_{folds[0]['measure']}"] = mean(fold["held_out_score"] for fold in folds)
        summary["folds/held_out_loss"] = mean(fold["held_out_loss"] for fold in folds)
    return summary


def _trace(results: Mapping[str, Any]) -> list[tuple[str, int, float, float]]:
    """Return the course of each fit that has one."""
    return [
        (f"{fit}/{name}", epoch["epoch"], epoch[name], epoch["at"])
        for fit, result in sorted(results.items())
        for epoch in result.get("epochs", [])
        for name in ("train_loss", "held_out_loss", "held_out_score")
        if epoch[name] is not None
    ]
