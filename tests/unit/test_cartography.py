"""Cartography: statistics and quantiles worked by hand, each label by itself, and no row lost or counted twice."""

import numpy as np
import pandas as pd
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import validate
from pipeline.errors import ConfigError, SourceError
from pipeline.launch import CONF
from pipeline.quality.cartography import SelectionConfig, find_bounds, measure_dynamics, select_rows
from pipeline.records import EpochPrediction, Example, RowDynamics, to_table

TOP = {"statistic": "confidence", "keep": "top", "share": 0.83, "low": None, "high": None}


def configure(**changes) -> SelectionConfig:
    return validate(SelectionConfig, {**TOP, **changes})


def make_rows(labels) -> list[Example]:
    return [Example(f"r{i}", f"q{i}", f"g{i}", f"text {i}", label) for i, label in enumerate(labels)]


def make_predictions(courses):
    """Return the predictions of rows r0, r1, … from a list of probabilities for each, right from .5 on."""
    return [
        EpochPrediction(f"r{i}", epoch, p, p >= 0.5)
        for i, course in enumerate(courses)
        for epoch, p in enumerate(course, start=1)
    ]


def measure(predictions, examples, n_epochs=3):
    return measure_dynamics(to_table(EpochPrediction, predictions), examples, n_epochs)


# --- statistics


def test_dynamics_worked_by_hand():
    """Of .1, .4 and .7 the mean is .4, and the mean of the squared deviations .06; one of three is right."""
    sure, torn = measure(make_predictions([(1.0, 1.0, 1.0), (0.1, 0.4, 0.7)]), make_rows("ab"))
    assert sure == RowDynamics("r0", "a", 1.0, 0.0, 1.0)
    assert (torn.row_id, torn.label) == ("r1", "b")
    assert (torn.confidence, torn.variability) == pytest.approx((0.4, 0.06**0.5))
    assert torn.correctness == pytest.approx(1 / 3)


@given(st.lists(st.lists(st.floats(0, 1), min_size=4, max_size=4), min_size=1, max_size=8), st.randoms())
def test_dynamics_are_those_of_pandas_in_whatever_order_predictions_come(courses, random):
    predictions = make_predictions(courses)
    random.shuffle(predictions)
    examples = make_rows("x" * len(courses))
    by_row = pd.DataFrame(predictions).groupby("row_id")
    found = pd.DataFrame(measure(predictions, examples, 4)).set_index("row_id")
    assert list(found.index) == [example.row_id for example in examples]
    for name, expected in (
        ("confidence", by_row.probability.mean()),
        ("variability", by_row.probability.std(ddof=0)),
        ("correctness", by_row.is_correct.mean()),
    ):
        assert found[name].to_numpy() == pytest.approx(expected.loc[found.index].to_numpy(), abs=1e-12)


WHOLE = make_predictions([(0.2, 0.4, 0.6), (0.9, 0.9, 0.9)])


@pytest.mark.parametrize(
    ("predictions", "message"),
    [
        (WHOLE[:-1], "row r1 of epoch 3 is missing, the first of 1"),
        ([p for p in WHOLE if p.epoch != 2], "row r0 of epoch 2 is missing, the first of 2"),
        ([], "row r0 of epoch 1 is missing, the first of 6"),
        ([*WHOLE, WHOLE[4]], "row r1 of epoch 2 stands there twice"),
        ([*WHOLE, EpochPrediction("r7", 1, 0.5, True)], "row r7 of epoch 1 is none of the 2 rows and 3 epochs"),
        ([*WHOLE, EpochPrediction("r0", 4, 0.5, True)], "row r0 of epoch 4 is none of the 2 rows and 3 epochs"),
        ([*WHOLE, EpochPrediction("r0", 0, 0.5, True)], "row r0 of epoch 0 is none of"),
        ([EpochPrediction("r0", 1, float("nan"), True)], "row r0 of epoch 1 has nan, which is no probability"),
        ([EpochPrediction("r0", 1, 1.5, True)], "row r0 of epoch 1 has 1.5, which is no probability"),
    ],
)
def test_every_row_must_stand_once_in_every_epoch(predictions, message):
    with pytest.raises(SourceError, match=message):
        measure(predictions, make_rows("ab"))


def test_two_rows_of_one_id_are_refused():
    rows = make_rows("ab")
    with pytest.raises(SourceError, match="row r1 stands twice in the data set"):
        measure(WHOLE, [*rows, rows[1]])


# --- selection


def trace(by_label, statistic="confidence") -> tuple[list[Example], list[RowDynamics]]:
    """Return rows and their dynamics: of each label, the values of one statistic; the others are the reverse of it."""
    pairs = [(label, value) for label, values in by_label.items() for value in values]
    examples = make_rows([label for label, _ in pairs])
    others = dict.fromkeys(("confidence", "variability", "correctness"))
    return examples, [
        RowDynamics(e.row_id, e.label, **{name: v if name == statistic else 1 - v for name in others})
        for e, (_, v) in zip(examples, pairs, strict=True)
    ]


def keep(by_label, statistic="confidence", **changes) -> dict[str, list[float]]:
    """Return the values that are kept of each label, in order."""
    examples, dynamics = trace(by_label, statistic)
    kept, rejects = select_rows(examples, dynamics, configure(statistic=statistic, **changes))
    assert sorted(row.row_id for row in [*kept, *rejects]) == sorted(row.row_id for row in examples)
    values = {row.row_id: getattr(row, statistic) for row in dynamics}
    return {label: [values[e.row_id] for e in kept if e.label == label] for label in by_label}


