"""The results table: every student, judge and baseline on one benchmark, with intervals, for terminal and README.

A table marks the rows whose interval reaches down to what a trivial baseline scores. On a skewed
benchmark such a baseline looks good (always "ambiguous" has a weighted F1 of 0.82 on ClariQ), so a number alone
says little.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NotRequired, TypedDict

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

HEADLINE = ("macro-F1", "MCC", "AUROC", "weighted-F1")
"""Measures shown unless a task names others. The first decides whether a row clears the baselines."""
MARK = "†"
MISSING = "-"
JUDGES = {
    "zero-shot": "an LLM is asked about each item itself, without examples; its training may have held the benchmark",
    "few-shot": "the same with examples of our own in the question",
}
"""How a judge is asked, by what its row has in the place of a student, whose key holds no hyphen."""
NOTES = {
    "released": "the student's encoder as it was published, which may have been trained on pairs of Stack Exchange, as "
    "all-MiniLM-L6-v2 was",
}
"""What must be known of an arm, by its name."""
RANKING = "nDCG@10"
"""A measure that rankers alone have."""
Kind = Literal["student", "judge", "baseline"]
TRAINED = ("tfidf_", "frozen_")
"""How baselines begin that learn from the texts of an arm's rows; all others are trivial."""
KINDS: tuple[Kind, ...] = ("student", "judge", "baseline")
"""In the order of tables."""


class Entry(TypedDict):
    """One value of comparison.json: a mean over seeds with its interval, on `n` test items."""

    arm: str
    student: str | None
    """How an LLM was asked, for a judge. None: a baseline."""
    data: str
    benchmark: str
    setting: str
    measure: str
    value: float
    low: float
    high: float
    n: int
    seed_sd: NotRequired[float | None]
    """Standard deviation over seeds; None with one."""


@dataclass(frozen=True)
class Cell:
    """One value with its interval."""

    value: float
    low: float
    high: float
    is_best: bool
    """No other row of its table shows more."""


@dataclass(frozen=True)
class Row:
    """What one student of one arm, one judge, or one baseline scores on a benchmark."""

    arm: str
    student: str | None
    cells: Mapping[str, Cell]
    clears: bool
    """Whether the interval lies above the best trivial baseline. A trivial baseline has nothing to clear."""

    @property
    def name(self) -> str:
        """The row's name where there is one column for it."""
        return f"{self.arm} / {self.student}" if self.student else f"{self.arm} (baseline)"

    @property
    def kind(self) -> Kind:
        """What scored."""
        if self.student is None:
            return "baseline"
        return "judge" if self.student in JUDGES else "student"

    @property
    def is_baseline(self) -> bool:
        """Whether this is neither a student nor a judge."""
        return self.kind == "baseline"

    @property
    def is_trivial(self) -> bool:
        """Whether this is a baseline that learns nothing from the texts of training rows."""
        return self.student is None and not self.arm.startswith(TRAINED)


@dataclass(frozen=True)
class ResultTable:
    """All rows of one benchmark and setting by kind: students, judges, baselines, each in the order given."""

    benchmark: str
    setting: str
    n: int
    measures: tuple[str, ...]
    rows: tuple[Row, ...]
    bar: Row | None
    """The trivial baseline that is best by the first measure; None without one."""

    @property
    def title(self) -> str:
        """Benchmark, setting and number of test items."""
        return f"{self.benchmark} · {self.setting} · n = {self.n:,}"

    def rows_of(self, kind: Kind) -> list[Row]:
        """Return the rows of one kind."""
        return [row for row in self.rows if row.kind == kind]

    @property
    def notes(self) -> dict[str, str]:
        """What must be known of arms in it, by their names."""
        return {arm: text for arm, text in NOTES.items() if any(row.arm == arm for row in self.rows)}

    @property
    def all_clear(self) -> bool:
        """Whether every student and judge clears the best trivial baseline."""
        return all(row.clears for row in self.rows if not row.is_baseline)

    def format_cell(self, row: Row, measure: str, separator: str = " ", bold: str = "") -> str:
        """Return a value with its interval, as text; the first measure carries the mark of a row that doesn't clear."""
        if measure not in row.cells:
            return MISSING
        cell = row.cells[measure]
        weight = bold if cell.is_best else ""
        mark = MARK if measure == self.measures[0] and not row.clears else ""
        interval = f"[{format_number(cell.low)}, {format_number(cell.high)}]"
        return f"{weight}{format_number(cell.value)}{weight}{mark}{separator}{interval}"

    def describe_clearing(self) -> str:
        """Return one sentence on how many students and judges do better than a trivial baseline; empty without any.

        Where they rank, a student is there several times: as released, and with TAG. So rankers are counted.
        """
        nouns: dict[Kind, str] = {"student": "ranker" if RANKING in self.measures else "student", "judge": "judge"}
        groups = [(noun, self.rows_of(kind)) for kind, noun in nouns.items() if self.rows_of(kind)]
        if self.bar is None or not groups:
            return ""
        counts, measure = [sum(row.clears for row in rows) for _, rows in groups], self.measures[0]
        parts = [
            f"{n or 'none'} of {len(rows)} {noun if len(rows) == 1 else f'{noun}s'}"
            for n, (noun, rows) in zip(counts, groups, strict=True)
        ]
        subject = " and ".join(parts)
        return (
            f"{subject[0].upper()}{subject[1:]} {'have' if sum(counts) > 1 else 'has'} an interval of {measure} above "
            f"the best trivial baseline ({self.bar.arm}, {format_number(self.bar.cells[measure].value)})."
        )


