from io import StringIO

import pytest
from rich.console import Console

from pipeline.report.table import MARK, format_number, print_results, tabulate_results, to_markdown


def entry(arm, student, measure, value, low, high, benchmark="ClariQ", setting="standard", n=299):
    return {
        "arm": arm,
        "student": student,
        "data": "",
        "benchmark": benchmark,
        "setting": setting,
        "measure": measure,
        "value": value,
        "low": low,
        "high": high,
        "n": n,
    }


ENTRIES = [
    entry("good", "minilm", "macro-F1", 0.60, 0.55, 0.65),
    entry("good", "minilm", "AUROC", 0.70, 0.65, 0.75),
    entry("lucky", "minilm", "macro-F1", 0.56, 0.49, 0.61),
    entry("lucky", "minilm", "AUROC", 0.74, 0.65, 0.75),
    entry("majority", None, "macro-F1", 0.467, 0.45, 0.48),
    entry("majority", None, "AUROC", 0.5, 0.5, 0.5),
    entry("prior", None, "macro-F1", 0.5, 0.44, 0.55),
    entry("tfidf_good", None, "macro-F1", 0.62, 0.48, 0.66),
]


def print_to_text(entries, **options):
    console = Console(file=StringIO(), **options)
    print_results(entries, console)
    return console.file.getvalue()


@pytest.mark.parametrize("trained", ["tfidf_good", "frozen_good"])
def test_best_trivial_baseline_is_the_bar_and_one_that_is_trained_is_none(trained):
    (table,) = tabulate_results([*ENTRIES[:-1], entry(trained, None, "macro-F1", 0.62, 0.48, 0.66)])
    assert table.bar is not None
    assert table.bar.arm == "prior"
    (row,) = [row for row in table.rows if row.arm == trained]
    assert (row.kind, row.is_trivial, row.clears) == ("baseline", False, False)


def test_row_is_marked_exactly_when_its_interval_reaches_the_bar():
    (table,) = tabulate_results(ENTRIES)
    assert {row.arm: row.clears for row in table.rows} == {
        "good": True,
        "lucky": False,
        "majority": True,
        "prior": True,
        "tfidf_good": False,
    }
    assert table.describe_clearing().startswith("1 of 2 students has an interval of macro-F1 above")
    assert "(prior, 0.500)" in table.describe_clearing()


def test_interval_that_ends_on_the_bar_does_not_clear_it():
    (table,) = tabulate_results(
        [entry("a", "s", "macro-F1", 0.6, 0.5, 0.7), entry("prior", None, "macro-F1", 0.5, 0, 1)]
    )
    assert not table.rows[0].clears
    assert table.describe_clearing().startswith("None of 1 student has")


def test_without_trivial_baseline_nothing_is_marked_and_the_output_says_so():
    entries = [entry("a", "s", "macro-F1", 0.6, 0.5, 0.7)]
    assert MARK not in to_markdown(entries)
    assert "no trivial baseline" in to_markdown(entries)
    assert tabulate_results(entries)[0].describe_clearing() == ""


def test_students_come_before_baselines():
    (table,) = tabulate_results(ENTRIES[::-1])
    assert [row.is_baseline for row in table.rows] == [False, False, True, True, True]


JUDGED = [
    *ENTRIES,
    entry("a_judge", "zero-shot", "macro-F1", 0.66, 0.61, 0.7),
    entry("b_judge", "few-shot", "macro-F1", 0.51, 0.41, 0.6),
]


def test_judges_stand_between_students_and_baselines_and_are_counted_apart():
    (table,) = tabulate_results(JUDGED[::-1])
    assert [row.kind for row in table.rows] == ["student"] * 2 + ["judge"] * 2 + ["baseline"] * 3
    assert [row.arm for row in table.rows_of("judge")] == ["b_judge", "a_judge"]
    assert {row.arm for row in table.rows if not row.clears} == {"lucky", "b_judge", "tfidf_good"}
    assert table.describe_clearing().startswith("1 of 2 students and 1 of 2 judges have an interval of macro-F1 above")
    assert not table.all_clear


def test_who_clears_is_told_of_those_that_are_there():
    students, judges = JUDGED[:4], JUDGED[-2:]
    bar = [entry("prior", None, "macro-F1", 0.5, 0.4, 0.6)]
    assert tabulate_results([*judges, *bar])[0].describe_clearing().startswith("1 of 2 judges has")
    none = tabulate_results([students[2], judges[1], *bar])[0].describe_clearing()
    assert none.startswith("None of 1 student and none of 1 judge has")
    assert tabulate_results([students[0], judges[0], *bar])[0].all_clear


