"""Fusion: one ranking from the rankings of several retrievers.

Written out rather than taken from ranx 0.3.21, which gives the same scores but leaves equal ones in the order in which
they come, and on a new machine compiles itself for 33 s before its first result.
"""

import itertools
import math
from collections.abc import Callable, Mapping
from typing import Literal

from pydantic import Field, field_validator

from pipeline.config import Config

Scores = Mapping[str, float]
"""Documents that one retriever found for one query, and their scores; higher is better."""
Run = Mapping[str, Scores]
"""What one retriever found for each query, by the query's id."""


class FusionConfig(Config):
    """How several runs become one."""

    method: Literal["rrf", "min_max"]
    """`rrf`: reciprocal ranks (Cormack et al., SIGIR 2009), blind to scores. `min_max`: each query's scores, scaled to
    0..1 within each run."""
    rrf_k: int = Field(gt=0)
    """A document of rank r gets 1 / (rrf_k + r); `min_max` has none."""
    weights: dict[str, float] = Field(min_length=1)
    """Of each run, by its name; they sum to 1."""
    depth: int = Field(gt=0)
    """Best documents of each run that count."""

    @field_validator("weights")
    @classmethod
    def _check_weights(cls, weights: dict[str, float]) -> dict[str, float]:
        if min(weights.values()) < 0 or not math.isclose(math.fsum(weights.values()), 1):
            raise ValueError("weights are 0 or more, and sum to 1")
        return weights


def fuse(found: Mapping[str, Scores], config: FusionConfig) -> dict[str, float]:
    """Return the documents that several retrievers found for one query, best first, equal ones by id.

    A document gets nothing from a run that lacks it. Under `min_max` it gets nothing either from a run whose scores are
    all the same, or in which it is the last that counts.

    Args:
        found: The scores of each run, by the run's name.
        config: Method, weights and depth.

    Raises:
        ValueError: A run has no weight, or a weight no run.
    """
    if found.keys() != config.weights.keys():
        raise ValueError(f"weights for {', '.join(config.weights)}, but runs of {', '.join(found)}; name the same")
    shares: dict[str, list[float]] = {}
    for name, scores in found.items():
        counted = dict(list(_order(scores).items())[: config.depth])
        points = _take_reciprocal_ranks(counted, config.rrf_k) if config.method == "rrf" else _scale(counted)
        for document, value in points.items():
            shares.setdefault(document, []).append(config.weights[name] * value)
    # fsum, so that the order in which the runs are given changes no digit, and with it no tie.
    return _order({document: math.fsum(values) for document, values in shares.items()})


def choose_weights(runs: Mapping[str, Run], step: float, measure: Callable[[Run], float]) -> dict[str, float]:
    """Return the weights of a min-max fusion under which a measure is best, for validation queries alone.

    All weights are tried that are multiples of a step and sum to 1. Of equally good ones those are best that give the
    first run more, then the second: name the simplest run first.

    Args:
        runs: By name.
        step: 1 divided by a whole number.
        measure: From a fused run to what is to be large.

    Raises:
        ValueError: The steps don't fill 1.
    """
    n_steps = round(1 / step)
    if not math.isclose(n_steps * step, 1):
        raise ValueError(f"weights in steps of {step:g} can't sum to 1; use 1 divided by a whole number, as 0.1")
    scaled = scale_runs(runs)
    parts = [parts for parts in itertools.product(range(n_steps, -1, -1), repeat=len(runs)) if sum(parts) == n_steps]
    weights = [dict(zip(runs, (part / n_steps for part in one), strict=True)) for one in parts]
    return max(weights, key=lambda one: measure(add_runs(scaled, one)))  # the first of equal ones


def fuse_weighted(runs: Mapping[str, Run], weights: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """Return the weighted sum of runs, each query's scores scaled to 0..1 within each run before."""
    return add_runs(scale_runs(runs), weights)


def scale_runs(runs: Mapping[str, Run]) -> dict[str, dict[str, dict[str, float]]]:
    """Return runs with each query's scores scaled to 0..1; where all are the same, to 0."""
    return {name: {query: _scale(scores) for query, scores in run.items()} for name, run in runs.items()}


def add_runs(scaled: Mapping[str, Run], weights: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """Return the weighted sum of runs; a document gets nothing from one that lacks it."""
    fused: dict[str, dict[str, float]] = {}
    for query in dict.fromkeys(query for run in scaled.values() for query in run):
        found = [(weights[name], run.get(query, {})) for name, run in scaled.items()]
        documents = dict.fromkeys(document for _, scores in found for document in scores)
        fused[query] = {
            document: math.fsum(weight * scores.get(document, 0.0) for weight, scores in found)
            for document in documents
        }
    return fused


def _order(scores: Scores) -> dict[str, float]:
    pairs = ((document, float(score)) for document, score in scores.items())  # a float32 would stay one
    return dict(sorted(pairs, key=lambda pair: (-pair[1], pair[0])))


def _take_reciprocal_ranks(ordered: Scores, rrf_k: int) -> dict[str, float]:
    return {document: 1 / (rrf_k + rank) for rank, document in enumerate(ordered, start=1)}


def _scale(scores: Scores) -> dict[str, float]:
    low, high = min(scores.values(), default=0.0), max(scores.values(), default=0.0)
    width = high - low
    return {document: (score - low) / width if width else 0.0 for document, score in scores.items()}
