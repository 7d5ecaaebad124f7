"""Text classifiers: one fit with Hugging Face's own trainer, and predictions.

Class weights and label smoothing are both honoured, for every architecture. In the source system one student lost
its weights and the other its smoothing, because the trainer's own smoother and a loss override exclude each other.
"""

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.students.config import StudentConfig
from pipeline.weights import locate_model

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Epoch:
    """What was measured after an epoch, which counts from 1. Held-out values are None where nothing was held out."""

    epoch: int
    train_loss: float
    held_out_loss: float | None
    held_out_macro_f1: float | None
    at: float
    """Unix time in seconds."""


@dataclass(frozen=True)
class FitResult:
    """How a fit went."""

    epochs: tuple[Epoch, ...]
    duration_s: float

    @property
    def best_epoch(self) -> int:
        """The epoch with the best macro-F1 on what was held out, the first of equals; the last without."""
        scored = [e for e in self.epochs if e.held_out_macro_f1 is not None]
        return max(scored, key=lambda e: (e.held_out_macro_f1, -e.epoch)).epoch if scored else self.epochs[-1].epoch

    def to_json(self) -> dict[str, Any]:
        """Return the result for a JSON file."""
        return {
            "epochs": [asdict(epoch) for epoch in self.epochs],
            "best_epoch": self.best_epoch,
            "duration_s": self.duration_s,
        }


def weigh_classes(labels: Sequence[int], n_labels: int) -> list[float]:
    """Return each class's weight: rows / (classes x rows of the class), so that the mean weight of a row is 1.

    Raises:
        ValueError: A class has no rows.
    """
    counts = np.bincount(labels, minlength=n_labels)
    if not counts.all():
        raise ValueError(f"every class needs rows to be weighed; rows by class index: {counts.tolist()}")
    return [float(len(labels) / (n_labels * count)) for count in counts]


def make_loss(class_weights: Sequence[float] | None, label_smoothing: float) -> Callable[..., "torch.Tensor"]:
    """Return a cross-entropy with both class weights and label smoothing, as the trainer calls it.

    The sum over rows is divided by the number of rows of the whole accumulated batch, not by the sum of their
    weights: that would make a batch's loss depend on how its rows are split over accumulation steps.
    """

    def compute_loss(outputs: Any, labels: "torch.Tensor", num_items_in_batch: Any = None) -> "torch.Tensor":
        import torch

        logits = outputs["logits"]
        weight = (
            None if class_weights is None else torch.tensor(class_weights, dtype=logits.dtype, device=logits.device)
        )
        total = torch.nn.functional.cross_entropy(
            logits, labels, weight=weight, label_smoothing=label_smoothing, reduction="sum"
        )
        return total / (len(labels) if num_items_in_batch is None else num_items_in_batch)

    return compute_loss


