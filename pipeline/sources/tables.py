"""Rows of text from a user's file, or an error that says which line is wrong and what was expected there.

Every source reads through here. The checks stand in this module rather than in a library's reader because a reader
that repairs (guesses a delimiter, skips a bad line, drops a quote) would train on a file that nobody has seen.
"""

import csv
import gzip
import hashlib
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from pipeline.errors import SourceError
from pipeline.storage import Folder

Location = str | Path
"""A local path or a URL; a URL must stay a `str`, because `Path` folds its slashes."""
_N_HASHED_BYTES = 2**22
"""Read at once, so that a file of any size can be hashed."""


class Row(NamedTuple):
    """One row of a file. `line` starts at 1, headers included; in Parquet it is the row's number."""

    line: int
    values: dict[str, str]


def locate(root: Location, path: str) -> str:
    """Return where a file lies: under the root, unless its own path is absolute or a URL."""
    own = "://" in path or Path(path).expanduser().is_absolute()
    return path if own else str(Folder.at(root) / path)


def exists(location: Location) -> bool:
    """Return whether there is such a file."""
    filesystem, path = resolve(location)
    found: bool = filesystem.get_file_info(path).type == pafs.FileType.File
    return found


def read_content(location: Location) -> bytes:
    """Return a file's bytes.

    Raises:
        SourceError: There is no such file, or it can't be read.
    """
    filesystem, path = resolve(location)
    try:
        # Not open_input_stream: it decompresses a `.gz` by its name, and the checksum would be of something else.
        with filesystem.open_input_file(path) as file:
            content: bytes = file.read()
    except FileNotFoundError:
        raise SourceError(f"{location}: no such file; correct the path or put the file there") from None
    except OSError as error:
        raise SourceError(f"{location}: cannot be read: {error}") from error
    return content


def resolve(location: Location) -> tuple[pafs.FileSystem, str]:
    """Return the file system of a local path or a URL, and the path in it.

    Raises:
        SourceError: The URL's scheme or host is unknown.
    """
    folder = Folder.at(location)
    if folder.is_local:
        return pafs.LocalFileSystem(), folder.url
    try:
        filesystem, path = pafs.FileSystem.from_uri(folder.url)
    except (OSError, ValueError) as error:
        raise SourceError(f"{location}: no place to read from: {error}") from error
    return filesystem, path


def file_digest(location: Location) -> str:
    """Return the SHA-256 of a file, as it lies there, as 64 hexadecimal digits.

    Raises:
        SourceError: There is no such file, or it can't be read.
    """
    filesystem, path = resolve(location)
    digest = hashlib.sha256()
    try:
        with filesystem.open_input_file(path) as file:
            while content := file.read(_N_HASHED_BYTES):
                digest.update(content)
    except FileNotFoundError:
        raise SourceError(f"{location}: no such file; correct the path or put the file there") from None
    except OSError as error:
        raise SourceError(f"{location}: cannot be read: {error}") from error
    return digest.hexdigest()


def read_rows(location: Location, columns: Mapping[str, str], where: Mapping[str, str] | None = None) -> list[Row]:
    r"""Return the wanted columns of every row, as text without surrounding white space.

    A TSV has a header and no quoting: a quote is a character, as in the official ClariQ files and in what language
    models write. A CSV has a header and the usual double quotes. JSONL has an object a line; what is no text there
    or in Parquet becomes text, a null the empty one. All but Parquet are UTF-8 and may end in `.gz`. Blank lines
    at the end are ignored.

    Args:
        location: A `.tsv`, `.csv`, `.jsonl` (each also `.gz`) or `.parquet` file.
        columns: The name that each wanted column gets, and its name in the file.
        where: Rows alone whose columns have these values. A JSON object without such a column has another value, and
            what is left out may lack the wanted columns.

    Raises:
        SourceError: The file is missing, of another type or without rows, lacks a column, or has a broken line.
    """
    file_type = PurePosixPath(str(location).lower().removesuffix(".gz")).suffix
    if file_type == ".tsv":
        lines = ((line, text.split("\t")) for line, text in read_lines(location))
        rows = _read_fields(location, columns, where or {}, lines)
    elif file_type == ".csv":
        rows = _read_fields(location, columns, where or {}, _split_csv(location))
    elif file_type == ".jsonl":
        rows = _read_jsonl(location, columns, where or {})
    elif file_type == ".parquet":
        rows = _read_parquet(location, columns, where or {})
    else:
        raise SourceError(f"{location}: unknown type of file; needed .tsv, .csv, .jsonl (each also .gz) or .parquet")
    found = list(rows)
    if not found:
        if where:
            wanted = ", ".join(f"{column} is {value!r}" for column, value in where.items())
            raise SourceError(f"{location}: no row whose {wanted}; at least one is needed")
        raise SourceError(f"{location}: the file is empty; at least one row is needed")
    return found


