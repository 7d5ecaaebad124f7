"""What a report says of rankers: by community, differences, weights; and how BM25 stands among them."""

from dataclasses import replace

import pytest

from pipeline.report.html import Rankers, ReportInput, render_report
from pipeline.report.ranking import Ranked, format_p, lay_out_communities, lay_out_differences, lay_out_weights
from pipeline.report.table import tabulate_results, to_markdown

MEASURES = ("nDCG@10", "P@1")


def make_ranked(arm, student=None, weights=({"bm25": 1.0},), scale=1.0) -> Ranked:
    values = {"beer_1": 0.5 * scale, "beer_2": 1.0 * scale, "ai_1": 0.25 * scale}
    by_measure = {"nDCG@10": values, "P@1": {query: float(value == 1) for query, value in values.items()}}
    return Ranked(
        arm=arm,
        student=student,
        benchmark="both",
        first_stage={"k1": 1.2, "b": 0.75},
        weights=list(weights),
        values=by_measure,
    )


RANKED = [
    make_ranked("bm25"),
    make_ranked("real", "minilm", [{"bm25": 0.3, "dense": 0.7}, {"bm25": 0.0, "dense": 1.0}], scale=0.5),
]
COMMUNITIES = {"beer_1": "beer", "beer_2": "beer", "ai_1": "ai"}


ANSWERS = {
    "texts": {
        "n": 1200,
        "n_left_out": 3,
        "arms": {"real": {"overlap": 0.5, "mean_words": 80.5, "self_bleu": 0.125}},
        "pairs": [{"first": "real", "second": "offline", "bleu": 12.34, "chrf": 40.0}],
    },
    "support": {"offline": {"n_claims": 7, "recall": 0.5, "cosine": None}},
}
CORRELATION = {
    "benchmark": "both", "student": "minilm", "what": "mean words",
    "n": 3, "pearson": -0.875, "spearman": -1.0, "note": "",
}  # fmt: skip


def make_rankers() -> Rankers:
    return Rankers(
        differences=lay_out_differences([make_difference()]),
        communities=lay_out_communities(RANKED, COMMUNITIES),
        weights=lay_out_weights(RANKED),
        answers=ANSWERS,
        correlations=[CORRELATION],
    )


def make_difference(**changes):
    values = {
        "benchmark": "both", "measure": "nDCG@10", "first": "real / minilm", "second": "bm25", "value": -0.25,
        "low": -0.5, "high": 0.0125, "p": 0.25, "p_holm": 0.5, "n": 3,
    }  # fmt: skip
    return values | changes


def make_entry(arm, student, value, low, measure="nDCG@10"):
    return {
        "arm": arm, "student": student, "data": "", "benchmark": "both", "setting": "standard", "measure": measure,
        "value": value, "low": low, "high": value + 0.05, "n": 90,
    }  # fmt: skip


ENTRIES = [
    make_entry("real", "minilm", 0.677, 0.6),
    make_entry("released", "minilm", 0.43, 0.36),
    make_entry("bm25", None, 0.426, 0.35),
]


def make_report(**changes) -> str:
    values = {"experiment": "cqa", "entries": ENTRIES, "config": "", "versions": {}, "steps": [], "measures": MEASURES}
    return render_report(ReportInput(**values | changes))


def test_a_community_has_a_row_for_each_measure_with_the_mean_of_its_queries():
    assert lay_out_communities(RANKED, COMMUNITIES) == [
        {"measure": "nDCG@10", "community": "ai", "queries": 1, "bm25": "0.250", "real / minilm": "0.125"},
        {"measure": "nDCG@10", "community": "beer", "queries": 2, "bm25": "0.750", "real / minilm": "0.375"},
        {"measure": "P@1", "community": "ai", "queries": 1, "bm25": "0.000", "real / minilm": "0.000"},
        {"measure": "P@1", "community": "beer", "queries": 2, "bm25": "0.500", "real / minilm": "0.000"},
    ]


