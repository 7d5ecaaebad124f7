"""The page of curves: what belongs in one figure, the bar to clear, what was not measured, and nothing from outside."""

import base64

import pytest

from pipeline.report.curves import group_points, render_curves, to_entries
from pipeline.report.table import tabulate_results
from tests.unit.test_report_html import Page


def make_points():
    """Two arms and students on one benchmark, with three baselines; of one arm the device-seconds are known."""
    lines = [
        (arm, student, rows, rows / 2000, 0.5 * rows if arm == "offline" else None)
        for student in ("minilm", "roberta")
        for arm in ("offline", "<b>human")
        for rows in (100, 1196)
    ]
    lines += [("majority", None, None, 0.467, None), ("length", None, None, 0.48, None)]
    lines += [("tfidf_offline", None, None, 0.9, None)]
    return [
        {
            "arm": arm, "student": student, "benchmark": "ClariQ", "setting": "standard", "measure": measure,
            "rows": rows, "value": value, "low": value - 0.1, "high": value + 0.1, "n": 299,
            "fits": rows and 3, "usd": None, "device_s": device_s,
        }
        for arm, student, rows, value, device_s in lines
        for measure in ("macro-F1", "AUROC", "brier")
    ]  # fmt: skip


STEP = {"name": "student", "arm": "a/minilm", "fingerprint": "0" * 16, "kept": True, "duration_s": 1.0, "counts": {}}


@pytest.fixture(scope="module")
def page():
    config = "tracking:\n  uri: http://someone:s3cret@host:5000\n"
    return Page(render_curves("mine", make_points(), [STEP], config, {"ray": "2"}))


def test_a_figure_is_of_one_student_and_its_bar_is_the_best_trivial_baseline():
    minilm, roberta = group_points(make_points())
    assert (minilm.student, roberta.student) == ("minilm", "roberta")
    assert minilm.bars["macro-F1"] == (0.48, "length")
    figures = minilm.draw()
    assert list(figures) == ["rows", "device_s"]  # no bill was measured
    assert [axes.get_title() for axes in figures["rows"].axes] == [
        "macro-F1  (dashed: 0.480)",
        "AUROC  (dashed: 0.480)",
    ]


def test_the_table_has_a_row_per_arm_and_size():
    rows = group_points(make_points())[0].tabulate()
    assert [(row["arm"], row["rows"]) for row in rows] == [
        (arm, n) for arm in ("offline", "<b>human") for n in (100, 1196)
    ]
    assert rows[0] == {
        "arm": "offline", "rows": 100, "fits": 3, "macro-F1": "0.050 [-0.050, 0.150]",
        "AUROC": "0.050 [-0.050, 0.150]", "usd": None, "device_s": 50.0,
    }  # fmt: skip


def test_lines_of_the_results_name_the_rows_and_stand_beside_the_baselines():
    (table,) = tabulate_results(to_entries(make_points()))
    assert [row.name for row in table.rows][:3] == [
        "offline, 100 rows / minilm", "offline, 1,196 rows / minilm", "<b>human, 100 rows / minilm",
    ]  # fmt: skip
    assert table.bar.arm == "length"
    assert [row.clears for row in table.rows][:2] == [False, True]


def test_the_page_is_well_formed_and_needs_nothing_else(page):
    assert (page.open, page.unbalanced) == ([], [])
    assert not {"script", "link", "b"} & {tag for tag, _ in page.tags}
    pictures = [attributes["src"] for tag, attributes in page.tags if tag == "img"]
    assert len(pictures) == 4  # two students, rows and device-seconds
    assert all(base64.b64decode(p.removeprefix("data:image/svg+xml;base64,")).startswith(b"<?xml") for p in pictures)
    assert all(attributes["alt"] for tag, attributes in page.tags if tag == "img")


def test_the_page_says_what_was_not_measured_and_what_the_dashed_line_is_and_no_password(page):
    assert "not measured" in page.text
    assert "macro-F1 of length (a threshold on the number of words), 0.480" in page.text
    assert "s3cret" not in page.text
    assert "<b>human" in page.text


def test_a_tasks_own_measures_are_shown():
    points = [
        {**point, "measure": {"brier": "accuracy"}.get(point["measure"], point["measure"])} for point in make_points()
    ]
    family = group_points(points, ("accuracy", "macro-F1"))[0]
    assert family.plotted == ["accuracy", "macro-F1"]
    assert list(family.tabulate()[0])[3:5] == ["accuracy", "macro-F1"]