def test_the_quantile_is_each_labels_own():
    """Half of each: the median of 4 values lies between the second and the third, that of 3 is the second, which stays.

    Over all rows together, all of `b` would be below the bound.
    """
    given = {"a": [0.6, 0.9, 0.7, 0.8], "b": [0.1, 0.3, 0.2]}
    assert keep(given, share=0.5) == {"a": [0.9, 0.8], "b": [0.3, 0.2]}
    assert find_bounds(trace(given)[1], configure(share=0.5)) == {"a": (0.75, np.inf), "b": (0.2, np.inf)}


def test_the_interpolated_quantile_worked_by_hand():
    """The .17 quantile of 0, .1, …, .9 lies at place 1.53, so .153: eight of ten are kept."""
    values = [i / 10 for i in range(10)]
    (bounds,) = find_bounds(trace({"a": values})[1], configure()).values()
    assert bounds[0] == pytest.approx(0.153)
    assert keep({"a": values}) == {"a": values[2:]}


def test_rows_that_are_equal_at_the_bound_all_stay():
    assert keep({"a": [0.5, 0.5, 0.5, 0.5, 0.9]}, share=0.2) == {"a": [0.9]}
    assert keep({"a": [0.1, 0.5, 0.5, 0.5, 0.5]}, share=0.2) == {"a": [0.5] * 4}
    assert keep({"a": [0.4] * 7}) == {"a": [0.4] * 7}
    assert keep({"a": [0.3]}) == {"a": [0.3]}


def test_a_row_just_at_the_bound_is_kept_though_a_share_is_no_exact_number():
    """The .17 quantile of 101 values is the 18th; 1 - .83 is 2e-16 more, which would lie above it."""
    values = [(7919 * i % 1009) / 1009 for i in range(101)]
    assert keep({"a": values})["a"] == [value for value in values if value >= sorted(values)[17]]


@pytest.mark.parametrize("statistic", ["confidence", "variability", "correctness"])
def test_each_statistic_selects_by_its_own_values(statistic):
    values = [0.1, 0.2, 0.3, 0.4, 0.5]
    assert keep({"a": values}, statistic, share=0.4) == {"a": [0.4, 0.5]}
    assert keep({"a": values}, statistic, keep="bottom", share=0.4) == {"a": [0.1, 0.2]}
    # The quarter and three quarters of five values are the second and the fourth, which both stay.
    assert keep({"a": values}, statistic, keep="range", share=None, low=0.25, high=0.75) == {"a": [0.2, 0.3, 0.4]}


VALUES = st.lists(st.integers(0, 1000).map(lambda n: n / 1000), min_size=1, max_size=12)


@given(st.dictionaries(st.sampled_from("abc"), VALUES, min_size=1), st.sampled_from([0.1, 0.5, 0.83, 1.0]))
def test_the_kept_are_the_best_of_their_label_and_as_many_as_the_share(by_label, share):
    """Of n different values, n - 1 steps apart, 1 + share (n - 1) are kept, rounded down."""
    for which, sign in (("top", 1), ("bottom", -1)):
        for label, kept in keep(by_label, keep=which, share=share).items():
            values = sorted((sign * value for value in by_label[label]), reverse=True)
            expected = 1 + int(share * (len(values) - 1) + 1e-9)
            assert sorted((sign * value for value in kept), reverse=True) == values[: len(kept)]
            assert len(kept) == expected or (len(kept) > expected and len(set(values)) < len(values))


def test_a_reject_says_its_value_and_the_bound():
    examples, dynamics = trace({"a": [0.25, 0.5, 0.75]})
    kept, rejects = select_rows(examples, dynamics, configure(share=0.5))
    assert kept == examples[1:]
    (reject,) = rejects
    assert (reject.row_id, reject.stage, reject.reason) == ("r0", "filter", "cartography")
    assert (reject.text, reject.label) == ("text 0", "a")
    assert reject.detail == "confidence 0.25, below 0.5 for 'a'"
    _, rejects = select_rows(examples, dynamics, configure(keep="bottom", share=0.5))
    assert [r.detail for r in rejects] == ["confidence 0.75, above 0.5 for 'a'"]


@pytest.mark.parametrize("change", ["fewer", "order", "label"])
def test_dynamics_of_other_rows_are_refused(change):
    examples, dynamics = trace({"a": [0.2, 0.4], "b": [0.5]})
    other = {
        "fewer": dynamics[:-1],
        "order": dynamics[::-1],
        "label": [*dynamics[:-1], RowDynamics("r2", "a", 0.5, 0.5, 0.5)],
    }[change]
    with pytest.raises(SourceError, match=r"rows that a classifier was traced on are not the 3 rows"):
        select_rows(examples, other, configure())


# --- configuration


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"share": None}, "keep=top needs a number for share"),
        ({"keep": "bottom", "share": None}, "keep=bottom needs a number for share"),
        ({"keep": "range", "share": None, "low": 0.1}, "keep=range needs a number for high"),
        ({"keep": "range", "low": 0.1, "high": 0.9}, "keep=range has no use for share"),
        ({"low": 0.1}, "keep=top has no use for low"),
        ({"keep": "range", "share": None, "low": 0.9, "high": 0.9}, "low is 0.9, which is not below high, 0.9"),
        ({"share": 0.0}, "share: "),
        ({"share": 1.1}, "share: "),
        ({"statistic": "loss"}, "statistic: "),
        ({"keep": "all"}, "keep: "),
    ],
)
def test_a_selection_that_makes_no_sense_is_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        configure(**changes)


def test_the_default_is_the_papers():
    assert yaml.safe_load((CONF / "selection" / "top_confidence.yaml").read_text()) == TOP
