"""The report of a comparison as one HTML file that needs nothing else: no script, no font, no picture from outside.

Data cards, costs, efficiencies and sample rows are shown as they come, whatever their keys, so that a new figure of
another module needs no change here.
"""

import base64
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict

from pipeline.report.answers import lay_out_answers, lay_out_correlation
from pipeline.report.plots import (
    Confusion,
    draw_confusions,
    draw_lengths,
    draw_scores,
    draw_time_shares,
    draw_token_shares,
    render,
)
from pipeline.report.spending import Money
from pipeline.report.table import HEADLINE, JUDGES, KINDS, MARK, Entry, ResultTable, format_number, tabulate_results
from pipeline.tracking import redact

BASELINES = {
    "majority": "always the benchmark's most frequent class",
    "prior": "random answers in the benchmark's class shares",
    "length": "a threshold on the number of words",
    "prototype": "the untrained encoder, by similarity to one sentence per class",
    "tfidf_": "TF-IDF and logistic regression on the rows of the arm it names",
    "frozen_": "an untrained encoder's vectors and logistic regression on the rows of the arm it names",
    "bm25": "BM25 by itself",
    "bm25_tag": "BM25 with the interests of asker and author",
}
"""What a baseline does, by the start of its name."""
SETTINGS = {
    "standard": "no row of the benchmark was used to train, select or calibrate a student",
    "dev-selected": "calibrated on the benchmark's own train and dev rows; its test rows alone are reported",
}
RANKER_SETTINGS = {
    "standard": "fusion weights, and BM25's k1 and b where several were tried, were chosen on the benchmark's "
    "validation queries; its test queries alone are reported",
}
"""The same where rankers are compared."""
IDS = ("row_id", "request_id")
"""Columns of sample rows that only a file needs."""
MAX_CHARS = 400
"""Of a text in a sample row; a raw reply may be as long as a page."""
NOT_MEASURED = "not measured"
_TEMPLATES = Path(__file__).parent / "templates"
_UNITS = {"_rows_per_s": " (rows/s)", "_per_s": "/s", "_ms": " (ms)", "_mb": " (MB)", "_s": " (s)"}
_SPELLINGS = {
    "1000": "1,000",
    "auroc": "AUROC",
    "f1": "F1",
    "s": "seconds",
    "sd": "standard deviation",
    "tfidf": "TF-IDF",
    "usd": "USD",
}


class Samples(TypedDict):
    """A few rows of one arm's data set by label, and a few that did not make it by reason; any columns."""

    accepted: dict[str, list[dict[str, str]]]
    rejected: dict[str, list[dict[str, str]]]


@dataclass(frozen=True)
class Rankers:
    """What there is to say of rankers besides their scores, as rows of tables."""

    differences: Sequence[Mapping[str, Any]]
    communities: Sequence[Mapping[str, Any]]
    weights: Sequence[Mapping[str, Any]]
    answers: Mapping[str, Any]
    """What the arms' answers look like: `texts` with its arms and pairs, and `support` by arm."""
    correlations: Sequence[Mapping[str, Any]]
    """Of these figures with the arms' quality."""


