"""Self-BLEU against NLTK's own, which compares every text with every other."""

import csv
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu

from pipeline.errors import NotMeasuredError
from pipeline.quality.self_bleu import score_against_others, self_bleu
from pipeline.quality.tokens import tokenise

MAX_N = 5
WEIGHTS = [(1 / n,) * n for n in range(1, MAX_N + 1)]
TEXTS = st.lists(st.lists(st.sampled_from("abc"), max_size=9), min_size=2, max_size=7)


def score_by_nltk(texts):
    smoothing = SmoothingFunction().method1
    return np.array(
        [sentence_bleu(texts[:i] + texts[i + 1 :], text, WEIGHTS, smoothing) for i, text in enumerate(texts)]
    )


@given(TEXTS)
@example([[], []])
@example([[], ["a"]])
@example([["a"], ["a"], ["a"]])
@example([["a", "a", "a"], ["a", "a"], ["a", "a"]])
@example([["a"] * 4, ["b"] * 3, ["b"] * 5])  # as close both: the shorter counts, and it costs nothing
@example([["a", "b"] * 4, ["a", "b"] * 3])
def test_each_text_scores_as_nltk_says(texts):
    ours = score_against_others(texts, MAX_N)
    assert ours.shape == (len(texts), MAX_N)
    np.testing.assert_allclose(ours, score_by_nltk(texts), rtol=0, atol=1e-12)


@pytest.mark.parametrize("n", range(1, MAX_N + 1))
def test_one_order_alone_scores_as_all_in_one_pass(n):
    texts = [text.split() for text in ("a b c a b d", "a b c d", "c a b", "d d a b c a b d e")]
    smoothing = SmoothingFunction().method1
    alone = [sentence_bleu(texts[:i] + texts[i + 1 :], text, WEIGHTS[n - 1], smoothing) for i, text in enumerate(texts)]
    assert self_bleu(texts, n)[-1] == pytest.approx(sum(alone) / len(alone), abs=1e-12)
    assert len(self_bleu(texts, n)) == n


def test_a_hand_worked_pair():
    # "the cat sat": 2 of 3 words and 1 of 2 pairs match. "the cat": both words and the pair, but a word too short.
    scores = score_against_others([["the", "cat", "sat"], ["the", "cat"]], 2)
    penalty = np.exp(1 - 3 / 2)
    np.testing.assert_allclose(scores, [[2 / 3, (2 / 3 * 1 / 2) ** 0.5], [penalty, penalty]])


def test_a_count_is_clipped_by_the_highest_of_one_other_text_rather_than_by_their_sum():
    assert score_against_others([["a"] * 4, ["a", "a"], ["a", "a"]], 1)[0, 0] == pytest.approx(2 / 4)


@pytest.mark.parametrize("texts", [[], [["a", "b"]]])
def test_a_text_without_others_has_no_score(texts):
    with pytest.raises(NotMeasuredError, match=f"at least 2 texts are needed, given {len(texts)}"):
        self_bleu(texts, MAX_N)


def test_many_texts_take_no_more_memory_than_their_tokens():
    generator = np.random.default_rng(0)
    words = generator.integers(0, 5_000, size=(20_000, 10)).astype(str)
    scores = self_bleu(words.tolist(), 2)  # a matrix of all pairs would have 400 million cells
    assert 0 < scores[1] < scores[0] < 1


@pytest.mark.data
def test_300_real_texts_score_as_nltk_says(data_root):
    with Path(data_root, "ag_news", "test.csv").open(newline="", encoding="utf-8") as lines:
        texts = [f"{title} {description}" for _, title, description in islice(csv.reader(lines), 300)]
    tokens = tokenise(texts, "words")
    expected = score_by_nltk(tokens)
    np.testing.assert_allclose(score_against_others(tokens, MAX_N), expected, rtol=0, atol=1e-9)
    assert self_bleu(tokens, MAX_N) == pytest.approx(expected.mean(axis=0).tolist(), abs=1e-9)
