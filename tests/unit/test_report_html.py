import re
from html.parser import HTMLParser

import pytest

from pipeline.report.html import (
    NOT_MEASURED,
    ReportInput,
    describe_baselines,
    describe_comparison,
    describe_judges,
    format_value,
    lay_out_cards,
    lay_out_figures,
    lay_out_rows,
    name_column,
    render_report,
)
from pipeline.report.spending import Money
from pipeline.report.table import tabulate_results


def make_entries(low=0.55, judges=()):
    rows = [("llama", "minilm", 0.6, low), ("majority", None, 0.467, 0.45), ("tfidf_llama", None, 0.5, 0.4)]
    rows += [(f"judge_{prompt[:3]}", prompt, 0.7, 0.6) for prompt in judges]
    return [
        {
            "arm": arm,
            "student": student,
            "data": "",
            "benchmark": "ClariQ",
            "setting": "standard",
            "measure": measure,
            "value": value,
            "low": least,
            "high": value + 0.05,
            "n": 1299,
        }
        for arm, student, value, least in rows
        for measure in ("macro-F1", "MCC")
    ]


def make_report(**changes):
    values = {
        "experiment": "quickstart",
        "entries": make_entries(),
        "config": "tracking:\n  uri: http://someone:s3cret@host:5000\n",
        "versions": {"ray": "2.60.0"},
        "steps": [
            {
                "name": "dataset",
                "arm": "llama",
                "fingerprint": "f00d",
                "kept": True,
                "duration_s": 2.5,
                "counts": {"rows": 9},
            }
        ],
        "costs": [
            {"arm": "llama", "student": "minilm", "n_parameters": 22713602, "latency_p50_ms": 7.42, "device": "cpu"}
        ],
        "efficiencies": [
            {
                "arm": "llama",
                "teacher": "llama31_8b",
                "completions": 4321,
                "tokens_per_s": 2345.6,
                "device_s_per_row": 0.25,
                "usd_per_row": None,
                "time_shares": {"start": 0.25, "starved": 0.05, "running": 0.5, "tail": 0.1, "retry": 0.1},
            }
        ],
        "money": Money(
            {
                "stages": [{"stage": "teaching", "arm": "llama", "tokens": 98765, "USD": None}],
                "ends": [{"arm": "llama", "what became of it": "truncated", "share of tokens": "12.5 %", "USD": None}],
                "scores": [{"arm": "llama", "student": "minilm", "macro-F1": 0.6, "score per USD": None}],
            },
            {"llama": {"kept": 0.875, "truncated": 0.125}},
        ),
        "confusions": [
            {
                "arm": "llama",
                "student": "minilm",
                "benchmark": "ClariQ",
                "setting": "standard",
                "labels": ["clear", "ambiguous"],
                "counts": [[3, 1], [2, 4]],
                "n_seeds": 1,
            }
        ],
        "cards": {"llama": {"rows": 9, "labels": {"clear": {"rows": 5}}, "brand_new_figure": 0.123}},
        "samples": {
            "llama": {
                "accepted": {"clear": [{"row_id": "r1", "text": "<script>alert(1)</script>"}]},
                "rejected": {"near_duplicate": [{"row_id": "r2", "reason": "near_duplicate", "text": "x" * 5000}]},
            }
        },
        "lengths": {"llama": {"clear": {"8": 5}, "ambiguous": {"4": 4}}},
    }
    return ReportInput(**{**values, **changes})


