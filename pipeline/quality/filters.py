"""The filters of a data set, in the one order they run in.

Conflicts come before duplicates, because all copies of a text must be seen; length matching and the labels' balance
come after what would unbalance them again. The limit of rows comes last: it counts rows that are good, and takes whole
groups of them.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field, field_validator

from pipeline.config import Config
from pipeline.errors import SourceError
from pipeline.quality.copying import CopyingConfig, drop_copied
from pipeline.quality.draws import balance_labels, limit_rows
from pipeline.quality.duplicates import drop_conflicting_labels, drop_exact_duplicates, drop_near_duplicates
from pipeline.quality.leakage import Overlap, drop_leaked
from pipeline.quality.lengths import match_lengths
from pipeline.records import Example, GoldItem, Reject


class FiltersConfig(Config):
    """Which filters run, and how strictly."""

    drop_conflicting_labels: bool
    drop_exact_duplicates: bool
    near_duplicate_similarity: float | None = Field(gt=0, le=1)
    """Jaccard similarity from which on the later of two rows of one label is dropped; null keeps them."""
    copying: CopyingConfig | None
    """Null: rows may repeat their document, or a seed."""
    leak_similarity: float = Field(gt=0, le=1)
    """Jaccard similarity from which on a row counts as a benchmark's test item."""
    max_leaked_share: float = Field(ge=0, le=1)
    """The run stops when more than this share of the rows repeats test items."""
    length_matched: bool
    """Whether rows are dropped until all labels have the same distribution of word counts."""
    label_shares: dict[str, Annotated[float, Field(gt=0)]] | None
    """Share of the rows by label, as in gold; rows are dropped until it is so. Null: as the rows come."""
    max_rows: int | None = Field(gt=0)
    """Of the rows that pass all other filters at most so many are kept, in whole groups; null: all."""

    @field_validator("label_shares")
    @classmethod
    def _check_shares(cls, shares: dict[str, float] | None) -> dict[str, float] | None:
        if shares is not None and abs(sum(shares.values()) - 1) > 1e-6:
            raise ValueError(f"shares sum to {sum(shares.values()):g}; they must sum to 1")
        return shares


@dataclass(frozen=True, slots=True)
class Filtered:
    """What the filters made of the rows: each one is in `kept` or in `rejects`."""

    kept: list[Example]
    rejects: list[Reject]
    leaked: dict[str, Overlap]
    """The overlap with each benchmark, by its name."""


def apply_filters(
    examples: Sequence[Example],
    config: FiltersConfig,
    gold_items: Mapping[str, Sequence[GoldItem]],
    seed: int,
    seeds: Mapping[str, Sequence[str]] | None = None,
    min_labels: int = 2,
) -> Filtered:
    """Return the rows that pass all filters, and a reject for each of the others.

    Args:
        examples: The rows.
        config: The filters.
        gold_items: Each benchmark's items, by its name.
        seed: Of draws.
        seeds: By label the texts that a teacher was shown.
        min_labels: Labels that must be left; rows that have none count as of one.

    Raises:
        LeakageError: Too many rows repeat benchmark items.
        SourceError: Rows of fewer labels are left, so no student can be trained.
    """
    kept, rejects = list(examples), []
    if config.drop_conflicting_labels:
        kept, found = drop_conflicting_labels(kept)
        rejects += found
    if config.drop_exact_duplicates:
        kept, found = drop_exact_duplicates(kept)
        rejects += found
    if config.near_duplicate_similarity is not None:
        kept, found = drop_near_duplicates(kept, config.near_duplicate_similarity)
        rejects += found
    if config.copying is not None:
        kept, found = drop_copied(kept, seeds or {}, config.copying)
        rejects += found
    kept, found, leaked = drop_leaked(kept, gold_items, config.leak_similarity, config.max_leaked_share)
    rejects += found
    if config.length_matched:
        kept, found = match_lengths(kept, seed)
        rejects += found
    if config.label_shares is not None:
        kept, found = balance_labels(kept, config.label_shares, seed)
        rejects += found
    if config.max_rows is not None:
        kept, found = limit_rows(kept, config.max_rows, seed)
        rejects += found
    if len({example.label for example in kept}) < min_labels:
        raise SourceError(_describe(examples, kept, rejects, min_labels))
    return Filtered(kept, rejects, leaked)


def _describe(examples: Sequence[Example], kept: Sequence[Example], rejects: Sequence[Reject], min_labels: int) -> str:
    needed = ", and a classifier needs rows of two labels" if min_labels > 1 else ""
    given = Counter(example.label for example in examples)
    left = Counter(example.label for example in kept)
    by_reason = Counter(reject.reason for reject in rejects)
    return (
        f"{len(kept)} of {len(examples)} rows are left after filtering{needed}.\n"
        f"  labels given: {_list(given)}; left: {_list(left)}; rejected: {_list(by_reason)}\n"
        "Check the label column and its mapping, give more rows, or loosen the filters"
    )


def _list(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {n}" for name, n in sorted(counts.items())) or "none"
