"""Searching shards that are open in this process."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.retrieval.bm25 import Bm25Shard
from pipeline.retrieval.dense import DenseShard
from pipeline.retrieval.hits import Found, Hits, merge


@dataclass(frozen=True)
class OpenShard:
    """One shard of an index, mapped into memory."""

    number: int
    """Its place among all shards of the index."""
    documents: pa.Table
    """Of `records.Document`, in ascending order of ids."""
    bm25: Bm25Shard | None
    dense: DenseShard | None

    def search_words(self, texts: Sequence[str], k: int) -> list[Hits]:
        """Return the k documents that match each text's words best; fewer where fewer match at all."""
        assert self.bm25 is not None
        return [self._name(found) for found in self.bm25.search(texts, k)]

    def search_vectors(self, vectors: npt.NDArray[np.float32], k: int) -> list[Hits]:
        """Return the k documents nearest to each vector; shape (queries, dimensions)."""
        assert self.dense is not None
        return [self._name(found) for found in self.dense.search(vectors, k)]

    def read_texts(self, rows: Sequence[int]) -> list[str]:
        """Return the texts of some rows, in their order."""
        texts: list[str] = self.documents["text"].take(pa.array(rows, pa.int64())).to_pylist()
        return texts

    def _name(self, found: Found) -> Hits:
        rows, scores = found
        ids = self.documents["document_id"].take(pa.array(rows)).to_numpy(zero_copy_only=False).astype(np.str_)
        return Hits(ids, scores, np.full(len(rows), self.number), rows)


def search_words(shards: Sequence[OpenShard], texts: Sequence[str], k: int) -> list[Hits]:
    """Return the best k of all shards for each text."""
    return [merge(found, k) for found in zip(*(shard.search_words(texts, k) for shard in shards), strict=True)]


def search_vectors(shards: Sequence[OpenShard], vectors: npt.NDArray[np.float32], k: int) -> list[Hits]:
    """Return the best k of all shards for each vector."""
    return [merge(found, k) for found in zip(*(shard.search_vectors(vectors, k) for shard in shards), strict=True)]