class Page(HTMLParser):
    """Collects tags with their attributes, and the text outside of styles."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text, self.open, self.unbalanced = [], "", [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.unbalanced.append(tag)

    def handle_data(self, data):
        if "style" not in self.open:
            self.text += data


@pytest.fixture(scope="module")
def full():
    return render_report(make_report())


def test_page_is_well_formed(full):
    page = Page(full)
    assert (page.open, page.unbalanced) == ([], [])


def test_page_needs_nothing_from_outside(full):
    page = Page(full)
    assert {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object"} == set()
    sources = [attributes["src"] for _, attributes in page.tags if "src" in attributes]
    assert len(sources) == len(("scores", "confusions", "time shares", "token shares", "lengths"))
    assert all(source.startswith("data:image/svg+xml;base64,") for source in sources)
    assert [attributes["href"] for tag, attributes in page.tags if tag == "a" and attributes["href"][0] != "#"] == []
    assert re.search(r"url\(|@import", full) is None


def test_every_link_of_the_navigation_has_its_section(full):
    page = Page(full)
    ids = {attributes.get("id") for _, attributes in page.tags}
    links = {attributes["href"][1:] for tag, attributes in page.tags if tag == "a"}
    assert links == {"results", "costs", "teachers", "money", "data", "samples", "steps", "config"}
    assert links <= ids


def test_pictures_have_a_description(full):
    assert all(attributes["alt"] for tag, attributes in Page(full).tags if tag == "img")


def test_text_of_rows_is_escaped(full):
    assert "<script>" not in full
    assert "<script>alert(1)</script>" in Page(full).text


def test_page_says_what_it_was_given(full):
    text = " ".join(Page(full).text.split())
    for expected in (
        "quickstart compares 1 arm (where training rows come from) and 1 student with 2 baselines on ClariQ.",
        "1,299 test items",
        "always the benchmark's most frequent class",
        "1 of 1 student has an interval of macro-F1 above the best trivial baseline (majority, 0.467).",
        "22,713,602",
        "brand new figure",
        "near_duplicate",
        "f00d",
        "ray 2.60.0",
        "llama31_8b",
        "4,321",
        "tokens/s",
        "device seconds per row",
    ):
        assert expected in text
    assert "judge" not in text.lower()


def read_cells(page: str, section: str) -> list[list[str]]:
    """Return the table of a section, header first, as text."""
    (body,) = re.findall(rf'<section id="{section}".*?</section>', page, re.DOTALL)
    rows = re.findall(r"<tr>(.*?)</tr>", body, re.DOTALL)
    return [[cell.strip() for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL)] for row in rows]


def test_what_was_not_measured_of_a_teacher_is_told(full):
    header, row = read_cells(full, "teachers")
    assert dict(zip(header, row, strict=True)) == {
        "arm": "llama",
        "teacher": "llama31_8b",
        "completions": "4,321",
        "tokens/s": "2,345.6",
        "device seconds per row": "0.250",
        "USD per row": "not measured",
    }


def test_teachers_whose_time_nobody_measured_have_no_picture():
    (efficiency,) = make_report().efficiencies
    page = render_report(make_report(efficiencies=[{**efficiency, "time_shares": None}]))
    assert "went into" not in page
    assert "4,321" in page


def test_where_the_money_went_is_told_and_what_has_no_price_is_not_measured():
    page = render_report(make_report())
    text = " ".join(Page(page).text.split())
    section = text[text.index("Where the money went") : text.index("What each arm was trained on")]
    for part in ("98,765", "12.5 %", "score per USD"):
        assert part in section
    # Once as what it means, and once in each of the tables.
    assert section.count("not measured") == 4
    assert "parted by what became of them" in page
    without = render_report(make_report(money=None))
    assert "Where the money went" not in without
    assert "#money" not in without


def test_judges_are_told_from_students_and_arms():
    costs = [
        *make_report().costs,
        {"arm": "judge_zer", "student": "zero-shot", "n_parameters": None, "latency_p50_ms": 81.5, "n_in_flight": 64},
    ]
    page = render_report(make_report(entries=make_entries(judges=["zero-shot", "few-shot"]), costs=costs))
    text = " ".join(Page(page).text.split())
    assert "compares 1 arm (where training rows come from) and 1 student with 2 judges (LLMs that are asked" in text
    assert "1 of 1 student and 2 of 2 judges have an interval of macro-F1 above" in text
    assert "judges in orange" in text
    assert re.search(r'zero-shot\s*<span class="tag">judge</span>', page)
    assert Page(page).unbalanced == []
    header, student, judge = read_cells(page, "costs")
    assert dict(zip(header, judge, strict=True)) == {
        "arm": "judge_zer",
        "student": "zero-shot",
        "parameters": "not measured",
        "latency p50 (ms)": "81.5",
        "device": "-",
        "in flight": "64",
    }
    assert dict(zip(header, student, strict=True))["in flight"] == "-"
    assert "among as many others in flight as stated" in text


def test_legend_says_how_judges_are_asked_where_there_are_some():
    assert describe_judges(tabulate_results(make_entries())) == {}
    assert list(describe_judges(tabulate_results(make_entries(judges=["few-shot"])))) == ["few-shot"]


def test_credentials_of_the_configuration_stay_out(full):
    assert "s3cret" not in full
    assert "http://***@host:5000" in full


def test_long_sample_texts_are_cut(full):
    assert "x" * 399 + "…" in full
    assert "x" * 400 not in full


def test_same_input_gives_the_same_page(full):
    assert render_report(make_report()) == full


def test_student_that_does_not_clear_the_baseline_is_marked():
    page = render_report(make_report(entries=make_entries(low=0.46)))
    assert "None of 1 student has an interval of macro-F1 above" in page
    assert len(re.findall(r'<span class="mark">†</span>\s*<span class="interval">', page)) == len(
        ("llama", "tfidf_llama")
    )


def test_parts_without_content_are_left_out():
    nothing = {
        "costs": [],
        "efficiencies": [],
        "money": None,
        "confusions": [],
        "cards": {},
        "samples": {},
        "lengths": {},
    }
    page = Page(render_report(make_report(**nothing)))
    ids = {attributes["id"] for _, attributes in page.tags if "id" in attributes}
    assert ids == {"results", "steps", "config"}
    assert (page.open, page.unbalanced) == ([], [])


def test_cards_stand_side_by_side_with_nested_keys_as_sections():
    grid = lay_out_cards(
        {"a": {"n_rows": 5, "tfidf": None, "labels": {"clear": {"rows": 2}}}, "b": {"tfidf": {"macro_f1": 0.5}}}
    )
    assert grid.header == ["", "a", "b"]
    assert grid.sections == {
        "": [["rows", 5, None]],
        "labels": [["clear · rows", 2, None]],
        "TF-IDF": [["macro F1", None, 0.5]],
    }


def test_key_that_is_null_on_every_card_is_still_a_row():
    assert lay_out_cards({"a": {"length_auroc": None}}).sections == {"": [["length AUROC", None]]}


def test_rows_with_different_keys_share_a_grid_without_empty_columns():
    grid = lay_out_rows([{"arm": "a", "n": 1, "note": ""}, {"arm": "b", "latency_p50_ms": 2.5}])
    assert grid.header == ["arm", "n", "latency p50 (ms)"]
    assert grid.sections == {"": [["a", 1, None], ["b", None, 2.5]]}
    assert grid.is_number == [False, True, True]


def test_figures_that_were_not_measured_are_told_and_leave_a_column_its_numbers():
    grid = lay_out_figures([{"arm": "a", "usd": None, "n_gpus": 2}, {"arm": "b", "usd": 0.5}])
    assert grid.sections == {"": [["a", NOT_MEASURED, 2], ["b", 0.5, None]]}
    assert grid.is_number == [False, True, True]
    assert lay_out_figures([{"usd": None}]).sections == {"": [[NOT_MEASURED]]}


def test_headings_name_the_unit():
    names = ("n_parameters", "memory_mb", "throughput_rows_per_s", "duration_s", "rows", "length_auroc")
    names += ("tokens_per_s", "device_s_per_row", "usd_per_1000_items", "n_in_flight")
    assert [name_column(name) for name in names] == [
        "parameters",
        "memory (MB)",
        "throughput (rows/s)",
        "duration (s)",
        "rows",
        "length AUROC",
        "tokens/s",
        "device seconds per row",
        "USD per 1,000 items",
        "in flight",
    ]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (True, "yes"),
        (12345, "12,345"),
        (0.92149, "0.921"),
        (0.0, "0.000"),
        (0.00023456, "0.00023"),
        (-0.0009, "-0.0009"),
        (1234.56, "1,234.6"),
        ({"rows": 971, "n_rejects": 29}, "rows 971 · rejects 29"),
        ([1, 2.5], "1, 2.5"),
        ("text", "text"),
    ],
)
def test_any_value_has_a_text(value, text):
    assert format_value(value) == text


def test_summary_names_each_benchmark_once():
    entries = make_entries() + [{**item, "benchmark": "AmbigNQ"} for item in make_entries()]
    entries += [{**item, "setting": "dev-selected"} for item in make_entries()]
    assert describe_comparison("x", tabulate_results(entries), ["llama"]).endswith("on ClariQ and AmbigNQ.")


def test_legend_explains_only_baselines_that_are_there():
    assert list(describe_baselines(tabulate_results(make_entries()))) == ["majority", "tfidf_…"]
