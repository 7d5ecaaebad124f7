"""Documents from tables and plain text: JSONL, TSV, CSV, Parquet, text.

Every reader streams one file and yields a `RawDocument` or a `Broken` for all that it finds; a blank line is nothing.
"""

import json
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from pipeline.config import Config
from pipeline.errors import SourceError
from pipeline.sources.delimited import check_names, stream_csv, stream_tsv
from pipeline.sources.streams import (
    MAX_BYTES,
    Broken,
    Line,
    RawDocument,
    Record,
    cut_short,
    read_whole,
    stream_lines,
)
from pipeline.sources.tables import Location, resolve, to_text

TextUnit = Literal["file", "line", "paragraph"]
"""What of a plain text is one document; blank lines part paragraphs, whose own lines are joined by a space."""
_N_BATCH_ROWS = 256
"""Rows of a Parquet file in memory at once."""


class CorpusColumns(Config):
    """Which of a table's columns is what."""

    text: list[str] = Field(min_length=1)
    """Joined to one text; empty ones are left out."""
    separator: str
    """Between two columns of text."""
    id: str | None
    """Holds the source's own ids; null: it has none."""
    extras: dict[str, str]
    """Further columns to keep: the name they get, and their name in the file."""

    @property
    def names(self) -> list[str]:
        """The columns that a table must have, each once."""
        own_id = [] if self.id is None else [self.id]
        return list(dict.fromkeys([*self.text, *own_id, *self.extras.values()]))


def read_jsonl(
    location: Location, columns: CorpusColumns, fallback_encoding: str | None
) -> Iterator[RawDocument | Broken]:
    """Yield a document for each JSON object of a file with one a line; every object must have all columns."""
    for record in stream_objects(location, fallback_encoding):
        yield record if isinstance(record, Broken) else make_document(record, columns)


def read_tsv(
    location: Location, columns: CorpusColumns, names: list[str] | None, fallback_encoding: str | None
) -> Iterator[RawDocument | Broken]:
    """Yield a document for each row of a tab-separated file.

    Raises:
        SourceError: A column is missing.
    """
    for record in stream_tsv(location, names, columns.names, fallback_encoding):
        yield record if isinstance(record, Broken) else make_document(record, columns)


def read_csv(
    location: Location, columns: CorpusColumns, names: list[str] | None, fallback_encoding: str | None
) -> Iterator[RawDocument | Broken]:
    """Yield a document for each row of a comma-separated file.

    Raises:
        SourceError: A column is missing.
    """
    for record in stream_csv(location, names, columns.names, fallback_encoding):
        yield record if isinstance(record, Broken) else make_document(record, columns)


def read_parquet(location: Location, columns: CorpusColumns) -> Iterator[RawDocument | Broken]:
    """Yield a document for each row of a Parquet file.

    Raises:
        SourceError: There is no such file, it is no Parquet, or a column is missing.
    """
    filesystem, path = resolve(location)
    number = 0
    try:
        with filesystem.open_input_file(path) as file:
            # Small buffers, because a column of a row group may be larger than the memory.
            parquet = pq.ParquetFile(file, pre_buffer=False, buffer_size=2**20)
            check_names(location, columns.names, parquet.schema_arrow.names)
            for batch in parquet.iter_batches(batch_size=_N_BATCH_ROWS, columns=columns.names):
                for values in batch.to_pylist():
                    number += 1
                    yield make_document(Record(number, values), columns)
    except FileNotFoundError:
        raise SourceError(f"{location}: no such file; correct the path or put the file there") from None
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        raise cut_short(location, f"row {number} as Parquet", error) from error


def read_text(location: Location, unit: TextUnit, fallback_encoding: str | None) -> Iterator[RawDocument | Broken]:
    """Yield a document for the whole of a text file, for each of its lines, or for each of its paragraphs."""
    if unit == "file":
        whole = read_whole(location, fallback_encoding)
        yield whole if isinstance(whole, Broken) else RawDocument("", whole, {}, 1)
        return
    lines = stream_lines(location, fallback_encoding)
    for line in lines if unit == "line" else _join_paragraphs(lines):
        if isinstance(line, Broken):
            yield line
        elif line.text.strip():
            yield RawDocument("", line.text, {}, line.number)


def stream_objects(location: Location, fallback_encoding: str | None) -> Iterator[Record | Broken]:
    """Yield every line of a file as the JSON object that it is."""
    for line in stream_lines(location, fallback_encoding):
        if isinstance(line, Broken):
            yield line
            continue
        if not line.text.strip():
            continue
        try:
            value = json.loads(line.text)
        except (ValueError, RecursionError) as error:
            yield Broken(line.number, f"no JSON: {error}")
            continue
        if isinstance(value, dict):
            yield Record(line.number, value)
        else:
            yield Broken(line.number, f"no JSON object but a {type(value).__name__}")


def make_document(record: Record, columns: CorpusColumns) -> RawDocument | Broken:
    """Return a row of a table as a document."""
    missing = [name for name in columns.names if name not in record.values]
    if missing:
        return Broken(record.line, f"no column {', '.join(map(repr, missing))}; found: {', '.join(record.values)}")
    return RawDocument(
        own_id="" if columns.id is None else to_text(record.values[columns.id]),
        text=join_texts((to_text(record.values[name]) for name in columns.text), columns.separator),
        extras={name: to_text(record.values[column]) for name, column in columns.extras.items()},
        line=record.line,
    )


def join_texts(texts: Iterable[str], separator: str = "\n") -> str:
    """Return texts as one, without the empty ones."""
    return separator.join(text for text in texts if text)


def _join_paragraphs(lines: Iterator[Line | Broken]) -> Iterator[Line | Broken]:
    """Yield each run of lines that are not blank as one; a broken line breaks its paragraph."""
    texts: list[str] = []
    first, size, broken = 0, 0, None
    for line in chain(lines, [Line(0, "")]):
        if isinstance(line, Broken):
            broken = broken or line
        elif text := line.text.strip():
            first = first or line.number
            size += len(text)
            if size <= MAX_BYTES:
                texts.append(text)
        else:
            if size > MAX_BYTES:
                broken = broken or Broken(first, f"a paragraph of more than {MAX_BYTES} characters")
            if broken or texts:
                yield broken or Line(first, " ".join(texts))
            texts, first, size, broken = [], 0, 0, None
