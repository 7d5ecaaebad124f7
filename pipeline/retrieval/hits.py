"""What a search finds, and how the finds of several shards become one.

Order is by score, the highest first, and by document id where scores are equal. So it does not depend on how a corpus
was cut into shards.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Found = tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]
"""What one shard finds for one query: its rows in order, and their scores; shape (hits,) each."""


@dataclass(frozen=True)
class Hits:
    """The documents found for one query, in order."""

    ids: npt.NDArray[np.str_]
    """Document ids; shape (hits,)."""
    scores: npt.NDArray[np.float32]
    """Descending; shape (hits,)."""
    shards: npt.NDArray[np.int64]
    """Number of the shard that holds each document; shape (hits,)."""
    rows: npt.NDArray[np.int64]
    """Its row there; shape (hits,)."""

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
    """Return the k best of what several shards, at least one, found for one query."""
    ids = np.concatenate([hits.ids for hits in found])
    scores = np.concatenate([hits.scores for hits in found])
    order = np.lexsort((ids, -scores))[:k]
    shards = np.concatenate([hits.shards for hits in found])[order]
    rows = np.concatenate([hits.rows for hits in found])[order]
    return Hits(ids[order], scores[order], shards, rows)
