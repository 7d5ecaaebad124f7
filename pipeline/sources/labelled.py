"""Bring your own data: a labelled file becomes the rows of an arm, without a teacher."""

from collections import Counter
from collections.abc import Mapping

from pipeline.config import Config
from pipeline.errors import SourceError
from pipeline.identity import digest
from pipeline.records import Example
from pipeline.sources.tables import Location, read_rows


class Columns(Config):
    """Which of a file's columns is what."""

    text: str
    label: str
    group: str | None
    """Rows that agree here never stand on both sides of a fold; null: only rows of equal text stay together."""
    extras: dict[str, str]
    """Further columns to keep: the name they get, and their name in the file."""


def read_labelled(location: Location, columns: Columns, labels: Mapping[str, str]) -> list[Example]:
    """Return every row of a labelled file; ids come from content, so they don't change when rows are added below.

    Args:
        location: A table (see `read_rows`).
        columns: Which of its columns is what.
        labels: The class of each value in the label column.

    Raises:
        SourceError: The file is missing, empty or broken, or a row has no text, no group or an unknown label.
    """
    wanted = {"text": columns.text, "label": columns.label}
    if columns.group is not None:
        wanted["group"] = columns.group
    wanted |= {f"extras.{name}": column for name, column in columns.extras.items()}
    examples, times_seen = [], Counter[tuple[str, str, str]]()
    for line, values in read_rows(location, wanted):
        text, label = values["text"], labels.get(values["label"])
        group = values.get("group", digest(text))
        if label is None:
            known = ", ".join(map(repr, labels))
            raise SourceError(f"{location}, line {line}: unknown label {values['label']!r}; the known ones are {known}")
        if not text or not group:
            column = columns.group if text else columns.text
            raise SourceError(f"{location}, line {line}: nothing in column {column!r}; expected text")
        examples.append(
            Example(
                row_id=digest([text, label, group, times_seen[text, label, group]]),
                request_id="",
                group=group,
                text=text,
                label=label,
                extras={name: values[f"extras.{name}"] for name in columns.extras},
            )
        )
        times_seen[text, label, group] += 1
    return examples


def draw(examples: list[Example], limit: int | None, seed: int) -> list[Example]:
    """Return a random sample in the given order; of one seed, a smaller sample is part of every larger one."""
    if limit is None or limit >= len(examples):
        return examples
    # A hash per row rather than a generator: the sample is the same whatever the library and the file's order.
    drawn = {row.row_id for row in sorted(examples, key=lambda row: digest([seed, row.row_id]))[:limit]}
    return [row for row in examples if row.row_id in drawn]
