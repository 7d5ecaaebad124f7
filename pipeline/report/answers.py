"""What answers of several arms look like, as rows of tables for a report or the page of an annotation."""

from collections.abc import Mapping
from typing import Any

from pipeline.report.table import format_number

UNDEFINED = "undefined"


def lay_out_answers(measured: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Return what was measured as rows: `texts` by arm, `pairs` of arms, and `support` by arm, if any had passages."""
    return {
        "texts": [{"arm": arm, **_spell(one)} for arm, one in measured["texts"]["arms"].items()],
        "pairs": [
            {
                "first arm": pair["first"],
                "second arm": pair["second"],
                "BLEU": f"{pair['bleu']:.1f}",
                "chrF": f"{pair['chrf']:.1f}",
            }
            for pair in measured["texts"]["pairs"]
        ],
        "support": [{"arm": arm, **one} for arm, one in measured["support"].items()],
    }


def lay_out_correlation(found: Mapping[str, Any]) -> dict[str, Any]:
    """Return a correlation over arms as a row, after whatever says what it is of."""
    rest = {key: value for key, value in found.items() if key not in ("n", "pearson", "spearman", "note")}
    return {
        **rest,
        "arms": found["n"],
        "Pearson": format_figure(found["pearson"]),
        "Spearman": format_figure(found["spearman"]),
        "note": found["note"],
    }


def format_figure(value: float | None) -> str:
    """Return a figure, or that there is none."""
    return UNDEFINED if value is None else format_number(value)


def _spell(texts: Mapping[str, Any]) -> dict[str, Any]:
    return {("Self-BLEU" if name == "self_bleu" else name): value for name, value in texts.items()}
