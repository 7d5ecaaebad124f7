import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.retrieval.hits import Hits, find_top, merge

SCORES = st.lists(st.sampled_from([0.0, 0.5, 1.0, 1.5, np.float32(0.1), 7.25]), max_size=30)
"""Few values, so that most scores are tied."""


def sort_plainly(scores):
    return sorted(range(len(scores)), key=lambda row: (-scores[row], row))


def make_hits(ids, scores, shard=0):
    return Hits(
        np.array(ids, dtype=str),
        np.array(scores, dtype=np.float32),
        np.full(len(ids), shard),
        np.arange(len(ids)),
    )


def test_the_highest_scores_come_first():
    assert find_top(np.array([0.2, 0.9, 0.4, 0.7], dtype=np.float32), 3).tolist() == [1, 3, 2]


def test_of_equal_scores_the_earlier_rows_stay_when_the_cut_goes_through_them():
    scores = np.full(1000, 2.0, dtype=np.float32)
    scores[700] = 3.0
    assert find_top(scores, 4).tolist() == [700, 0, 1, 2]


def test_more_than_there_are_gives_all():
    assert find_top(np.array([1.0, 2.0], dtype=np.float32), 5).tolist() == [1, 0]
    assert find_top(np.array([1.0, 2.0], dtype=np.float32), 2).tolist() == [1, 0]
    assert find_top(np.empty(0, dtype=np.float32), 5).tolist() == []


@given(scores=SCORES, k=st.integers(1, 35))
def test_the_top_is_that_of_a_plain_sort(scores, k):
    scores = np.array(scores, dtype=np.float32)
    assert find_top(scores, k).tolist() == sort_plainly(scores)[:k]


def test_shards_become_one_ranking_by_score_then_id():
    first = make_hits(["b", "d"], [2.0, 1.0], shard=0)
    second = make_hits(["a", "c"], [2.0, 1.0], shard=1)
    merged = merge([first, second], 3)
    assert merged.ids.tolist() == ["a", "b", "c"]
    assert merged.scores.tolist() == [2.0, 2.0, 1.0]
    assert merged.shards.tolist() == [1, 0, 1]
    assert merged.rows.tolist() == [0, 0, 1]
    assert len(merged) == 3


def test_a_shard_that_finds_nothing_takes_no_part():
    found = make_hits(["much-longer-than-the-others", "x"], [1.0, 0.5])
    for order in ([make_hits([], []), found], [found, make_hits([], [])]):
        assert merge(order, 5).ids.tolist() == ["much-longer-than-the-others", "x"]
    assert len(merge([make_hits([], []), make_hits([], [])], 5)) == 0


@given(scores=SCORES, k=st.integers(1, 35), data=st.data())
def test_however_a_corpus_is_cut_the_ranking_is_the_same(scores, k, data):
    scores = np.array(scores, dtype=np.float32)
    ids = np.array([f"{row:03}" for row in data.draw(st.permutations(range(len(scores))))], dtype="<U3")
    shard_of = np.array(data.draw(st.lists(st.integers(0, 3), min_size=len(ids), max_size=len(ids))), dtype=int)
    shards = []
    for shard in range(4):
        held = np.flatnonzero(shard_of == shard)
        held = held[np.argsort(ids[held])]
        top = find_top(scores[held], k)
        shards.append(Hits(ids[held][top], scores[held][top], np.full(len(top), shard), top))
    expected = sorted(zip(-scores, ids, strict=True))[:k]
    merged = merge(shards, k)
    assert merged.ids.tolist() == [document_id for _, document_id in expected]
    assert merged.scores == pytest.approx([-score for score, _ in expected])
