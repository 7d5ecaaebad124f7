"""The data card: what every data set must say of itself before anyone trains on it."""

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from statistics import mean, stdev
from typing import Any

from pipeline.identity import derive_seed
from pipeline.quality.leakage import Overlap
from pipeline.quality.lengths import count_words, length_auroc
from pipeline.quality.rejects import STAGE
from pipeline.quality.shortcuts import tfidf_cross_validation
from pipeline.quality.text import normalise
from pipeline.records import Example, Reject


def describe(
    examples: Sequence[Example],
    rejects: Sequence[Reject],
    leaked: Mapping[str, Overlap],
    *,
    positive: str | None,
    seed: int,
    n_folds: int,
) -> dict[str, Any]:
    """Return the data card of the rows kept, ready for JSON: no NaN, None for what can't be computed.

    Args:
        examples: The rows kept.
        rejects: All rejects on the way to them, of every stage.
        leaked: The overlap with each benchmark.
        positive: The label whose rows may be the shorter ones; None: no label is asked about.
        seed: Draws the folds of the cross-validation.
        n_folds: How many.
    """
    n_distinct = len({normalise(example.text) for example in examples})
    by_stage = Counter((reject.stage, reject.reason) for reject in rejects)
    return {
        "rows_in": len(examples) + sum(reject.stage == STAGE for reject in rejects),
        "rows": len(examples),
        "groups": len({example.group for example in examples}),
        "labels": {
            label: _describe_label([example for example in examples if example.label == label], len(examples))
            for label in sorted({example.label for example in examples})
        },
        "exact_duplicates": len(examples) - n_distinct,
        "unique_fraction": n_distinct / len(examples) if examples else None,
        "length_auroc": length_auroc(examples, positive),
        "tfidf_cross_validation": asdict(tfidf_cross_validation(examples, seed, n_folds)),
        "benchmark_overlap": {benchmark: asdict(overlap) for benchmark, overlap in leaked.items()},
        "rejects": {
            stage: {reason: n for (of, reason), n in sorted(by_stage.items()) if of == stage}
            for stage in sorted({stage for stage, _ in by_stage})
        },
    }


def sample_rows(
    examples: Sequence[Example], rejects: Sequence[Reject], n: int, seed: int
) -> dict[str, dict[str, list[dict[str, str]]]]:
    """Return up to `n` accepted rows of each label and up to `n` rejects of each reason, drawn by seed, in order."""
    accepted: dict[str, list[dict[str, str]]] = {}
    for example in examples:
        row = {"row_id": example.row_id, "group": example.group, "text": example.text}
        accepted.setdefault(example.label, []).append(row)
    rejected: dict[str, list[dict[str, str]]] = {}
    for reject in rejects:
        rejected.setdefault(reject.reason, []).append(asdict(reject))
    return {
        kind: {name: _draw(rows, n, derive_seed(seed, kind, name)) for name, rows in sorted(by_name.items())}
        for kind, by_name in (("accepted", accepted), ("rejected", rejected))
    }


def _describe_label(examples: Sequence[Example], n_all: int) -> dict[str, float | None]:
    n_words = [count_words(example) for example in examples]
    return {
        "rows": len(examples),
        "share": len(examples) / n_all,
        "words_mean": float(mean(n_words)),
        "words_sd": stdev(n_words) if len(n_words) > 1 else None,
    }


def _draw(rows: Sequence[dict[str, str]], n: int, seed: int) -> list[dict[str, str]]:
    return [rows[position] for position in sorted(random.Random(seed).sample(range(len(rows)), min(n, len(rows))))]
