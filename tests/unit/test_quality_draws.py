"""Fewer rows on purpose: nested, whole groups, balanced; and mixes of several data sets."""

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.quality.draws import balance_labels, limit_rows, mix_rows
from pipeline.records import Example

LABELS = ("clear", "ambiguous")


def make_rows(sizes, name="t"):
    """Return as many rows per group as `sizes` say, labels in turn."""
    return [
        Example(
            f"{name}{group}-{i}", f"request of {name}{group}", f"topic {group}", f"{name} {group} {i}", LABELS[i % 2]
        )
        for group, size in enumerate(sizes)
        for i in range(size)
    ]


def groups_of(rows):
    return {row.group for row in rows}


@given(st.lists(st.integers(1, 12), min_size=1, max_size=15), st.integers(1, 80), st.integers(1, 80), st.integers(0, 9))
def test_a_draw_is_whole_groups_within_the_limit_and_part_of_every_larger_one(sizes, one, other, seed):
    rows = make_rows(sizes)
    kept, rejects = limit_rows(rows, one, seed)
    assert Counter(row.row_id for row in [*kept, *rejects]) == Counter(row.row_id for row in rows)
    assert kept == [row for row in rows if row.group in groups_of(kept)]  # whole, and in the order given
    assert len(kept) <= one or len(groups_of(kept)) == 1
    assert kept
    small, large = (limit_rows(rows, n, seed)[0] for n in sorted((one, other)))
    assert groups_of(small) <= groups_of(large)
    assert limit_rows(rows, sum(sizes), seed) == (rows, [])


def test_the_order_of_groups_depends_on_the_seed_alone():
    rows = make_rows([10] * 30)
    kept, _ = limit_rows(rows, 100, seed=1)
    assert {row.row_id for row in limit_rows(rows[::-1], 100, seed=1)[0]} == {row.row_id for row in kept}
    assert len(groups_of(kept) & groups_of(limit_rows(rows, 100, seed=2)[0])) < 10
    # Another arm's rows on the same topics are drawn alike, and rows that are gone move no other group.
    assert groups_of(limit_rows(make_rows([10] * 30, "u"), 100, seed=1)[0]) == groups_of(kept)
    lost = min(groups_of(kept))
    assert groups_of(kept) - {lost} < groups_of(limit_rows([r for r in rows if r.group != lost], 100, seed=1)[0])


def test_groups_of_both_labels_keep_a_draw_balanced():
    kept, _ = limit_rows(make_rows([10] * 30), 75, seed=3)
    assert Counter(row.label for row in kept) == {"clear": 35, "ambiguous": 35}


def test_draws_are_spread_over_all_groups():
    """Each of 20 groups is in a draw of 5 with probability 1/4: over 400 seeds 100 times, give or take 4 deviations."""
    rows = make_rows([2] * 20)
    drawn = Counter(group for seed in range(400) for group in groups_of(limit_rows(rows, 10, seed)[0]))
    assert set(drawn) == groups_of(rows)
    assert all(abs(n - 100) <= 35 for n in drawn.values())


def test_the_first_group_is_kept_whatever_its_size():
    kept, rejects = limit_rows(make_rows([7, 7]), 3, seed=0)
    assert (len(kept), len(rejects)) == (7, 7)
    assert {reject.reason for reject in rejects} == {"beyond_max_rows"}


def test_the_scarcest_arm_says_how_many_rows_a_mix_has():
    rows = {"a": make_rows([10] * 40, "a"), "b": make_rows([10] * 10, "b")}
    mixed = mix_rows(rows, {"a": 0.75, "b": 0.25}, None, seed=0)
    assert Counter(row.extras["arm"] for row in mixed) == {"a": 300, "b": 100}
    mixed = mix_rows(rows, {"a": 0.5, "b": 0.5}, None, seed=0)
    assert Counter(row.extras["arm"] for row in mixed) == {"a": 100, "b": 100}
    mixed = mix_rows(rows, {"a": 0.5, "b": 0.5}, 65, seed=0)
    assert Counter(row.extras["arm"] for row in mixed) == {"a": 30, "b": 30}  # 32 each, in whole groups


def test_shares_that_floats_do_not_hold_exactly_lose_no_row():
    rows = {key: make_rows([1] * 100, key) for key in "abc"}
    mixed = mix_rows(rows, {"a": 0.1, "b": 0.2, "c": 0.7}, 10, seed=0)
    assert Counter(row.extras["arm"] for row in mixed) == {"a": 1, "b": 2, "c": 7}


def test_a_row_of_a_mix_remembers_its_arm_and_keeps_the_rest():
    a = [Example("1", "request", "g", "text", "clear", {"topic": "g"})]
    b = [Example("1", "", "g", "other", "ambiguous")]
    assert mix_rows({"a": a, "b": b}, {"b": 0.5, "a": 0.5}, None, seed=0) == [
        Example("b:1", "", "g", "other", "ambiguous", {"arm": "b"}),
        Example("a:1", "request", "g", "text", "clear", {"topic": "g", "arm": "a"}),
    ]


def test_a_mix_draws_other_topics_from_each_arm_and_one_arm_alone_the_same_as_another():
    rows = {key: make_rows([10] * 50, key) for key in "ab"}
    by_arm = {key: set() for key in "ab"}
    for row in mix_rows(rows, {"a": 0.5, "b": 0.5}, 200, seed=0):
        by_arm[row.extras["arm"]].add(row.group)
    assert len(by_arm["a"]) == len(by_arm["b"]) == 10
    assert len(by_arm["a"] & by_arm["b"]) < 8
    alone = [groups_of(mix_rows(rows, {key: 1.0}, 100, seed=0)) for key in "ab"]
    assert alone[0] == alone[1]


def test_a_smaller_mix_is_part_of_a_larger_one():
    rows = {"a": make_rows([9, 4, 7] * 10, "a"), "b": make_rows([5] * 30, "b")}
    draws = [{r.row_id for r in mix_rows(rows, {"a": 0.4, "b": 0.6}, n, seed=5)} for n in (40, 90, None)]
    assert draws[0] < draws[1] < draws[2]


def test_an_arm_without_rows_is_named():
    with pytest.raises(ValueError, match="no rows to draw from b"):
        mix_rows({"a": make_rows([2]), "b": []}, {"a": 0.5, "b": 0.5}, None, seed=0)


def test_labels_come_in_the_shares_asked_for_and_a_smaller_draw_is_part_of_a_larger():
    rows = [replace(row, label=LABELS[int(i % 3 == 0)]) for i, row in enumerate(make_rows([1] * 60))]  # 40 and 20
    kept, rejects = balance_labels(rows, {LABELS[0]: 0.25, LABELS[1]: 0.75}, seed=0)
    assert Counter(row.label for row in kept) == {LABELS[0]: 6, LABELS[1]: 20}
    assert len(kept) + len(rejects) == 60
    assert {reject.reason for reject in rejects} == {"beyond_label_share"}
    even, _ = balance_labels(rows, {LABELS[0]: 0.5, LABELS[1]: 0.5}, seed=0)
    assert {row.row_id for row in kept} < {row.row_id for row in even}
    alone, _ = balance_labels(rows, {LABELS[1]: 1.0}, seed=0)
    assert Counter(row.label for row in alone) == {LABELS[1]: 20}
