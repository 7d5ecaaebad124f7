"""The report of learning and cost curves as one HTML file that needs nothing else, and its figures."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.report.html import BASELINES, SETTINGS, embed, lay_out_figures, lay_out_rows, render_page
from pipeline.report.plots import AXES, PLOTTED, Axis, CurvePoint, draw_curves, render
from pipeline.report.table import HEADLINE, Entry, format_number, tabulate_results
from pipeline.tracking import redact

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Family:
    """All curves of one student on one benchmark, in one setting."""

    student: str
    benchmark: str
    setting: str
    points: Sequence[CurvePoint]
    """By arm and rows."""
    bars: Mapping[str, tuple[float, str]]
    """The best trivial baseline by measure: its value and its name."""
    measures: Sequence[str]
    """Those that the task shows, in order."""

    @property
    def plotted(self) -> list[str]:
        """The measures that are drawn."""
        present = {point["measure"] for point in self.points} & set(self.measures)
        return [measure for measure in dict.fromkeys([self.measures[0], *PLOTTED]) if measure in present]

    def draw(self) -> dict[Axis, "Figure"]:
        """Return the figures by what they run along; costs that no arm was measured for have none."""
        points = [point for measure in self.plotted for point in self.points if point["measure"] == measure]
        return {
            along: draw_curves(points, along, {measure: value for measure, (value, _) in self.bars.items()})
            for along in AXES
            if any(point[along] is not None for point in points)
        }

    def tabulate(self) -> list[dict[str, Any]]:
        """Return a row per arm and size: its measures with intervals, and what its rows took."""
        rows: dict[tuple[str, int | None], dict[str, Any]] = {}
        for point in self.points:
            row = rows.setdefault(
                (point["arm"], point["rows"]), {"arm": point["arm"], "rows": point["rows"], "fits": point["fits"]}
            )
            if point["measure"] in self.measures:
                interval = f"[{format_number(point['low'])}, {format_number(point['high'])}]"
                row[point["measure"]] = f"{format_number(point['value'])} {interval}"
            row |= {"usd": point["usd"], "device_s": point["device_s"]}
        order = ("arm", "rows", "fits", *self.measures, "usd", "device_s")
        return [{key: row[key] for key in order if key in row} for row in rows.values()]


def to_entries(points: Iterable[CurvePoint]) -> list[Entry]:
    """Return points as lines of a results table, in which arm and rows are one name."""
    return [
        Entry(
            arm=point["arm"] if point["rows"] is None else f"{point['arm']}, {point['rows']:,} rows",
            student=point["student"],
            data="",
            benchmark=point["benchmark"],
            setting=point["setting"],
            measure=point["measure"],
            value=point["value"],
            low=point["low"],
            high=point["high"],
            n=point["n"],
        )
        for point in points
    ]


def group_points(points: Sequence[CurvePoint], measures: Sequence[str] = HEADLINE) -> list[Family]:
    """Return the curves that belong in one figure together, in the order of the points; `measures` are shown."""
    families: dict[tuple[str, str, str], list[CurvePoint]] = {}
    for point in points:
        if point["student"] is not None:
            families.setdefault((point["student"], point["benchmark"], point["setting"]), []).append(point)
    tables = {
        (table.benchmark, table.setting): table
        for table in tabulate_results(to_entries(points), [*dict.fromkeys(point["measure"] for point in points)])
    }
    found = []
    for (student, benchmark, setting), own in families.items():
        best: dict[str, tuple[float, str]] = {}
        for row in tables[benchmark, setting].rows:
            for measure, cell in row.cells.items() if row.is_trivial else ():
                best[measure] = max(best.get(measure, (cell.value, row.arm)), (cell.value, row.arm))
        found.append(Family(student, benchmark, setting, own, best, measures))
    return found


def render_curves(
    experiment: str,
    points: Sequence[CurvePoint],
    steps: Sequence[Mapping[str, Any]],
    config: str,
    versions: Mapping[str, str],
    measures: Sequence[str] = HEADLINE,
) -> str:
    """Return the report as the text of an HTML file.

    Args:
        experiment: Its name.
        points: All points, baselines among them.
        steps: Per step its name, arm, fingerprint, whether it was kept, duration_s and counts.
        config: The resolved configuration as YAML.
        versions: Of what can change a result.
        measures: Those that the task shows, in order.
    """
    families = group_points(points, measures)
    return render_page(
        "curves.html.jinja",
        experiment=experiment,
        settings={family.setting: SETTINGS[family.setting] for family in families if family.setting in SETTINGS},
        families=[
            {
                "family": family,
                "bars": {
                    measure: f"{arm} ({BASELINES[arm]}), {format_number(value)}"
                    for measure, (value, arm) in family.bars.items()
                    if measure in family.plotted
                },
                "figures": {AXES[along]: embed(render(figure)) for along, figure in family.draw().items()},
                "table": lay_out_figures(family.tabulate()),
            }
            for family in families
        ],
        steps=lay_out_rows([{**step, "kept": "kept" if step["kept"] else "run"} for step in steps]),
        config=redact(config),
        versions=versions,
    )
