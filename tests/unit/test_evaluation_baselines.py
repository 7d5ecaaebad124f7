import numpy as np
import pytest
from sklearn.metrics import f1_score, roc_auc_score

from pipeline.evaluation.baselines import (
    predict_length,
    predict_majority,
    predict_prior,
    predict_prototype,
    predict_tfidf,
)
from pipeline.evaluation.bootstrap import estimate
from pipeline.records import Example, GoldItem

LABELS = ("clear", "ambiguous")
PLACE = {"benchmark": "ClariQ", "setting": "standard"}


def make_items(n_ambiguous, n_clear):
    labels = ["ambiguous"] * n_ambiguous + ["clear"] * n_clear
    return [GoldItem(f"i{n}", f"query {n}", label, "test") for n, label in enumerate(labels)]


def make_rows(*pairs):
    return [Example(f"r{n}", "q", "g", text, label) for n, (text, label) in enumerate(pairs)]


@pytest.mark.parametrize(
    ("n_ambiguous", "n_clear", "weighted_f1", "macro_f1"), [(262, 37, 0.8185, 0.467), (1172, 830, 0.4323, 0.369)]
)
def test_majority_scores_what_is_published_for_the_constant_answer(n_ambiguous, n_clear, weighted_f1, macro_f1):
    predictions = predict_majority(make_items(n_ambiguous, n_clear), LABELS, "ambiguous", **PLACE)
    found = {each.measure: each for each in estimate(predictions, LABELS, "ambiguous", 100, 0)}
    assert found["weighted-F1"].value == pytest.approx(weighted_f1, abs=5e-5)
    assert found["macro-F1"].value == pytest.approx(macro_f1, abs=5e-4)
    assert found["PR-AUC"].value == pytest.approx(n_ambiguous / (n_ambiguous + n_clear), abs=1e-12)
    for name, constant in (("MCC", 0), ("AUROC", 0.5)):
        assert (found[name].value, found[name].low, found[name].high) == (constant,) * 3


def test_majority_answers_clear_where_clear_is_more_frequent():
    predictions = predict_majority(make_items(2, 3), LABELS, "ambiguous", **PLACE)
    assert {(row.predicted, row.score) for row in predictions} == {("clear", 0.0)}


@pytest.mark.parametrize(("n_ambiguous", "n_clear", "weighted_f1"), [(262, 37, 0.782), (1172, 830, 0.515)])
def test_prior_scores_what_is_published_in_expectation(n_ambiguous, n_clear, weighted_f1):
    items = make_items(n_ambiguous, n_clear)
    predictions = predict_prior(items, LABELS, "ambiguous", range(150), **PLACE)
    truth = np.array([item.label == "ambiguous" for item in items])
    runs = np.array([row.predicted == "ambiguous" for row in predictions]).reshape(150, -1)
    scores = np.array([row.score for row in predictions]).reshape(150, -1)
    assert np.mean([f1_score(truth, run, average="weighted") for run in runs]) == pytest.approx(weighted_f1, abs=0.003)
    assert runs.mean() == pytest.approx(n_ambiguous / len(items), abs=0.005)
    assert np.mean([roc_auc_score(truth, run) for run in scores]) == pytest.approx(0.5, abs=0.02)


def test_prior_decides_by_its_score_and_draws_anew_for_each_seed():
    items = make_items(60, 40)
    predictions = predict_prior(items, LABELS, "ambiguous", (4, 5), **PLACE)
    assert predictions == predict_prior(items, LABELS, "ambiguous", (4, 5), **PLACE)
    assert all((row.predicted == "ambiguous") == (row.score >= 0.4) for row in predictions)
    assert [row.seed for row in predictions] == [4] * 100 + [5] * 100
    assert [row.score for row in predictions[:100]] != [row.score for row in predictions[100:]]


