from xml.etree import ElementTree

import pytest

from pipeline.records import Outcome
from pipeline.report.plots import (
    CAUSES,
    COLORS,
    ENDS,
    draw_confusions,
    draw_curves,
    draw_lengths,
    draw_scores,
    draw_time_shares,
    draw_token_shares,
    render,
)
from pipeline.report.table import KINDS, tabulate_results
from pipeline.teachers import efficiency
from pipeline.teachers.spending import FILTERED, KEPT


def make_entries():
    rows = [("a", "minilm", 0.6), ("b", "minilm", 0.4), ("majority", None, 0.467), ("tfidf_a", None, 0.9)]
    rows += [("llama", "zero-shot", 0.5)]
    return [
        {
            "arm": arm,
            "student": student,
            "data": "",
            "benchmark": "ClariQ",
            "setting": "standard",
            "measure": measure,
            "value": value,
            "low": value - 0.1,
            "high": value + 0.05,
            "n": 299,
        }
        for arm, student, value in rows
        for measure in ("macro-F1", "AUROC")
    ]


def make_confusion(arm="a", counts=((30, 7), (124, 138))):
    return {
        "arm": arm,
        "student": "minilm",
        "benchmark": "ClariQ",
        "setting": "standard",
        "labels": ["clear", "ambiguous"],
        "counts": [[3 * n for n in row] for row in counts],
        "n_seeds": 3,
    }


LENGTHS = {"a": {"clear": {"8": 3, "10": 1}, "ambiguous": {"4": 2}}, "b": {"clear": {"9": 1}, "ambiguous": {"5": 2}}}


@pytest.fixture
def result():
    return tabulate_results(make_entries())[0]


def test_scores_have_a_panel_per_measure_a_bar_per_row_and_a_colour_per_kind(result):
    from matplotlib.colors import to_hex

    figure = draw_scores(result)
    assert [axes.get_title().split()[0] for axes in figure.axes] == ["macro-F1", "AUROC"]
    bars = figure.axes[0].patches
    assert [round(bar.get_width(), 3) for bar in bars] == [0.6, 0.4, 0.5, 0.467, 0.9]
    kinds = ["student", "student", "judge", "baseline", "baseline"]
    assert [to_hex(bar.get_facecolor()) for bar in bars] == [COLORS[kind] for kind in kinds]
    assert len({COLORS[kind] for kind in KINDS}) == 3
    assert [tick.get_text() for tick in figure.axes[0].get_yticklabels()] == [
        "a / minilm",
        "b / minilm",
        "llama / zero-shot",
        "majority",
        "tfidf_a",
    ]


def test_error_bars_are_the_intervals(result):
    from matplotlib.collections import LineCollection

    lines = [item for item in draw_scores(result).axes[0].collections if isinstance(item, LineCollection)]
    ends = [tuple(round(x, 3) for x, _ in line.get_segments()[0]) for line in lines]
    assert ends == [(0.5, 0.65), (0.3, 0.45), (0.4, 0.55), (0.367, 0.517), (0.8, 0.95)]


def test_dashed_line_is_the_best_trivial_baseline_not_tfidf(result):
    axes = draw_scores(result).axes[0]
    dashed = [line for line in axes.lines if line.get_linestyle() == "--" or line.is_dashed()]
    assert [round(line.get_xdata()[0], 3) for line in dashed] == [0.467]


def test_value_outside_its_interval_still_plots(result):
    entries = make_entries()
    for item in entries:
        item["low"] = item["value"] + 1e-9
    assert render(draw_scores(tabulate_results(entries)[0])).startswith(b"<?xml")


def test_confusion_cells_hold_counts_per_seed_and_shares_of_the_gold_label():
    figure = draw_confusions([make_confusion()])
    assert [text.get_text() for text in figure.axes[0].texts] == ["30\n81%", "7\n19%", "124\n47%", "138\n53%"]


def test_gold_label_without_items_does_not_divide_by_zero():
    figure = draw_confusions([make_confusion(counts=((0, 0), (1, 1)))])
    assert figure.axes[0].texts[0].get_text() == "0\n0%"


def test_each_student_has_its_matrix():
    figure = draw_confusions([make_confusion(arm) for arm in "abcdefg"])
    assert [axes.get_title().split("\n")[0] for axes in figure.axes if axes.axison] == list("abcdefg")


def test_lengths_are_shares_of_each_labels_rows():
    figure = draw_lengths(LENGTHS)
    clear = figure.axes[0].patches[0]
    assert clear.get_data().values.tolist() == [0.75, 0.0, 0.25]
    assert clear.get_data().edges.tolist() == [7.5, 8.5, 9.5, 10.5]
    assert [axes.get_title() for axes in figure.axes if axes.axison] == ["a", "b"]


SHARES = {
    "llama": {"start": 0.25, "starved": 0.05, "running": 0.5, "tail": 0.125, "retry": 0.075},
    "gpt": {"start": 0.0, "starved": 0.0, "running": 0.9, "tail": 0.1, "retry": 0.0},
}


