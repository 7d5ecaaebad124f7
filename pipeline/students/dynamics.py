"""Training dynamics: what a classifier says of its own training rows after each epoch.

After "Dataset Cartography" (Swayamdipta et al., 2020, arXiv 2009.10795); what the rows' dynamics are worth is measured
in `pipeline.quality.cartography`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.errors import ConfigError
from pipeline.records import EpochPrediction, Example, to_table
from pipeline.storage import Folder
from pipeline.students.config import ClassifierConfig
from pipeline.students.scoring import score_in_batches, to_probabilities

DYNAMICS = "dynamics"


def check_cartographer(student: ClassifierConfig) -> None:
    """Check that a student is trained once, on all rows.

    Raises:
        ConfigError: It has folds, or several seeds.
    """
    if student.folds or len(student.seeds) > 1:
        raise ConfigError(
            f"training dynamics are those of one fit on all rows, but {student.label} has {student.folds} folds and "
            f"{len(student.seeds)} seeds; set its folds to 0, and give one seed"
        )


def make_observer(
    rows: Sequence[Sequence[int]],
    collate: Callable[[list[dict[str, Any]]], Any],
    batch_size: int,
    on_predictions: Callable[[int, np.ndarray], None],
) -> Any:
    """Return a callback of Hugging Face's trainer that predicts all rows after each epoch.

    The training goes on as if nothing had happened: no random number is drawn, which the trainer's own `predict` does
    with every loader that it makes, and the model is left in the mode it was found in.

    Args:
        rows: Tokens of each training row.
        collate: Makes a batch of rows.
        batch_size: Rows at once.
        on_predictions: As in `Hooks`.
    """
    from transformers import TrainerCallback

    class _Observer(TrainerCallback):  # type: ignore[misc]
        def on_epoch_end(self, args: Any, state: Any, control: Any, model: Any, **_: Any) -> None:
            on_predictions(round(state.epoch), _predict(model, rows, collate, batch_size))

    return _Observer()


def _predict(
    model: Any, rows: Sequence[Sequence[int]], collate: Callable[[list[dict[str, Any]]], Any], batch_size: int
) -> np.ndarray:
    """Return the probabilities of each row's classes, (rows, classes), as they are without dropout."""
    import torch

    def score_batch(batch: list[Sequence[int]]) -> np.ndarray:
        inputs = collate([{"input_ids": tokens} for tokens in batch]).to(model.device)
        # Not under inference mode: a tensor that the model keeps from there can't be part of the next backward pass.
        with torch.no_grad():
            logits: np.ndarray = model(**inputs).logits.float().cpu().numpy()
        return logits

    was_training = model.training
    model.eval()
    try:
        return to_probabilities(score_in_batches(score_batch, rows, batch_size))
    finally:
        model.train(was_training)


def write_epoch(
    output: Folder, examples: Sequence[Example], labels: Sequence[str], epoch: int, probabilities: np.ndarray
) -> None:
    """Write what an epoch's predictions say of each row's own label, in place of what a dead worker wrote for it.

    Args:
        output: The folder of the step.
        examples: The training rows.
        labels: Class names by index.
        epoch: Its number.
        probabilities: Of each row's classes, (rows, classes).
    """
    own = np.array([labels.index(example.label) for example in examples])
    columns = probabilities[np.arange(len(own)), own].tolist(), (probabilities.argmax(axis=1) == own).tolist()
    predictions = [
        EpochPrediction(example.row_id, epoch, probability, is_correct)
        for example, probability, is_correct in zip(examples, *columns, strict=True)
    ]
    (output / DYNAMICS).write_table(_name_file(epoch), to_table(EpochPrediction, predictions))


def read_epochs(output: Folder, n_epochs: int) -> pa.Table:
    """Return the predictions of all epochs as one table of `EpochPrediction`.

    Raises:
        StorageError: An epoch's file is missing.
    """
    return pa.concat_tables([(output / DYNAMICS).read_table(_name_file(epoch)) for epoch in range(1, n_epochs + 1)])


def _name_file(epoch: int) -> str:
    return f"epoch-{epoch}.parquet"
