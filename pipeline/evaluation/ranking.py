"""Measures of rankings: for each query, and over all of them with intervals.

They are trec_eval's (and so ranx's): gains are the grades themselves, discounts logarithms to base 2, and average
precision is over all relevant documents, also those that were not found. A query for which nothing relevant was found
counts as 0 everywhere. Documents of equal score stand in the order of their ids.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

import numpy as np

from pipeline.evaluation.bootstrap import Estimate, estimate_means
from pipeline.evaluation.fusion import Run, Scores
from pipeline.records import Query

Grades = Sequence[float]
"""The grades of a ranking's documents, best first; 0: not relevant."""
Values = Mapping[str, Mapping[str, float]]
"""By measure, the value of each query."""


def measure_queries(run: Run, queries: Iterable[Query]) -> dict[str, dict[str, float]]:
    """Return each measure's value for each query, by measure and the query's id.

    Args:
        run: What was found, with scores; a query that it lacks counts as one for which nothing was.
        queries: The queries, with what is relevant to each.

    Raises:
        ValueError: Nothing is relevant to a query, or a score is not finite.
    """
    values: dict[str, dict[str, float]] = {name: {} for name in MEASURES}
    for query in queries:
        if not query.relevant:
            raise ValueError(f"{query.query_id}: nothing is relevant to it, so no ranking of it can be measured")
        scores = run.get(query.query_id, {})
        if wrong := [document for document, score in scores.items() if not math.isfinite(score)]:
            raise ValueError(f"{query.query_id}: document {wrong[0]}: score {scores[wrong[0]]} can't be ranked")
        grades = [query.relevant.get(document, 0.0) for document in order(scores)]
        ideal = sorted(query.relevant.values(), reverse=True)
        for name, measure in MEASURES.items():
            values[name][query.query_id] = measure(grades, ideal)
    return values


def order(scores: Scores) -> list[str]:
    """Return documents by descending score, equal ones by id."""
    return sorted(scores, key=lambda document: (-scores[document], document))


def estimate_ranking(by_seed: Sequence[Values], n_replicates: int, seed: int) -> list[Estimate]:
    """Return every measure's mean over queries and seeds, with a 95 % interval over both; see `estimate_means`.

    Args:
        by_seed: The values of each seed, of the same queries.
        n_replicates: Bootstrap replicates.
        seed: Of their draws.
    """
    queries = sorted(by_seed[0][next(iter(MEASURES))])
    values = {name: np.array([[values[name][query] for query in queries] for values in by_seed]) for name in MEASURES}
    return estimate_means(values, n_replicates, seed)


def _precision(depth: int, grades: Grades, ideal: Grades) -> float:
    return sum(grade > 0 for grade in grades[:depth]) / depth


def _recall(depth: int, grades: Grades, ideal: Grades) -> float:
    return sum(grade > 0 for grade in grades[:depth]) / len(ideal)


def _ndcg(depth: int, grades: Grades, ideal: Grades) -> float:
    return _dcg(grades[:depth]) / _dcg(ideal[:depth])


def _dcg(grades: Grades) -> float:
    return math.fsum(grade / math.log2(rank + 1) for rank, grade in enumerate(grades, start=1))


def _average_precision(depth: int, grades: Grades, ideal: Grades) -> float:
    ranks = [rank for rank, grade in enumerate(grades[:depth], start=1) if grade > 0]
    return math.fsum(n / rank for n, rank in enumerate(ranks, start=1)) / len(ideal)


def _reciprocal_rank(grades: Grades, ideal: Grades) -> float:
    return next((1 / rank for rank, grade in enumerate(grades, start=1) if grade > 0), 0.0)


MEASURES: Mapping[str, Callable[[Grades, Grades], float]] = {
    "nDCG@10": partial(_ndcg, 10),
    "P@1": partial(_precision, 1),
    "nDCG@3": partial(_ndcg, 3),
    "MAP@100": partial(_average_precision, 100),
    "MRR": _reciprocal_rank,
    "R@100": partial(_recall, 100),
}
"""From the grades of a ranking, and those of the best one that there could be."""
