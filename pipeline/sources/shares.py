"""Shares of rows or documents by a hash of one value, so that splits are disjoint and stay as they are."""

from pydantic import Field, model_validator

from pipeline.config import Config
from pipeline.identity import digest


class ShareConfig(Config):
    """The rows or documents whose value is hashed to [low, high); those of one value are in it or out of it together.

    Of one seed, shares that don't overlap hold no value in common, and those that fill [0, 1) leave none out. New rows
    move no other from one share to another.
    """

    column: str
    """Of a table; of a corpus, one of its documents' extras. Such as a product's id."""
    low: float = Field(ge=0, lt=1)
    high: float = Field(gt=0, le=1)
    seed: int

    @model_validator(mode="after")
    def _check_bounds(self) -> "ShareConfig":
        if self.low >= self.high:
            raise ValueError(f"low {self.low:g} must be less than high {self.high:g}")
        return self

    def holds(self, value: str) -> bool:
        """Return whether what has this value is in the share."""
        return self.low <= place(value, self.seed) < self.high


def place(value: str, seed: int) -> float:
    """Return where in [0, 1) a value lies; over many values evenly spread."""
    # The 53 bits that a float holds: with all 64, the largest would round to 1 and be in no share.
    return (int(digest([seed, value]), 16) >> 11) / 2**53
