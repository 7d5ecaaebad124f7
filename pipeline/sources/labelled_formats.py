"""Labelled rows in the forms that their publishers give them: each a reader that says what the columns are.

Here every row counts, unlike in a corpus: the first that is broken is an error.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import PurePosixPath
from typing import Literal

from pipeline.errors import SourceError
from pipeline.sources.delimited import check_names, stream_csv
from pipeline.sources.published import stream_ag_news
from pipeline.sources.streams import Broken, Record, stream_lines
from pipeline.sources.tables import Location, Row, read_rows, to_text

FileFormat = Literal["table", "ag_news", "amazon_polarity", "toi", "mds"]
_FIELD = re.compile(r"<(\w+)>")


def read_file(file_format: FileFormat, location: Location, columns: Sequence[str]) -> Iterator[Row]:
    """Yield the rows of one file, with the wanted columns as text without outer white space.

    Args:
        file_format: `table` is a file with a header or named fields (see `read_rows`).
        location: The file.
        columns: What is wanted of a row.

    Raises:
        SourceError: The file is missing or empty, lacks a column, or has a broken row; names its line.
    """
    if file_format == "table":
        yield from read_rows(location, {name: name for name in columns})
        return
    is_empty = True
    for record in _STREAMS[file_format](location):
        is_empty = False
        if isinstance(record, Broken):
            raise SourceError(f"{location}, line {record.line}: {record.reason}")
        yield pick(record, columns, location)
    if is_empty:
        raise SourceError(f"{location}: the file is empty; at least one row is needed")


def pick(record: Record, columns: Sequence[str], location: Location) -> Row:
    """Return the wanted columns of a row.

    Raises:
        SourceError: The row lacks a column.
    """
    check_names(f"{location}, line {record.line}", columns, list(record.values))
    return Row(record.line, {name: to_text(record.values[name]) for name in columns})


def _stream_amazon_polarity(location: Location) -> Iterator[Record | Broken]:
    r"""Yield `class`, `title` and `text` of the CSV of Zhang et al. (2015), in which `\n` stands for a line break."""
    names = ["class", "title", "text"]
    for record in stream_csv(location, names, names, None):
        if isinstance(record, Broken):
            yield record
        else:
            yield Record(record.line, {name: value.replace("\\n", " ") for name, value in record.values.items()})


def _stream_toi(location: Location) -> Iterator[Record | Broken]:
    """Yield the columns of the Times of India headlines, and the `section` of each: `home.city.delhi` is city."""
    wanted = ["publish_date", "headline_category", "headline_text"]
    for record in stream_csv(location, None, wanted, None):
        if isinstance(record, Broken):
            yield record
        else:
            section = record.values["headline_category"].strip().removeprefix("home.").partition(".")[0]
            yield Record(record.line, {**record.values, "section": section})


def _stream_mds(location: Location) -> Iterator[Record | Broken]:
    """Yield the fields of the reviews of a `.review` file, and their `category`, which is the folder's name.

    The files look like XML and are none: nothing is escaped. A tag stands alone on its line; in a field, only the tag
    that ends it counts. Of a field that is there twice, the last stays.
    """
    category = PurePosixPath(location).parent.name
    fields: dict[str, list[str]] = {}
    start, field = 0, ""
    # The publishers name no encoding; reviewers' accents are not UTF-8.
    for line in stream_lines(location, "latin-1"):
        if isinstance(line, Broken):
            yield line
            continue
        text = line.text.strip()
        if field and text == f"</{field}>":
            field = ""
        elif field:
            fields[field].append(text)
        elif text == "<review>" and not start:
            start, fields = line.number, {}
        elif text == "</review>" and start:
            yield Record(start, {"category": category, **{name: "\n".join(lines) for name, lines in fields.items()}})
            start = 0
        elif start and (tag := _FIELD.fullmatch(text)) and text != "<review>":
            field = tag[1]
            fields[field] = []
        elif text:
            yield Broken(line.number, f"{text[:80]!r} stands outside of a review's fields")
    if start:
        yield Broken(start, f"a review without </{field or 'review'}>")


_STREAMS: dict[FileFormat, Callable[[Location], Iterator[Record | Broken]]] = {
    "ag_news": lambda location: stream_ag_news(location, None),
    "amazon_polarity": _stream_amazon_polarity,
    "toi": _stream_toi,
    "mds": _stream_mds,
}
