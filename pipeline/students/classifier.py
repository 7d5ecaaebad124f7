"""Text classifiers: one fit with Hugging Face's own trainer, and predictions.

Class weights and label smoothing are both honoured, for every architecture. In the source system one student lost
its weights and the other its smoothing, because the trainer's own smoother and a loss override exclude each other.
"""

import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.students.config import ClassifierConfig
from pipeline.students.dynamics import make_observer
from pipeline.students.fine_tuning import FitResult, Hooks, list_dropouts, make_arguments, run_trainer
from pipeline.students.scoring import Scorer, score_in_batches, to_probabilities
from pipeline.weights import locate_model

if TYPE_CHECKING:
    import torch


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
    config: ClassifierConfig,
    *,
    seed: int,
    epochs: int,
    use_gpu: bool,
    save_to: Path | None,
    hooks: Hooks = Hooks(),  # noqa: B008  frozen
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
        hooks: What happens between epochs.
    """
    import torch
    from transformers import (
        AutoModelForSequenceClassification,
        AutoTokenizer,
        DataCollatorWithPadding,
        Trainer,
        TrainingArguments,
        logging,
        set_seed,
    )

    logging.set_verbosity_error()  # early stopping without saved epochs is meant here, and warned of at every fit
    logging.disable_progress_bar()
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
        **list_dropouts(location, config),
    )
    rows, collate = _encode(tokenizer, texts, labels), DataCollatorWithPadding(tokenizer)
    score = "eval_macro_f1" if held_out_texts else None
    with tempfile.TemporaryDirectory() as scratch:
        trainer = Trainer(
            model=model,
            args=make_arguments(
                TrainingArguments,
                config,
                hooks,
                scratch,
                seed=seed,
                epochs=epochs,
                use_gpu=use_gpu,
                score=score,
                train_sampling_strategy="group_by_length" if config.length_bucketing else "random",
            ),
            train_dataset=rows,
            eval_dataset=_encode(tokenizer, held_out_texts, held_out_labels) or None,
            processing_class=tokenizer,
            data_collator=collate,
            compute_metrics=_compute_macro_f1,
            compute_loss_func=make_loss(
                weigh_classes(labels, len(label_names)) if config.class_weights else None, config.label_smoothing
            ),
        )
        if hooks.on_predictions is not None:
            tokens = [row["input_ids"] for row in rows]
            trainer.add_callback(make_observer(tokens, collate, config.eval_batch_size, hooks.on_predictions))
        result = run_trainer(trainer, config, hooks, measure="macro-F1", score=score)
        if save_to is not None and trainer.is_world_process_zero():
            trainer.save_model(str(save_to))
    return result


def load_scorer(folder: Path, use_gpu: bool) -> Scorer:
    """Return a function from texts and a batch size to a saved model's logits, computed by torch."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    device = torch.device("cuda" if use_gpu else "cpu")
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).to(device).eval()

    def score_batch(texts: list[str]) -> np.ndarray:
        encoded = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
        with torch.inference_mode():
            logits: np.ndarray = model(**encoded.to(device)).logits.cpu().numpy()
        return logits

    return partial(score_in_batches, score_batch)


def load_predictor(folder: Path, use_gpu: bool) -> Callable[[Sequence[str], int], np.ndarray]:
    """Return a function from texts and a batch size to probabilities of shape (n, classes), float64."""
    score = load_scorer(folder, use_gpu)
    return lambda texts, batch_size: to_probabilities(score(texts, batch_size))


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
