from dataclasses import replace

import numpy as np
import pytest
import scipy.stats
from sklearn import metrics

from pipeline.evaluation import bootstrap
from pipeline.evaluation.bootstrap import estimate
from pipeline.records import Prediction

LABELS = ("clear", "ambiguous")


def make_predictions(truth, predicted, scores=None, seed=0):
    scores = predicted if scores is None else scores
    return [
        Prediction("ClariQ", "standard", f"item-{i}", "a query", LABELS[t], LABELS[p], float(s), seed)
        for i, (t, p, s) in enumerate(zip(truth, predicted, scores, strict=True))
    ]


def simulate(n_items, rng, seed=0, accuracy=0.8):
    truth = (rng.random(n_items) < 0.6).astype(int)
    predicted = np.where(rng.random(n_items) < accuracy, truth, 1 - truth)
    return make_predictions(truth, predicted, seed=seed)


def by_measure(estimates):
    return {each.measure: each for each in estimates}


def test_a_perfect_predictor_has_the_interval_one_to_one():
    truth = [0, 1, 1] * 40
    predictions = [row for seed in range(3) for row in make_predictions(truth, truth, seed=seed)]
    for each in estimate(predictions, LABELS, "ambiguous", 200, 0):
        assert (each.value, each.low, each.high, each.n) == (1, 1, 1, 120), each.measure


def test_the_value_is_the_mean_over_seeds_of_scikit_learns_measure():
    rng = np.random.default_rng(1)
    truth = (rng.random(80) < 0.7).astype(int)
    runs = {seed: rng.normal(truth, 1.0) for seed in (3, 11)}
    predictions = [
        row
        for seed, scores in runs.items()
        for row in make_predictions(truth, (scores > 0.5).astype(int), scores, seed)
    ]
    found = by_measure(estimate(predictions, LABELS, "ambiguous", 100, 0))
    aurocs = [metrics.roc_auc_score(truth, scores) for scores in runs.values()]
    f1s = [metrics.f1_score(truth, scores > 0.5, average="macro") for scores in runs.values()]
    assert found["AUROC"].value == pytest.approx(np.mean(aurocs), abs=1e-12)
    assert found["macro-F1"].value == pytest.approx(np.mean(f1s), abs=1e-12)
    assert found["AUROC"].n == 80


def test_one_seeds_interval_agrees_with_scipys_percentile_bootstrap():
    rng = np.random.default_rng(2)
    truth = (rng.random(150) < 0.8).astype(int)
    scores = rng.normal(truth, 1.0)
    predicted = (scores > 0.4).astype(int)
    found = by_measure(estimate(make_predictions(truth, predicted, scores), LABELS, "ambiguous", 8000, 0))

    def share_of_pairs_won(truth, scores):
        ranks, n_positive = scipy.stats.rankdata(scores), truth.sum()
        return (ranks[truth == 1].mean() - (n_positive + 1) / 2) / (len(truth) - n_positive)

    references = {
        "accuracy": (truth, predicted, lambda t, p: np.mean(t == p)),
        "AUROC": (truth, scores, share_of_pairs_won),
    }
    for name, (first, second, statistic) in references.items():
        reference = scipy.stats.bootstrap(
            (first, second), statistic, paired=True, vectorized=False, n_resamples=8000, method="percentile", rng=7
        ).confidence_interval
        width = reference.high - reference.low
        assert found[name].low == pytest.approx(reference.low, abs=0.05 * width)
        assert found[name].high == pytest.approx(reference.high, abs=0.05 * width)


def test_seeds_that_disagree_widen_the_interval():
    truth = [0, 1] * 200
    right, wrong = make_predictions(truth, truth, seed=0), make_predictions(truth, [1 - t for t in truth], seed=1)
    accuracy = by_measure(estimate(right + wrong, LABELS, "ambiguous", 400, 0))["accuracy"]
    # Two draws of two seeds: a quarter of the replicates are all right, a quarter all wrong.
    assert (accuracy.value, accuracy.low, accuracy.high) == (0.5, 0, 1)


def test_a_replicate_uses_the_same_items_for_all_its_seeds():
    rng = np.random.default_rng(3)
    once = simulate(100, rng)
    thrice = [replace(row, seed=seed) for seed in range(3) for row in once]
    # Three equal seeds say nothing more about the items than one does.
    for one, three in zip(*(estimate(rows, LABELS, "ambiguous", 300, 0) for rows in (once, thrice)), strict=True):
        assert (three.low, three.high) == pytest.approx((one.low, one.high), abs=1e-12)