def fit_classifier(
    texts: Sequence[str],
    labels: Sequence[int],
    held_out_texts: Sequence[str],
    held_out_labels: Sequence[int],
    label_names: Sequence[str],
    config: StudentConfig,
    *,
    seed: int,
    epochs: int,
    use_gpu: bool,
    save_to: Path | None,
    on_epoch: Callable[[], None] = lambda: None,
) -> FitResult:
    """Train one classifier; with held-out rows it stops early, and with `save_to` model and tokenizer are saved.

    Args:
        texts: Training texts.
        labels: Their class indices.
        held_out_texts: Texts that are scored after each epoch; may be empty.
        held_out_labels: Their class indices.
        label_names: Class names by index, kept in the saved model.
        config: The student.
        seed: Draws the head, the dropout and the order of rows.
        epochs: Epochs, at most.
        use_gpu: Whether the machine's GPU is ours to use; one that is merely there may be another's.
        save_to: Folder for the last epoch's model.
        on_epoch: Called after each epoch.
    """
    import torch
    from transformers import (
        AutoModelForSequenceClassification,
        AutoTokenizer,
        DataCollatorWithPadding,
        EarlyStoppingCallback,
        Trainer,
        TrainerCallback,
        TrainingArguments,
        logging,
        set_seed,
    )

    logging.set_verbosity_error()  # early stopping without saved epochs is meant here, and warned of at every fit
    logging.disable_progress_bar()
    started = time.monotonic()
    set_seed(seed)  # before the model is built: the head is drawn at random
    location = locate_model(config.model)
    tokenizer = AutoTokenizer.from_pretrained(location, revision=config.revision)
    tokenizer.model_max_length = config.max_length  # saved with the model, so that predictions cut texts alike
    model = AutoModelForSequenceClassification.from_pretrained(
        location,
        revision=config.revision,
        dtype=torch.float32,  # weights saved in half precision would train in it, without the trainer's scaling
        num_labels=len(label_names),
        id2label=dict(enumerate(label_names)),
        label2id={name: index for index, name in enumerate(label_names)},
    )
    if config.frozen_encoder:
        model.base_model.requires_grad_(False)
    is_mixed = use_gpu and config.precision == "auto"
    has_bf16 = use_gpu and torch.cuda.is_bf16_supported(including_emulation=False)
    epoch_ends: list[float] = []

    class _EpochEnds(TrainerCallback):  # type: ignore[misc]
        def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            epoch_ends.append(time.time())
            on_epoch()

    with tempfile.TemporaryDirectory() as scratch:
        arguments = TrainingArguments(
            output_dir=scratch,
            num_train_epochs=epochs,
            learning_rate=config.learning_rate,
            per_device_train_batch_size=config.batch_size,
            per_device_eval_batch_size=config.eval_batch_size,
            gradient_accumulation_steps=config.gradient_accumulation,
            weight_decay=config.weight_decay,
            warmup_steps=config.warmup_share,
            max_grad_norm=config.max_grad_norm,
            lr_scheduler_type="linear",
            optim="adamw_torch",
            seed=seed,
            data_seed=seed,
            use_cpu=not use_gpu,
            bf16=is_mixed and has_bf16,
            fp16=is_mixed and not has_bf16,
            eval_strategy="epoch" if held_out_texts else "no",
            metric_for_best_model="macro_f1" if held_out_texts else None,
            greater_is_better=True if held_out_texts else None,
            logging_strategy="epoch",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        trainer = Trainer(
            model=model,
            args=arguments,
            train_dataset=_encode(tokenizer, texts, labels),
            eval_dataset=_encode(tokenizer, held_out_texts, held_out_labels) or None,
            processing_class=tokenizer,
            data_collator=DataCollatorWithPadding(tokenizer),
            compute_metrics=_compute_macro_f1,
            compute_loss_func=make_loss(
                weigh_classes(labels, len(label_names)) if config.class_weights else None, config.label_smoothing
            ),
            callbacks=[_EpochEnds(), *([EarlyStoppingCallback(config.patience)] if held_out_texts else [])],
        )
        trainer.train()
        if save_to is not None and trainer.is_world_process_zero():
            trainer.save_model(str(save_to))
    return FitResult(_read_epochs(trainer.state.log_history, epoch_ends), time.monotonic() - started)


def load_predictor(folder: Path, use_gpu: bool) -> Callable[[Sequence[str], int], np.ndarray]:
    """Return a function (texts, batch size) to class probabilities of shape (n, classes), float64.

    Texts are batched in order of length, so that little padding is computed, and come back in their own order.
    """
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    device = torch.device("cuda" if use_gpu else "cpu")
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).to(device).eval()

    def predict(texts: Sequence[str], batch_size: int) -> np.ndarray:
        order = sorted(range(len(texts)), key=lambda i: (len(texts[i]), i))
        probabilities = np.empty((len(texts), model.config.num_labels))
        with torch.inference_mode():
            for start in range(0, len(order), batch_size):
                batch = order[start : start + batch_size]
                encoded = tokenizer([texts[i] for i in batch], padding=True, truncation=True, return_tensors="pt")
                logits = model(**encoded.to(device)).logits
                probabilities[batch] = torch.softmax(logits.double(), dim=-1).cpu().numpy()
        return probabilities

    return predict


def describe_model(folder: Path, use_gpu: bool) -> dict[str, Any]:
    """Return a saved model's number of parameters, its weights' size in MB, and the device that would run it."""
    import torch
    from transformers import AutoModelForSequenceClassification

    parameters = list(AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).parameters())
    return {
        "n_parameters": sum(p.numel() for p in parameters),
        "memory_mb": round(sum(p.numel() * p.element_size() for p in parameters) / 1e6, 1),
        "device": torch.cuda.get_device_name() if use_gpu else "CPU",
    }


def _encode(tokenizer: Any, texts: Sequence[str], labels: Sequence[int]) -> list[dict[str, Any]]:
    encoded = tokenizer(list(texts), truncation=True)["input_ids"] if texts else []
    return [{"input_ids": ids, "labels": label} for ids, label in zip(encoded, labels, strict=True)]


def _compute_macro_f1(prediction: Any) -> dict[str, float]:
    from sklearn.metrics import f1_score

    decided = prediction.predictions.argmax(axis=-1)
    return {"macro_f1": float(f1_score(prediction.label_ids, decided, average="macro", zero_division=0))}


def _read_epochs(log_history: Sequence[dict[str, Any]], ends: Sequence[float]) -> tuple[Epoch, ...]:
    losses = [entry["loss"] for entry in log_history if "loss" in entry]
    scores = [entry for entry in log_history if "eval_loss" in entry] or [{}] * len(losses)
    return tuple(
        Epoch(number, float(loss), score.get("eval_loss"), score.get("eval_macro_f1"), end)
        for number, (loss, score, end) in enumerate(zip(losses, scores, ends, strict=True), start=1)
    )
