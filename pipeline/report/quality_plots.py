"""Figures of what rows are like: how a classifier learned them, and where they lie beside gold rows."""

from collections.abc import Mapping, Sequence
from math import ceil, isfinite
from typing import TYPE_CHECKING, Literal

from pipeline.records import RowDynamics
from pipeline.report.plots import FAINT, INK, LINES, clean, start, styled

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CORRECTNESS_COLORS = "viridis"
"""From never right, dark blue, to always, yellow."""
_AXES = {"variability": "x", "confidence": "y"}
"""What stands along which axis of a data map."""


@styled
def draw_data_map(
    dynamics: Sequence[RowDynamics],
    statistic: Literal["confidence", "variability", "correctness"],
    bounds: Mapping[str, tuple[float, float]],
    n_columns: int = 4,
) -> "Figure":
    """Return a panel per label: each row by its variability and confidence, coloured by its correctness.

    After Figure 1 of Swayamdipta et al. (2020). Up is easy, right ambiguous, the lower left corner hard.

    Args:
        dynamics: One for each row.
        statistic: What rows were selected by; its bounds are dashed lines, save those of correctness, which is no axis.
        bounds: By label, the least and the greatest value that was kept; infinite: no bound.
        n_columns: Panels side by side.
    """
    labels = list(dict.fromkeys(row.label for row in dynamics))
    figure, panels = _start_panels(len(labels), n_columns)
    for axes, label in zip(panels, labels, strict=True):
        rows = [row for row in dynamics if row.label == label]
        # As pixels: as shapes, some thousands would make the report megabytes long.
        points = axes.scatter(
            [row.variability for row in rows],
            [row.confidence for row in rows],
            c=[row.correctness for row in rows],
            cmap=CORRECTNESS_COLORS,
            vmin=0,
            vmax=1,
            s=6,
            linewidths=0,
            alpha=0.7,
            rasterized=True,
            zorder=2,
        )
        low, high = bounds[label]
        if statistic in _AXES:
            draw = axes.axhline if _AXES[statistic] == "y" else axes.axvline
            for bound in filter(isfinite, (low, high)):
                draw(bound, color=INK, linewidth=0.9, linestyle=(0, (4, 3)), zorder=4)
        n_kept = sum(low <= getattr(row, statistic) <= high for row in rows)
        axes.set_title(f"{label}  ({n_kept:,} of {len(rows):,} kept)", fontsize=9.5)
        # A standard deviation of numbers from 0 to 1 is at most .5.
        axes.set_xlim(-0.01, 0.51)
        axes.set_ylim(-0.02, 1.02)
        _frame(axes)
    bar = figure.colorbar(points, ax=panels, shrink=0.8, pad=0.02)
    bar.solids.set_alpha(1)
    bar.outline.set_visible(False)
    bar.set_label("correctness", fontsize=8.5, color=FAINT)
    figure.supxlabel("variability", fontsize=8.5, color=FAINT)
    figure.supylabel("confidence", fontsize=8.5, color=FAINT)
    return figure


@styled
def draw_map(
    points: Mapping[str, "np.ndarray"],
    gold: "np.ndarray",
    axis_names: tuple[str, str] = ("first principal component", "second principal component"),
    n_columns: int = 3,
) -> "Figure":
    """Return a panel per arm: its rows as points over those of gold, all on the same axes.

    Args:
        points: By arm, its rows in the plane, such as the first principal components of their vectors; shape (rows, 2).
        gold: Gold rows in the same plane, likewise; drawn in grey.
        axis_names: Of the plane.
        n_columns: Panels side by side.
    """
    figure, panels = _start_panels(len(points), n_columns, shared=True)
    for index, (axes, (arm, of_arm)) in enumerate(zip(panels, points.items(), strict=True)):
        layers = ((gold, "#b4bac3", 0.5, "gold"), (of_arm, LINES[index % len(LINES)], 0.75, None))
        for order, (at, color, alpha, name) in enumerate(layers, start=2):
            style = {"color": color, "alpha": alpha, "label": name, "s": 6, "linewidths": 0, "zorder": order}
            axes.scatter(at[:, 0], at[:, 1], rasterized=True, **style)
        axes.set_title(f"{arm}  ({len(of_arm):,} rows)", fontsize=9.5)
        _frame(axes)
        axes.tick_params(labelbottom=False, labelleft=False)
    # Gold's alone: an arm's name stands over its panel.
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper right", frameon=False, fontsize=8.5, markerscale=2)
    figure.supxlabel(axis_names[0], fontsize=8.5, color=FAINT)
    figure.supylabel(axis_names[1], fontsize=8.5, color=FAINT)
    return figure


def _start_panels(n_panels: int, n_columns: int, shared: bool = False) -> "tuple[Figure, list[Axes]]":
    """Return a figure and as many panels, in rows of a few."""
    n_rows = ceil(n_panels / n_columns)
    n_columns = min(n_columns, n_panels)
    figure = start(0.9 + 2.5 * n_columns, 0.5 + 2.4 * n_rows)
    panels = list(figure.subplots(n_rows, n_columns, squeeze=False, sharex=shared, sharey=shared).flatten())
    for axes in panels[n_panels:]:
        axes.set_axis_off()
    return figure, panels[:n_panels]


def _frame(axes: "Axes") -> None:
    axes.grid(color="#e4e7eb", linewidth=0.8, zorder=0)
    clean(axes)
