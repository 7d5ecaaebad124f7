"""Training rows that repeat a benchmark's test items.

This is one of the few places that see test items before evaluation: it reports and drops, and never selects. It is
blind to labels and to numbers, unlike the search for duplicates: a row lost in doubt is cheap, a repeated test item
is not. A few leaked rows are chance; above a share the run stops, because the data was then made from the benchmark.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.errors import LeakageError
from pipeline.quality.rejects import part
from pipeline.quality.similarity import similar_pairs
from pipeline.quality.text import normalise
from pipeline.records import Example, GoldItem, Reject

LEAKED_EXACT = "leaked_exact"
LEAKED_NEAR = "leaked_near"


@dataclass(frozen=True, slots=True)
class Overlap:
    """How many rows repeat an item of one benchmark; a row counts once, as exact where it is."""

    n_items: int
    n_exact: int
    n_near: int


def drop_leaked(
    examples: Sequence[Example],
    items: Mapping[str, Sequence[GoldItem]],
    min_similarity: float,
    max_share: float,
) -> tuple[list[Example], list[Reject], dict[str, Overlap]]:
    """Reject every row that repeats a benchmark item, word for word or nearly.

    Args:
        examples: The rows.
        items: Each benchmark's test items, by its name.
        min_similarity: Jaccard similarity of character 3-grams from which on a row is near an item.
        max_share: The largest share of rows that may leak.

    Returns:
        The rows kept, the rejects, and the overlap with each benchmark. A row that repeats items of two benchmarks
        counts for both, and is rejected once.

    Raises:
        LeakageError: More than `max_share` of the rows leak.
    """
    texts = [normalise(example.text) for example in examples]
    found: dict[int, tuple[str, str]] = {}
    overlaps: dict[str, Overlap] = {}
    for benchmark, benchmark_items in items.items():
        leaks = _find_leaks(texts, benchmark, benchmark_items, min_similarity)
        n_exact = sum(reason == LEAKED_EXACT for reason, _ in leaks.values())
        overlaps[benchmark] = Overlap(len(benchmark_items), n_exact, len(leaks) - n_exact)
        for row, leak in leaks.items():
            if row not in found or (leak[0] == LEAKED_EXACT and found[row][0] == LEAKED_NEAR):
                found[row] = leak
    kept, rejects = part(examples, found)
    if len(rejects) > max_share * len(examples):
        raise LeakageError(_describe(rejects, overlaps, len(examples), max_share))
    return kept, rejects, overlaps


def _find_leaks(
    texts: Sequence[str], benchmark: str, items: Sequence[GoldItem], min_similarity: float
) -> dict[int, tuple[str, str]]:
    item_texts = [normalise(item.text) for item in items]
    by_text = dict(zip(item_texts, items, strict=True))
    found = {
        row: (LEAKED_EXACT, f"{benchmark} item {by_text[text].item_id}: {by_text[text].text}")
        for row, text in enumerate(texts)
        if text in by_text
    }
    is_item = np.arange(len(items) + len(texts)) < len(items)
    for position, nearest, similarity in similar_pairs([*item_texts, *texts], min_similarity, is_item, len(items)):
        item = items[nearest]
        detail = f"similarity {similarity:.3f}, {benchmark} item {item.item_id}: {item.text}"
        found.setdefault(position - len(items), (LEAKED_NEAR, detail))
    return found


def _describe(rejects: Sequence[Reject], overlaps: Mapping[str, Overlap], n_rows: int, max_share: float) -> str:
    counts = "; ".join(
        f"{benchmark}: {overlap.n_exact} exact, {overlap.n_near} near"
        for benchmark, overlap in overlaps.items()
        if overlap.n_exact or overlap.n_near
    )
    cases = "\n".join(f"  {reject.row_id}: {reject.text}\n    {reject.detail}" for reject in rejects[:2])
    return (
        f"{len(rejects)} of {n_rows} rows ({len(rejects) / n_rows:.1%}) repeat test items, more than "
        f"max_leaked_share = {max_share:.1%} ({counts}), such as\n{cases}\n"
        "Use data that was not made from this benchmark, or take the benchmark out of the evaluation. If the overlap "
        "is chance, raise max_leaked_share: leaked rows are dropped in any case"
    )
