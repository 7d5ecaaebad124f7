import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics

from pipeline.evaluation.measures import compute_measures

NAMES = ("clear", "ambiguous", "third", "fourth")


@st.composite
def weighted_items(draw):
    """Items with ties in score, classes that nobody is of or is predicted as, and items that weigh nothing."""
    n_classes, n_items = draw(st.integers(2, 4)), draw(st.integers(1, 25))

    def array(elements):
        return np.array(draw(st.lists(elements, min_size=n_items, max_size=n_items)))

    classes = st.integers(0, n_classes - 1)
    weights = array(st.integers(0, 30).map(lambda tenths: tenths / 10))
    weights[draw(st.integers(0, n_items - 1))] = 1.0
    scores = array(st.one_of(st.integers(-3, 3).map(float), st.floats(-1, 1)))
    return n_classes, array(classes), array(classes), scores, weights


def measure_with_sklearn(n_classes, truth, predicted, scores, weights):
    labels = list(range(n_classes))
    averages = {"labels": labels, "sample_weight": weights, "zero_division": 0}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = {
            "weighted-F1": metrics.f1_score(truth, predicted, average="weighted", **averages),
            "macro-F1": metrics.f1_score(truth, predicted, average="macro", **averages),
            "MCC": metrics.matthews_corrcoef(truth, predicted, sample_weight=weights),
            "balanced-accuracy": metrics.balanced_accuracy_score(truth, predicted, sample_weight=weights),
            "accuracy": metrics.accuracy_score(truth, predicted, sample_weight=weights),
        }
        by_class = metrics.precision_recall_fscore_support(truth, predicted, average=None, **averages)
    for name, values in zip(("precision", "recall", "F1"), by_class, strict=False):
        expected |= {f"{name}@{NAMES[label]}": values[label] for label in labels}
    is_positive = truth == 1
    has_positive, has_negative = weights[is_positive].sum() > 0, weights[~is_positive].sum() > 0
    expected["AUROC"] = expected["PR-AUC"] = np.nan
    if has_positive:
        expected["PR-AUC"] = metrics.average_precision_score(is_positive, scores, sample_weight=weights)
    if has_positive and has_negative:
        expected["AUROC"] = metrics.roc_auc_score(is_positive, scores, sample_weight=weights)
    return expected


@settings(max_examples=100, deadline=None)
@given(weighted_items())
def test_every_measure_equals_scikit_learns(items):
    n_classes, truth, predicted, scores, weights = items
    measured = compute_measures(truth, predicted, scores, weights[np.newaxis], NAMES[:n_classes], "ambiguous")
    expected = measure_with_sklearn(*items)
    assert set(measured) == set(expected)
    for name, value in expected.items():
        assert measured[name].shape == (1,)
        np.testing.assert_allclose(measured[name][0], value, rtol=0, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("case", ["as drawn", "constant prediction", "constant score", "never predicted", "inverted"])
def test_bootstrap_counts_of_many_items_measure_as_in_scikit_learn(case):
    rng = np.random.default_rng(5)
    truth = (rng.random(300) < 0.88).astype(np.int64)
    scores = np.round(rng.normal(truth, 1.0), 1)
    predicted = (scores > 0.5).astype(np.int64)
    n_classes = 2
    if case == "constant prediction":
        predicted[:] = 1
    elif case == "constant score":
        scores[:] = 0.25
    elif case == "never predicted":
        n_classes = 3
    elif case == "inverted":
        predicted, scores = 1 - predicted, -scores
    weights = rng.multinomial(300, np.full(300, 1 / 300), size=8).astype(np.float64)
    measured = compute_measures(truth, predicted, scores, weights, NAMES[:n_classes], "ambiguous")
    for replicate in range(8):
        expected = measure_with_sklearn(n_classes, truth, predicted, scores, weights[replicate])
        for name, value in expected.items():
            np.testing.assert_allclose(measured[name][replicate], value, rtol=0, atol=1e-12, err_msg=name)


def test_measures_of_six_items_worked_by_hand():
    truth, predicted = np.array([1, 1, 1, 1, 0, 0]), np.array([1, 1, 1, 0, 1, 0])
    scores = np.array([0.9, 0.8, 0.8, 0.3, 0.8, 0.1])
    measured = compute_measures(truth, predicted, scores, np.ones((1, 6)), ("clear", "ambiguous"), "ambiguous")
    # 3 hits, 1 false alarm, 1 miss, 1 correct rejection. Of 8 (positive, negative) pairs 5 are won and 2 tied.
    # Average precision: .25 at precision 1, .5 at precision 3/4, .25 at precision 4/5.
    expected = {
        "weighted-F1": (4 * 0.75 + 2 * 0.5) / 6,
        "macro-F1": 0.625,
        "MCC": (3 * 1 - 1 * 1) / np.sqrt(4 * 4 * 2 * 2),
        "AUROC": 6 / 8,
        "PR-AUC": 0.25 + 0.5 * 0.75 + 0.25 * 0.8,
        "balanced-accuracy": 0.625,
        "accuracy": 4 / 6,
        "precision@clear": 0.5,
        "precision@ambiguous": 0.75,
        "recall@clear": 0.5,
        "recall@ambiguous": 0.75,
        "F1@clear": 0.5,
        "F1@ambiguous": 0.75,
    }
    assert list(measured) == list(expected)
    assert {name: value[0] for name, value in measured.items()} == pytest.approx(expected, abs=1e-12)


def test_constant_prediction_has_mcc_0_under_weights_that_round():
    weights = np.array([[0.1, 0.2, 0.3, 0.7, 0.1, 1.1]])
    truth = np.array([1, 0, 1, 1, 0, 1])
    measured = compute_measures(truth, np.ones(6, int), np.zeros(6), weights, ("clear", "ambiguous"), "ambiguous")
    assert measured["MCC"][0] == 0


def test_ranking_measures_are_left_out_without_a_positive_class():
    ones = np.ones((1, 3))
    measured = compute_measures(np.array([0, 1, 2]), np.array([0, 1, 1]), np.zeros(3), ones, NAMES[:3], None)
    assert not {"AUROC", "PR-AUC"} & set(measured)
    assert measured["accuracy"][0] == pytest.approx(2 / 3)


def test_a_replicate_of_one_class_has_no_auroc():
    weights = np.array([[1.0, 1.0, 0.0], [0.0, 0.0, 3.0], [1.0, 1.0, 1.0]])
    truth, scores = np.array([1, 1, 0]), np.array([0.2, 0.9, 0.4])
    measured = compute_measures(truth, truth, scores, weights, ("clear", "ambiguous"), "ambiguous")
    np.testing.assert_array_equal(measured["AUROC"], [np.nan, np.nan, 0.5])
    np.testing.assert_allclose(measured["PR-AUC"], [1.0, np.nan, 5 / 6], atol=1e-12)
