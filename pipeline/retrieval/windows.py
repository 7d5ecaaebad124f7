"""Windows of similarity: which retrieved passages are near enough to a seed to be about it, and not copies of it.

The bounds of SynthesizRR (arXiv 2405.10040) are cosines of Contriever. Cosines of another encoder lie elsewhere, so for
those a window is given in percentiles of the similarities between seeds and what is retrieved for them.
"""

from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from pipeline.config import Config
from pipeline.records import Passage


class AbsoluteWindow(Config):
    """Bounds on the cosine similarity, both included."""

    kind: Literal["absolute"]
    low: float = Field(ge=-1, le=1)
    high: float = Field(ge=-1, le=1)

    @model_validator(mode="after")
    def _check_order(self) -> "AbsoluteWindow":
        _check_order(self.low, self.high)
        return self

    def holds(self, similarity: float) -> bool:
        """Return whether a similarity is inside."""
        # In single precision, which similarities come in: 0.9 is 0.89999998 there, and a bound of 0.9 has to keep it.
        return bool(np.float32(self.low) <= np.float32(similarity) <= np.float32(self.high))


class PercentileWindow(Config):
    """Bounds in percentiles of the similarities between seeds and what is retrieved for them, both included."""

    kind: Literal["percentile"]
    low: float = Field(ge=0, le=100)
    high: float = Field(ge=0, le=100)

    @model_validator(mode="after")
    def _check_order(self) -> "PercentileWindow":
        _check_order(self.low, self.high)
        return self

    def fit(self, similarities: npt.ArrayLike) -> AbsoluteWindow:
        """Return the window on the scale of a sample, which has as many passages of each seed as are to be chosen from.

        Raises:
            ValueError: The sample is empty.
        """
        sample = np.asarray(similarities, dtype=np.float64)
        if sample.size == 0:
            raise ValueError("percentiles of no similarities: nothing was retrieved for the seeds")
        low, high = np.percentile(sample, [self.low, self.high])
        return AbsoluteWindow(kind="absolute", low=float(low), high=float(high))


AnyWindow = Annotated[AbsoluteWindow | PercentileWindow, Field(discriminator="kind")]
"""The union of all windows."""


def select(passages: Sequence[Passage], window: AbsoluteWindow, ranks: range) -> list[Passage]:
    """Return the passages of some ranks whose score, a cosine similarity, is inside a window; ranks stay as they were.

    Args:
        passages: What was retrieved for one seed.
        window: Bounds on the score.
        ranks: Such as `range(3, 51)` for ranks 3 to 50.
    """
    return [passage for passage in passages if passage.rank in ranks and window.holds(passage.score)]


def _check_order(low: float, high: float) -> None:
    if low > high:
        raise ValueError(f"low={low} is above high={high}; nothing would be kept")
