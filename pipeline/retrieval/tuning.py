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
    tie_break: str | None
    """Another measure, for points that are equal by the first: few queries are found alike by many of them."""
    k1: tuple[float, ...] = Field(min_length=1)
    b: tuple[float, ...] = Field(min_length=1)


class Trial(NamedTuple):
    """One point of the grid."""

    k1: float
    b: float
    value: float
    """Mean of the measure over the queries."""
    tie_value: float
    """The same of the measure that breaks ties; 0 without one."""


@dataclass(frozen=True)
class Tuned:
    """The best point of a grid."""

    k1: float
    b: float
    value: float
    trials: tuple[Trial, ...]
    """All points, in ascending order of k1, then b."""

    @property
    def n_equal(self) -> int:
        """Points that no measure tells from the best one, itself included."""
        best = next(trial for trial in self.trials if (trial.k1, trial.b) == (self.k1, self.b))
        return sum(trial[2:] == best[2:] for trial in self.trials)

    @property
    def is_at_edge(self) -> bool:
        """Whether a value beyond the grid may be better still."""
        return any(
            len(values) > 1 and value in (min(values), max(values))
            for value, values in ((self.k1, {one.k1 for one in self.trials}), (self.b, {one.b for one in self.trials}))
        )


def tune(
    shards: Sequence[TermCounts],
    ids: Sequence[npt.NDArray[np.str_]],
    queries: Mapping[str, str],
    relevant: Mapping[str, AbstractSet[str]],
    config: Bm25Config,
    k1_grid: Iterable[float],
    b_grid: Iterable[float],
    measure: str = "recall@100",
    tie_break: str | None = None,
) -> Tuned:
    """Return the k1 and b under which queries find most of their relevant documents.

    For validation queries alone: a value chosen on test queries says nothing of others. Of points that are equal by
    both measures the nearest to the configuration's own is best, in shares of the grid's ranges.

    Args:
        shards: Term counts of the whole corpus.
        ids: Document ids of each shard, ascending.
        queries: Text of each query id.
        relevant: Ids of the documents relevant to each query id; one that the corpus lacks counts as missed.
        config: What stays as it is, beside k1 and b; its `terms` are those that were counted.
        k1_grid: Values of k1 to try.
        b_grid: Values of b to try.
        measure: `recall@<depth>`, or `nDCG@<depth>` with all relevant documents alike.
        tie_break: Another one, for points that are equal by the first.

    Raises:
        ConfigError: There is no such measure, or a value of the grid is missing or out of bounds.
        SourceError: There are no queries, or one has no relevant documents.
    """
    judges = [_read_measure(name) for name in (measure, tie_break) if name is not None]
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
        rankings = list(_rank(scored, ids, list(queries.values()), max(depth for _, depth in judges)))
        value, tie_value = (*(_average(judge, depth, rankings, queries, relevant) for judge, depth in judges), 0.0)[:2]
        trials.append(Trial(point.k1, point.b, value, tie_value))
    best = max(trials, key=lambda trial: (trial.value, trial.tie_value, -_measure_distance(trial, config, trials)))
    return Tuned(best.k1, best.b, best.value, tuple(trials))


def _average(
    judge: _Measure,
    depth: int,
    rankings: Sequence[Sequence[str]],
    queries: Iterable[str],
    relevant: Mapping[str, AbstractSet[str]],
) -> float:
    values = [judge(ranking, relevant[query], depth) for query, ranking in zip(queries, rankings, strict=True)]
    return math.fsum(values) / len(values)


def _measure_distance(trial: Trial, config: Bm25Config, trials: Sequence[Trial]) -> float:
    k1_range = max(one.k1 for one in trials) - min(one.k1 for one in trials) or 1.0
    b_range = max(one.b for one in trials) - min(one.b for one in trials) or 1.0
    return math.hypot((trial.k1 - config.k1) / k1_range, (trial.b - config.b) / b_range)


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
