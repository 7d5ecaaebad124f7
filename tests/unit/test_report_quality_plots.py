from xml.etree import ElementTree

import numpy as np
import pytest

from pipeline.records import RowDynamics
from pipeline.report.plots import LINES, render
from pipeline.report.quality_plots import draw_data_map, draw_map

ROWS = [
    RowDynamics("r0", "World", 0.9, 0.05, 1.0),
    RowDynamics("r1", "World", 0.4, 0.3, 0.5),
    RowDynamics("r2", "Sports", 0.7, 0.2, 5 / 6),
    RowDynamics("r3", "Sports", 0.1, 0.1, 0.0),
    RowDynamics("r4", "Sports", 0.8, 0.0, 1.0),
]
BOUNDS = {"World": (0.5, np.inf), "Sports": (0.7, np.inf)}


def find_panels(figure):
    return [axes for axes in figure.axes if axes.get_title()]


def test_a_data_map_has_a_panel_per_label_and_a_point_per_row():
    world, sports = find_panels(draw_data_map(ROWS, "confidence", BOUNDS))
    assert [axes.get_title() for axes in (world, sports)] == ["World  (1 of 2 kept)", "Sports  (2 of 3 kept)"]
    points = sports.collections[0]
    assert points.get_offsets().tolist() == [[0.2, 0.7], [0.1, 0.1], [0.0, 0.8]]
    assert points.get_array().tolist() == [5 / 6, 0.0, 1.0]
    assert points.get_clim() == (0, 1), "all panels share one scale of colours"


def test_the_bound_of_a_data_map_is_a_dashed_line_along_its_statistics_axis():
    for axes, bound in zip(find_panels(draw_data_map(ROWS, "confidence", BOUNDS)), (0.5, 0.7), strict=True):
        (line,) = axes.lines
        assert line.is_dashed()
        assert list(line.get_ydata()) == [bound, bound]
    between = {"World": (0.1, 0.2), "Sports": (0.0, 0.1)}
    panel = find_panels(draw_data_map(ROWS, "variability", between))[0]
    assert [list(line.get_xdata()) for line in panel.lines] == [[0.1, 0.1], [0.2, 0.2]]
    assert find_panels(draw_data_map(ROWS, "correctness", BOUNDS))[0].lines[:] == []


def test_labels_beyond_a_row_of_panels_start_another():
    rows = [RowDynamics(f"r{i}", f"label {i}", 0.5, 0.1, 0.5) for i in range(7)]
    figure = draw_data_map(rows, "confidence", {row.label: (0.0, np.inf) for row in rows})
    assert [axes.get_title() for axes in find_panels(figure)] == [f"label {i}  (1 of 1 kept)" for i in range(7)]
    assert len({axes.get_subplotspec().rowspan.start for axes in find_panels(figure)}) == 2


def test_a_map_has_each_arms_points_over_gold_on_the_same_axes():
    from matplotlib.colors import to_hex

    gold, copy, fewgen = (np.random.default_rng(n).normal(size=(n, 2)) for n in (50, 30, 20))
    figure = draw_map({"copy": copy, "fewgen": fewgen}, gold)
    panels = find_panels(figure)
    assert [axes.get_title() for axes in panels] == ["copy  (30 rows)", "fewgen  (20 rows)"]
    for axes, own, color in zip(panels, (copy, fewgen), LINES, strict=False):
        under, over = axes.collections
        assert (under.get_offsets() == gold).all()
        assert (over.get_offsets() == own).all()
        assert to_hex(over.get_facecolor()[0]) == color
    figure.draw_without_rendering()
    assert panels[0].get_xlim() == panels[1].get_xlim()
    assert panels[0].get_ylim() == panels[1].get_ylim()
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["gold"]


@pytest.mark.parametrize("draw", [lambda: draw_data_map(ROWS, "confidence", BOUNDS), lambda: draw_map({"a": M}, M)])
def test_the_same_figure_is_the_same_small_well_formed_file(draw):
    svg = render(draw())
    assert svg == render(draw())
    assert ElementTree.fromstring(svg).tag.endswith("svg")
    assert len(svg) < 500_000, "points are pixels, however many"


M = np.random.default_rng(0).normal(size=(5_000, 2))