def tabulate_results(entries: Iterable[Entry], measures: Sequence[str] = HEADLINE) -> list[ResultTable]:
    """Return one table per benchmark and setting, in the order of the entries, with those measures that occur."""
    groups: dict[tuple[str, str], list[Entry]] = {}
    for entry in entries:
        groups.setdefault((entry["benchmark"], entry["setting"]), []).append(entry)
    return [_tabulate(benchmark, setting, group, measures) for (benchmark, setting), group in groups.items()]


def print_results(entries: Iterable[Entry], console: Console, measures: Sequence[str] = HEADLINE) -> None:
    """Print the results, one table per benchmark and setting.

    A number is never wrapped: output that is no terminal gets lines as long as they need to be, and a narrow
    terminal gets each interval below its value.
    """
    for result in tabulate_results(entries, measures):
        table = _draw(result, separator=" ")
        table.width = measure_width(table, console)
        if console.is_terminal and table.width > console.width:
            table = _draw(result, separator="\n")
            table.width = measure_width(table, console)
        console.print(table, crop=False)
        console.print(f"{_describe_mark(result)}\n", soft_wrap=True, highlight=False)


def to_markdown(entries: Iterable[Entry], measures: Sequence[str] = HEADLINE) -> str:
    """Return the results as Markdown tables: baselines in italics, the best of a column in bold."""
    parts = []
    for result in tabulate_results(entries, measures):
        lines = [
            f"**{result.title}**",
            "",
            f"| arm | student | {' | '.join(result.measures)} |",
            f"|---|---|{'---:|' * len(result.measures)}",
        ]
        for row in result.rows:
            cells = [result.format_cell(row, measure, bold="**") for measure in result.measures]
            arm = f"*{row.arm}*" if row.is_baseline else row.arm
            lines.append(f"| {arm} | {row.student or '*baseline*'} | {' | '.join(cells)} |")
        parts.append("\n".join([*lines, "", _describe_mark(result)]))
    return "\n\n".join(parts) + "\n"


def format_number(value: float) -> str:
    """Return a value with three decimals, never `-0.000`."""
    return f"{round(value, 3) + 0.0:.3f}"


def _tabulate(benchmark: str, setting: str, entries: list[Entry], measures: Sequence[str]) -> ResultTable:
    present = {entry["measure"] for entry in entries}
    shown = tuple(measure for measure in measures if measure in present) or tuple(sorted(present))
    best = {
        measure: max(round(entry["value"], 3) for entry in entries if entry["measure"] == measure) for measure in shown
    }
    found: dict[tuple[str, str | None], dict[str, Cell]] = {}
    for entry in entries:
        cells = found.setdefault((entry["arm"], entry["student"]), {})
        if (measure := entry["measure"]) in best:
            is_best = round(entry["value"], 3) == best[measure]
            cells[measure] = Cell(entry["value"], entry["low"], entry["high"], is_best)
    rows = [Row(arm, student, cells, clears=True) for (arm, student), cells in found.items()]
    deciding = shown[0]
    candidates = [row for row in rows if row.is_trivial and deciding in row.cells]
    bar = max(candidates, key=lambda row: row.cells[deciding].value, default=None)
    least = bar.cells[deciding].value if bar else -math.inf
    judged = [replace(row, clears=row.is_trivial or _low(row, deciding) > least) for row in rows]
    judged.sort(key=lambda row: KINDS.index(row.kind))
    return ResultTable(benchmark, setting, max(entry["n"] for entry in entries), shown, tuple(judged), bar)


def measure_width(table: Table, console: Console) -> int:
    """Return the characters that a table takes where nothing is cut."""
    return Measurement.get(console, console.options.update(width=10_000), table).maximum


def _draw(result: ResultTable, separator: str) -> Table:
    table = Table(
        title=result.title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0)
    )
    table.add_column("arm / student", no_wrap=True)
    for measure in result.measures:
        table.add_column(measure, justify="right", no_wrap=True)
    for row in result.rows:
        best = [measure in row.cells and row.cells[measure].is_best for measure in result.measures]
        cells = [
            Text(result.format_cell(row, measure, separator), "bold not dim" if is_best else "")
            for measure, is_best in zip(result.measures, best, strict=True)
        ]
        style = "dim" if row.is_baseline else None
        table.add_row(Text(row.name), *cells, style=style, end_section=row is result.rows_of(row.kind)[-1])
    return table


def _low(row: Row, measure: str) -> float:
    return row.cells[measure].low if measure in row.cells else math.inf


def _describe_mark(result: ResultTable) -> str:
    notes = "".join(f" {arm}: {text}." for arm, text in result.notes.items())
    if result.bar is None:
        return f"Means over seeds with 95 % bootstrap intervals; no trivial baseline to compare with.{notes}"
    measure = result.measures[0]
    return (
        f"{MARK} {measure} interval reaches down to the best trivial baseline "
        f"({result.bar.arm}, {format_number(result.bar.cells[measure].value)}): no better than that for sure. "
        f"Means over seeds with 95 % bootstrap intervals.{notes}"
    )
