"""Whether two figures of the same arms go together."""

from collections.abc import Mapping
from dataclasses import dataclass

MIN_POINTS = 3
"""Two points lie on a line whatever they are."""


@dataclass(frozen=True, slots=True)
class Correlation:
    """Of n arms; both coefficients run from -1 to 1, and are None where `note` says why."""

    n: int
    pearson: float | None
    spearman: float | None
    note: str = ""


def correlate(one: Mapping[str, float], other: Mapping[str, float]) -> Correlation:
    """Return Pearson's and Spearman's coefficients over the arms that have both figures.

    Arms are few, so there is no test: a coefficient of four points may be anything.
    """
    from scipy.stats import pearsonr, spearmanr

    arms = sorted(one.keys() & other.keys())
    left, right = [one[arm] for arm in arms], [other[arm] for arm in arms]
    if len(arms) < MIN_POINTS:
        return Correlation(len(arms), None, None, f"too few points: {len(arms)}, of {MIN_POINTS} needed")
    if len(set(left)) == 1 or len(set(right)) == 1:
        return Correlation(len(arms), None, None, "one of the two is the same for all arms")
    return Correlation(len(arms), float(pearsonr(left, right).statistic), float(spearmanr(left, right).statistic))
