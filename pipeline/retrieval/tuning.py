"""The k1 and b that find most of what is relevant, by trying a grid of them."""

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from pipeline.config import Config, validate
from pipeline.errors import ConfigError, SourceError
from pipeline.retrieval.bm25 import Bm25Config, Bm25Shard, score
from pipeline.retrieval.hits import Hits, merge
from pipeline.retrieval.terms import Statistics, TermCounts, TermsConfig, make_tokenizer, merge_statistics

_Measure = Callable[[Sequence[str], AbstractSet[str], int], float]
"""Gives the value, 0 to 1, of a ranking of ids under the relevant ids and the depth that counts."""


class GridConfig(Config):
    """Which values of k1 and b are tried, and by what they are compared."""

    measure: str
    """`recall@<depth>` or `nDCG@<depth>`."""
    k1: tuple[float, ...] = Field(min_length=1)
    b: tuple[float, ...] = Field(min_length=1)


class Trial(NamedTuple):
    """One point of the grid."""

    k1: float
    b: float
    value: float
    """Mean of the measure over the queries."""


@dataclass(frozen=True)
class Tuned:
    """The best point of a grid."""

    k1: float
    b: float
    value: float
    trials: tuple[Trial, ...]
    """All points, in ascending order of k1, then b."""


def tune(
    shards: Sequence[TermCounts],
    ids: Sequence[npt.NDArray[np.str_]],
    queries: Mapping[str, str],
    relevant: Mapping[str, AbstractSet[str]],
    config: Bm25Config,
    k1_grid: Iterable[float],
    b_grid: Iterable[float],
    measure: str = "recall@100",
) -> Tuned:
    """Return the k1 and b under which queries find most of their relevant documents.

    For validation queries alone: a value chosen on test queries says nothing of others. Of equal points the one with
    the smaller k1, then b, is best.

    Args:
        shards: Term counts of the whole corpus.
        ids: Document ids of each shard, ascending.
        queries: Text of each query id.
        relevant: Ids of the documents relevant to each query id; one that the corpus lacks counts as missed.
        config: What stays as it is, beside k1 and b; its `terms` are those that were counted.
        k1_grid: Values of k1 to try.
        b_grid: Values of b to try.
        measure: `recall@<depth>`, or `nDCG@<depth>` with all relevant documents alike.

    Raises:
        ConfigError: There is no such measure, or a value of the grid is missing or out of bounds.
        SourceError: There are no queries, or one has no relevant documents.
    """
    judge, depth = _read_measure(measure)
    _check_queries(queries, relevant)
    points = [
        validate(Bm25Config, {**config.model_dump(), "k1": k1, "b": b})
        for k1, b in product(sorted(set(k1_grid)), sorted(set(b_grid)))
    ]
    if not points:
        raise ConfigError("tuning needs at least one value of k1 and one of b")
    # What is in no query changes no score once the statistics are there.
    words = _find_words(queries.values(), config.terms)
    statistics = _restrict_statistics(merge_statistics(shards), words)
    shards = [_restrict_counts(counts, words) for counts in shards]

    trials = []
    for point in points:
        scored = [score(counts, statistics, point) for counts in shards]
        rankings = _rank(scored, ids, list(queries.values()), depth)
        values = [judge(ranking, relevant[query], depth) for query, ranking in zip(queries, rankings, strict=True)]
        trials.append(Trial(point.k1, point.b, math.fsum(values) / len(values)))
    best = max(trials, key=lambda trial: trial.value)  # the first of equal ones
    return Tuned(best.k1, best.b, best.value, tuple(trials))


def _rank(
    shards: Sequence[Bm25Shard], ids: Sequence[npt.NDArray[np.str_]], queries: Sequence[str], depth: int
) -> Iterator[list[str]]:
    """Yield the ids found for each query."""
    found = [shard.search(queries, depth) for shard in shards]
    for finds in zip(*found, strict=True):
        hits = [
            Hits(ids[number][rows], scores, np.full_like(rows, number), rows)
            for number, (rows, scores) in enumerate(finds)
        ]
        yield merge(hits, depth).ids.tolist()


def _find_words(texts: Iterable[str], config: TermsConfig) -> pa.Array:
    tokenizer = make_tokenizer(config)
    for _ in tokenizer.streaming_tokenize(texts, update_vocab=True, allow_empty=False):
        pass
    return pa.array(list(tokenizer.get_vocab_dict()), pa.string())


def _restrict_statistics(statistics: Statistics, words: pa.Array) -> Statistics:
    is_kept = pc.is_in(statistics.frequencies["term"], value_set=words)
    return Statistics(statistics.n_documents, statistics.n_tokens, statistics.frequencies.filter(is_kept))


def _restrict_counts(counts: TermCounts, words: pa.Array) -> TermCounts:
    is_kept = pc.is_in(counts.vocabulary, value_set=words)
    columns = np.flatnonzero(is_kept.to_numpy())
    return TermCounts(counts.vocabulary.filter(is_kept), counts.counts[:, columns], counts.lengths)


def _measure_recall(ranking: Sequence[str], relevant: AbstractSet[str], depth: int) -> float:
    return sum(document_id in relevant for document_id in ranking[:depth]) / len(relevant)


def _measure_ndcg(ranking: Sequence[str], relevant: AbstractSet[str], depth: int) -> float:
    """Return nDCG with gains of 0 and 1 (Järvelin and Kekäläinen, TOIS 2002, with the logarithm of rank + 1)."""
    gains = [1 / math.log2(rank + 1) for rank in range(1, depth + 1)]
    gained = sum(gain for gain, document_id in zip(gains, ranking, strict=False) if document_id in relevant)
    return gained / sum(gains[: len(relevant)])


_MEASURES: dict[str, _Measure] = {
    "recall": _measure_recall,
    "nDCG": _measure_ndcg,
}


def _read_measure(measure: str) -> tuple[_Measure, int]:
    found = re.fullmatch(r"(\w+)@([1-9]\d*)", measure)
    if found is None or found[1] not in _MEASURES:
        raise ConfigError(
            f"no measure {measure!r}; needed one of {', '.join(_MEASURES)} with a depth, as in recall@100"
        )
    return _MEASURES[found[1]], int(found[2])


def _check_queries(queries: Mapping[str, str], relevant: Mapping[str, AbstractSet[str]]) -> None:
    if not queries:
        raise SourceError("tuning needs queries, got none")
    lacking = [query for query in queries if not relevant.get(query)]
    if lacking:
        raise SourceError(
            f"tuning: {len(lacking)} of {len(queries)} queries have no relevant documents, first {lacking[0]!r}; "
            "leave them out"
        )
