"""What a search finds, and how the finds of several shards become one.

Order is by score, the highest first, and by document id where scores are equal. So it does not depend on how a corpus
was cut into shards.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Hits:
    """The documents found for one query."""

    ids: npt.NDArray[np.str_]
    """Document ids in order; shape (hits,)."""
    scores: npt.NDArray[np.float32]
    """Their scores, descending; shape (hits,)."""

    def __len__(self) -> int:
        return len(self.ids)


def find_top(scores: npt.NDArray[np.float32], k: int) -> npt.NDArray[np.int64]:
    """Return the rows of the k highest scores, in order; of equal scores the earlier row, at the cut too.

    Args:
        scores: One for each row; shape (rows,). A shard's rows ascend by document id.
        k: How many rows to return; all where there are fewer.
    """
    if k < len(scores):
        # All that reach the k-th score, ties included, so that which of them are cut off does not depend on chance.
        kth = np.partition(scores, len(scores) - k)[len(scores) - k]
        rows = np.flatnonzero(scores >= kth)
    else:
        rows = np.arange(len(scores))
    return rows[np.argsort(-scores[rows], kind="stable")][:k]


def merge(found: Sequence[Hits], k: int) -> Hits:
    """Return the k best of what several shards found for one query."""
    ids = np.concatenate([hits.ids for hits in found])
    scores = np.concatenate([hits.scores for hits in found])
    order = np.lexsort((ids, -scores))[:k]
    return Hits(ids[order], scores[order])
