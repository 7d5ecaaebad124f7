"""Training a student on the cluster: all folds and final fits of an arm in one Ray Train run, or in a few at once.

Starting a Ray Train run costs some 17 s, so there is one per student and not one per fit. Each fit's result, and a
final fit's model, is in the step's folder before the next fit begins; within a fit epochs leave checkpoints with Ray
Train. A worker that died, or a whole job that was stopped, goes on from the last of them.
"""

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from pipeline.config import Config
from pipeline.errors import ConfigError, TrainingError
from pipeline.records import Example, from_table
from pipeline.storage import Folder
from pipeline.students.classifier import fit_classifier
from pipeline.students.config import ClassifierConfig, FineTunedConfig, RerankerConfig
from pipeline.students.dynamics import write_epoch
from pipeline.students.fine_tuning import Epoch, FitResult, Hooks
from pipeline.students.fits import Fit, choose_epochs, plan_fits
from pipeline.students.reranker import fit_reranker, to_pairs

FITS, RAY_STATE = "fits", "ray_train"
_POLL_S = "0.5"
"""How often Ray Train asks its workers; until then a report may wait, with Ray's own setting up to 2 s."""
_ALLOCATOR = {"MALLOC_TRIM_THRESHOLD_": "4000000000", "MALLOC_MMAP_THRESHOLD_": "4000000000"}
"""Have glibc keep the memory of a step's activations for the next step. A worker trains in a thread of its own, where
otherwise each step's is given back to the kernel and faulted in anew: 5 % of MiniLM's time on 2 cores."""


class TrainingConfig(Config):
    """Where and how wide training runs. Only the number of workers, and a GPU's precision, change what is learned."""

    workers: int = Field(gt=0)
    """Processes that share each batch."""
    min_workers: int | None = Field(gt=0)
    """Go on with as few as this while nodes are missing, and with `workers` again when they are back; null: wait."""
    runs: int = Field(gt=0)
    """Ray Train runs at once for one student, each with `workers`; folds, then final fits, are dealt to them."""
    cpus_per_worker: float = Field(gt=0)
    gpus_per_worker: float = Field(ge=0)
    threads: int = Field(gt=0)
    """Threads of torch in a worker. Sums of floats depend on it in the last digits, so runs to be compared to the last
    digit need the same number."""
    checkpoint_interval_s: float = Field(ge=0)
    """Seconds of a fit between checkpoints, which are made at the ends of epochs; with several workers after each."""
    max_failures: int = Field(ge=-1)
    """Dead workers to put up with in a run; -1 for any number."""

    @model_validator(mode="after")
    def _check(self) -> "TrainingConfig":
        if self.min_workers is not None and self.min_workers > self.workers:
            raise ValueError(f"min_workers is {self.min_workers}, more than workers, which is {self.workers}")
        return self

    @property
    def worker_counts(self) -> range:
        """The numbers of workers that a batch may be shared by."""
        return range(self.min_workers or self.workers, self.workers + 1)


