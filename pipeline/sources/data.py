"""The configuration group `data`: where the topics or the labelled rows of an arm come from."""

import logging
from dataclasses import replace
from typing import Literal

from pydantic import Field, field_validator

from pipeline.config import Config
from pipeline.errors import SourceError
from pipeline.records import Example, Seed
from pipeline.sources.ambignq import Rule, read_ambignq_train
from pipeline.sources.cutting import Cutter, CuttingConfig, pin_tokenizer
from pipeline.sources.labelled import RowsConfig, draw, read_labelled
from pipeline.sources.tables import locate
from pipeline.sources.topics import read_topics

LOG = logging.getLogger(__name__)


class DataConfig(Config):
    """What all data have in common."""

    root: str | None
    """Folder or URL that relative paths count from; null: the experiment's `data.root`, else the working directory."""


class TopicsConfig(DataConfig):
    """Topics for a teacher; see `read_topics`."""

    kind: Literal["topics"]
    path: str
    column: str
    """The table's column; not used for a `.txt`."""
    limit: int | None = Field(gt=0)
    """How many topics to take from the top of the file; null: all."""

    @property
    def paths(self) -> list[str]:
        """Where the file is."""
        return [self.path]


class SeedsConfig(DataConfig, RowsConfig):
    """Labelled rows for a teacher to start from; what it writes has its seed's label."""

    kind: Literal["seeds"]
    cutting: CuttingConfig
    """How long a seed may be."""

    @field_validator("cutting")
    @classmethod
    def _check_cutting(cls, cutting: CuttingConfig) -> CuttingConfig:
        if cutting.keep != "first":
            raise ValueError("a seed is one text; set keep to first")
        return cutting


class LabelledConfig(DataConfig, RowsConfig):
    """Rows that need no teacher."""

    kind: Literal["labelled"]
    origin: Literal["teacher", "human"]
    """Who wrote the rows; the length rule's threshold comes from teachers' rows alone."""


class AmbigNQTrainConfig(DataConfig):
    """The 10,036 questions of AmbigNQ train that people labelled."""

    kind: Literal["ambignq_train"]
    rule: Rule
    limit: int | None = Field(gt=0)
    """How many rows to draw at random; null: all."""
    seed: int
    """Of the draw."""


class MixConfig(Config):
    """Rows that other arms keep, in given shares; the teachers are those arms', and are asked nothing more."""

    kind: Literal["mix"]
    shares: dict[str, float] = Field(min_length=1)
    """Of the rows, by arm; together 1. Where two rows repeat each other, that of the arm named first stays."""
    seed: int
    """Of the draw."""

    @property
    def sources(self) -> tuple[str, ...]:
        """The arms whose rows these are."""
        return tuple(self.shares)

    @field_validator("shares")
    @classmethod
    def _check_shares(cls, shares: dict[str, float]) -> dict[str, float]:
        if too_small := [key for key, share in shares.items() if not share > 0]:
            raise ValueError(f"every share is more than 0; leave out {', '.join(too_small)}")
        if abs(sum(shares.values()) - 1) > 1e-6:
            raise ValueError(f"shares sum to {sum(shares.values()):g}; they must sum to 1")
        return shares


class JoinConfig(Config):
    """All rows that other arms keep."""

    kind: Literal["join"]
    arms: tuple[str, ...] = Field(min_length=2)
    """Where two rows repeat each other, that of the arm named first stays."""

    @property
    def sources(self) -> tuple[str, ...]:
        """The arms whose rows these are."""
        return self.arms


class ThreadsConfig(Config):
    """Training questions of the task's communities; see `read_communities`."""

    limit: int | None = Field(gt=0)
    """How many, from the first; null: all. Arms of one limit have the same questions."""


class QuestionsConfig(ThreadsConfig):
    """The questions alone, for a teacher to answer."""

    kind: Literal["questions"]


