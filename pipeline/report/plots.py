"""The reports' figures: scores with intervals, curves, confusion matrices, lengths of training rows, teachers' time.

Figures are built without pyplot, which keeps every figure in a global list, and the same figure always gives the
same bytes, so that a report written again is the same file.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from io import BytesIO
from math import ceil
from typing import TYPE_CHECKING, Literal, ParamSpec, TypedDict, TypeVar

from pipeline.report.table import Kind, ResultTable, Row, format_number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PLOTTED = ("macro-F1", "AUROC")
COLORS: Mapping[Kind, str] = {"student": "#6b9fd0", "judge": "#e0a96d", "baseline": "#c3c8cf"}
INK, FAINT = "#1d2430", "#5d6672"
LABELS = ("#1f5a93", "#c96a1b", "#4b8b3b", "#7a4fa3")
CAUSES = {"running": "#4b8b3b", "start": "#c3c8cf", "starved": "#e0c25a", "tail": "#e0a96d", "retry": "#b5483a"}
"""What a teacher's time goes into, what it is there for first."""
ENDS = {
    "kept": "#4b8b3b",
    "filtered": "#e0c25a",
    "invalid_json": "#e0a96d",
    "schema_mismatch": "#c96a1b",
    "truncated": "#b5483a",
    "refused": "#7a4fa3",
    "timeout": "#c3c8cf",
    "error": "#5d6672",
}
"""What becomes of a teacher's tokens, what they are there for first."""
LINES = ("#1f5a93", "#c96a1b", "#4b8b3b", "#7a4fa3", "#b5483a", "#5d6672", "#c7a11b", "#2a9d9d")
"""Colours of a curve's arms; with more arms they begin anew, under another marker."""
MARKERS = ("o", "s", "^", "D")
Axis = Literal["rows", "usd", "device_s"]
AXES: Mapping[Axis, str] = {
    "rows": "training rows",
    "usd": "teacher's bill (USD)",
    "device_s": "teacher's device-seconds",
}
"""What a curve may run along."""
_STYLE = {
    "svg.hashsalt": "raystill",
    "svg.fonttype": "path",
    "font.size": 9.0,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": FAINT,
    "xtick.color": FAINT,
    "ytick.color": INK,
}


P = ParamSpec("P")
T = TypeVar("T")


def styled(function: Callable[P, T]) -> Callable[P, T]:
    """Run a function under our style; matplotlib reads it both where it draws and where it saves."""

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        from matplotlib import rc_context

        with rc_context(_STYLE):
            return function(*args, **kwargs)

    return run


class Confusion(TypedDict):
    """How often each gold label was given each label, summed over seeds."""

    arm: str
    student: str | None
    benchmark: str
    setting: str
    labels: list[str]
    counts: list[list[int]]
    """Rows are gold labels, columns what was said."""
    n_seeds: int


class CurvePoint(TypedDict):
    """A measure's mean over some fits with its interval, and what their training rows took; a baseline has no rows."""

    arm: str
    student: str | None
    """None: a baseline."""
    benchmark: str
    setting: str
    measure: str
    rows: int | None
    """That a fit was trained on, by the mean of the draws."""
    value: float
    low: float
    high: float
    n: int
    """Test items."""
    fits: int | None
    """Pairs of a draw and a seed."""
    usd: float | None
    """Of the teacher, for so many rows. None: not measured."""
    device_s: float | None


@styled
def draw_curves(
    points: Sequence[CurvePoint],
    along: Axis = "rows",
    bars: Mapping[str, float] | None = None,
) -> "Figure":
    """Return one line per arm, with its interval as a band, and one panel per measure.

    Args:
        points: Of one student, benchmark and setting.
        along: What the horizontal axis is; an arm for which that was not measured is named, and has no line.
        bars: The value of the best trivial baseline by measure, for a dashed line.
    """
    from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

    bars = bars or {}
    measures = list(dict.fromkeys(point["measure"] for point in points))
    arms = list(dict.fromkeys(point["arm"] for point in points))
    figure = start(8.6, 3.6 + 0.2 * ceil(len(arms) / 3))
    panels = figure.subplots(1, len(measures), squeeze=False)[0]
    for axes, measure in zip(panels, measures, strict=True):
        shown = [point for point in points if point["measure"] == measure and point[along] is not None]
        for index, arm in enumerate(arms):
            line = sorted(
                (point[along], point["value"], point["low"], point["high"]) for point in shown if point["arm"] == arm
            )
            places, values, lows, highs = zip(*line, strict=True) if line else ((), (), (), ())
            color = LINES[index % len(LINES)]
            axes.plot(
                places,
                values,
                color=color,
                marker=MARKERS[index // len(LINES) % len(MARKERS)] if line else "",
                markersize=4,
                linewidth=1.6 if line else 0,
                label=arm if line else f"{arm} (cost not measured)",
                zorder=3,
            )
            axes.fill_between(places, lows, highs, color=color, alpha=0.13, linewidth=0, zorder=2)
        if all(point[along] for point in shown):  # a teacher that costs nothing has no place on a logarithmic axis
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.xaxis.set_minor_locator(NullLocator())
            axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
        if measure in bars:
            axes.axhline(bars[measure], color=INK, linewidth=0.9, linestyle=(0, (4, 3)), zorder=4)
        bar = f"  (dashed: {format_number(bars[measure])})" if measure in bars else ""
        axes.set_title(f"{measure}{bar}", fontsize=9.5)
        axes.grid(color="#e4e7eb", linewidth=0.8, zorder=0)
        clean(axes)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3, frameon=False, fontsize=8.5)
    figure.supxlabel(AXES[along], fontsize=8.5, color=FAINT)
    return figure


