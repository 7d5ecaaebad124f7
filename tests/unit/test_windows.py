import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from pipeline.records import Passage
from pipeline.retrieval.windows import AbsoluteWindow, AnyWindow, PercentileWindow, select

ANY_WINDOW = TypeAdapter(AnyWindow)


def window(low, high) -> AbsoluteWindow:
    return AbsoluteWindow(kind="absolute", low=low, high=high)


def passages(*scores) -> list[Passage]:
    return [Passage(f"p{rank}", "text", float(score), rank) for rank, score in enumerate(scores, start=1)]


@pytest.mark.parametrize("precision", [float, np.float32])
@pytest.mark.parametrize("bound", [0.4, 0.5, 0.9])
def test_a_similarity_on_a_bound_is_inside(bound, precision):
    assert window(bound, 1.0).holds(float(precision(bound)))
    assert window(-1.0, bound).holds(float(precision(bound)))


@given(st.floats(-1, 1, width=32), st.floats(-1, 1, width=32), st.floats(-1, 1, width=32))
def test_similarities_as_they_come_are_compared_as_they_are(low, high, similarity):
    low, high = min(low, high), max(low, high)
    assert window(low, high).holds(similarity) == (low <= similarity <= high)


def test_what_is_just_outside_in_single_precision_is_outside():
    below, above = np.nextafter(np.float32(0.4), np.float32(0)), np.nextafter(np.float32(0.9), np.float32(1))
    assert not window(0.4, 0.9).holds(float(below))
    assert not window(0.4, 0.9).holds(float(above))


def test_ranks_and_window_select_together_and_ranks_stay():
    found = passages(0.95, 0.8, 0.7, 0.45, 0.4, 0.39)
    assert [p.rank for p in select(found, window(0.5, 0.9), range(1, 3))] == [2]
    assert [p.rank for p in select(found, window(0.4, 0.9), range(3, 51))] == [3, 4, 5]
    assert select(found, window(0.4, 0.9), range(7, 51)) == []
    assert select([], window(0.4, 0.9), range(1, 51)) == []


def test_percentiles_are_those_of_the_sample():
    sample = np.linspace(0.0, 1.0, 101, dtype=np.float32).reshape(1, -1)
    fitted = PercentileWindow(kind="percentile", low=10, high=95).fit(sample)
    assert (fitted.low, fitted.high) == pytest.approx((0.1, 0.95), abs=1e-6)


def test_a_window_of_all_percentiles_keeps_its_whole_sample():
    sample = np.array([0.31, 0.2, 1.0, 0.9], dtype=np.float32)
    fitted = PercentileWindow(kind="percentile", low=0, high=100).fit(sample)
    assert len(select(passages(*sample), fitted, range(1, 5))) == 4


def test_no_sample_gives_no_percentiles():
    with pytest.raises(ValueError, match="no similarities"):
        PercentileWindow(kind="percentile", low=0, high=100).fit([])


@pytest.mark.parametrize(
    "values",
    [
        {"kind": "absolute", "low": 0.9, "high": 0.4},
        {"kind": "absolute", "low": 0.4, "high": 1.1},
        {"kind": "absolute", "low": 40, "high": 90},
        {"kind": "percentile", "low": 90, "high": 10},
        {"kind": "percentile", "low": -1, "high": 101},
        {"kind": "distance", "low": 0.1, "high": 0.6},
    ],
)
def test_a_window_that_can_keep_nothing_or_has_another_scale_is_refused(values):
    with pytest.raises(ValidationError):
        ANY_WINDOW.validate_python(values)


def test_the_kind_says_which_window():
    assert isinstance(ANY_WINDOW.validate_python({"kind": "absolute", "low": 0.4, "high": 0.9}), AbsoluteWindow)
    assert isinstance(ANY_WINDOW.validate_python({"kind": "percentile", "low": 40, "high": 90}), PercentileWindow)
