"""The report of a search as one HTML file that needs nothing else, and its figures.

Optuna draws the figures and estimates how much each dimension matters, from a study that is made of the trials'
records: so a report can be written of any search, whatever walked its space.
"""

import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypedDict

from rich.console import Console
from rich.table import Table

from pipeline.report.html import embed, lay_out_figures, render_page
from pipeline.report.plots import FAINT, INK, render, start, styled
from pipeline.report.table import format_number, measure_width
from pipeline.tracking import redact

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from optuna import Study

MIN_TRIALS = 4
"""Fewer say nothing of what matters."""


class TrialRow(TypedDict):
    """What became of a trial."""

    number: int
    state: str
    """`complete`, `stopped early` or `failed`."""
    score: float | None
    n_epochs: int
    n_splits: int
    """Splits that it was measured on."""
    duration_s: float
    error: str | None
    point: dict[str, Any]


def tabulate_trials(trials: Sequence[TrialRow]) -> list[dict[str, Any]]:
    """Return a row for each trial, the best first and those without a value last."""
    ordered = sorted(trials, key=lambda row: (row["score"] is None, -(row["score"] or 0.0), row["number"]))
    return [
        {
            "trial": row["number"],
            "score": None if row["score"] is None else format_number(row["score"]),
            **row["point"],
            "epochs": row["n_epochs"],
            "state": row["state"],
            "duration_s": row["duration_s"],
        }
        for row in ordered
    ]


def print_trials(trials: Sequence[TrialRow], console: Console, n_shown: int = 10) -> None:
    """Print the best trials as a table."""
    rows = tabulate_trials(trials)
    table = Table(title=f"{len(rows)} trials, the best {min(n_shown, len(rows))}", box=None, padding=(0, 1))
    for name in rows[0]:
        table.add_column(name.removeprefix("student."), justify="right")
    for row in rows[:n_shown]:
        table.add_row(*(f"{value:.4g}" if isinstance(value, float) else str(value) for value in row.values()))
    table.width = measure_width(table, console)
    console.print(table, crop=False)


def make_study(trials: Sequence[TrialRow], distributions: Mapping[str, Mapping[str, Any]]) -> "Study":
    """Return Optuna's study of the trials that have a value.

    Args:
        trials: Their records.
        distributions: Each dimension's configuration, as in `conf/search/`.
    """
    import optuna
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    def read(dimension: Mapping[str, Any]) -> Any:
        if dimension["kind"] == "choice":
            return CategoricalDistribution(dimension["values"])
        kind = IntDistribution if dimension["kind"] == "integer" else FloatDistribution
        return kind(dimension["low"], dimension["high"], log=dimension["kind"] == "log_uniform")

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize")
    known = {name: read(dimension) for name, dimension in distributions.items()}
    for row in trials:
        if row["score"] is not None:
            study.add_trial(optuna.trial.create_trial(params=row["point"], distributions=known, value=row["score"]))
    return study


@styled
def draw_parallel_coordinates(study: "Study") -> "Figure":
    """Return a line per trial through its settings, coloured by its value."""
    import matplotlib.pyplot as plt
    from optuna.visualization.matplotlib import plot_parallel_coordinate

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that these figures of Optuna's are experimental
        axes = plot_parallel_coordinate(study, target_name="score")
    figure: Figure = axes.figure
    figure.set_size_inches(8.6, 3.8)
    axes.set_title("")
    # Optuna cuts names, and has the dimensions in alphabetical order.
    names = [name.removeprefix("student.").replace("_", "\n") for name in sorted(study.best_trial.params)]
    axes.set_xticks(axes.get_xticks(), ["score", *names], rotation=0, ha="center")
    plt.close(figure)  # it stays a figure; pyplot alone forgets it
    return figure


@styled
def draw_importances(study: "Study") -> "Figure":
    """Return a bar per dimension: which share of the differences between trials it explains (PED-ANOVA)."""
    from optuna.importance import get_param_importances

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        shares = get_param_importances(study)
    figure = start(6.0, 0.7 + 0.3 * len(shares))
    axes = figure.subplots()
    names = list(shares)[::-1]
    axes.barh(names, [shares[name] for name in names], height=0.6, color="#6b9fd0")
    axes.set_xlabel("share of the differences between trials")
    return figure


@styled
def draw_trials(trials: Sequence[TrialRow]) -> "Figure":
    """Return each trial's value by its number, the best so far as a line, and the default dashed."""
    scored = [row for row in trials if row["score"] is not None]
    figure = start(8.6, 2.6)
    axes = figure.subplots()
    colors = {"complete": "#1f5a93", "stopped early": "#c3c8cf"}
    for state, color in colors.items():
        of_state = [row for row in scored if row["state"] == state]
        axes.scatter(
            [r["number"] for r in of_state], [r["score"] for r in of_state], color=color, label=state, zorder=3
        )
    best, line = float("-inf"), []
    for row in scored:
        best = max(best, row["score"] or best)
        line.append(best)
    axes.step([row["number"] for row in scored], line, where="post", color=INK, linewidth=1, label="best so far")
    if default := next((row for row in scored if row["number"] == 0), None):
        axes.axhline(default["score"] or 0.0, color=FAINT, linestyle="--", linewidth=1, label="default (trial 0)")
    axes.set_xlabel("trial")
    axes.set_ylabel("score")
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, fontsize=8)
    return figure


def _describe_default(default: TrialRow | None) -> str:
    if default is None:
        return "is not measured: trial 0 began as it, and copied others"
    return "has no value" if default["score"] is None else f"(trial 0) has {format_number(default['score'])}"


def render_search(
    experiment: str,
    found: Mapping[str, Any],
    trials: Sequence[TrialRow],
    config: str,
    versions: Mapping[str, str],
) -> str:
    """Return the report as the text of an HTML file.

    Args:
        experiment: Its name.
        found: What came of the search: `search.json`.
        trials: All trials, by number.
        config: The resolved configuration as YAML.
        versions: Of what can change a result.
    """
    figures = {"Value of each trial; pale ones were stopped early.": embed(render(draw_trials(trials)))}
    scores = {row["score"] for row in trials if row["score"] is not None}
    too_few = len(scores) < MIN_TRIALS
    if not too_few:
        study = make_study(trials, found["distributions"])
        figures |= {
            "A line per trial through its settings, darker where the value is higher.": embed(
                render(draw_parallel_coordinates(study))
            ),
            "Which settings explain the differences between trials (PED-ANOVA, arXiv 2304.10255).": embed(
                render(draw_importances(study))
            ),
        }
    return render_page(
        "search.html.jinja",
        experiment=experiment,
        found=found,
        best=format_number(found["best"]["score"]),
        default=_describe_default(found["default"]),
        figures=figures,
        too_few=too_few,
        min_trials=MIN_TRIALS,
        trials=lay_out_figures(tabulate_trials(trials)),
        failures=sorted({row["error"] for row in trials if row["error"]}),
        config=redact(config),
        versions=versions,
    )
