"""The configuration group `corpus`: which documents there are to retrieve from."""

import codecs
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from pipeline.config import Config
from pipeline.sources.cleaning import CleaningConfig
from pipeline.sources.corpus_formats import CorpusColumns, TextUnit
from pipeline.sources.cutting import CuttingConfig
from pipeline.sources.published import DomainSelection
from pipeline.sources.shares import ShareConfig
from pipeline.sources.stackexchange import PostSelection, Wanted


class CorpusConfig(Config):
    """What all corpora have in common."""

    cleaning: CleaningConfig
    cutting: CuttingConfig
    ids: Literal["content", "own"]
    """Whether a document is named by its text, so that equal ones are one, or by its source."""
    near_duplicates: float | None = Field(gt=0, le=1)
    """Jaccard similarity of word 5-grams from which a later document is dropped; null: only exact copies are."""
    max_broken_share: float = Field(ge=0, le=1)
    """Share of the lines that may be broken; more of them end the run."""
    share: ShareConfig | None
    """Documents outside of it are left out; null: none are. Its column is one of the documents' extras."""
    limit: int | None = Field(gt=0)
    """How many documents to take, in the files' order; null: all."""
    shard_documents: int = Field(gt=0)
    """Documents of one shard at most; what a worker holds in memory grows with it."""

    @property
    def has_own_ids(self) -> bool:
        """Whether the source names its documents."""
        return True

    @model_validator(mode="after")
    def _check_ids(self) -> "CorpusConfig":
        if self.ids == "own" and not self.has_own_ids:
            raise ValueError("ids is 'own', but this source names no documents; name a column of ids, or use 'content'")
        return self


class FilesConfig(CorpusConfig):
    """A corpus in files."""

    root: str | None
    """Folder or URL that relative paths count from; null: the run's `data.root`, else the working directory."""
    paths: list[str] = Field(min_length=1)
    """Patterns: `*`, `?` and `[…]` stand for parts of a name, `**` for any folders. Each must find a file."""


class TextFilesConfig(FilesConfig):
    """A corpus in files of text, each of which may be a `.gz`."""

    fallback_encoding: str | None
    """How lines that are not UTF-8 are read; null: they are broken."""

    @field_validator("fallback_encoding")
    @classmethod
    def _check_encoding(cls, name: str | None) -> str | None:
        try:
            is_usable = name is None or codecs.encode("a\n", name) == b"a\n"
        except (LookupError, TypeError, ValueError):
            is_usable = False
        if not is_usable:
            raise ValueError("no encoding whose lines end like ASCII's; known are latin-1, cp1252 and such")
        return name


class TableConfig(CorpusConfig):
    """A corpus with columns."""

    columns: CorpusColumns

    @property
    def has_own_ids(self) -> bool:
        """Whether a column holds ids."""
        return self.columns.id is not None

    @model_validator(mode="after")
    def _check_share(self) -> "TableConfig":
        if self.share is not None and self.share.column not in self.columns.extras:
            found = ", ".join(self.columns.extras) or "none"
            raise ValueError(f"share.column {self.share.column!r} must be one of columns.extras, which has {found}")
        return self


class JsonlConfig(TableConfig, TextFilesConfig):
    """A JSON object a line."""

    kind: Literal["jsonl"]


class TsvConfig(TableConfig, TextFilesConfig):
    """Fields between tabs; quotes are characters."""

    kind: Literal["tsv"]
    names: list[str] | None
    """The columns' names, for files without a header; null: the first line holds them."""


class CsvConfig(TableConfig, TextFilesConfig):
    """Fields between commas, in double quotes where need be."""

    kind: Literal["csv"]
    names: list[str] | None
    """As in TSV."""


class ParquetConfig(TableConfig, FilesConfig):
    """A row a document."""

    kind: Literal["parquet"]


class HubConfig(TableConfig):
    """A data set of the Hugging Face hub, streamed, or a folder in its layout."""

    kind: Literal["hub"]
    name: str
    """As in `allenai/c4`, or a folder."""
    config_name: str | None
    """The data set's own word for one of its variants; null: it has only one."""
    split: str
    revision: str | None
    """Branch, tag or commit; null: the newest."""


class TextConfig(TextFilesConfig):
    """Plain text."""

    kind: Literal["text"]
    unit: TextUnit

    @property
    def has_own_ids(self) -> bool:
        """Plain text has no ids."""
        return False