def read_lines(location: Location) -> Iterator[tuple[int, str]]:
    """Yield the number and text of each line of a UTF-8 file, also of a `.gz`, without blank lines at the end.

    Raises:
        SourceError: The file is missing, no sound gzip, or a line is not UTF-8.
    """
    content = read_content(location)
    if str(location).lower().endswith(".gz"):
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise SourceError(f"{location}: not a whole gzip file: {error}") from error
    content = content.removeprefix(b"\xef\xbb\xbf").rstrip(b"\r\n")
    # Not str.splitlines: it also splits at form feeds and U+2028, which stand inside real queries.
    for number, line in enumerate(content.split(b"\n") if content else (), start=1):
        try:
            yield number, line.removesuffix(b"\r").decode()
        except UnicodeDecodeError as error:
            raise SourceError(
                f"{location}, line {number}: not UTF-8 ({error.reason}); save the file as UTF-8"
            ) from None


def to_text(value: Any) -> str:
    """Return a cell as text without outer white space: null as the empty one, lists and objects as JSON."""
    if value is None:
        return ""
    if isinstance(value, bool | dict | list):
        return json.dumps(value, ensure_ascii=False, default=str)
    return str(value).strip()


def _split_csv(location: Location) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader((text + "\n" for _, text in read_lines(location)), strict=True)
    while True:
        line = reader.line_num + 1
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise SourceError(f"{location}, line {line}: broken CSV: {error}") from error
        yield line, fields


def _read_fields(
    location: Location, columns: Mapping[str, str], where: Mapping[str, str], lines: Iterator[tuple[int, list[str]]]
) -> Iterator[Row]:
    header = [name.strip() for name in next(lines, (0, []))[1]]
    if not header:
        return
    _check_columns(f"{location}, line 1", [*columns.values(), *where], header)
    positions = {name: header.index(column) for name, column in columns.items()}
    for line, fields in lines:
        if len(fields) != len(header):
            raise SourceError(
                f"{location}, line {line}: {len(fields)} fields, expected the header's {len(header)}: "
                f"{', '.join(header)}"
            )
        if all(fields[header.index(column)].strip() == value for column, value in where.items()):
            yield Row(line, {name: fields[position].strip() for name, position in positions.items()})


def _read_jsonl(location: Location, columns: Mapping[str, str], where: Mapping[str, str]) -> Iterator[Row]:
    for line, text in read_lines(location):
        place = f"{location}, line {line}"
        try:
            value = json.loads(text)
        except ValueError as error:
            raise SourceError(f"{place}: expected a JSON object: {error}") from error
        if not isinstance(value, dict):
            raise SourceError(f"{place}: expected a JSON object, found a {type(value).__name__}")
        if all(to_text(value.get(column)) == wanted for column, wanted in where.items()):
            _check_columns(place, columns.values(), list(value))
            yield Row(line, {name: to_text(value[column]) for name, column in columns.items()})


def _read_parquet(location: Location, columns: Mapping[str, str], where: Mapping[str, str]) -> Iterator[Row]:
    buffer = pa.BufferReader(read_content(location))
    try:
        parquet = pq.ParquetFile(buffer)
        _check_columns(str(location), [*columns.values(), *where], parquet.schema_arrow.names)
        table = parquet.read(columns=sorted({*columns.values(), *where}))
    except (OSError, pa.ArrowException) as error:
        raise SourceError(f"{location}: not readable as Parquet: {error}") from error
    for number, values in enumerate(table.to_pylist(), start=1):
        if all(to_text(values[column]) == wanted for column, wanted in where.items()):
            yield Row(number, {name: to_text(values[column]) for name, column in columns.items()})


def _check_columns(place: str, columns: Iterable[str], found: list[str]) -> None:
    missing = [column for column in columns if column not in found]
    if missing:
        raise SourceError(f"{place}: no column {', '.join(map(repr, missing))}; found: {', '.join(found) or 'none'}")
