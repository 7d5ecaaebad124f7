"""The page on arms' data sets: what each looks like by itself, as tables and pictures, in one HTML file."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from pipeline.records import RowDynamics
from pipeline.report.html import NOT_MEASURED, Grid, embed, lay_out_rows, render_page
from pipeline.report.plots import draw_lengths, render
from pipeline.report.quality_plots import draw_data_map, draw_map
from pipeline.tracking import redact

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class DataMap:
    """How a student learned the rows that an arm was picked from."""

    source: str
    """The arm whose rows they are."""
    dynamics: Sequence[RowDynamics]
    statistic: Literal["confidence", "variability", "correctness"]
    bounds: Mapping[str, tuple[float, float]]
    """By label, of what was kept."""


@dataclass(frozen=True)
class QualityInput:
    """All that the page shows, as plain values."""

    experiment: str
    measured: Mapping[str, Mapping[str, Any]]
    """By arm, what `measure_intrinsic` gives."""
    lengths: Mapping[str, Mapping[str, Mapping[str, int]]]
    """Number of rows by arm, label and number of words."""
    points: Mapping[str, "np.ndarray"]
    """By arm, rows in a plane; shape (rows, 2). Empty: without vectors there is no map."""
    gold_points: "np.ndarray | None"
    maps: Mapping[str, DataMap]
    """By arm whose rows were picked."""
    benchmark: str
    """Whose test items are the gold of MAUVE and of the map."""
    oracle: str | None
    config: str
    """The configuration of the measures as YAML."""
    versions: Mapping[str, str]
    steps: Sequence[Mapping[str, Any]]


def render_quality(page: QualityInput) -> str:
    """Return the page as the text of an HTML file."""
    arms = list(page.measured)
    first = next(iter(page.measured.values()))
    labels = list(dict.fromkeys(label for one in page.measured.values() for label in one["labels"]))
    scopes = {"all labels": [one["overall"] for one in page.measured.values()]}
    scopes |= {label: [one["labels"].get(label, {}) for one in page.measured.values()] for label in labels}
    return render_page(
        "quality.html.jinja",
        page=page,
        sample_size=first["sample_size"],
        tokens=first["tokens"],
        featuriser=first["featuriser"],
        measures=Grid(["", *arms], {scope: _lay_out(found) for scope, found in scopes.items()}),
        notes={arm: one["notes"] for arm, one in page.measured.items() if one["notes"]},
        lengths=embed(render(draw_lengths(page.lengths))),
        gold_map=embed(render(draw_map(page.points, page.gold_points))) if page.gold_points is not None else None,
        maps={
            arm: embed(render(draw_data_map(one.dynamics, one.statistic, one.bounds))) for arm, one in page.maps.items()
        },
        steps=lay_out_rows([{**step, "kept": "kept" if step["kept"] else "run"} for step in page.steps]),
        config=redact(page.config),
    )


def _lay_out(found: Sequence[Mapping[str, Any]]) -> list[list[Any]]:
    """Return a row for each measure: its name, and its value of each arm."""
    of_arms = [one.get("measures", {}) for one in found]
    names = list(dict.fromkeys(name for measures in of_arms for name in measures))
    rows: list[list[Any]] = [["rows", *(one.get("rows") for one in found)]]
    for name in names:
        values = [measures.get(name, {}).get("value") for measures in of_arms]
        title = name.replace("_", " ")
        rows.append([title, *(NOT_MEASURED if value is None else value for value in values)])
    return rows
