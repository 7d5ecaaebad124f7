"""What a report says of rankers besides their scores: differences between them, communities, weights; as plain rows."""

from collections.abc import Iterable, Mapping, Sequence
from statistics import mean
from typing import Any, TypedDict

from pipeline.report.table import format_number

MEASURES = ("nDCG@10", "P@1")
"""Shown by community."""


class Ranked(TypedDict):
    """What one ranker came to on one benchmark."""

    arm: str
    student: str | None
    benchmark: str
    first_stage: dict[str, float]
    """BM25's k1 and b; empty where they are not known."""
    weights: list[dict[str, float]]
    """Of what was fused, for each seed."""
    values: dict[str, dict[str, float]]
    """By measure, each test query's mean over seeds."""


class DifferenceRow(TypedDict):
    """One difference between two rankers on the same queries, first minus second."""

    benchmark: str
    measure: str
    first: str
    second: str
    value: float
    low: float
    high: float
    """Of the 95 % bootstrap interval over queries."""
    p: float
    p_holm: float
    """Corrected for the number of differences of its benchmark and measure."""
    n: int
    """Queries."""


def name_ranker(ranked: Ranked) -> str:
    """Return a ranker's name where there is one column for it."""
    return f"{ranked['arm']} / {ranked['student']}" if ranked["student"] else ranked["arm"]


def lay_out_differences(rows: Iterable[DifferenceRow]) -> list[dict[str, Any]]:
    """Return differences as rows of a table, the surest first within each benchmark and measure."""
    ordered = sorted(rows, key=lambda row: (row["benchmark"], row["measure"], row["p"], -abs(row["value"])))
    return [
        {
            "benchmark": row["benchmark"],
            "measure": row["measure"],
            "first": row["first"],
            "second": row["second"],
            "first minus second": f"{row['value']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]",
            "p": format_p(row["p"]),
            "p (Holm)": format_p(row["p_holm"]),
            "queries": row["n"],
        }
        for row in ordered
    ]


def lay_out_communities(ranked: Sequence[Ranked], communities: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return a row for each community and measure, with a column for each ranker.

    Args:
        ranked: What rankers came to.
        communities: Each test query's community.
    """
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for one in ranked:
        for measure in MEASURES:
            by_community: dict[str, list[float]] = {}
            for query, value in one["values"][measure].items():
                by_community.setdefault(communities[query], []).append(value)
            for community, values in by_community.items():
                row = rows.setdefault(
                    (measure, community), {"measure": measure, "community": community, "queries": len(values)}
                )
                row[name_ranker(one)] = format_number(mean(values))
    return [rows[key] for key in sorted(rows, key=lambda key: (MEASURES.index(key[0]), key[1]))]


def lay_out_weights(ranked: Iterable[Ranked]) -> list[dict[str, Any]]:
    """Return BM25's settings and the weights of each ranker on each benchmark, of several seeds side by side."""
    rows = []
    for one in ranked:
        names = list(one["weights"][0])
        weights = {name: ", ".join(f"{of_seed[name]:g}" for of_seed in one["weights"]) for name in names}
        settings = {f"BM25 {name}": f"{value:g}" for name, value in one["first_stage"].items()}
        rows.append({"benchmark": one["benchmark"], "ranker": name_ranker(one), **settings, **weights})
    return sorted(rows, key=lambda row: row["benchmark"])


def format_p(p: float) -> str:
    """Return a p-value with three decimals."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"