def train_student(
    rows: Folder,
    output: Folder,
    labels: tuple[str, ...],
    student: FineTunedConfig,
    config: TrainingConfig,
    seed: int,
    report: Callable[[Mapping[str, int]], None],
    *,
    traces_dynamics: bool = False,
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
        traces_dynamics: Keep what a classifier's one fit says of its rows after each epoch, in `dynamics/`, and not
            its model.

    Raises:
        ConfigError: The rows have too few groups for the student's folds, or can't be what it learns from.
        TrainingError: Training failed more often than `max_failures`.
    """
    # Here rather than in a worker, which would be restarted after a mistake as after a crash.
    examples = list(from_table(Example, rows.read_table("examples.parquet")))
    plan = plan_fits(examples, student, seed)
    prepare_fits(examples, labels, student)
    if isinstance(student, RerankerConfig) and len(config.worker_counts) > 1:
        raise ConfigError(
            f"scale.training.min_workers is {config.min_workers}, but a re-ranker ({student.label}) can't be trained "
            "elastically: one worker takes the last, smaller batch of an epoch and several don't, so epochs would have "
            "different lengths; set it to null"
        )
    n_fewest = min(len(fit.train) for fit in plan)
    if isinstance(student, RerankerConfig) and config.workers > 1 and n_fewest < student.batch_size:
        raise ConfigError(
            f"several workers train a re-ranker on whole batches alone; a fit of {student.label} has {n_fewest} rows, "
            f"less than one of {student.batch_size}; set scale.training.workers to 1, or a smaller batch_size"
        )
    loop = {
        "rows": rows.url,
        "output": output.url,
        "labels": labels,
        "student": student,
        "threads": config.threads,
        "use_gpu": config.gpus_per_worker > 0,
        "seed": seed,
        "report": report,
        "traces_dynamics": traces_dynamics,
        "checkpoint_interval_s": config.checkpoint_interval_s if config.worker_counts[-1] == 1 else 0.0,
    }
    if config.runs == 1:
        _train(output, student.label, config, 0, loop, plan)
    else:
        # Folds first: the final fits train for as many epochs as they say.
        for phase in ([fit for fit in plan if fit.is_fold], [fit for fit in plan if not fit.is_fold]):
            _train_at_once(output, student.label, config, loop, phase)
    output.delete_folder(RAY_STATE)


def _train_at_once(
    output: Folder, label: str, config: TrainingConfig, loop: Mapping[str, Any], fits: Sequence[Fit]
) -> None:
    """Deal some fits to runs, by position, so that each finds its own state again after a crash."""
    import ray

    # In tasks: a run takes over its process's handling of interrupts, which only a main thread may do.
    train = ray.remote(num_cpus=0, max_retries=0)(_train)
    shares = [fits[run :: config.runs] for run in range(config.runs)]
    running = [train.remote(output, label, config, run, loop, share) for run, share in enumerate(shares) if share]
    try:
        ray.get(running)
    except ray.exceptions.RayError as error:
        for task in running:
            ray.cancel(task)
        if isinstance(error, ray.exceptions.RayTaskError):
            raise error.cause from None
        raise TrainingError(
            f"a run of {label} into {output} died: {error}; finished fits and epochs are kept, the same command goes "
            "on from there"
        ) from None


def _train(
    output: Folder, label: str, config: TrainingConfig, run: int, loop: Mapping[str, Any], fits: Sequence[Fit]
) -> None:
    """Run some fits in one Ray Train run."""
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
    from ray.train.v2.api.exceptions import TrainingFailedError

    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", _POLL_S)
    finished = _name_finished(output)
    if all(fit.name in finished for fit in fits):
        return
    # A lone worker needs no process group, under which the trainer would gather gradients from nobody at every step.
    kind = TorchTrainer if config.worker_counts[-1] > 1 else DataParallelTrainer
    trainer = kind(
        run_fits,
        train_loop_config={**loop, "fits": tuple(fits)},
        scaling_config=ScalingConfig(
            num_workers=config.workers if config.min_workers is None else (config.min_workers, config.workers),
            use_gpu=config.gpus_per_worker > 0,
            resources_per_worker={"CPU": config.cpus_per_worker}
            | ({"GPU": config.gpus_per_worker} if config.gpus_per_worker else {}),
        ),
        run_config=RunConfig(
            # One name for one output: Ray Train finds its last checkpoint there again, also after the job was killed.
            name=f"run-{run}",
            storage_path=(output / RAY_STATE).url,
            failure_config=FailureConfig(max_failures=config.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=1),
            worker_runtime_env={"env_vars": _ALLOCATOR},
        ),
    )
    try:
        trainer.fit()
    except TrainingFailedError as error:
        raise TrainingError(
            f"training {label} into {output} failed: {error}; finished fits and epochs are kept, "
            "the same command goes on from there"
        ) from error


def run_fits(config: Mapping[str, Any]) -> None:
    """The loop of one training worker: each of its fits that the folder lacks, in order."""
    import ray.train
    import torch

    torch.set_num_threads(config["threads"])
    student: FineTunedConfig = config["student"]
    n_workers = ray.train.get_context().get_world_size()
    student = student.model_copy(update={"batch_size": student.batch_size // n_workers})
    labels: tuple[str, ...] = config["labels"]
    report: Callable[[Mapping[str, int]], None] = config["report"]
    output = Folder(config["output"])
    fits = output / FITS
    examples = list(from_table(Example, Folder(config["rows"]).read_table("examples.parquet")))
    run_fit = prepare_fits(examples, labels, student)
    finished = _name_finished(output)  # once: all workers must agree
    is_first = ray.train.get_context().get_world_rank() == 0
    folds = [fit for fit in plan_fits(examples, student, config["seed"]) if fit.is_fold]
    best_epochs = [fits.read_json(f"{fit.name}.json")["best_epoch"] for fit in folds if fit.name in finished]
    for fit in config["fits"]:
        if fit.name in finished:
            continue
        epochs = student.epochs if fit.is_fold else choose_epochs(best_epochs, student)
        with tempfile.TemporaryDirectory() as scratch, _find_checkpoint(fit) as (checkpoint, n_done):
            model = None if fit.is_fold or config["traces_dynamics"] else Path(scratch)
            if is_first and n_done:
                report({"done": n_done})
            hooks = Hooks(
                on_epoch=(lambda _: report({"done": 1})) if is_first else (lambda _: None),
                on_checkpoint=partial(_keep_checkpoint, fit),
                checkpoint_interval_s=config["checkpoint_interval_s"],
                resume_from=checkpoint,
                on_predictions=partial(write_epoch, output, examples, labels)
                if is_first and config["traces_dynamics"]
                else None,
            )
            result = run_fit(fit, epochs=epochs, use_gpu=config["use_gpu"], save_to=model, hooks=hooks)
            if fit.is_fold:
                best_epochs.append(result.best_epoch)
            if is_first:
                if model is not None:
                    fits.upload(model, fit.name)
                fits.write_json(f"{fit.name}.json", result.to_json())  # last: it says that the fit is whole
                report({"done": student.epochs - len(result.epochs), "fits": 1})  # the epochs it could do without
        ray.train.report({"fit": fit.name, "best_epoch": result.best_epoch})


def _name_finished(output: Folder) -> set[str]:
    return {name.removesuffix(".json") for name in (output / FITS).names(".json")}


def _keep_checkpoint(fit: Fit, folder: Path, epoch: Epoch) -> None:
    """Hand an epoch's files to Ray Train, which makes one checkpoint of those of all workers."""
    import ray.train

    checkpoint = ray.train.Checkpoint.from_directory(folder)
    checkpoint.set_metadata({"fit": fit.name, "epochs": epoch.epoch})
    ray.train.report({"fit": fit.name, "epoch": epoch.epoch}, checkpoint=checkpoint)


@contextmanager
def _find_checkpoint(fit: Fit) -> Iterator[tuple[Path | None, int]]:
    """Give the folder of the run's last checkpoint and its number of epochs, if it is of this fit."""
    import ray.train

    checkpoint = ray.train.get_checkpoint()
    of = checkpoint.get_metadata() if checkpoint is not None else {}
    if of.get("fit") != fit.name:
        yield None, 0
        return
    with checkpoint.as_directory() as folder:
        yield Path(folder), of["epochs"]


def prepare_fits(
    examples: Sequence[Example], labels: tuple[str, ...], student: FineTunedConfig
) -> Callable[..., FitResult]:
    """Return the function that runs a fit: (fit, epochs, use_gpu, save_to, hooks), all but the first by name.

    Here alone students of different kinds are told apart in training.

    Raises:
        ConfigError: A row can't be what the student learns from.
    """
    if isinstance(student, RerankerConfig):
        pairs = to_pairs(examples, student.hard_negatives)
        return lambda fit, **settings: fit_reranker(
            [pairs[i] for i in fit.train], [pairs[i] for i in fit.held_out], student, seed=fit.seed, **settings
        )
    assert isinstance(student, ClassifierConfig)
    texts = [example.text for example in examples]
    classes = [labels.index(example.label) for example in examples]
    return lambda fit, **settings: fit_classifier(
        [texts[i] for i in fit.train],
        [classes[i] for i in fit.train],
        [texts[i] for i in fit.held_out],
        [classes[i] for i in fit.held_out],
        labels,
        student,
        seed=fit.seed,
        **settings,
    )
