"""BM25 over shards: every score is the one that a single index over the whole corpus would give.

A shard scores its own postings once, by bm25s's formulas, but under the document frequencies and the average length of
the whole corpus. A search adds up the scores of the query's words.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, model_validator

from pipeline.config import Config
from pipeline.retrieval.hits import Found, find_top
from pipeline.retrieval.terms import (
    Statistics,
    TermCounts,
    TermsConfig,
    load_matrix,
    make_tokenizer,
    reading,
    save_matrix,
)

N_BLOCK_POSTINGS = 1_000_000
"""Postings scored at once, which bounds what double precision takes beside the scores."""
_UNKNOWN = -1


class Bm25Config(Config):
    """BM25, with the names and formulas of bm25s (Kamphuis et al., ECIR 2020)."""

    kind: Literal["bm25"]
    variant: Literal["lucene", "robertson", "atire", "bm25l", "bm25+"]
    k1: float = Field(ge=0)
    """How much repeating a word adds; 0: nothing."""
    b: float = Field(ge=0, le=1)
    """How much a long document's words count less; 0: not at all."""
    delta: float = Field(ge=0)
    """Lower bound of `bm25l` and `bm25+`; the others don't read it."""
    terms: TermsConfig

    @model_validator(mode="after")
    def _check(self) -> "Bm25Config":
        if self.variant == "bm25l" and self.k1 == 0:
            raise ValueError("k1: bm25l with 0 scores documents with and without a word alike; needed above 0")
        return self


@dataclass(frozen=True)
class Bm25Shard:
    """What one shard needs to answer queries."""

    config: Bm25Config
    vocabulary: pa.ChunkedArray
    """The terms that have a score here, ascending."""
    scores: Any
    """What a term adds to a document that holds it; `scipy.sparse.csc_array` of float32; shape (documents, terms)."""
    constants: npt.NDArray[np.float32]
    """What a term adds to every document of the corpus: 0, but for `bm25l` and `bm25+`; shape (terms,)."""

    def save(self, folder: Path) -> None:
        """Write the shard into a local folder, made where it is missing."""
        save_matrix(folder, self.vocabulary, self.scores)
        np.save(folder / "constants.npy", self.constants)
        content = {"n_documents": self.scores.shape[0], "config": self.config.model_dump(mode="json")}
        (folder / "shard.json").write_text(json.dumps(content))

    @staticmethod
    def load(folder: Path) -> "Bm25Shard":
        """Return a saved shard, mapped into memory.

        Raises:
            StorageError: The folder doesn't hold one, or not whole.
        """
        with reading(folder):
            content = json.loads((folder / "shard.json").read_text())
            vocabulary, scores = load_matrix(folder, content["n_documents"])
            constants = np.load(folder / "constants.npy", mmap_mode="r")
            return Bm25Shard(Bm25Config.model_validate(content["config"]), vocabulary, scores, constants)

    def search(self, queries: Sequence[str], k: int) -> list[Found]:
        """Return, for each query, the k best of the documents that hold one of its words.

        A word counts as often as it stands in the query. A query without any word of the corpus finds nothing.

        Args:
            queries: Texts; many at once save time.
            k: How many documents to return, at least 1; fewer where no more are found.

        Raises:
            ConfigError: The stemmer of the index is not installed.
        """
        tokenizer = make_tokenizer(self.config.terms)
        tokenized = list(tokenizer.streaming_tokenize(queries, update_vocab=True, allow_empty=False))
        words = list(tokenizer.get_vocab_dict())
        # Not by a dict of all words, which would take as much memory again in each shard.
        places = np.flatnonzero(pc.is_in(self.vocabulary, value_set=pa.array(words, pa.string())).to_numpy())
        place_of = dict(zip(self.vocabulary.take(places).to_pylist(), places, strict=True))
        terms = np.array([place_of.get(word, _UNKNOWN) for word in words], dtype=np.int64)
        return [self._search(terms[query], k) for query in tokenized]

    def _search(self, terms: npt.NDArray[np.int64], k: int) -> Found:
        known = terms[terms != _UNKNOWN]
        if not len(known):
            return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.float32)
        added = self._model.get_scores_from_ids(known)
        rows = np.flatnonzero(added > 0)
        # The sum before the cut: rounding can make one score of two.
        scores = added[rows] + self.constants[known].sum()
        top = find_top(scores, k)
        return rows[top], scores[top]

    @cached_property
    def _model(self) -> Any:
        from bm25s import BM25

        model = BM25()
        model.scores = {
            "data": self.scores.data,
            "indices": self.scores.indices,
            "indptr": self.scores.indptr,
            "num_docs": self.scores.shape[0],
        }
        model.nonoccurrence_array = None
        return model


