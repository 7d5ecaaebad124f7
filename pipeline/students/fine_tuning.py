"""What training by gradients is, whatever is trained: its settings, what each epoch measured, going on after a crash.

The trainers are the field's own (Hugging Face, sentence-transformers); this module sets them alike and reads them out.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pipeline.errors import TrainingError
from pipeline.students.config import FineTunedConfig

if TYPE_CHECKING:
    import numpy as np

A = TypeVar("A")


@dataclass(frozen=True)
class Epoch:
    """What was measured after an epoch, which counts from 1. Held-out values are None where nothing was held out."""

    epoch: int
    train_loss: float
    held_out_loss: float | None
    held_out_score: float | None
    at: float
    """Unix time in seconds."""


@dataclass(frozen=True)
class FitResult:
    """How a fit went."""

    measure: str
    """Of the held-out scores, such as `macro-F1`."""
    epochs: tuple[Epoch, ...]
    n_steps: int
    """Updates of the weights."""
    duration_s: float
    """Of its last try; what a worker that died had done before is not in it."""

    @property
    def best_epoch(self) -> int:
        """The epoch with the best score on what was held out, the first of equals; the last without."""
        scored = [e for e in self.epochs if e.held_out_score is not None]
        return max(scored, key=lambda e: (e.held_out_score, -e.epoch)).epoch if scored else self.epochs[-1].epoch

    def to_json(self) -> dict[str, Any]:
        """Return the result for a JSON file."""
        best = self.epochs[self.best_epoch - 1]
        return {
            "measure": self.measure,
            "held_out_loss": best.held_out_loss,
            "held_out_score": best.held_out_score,
            "epochs": [asdict(epoch) for epoch in self.epochs],
            "best_epoch": self.best_epoch,
            "n_steps": self.n_steps,
            "duration_s": self.duration_s,
        }


def _ignore(epoch: Epoch) -> None:
    pass


@dataclass(frozen=True)
class Hooks:
    """What happens between a fit's epochs."""

    on_epoch: Callable[[Epoch], None] = _ignore
    """Called in each worker with what each epoch measured, before its checkpoint."""
    on_checkpoint: Callable[[Path, Epoch], None] | None = None
    """Called in each worker with the folder of an epoch's checkpoint, which is deleted later; None saves none. The
    first worker's folder holds weights, optimizer and state, every worker's its own random numbers. The last epoch has
    none: what comes after it is the fit's result."""
    checkpoint_interval_s: float = 0.0
    """An epoch that ends sooner after the last checkpoint, or the start, has none: it costs less to train it again.
    With several workers 0, since their clocks would not agree."""
    resume_from: Path | None = None
    """The files of all workers of one such checkpoint. The fit goes on after its epoch, with the rates of the
    configuration it is given now."""
    on_predictions: "Callable[[int, np.ndarray], None] | None" = None
    """Called with an epoch's number and the probabilities that a classifier then gives each training row's classes, of
    shape (rows, classes), before the epoch's checkpoint. None predicts nothing. It changes nothing of what is learned,
    so that one worker of several may have it."""


def list_dropouts(location: str, config: FineTunedConfig) -> dict[str, float]:
    """Return what a model's own configuration has to be told so that its dropout is as the student says.

    Args:
        location: What `from_pretrained` takes.
        config: The student.
    """
    from transformers import AutoConfig

    if config.dropout:
        return {}
    given = AutoConfig.from_pretrained(location, revision=config.revision).to_dict()
    return {name: 0.0 for name, value in given.items() if "dropout" in name and isinstance(value, float)}


def make_arguments(
    kind: Callable[..., A],
    config: FineTunedConfig,
    hooks: Hooks,
    scratch: str,
    *,
    seed: int,
    epochs: int,
    use_gpu: bool,
    score: str | None,
    **settings: Any,
) -> A:
    """Return a trainer's arguments.

    Args:
        kind: The class of the arguments.
        config: The student; its batch size is this worker's.
        hooks: Say whether there are checkpoints.
        scratch: Folder for them.
        seed: Draws what the trainer draws.
        epochs: Epochs, at most.
        use_gpu: Whether the machine's GPU is ours to use.
        score: What evaluation logs the held-out score as, such as `eval_macro_f1`; None where nothing is held out.
        settings: Further arguments of that class.
    """
    import torch

    is_mixed = use_gpu and config.precision == "auto"
    has_bf16 = use_gpu and torch.cuda.is_bf16_supported(including_emulation=False)
    return kind(
        output_dir=scratch,
        num_train_epochs=epochs,
        learning_rate=config.learning_rate,
        per_device_train_batch_size=config.batch_size,
        per_device_eval_batch_size=config.eval_batch_size,
        gradient_accumulation_steps=config.gradient_accumulation,
        gradient_checkpointing=config.gradient_checkpointing,
        weight_decay=config.weight_decay,
        adam_epsilon=config.adam_epsilon,
        warmup_steps=config.warmup_share,
        max_grad_norm=config.max_grad_norm or 0.0,
        lr_scheduler_type={"linear": "linear", "constant": "constant_with_warmup"}[config.schedule],
        optim="adamw_torch",
        seed=seed,
        data_seed=seed,
        use_cpu=not use_gpu,
        bf16=is_mixed and has_bf16,
        fp16=is_mixed and not has_bf16,
        eval_strategy="epoch" if score else "no",
        metric_for_best_model=score,
        greater_is_better=True if score else None,
        logging_strategy="epoch",
        logging_nan_inf_filter=False,  # it would log the loss of a diverged training as if nothing were wrong
        save_strategy="epoch" if hooks.on_checkpoint else "no",
        save_total_limit=1,
        restore_callback_states_from_checkpoint=True,  # or early stopping would forget how long it has waited
        report_to="none",
        disable_tqdm=True,
        **settings,
    )


