import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score

from pipeline.evaluation.decisions import other_label, select_on_dev, select_threshold, to_predictions
from pipeline.records import GoldItem

LABELS = ("clear", "ambiguous")


def test_threshold_worked_by_hand():
    is_positive = np.array([False, False, True, True, True])
    scores = np.array([0.1, 0.7, 0.6, 0.8, 0.9])
    # Macro-F1 of the cuts .35, .65, .75, .85: .762, .583, .8, .583.
    assert select_threshold(is_positive, scores) == pytest.approx(0.75)


def test_of_equally_good_thresholds_the_nearest_to_one_half_is_taken():
    is_positive = np.array([True, False, True, False, True, False])
    scores = np.array([0.05, 0.15, 0.4, 0.5, 0.85, 0.95])
    # By symmetry of the labels under reversal, cuts come in pairs of equal macro-F1: .1 and .9, .275 and .675.
    by_cut = {
        cut: f1_score(is_positive, scores >= cut, average="macro", zero_division=0)
        for cut in (0.1, 0.275, 0.45, 0.675, 0.9)
    }
    assert by_cut[0.275] == pytest.approx(by_cut[0.675])
    assert max(by_cut.values()) == pytest.approx(by_cut[0.275])
    assert select_threshold(is_positive, scores) == pytest.approx(0.675)


def test_rounding_does_not_decide_between_equally_good_thresholds():
    is_positive = np.array([True, True, True, True, False, True, True])
    scores = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7])
    # Macro-F1 is 5/12 at .15, the mean of 5/6 and 0, and at .55, of 1/2 and 1/3; as floats the former is larger.
    assert select_threshold(is_positive, scores) == pytest.approx(0.55)


def test_equal_scores_leave_one_half():
    assert select_threshold(np.array([True, False]), np.array([0.9, 0.9])) == 0.5


def test_neighbouring_floats_are_still_parted():
    low = 0.7
    high = np.nextafter(low, 1)
    threshold = select_threshold(np.array([False, True]), np.array([low, high]))
    assert low < threshold <= high


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 8).map(lambda n: n / 8)), min_size=2, max_size=15))
def test_no_midpoint_beats_the_selected_threshold(items):
    is_positive, scores = (np.array(column) for column in zip(*items, strict=True))
    selected = select_threshold(is_positive, scores)
    distinct = np.unique(scores)
    midpoints = (distinct[:-1] + distinct[1:]) / 2

    def macro_f1(threshold):
        return f1_score(is_positive, scores >= threshold, average="macro", labels=[False, True], zero_division=0)

    best = max((macro_f1(threshold) for threshold in midpoints), default=macro_f1(0.5))
    assert macro_f1(selected) == pytest.approx(best, abs=1e-12)
    ties = [t for t in midpoints if macro_f1(t) == pytest.approx(best, abs=1e-12)]
    assert abs(selected - 0.5) == min((abs(t - 0.5) for t in ties), default=0)


def make_benchmark():
    rows = [("dev", 0, 0.2), ("dev", 1, 0.3), ("train", 0, 0.24), ("test", 0, 0.2), ("test", 1, 0.4), ("test", 1, 0.1)]
    items = [GoldItem(f"i{n}", "a query", LABELS[label], split) for n, (split, label, _) in enumerate(rows)]
    return items, np.array([score for _, _, score in rows])


def test_dev_chooses_a_threshold_for_each_seed_and_only_test_is_reported():
    items, scores = make_benchmark()
    predictions = [
        row
        for seed, shift in ((0, 0.0), (1, 0.5))
        for row in to_predictions(
            items, ["clear"] * 6, scores + shift, benchmark="ClariQ", setting="standard", seed=seed
        )
    ]
    selected = select_on_dev(predictions, items, LABELS, "ambiguous", ("train", "dev"))
    assert [(row.item_id, row.seed, row.setting, row.predicted) for row in selected] == [
        (item_id, seed, "dev-selected", predicted)
        for seed in (0, 1)
        for item_id, predicted in (("i3", "clear"), ("i4", "ambiguous"), ("i5", "clear"))
    ]
    assert [row.score for row in selected[:3]] == [0.2, 0.4, 0.1]


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        (("train",), r"ClariQ, seed 0: 1 items in \('train',\), 0 of them 'ambiguous'"),
        (("validation",), r"0 items in \('validation',\)"),
        (("dev", "test"), r"can't choose the threshold"),
    ],
)
def test_splits_that_can_not_choose_are_refused(splits, message):
    items, scores = make_benchmark()
    predictions = to_predictions(items, ["clear"] * 6, scores, benchmark="ClariQ", setting="standard")
    with pytest.raises(ValueError, match=message):
        select_on_dev(predictions, items, LABELS, "ambiguous", splits)


def test_predictions_of_another_length_than_the_items_are_refused():
    items, scores = make_benchmark()
    with pytest.raises(ValueError):
        to_predictions(items, ["clear"] * 5, scores, benchmark="ClariQ", setting="standard")


def test_the_other_label_needs_two_classes():
    assert other_label(LABELS, "ambiguous") == "clear"
    assert other_label(LABELS, "clear") == "ambiguous"
    with pytest.raises(ValueError, match="two classes"):
        other_label(("a", "b", "c"), "a")