@dataclass(frozen=True)
class ReportInput:
    """All that a report shows, as plain values."""

    experiment: str
    entries: Sequence[Entry]
    config: str
    """The resolved configuration as YAML."""
    versions: Mapping[str, str]
    steps: Sequence[Mapping[str, Any]]
    """Per step its name, arm, fingerprint, whether it was kept, duration_s and counts."""
    costs: Sequence[Mapping[str, Any]] = ()
    """Per student or judge its arm, student, latency_p50_ms and whatever else there is; None: not measured."""
    efficiencies: Sequence[Mapping[str, Any]] = ()
    """Per arm with a teacher its arm, time_shares by cause, and whatever else its rows took; None: not measured."""
    money: Money | None = None
    """None: no teacher was asked."""
    confusions: Sequence[Confusion] = ()
    rankers: Rankers | None = None
    """None: the task labels texts."""
    cards: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Data cards by arm; values may be nested."""
    samples: Mapping[str, Samples] = field(default_factory=dict)
    """By arm."""
    lengths: Mapping[str, Mapping[str, Mapping[str, int]]] = field(default_factory=dict)
    """Number of rows by arm, label and number of words."""
    measures: Sequence[str] = HEADLINE
    """Shown in this order; the first decides which students clear the trivial baselines."""


@dataclass(frozen=True)
class Grid:
    """A plain table: a header, and rows of values in sections (a section's name may be empty)."""

    header: Sequence[str]
    sections: Mapping[str, Sequence[Sequence[Any]]]

    @property
    def is_number(self) -> list[bool]:
        """For each column whether all that it holds are numbers."""
        rows = [row for rows in self.sections.values() for row in rows]
        return [
            all(_is_number(x) for x in column if x not in (None, NOT_MEASURED)) for column in zip(*rows, strict=True)
        ]


def read_templates() -> dict[str, str]:
    """Return the source of every template by its name."""
    return {path.name: path.read_text() for path in _TEMPLATES.glob("*.jinja")}


def render_report(report: ReportInput) -> str:
    """Return the report as the text of an HTML file."""
    tables = tabulate_results(report.entries, report.measures)
    shares = {row["arm"]: row["time_shares"] for row in report.efficiencies if row["time_shares"]}
    settings = SETTINGS if report.rankers is None else RANKER_SETTINGS
    return render_page(
        "report.html.jinja",
        report=report,
        summary=describe_comparison(report.experiment, tables, report.cards),
        has_judges=any(table.rows_of("judge") for table in tables),
        legend=describe_judges(tables) | describe_baselines(tables) | describe_notes(tables),
        settings={table.setting: settings[table.setting] for table in tables if table.setting in settings},
        mark=MARK,
        kinds=KINDS,
        benchmarks=[_draw_benchmark(table, report.confusions) for table in tables],
        lengths=embed(render(draw_lengths(report.lengths))) if report.lengths else None,
        rankers={
            "differences": lay_out_rows(report.rankers.differences),
            "communities": lay_out_rows(report.rankers.communities),
            "weights": lay_out_rows(report.rankers.weights),
            "answers": report.rankers.answers,
            **{name: lay_out_figures(rows) for name, rows in lay_out_answers(report.rankers.answers).items()},
            "correlations": lay_out_figures([lay_out_correlation(one) for one in report.rankers.correlations]),
        }
        if report.rankers
        else None,
        costs=lay_out_figures(report.costs),
        efficiencies=lay_out_figures([_drop(row, "time_shares", "spent_on") for row in report.efficiencies]),
        money={name: lay_out_figures(rows) for name, rows in report.money.tables.items()} if report.money else None,
        token_shares=embed(render(draw_token_shares(report.money.token_shares)))
        if report.money and report.money.token_shares
        else None,
        time_shares=embed(render(draw_time_shares(shares))) if shares else None,
        cards=lay_out_cards(report.cards),
        samples={
            arm: {
                "accepted": _lay_out_samples("label", samples["accepted"]),
                "rejected": _lay_out_samples("reason", samples["rejected"]),
            }
            for arm, samples in report.samples.items()
        },
        steps=lay_out_rows([{**step, "kept": "kept" if step["kept"] else "run"} for step in report.steps]),
        config=redact(report.config),
    )


def render_page(template: str, **values: Any) -> str:
    """Return a template's page with some values in it.

    Raises:
        jinja2.UndefinedError: The template names a value that is not there.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": _format_score, "value": format_value}
    return environment.get_template(template).render(**values)


def describe_comparison(experiment: str, tables: Sequence[ResultTable], datasets: Collection[str]) -> str:
    """Return in a sentence what was compared, and on what.

    Args:
        experiment: Its name.
        tables: Of all benchmarks. Where they rank, `<arm>_tag` is the arm under another fusion, and `released` none.
        datasets: The arms that have one.
    """
    rows = {(row.arm, row.student, row.kind) for table in tables for row in table.rows}
    students = {student for _, student, kind in rows if kind == "student"}
    arms = {arm for arm, _, kind in rows if kind == "student" and arm in datasets}
    n_judges, n_baselines = (sum(kind == wanted for _, _, kind in rows) for wanted in ("judge", "baseline"))
    others = [f"{_count(n_judges, 'judge')} (LLMs that are asked directly)"] if n_judges else []
    benchmarks = list(dict.fromkeys(table.benchmark for table in tables))
    return (
        f"{experiment} compares {_count(len(arms), 'arm')} (where training rows come from) and "
        f"{_count(len(students), 'student')} with "
        f"{_enumerate([*others, _count(n_baselines, 'baseline')])} on {_enumerate(benchmarks)}."
    )


def describe_judges(tables: Iterable[ResultTable]) -> dict[str, str]:
    """Return how the judges in the tables are asked."""
    found = {row.student for table in tables for row in table.rows_of("judge")}
    return {name: text for name, text in JUDGES.items() if name in found}


def describe_baselines(tables: Iterable[ResultTable]) -> dict[str, str]:
    """Return what each kind of baseline in the tables does."""
    found = {row.arm for table in tables for row in table.rows if row.is_baseline}
    return {
        (f"{name}…" if name.endswith("_") else name): text
        for name, text in BASELINES.items()
        if any(arm == name or (name.endswith("_") and arm.startswith(name)) for arm in found)
    }


def describe_notes(tables: Iterable[ResultTable]) -> dict[str, str]:
    """Return what must be known of arms in the tables."""
    return {arm: text for table in tables for arm, text in table.notes.items()}


def lay_out_rows(rows: Sequence[Mapping[str, Any]]) -> Grid:
    """Return rows with any keys as a grid of the columns that hold something, in order of appearance."""
    keys = dict.fromkeys(key for row in rows for key in row)
    columns = [key for key in keys if any(row.get(key) not in (None, "", {}, []) for row in rows)]
    return Grid([name_column(key) for key in columns], {"": [[row.get(key) for key in columns] for row in rows]})


def lay_out_figures(rows: Sequence[Mapping[str, Any]]) -> Grid:
    """Return rows like `lay_out_rows`; None is what was not measured, and a key that lacks does not apply."""
    return lay_out_rows([{key: NOT_MEASURED if value is None else value for key, value in row.items()} for row in rows])


def lay_out_cards(cards: Mapping[str, Mapping[str, Any]]) -> Grid:
    """Return data cards side by side, one column per arm; what is nested becomes a section, deeper keys joined."""
    flat = {arm: _flatten(card) for arm, card in cards.items()}
    paths = list(dict.fromkeys(path for card in flat.values() for path in card))
    # A card may hold null where another holds figures; then the figures' rows say it.
    paths = [
        path for path in paths if not any(len(other) > len(path) and other[: len(path)] == path for other in paths)
    ]
    sections: dict[str, list[list[Any]]] = {}
    for path in paths:
        section = path[0] if len(path) > 1 else ""
        title = " · ".join(name_column(key) for key in (path[1:] if section else path))
        sections.setdefault(name_column(section), []).append([title, *(card.get(path) for card in flat.values())])
    return Grid(["", *cards], dict(sorted(sections.items(), key=lambda item: item[0] != "")))


def name_column(key: str) -> str:
    """Return a key as a heading: `latency_p50_ms` is `latency p50 (ms)`."""
    for suffix, unit in _UNITS.items():
        if key.endswith(suffix):
            return _spell(key.removesuffix(suffix)) + unit
    return _spell(key.removeprefix("n_"))


def format_value(value: Any) -> str:
    """Return any value of a card, a cost or a row as text."""
    match value:
        case None:
            return "-"
        case bool():
            return "yes" if value else "no"
        case int():
            return f"{value:,}"
        case float() if 0 < abs(value) < 0.001:
            return f"{value:.2g}"
        case float():
            return f"{value:,.1f}" if abs(value) > 1 else format_number(value)
        case Mapping():
            return " · ".join(f"{name_column(str(key))} {format_value(item)}" for key, item in value.items())
        case list() | tuple():
            return ", ".join(format_value(item) for item in value)
    return str(value)


def _spell(key: str) -> str:
    return " ".join(_SPELLINGS.get(word, word) for word in key.split("_"))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _flatten(value: Any, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    if isinstance(value, Mapping) and (value or not path):
        return {
            leaf: item for key, nested in value.items() for leaf, item in _flatten(nested, (*path, str(key))).items()
        }
    return {path: value or None if isinstance(value, Mapping) else value}


def _drop(row: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in keys}


def _lay_out_samples(kind: str, by_name: Mapping[str, Sequence[Mapping[str, Any]]]) -> Grid:
    rows = [{kind: name, **row} for name, rows in by_name.items() for row in rows]
    return lay_out_rows([{key: _shorten(value) for key, value in row.items() if key not in IDS} for row in rows])


def _shorten(value: Any) -> Any:
    return value[: MAX_CHARS - 1] + "…" if isinstance(value, str) and len(value) > MAX_CHARS else value


def _draw_benchmark(table: ResultTable, confusions: Iterable[Confusion]) -> dict[str, Any]:
    own = [item for item in confusions if (item["benchmark"], item["setting"]) == (table.benchmark, table.setting)]
    return {
        "table": table,
        "scores": embed(render(draw_scores(table))),
        "confusions": embed(render(draw_confusions(own))) if own else None,
    }


def embed(svg: bytes) -> str:
    """Return a picture as the address that a page has it under, inside itself."""
    return f"data:image/svg+xml;base64,{base64.b64encode(svg).decode()}"


def _format_score(value: float) -> str:
    return format_number(value).replace("-", "\N{MINUS SIGN}")


def _enumerate(names: Sequence[str]) -> str:
    return " and ".join(part for part in (", ".join(names[:-1]), *names[-1:]) if part)


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"
