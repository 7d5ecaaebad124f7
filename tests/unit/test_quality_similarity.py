import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.quality import similarity
from pipeline.quality.similarity import similar_pairs

WORDS = st.sampled_from(["a", "of", "learn", "learns", "learned", "chess", "the", "piano", "pianos", "2017"])
TEXTS = st.lists(st.lists(WORDS, max_size=7).map(" ".join), max_size=14)
SIMILARITIES = st.sampled_from([0.07, 0.3, 0.5, 0.6, 0.7, 0.75, 0.8, 0.9, 1.0])


def jaccard_by_hand(left, right):
    left, right = (
        {f" {word} "[i : i + 3] for word in text.split() for i in range(len(word))} for text in (left, right)
    )
    return len(left & right) / len(left | right) if left | right else 0.0


@pytest.fixture(params=[(256, 20_000), (2, 3)])
def block_sizes(request, monkeypatch):
    monkeypatch.setattr(similarity, "N_BLOCK_ROWS", request.param[0])
    monkeypatch.setattr(similarity, "N_BLOCK_PAIRS", request.param[1])


def test_similarity_of_a_hand_worked_pair():
    # " ab" "abc" "bc " against " ab" "abd" "bd ": one shared of five.
    assert list(similar_pairs(["abc", "abd"], 0.2, np.array([True, True]))) == [(1, 0, pytest.approx(0.2))]
    assert list(similar_pairs(["abc", "abd"], 0.21, np.array([True, True]))) == []


def test_a_product_that_floats_round_up_loses_no_pair():
    # .28 * 25 is 7.000000000000001; the seven 3-grams of the second text are the commonest of the first's 25.
    found = list(similar_pairs(["abcdefghijklmnopqr stuvwxy", "stuvwxy"], 0.28, np.ones(2, dtype=bool)))
    assert found == [(1, 0, pytest.approx(0.28))]


@pytest.mark.usefixtures("block_sizes")
@given(texts=TEXTS, min_similarity=SIMILARITIES, data=st.data())
@settings(deadline=None, max_examples=60)
def test_pairs_are_those_of_brute_force(texts, min_similarity, data):
    candidates = data.draw(st.lists(st.booleans(), min_size=len(texts), max_size=len(texts)))
    first = data.draw(st.integers(0, len(texts)))
    expected = sorted(
        (row, -jaccard_by_hand(texts[row], texts[earlier]), earlier)
        for row in range(first, len(texts))
        for earlier in range(row)
        if candidates[earlier] and jaccard_by_hand(texts[row], texts[earlier]) >= min_similarity
    )
    found = list(similar_pairs(texts, min_similarity, np.array(candidates, dtype=bool), first))
    assert [(row, earlier) for row, earlier, _ in found] == [(row, earlier) for row, _, earlier in expected]
    assert [value for _, _, value in found] == pytest.approx([-value for _, value, _ in expected])


@pytest.mark.usefixtures("block_sizes")
def test_a_row_unmarked_on_the_way_has_no_later_pairs():
    is_candidate = np.ones(4, dtype=bool)
    found = []
    for row, earlier, _ in similar_pairs(["abc"] * 4, 0.9, is_candidate):
        is_candidate[row] = False
        found.append((row, earlier))
    assert found == [(1, 0), (2, 0), (3, 0)]


def test_texts_without_words_are_near_nothing():
    assert list(similar_pairs(["", "", "abc"], 0.1, np.ones(3, dtype=bool))) == []
    assert list(similar_pairs(["", ""], 0.1, np.ones(2, dtype=bool))) == []
    assert list(similar_pairs([], 0.1, np.ones(0, dtype=bool))) == []
