"""The configuration group `data`: which file the topics or the labelled rows of an arm come from."""

from typing import Annotated, Literal

from pydantic import Field

from pipeline.config import Config
from pipeline.errors import SourceError
from pipeline.records import Example, Seed
from pipeline.sources.ambignq import Rule, read_ambignq_train
from pipeline.sources.labelled import Columns, draw, read_labelled
from pipeline.sources.tables import locate
from pipeline.sources.topics import read_topics


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


class LabelledConfig(DataConfig):
    """Rows that need no teacher; see `read_labelled`."""

    kind: Literal["labelled"]
    path: str
    columns: Columns
    labels: dict[str, str] = Field(min_length=1)
    """Class of each value in the label column; every spelling counts (`"1"`, `"1.0"`), so that none is guessed."""
    origin: Literal["teacher", "human"]
    """Who wrote the rows; the length rule's threshold comes from teachers' rows alone."""
    limit: int | None = Field(gt=0)
    """How many rows to draw at random; null: all."""
    seed: int
    """Of the draw."""


class AmbigNQTrainConfig(DataConfig):
    """The 10,036 questions of AmbigNQ train that people labelled."""

    kind: Literal["ambignq_train"]
    rule: Rule
    limit: int | None = Field(gt=0)
    """How many rows to draw at random; null: all."""
    seed: int
    """Of the draw."""


AnyDataConfig = Annotated[TopicsConfig | LabelledConfig | AmbigNQTrainConfig, Field(discriminator="kind")]


def read_seeds(config: TopicsConfig, data_root: str | None) -> list[Seed]:
    """Return the topics that a config asks for; `data_root` is the experiment's.

    Raises:
        SourceError: The file is missing, empty or broken.
    """
    return read_topics(_find_file(config.root or data_root, config.path), config.column, config.limit)


def read_examples(config: LabelledConfig | AmbigNQTrainConfig, data_root: str | None) -> list[Example]:
    """Return the labelled rows that a config asks for; `data_root` is the experiment's.

    Raises:
        SourceError: A file is missing, empty, broken, or not the one it should be.
    """
    root = config.root or data_root
    if isinstance(config, AmbigNQTrainConfig):
        examples = read_ambignq_train(require_root(root, "AmbigNQ train"), config.rule)
    else:
        examples = read_labelled(_find_file(root, config.path), config.columns, config.labels)
    return draw(examples, config.limit, config.seed)


def require_root(root: str | None, what: str) -> str:
    """Return the root.

    Raises:
        SourceError: There is none; names what is looked for.
    """
    if root is None:
        raise SourceError(f"{what} is looked for under data.root, which is not set; add data.root=<absolute path>")
    return root


def _find_file(root: str | None, path: str) -> str:
    return path if root is None else locate(root, path)