def score(counts: TermCounts, statistics: Statistics, config: Bm25Config) -> Bm25Shard:
    """Score every posting of a shard.

    Args:
        counts: The shard's.
        statistics: Those of the corpus that the shard is part of.
        config: Its `terms` are those that were counted.

    Raises:
        ValueError: The statistics don't include the shard.
    """
    # Private: nothing else gives the formulas alone. That they work on arrays is pinned with the version.
    from bm25s.scoring import _select_tfc_scorer
    from scipy.sparse import csc_array

    is_here = pc.is_in(statistics.frequencies["term"], value_set=counts.vocabulary).to_numpy()
    if np.count_nonzero(is_here) != len(counts.vocabulary):
        raise ValueError(
            f"the corpus's statistics hold {np.count_nonzero(is_here)} of the shard's {len(counts.vocabulary)} terms; "
            "merge the statistics of all shards again"
        )
    saturate = partial(_select_tfc_scorer(config.variant), k1=config.k1, b=config.b, delta=config.delta)
    absent = saturate(tf_array=0, l_d=1, l_avg=1)
    # Where a term scores without occurring, a shard needs those of the whole corpus. Both ascend, so columns keep
    # their order.
    is_kept = is_here if absent == 0 else np.ones_like(is_here)
    widths = np.zeros(len(is_here), dtype=np.int64)
    widths[is_here] = np.diff(counts.counts.indptr)
    widths = widths[is_kept]
    vocabulary = statistics.frequencies["term"].filter(pa.array(is_kept))
    weights = _weigh(statistics.frequencies["documents"].to_numpy()[is_kept], statistics.n_documents, config.variant)

    # Single precision where bm25s has it, so that sums and ties are the same to the last bit.
    constants = (weights * absent).astype(np.float32)
    weights = weights.astype(np.float32)
    occurrences, rows = counts.counts.data, counts.counts.indices
    terms = np.repeat(np.arange(len(widths), dtype=np.int32), widths)
    scores = np.empty(len(rows), dtype=np.float32)
    for start in range(0, len(rows), N_BLOCK_POSTINGS):
        block = slice(start, start + N_BLOCK_POSTINGS)
        saturated = saturate(
            tf_array=occurrences[block].astype(np.float32),
            l_d=counts.lengths[rows[block]],
            l_avg=statistics.average_length,
        )
        scores[block] = weights[terms[block]] * saturated - constants[terms[block]]
    starts = np.concatenate([[0], np.cumsum(widths)])
    matrix = csc_array((scores, rows, starts), shape=(len(counts.lengths), len(widths)))
    return Bm25Shard(config, vocabulary, matrix, constants)


def _weigh(frequencies: npt.NDArray[np.int64], n_documents: int, variant: str) -> npt.NDArray[np.float64]:
    """Return the inverse document frequency of each term."""
    from bm25s.scoring import _select_idf_scorer

    weigh = _select_idf_scorer(variant)
    distinct, places = np.unique(frequencies, return_inverse=True)
    return np.array([weigh(int(frequency), n_documents) for frequency in distinct], dtype=np.float64)[places]
