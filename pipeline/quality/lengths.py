"""The length shortcut: teachers write ambiguous queries shorter than clear ones, and a student may learn just that.

Length is counted in whitespace words, as in every figure published for this task.
"""

import random
from collections.abc import Sequence

from pipeline.identity import derive_seed
from pipeline.quality.rejects import part
from pipeline.records import Example, Reject

LENGTH_UNMATCHED = "length_unmatched"


def count_words(example: Example) -> int:
    """Return a row's number of whitespace words."""
    return len(example.text.split())


def length_auroc(examples: Sequence[Example], positive: str | None) -> float | None:
    """Return the AUROC of "fewer words, so positive"; None unless there are rows with and without that label.

    .5 means that length tells nothing, 1 that every positive row is shorter than every other.
    """
    from sklearn.metrics import roc_auc_score

    is_positive = [example.label == positive for example in examples]
    if len(set(is_positive)) < 2:
        return None
    return float(roc_auc_score(is_positive, [-count_words(example) for example in examples]))


def match_lengths(examples: Sequence[Example], seed: int) -> tuple[list[Example], list[Reject]]:
    """Keep, of each word count, as many rows per label as the label with the fewest has, drawn by seed.

    All labels then have the same distribution of word counts, and a length AUROC of .5.
    """
    by_length: dict[int, dict[str, list[int]]] = {}
    for position, example in enumerate(examples):
        by_length.setdefault(count_words(example), {}).setdefault(example.label, []).append(position)
    labels = {example.label for example in examples}
    found = {}
    for n_words, by_label in by_length.items():
        n_kept = min(len(by_label.get(label, ())) for label in labels)
        for label, positions in by_label.items():
            draw = random.Random(derive_seed(seed, LENGTH_UNMATCHED, n_words, label))
            for position in set(positions) - set(draw.sample(positions, n_kept)):
                detail = f"{len(positions)} rows of {n_words} words under {label!r}, kept {n_kept}"
                found[position] = (LENGTH_UNMATCHED, detail)
    return part(examples, found)
