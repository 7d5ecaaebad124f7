"""Rows that were copied rather than written: from the document they are about, or from a seed that was shown.

A copy of a seed teaches nothing that the seed doesn't; a copy of the document was never brought into the task's manner.
"""

from collections.abc import Mapping, Sequence

from pydantic import Field

from pipeline.config import Config
from pipeline.quality.rejects import part
from pipeline.quality.text import normalise
from pipeline.records import Example, Reject

COPIED_PASSAGE = "copied_from_passage"
COPIED_SEED = "copied_from_seed"
PASSAGE = "passage_text"
"""The extra column that holds a row's document."""


class CopyingConfig(Config):
    """How much of a row may be copied."""

    n: int = Field(gt=0)
    """Words in a row that count as copied where they stand in the source likewise."""
    max_passage_share: float | None = Field(ge=0, le=1)
    """Share of a row's word n-grams that may stand in its document; null: any."""
    max_seed_share: float | None = Field(ge=0, le=1)
    """Likewise in a seed of its label; a row that holds a whole seed is dropped whatever this is; null: any."""


def measure_copied(text: str, source: str, n: int) -> float:
    """Return the share of a text's word n-grams that stand in a source; of a shorter text, whether all of it does.

    Args:
        text: Normalised (`quality/text.py`).
        source: Likewise.
        n: Words.
    """
    return _measure(text.split(), _count_grams(source.split(), n), source, n)


def drop_copied(
    examples: Sequence[Example], seeds: Mapping[str, Sequence[str]], config: CopyingConfig
) -> tuple[list[Example], list[Reject]]:
    """Reject rows that copy their document (an extra column, `passage_text`) or a seed.

    Args:
        examples: The rows.
        seeds: The seeds' texts by label: what demonstrations are drawn from.
        config: The bounds.
    """
    found: dict[int, tuple[str, str]] = {}
    by_label = {
        label: [(text, source, _count_grams(source.split(), config.n)) for text in texts if (source := normalise(text))]
        for label, texts in seeds.items()
    }
    for position, example in enumerate(examples):
        text = normalise(example.text)
        words = text.split()
        if config.max_seed_share is not None:
            for seed, source, grams in by_label.get(example.label, ()):
                share = 1.0 if _holds(text, source) else _measure(words, grams, source, config.n)
                if share > config.max_seed_share or share == 1.0:
                    found[position] = (COPIED_SEED, f"share {share:.3f}, {seed}")
                    break
        passage = normalise(example.extras.get(PASSAGE, ""))
        if position not in found and config.max_passage_share is not None and passage:
            share = measure_copied(text, passage, config.n)
            if share > config.max_passage_share:
                found[position] = (COPIED_PASSAGE, f"share {share:.3f}, {example.extras[PASSAGE][:200]}")
    return part(examples, found)


def _measure(words: Sequence[str], grams: frozenset[tuple[str, ...]], source: str, n: int) -> float:
    if len(words) < n:
        return float(_holds(source, " ".join(words)))
    own = [tuple(words[start : start + n]) for start in range(len(words) - n + 1)]
    return sum(gram in grams for gram in own) / len(own)


def _count_grams(words: Sequence[str], n: int) -> frozenset[tuple[str, ...]]:
    return frozenset(tuple(words[start : start + n]) for start in range(len(words) - n + 1))


def _holds(text: str, part: str) -> bool:
    """Return whether a text holds another as whole words."""
    return f" {part} " in f" {text} "
