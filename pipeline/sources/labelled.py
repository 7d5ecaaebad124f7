"""Labelled rows of files: which files, which rows, which column is what. Data, seeds and benchmarks all read here."""

import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from pipeline.config import Config
from pipeline.errors import SourceError
from pipeline.identity import digest
from pipeline.records import Example
from pipeline.sources.corpus_formats import join_texts
from pipeline.sources.hub import list_shards, stream_hub
from pipeline.sources.labelled_formats import FileFormat, pick, read_file
from pipeline.sources.shares import ShareConfig
from pipeline.sources.streams import find_files
from pipeline.sources.tables import Location, Row, exists, locate

LOG = logging.getLogger(__name__)
OneOrMore = Annotated[
    list[str], Field(min_length=1), BeforeValidator(lambda value: [value] if isinstance(value, str) else value)
]
"""Several, or one without brackets."""


class Columns(Config):
    """Which of a file's columns is what."""

    text: OneOrMore
    """Joined to one text; empty ones are left out."""
    separator: str
    """Between two columns of text."""
    label: str
    group: str | None
    """Rows that agree here never stand on both sides of a fold; null: only rows of equal text stay together."""
    extras: dict[str, str]
    """Further columns to keep: the name they get, and their name in the file."""


class HubSplitConfig(Config):
    """Which part of a data set of the Hugging Face hub."""

    config_name: str | None
    """The data set's own word for one of its variants; null: it has only one."""
    split: str
    revision: str | None
    """Branch, tag or commit; null: the newest."""


class RowsConfig(Config):
    """Labelled rows of files or of a data set on the hub."""

    path: OneOrMore
    """Files, or patterns: `*`, `?` and `[…]` stand for parts of a name, `**` for any folders. With the format `hub` a
    data set's name, as in `zapsdcn/ag`, or a folder in the hub's layout."""
    format: FileFormat | Literal["hub"]
    hub: HubSplitConfig | None
    """For the format `hub` alone."""
    columns: Columns
    labels: dict[str, str] = Field(min_length=1)
    """Class of each value in the label column; every spelling counts (`"1"`, `"1.0"`), so that none is guessed."""
    unknown_labels: Literal["error", "skip"]
    """What becomes of rows with another label."""
    where: dict[str, str]
    """Rows whose column has another value than the one here are left out."""
    min_characters: int = Field(ge=0)
    """Rows with a shorter text are left out."""
    share: ShareConfig | None
    """Null: all."""
    per_class: int | None = Field(gt=0)
    """How many rows of each class to draw at random; null: all."""
    limit: int | None = Field(gt=0)
    """How many rows to draw at random, of whatever class; null: all."""
    seed: int
    """Of the draw."""

    @model_validator(mode="after")
    def _check_combinations(self) -> "RowsConfig":
        if (self.format == "hub") != (self.hub is not None):
            raise ValueError("`hub` names a split of a data set for the format hub; for other formats it is null")
        if self.hub is not None and len(self.path) > 1:
            raise ValueError("with the format hub, `path` is the name of one data set")
        if self.per_class is not None and self.limit is not None:
            raise ValueError("`per_class` and `limit` are two ways to draw; set one of them")
        return self

    @property
    def paths(self) -> list[str]:
        """Where the files are; empty for a data set of the hub."""
        return [] if self.format == "hub" else self.path

    @property
    def classes(self) -> list[str]:
        """The labels that rows may get, each once."""
        return list(dict.fromkeys(self.labels.values()))


