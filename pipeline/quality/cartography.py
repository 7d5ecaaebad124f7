"""Dataset cartography: which rows a classifier learns well, and a filter that keeps the best of each label.

After Swayamdipta et al. (2020, arXiv 2009.10795), as SynthesizRR (arXiv 2405.10040) filters with it: over the epochs of
a training on all rows, a row's confidence is the mean probability of its label, its variability the population standard
deviation of that probability, its correctness the share of epochs after which its label was predicted.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import pyarrow as pa
from pydantic import Field, model_validator

from pipeline.config import Config
from pipeline.errors import SourceError
from pipeline.quality.rejects import part
from pipeline.records import Example, Reject, RowDynamics

CARTOGRAPHY = "cartography"
Statistic = Literal["confidence", "variability", "correctness"]
Bounds = Mapping[str, tuple[float, float]]
"""By label, the least and the greatest value that is kept; infinite where there is none."""


class SelectionConfig(Config):
    """Which rows of each label are kept, by their dynamics."""

    statistic: Statistic
    keep: Literal["top", "bottom", "range"]
    """The rows with the highest values, with the lowest, or those between two quantiles."""
    share: float | None = Field(gt=0, le=1)
    """Of each label's rows, for `top` and `bottom`; rows that are equal at the bound all stay."""
    low: float | None = Field(ge=0, le=1)
    """The quantile of each label's values from which on rows are kept, for `range`."""
    high: float | None = Field(ge=0, le=1)
    """The quantile up to which they are."""

    @model_validator(mode="after")
    def _check(self) -> "SelectionConfig":
        is_range = self.keep == "range"
        needed, idle = (("low", "high"), ("share",)) if is_range else (("share",), ("low", "high"))
        if missing := [name for name in needed if getattr(self, name) is None]:
            raise ValueError(f"keep={self.keep} needs a number for {' and '.join(missing)}")
        if given := [name for name in idle if getattr(self, name) is not None]:
            raise ValueError(f"keep={self.keep} has no use for {' and '.join(given)}; set it to null")
        if self.low is not None and self.high is not None and self.low >= self.high:
            raise ValueError(f"low is {self.low:g}, which is not below high, {self.high:g}")
        return self


def measure_dynamics(predictions: pa.Table, examples: Sequence[Example], n_epochs: int) -> list[RowDynamics]:
    """Return the dynamics of some rows, in their order.

    Args:
        predictions: `EpochPrediction`s of all epochs, in any order.
        examples: The rows that the classifier was trained on.
        n_epochs: Of that training.

    Raises:
        SourceError: A row or an epoch is missing, or there twice, or none of the training's; or a probability is none.
    """
    place = {example.row_id: position for position, example in enumerate(examples)}
    if len(place) < len(examples):
        twice = next(e.row_id for position, e in enumerate(examples) if place[e.row_id] != position)
        raise SourceError(f"row {twice} stands twice in the data set; give each row an id of its own")
    probabilities = np.full((len(examples), n_epochs), np.nan)
    is_correct = np.zeros((len(examples), n_epochs), dtype=bool)
    columns = (predictions[name].to_pylist() for name in ("row_id", "epoch", "probability", "is_correct"))
    for row_id, epoch, probability, was_right in zip(*columns, strict=True):
        if row_id not in place or not 1 <= epoch <= n_epochs:
            raise _refuse(row_id, epoch, f"is none of the {len(examples)} rows and {n_epochs} epochs of the training")
        if not 0 <= probability <= 1:
            raise _refuse(row_id, epoch, f"has {probability}, which is no probability")
        cell = place[row_id], epoch - 1
        if not np.isnan(probabilities[cell]):
            raise _refuse(row_id, epoch, "stands there twice")
        probabilities[cell], is_correct[cell] = probability, was_right
    if len(missing := np.argwhere(np.isnan(probabilities))):
        row, epoch = missing[0].tolist()
        raise _refuse(examples[row].row_id, epoch + 1, f"is missing, the first of {len(missing)}")
    measured = probabilities.mean(axis=1), probabilities.std(axis=1), is_correct.mean(axis=1)
    return [
        RowDynamics(example.row_id, example.label, *map(float, values))
        for example, *values in zip(examples, *measured, strict=True)
    ]


def _refuse(row_id: str, epoch: int, problem: str) -> SourceError:
    return SourceError(
        f"training dynamics: row {row_id} of epoch {epoch} {problem}; they need every row once in every epoch, so "
        "delete the step's folder and run it again"
    )


def find_bounds(dynamics: Sequence[RowDynamics], config: SelectionConfig) -> Bounds:
    """Return the bounds of what is kept, which are quantiles of each label's own values, linearly interpolated."""
    values = defaultdict(list)
    for row in dynamics:
        values[row.label].append(getattr(row, config.statistic))
    low, high = _find_quantiles(config)
    return {
        label: (
            -np.inf if low is None else float(np.quantile(of_label, low)),
            np.inf if high is None else float(np.quantile(of_label, high)),
        )
        for label, of_label in values.items()
    }


def _find_quantiles(config: SelectionConfig) -> tuple[float | None, float | None]:
    if config.keep == "top":
        assert config.share is not None
        # 1 - .83 is a little more than .17, which would part with a row that is just at the bound.
        return round(1 - config.share, 12), None
    if config.keep == "bottom":
        return None, config.share
    return config.low, config.high


def select_rows(
    examples: Sequence[Example], dynamics: Sequence[RowDynamics], config: SelectionConfig
) -> tuple[list[Example], list[Reject]]:
    """Return the rows to keep and a reject for each of the others, both in the order given.

    Args:
        examples: The rows.
        dynamics: Theirs, in the same order.
        config: What is kept.

    Raises:
        SourceError: The dynamics are those of other rows, or of other labels.
    """
    of_examples, of_dynamics = ([(row.row_id, row.label) for row in rows] for rows in (examples, dynamics))
    if of_examples != of_dynamics:
        raise SourceError(
            f"the {len(dynamics)} rows that a classifier was traced on are not the {len(examples)} rows to select "
            "from; trace it on just these, in their order"
        )
    bounds = find_bounds(dynamics, config)
    found = {}
    for position, row in enumerate(dynamics):
        value, (low, high) = getattr(row, config.statistic), bounds[row.label]
        if not low <= value <= high:
            side, bound = ("below", low) if value < low else ("above", high)
            found[position] = (CARTOGRAPHY, f"{config.statistic} {value:.6g}, {side} {bound:.6g} for {row.label!r}")
    return part(examples, found)