def test_a_teachers_time_is_one_bar_of_all_causes():
    axes = draw_time_shares(SHARES).axes[0]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == list(SHARES)
    for place, arm in enumerate(SHARES):
        bars = [container[place] for container in axes.containers]
        widths = {c.get_label(): b.get_width() for c, b in zip(axes.containers, bars, strict=True)}
        assert widths == pytest.approx(SHARES[arm])
        ends = [bar.get_x() + bar.get_width() for bar in bars]
        assert [bar.get_x() for bar in bars] == pytest.approx([0.0, *ends[:-1]])
        assert ends[-1] == pytest.approx(1.0)
        assert {round(bar.get_y() + bar.get_height() / 2, 9) for bar in bars} == {-place}


def test_every_cause_that_teachers_tell_has_its_colour():
    assert set(CAUSES) == set(efficiency.CAUSES)
    assert len(set(CAUSES.values())) == len(CAUSES)


def test_tokens_are_one_bar_of_what_became_of_them():
    shares = {"llama": {"kept": 0.75, "truncated": 0.25}, "gpt": {"kept": 1.0}}
    axes = draw_token_shares(shares).axes[0]
    found = {c.get_label(): [bar.get_width() for bar in c] for c in axes.containers}
    assert found == {"kept": [0.75, 1.0], "truncated": [0.25, 0.0]}


def test_every_end_that_tokens_come_to_has_its_colour():
    assert set(ENDS) == {KEPT, FILTERED} | {outcome.value for outcome in Outcome} - {"ok"}
    assert len(set(ENDS.values())) == len(ENDS)


def make_points(arms=("llama", "human")):
    """Points of two measures at 100, 200 and 986 rows; of the first arm the device-seconds are known."""
    return [
        {
            "arm": arm, "student": "minilm", "benchmark": "ClariQ", "setting": "standard", "measure": measure,
            "rows": rows, "value": rows / 2000, "low": rows / 2000 - 0.1, "high": rows / 2000 + 0.2, "n": 299,
            "fits": 3, "usd": None, "device_s": 2.0 * rows if arm == arms[0] else None,
        }
        for arm in arms
        for measure in ("macro-F1", "AUROC")
        for rows in (986, 100, 200)
    ]  # fmt: skip


def test_curves_have_a_panel_per_measure_a_line_per_arm_and_its_interval_as_a_band():
    figure = draw_curves(make_points())
    axes, other = figure.axes
    assert (axes.get_title(), other.get_title()) == ("macro-F1", "AUROC")
    assert [line.get_label() for line in axes.lines] == ["llama", "human"]
    assert [line.get_xdata().tolist() for line in axes.lines] == [[100, 200, 986]] * 2
    assert axes.lines[0].get_ydata().tolist() == [0.05, 0.1, 0.493]
    band = axes.collections[0].get_paths()[0].get_extents()
    assert (band.x0, band.x1, band.y0, band.y1) == pytest.approx((100, 986, -0.05, 0.693))
    assert axes.get_xscale() == "log"
    figure.draw_without_rendering()
    low, high = axes.get_xlim()
    ticks = zip(axes.get_xticks(), axes.get_xticklabels(), strict=True)
    assert [text.get_text() for place, text in ticks if low <= place <= high] == ["100", "200", "500", "1,000"]


def test_a_curve_along_a_cost_names_the_arm_whose_cost_was_not_measured_and_gives_it_no_line():
    figure = draw_curves(make_points(), "device_s")
    measured, unmeasured = figure.axes[0].lines
    assert measured.get_xdata().tolist() == [200.0, 400.0, 1972.0]
    assert (list(unmeasured.get_xdata()), unmeasured.get_label()) == ([], "human (cost not measured)")
    assert "llama" in [text.get_text() for text in figure.legends[0].get_texts()]


def test_a_curve_along_a_bill_of_nothing_is_no_logarithm_of_0():
    free = [{**point, "usd": 0.0} for point in make_points()]
    axes = draw_curves(free, "usd").axes[0]
    assert axes.get_xscale() == "linear"
    assert axes.lines[0].get_xdata().tolist() == [0.0, 0.0, 0.0]


def test_the_dashed_line_of_a_curve_is_the_trivial_baseline():
    axes, other = draw_curves(make_points(), bars={"macro-F1": 0.467}).axes
    assert [line.get_ydata()[0] for line in axes.lines if line.is_dashed()] == [0.467]
    assert axes.get_title() == "macro-F1  (dashed: 0.467)"
    assert not [line for line in other.lines if line.is_dashed()]


def test_lines_of_many_arms_can_be_told_apart():
    axes = draw_curves(make_points([f"arm{n}" for n in range(12)])).axes[0]
    assert len({(line.get_color(), line.get_marker()) for line in axes.lines}) == 12


@pytest.mark.parametrize("file_format", ["svg", "png"])
def test_same_figure_gives_the_same_bytes_without_a_date(file_format):
    figure = draw_lengths(LENGTHS)
    first = render(figure, file_format)
    assert first == render(figure, file_format) == render(draw_lengths(LENGTHS), file_format)
    assert b"date" not in first.lower()


def test_svg_is_well_formed_and_needs_no_font():
    svg = render(draw_confusions([make_confusion()]))
    assert ElementTree.fromstring(svg).tag.endswith("svg")
    assert b"font-family" not in svg


def test_drawing_leaves_the_users_style_alone(result):
    from matplotlib import rcParams

    before = dict(rcParams)
    render(draw_scores(result))
    assert dict(rcParams) == before