class AcceptedAnswersConfig(ThreadsConfig):
    """The questions with the answers that people accepted."""

    kind: Literal["accepted_answers"]


class AnswersConfig(ThreadsConfig, DataConfig):
    """Answers that were written elsewhere; see `read_answers`."""

    kind: Literal["answers"]
    path: str
    """TSV, CSV, JSONL (each also `.gz`) or Parquet, a row an answer."""
    where: dict[str, str]
    """Rows alone whose columns have these values."""
    question_id: str
    """Column with the question's id."""
    answer: str
    """Column with the answer: a text, or a list of one `generated_text`, as Hugging Face's text generation leaves."""
    question: list[str] | None
    """Columns that together are the question, where the communities don't have it; null: such answers are left out."""

    @property
    def paths(self) -> list[str]:
        """Where the file is."""
        return [self.path]


AnyDataConfig = (
    TopicsConfig
    | SeedsConfig
    | LabelledConfig
    | AmbigNQTrainConfig
    | QuestionsConfig
    | AcceptedAnswersConfig
    | AnswersConfig
    | MixConfig
    | JoinConfig
)
SeedData = (TopicsConfig, SeedsConfig, QuestionsConfig)
"""What a teacher starts from; all other data are rows already."""


def read_seeds(config: TopicsConfig | SeedsConfig, data_root: str | None) -> list[Seed]:
    """Return the seeds that a config asks for; `data_root` is the experiment's.

    Raises:
        SourceError: A file is missing, empty or broken, or no seed is left.
        ConfigError: The tokenizer that seeds are cut by is missing.
    """
    if isinstance(config, TopicsConfig):
        return _read_all_topics(config, data_root)[: config.limit]
    rows = read_labelled(config, config.root or data_root)
    seeds = [Seed(seed_id=row.row_id, text=row.text, group=row.group, label=row.label) for row in rows]
    return _cut_seeds(seeds, config.cutting)


def read_spare_topics(config: TopicsConfig, data_root: str | None) -> list[Seed]:
    """Return the topics of the file that its limit leaves out; `data_root` is the experiment's.

    Raises:
        SourceError: The file is missing, empty or broken.
    """
    return _read_all_topics(config, data_root)[config.limit :] if config.limit is not None else []


def _read_all_topics(config: TopicsConfig, data_root: str | None) -> list[Seed]:
    root = config.root or data_root
    return read_topics(config.path if root is None else locate(root, config.path), config.column)


def read_examples(config: LabelledConfig | AmbigNQTrainConfig, data_root: str | None) -> list[Example]:
    """Return the labelled rows that a config asks for; `data_root` is the experiment's.

    Raises:
        SourceError: A file is missing, empty, broken, or not the one it should be.
    """
    root = config.root or data_root
    if isinstance(config, LabelledConfig):
        return read_labelled(config, root)
    return draw(read_ambignq_train(require_root(root, "AmbigNQ train"), config.rule), config.limit, config.seed)


def require_root(root: str | None, what: str) -> str:
    """Return the root.

    Raises:
        SourceError: There is none; names what is looked for.
    """
    if root is None:
        raise SourceError(f"{what} is looked for under data.root, which is not set; add data.root=<absolute path>")
    return root


def _cut_seeds(seeds: list[Seed], cutting: CuttingConfig) -> list[Seed]:
    cuts = Cutter(cutting, pin_tokenizer(cutting)).cut_all([seed.text for seed in seeds])
    kept = [replace(seed, text=cut.pieces[0]) for seed, cut in zip(seeds, cuts, strict=True) if cut.pieces]
    if not kept:
        raise SourceError(f"all {len(seeds):,} seeds have fewer than {cutting.min_tokens} tokens (cutting.min_tokens)")
    if n_short := len(seeds) - len(kept):
        LOG.info("%d of %d seeds have fewer than %d tokens and are left out", n_short, len(seeds), cutting.min_tokens)
    return kept