class AgNewsConfig(TextFilesConfig):
    """AG News in its official form."""

    kind: Literal["ag_news"]

    @property
    def has_own_ids(self) -> bool:
        """AG News has no ids."""
        return False


class Newsgroups20Config(TextFilesConfig):
    """20 Newsgroups: a folder per group, a file per message."""

    kind: Literal["newsgroups20"]


class AmazonReviewsConfig(TextFilesConfig):
    """The Amazon review data: 2014, 2018, 2023."""

    kind: Literal["amazon_reviews"]


class AmazonProductsConfig(TextFilesConfig):
    """Amazon's product metadata of 2018."""

    kind: Literal["amazon_products"]


class RealNewsConfig(TextFilesConfig):
    """RealNews, by where its news sites are."""

    kind: Literal["realnews"]
    domains: DomainSelection
    india_list: str | None
    """Path or URL of a text file with a domain a line; null: our own list of well-known Indian news sites."""
    regional_list: str | None
    """Likewise for news sites outside the United States and Britain; those of India need not be named again."""

    @field_validator("india_list", "regional_list")
    @classmethod
    def _check_absolute(cls, path: str | None) -> str | None:
        if path is not None and "://" not in path and not Path(path).is_absolute():
            raise ValueError("no absolute path or URL; workers read it from folders of their own")
        return path


class PostsConfig(FilesConfig):
    """Posts of Stack Exchange."""

    posts: PostSelection
    min_score: int | None
    """Posts with a lower score are left out; null: none are."""

    @property
    def wanted(self) -> Wanted:
        """Which posts are documents."""
        return Wanted(self.posts, self.min_score)


class StackExchangePostsConfig(PostsConfig):
    """`Posts.xml` of the raw dumps."""

    kind: Literal["stackexchange_posts"]
    site: str | None
    """The site's short name, the first part of its posts' ids; null: each file's folder says it."""


class StackExchangeJsonlConfig(PostsConfig, TextFilesConfig):
    """Posts as one JSON object a line."""

    kind: Literal["stackexchange_jsonl"]


class SePqaConfig(PostsConfig, TextFilesConfig):
    """`questions.csv` and `answers.csv` of SE-PQA."""

    kind: Literal["se_pqa"]


_Part = (
    JsonlConfig
    | TsvConfig
    | CsvConfig
    | ParquetConfig
    | HubConfig
    | TextConfig
    | AgNewsConfig
    | Newsgroups20Config
    | AmazonReviewsConfig
    | AmazonProductsConfig
    | RealNewsConfig
    | StackExchangePostsConfig
    | StackExchangeJsonlConfig
    | SePqaConfig
)
AnyPartConfig = Annotated[_Part, Field(discriminator="kind")]
"""The union of the configurations of all corpora that lie in one place and form."""


class CombinedConfig(Config):
    """Several corpora as one. Each is read, cleaned, cut and shared out in its own way; the rest is decided here."""

    kind: Literal["combined"]
    parts: dict[str, AnyPartConfig] = Field(min_length=1)
    """By name, in the order in which an earlier document stays of two that repeat each other."""
    ids: Literal["content", "own"]
    """As in each part."""
    near_duplicates: float | None = Field(gt=0, le=1)
    """As in `CorpusConfig`, over all parts."""
    limit: int | None = Field(gt=0)
    """How many documents to take, in the parts' order; null: all."""

    @model_validator(mode="after")
    def _check_parts(self) -> "CombinedConfig":
        for name, part in self.parts.items():
            if part.limit is not None or part.near_duplicates is not None:
                raise ValueError(f"parts.{name}: the whole has limit and near_duplicates; set them to null here")
            if part.ids != self.ids:
                raise ValueError(f"parts.{name}.ids is {part.ids!r}, of the whole {self.ids!r}; give both the same")
        return self


AnyCorpusConfig = Annotated[_Part | CombinedConfig, Field(discriminator="kind")]
"""The union of all corpora's configurations."""


def get_parts(config: AnyCorpusConfig) -> dict[str, AnyPartConfig]:
    """Return what is read each by itself, by its path in the corpus's configuration."""
    if isinstance(config, CombinedConfig):
        return {f".parts.{name}": part for name, part in config.parts.items()}
    return {"": config}