@styled
def draw_scores(result: ResultTable) -> "Figure":
    """Return a bar per row with its interval, and the best trivial baseline as a dashed line.

    A panel each for the measure that decides and for AUROC; where nothing is ranked, for the second measure.
    """
    first, *others = result.measures
    shown = [first, *(["AUROC"] if "AUROC" in others else others[:1])]
    kinds = list(dict.fromkeys(row.kind for row in result.rows))
    # The first on top, and each kind a little apart from the one before.
    rows = {-index - 0.5 * kinds.index(row.kind): row for index, row in enumerate(result.rows)}
    figure = start(8.6, 0.7 + 0.27 * len(rows))
    panels = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
    for axes, measure in zip(panels, shown, strict=True):
        _draw_bars(axes, rows, measure)
        bar = max(
            (row.cells[measure].value for row in result.rows if row.is_trivial and measure in row.cells), default=None
        )
        if bar is not None:
            axes.axvline(bar, color=INK, linewidth=0.9, linestyle=(0, (4, 3)), zorder=4)
        axes.set_title(f"{measure}  (dashed: {format_number(bar)})" if bar is not None else measure, fontsize=9.5)
    panels[0].set_yticks(list(rows), [row.arm if row.is_baseline else row.name for row in rows.values()])
    for tick, row in zip(panels[0].get_yticklabels(), rows.values(), strict=True):
        tick.set_color(FAINT if row.is_baseline else INK)
    return figure


@styled
def draw_confusions(confusions: Sequence[Confusion], n_columns: int = 5) -> "Figure":
    """Return one small matrix per student, shaded by the share of each gold label, with counts per seed."""
    n_rows = ceil(len(confusions) / n_columns)
    n_columns = min(n_columns, len(confusions))
    figure = start(0.5 + 1.85 * n_columns, 2.15 * n_rows)
    panels = figure.subplots(n_rows, n_columns, squeeze=False).flatten()
    for axes, confusion in zip(panels, confusions, strict=False):
        _draw_confusion(axes, confusion)
    for axes in panels[len(confusions) :]:
        axes.set_axis_off()
    figure.supxlabel("predicted", fontsize=8.5, color=FAINT)
    figure.supylabel("gold", fontsize=8.5, color=FAINT)
    return figure


@styled
def draw_lengths(lengths: Mapping[str, Mapping[str, Mapping[str, int]]], n_columns: int = 3) -> "Figure":
    """Return a histogram of words per row for each arm, one outline per label.

    Args:
        lengths: Number of rows by arm, label and number of words (as text, as JSON has it).
        n_columns: Panels side by side.
    """
    from matplotlib.ticker import MaxNLocator

    n_rows = ceil(len(lengths) / n_columns)
    n_columns = min(n_columns, len(lengths))
    figure = start(2.85 * n_columns, 0.4 + 1.8 * n_rows)
    panels = figure.subplots(n_rows, n_columns, squeeze=False, sharex=True).flatten()
    for axes, (arm, by_label) in zip(panels, lengths.items(), strict=False):
        for (label, histogram), color in zip(by_label.items(), LABELS, strict=False):
            n_rows_of_label = sum(histogram.values())
            counts = {int(words): n / n_rows_of_label for words, n in histogram.items()}
            words = range(min(counts), max(counts) + 1)
            heights = [counts.get(n, 0.0) for n in words]
            axes.stairs(
                heights, [n - 0.5 for n in words] + [words[-1] + 0.5], color=color, fill=True, alpha=0.35, label=label
            )
        axes.set_title(arm, fontsize=9.5)
        clean(axes)
        axes.set_yticks([])
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.tick_params(labelbottom=True)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=len(labels), frameon=False, fontsize=8.5)
    for axes in panels[len(lengths) :]:
        axes.set_axis_off()
    figure.supxlabel("words per row", fontsize=8.5, color=FAINT)
    return figure