def test_prior_draws_each_of_three_classes_by_its_share():
    labels = ("World", "Sports", "Business")
    items = [GoldItem(str(n), "", labels[min(n // 100, 2)], "test") for n in range(1000)]
    predictions = predict_prior(items, labels, "Sports", range(20), **PLACE)
    drawn = [row.predicted for row in predictions]
    assert [drawn.count(label) / len(drawn) for label in labels] == pytest.approx([0.1, 0.1, 0.8], abs=0.01)


def test_length_calls_ambiguous_what_is_no_longer_than_the_median_row():
    texts = ("one", "one  two\tthree", "one two three four", "a b c d e")
    items = [GoldItem(text, text, "clear", "test") for text in texts]
    rows = make_rows(("a b", "ambiguous"), ("a b c", "ambiguous"), ("a b c d", "clear"), ("a b c d e f g", "clear"))
    predictions = predict_length(items, rows, LABELS, "ambiguous", **PLACE)  # the median is 3.5 words
    assert [row.score for row in predictions] == [-1, -3, -4, -5]
    assert [row.predicted for row in predictions] == ["ambiguous", "ambiguous", "clear", "clear"]
    at_median = predict_length(items, rows[1:], LABELS, "ambiguous", **PLACE)  # 4 words
    assert [row.predicted for row in at_median] == ["ambiguous", "ambiguous", "ambiguous", "clear"]


def test_length_needs_rows():
    with pytest.raises(ValueError, match="needs training rows"):
        predict_length(make_items(1, 1), [], LABELS, "ambiguous", **PLACE)


def test_tfidf_learns_words_and_word_pairs_and_decides_at_one_half():
    rows = make_rows(
        *[(f"tell me about thing{n}", "ambiguous") for n in range(6)],
        *[(f"what year was thing{n} founded", "clear") for n in range(6)],
        *[("new york", "clear"), ("york new", "ambiguous")] * 3,
    )
    items = [
        GoldItem(text, text, "clear", "test")
        for text in ("tell me about cats", "what year was it founded", "new york", "york new")
    ]
    predictions = predict_tfidf(items, rows, LABELS, "ambiguous", **PLACE)
    assert [row.predicted for row in predictions] == ["ambiguous", "clear", "clear", "ambiguous"]
    assert all((row.predicted == "ambiguous") == (row.score > 0.5) and 0 < row.score < 1 for row in predictions)
    assert predictions == predict_tfidf(items, rows, LABELS, "ambiguous", **PLACE)


def test_tfidf_scores_the_positive_class_wherever_its_name_sorts():
    rows = make_rows(("good film", "positive"), ("good", "positive"), ("bad film", "negative"), ("bad", "negative"))
    items = [GoldItem("0", "good", "positive", "test"), GoldItem("1", "bad", "negative", "test")]
    good, bad = predict_tfidf(items, rows, ("negative", "positive"), "positive", **PLACE)
    assert good.score > 0.5 > bad.score
    assert (good.predicted, bad.predicted) == ("positive", "negative")


@pytest.mark.parametrize("labels", [("clear", "clear"), ("clear", "vague"), ("ambiguous", "vague")])
def test_tfidf_refuses_rows_without_the_tasks_classes(labels):
    rows = make_rows(*[(f"text {label}", label) for label in labels])
    with pytest.raises(ValueError, match=r"ClariQ: TF-IDF needs rows of 'ambiguous'"):
        predict_tfidf(make_items(1, 1), rows, LABELS, "ambiguous", **PLACE)


def test_prototype_takes_the_class_of_the_most_similar_sentence():
    vectors = {"specific": [1, 0], "vague": [0, 1], "a": [3, 4], "b": [2, 0], "c": [-1, -1]}
    items = [GoldItem(text, text, "clear", "test") for text in "abc"]
    predictions = predict_prototype(
        items,
        lambda texts: np.array([vectors[text] for text in texts], dtype=np.float32),
        {"ambiguous": "vague", "clear": "specific"},
        LABELS,
        "ambiguous",
        **PLACE,
    )
    assert [row.predicted for row in predictions] == ["ambiguous", "clear", "clear"]
    assert [row.score for row in predictions] == pytest.approx([0.8 - 0.6, -1, 0], abs=1e-7)


def test_prototype_of_three_classes_scores_against_the_nearest_other():
    items = [GoldItem("x", "x", "a", "test")]
    vectors = {"A": [1, 0, 0], "B": [0, 1, 0], "C": [0, 0, 1], "x": [2, 3, 6]}
    (row,) = predict_prototype(
        items, lambda t: np.array([vectors[s] for s in t]), {"a": "A", "b": "B", "c": "C"}, "abc", "a", **PLACE
    )
    assert (row.predicted, row.score) == ("c", pytest.approx(2 / 7 - 6 / 7))
