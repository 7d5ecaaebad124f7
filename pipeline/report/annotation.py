"""The sheet that an annotator fills in, and the page on what annotators said, each as one HTML file."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.report.answers import format_figure, lay_out_answers, lay_out_correlation
from pipeline.report.html import Grid, embed, lay_out_figures, render_page
from pipeline.report.plots import FAINT, INK, LINES, clean, render, start, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FIXTURE = " (fixture)"
"""Stands beside all that is made of labels that nobody gave."""


@dataclass(frozen=True)
class SheetInput:
    """All that a sheet holds. Nothing in it tells which arm wrote an answer."""

    sheet: str
    annotator: str
    items: Sequence[Mapping[str, str]]
    """Their item_id, question and answer, in the annotator's order."""
    labels: Sequence[str]
    """The first wants a type beside it."""
    types: Sequence[str]
    file: str
    """Name of what is saved."""


@dataclass(frozen=True)
class Point:
    """An arm in the plot."""

    arm: str
    prompt: str
    rate: float
    low: float
    high: float
    quality: float


@dataclass(frozen=True)
class AnnotationInput:
    """All that the page shows, as plain values."""

    sheet: str
    n_items: int
    rates: Mapping[str, Sequence[Mapping[str, Any]]]
    """By what groups them; each its group, value, low, high, n and n_undecided."""
    faults: Mapping[str, Mapping[str, int]]
    """Labels by arm and type."""
    agreements: Sequence[Mapping[str, Any]]
    n_missing: Mapping[str, int]
    """Items without a label, by annotator."""
    disagreements: Sequence[Mapping[str, str]]
    judge: Mapping[str, Any] | None
    """Its agreement with people."""
    n_missing_of_judge: int
    points: Sequence[Point]
    """Empty: no comparison was given."""
    measure: str
    correlations: Mapping[str, Mapping[str, Any]]
    """With the measure, by what is correlated."""
    texts: Mapping[str, Any]
    support: Mapping[str, Mapping[str, Any]]
    """By arm with passages."""
    is_fixture: bool


def render_sheet(sheet: SheetInput, claim: str) -> str:
    """Return the sheet as the text of an HTML file that needs no network.

    Texts stand in it as JSON without any character that HTML reads, and are shown as text, so that markup and scripts
    in an answer stay what they are: letters.
    """
    return render_page("annotation_sheet.html.jinja", sheet=vars(sheet), claim=claim)


def render_annotation(page: AnnotationInput, claim: str) -> str:
    """Return the page as the text of an HTML file."""
    return render_page(
        "annotation.html.jinja",
        page=page,
        claim=claim,
        mark=FIXTURE if page.is_fixture else "",
        rates=_lay_out_rates(page.rates),
        faults=lay_out_figures([{"arm": arm, **counts} for arm, counts in page.faults.items()]),
        agreements=lay_out_figures([_describe_agreement(one) for one in page.agreements]),
        disagreements=lay_out_figures(page.disagreements),
        judge=lay_out_figures([_describe_agreement(page.judge)]) if page.judge else None,
        scatter=embed(render(draw_rates(page.points, page.measure, page.is_fixture))) if page.points else None,
        correlations=lay_out_figures(
            [lay_out_correlation({"what": name, **one}) for name, one in page.correlations.items()]
        ),
        **{
            name: lay_out_figures(rows)
            for name, rows in lay_out_answers({"texts": page.texts, "support": page.support}).items()
        },
    )


@styled
def draw_rates(points: Sequence[Point], measure: str, is_fixture: bool) -> "Figure":
    """Return a point for each arm, its rate with its interval against a measure, coloured by prompt."""
    figure = start(6.4, 4.0)
    axes = figure.subplots()
    for index, prompt in enumerate(dict.fromkeys(point.prompt for point in points)):
        own = [point for point in points if point.prompt == prompt]
        axes.errorbar(
            [point.quality for point in own],
            [point.rate for point in own],
            # A bound may lie beyond the rate by a rounding error; a bar may not.
            yerr=[
                [max(0.0, point.rate - point.low) for point in own],
                [max(0.0, point.high - point.rate) for point in own],
            ],
            fmt="o",
            color=LINES[index % len(LINES)],
            elinewidth=1,
            capsize=2,
            label=prompt,
        )
    for point in points:
        axes.annotate(point.arm, (point.quality, point.rate), (5, 4), textcoords="offset points", fontsize=8, color=INK)
    axes.set_xlabel(measure)
    axes.set_ylabel("share of answers with a hallucination")
    axes.set_ylim(-0.02, 1.02)
    axes.margins(x=0.15)
    axes.grid(color="#e4e7eb", linewidth=0.8, zorder=0)
    clean(axes)
    axes.legend(title="prompt", loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, fontsize=8)
    if is_fixture:
        axes.set_title("fixture: labels written by hand", fontsize=9.5, color=FAINT)
    return figure


def _lay_out_rates(rates: Mapping[str, Sequence[Mapping[str, Any]]]) -> Grid:
    return Grid(
        ["", "share", "95 % interval", "items", "undecided"],
        {
            f"by {by}": [
                [
                    " · ".join(rate["group"]),
                    format_figure(rate["value"]),
                    "-" if rate["value"] is None else f"{format_figure(rate['low'])} to {format_figure(rate['high'])}",
                    rate["n"],
                    rate["n_undecided"],
                ]
                for rate in of_groups
            ]
            for by, of_groups in rates.items()
        },
    )


def _describe_agreement(found: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "first": found["first"],
        "second": found["second"],
        "items": found["n"],
        "Cohen's kappa": format_figure(found["kappa"]),
        "observed agreement": format_figure(found["observed"]),
        "undecided": found["n_cant_tell"],
        **found["counts"],
    }
