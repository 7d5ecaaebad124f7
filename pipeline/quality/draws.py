"""Fewer rows on purpose: whole groups of one data set, or of several in given shares.

Groups are drawn whole (topics, with the rows of all their labels), so a draw has the balance of labels that its groups
have, and the folds of a small draw are made as those of a large one.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import floor

from pipeline.identity import derive_seed, digest
from pipeline.quality.rejects import part
from pipeline.records import Example, Reject

BEYOND_MAX_ROWS = "beyond_max_rows"
BEYOND_LABEL_SHARE = "beyond_label_share"


def limit_rows(examples: Sequence[Example], max_rows: int, seed: int) -> tuple[list[Example], list[Reject]]:
    """Keep whole groups, in an order that depends on the seed alone, until the next one would be one row too many.

    The first group is kept whatever its size: no rows at all would be of no use. Groups stop at the first that doesn't
    fit, also where a later one would, so that of one seed a smaller draw is part of every larger one.
    """
    sizes: dict[str, int] = {}
    for example in examples:
        sizes[example.group] = sizes.get(example.group, 0) + 1
    # A hash per group rather than a generator: the order is the same whichever other groups there are.
    kept: set[str] = set()
    n_kept = 0
    for group in sorted(sizes, key=lambda group: digest([seed, group])):
        if kept and n_kept + sizes[group] > max_rows:
            break
        kept.add(group)
        n_kept += sizes[group]
    detail = f"{len(kept)} of {len(sizes)} groups kept, {n_kept} of {len(examples)} rows, for at most {max_rows}"
    beyond = enumerate(example.group not in kept for example in examples)
    return part(examples, {position: (BEYOND_MAX_ROWS, detail) for position, is_beyond in beyond if is_beyond})


def balance_labels(
    examples: Sequence[Example], shares: Mapping[str, float], seed: int
) -> tuple[list[Example], list[Reject]]:
    """Keep as many rows as leave the labels in given shares, the same rows of each label for every smaller number.

    Args:
        examples: The rows.
        shares: By label; other labels' rows are dropped.
        seed: Of the draw.
    """
    counts = Counter(example.label for example in examples)
    n_rows = min(counts[label] / share for label, share in shares.items() if share > 0)
    room = {label: floor(n_rows * share + 1e-6) for label, share in shares.items()}
    found: dict[int, tuple[str, str]] = {}
    taken: Counter[str] = Counter()
    for position in sorted(range(len(examples)), key=lambda position: digest([seed, examples[position].row_id])):
        label = examples[position].label
        if taken[label] >= room.get(label, 0):
            found[position] = (BEYOND_LABEL_SHARE, f"{room.get(label, 0)} of {counts[label]} rows of {label} kept")
        taken[label] += 1
    return part(examples, found)


def mix_rows(
    rows: Mapping[str, Sequence[Example]], shares: Mapping[str, float], max_rows: int | None, seed: int
) -> list[Example]:
    """Return rows of several data sets in given shares, as many as the scarcest of them allows.

    Args:
        rows: By the key of what they come from; each row remembers it in its id and, as `arm`, in its extras.
        shares: Of the rows to draw, by the same keys; the result has their order.
        max_rows: Rows to draw, at most; null: no further bound.
        seed: Of the draws. Groups of one name are drawn anew for each data set, so that a mix of two teachers has not
            just the same topics twice.

    Raises:
        ValueError: A data set has no rows.
    """
    if empty := [key for key in shares if not rows[key]]:
        raise ValueError(f"no rows to draw from {', '.join(empty)}")
    n_rows = min(len(rows[key]) / share for key, share in shares.items())
    if max_rows is not None:
        n_rows = min(n_rows, max_rows)
    drawn: list[Example] = []
    for place, (key, share) in enumerate(shares.items()):
        # By its place rather than its key: what one data set alone gives is then comparable with what another does.
        kept, _ = limit_rows(rows[key], floor(n_rows * share + 1e-6), derive_seed(seed, place))
        drawn += [remember_arm(example, key) for example in kept]
    return drawn


def remember_arm(example: Example, arm: str) -> Example:
    """Return a row that says which arm it comes from, in its id too: two files may hold the same row under one id."""
    return replace(example, row_id=f"{arm}:{example.row_id}", extras={**example.extras, "arm": arm})
