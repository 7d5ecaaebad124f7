"""Differences between rankers on the same queries: how large, and whether chance alone would do it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.evaluation.bootstrap import estimate_means

_CHUNK_CELLS = 1_000_000
"""Signs held at once (8 MB)."""


@dataclass(frozen=True, slots=True)
class Difference:
    """A mean difference over queries, first minus second."""

    value: float
    low: float
    high: float
    """Of the 95 % bootstrap interval."""
    p: float
    """Two-sided, of the paired randomisation test."""


def compare_pairs(
    first: Mapping[str, float], second: Mapping[str, float], n_permutations: int, n_replicates: int, seed: int
) -> Difference:
    """Return the difference of two rankers' values on the same queries.

    The paired randomisation test (Fisher; Smucker et al., CIKM 2007): under the null hypothesis the two values of a
    query may change places. p is the share of random exchanges whose mean difference is as large, the observed one
    counted among them (Phipson & Smyth 2010), so it is never 0.

    Args:
        first: By query.
        second: By the same queries.
        n_permutations: Random exchanges.
        n_replicates: Bootstrap replicates behind the interval.
        seed: Of both.

    Raises:
        ValueError: The queries differ.
    """
    if first.keys() != second.keys():
        raise ValueError(f"values of the same queries are needed; {len(first.keys() ^ second.keys())} have only one")
    differences = np.array([first[query] - second[query] for query in sorted(first)])
    (interval,) = estimate_means({"": differences[np.newaxis]}, n_replicates, seed)
    p = _randomise(differences, n_permutations, seed)
    return Difference(float(differences.mean()), interval.low, interval.high, p)


def _randomise(differences: np.ndarray, n_permutations: int, seed: int) -> float:
    generator = np.random.default_rng(seed)
    # Equal sums differ by rounding, in the measure of their terms: where gains and losses cancel, by more than the sum.
    observed = abs(differences.sum()) - 1e-12 * np.abs(differences).sum()
    n_as_large, size = 0, max(1, _CHUNK_CELLS // len(differences))
    for done in range(0, n_permutations, size):
        signs = generator.integers(2, size=(min(size, n_permutations - done), len(differences))) * 2 - 1
        n_as_large += int((np.abs(signs @ differences) >= observed).sum())
    return (n_as_large + 1) / (n_permutations + 1)


def adjust(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected for their number by Holm's step-down method (1979), in their order."""
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = largest
    return adjusted