def run_trainer(trainer: Any, config: FineTunedConfig, hooks: Hooks, *, measure: str, score: str | None) -> FitResult:
    """Train, and return how it went.

    Args:
        trainer: A Hugging Face trainer, or one built on it.
        config: The student.
        hooks: What happens between epochs.
        measure: The held-out score's name in results.
        score: What evaluation logs it as; None where nothing is held out, and nothing stops the fit early.

    Raises:
        TrainingError: A loss is no number.
    """
    from transformers import EarlyStoppingCallback

    started = time.monotonic()
    if score:
        trainer.add_callback(EarlyStoppingCallback(config.patience))
    trainer.add_callback(_make_watch(config, hooks, score))
    trainer.train(resume_from_checkpoint=str(hooks.resume_from) if hooks.resume_from else None)
    epochs = _read_epochs(trainer.state.log_history, score)
    return FitResult(measure, epochs, trainer.state.global_step, time.monotonic() - started)


def _make_watch(config: FineTunedConfig, hooks: Hooks, score: str | None) -> Any:
    from transformers import TrainerCallback

    class _Watch(TrainerCallback):  # type: ignore[misc]
        saved_at = time.monotonic()

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if hooks.resume_from is not None:
                _set_rates(kwargs["optimizer"], kwargs["lr_scheduler"], config)

        def on_log(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            entry = state.log_history[-1]
            entry["at"] = time.time()  # goes into checkpoints with the rest of the history
            if (score or "loss") in entry:
                epoch = _read_epochs(state.log_history, score)[-1]
                _check_finite(epoch, config)
                hooks.on_epoch(epoch)

        def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            is_early = time.monotonic() - self.saved_at < hooks.checkpoint_interval_s
            if is_early or state.global_step >= state.max_steps:
                control.should_save = False

        def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if control.should_training_stop:
                control.should_save = False

        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            assert hooks.on_checkpoint is not None
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            hooks.on_checkpoint(folder, _read_epochs(state.log_history, score)[-1])
            self.saved_at = time.monotonic()

    return _Watch()


def _check_finite(epoch: Epoch, config: FineTunedConfig) -> None:
    """Stop a training whose weights can no longer be any good, before its checkpoint is kept."""
    losses = {"train": epoch.train_loss, "held-out": epoch.held_out_loss}
    if wrong := {name: loss for name, loss in losses.items() if loss is not None and not isfinite(loss)}:
        raise TrainingError(
            f"training {config.label} diverged in epoch {epoch.epoch}: {wrong}; set learning_rate, which is "
            f"{config.learning_rate:g}, lower"
        )


def _set_rates(optimizer: Any, scheduler: Any, config: FineTunedConfig) -> None:
    """Put the configuration's rates in place of the checkpoint's, which a population-based search has changed."""
    scheduler.base_lrs = [config.learning_rate] * len(scheduler.base_lrs)
    for group, scale in zip(optimizer.param_groups, scheduler.lr_lambdas, strict=True):
        group["initial_lr"] = config.learning_rate
        group["lr"] = config.learning_rate * scale(scheduler.last_epoch)
    optimizer.param_groups[0]["weight_decay"] = config.weight_decay  # the second group holds what never decays


def _read_epochs(log_history: Sequence[dict[str, Any]], score: str | None) -> tuple[Epoch, ...]:
    losses = [entry for entry in log_history if "loss" in entry]
    scored = [entry for entry in log_history if score in entry] if score else losses
    return tuple(
        Epoch(
            number,
            float(trained["loss"]),
            held_out.get("eval_loss"),
            held_out[score] if score else None,
            held_out["at"],
        )
        for number, (trained, held_out) in enumerate(zip(losses, scored, strict=True), start=1)
    )
