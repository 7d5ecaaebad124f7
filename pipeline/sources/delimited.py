"""Rows of TSV and CSV files, one after another, with a bad row costing no other."""

import csv
from collections import deque
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from pipeline.errors import SourceError
from pipeline.sources.streams import MAX_BYTES, Broken, Line, Record, stream_lines
from pipeline.sources.tables import Location


def stream_tsv(
    location: Location, names: list[str] | None, wanted: Sequence[str], fallback_encoding: str | None
) -> Iterator[Record | Broken]:
    """Yield every row of a tab-separated file, but blank lines; a quote is a character like any other.

    Args:
        location: The file.
        names: The columns' names; None: they stand in its first row.
        wanted: Columns that there must be.
        fallback_encoding: As in `stream_lines`.

    Raises:
        SourceError: A wanted column is missing.
    """
    rows = (
        line if isinstance(line, Broken) else _Fields(line.number, line.text.split("\t"))
        for line in stream_lines(location, fallback_encoding)
        if isinstance(line, Broken) or line.text
    )
    return _name_fields(location, rows, names, wanted)


def stream_csv(
    location: Location, names: list[str] | None, wanted: Sequence[str], fallback_encoding: str | None
) -> Iterator[Record | Broken]:
    """Yield every row of a comma-separated file with the usual double quotes, but blank lines.

    After a malformed row, reading goes on with its second line: a quote that nobody closed may have swallowed good
    rows.

    Args:
        location: The file.
        names: As in `stream_tsv`.
        wanted: Columns that there must be.
        fallback_encoding: As in `stream_lines`.

    Raises:
        SourceError: A wanted column is missing.
    """
    return _name_fields(location, _split_csv(stream_lines(location, fallback_encoding)), names, wanted)


def check_names(location: Location, wanted: Sequence[str], found: Sequence[str]) -> None:
    """Check that a table has the columns that are wanted.

    Raises:
        SourceError: Names those that it lacks, and those that it has.
    """
    missing = [name for name in wanted if name not in found]
    if missing:
        raise SourceError(f"{location}: no column {', '.join(map(repr, missing))}; found: {', '.join(found) or 'none'}")


class _Fields(NamedTuple):
    line: int
    fields: list[str]


class _CsvLines:
    """Hands lines to a CSV reader, and remembers those of the row at hand, to hand them out again."""

    def __init__(self, lines: Iterator[Line | Broken]) -> None:
        self._lines = lines
        self._again: deque[Line] = deque()
        self.begin_row()

    def begin_row(self) -> None:
        """Forget the row at hand."""
        self.taken: list[Line] = []
        self.unreadable: list[Broken] = []
        self._size = 0

    def read_again(self) -> None:
        """Give all but the first line of the row at hand once more."""
        self._again.extendleft(reversed(self.taken[1:]))

    def __iter__(self) -> "_CsvLines":
        return self

    def __next__(self) -> str:
        line: Line | Broken = self._again.popleft() if self._again else next(self._lines)
        while isinstance(line, Broken):
            self.unreadable.append(line)
            if self.taken:
                raise csv.Error(f"line {line.line} inside the row is {line.reason}")
            line = next(self._lines)
        self.taken.append(line)
        self._size += len(line.text)
        if self._size > MAX_BYTES:
            raise csv.Error(f"no closing quote within {MAX_BYTES} characters")
        return line.text + "\n"


def _split_csv(lines: Iterator[Line | Broken]) -> Iterator[_Fields | Broken]:
    # The library's own limit of 128 KiB a field is less than some articles have; it can only be set for the process.
    csv.field_size_limit(MAX_BYTES)
    source = _CsvLines(lines)
    reader = csv.reader(source, strict=True)
    while True:
        source.begin_row()
        try:
            fields = next(reader)
        except StopIteration:
            yield from source.unreadable
            return
        except csv.Error as error:
            yield Broken(source.taken[0].number, f"broken CSV: {error}")
            yield from source.unreadable
            source.read_again()
        else:
            yield from source.unreadable
            if fields:
                yield _Fields(source.taken[0].number, fields)


def _name_fields(
    location: Location, rows: Iterator[_Fields | Broken], names: list[str] | None, wanted: Sequence[str]
) -> Iterator[Record | Broken]:
    if names is not None:
        check_names(location, wanted, names)
    for row in rows:
        if isinstance(row, Broken):
            if names is None:
                raise SourceError(f"{location}, line {row.line}: the header is {row.reason}; set `names` or mend it")
            yield row
        elif names is None:
            names = [name.strip() for name in row.fields]
            check_names(location, wanted, names)
        elif len(row.fields) != len(names):
            yield Broken(row.line, f"{len(row.fields)} fields, expected {len(names)}: {', '.join(names)}")
        else:
            yield Record(row.line, dict(zip(names, row.fields, strict=True)))
