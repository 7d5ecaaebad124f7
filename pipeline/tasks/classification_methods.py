"""The methods that write classification data, and which documents and demonstrations each of their prompts gets.

After SynthesizRR (arXiv 2405.10040; `expt/driver.py` and `expt/generation.py` of its code). Departures, each for a
reason: demonstrations are drawn by seed (the source's are not reproducible), never from the very document that is
asked about, and a document that several seeds retrieve may be kept for the nearest of them alone.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipeline.config import Config
from pipeline.errors import SourceError
from pipeline.identity import derive_seed, digest
from pipeline.records import Passage, Seed
from pipeline.retrieval.windows import AbsoluteWindow, AnyWindow, PercentileWindow, select
from pipeline.tasks.task import MethodConfig, Retrieved


class RankRange(Config):
    """Ranks of retrieved documents, both included; they start at 1."""

    first: int = Field(gt=0)
    last: int = Field(gt=0)

    @model_validator(mode="after")
    def _check_order(self) -> "RankRange":
        if self.first > self.last:
            raise ValueError(f"first={self.first} is above last={self.last}; nothing would be kept")
        return self

    @property
    def ranks(self) -> range:
        """The ranks."""
        return range(self.first, self.last + 1)


class SynthesisConfig(MethodConfig):
    """What all methods here have in common."""

    shots: int = Field(ge=0)
    """Demonstrations in a prompt, all of the label that is asked for."""
    rows_per_label: int = Field(gt=0)
    """Prompts for each label, at most."""
    truncated: Literal["reject", "trim", "keep"]
    """What becomes of a reply that was cut off: `trim` takes it back to its last whole sentence, `keep` leaves it."""


class FromDocumentsConfig(SynthesisConfig):
    """What the methods that ask about retrieved documents have in common."""

    query: Literal["seed_text", "label_and_seed_text"]
    """What documents are retrieved by."""
    synthesis_ranks: RankRange
    """Ranks of the documents that are asked about."""
    synthesis_window: AnyWindow
    """Their similarity to the seed."""
    shared_documents: Literal["nearest", "all"]
    """Whether a document that several seeds retrieve is the nearest one's alone; it may have only one label then."""

    @property
    def n_passages(self) -> int:
        """The last rank that is looked at."""
        return self.synthesis_ranks.last


class RetrIclConfig(FromDocumentsConfig):
    """A document, after demonstrations of (another document, the seed's text that it was retrieved for)."""

    name: Literal["retricl"]
    demonstration_ranks: RankRange
    demonstration_window: AnyWindow

    @model_validator(mode="after")
    def _check_ranks(self) -> "RetrIclConfig":
        if shared := {*self.demonstration_ranks.ranks} & {*self.synthesis_ranks.ranks}:
            raise ValueError(
                f"ranks {sorted(shared)} are both demonstration_ranks and synthesis_ranks; a document is shown with "
                "its seed's text, or asked about, never both"
            )
        return self

    @property
    def n_passages(self) -> int:
        """The last rank that is looked at."""
        return max(self.synthesis_ranks.last, self.demonstration_ranks.last)


class NonRetrIclConfig(FromDocumentsConfig):
    """A document, after demonstrations of bare seed texts."""

    name: Literal["nonretricl"]


class FewGenConfig(SynthesisConfig):
    """No document, after demonstrations of bare seed texts."""

    name: Literal["fewgen"]


class AttributedConfig(SynthesisConfig):
    """No document; attributes drawn for each prompt ask for variety (AttrPrompt, arXiv 2306.15895)."""

    name: Literal["attributed"]
    attributes: dict[str, Annotated[list[str], Field(min_length=1)]] = Field(min_length=1)
    """By dimension the values that one is drawn from; a label's own subtopics, in the task's file, are one more."""


AnySynthesisConfig = RetrIclConfig | NonRetrIclConfig | FewGenConfig | AttributedConfig


@dataclass(frozen=True)
class Demonstration:
    """A text of the seeds, and the document that it may have been written from."""

    text: str
    passage: Passage | None = None


@dataclass(frozen=True)
class Assignment:
    """What one prompt is about."""

    seed: Seed
    passage: Passage | None = None
    attributes: Mapping[str, str] = field(default_factory=dict)

    @property
    def row_key(self) -> str:
        """What the prompt's random draws depend on, besides the run's seed."""
        return digest([self.seed.seed_id, self.passage.passage_id if self.passage else ""])


