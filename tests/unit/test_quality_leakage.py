import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import LeakageError
from pipeline.quality.leakage import Overlap, drop_leaked
from pipeline.records import Example, GoldItem

WORDS = st.lists(st.sampled_from(["who", "won", "the", "cup", "cups", "2017"]), min_size=1, max_size=5).map(" ".join)


def rows(*texts):
    return [Example(f"r{i}", "", "g", text, "clear") for i, text in enumerate(texts)]


def items(*texts):
    return [GoldItem(f"i{i}", text, "ambiguous", "test") for i, text in enumerate(texts)]


def test_exact_and_near_repeats_are_rejected_whatever_their_label():
    examples = rows("Who won the world cup", "something else", "who won the world cups?")
    kept, rejects, overlaps = drop_leaked(examples, {"B": items("other", "who won the WORLD cup?")}, 0.8, 1.0)
    assert [example.row_id for example in kept] == ["r1"]
    assert [(r.row_id, r.stage, r.reason, r.detail) for r in rejects] == [
        ("r0", "filter", "leaked_exact", "B item i1: who won the WORLD cup?"),
        # 15 3-grams in both (" wo" is in two words), "up " against "ups" and "ps ": 15 / 18.
        ("r2", "filter", "leaked_near", "similarity 0.833, B item i1: who won the WORLD cup?"),
    ]
    assert overlaps == {"B": Overlap(n_items=2, n_exact=1, n_near=1)}


def test_the_similarity_decides_what_is_near():
    examples = rows("who won the world cups")
    assert drop_leaked(examples, {"B": items("who won the world cup")}, 0.9, 1.0)[1] == []


def test_the_most_similar_item_is_cited():
    _, (reject,), _ = drop_leaked(rows("a b c d"), {"B": items("a b c d e f", "a b c d e")}, 0.5, 1.0)
    assert reject.detail.startswith("similarity 0.800, B item i1")


def test_a_row_that_repeats_two_benchmarks_counts_for_both_and_is_rejected_once_as_exact():
    benchmarks = {"Near": items("who won the world cup"), "Exact": items("who won the world cups")}
    _, rejects, overlaps = drop_leaked(rows("who won the world cups"), benchmarks, 0.8, 1.0)
    assert [(r.reason, r.detail) for r in rejects] == [("leaked_exact", "Exact item i0: who won the world cups")]
    assert overlaps == {"Near": Overlap(1, 0, 1), "Exact": Overlap(1, 1, 0)}


def test_rows_are_not_compared_with_each_other():
    assert drop_leaked(rows("who won", "who won"), {"B": items("elsewhere")}, 0.5, 0.0)[1] == []


def test_too_large_a_share_stops_with_counts_and_cases():
    examples = rows("who won", "where is it", "c d", "e f")
    benchmarks = {"ClariQ": items("who won?"), "AmbigNQ": items("where is it?"), "Clean": items("x y")}
    assert len(drop_leaked(examples, benchmarks, 0.9, 0.5)[1]) == 2
    with pytest.raises(LeakageError) as caught:
        drop_leaked(examples, benchmarks, 0.9, 0.49)
    message = str(caught.value)
    assert "2 of 4 rows (50.0%)" in message
    assert "ClariQ: 1 exact, 0 near; AmbigNQ: 1 exact, 0 near" in message
    assert "Clean" not in message
    assert "r0: who won\n    ClariQ item i0: who won?" in message
    assert "r1: where is it\n    AmbigNQ item i0: where is it?" in message
    assert "raise max_leaked_share" in message


def test_nothing_to_compare_with_leaks_nothing():
    assert drop_leaked(rows("a"), {}, 0.9, 0.0) == (rows("a"), [], {})
    assert drop_leaked(rows("a"), {"B": []}, 0.9, 0.0)[2] == {"B": Overlap(0, 0, 0)}
    assert drop_leaked([], {"B": items("a")}, 0.9, 0.0) == ([], [], {"B": Overlap(1, 0, 0)})


@given(st.lists(WORDS, max_size=8), st.lists(WORDS, max_size=5), st.lists(WORDS, max_size=5))
@settings(deadline=None)
def test_rows_in_are_rows_out_and_rejects(texts, one, other):
    examples = rows(*texts)
    kept, rejects, overlaps = drop_leaked(examples, {"A": items(*one), "B": items(*other)}, 0.7, 1.0)
    assert sorted(e.row_id for e in [*kept, *rejects]) == [e.row_id for e in examples]
    assert {e.text for e in kept}.isdisjoint([*one, *other])
    assert {r.row_id for r in rejects if r.reason == "leaked_exact"} == {
        e.row_id for e in examples if e.text in {*one, *other}
    }
    assert overlaps["A"].n_exact == sum(text in one for text in texts)