def draw_time_shares(shares: Mapping[str, Mapping[str, float]]) -> "Figure":
    """Return one bar for each teacher's time, parted by what it went into.

    Args:
        shares: By arm, the share of its teacher's time for each of `CAUSES`; together 1.
    """
    return _draw_shares(shares, CAUSES, "share of the teacher's time")


def draw_token_shares(shares: Mapping[str, Mapping[str, float]]) -> "Figure":
    """Return one bar for each teacher's tokens, parted by what became of them.

    Args:
        shares: By arm or judge, the share of its tokens for each of `ENDS` that has one; together 1.
    """
    found = {end: color for end, color in ENDS.items() if any(end in by_end for by_end in shares.values())}
    return _draw_shares(shares, found, "share of the tokens")


@styled
def _draw_shares(shares: Mapping[str, Mapping[str, float]], colors: Mapping[str, str], title: str) -> "Figure":
    figure = start(8.6, 0.9 + 0.3 * len(shares))
    axes = figure.subplots()
    done = dict.fromkeys(shares, 0.0)
    places = {arm: -index for index, arm in enumerate(shares)}
    for part, color in colors.items():
        widths = [by_part.get(part, 0.0) for by_part in shares.values()]
        label = part.replace("_", " ")
        axes.barh(list(places.values()), widths, left=list(done.values()), height=0.66, color=color, label=label)
        done = {arm: left + width for (arm, left), width in zip(done.items(), widths, strict=True)}
    axes.set_yticks(list(places.values()), list(places))
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter("{x:.0%}")
    axes.margins(y=0.02)
    clean(axes)
    figure.legend(loc="outside upper right", ncols=len(colors), frameon=False, fontsize=8.5)
    figure.supxlabel(title, fontsize=8.5, color=FAINT)
    return figure


@styled
def render(figure: "Figure", file_format: str = "svg") -> bytes:
    """Return a figure as SVG or PNG, the same bytes each time."""
    # The layout moves by a hair each time it is solved, so it is solved once.
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    stream = BytesIO()
    metadata = {"Date": None} if file_format == "svg" else {"Software": None}
    figure.savefig(stream, format=file_format, dpi=150, metadata=metadata)
    return stream.getvalue()


def start(width: float, height: float) -> "Figure":
    """Return an empty figure of a size in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def clean(axes: "Axes") -> None:
    """Leave of a panel's frame its lower line alone."""
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(length=0)


def _draw_bars(axes: "Axes", rows: Mapping[float, Row], measure: str) -> None:
    for place, row in rows.items():
        cell = row.cells.get(measure)
        if cell is None:
            continue
        # A mean over seeds may lie outside an interval of resampled means by a rounding error; a bar may not.
        below, above = max(0.0, cell.value - cell.low), max(0.0, cell.high - cell.value)
        axes.barh(place, cell.value, height=0.66, color=COLORS[row.kind], zorder=2)
        axes.errorbar(cell.value, place, xerr=[[below], [above]], color=INK, elinewidth=1, capsize=2, zorder=3)
    axes.grid(axis="x", color="#e4e7eb", linewidth=0.8, zorder=0)
    axes.margins(y=0.02)
    clean(axes)


def _draw_confusion(axes: "Axes", confusion: Confusion) -> None:
    labels, counts = confusion["labels"], confusion["counts"]
    shares = [[count / max(1, sum(row)) for count in row] for row in counts]
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1.15, aspect="equal")
    for y, row in enumerate(counts):
        for x, count in enumerate(row):
            shown = f"{count / confusion['n_seeds']:,.0f}\n{shares[y][x]:.0%}"
            color = "white" if shares[y][x] > 0.6 else INK
            axes.text(x, y, shown, ha="center", va="center", fontsize=8, color=color)
    axes.set_xticks(range(len(labels)), labels, fontsize=7.5)
    axes.set_yticks(range(len(labels)), labels, fontsize=7.5, rotation=90, va="center")
    axes.set_title(f"{confusion['arm']}\n{confusion['student'] or '(baseline)'}", fontsize=8.5)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
