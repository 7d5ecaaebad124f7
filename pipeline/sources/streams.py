"""Files too large for memory, read piece by piece: local or at a URL, plain or gzip.

A line that can't be used is data, a `Broken`, which the caller counts. A file that can't be read to its end has lost
nobody knows how much, so that is an error, and names how far it was read.
"""

import gzip
import io
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, BinaryIO, NamedTuple, cast

import pyarrow.fs as pafs

from pipeline.errors import SourceError
from pipeline.sources.tables import Location, locate, resolve
from pipeline.storage import Folder

MAX_BYTES = 16 * 2**20
"""What is longer is no document: a file without line ends, or a quote that nobody closed, must not fill the memory."""
"""Held at once while a file is hashed."""
READ_ERRORS = (OSError, EOFError, zlib.error)
"""What reading on from a file that was cut, or whose server has gone, may raise."""


@dataclass(frozen=True, slots=True)
class RawDocument:
    """A document as its source has it, neither cleaned nor cut."""

    own_id: str
    """The source's name for it; empty where it has none."""
    text: str
    extras: dict[str, str]
    line: int
    """Where it begins, from 1: a line of the file; in Parquet, XML and on the hub the row's number."""


@dataclass(frozen=True, slots=True)
class Broken:
    """Something in a source that should be a document and is none."""

    line: int
    """As in `RawDocument`."""
    reason: str


class Line(NamedTuple):
    """One line of a text file, without its end. `number` starts at 1."""

    number: int
    text: str


class Record(NamedTuple):
    """One row of a table. `line` as in `RawDocument`."""

    line: int
    values: Mapping[str, Any]


def is_pattern(path: str) -> bool:
    """Return whether a path stands for whatever files match it."""
    return any(sign in path for sign in "*?[")


def find_files(root: Location, pattern: str) -> list[str]:
    """Return the files that a pattern names, sorted; hidden ones are left out.

    Args:
        root: What a relative pattern counts from.
        pattern: A path or URL in which `*`, `?` and `[…]` stand for parts of a name, `**` for any folders.
    """
    parts = pattern.split("/")
    n_fixed = next((n for n, part in enumerate(parts) if is_pattern(part)), len(parts))
    base = locate(root, "/".join(parts[:n_fixed]) or "/") if n_fixed else str(Folder.at(root))
    filesystem, path = resolve(base)
    if n_fixed == len(parts):
        return [base] if filesystem.get_file_info(path).type == pafs.FileType.File else []
    wanted = parts[n_fixed:]
    recursive = len(wanted) > 1 or "**" in wanted
    found = []
    for info in filesystem.get_file_info(pafs.FileSelector(path, allow_not_found=True, recursive=recursive)):
        names = info.path.removeprefix(path).strip("/").split("/")
        is_hidden = any(name.startswith(".") for name in names)
        if info.type == pafs.FileType.File and not is_hidden and _matches(names, wanted):
            found.append(str(Folder.at(base) / "/".join(names)))
    return sorted(found)


@contextmanager
def open_file(location: Location) -> Iterator[BinaryIO]:
    """Open a file, to be read once from its start, as it is.

    Raises:
        SourceError: There is no such file, or it can't be opened.
    """
    filesystem, path = resolve(location)
    try:
        # Not decompressed by Arrow, which does not say where in a file that was cut the end came.
        file = filesystem.open_input_stream(path, compression=None)
    except FileNotFoundError:
        raise SourceError(f"{location}: no such file; correct the path or put the file there") from None
    except OSError as error:
        raise SourceError(f"{location}: cannot be opened: {error}") from error
    with file:
        yield file


@contextmanager
def open_stream(location: Location) -> Iterator[BinaryIO]:
    """Open a file like `open_file`; a `.gz` gives what it holds."""
    with open_file(location) as file:
        is_gzip = resolve(location)[1].lower().endswith(".gz")
        raw = gzip.GzipFile(fileobj=file) if is_gzip else file
        yield io.BufferedReader(cast(io.RawIOBase, raw), 2**20)


def measure_file(location: Location) -> int:
    """Return a file's size in bytes."""
    filesystem, path = resolve(location)
    return int(filesystem.get_file_info(path).size)


def stream_lines(location: Location, fallback_encoding: str | None) -> Iterator[Line | Broken]:
    """Yield every line of a text file, blank ones included.

    Args:
        location: The file.
        fallback_encoding: How a line that is not UTF-8 is read; None: it is broken.

    Raises:
        SourceError: The file can't be opened, or not read to its end.
    """
    number = 0
    with open_stream(location) as stream:
        try:
            # Not str.splitlines: it also splits at form feeds and U+2028, which stand inside real texts.
            while content := stream.readline(MAX_BYTES):
                number += 1
                if len(content) == MAX_BYTES and not content.endswith(b"\n"):
                    _skip_line(stream)
                    yield Broken(number, f"a line of more than {MAX_BYTES} bytes")
                    continue
                if number == 1:
                    content = content.removeprefix(b"\xef\xbb\xbf")
                yield _decode(number, content.removesuffix(b"\n").removesuffix(b"\r"), fallback_encoding)
        except READ_ERRORS as error:
            raise cut_short(location, f"line {number}", error) from error


def read_whole(location: Location, fallback_encoding: str | None) -> str | Broken:
    """Return a text file that is one document; its line ends become line feeds.

    Raises:
        SourceError: The file can't be opened, or not read to its end.
    """
    with open_stream(location) as stream:
        try:
            content = stream.read(MAX_BYTES + 1)
        except READ_ERRORS as error:
            raise cut_short(location, "its middle", error) from error
    if len(content) > MAX_BYTES:
        return Broken(1, f"a file of more than {MAX_BYTES} bytes")
    whole = _decode(1, content.removeprefix(b"\xef\xbb\xbf"), fallback_encoding)
    return whole if isinstance(whole, Broken) else whole.text.replace("\r\n", "\n")


def cut_short(location: Location, place: str, error: BaseException) -> SourceError:
    """Return the error of a file whose rest can't be read, so that nobody knows what is missing."""
    return SourceError(
        f"{location}: cannot be read beyond {place}: {error}; put the whole file there, or leave it out of `paths`"
    )


def _decode(number: int, content: bytes, fallback_encoding: str | None) -> Line | Broken:
    reason = ""
    for encoding in filter(None, ("utf-8", fallback_encoding)):
        try:
            return Line(number, content.decode(encoding))
        except UnicodeDecodeError as error:
            reason = f"not {encoding}: {error.reason} at byte {error.start}"
    return Broken(number, reason)


def _matches(names: list[str], wanted: list[str]) -> bool:
    if not wanted:
        return not names
    if wanted[0] == "**":
        return _matches(names, wanted[1:]) or (bool(names) and _matches(names[1:], wanted))
    return bool(names) and fnmatchcase(names[0], wanted[0]) and _matches(names[1:], wanted[1:])


def _skip_line(stream: BinaryIO) -> None:
    while content := stream.readline(MAX_BYTES):
        if content.endswith(b"\n"):
            return
