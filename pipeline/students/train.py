"""Training a student on the cluster: all folds and final fits of an arm in one Ray Train run.

Starting a Ray Train run costs some 17 s, so there is one per student and not one per fit. Each fit's result, and a
final fit's model, is in the step's folder before the next fit begins; a worker that died, or a whole job that was
stopped, goes on at the fit it was in.
"""

import tempfile
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from pipeline.config import Config
from pipeline.errors import TrainingError
from pipeline.identity import digest
from pipeline.records import Example, from_table
from pipeline.storage import Folder
from pipeline.students.classifier import FitResult, fit_classifier
from pipeline.students.config import StudentConfig
from pipeline.students.fits import Fit, choose_epochs, plan_fits

FITS, RAY_STATE = "fits", "ray_train"


class TrainingConfig(Config):
    """Where and how wide training runs. Only the number of workers, and a GPU's precision, change what is learned."""

    workers: int = Field(gt=0)
    """Processes that share each batch."""
    cpus_per_worker: float = Field(gt=0)
    gpus_per_worker: float = Field(ge=0)
    threads: int = Field(gt=0)
    """Threads of torch in a worker. Sums of floats depend on it in the last digits, so runs to be compared to the last
    digit need the same number."""
    max_failures: int = Field(ge=-1)
    """Dead workers to put up with; -1 for any number."""


def train_student(
    rows: Folder,
    output: Folder,
    labels: tuple[str, ...],
    student: StudentConfig,
    config: TrainingConfig,
    seed: int,
    report: Callable[[Mapping[str, int]], None],
) -> None:
    """Run all fits of a student that its folder lacks.

    Args:
        rows: The folder of the data set, with `examples.parquet`.
        output: The folder of the student; fits go to `fits/`.
        labels: Class names by index.
        student: The student; a folder as its model is an absolute path.
        config: Where and how wide to train.
        seed: Draws the folds.
        report: Picklable; called with `done` epochs, those that a fit could do without included, and `fits`.

    Raises:
        ConfigError: The rows have too few groups for the student's folds.
        TrainingError: Training failed more often than `max_failures`.
    """
    # Here rather than in a worker, which would be restarted after a mistake as after a crash.
    plan_fits(list(from_table(Example, rows.read_table("examples.parquet"))), student, seed)
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer
    from ray.train.v2.api.exceptions import TrainingFailedError

    trainer = TorchTrainer(
        run_fits,
        train_loop_config={
            "rows": rows.url,
            "output": output.url,
            "labels": labels,
            "student": student,
            "threads": config.threads,
            "use_gpu": config.gpus_per_worker > 0,
            "seed": seed,
            "report": report,
        },
        scaling_config=ScalingConfig(
            num_workers=config.workers,
            use_gpu=config.gpus_per_worker > 0,
            resources_per_worker={"CPU": config.cpus_per_worker}
            | ({"GPU": config.gpus_per_worker} if config.gpus_per_worker else {}),
        ),
        run_config=RunConfig(
            # A name seen before would make Ray Train resume its own state; ours is in the step's folder.
            name=f"{digest([output.url])}-{uuid.uuid4().hex[:8]}",
            storage_path=(output / RAY_STATE).url,
            failure_config=FailureConfig(max_failures=config.max_failures),
        ),
    )
    try:
        trainer.fit()
    except TrainingFailedError as error:
        raise TrainingError(
            f"training {student.label} into {output} failed: {error}; finished fits are kept, "
            "the same command goes on from there"
        ) from error
    output.delete_folder(RAY_STATE)


def run_fits(config: Mapping[str, Any]) -> None:
    """The loop of one training worker: each planned fit that the folder lacks, in order."""
    import ray.train
    import torch

    torch.set_num_threads(config["threads"])
    student: StudentConfig = config["student"]
    n_workers = ray.train.get_context().get_world_size()
    student = student.model_copy(update={"batch_size": student.batch_size // n_workers})
    labels: tuple[str, ...] = config["labels"]
    report: Callable[[Mapping[str, int]], None] = config["report"]
    fits = Folder(config["output"]) / FITS
    examples = list(from_table(Example, Folder(config["rows"]).read_table("examples.parquet")))
    plan = plan_fits(examples, student, config["seed"])
    finished = {name.removesuffix(".json") for name in fits.names(".json")}  # once: all workers must agree
    is_first = ray.train.get_context().get_world_rank() == 0
    best_epochs = [
        fits.read_json(f"{fit.name}.json")["best_epoch"] for fit in plan if fit.is_fold and fit.name in finished
    ]
    for fit in plan:
        if fit.name in finished:
            continue
        epochs = student.epochs if fit.is_fold else choose_epochs(best_epochs, student)
        on_epoch = (lambda: report({"done": 1})) if is_first else (lambda: None)
        with tempfile.TemporaryDirectory() as scratch:
            model = None if fit.is_fold else Path(scratch)
            result = _run_fit(fit, examples, labels, student, epochs, config["use_gpu"], model, on_epoch)
            if fit.is_fold:
                best_epochs.append(result.best_epoch)
            if is_first:
                if model is not None:
                    fits.upload(model, fit.name)
                fits.write_json(f"{fit.name}.json", result.to_json())  # last: it says that the fit is whole
                report({"done": student.epochs - len(result.epochs), "fits": 1})  # the epochs it could do without
        ray.train.report({"fit": fit.name, "best_epoch": result.best_epoch})


def _run_fit(
    fit: Fit,
    examples: list[Example],
    labels: tuple[str, ...],
    student: StudentConfig,
    epochs: int,
    use_gpu: bool,
    save_to: Path | None,
    on_epoch: Callable[[], None],
) -> FitResult:
    texts = [example.text for example in examples]
    classes = [labels.index(example.label) for example in examples]
    return fit_classifier(
        [texts[i] for i in fit.train],
        [classes[i] for i in fit.train],
        [texts[i] for i in fit.held_out],
        [classes[i] for i in fit.held_out],
        labels,
        student,
        seed=fit.seed,
        epochs=epochs,
        use_gpu=use_gpu,
        save_to=save_to,
        on_epoch=on_epoch,
    )