def assign(
    seeds: Sequence[Seed],
    retrieved: Retrieved,
    method: AnySynthesisConfig,
    subtopics: Mapping[str, Sequence[str]],
    run_seed: int,
) -> list[tuple[Assignment, list[Demonstration]]]:
    """Return what each prompt is about, with its demonstrations: at most `rows_per_label` for each label of the seeds.

    Args:
        seeds: Labelled examples.
        retrieved: What was found for each of them.
        method: How to choose.
        subtopics: By label, for attributed prompts.
        run_seed: Of all draws.

    Raises:
        SourceError: A label is left without anything to ask about, or without the demonstrations it needs.
    """
    labels = list(dict.fromkeys(seed.label for seed in seeds))
    if isinstance(method, FromDocumentsConfig):
        chosen = _choose_documents(seeds, retrieved, method)
    else:
        chosen = [
            Assignment(
                Seed(digest([method.name, label, number]), "", digest([method.name, label, number]), label),
                attributes=_draw_attributes(method, subtopics.get(label, ()), run_seed, label, number),
            )
            for label in labels
            for number in range(method.rows_per_label)
        ]
    pools = _pool_demonstrations(seeds, retrieved, method)
    assigned = []
    for label in labels:
        own = [assignment for assignment in chosen if assignment.seed.label == label]
        if not own:
            raise SourceError(_describe_nothing(label, seeds, retrieved))
        if method.shots and not pools.get(label):
            raise SourceError(
                f"label {label!r}: no demonstrations, {method.shots} were wanted; widen method.demonstration_window or "
                "demonstration_ranks, or give more seeds"
            )
        kept = sorted(own, key=lambda one: digest([run_seed, one.row_key]))[: method.rows_per_label]
        assigned += [
            (one, draw_demonstrations(pools.get(label, []), method.shots, one, run_seed))
            for one in sorted(kept, key=lambda one: one.row_key)
        ]
    return assigned


def draw_demonstrations(
    pool: Sequence[Demonstration], shots: int, assignment: Assignment, run_seed: int
) -> list[Demonstration]:
    """Return distinct demonstrations for one prompt, the same each time; fewer where the pool has no more.

    Args:
        pool: What to draw from, in an order that does not change.
        shots: How many.
        assignment: What the prompt is about.
        run_seed: Of the draw.
    """
    asked = assignment.passage.passage_id if assignment.passage else None
    others = [one for one in pool if one.passage is None or one.passage.passage_id != asked]
    generator = random.Random(derive_seed(run_seed, "demonstrations", assignment.row_key))
    return generator.sample(others, min(shots, len(others)))


def _choose_documents(seeds: Sequence[Seed], retrieved: Retrieved, method: FromDocumentsConfig) -> list[Assignment]:
    window = fit_window(method.synthesis_window, retrieved, method.synthesis_ranks)
    found = [
        Assignment(seed, passage)
        for seed in seeds
        for passage in select(retrieved.get(seed.seed_id, ()), window, method.synthesis_ranks.ranks)
    ]
    if method.shared_documents == "all":
        return found
    nearest: dict[str, Assignment] = {}
    for one in found:
        assert one.passage is not None
        other = nearest.get(one.passage.passage_id)
        if other is None or _order_nearness(one) < _order_nearness(other):
            nearest[one.passage.passage_id] = one
    return list(nearest.values())


def _order_nearness(assignment: Assignment) -> tuple[float, str]:
    assert assignment.passage is not None
    return -assignment.passage.score, assignment.seed.seed_id


def _pool_demonstrations(
    seeds: Sequence[Seed], retrieved: Retrieved, method: AnySynthesisConfig
) -> dict[str, list[Demonstration]]:
    pools: dict[str, list[Demonstration]] = {}
    window = None
    if isinstance(method, RetrIclConfig) and method.shots:
        window = fit_window(method.demonstration_window, retrieved, method.demonstration_ranks)
    for seed in seeds:
        pool = pools.setdefault(seed.label, [])
        if not isinstance(method, RetrIclConfig):
            pool.append(Demonstration(seed.text))
        elif window is not None:
            passages = select(retrieved.get(seed.seed_id, ()), window, method.demonstration_ranks.ranks)
            pool += [Demonstration(seed.text, passage) for passage in passages]
    # In an order of their own, so that no draw depends on that of the seeds' file.
    return {label: sorted(pool, key=_order_demonstrations) for label, pool in pools.items()}


def _order_demonstrations(demonstration: Demonstration) -> tuple[str, str]:
    return demonstration.text, demonstration.passage.passage_id if demonstration.passage else ""


def fit_window(window: AnyWindow, retrieved: Retrieved, ranks: RankRange) -> AbsoluteWindow:
    """Return a window on the scale of cosines; percentiles are taken over all seeds' passages of these ranks.

    Raises:
        SourceError: Nothing was retrieved to take percentiles of.
    """
    if not isinstance(window, PercentileWindow):
        return window
    scores = [passage.score for passages in retrieved.values() for passage in passages if passage.rank in ranks.ranks]
    if not scores:
        raise SourceError("nothing was retrieved for the seeds, so percentiles have no scale; check the corpus")
    return window.fit(scores)


def _draw_attributes(
    method: FewGenConfig | AttributedConfig, subtopics: Sequence[str], run_seed: int, label: str, number: int
) -> dict[str, str]:
    if not isinstance(method, AttributedConfig):
        return {}
    dimensions = {**method.attributes, **({"subtopic": list(subtopics)} if subtopics else {})}
    return {
        name: random.Random(derive_seed(run_seed, "attributes", label, number, name)).choice(values)
        for name, values in dimensions.items()
    }


def _describe_nothing(label: str, seeds: Sequence[Seed], retrieved: Retrieved) -> str:
    own = [seed for seed in seeds if seed.label == label]
    scores = sorted(passage.score for seed in own for passage in retrieved.get(seed.seed_id, ()))
    found = f"similarities are {scores[0]:.3f} to {scores[-1]:.3f}" if scores else "nothing was retrieved"
    return (
        f"label {label!r}: none of the documents retrieved for its {len(own)} seeds is among method.synthesis_ranks "
        f"and in method.synthesis_window ({found}); widen them, or give a corpus that is nearer to the task"
    )