def test_the_interval_of_accuracy_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(4)
    covered = 0
    for _ in range(200):
        accuracy = by_measure(estimate(simulate(120, rng), LABELS, "ambiguous", 300, 0))["accuracy"]
        covered += accuracy.low <= 0.8 <= accuracy.high
    assert 0.90 <= covered / 200 <= 0.99


def test_the_same_seed_gives_the_same_intervals_whatever_the_order_and_the_chunks(monkeypatch):
    rng = np.random.default_rng(5)
    predictions = simulate(60, rng) + simulate(60, np.random.default_rng(5), seed=1)
    predictions[60:] = [
        replace(p, label=q.label, seed=1) for p, q in zip(predictions[60:], predictions[:60], strict=True)
    ]
    expected = estimate(predictions, LABELS, "ambiguous", 200, 9)
    shuffled = [predictions[i] for i in rng.permutation(len(predictions))]
    assert estimate(shuffled, LABELS, "ambiguous", 200, 9) == expected
    monkeypatch.setattr(bootstrap, "_CHUNK_CELLS", 7 * 60)
    assert estimate(predictions, LABELS, "ambiguous", 200, 9) == expected
    assert estimate(predictions, LABELS, "ambiguous", 200, 10) != expected


def test_replicates_of_one_class_leave_the_interval_finite():
    found = by_measure(estimate(make_predictions([1, 1, 1, 0], [1, 1, 0, 0]), LABELS, "ambiguous", 500, 0))
    # A quarter of the draws of four items lack the only clear one.
    assert np.isfinite([found["AUROC"].low, found["AUROC"].high]).all()


def test_more_classes_are_measured_without_a_positive_one():
    labels = ("World", "Sports", "Business")
    rows = [
        Prediction("AG News", "standard", str(i), "", labels[i % 3], labels[(i + (i > 6)) % 3], 0.0, 0)
        for i in range(9)
    ]
    found = by_measure(estimate(rows, labels, None, 100, 0))
    assert found["accuracy"].value == pytest.approx(7 / 9)
    assert "AUROC" not in found
    assert "F1@Business" in found


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows[:-1], r"item 'item-2', seed 1: no prediction"),
        (lambda rows: [*rows, rows[1]], r"item 'item-1', seed 0: predicted twice"),
        (lambda rows: [*rows[:-1], replace(rows[-1], label="clear")], r"item 'item-2', seed 1: labelled 'clear' here"),
        (lambda rows: [replace(rows[0], predicted="vague"), *rows[1:]], r"item 'item-0'.*'vague' is none of"),
        (lambda rows: [replace(rows[0], score=float("nan")), *rows[1:]], r"item 'item-0'.*can't be ranked"),
        (lambda rows: [replace(rows[0], benchmark="AmbigNQ"), *rows[1:]], r"one benchmark and setting"),
        (lambda rows: [replace(rows[0], setting="dev-selected"), *rows[1:]], r"one benchmark and setting"),
        (lambda rows: [], r"one benchmark and setting are needed, got none"),
        (lambda rows: [replace(row, label="clear") for row in rows], r"ClariQ: all 3 items are of \['clear'\]"),
    ],
)
def test_predictions_that_can_not_be_measured_are_refused(change, message):
    rows = [row for seed in range(2) for row in make_predictions([0, 1, 1], [0, 1, 0], seed=seed)]
    with pytest.raises(ValueError, match=message):
        estimate(change(rows), LABELS, "ambiguous", 100, 0)


def test_the_deviation_over_seeds_is_that_of_the_seeds_own_values():
    truth = [1, 1, 0, 0]
    decisions = {0: [1, 1, 0, 0], 1: [1, 0, 0, 0], 2: [1, 0, 1, 0]}
    predictions = [row for seed, said in decisions.items() for row in make_predictions(truth, said, seed=seed)]
    accuracy = by_measure(estimate(predictions, LABELS, None, 100, 0))["accuracy"]
    assert accuracy.value == pytest.approx(0.75)
    assert accuracy.seed_sd == pytest.approx(0.25)
    one = estimate(make_predictions(truth, decisions[1]), LABELS, None, 100, 0)
    assert {each.seed_sd for each in one} == {None}
