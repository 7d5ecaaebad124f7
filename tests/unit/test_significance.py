"""Differences between rankers, against scipy and hand-worked corrections."""

import numpy as np
import pytest
from scipy.stats import permutation_test

from pipeline.evaluation.significance import adjust, compare_pairs


def draw(shift: float, n: int = 40) -> tuple[dict[str, float], dict[str, float]]:
    generator = np.random.default_rng(3)
    second = generator.random(n)
    first = second + generator.normal(shift, 0.3, n)
    return {f"q{i}": value for i, value in enumerate(first)}, {f"q{i}": value for i, value in enumerate(second)}


@pytest.mark.parametrize("shift", [0.0, 0.08, 0.5])
def test_p_is_that_of_an_independent_randomisation_test(shift):
    first, second = draw(shift)
    found = compare_pairs(first, second, 20_000, 500, 1)
    theirs = permutation_test(
        ([*first.values()], [*second.values()]),
        lambda x, y, axis: np.mean(x - y, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=20_000,
        rng=np.random.default_rng(5),
    )
    assert found.p == pytest.approx(theirs.pvalue, abs=0.015)
    assert found.value == pytest.approx(theirs.statistic)
    assert found.low < found.value < found.high


def test_all_sign_changes_of_three_queries():
    found = compare_pairs({"a": 1.0, "b": 1.0, "c": 1.0}, {"a": 0.0, "b": 0.0, "c": 0.0}, 80_000, 100, 1)
    assert found.p == pytest.approx(2 / 8, abs=0.006)


def test_equal_rankers_differ_by_nothing():
    same = {"a": 0.2, "b": 0.7}
    assert compare_pairs(same, same, 1000, 100, 1).p == 1.0


def test_gains_and_losses_that_cancel_are_no_difference_whatever_rounding_leaves_of_them():
    # nDCG of an only answer at rank r: two queries where it falls, and two where it rises by as much.
    at = {rank: 1 / np.log2(rank + 1) for rank in (1, 3, 8, 9)}
    first = {"a": at[3], "b": at[1], "c": at[9], "d": at[8]}
    second = {"a": at[9], "b": at[8], "c": at[3], "d": at[1]}
    assert compare_pairs(first, second, 2000, 100, 1).p == 1.0


def test_other_queries_are_refused():
    with pytest.raises(ValueError, match="2 have only one"):
        compare_pairs({"a": 1.0}, {"b": 1.0}, 1000, 100, 1)


def test_holm():
    assert adjust([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert adjust([0.9, 0.8]) == [1.0, 1.0]
    assert adjust([]) == []
