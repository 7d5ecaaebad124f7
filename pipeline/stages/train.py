"""From a data set to a trained student: one step for all its folds and final fits."""

from collections.abc import Mapping
from statistics import mean
from typing import Any

from pipeline.cluster import Cluster
from pipeline.experiment import ExperimentConfig
from pipeline.stages.generate import ROWS
from pipeline.stages.inputs import Inputs
from pipeline.steps import Outputs, Step, Steps
from pipeline.storage import Folder
from pipeline.students.train import FITS, train_student

_CODE = ("pipeline.students.classifier", "pipeline.students.fits", "pipeline.students.train")


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
        TrainingError: Workers failed too often.
        ConfigError: The rows have too few groups for the student's folds.
    """
    config, training, pinned = experiment.students[student], experiment.scale.training, inputs.models[student]
    runnable = config.model_copy(update={"model": pinned.location, "revision": pinned.revision})

    def produce(folder: Folder) -> Outputs:
        n_epochs = (config.folds + len(config.seeds)) * config.epochs
        n_fits_kept = len((folder / FITS).names(".json"))
        with cluster.progress(f"train {student}@{arm}", "epochs", n_epochs) as report:
            report({"done": n_fits_kept * config.epochs, "fits": n_fits_kept})
            labels = inputs.task.labels
            train_student(dataset.folder, folder, labels, runnable, training, experiment.seed, report)
        results = {
            name.removesuffix(".json"): (folder / FITS).read_json(name) for name in (folder / FITS).names(".json")
        }
        return Outputs(
            counts={"rows": dataset.manifest["counts"]["rows"], "fits": len(results)},
            metrics=_summarise(results),
            series=tuple(_trace(results)),
        )

    return steps.run(
        "student",
        produce,
        arm=f"{arm}/{student}",
        config={
            "student": config,
            "labels": inputs.task.labels,
            "seed": experiment.seed,
            # Workers draw their own dropout, and a GPU computes in half precision.
            "workers": training.workers,
            "mixed_precision": config.precision == "auto" and training.gpus_per_worker > 0,
        },
        inputs={ROWS: dataset.manifest["digests"][ROWS], "model": pinned.identity},
        code=_CODE,
    )


def _summarise(results: Mapping[str, Any]) -> dict[str, float]:
    """Return what the held-out rows said, which are synthetic: it selects, and promises nothing of a benchmark."""
    finals = [result for name, result in results.items() if name.startswith("final")]
    summary = {"final/epochs": float(finals[0]["best_epoch"]), "final/duration_s": sum(r["duration_s"] for r in finals)}
    folds = [result for name, result in results.items() if name.startswith("fold")]
    if folds:
        best = [fold["epochs"][fold["best_epoch"] - 1] for fold in folds]
        summary["folds/held_out_macro-F1"] = mean(epoch["held_out_macro_f1"] for epoch in best)
        summary["folds/held_out_loss"] = mean(epoch["held_out_loss"] for epoch in best)
    return summary


def _trace(results: Mapping[str, Any]) -> list[tuple[str, int, float, float]]:
    return [
        (f"{fit}/{name}", epoch["epoch"], epoch[name], epoch["at"])
        for fit, result in sorted(results.items())
        for epoch in result["epochs"]
        for name in ("train_loss", "held_out_loss", "held_out_macro_f1")
        if epoch[name] is not None
    ]
