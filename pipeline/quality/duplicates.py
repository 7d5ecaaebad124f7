"""Rows that say what another row says, within and across topics.

Near duplicates are looked for under one label only, and never between rows with other numbers: "capital of Georgia"
and "capital of the US state of Georgia" are a minimal pair, just what the data is for, and "who won season 5" is
another question than "who won season 2".
"""

from collections.abc import Sequence

import numpy as np

from pipeline.quality.rejects import cite, part
from pipeline.quality.similarity import similar_pairs
from pipeline.quality.text import normalise
from pipeline.records import Example, Reject

CONFLICTING_LABELS = "conflicting_labels"
EXACT_DUPLICATE = "exact_duplicate"
NEAR_DUPLICATE = "near_duplicate"


def drop_conflicting_labels(examples: Sequence[Example]) -> tuple[list[Example], list[Reject]]:
    """Reject all copies of a text that stands under more than one label; nobody knows which is right."""
    first: dict[str, dict[str, Example]] = {}
    for example in examples:
        first.setdefault(normalise(example.text), {}).setdefault(example.label, example)
    found = {}
    for position, example in enumerate(examples):
        for label, other in first[normalise(example.text)].items():
            if label != example.label:
                found[position] = (CONFLICTING_LABELS, f"{label}, {cite(other)}")
    return part(examples, found)


def drop_exact_duplicates(examples: Sequence[Example]) -> tuple[list[Example], list[Reject]]:
    """Reject every row whose normalised text stood under the same label before."""
    first: dict[tuple[str, str], Example] = {}
    found = {}
    for position, example in enumerate(examples):
        kept = first.setdefault((normalise(example.text), example.label), example)
        if kept is not example:
            found[position] = (EXACT_DUPLICATE, cite(kept))
    return part(examples, found)


def drop_near_duplicates(examples: Sequence[Example], min_similarity: float) -> tuple[list[Example], list[Reject]]:
    """Reject every row that is near an earlier kept row of the same label and the same numbers.

    Args:
        examples: The rows; an earlier one is kept over a later one.
        min_similarity: Jaccard similarity of character 3-grams. Two rows of one template with n letters, another
            word of w letters in its slot, have n / (n + 2 w): from .8 on, "learn chess" is near "learn piano" in
            templates of 40 letters, from .9 on in templates of 90.
    """
    texts = [normalise(example.text) for example in examples]
    kinds = [(example.label, _numbers(text)) for example, text in zip(examples, texts, strict=True)]
    is_kept = np.ones(len(texts), dtype=np.bool_)
    found: dict[int, tuple[str, str]] = {}
    for row, earlier, similarity in similar_pairs(texts, min_similarity, is_kept):
        if is_kept[row] and kinds[row] == kinds[earlier]:
            is_kept[row] = False
            found[row] = (NEAR_DUPLICATE, f"similarity {similarity:.3f}, {cite(examples[earlier])}")
    return part(examples, found)


def _numbers(normalised: str) -> frozenset[str]:
    return frozenset(word for word in normalised.split() if any(map(str.isdigit, word)))