def read_labelled(config: RowsConfig, root: Location | None) -> list[Example]:
    """Return the rows that are asked for; ids come from content, so they don't change when rows are added below.

    Args:
        config: Which rows.
        root: What relative paths count from; None: the working directory.

    Raises:
        SourceError: A file is missing, empty or broken, a row has no text, no group or an unknown label, no row is
            left, or a class has too few.
    """
    columns, examples = config.columns, []
    left_out, times_seen, other_labels = Counter[str](), Counter[tuple[str, str, str]](), Counter[str]()
    classes_seen = set()
    for location, line, values in _read_rows(config, root):
        place = f"{location}, line {line}"
        if any(values[column] != value for column, value in config.where.items()):
            left_out["where"] += 1
            continue
        label = config.labels.get(values[columns.label])
        if label is None:
            if config.unknown_labels == "skip":
                left_out["unknown_labels"] += 1
                other_labels[values[columns.label]] += 1
                continue
            known = ", ".join(map(repr, config.labels))
            raise SourceError(f"{place}: unknown label {values[columns.label]!r}; the known ones are {known}")
        classes_seen.add(label)
        text = join_texts((values[column] for column in columns.text), columns.separator)
        group = digest(text) if columns.group is None else values[columns.group]
        if not text or not group:
            empty = [columns.group] if text else columns.text
            raise SourceError(f"{place}: nothing in column {', '.join(map(repr, empty))}; expected text")
        if len(text) < config.min_characters:
            left_out["min_characters"] += 1
            continue
        if config.share is not None and not config.share.holds(values[config.share.column]):
            left_out["share"] += 1
            continue
        examples.append(
            Example(
                row_id=digest([text, label, group, times_seen[text, label, group]]),
                request_id="",
                group=group,
                text=text,
                label=label,
                extras={name: values[column] for name, column in columns.extras.items()},
            )
        )
        times_seen[text, label, group] += 1
    told = f"{', '.join(config.path)}: {len(examples):,} rows"
    if left_out:
        told += "; left out by " + ", ".join(f"{reason}: {n:,}" for reason, n in left_out.items())
        LOG.info(told)
    if not examples:
        raise SourceError(f"{told}; at least one is needed")
    # A misspelt value would otherwise leave a class out like any label that nobody asked for.
    if other_labels and (absent := [name for name in config.classes if name not in classes_seen]):
        found = ", ".join(repr(label) for label, _ in other_labels.most_common(10))
        raise SourceError(f"{told}; no row has a label of {', '.join(absent)}; labels that were skipped: {found}")
    if config.per_class is not None:
        return draw_per_class(examples, config.classes, config.per_class, config.seed)
    return draw(examples, config.limit, config.seed)


def draw(examples: list[Example], limit: int | None, seed: int) -> list[Example]:
    """Return a random sample in the given order; of one seed, a smaller sample is part of every larger one."""
    if limit is None or limit >= len(examples):
        return examples
    return _keep(examples, _draw(examples, limit, seed))


def draw_per_class(examples: list[Example], classes: Iterable[str], n: int, seed: int) -> list[Example]:
    """Return a random sample of n rows of each class, otherwise as `draw`.

    Raises:
        SourceError: A class has fewer rows.
    """
    by_class = {name: [row for row in examples if row.label == name] for name in classes}
    if scarce := {name: len(rows) for name, rows in by_class.items() if len(rows) < n}:
        told = ", ".join(f"{name} has {found:,}" for name, found in scarce.items())
        raise SourceError(f"{n:,} rows of each class are wanted, but {told}; lower per_class, or widen where or share")
    return _keep(examples, {row_id for rows in by_class.values() for row_id in _draw(rows, n, seed)})


def _draw(examples: list[Example], n: int, seed: int) -> set[str]:
    # A hash per row rather than a generator: the sample is the same whatever the library and the file's order.
    return {row.row_id for row in sorted(examples, key=lambda row: digest([seed, row.row_id]))[:n]}


def _keep(examples: list[Example], drawn: set[str]) -> list[Example]:
    return [row for row in examples if row.row_id in drawn]


def _read_rows(config: RowsConfig, root: Location | None) -> Iterator[tuple[str, int, dict[str, str]]]:
    """Yield where a row stands, and the columns that are needed of it."""
    columns = config.columns
    group = [] if columns.group is None else [columns.group]
    share = [] if config.share is None else [config.share.column]
    needed = [*columns.text, columns.label, *group, *columns.extras.values(), *config.where, *share]
    wanted = list(dict.fromkeys(needed))
    for location, row in _read_hub(config, wanted) if config.format == "hub" else _read_files(config, root, wanted):
        yield location, row.line, row.values


def _read_hub(config: RowsConfig, wanted: list[str]) -> Iterator[tuple[str, Row]]:
    assert config.hub is not None
    (name,) = config.path
    for location in list_shards(name, config.hub.config_name, config.hub.split, config.hub.revision):
        for record in stream_hub(location, config.hub.config_name):
            yield location, pick(record, wanted, location)


def _read_files(config: RowsConfig, root: Location | None, wanted: list[str]) -> Iterator[tuple[str, Row]]:
    assert config.format != "hub"
    for path in config.path:
        location = path if root is None else locate(root, path)
        files = [location] if exists(location) else find_files(root or ".", path)
        if not files:
            raise SourceError(f"{location}: no such file; correct the path or put the file there")
        for file in files:
            for row in read_file(config.format, file, wanted):
                yield file, row
