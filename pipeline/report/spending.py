"""Where the money went: by stage and arm, by what became of it, and what it bought; as plain rows of tables."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.report.table import ResultTable

_SUMMED = ("rows", "prompt_tokens", "completion_tokens", "usd", "device_s")


@dataclass(frozen=True)
class Spent:
    """What one teacher took as the teacher of an arm, or as a judge."""

    stage: str
    """`teaching` or `judging`."""
    arm: str
    """The arm's key or the judge's."""
    efficiency: Mapping[str, Any]
    """Its `efficiency.json`."""


@dataclass(frozen=True)
class ArmCost:
    """What the teachers took for an arm's rows; None: not measured, or without a price."""

    usd: float | None
    device_s: float | None


@dataclass(frozen=True)
class Money:
    """Where the money went; None in a row is what was not measured, or has no price."""

    tables: Mapping[str, Sequence[Mapping[str, Any]]]
    """Rows by `stages`, by `ends` (what became of it), and of `scores` (what it bought)."""
    token_shares: Mapping[str, Mapping[str, float]]
    """Of an arm's or a judge's tokens, by what became of them."""


def lay_out_money(spent: Sequence[Spent], results: Iterable[ResultTable], costs: Mapping[str, ArmCost]) -> Money:
    """Return where the money went.

    Args:
        spent: What arms' teachers and judges took.
        results: What students score.
        costs: Of the rows that they were trained on, by arm.
    """
    tables = {"stages": lay_out_stages(spent), "ends": lay_out_ends(spent), "scores": lay_out_scores(results, costs)}
    return Money(tables, get_token_shares(spent))


def lay_out_stages(spent: Sequence[Spent]) -> list[dict[str, Any]]:
    """Return a row for each arm and judge, and a sum for each stage that has several.

    A sum is None where one of its parts is: what was not measured is not nothing.
    """
    rows = []
    for stage in dict.fromkeys(one.stage for one in spent):
        own = [one for one in spent if one.stage == stage]
        rows += [_lay_out(stage, one.arm, one.efficiency["teacher"], one.efficiency) for one in own]
        if len(own) > 1:
            rows.append(
                _lay_out(stage, "all", "", {name: _sum(one.efficiency[name] for one in own) for name in _SUMMED})
            )
    return rows


def _lay_out(stage: str, arm: str, teacher: str, amounts: Mapping[str, Any]) -> dict[str, Any]:
    n_rows, tokens = amounts["rows"], amounts["prompt_tokens"] + amounts["completion_tokens"]
    return {
        "stage": stage,
        "arm": arm,
        "teacher": teacher,
        "rows or items": n_rows,
        "tokens": tokens,
        "tokens per row": _divide(tokens, n_rows),
        "USD": amounts["usd"],
        "USD per 1,000 rows": _divide(amounts["usd"], n_rows, 1000),
        "device hours": _divide(amounts["device_s"], 3600),
        "device-seconds per row": _divide(amounts["device_s"], n_rows),
    }


def lay_out_ends(spent: Iterable[Spent]) -> list[dict[str, Any]]:
    """Return a row for everything that an arm's or a judge's money went into."""
    return [
        {
            "stage": one.stage,
            "arm": one.arm,
            "what became of it": end.replace("_", " "),
            "calls": round(amounts["calls"]),
            "tokens": round(amounts["tokens"]),
            "share of tokens": None if amounts["token_share"] is None else f"{100 * amounts['token_share']:.1f} %",
            "USD": amounts["usd"],
            "device-seconds": amounts["device_s"],
        }
        for one in spent
        for end, amounts in one.efficiency["spent_on"].items()
    ]


def get_token_shares(spent: Iterable[Spent]) -> dict[str, dict[str, float]]:
    """Return the share of tokens that each end took, by arm and judge; those without tokens are left out."""
    shares = {
        one.arm: {end: amounts["token_share"] for end, amounts in one.efficiency["spent_on"].items()} for one in spent
    }
    return {arm: found for arm, found in shares.items() if found and None not in found.values()}


def lay_out_scores(tables: Iterable[ResultTable], costs: Mapping[str, ArmCost]) -> list[dict[str, Any]]:
    """Return a row for each student and benchmark: its score, and that for each dollar and device-hour of its rows.

    The score is the first measure of its table. A trivial baseline costs nothing, so what lies above the best one is
    said beside it.
    """
    return [
        {
            "benchmark": table.benchmark,
            "setting": table.setting,
            "arm": row.arm,
            "student": row.student,
            table.measures[0]: cell.value,
            "above the best trivial baseline": None if bar is None else cell.value - bar,
            "USD": cost.usd,
            "score per USD": _divide(cell.value, cost.usd),
            "device hours": _divide(cost.device_s, 3600),
            "score per device hour": _divide(cell.value, cost.device_s, 3600),
        }
        for table in tables
        for bar in [table.bar.cells[table.measures[0]].value if table.bar else None]
        for row in table.rows_of("student")
        if (cost := costs.get(row.arm)) and (cell := row.cells.get(table.measures[0]))
    ]


def _sum(amounts: Iterable[float | None]) -> float | None:
    found = list(amounts)
    known = [amount for amount in found if amount is not None]
    return sum(known) if len(known) == len(found) else None


def _divide(amount: float | None, by: float | None, factor: float = 1.0) -> float | None:
    return factor * amount / by if amount is not None and by else None