def test_differences_show_sign_interval_and_both_p_values_the_surest_first():
    unsure, sure = make_difference(), make_difference(value=0.1, low=0.05, high=0.15, p=0.0001, p_holm=0.0002)
    first, second = lay_out_differences([unsure, sure])
    assert (first["first minus second"], first["p"], first["p (Holm)"]) == ("+0.100 [+0.050, +0.150]", *["< 0.001"] * 2)
    assert second == {
        "benchmark": "both", "measure": "nDCG@10", "first": "real / minilm", "second": "bm25",
        "first minus second": "-0.250 [-0.500, +0.013]", "p": "0.250", "p (Holm)": "0.500", "queries": 3,
    }  # fmt: skip


@pytest.mark.parametrize(("p", "text"), [(0.00099, "< 0.001"), (0.001, "0.001"), (1.0, "1.000")])
def test_a_p_value_is_never_shown_as_nothing(p, text):
    assert format_p(p) == text


def test_weights_of_several_seeds_stand_side_by_side():
    assert lay_out_weights(RANKED) == [
        {"benchmark": "both", "ranker": "bm25", "BM25 k1": "1.2", "BM25 b": "0.75", "bm25": "1"},
        {
            "benchmark": "both",
            "ranker": "real / minilm",
            "BM25 k1": "1.2",
            "BM25 b": "0.75",
            "bm25": "0.3, 0",
            "dense": "0.7, 1",
        },
    ]


def test_a_report_shows_rankers_where_there_are_any_and_no_trace_of_them_elsewhere():
    page = make_report(rankers=make_rankers())
    for shown in ('href="#rankers"', 'id="rankers"', "-0.250 [-0.500, +0.013]", "0.3, 0", "beer", "p (Holm)"):
        assert shown in page
    assert 'rankers"' not in make_report()


def test_a_report_shows_what_answers_look_like_or_why_they_are_not_compared():
    page = make_report(rankers=make_rankers())
    for shown in ("On the 1,200 questions", "Self-BLEU", "12.3", "supports", "mean words", "-0.875"):
        assert shown in page
    nothing = {
        "texts": {"n": 0, "n_left_out": 3, "arms": {}, "pairs": [], "note": "no question is shared"},
        "support": {},
    }
    page = make_report(rankers=replace(make_rankers(), answers=nothing, correlations=[]))
    assert "Not measured: no question is shared." in page
    assert "supports" not in page


def test_a_report_counts_as_arms_what_has_a_data_set_and_says_what_selected():
    tagged = [make_entry("real_tag", "minilm", 0.68, 0.6), make_entry("released_tag", "minilm", 0.44, 0.37)]
    page = make_report(rankers=make_rankers(), entries=[*ENTRIES, *tagged], cards={"real": {"rows": 9}})
    for shown in (
        "cqa compares 1 arm (where training rows come from) and 1 student with 1 baseline on both.",
        "2 of 4 rankers have an interval of nDCG@10 above",
        "were chosen on the benchmark&#39;s validation queries; its test queries alone are reported",
    ):
        assert shown in page
    assert "no row of the benchmark was used" not in page


def test_bm25_is_what_rankers_have_to_clear():
    (table,) = tabulate_results(ENTRIES, MEASURES)
    assert table.bar is not None
    assert {row.arm: row.clears for row in table.rows} == {"real": True, "released": False, "bm25": True}
    assert table.describe_clearing() == (
        "1 of 2 rankers has an interval of nDCG@10 above the best trivial baseline (bm25, 0.426)."
    )
    text = to_markdown(ENTRIES, MEASURES)
    assert "| released | minilm | 0.430† [0.360, 0.480] |" in text
    assert "| *bm25* | *baseline* | 0.426 [0.350, 0.476] |" in text


def test_of_bm25_without_and_with_tag_the_better_one_is_to_be_cleared():
    (table,) = tabulate_results([*ENTRIES, make_entry("bm25_tag", None, 0.61, 0.5)], MEASURES)
    assert table.bar is not None
    assert (table.bar.arm, table.all_clear) == ("bm25_tag", False)
    assert not any(row.clears for row in table.rows_of("student"))