def test_a_judge_is_shown_by_how_it_was_asked():
    assert "| a_judge | zero-shot | **0.660** [0.610, 0.700] | - |" in to_markdown(JUDGED).splitlines()
    lines = [line.strip() for line in print_to_text(JUDGED, width=200).splitlines()]
    (place,) = [index for index, line in enumerate(lines) if line.startswith("a_judge / zero-shot")]
    assert lines[place - 1] == ""
    assert lines[place + 2] == ""


def test_each_benchmark_and_setting_has_its_own_table():
    other = [
        entry("a", "s", "macro-F1", 0.1, 0, 0.2, "AmbigNQ"),
        entry("a", "s", "macro-F1", 0.1, 0, 0.2, "ClariQ", "dev-selected", 62),
    ]
    tables = tabulate_results([*ENTRIES, *other])
    assert [(table.benchmark, table.setting, table.n) for table in tables] == [
        ("ClariQ", "standard", 299),
        ("AmbigNQ", "standard", 299),
        ("ClariQ", "dev-selected", 62),
    ]
    assert tables[1].bar is None


def test_columns_are_the_headline_measures_that_occur_in_their_order():
    (table,) = tabulate_results([*ENTRIES, entry("good", "minilm", "precision@clear", 0.3, 0.2, 0.4)])
    assert table.measures == ("macro-F1", "AUROC")
    (ranking,) = tabulate_results([entry("a", "s", "nDCG@10", 0.3, 0.2, 0.4)], measures=("nDCG@10", "P@1"))
    assert ranking.measures == ("nDCG@10",)
    (unknown,) = tabulate_results([entry("a", "s", "nDCG@10", 0.3, 0.2, 0.4)])
    assert unknown.measures == ("nDCG@10",)


def test_best_of_a_column_is_bold_baselines_included():
    lines = to_markdown(ENTRIES).splitlines()
    bold = [(line.split("|")[1].strip(), line.count("**") // 2) for line in lines if "**0." in line]
    assert bold == [("lucky", 1), ("*tfidf_good*", 1)]
    assert "| *tfidf_good* | *baseline* | **0.620**† [0.480, 0.660] | - |" in lines


def test_rows_equal_as_shown_are_both_best():
    entries = [entry("a", "s", "macro-F1", 0.60001, 0.5, 0.7), entry("b", "s", "macro-F1", 0.59999, 0.5, 0.7)]
    assert [row.cells["macro-F1"].is_best for row in tabulate_results(entries)[0].rows] == [True, True]


@pytest.mark.parametrize("width", [20, 60, 80, 300])
def test_piped_table_holds_every_row_on_one_line_without_colour(width):
    text = print_to_text(ENTRIES, width=width)
    assert "\x1b" not in text
    (good,) = [line for line in text.splitlines() if line.strip().startswith("good / minilm")]
    assert good.split() == ["good", "/", "minilm", "0.600", "[0.550,", "0.650]", "0.700", "[0.650,", "0.750]"]
    (lucky,) = [line for line in text.splitlines() if line.strip().startswith("lucky / minilm")]
    assert f"0.560{MARK} [0.490, 0.610]" in lucky
    assert f"{MARK} macro-F1 interval reaches down to the best trivial baseline (prior, 0.500)" in text


def test_narrow_terminal_gets_intervals_below_values():
    wide = print_to_text(ENTRIES, width=200, force_terminal=True, no_color=True)
    narrow = print_to_text(ENTRIES, width=66, force_terminal=True, no_color=True)
    assert "0.700 [0.650, 0.750]" in wide
    assert "0.700 [0.650, 0.750]" not in narrow
    assert "[0.650, 0.750]" in narrow


def test_names_are_text_and_not_markup():
    assert "[bold]x / s" in print_to_text([entry("[bold]x", "s", "macro-F1", 0.5, 0.4, 0.6)], width=200)


def test_numbers_have_three_decimals_and_no_negative_zero():
    assert [format_number(value) for value in (-0.0001, 0.46732, -0.0306, 1)] == ["0.000", "0.467", "-0.031", "1.000"]
