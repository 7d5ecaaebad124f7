"""Folders that are a local path or a URL (`s3://…`), through Arrow's file systems.

A file is either absent or whole: locally it is written under a temporary name and renamed, on an object store it
appears with its last byte. Nothing is ever appended to.
"""

import hashlib
import json
import os
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from pipeline.errors import StorageError


@dataclass(frozen=True)
class Folder:
    """A place for files. `Folder.at("runs") / "steps"` is a folder inside it; nothing is created by naming it."""

    url: str
    """An absolute local path without a scheme, or a URL."""

    @staticmethod
    def at(location: str | Path) -> "Folder":
        """Return the folder at a path (relative ones count from the working directory) or a URL."""
        text = str(location)
        if text.startswith("file://"):
            text = text.removeprefix("file://")
        return Folder(text.rstrip("/") if "://" in text else str(Path(text).expanduser().absolute()))

    def __truediv__(self, name: str) -> "Folder":
        return Folder(self._join(name))

    def __str__(self) -> str:
        return self.url

    @property
    def is_local(self) -> bool:
        """Whether this is a path on this machine rather than a URL."""
        return "://" not in self.url

    @property
    def path(self) -> Path:
        """The local path.

        Raises:
            StorageError: The folder is a URL.
        """
        if not self.is_local:
            raise StorageError(f"{self.url} is no local path; this needs one")
        return Path(self.url)

    def exists(self, name: str = "") -> bool:
        """Return whether a file or folder of that name is there (no name: the folder itself)."""
        filesystem, path = self._resolve(name)
        found: bool = filesystem.get_file_info(path).type != pafs.FileType.NotFound
        return found

    def names(self, suffix: str = "") -> list[str]:
        """Return the names of the files and folders directly inside, sorted; none when the folder is missing."""
        if self.is_local:
            # Arrow looks each file up after listing, and would miss one that goes as well as the one that replaces it.
            try:
                return sorted(path.name for path in self.path.iterdir() if path.name.endswith(suffix))
            except FileNotFoundError:
                return []
        filesystem, path = self._resolve("")
        found = filesystem.get_file_info(pafs.FileSelector(path, allow_not_found=True))
        return sorted(info.base_name for info in found if info.base_name.endswith(suffix))

    def read_bytes(self, name: str) -> bytes:
        """Return a file's content.

        Raises:
            StorageError: There is no such file.
        """
        filesystem, path = self._resolve(name)
        try:
            with filesystem.open_input_stream(path, compression=None) as stream:
                content: bytes = stream.read()
        except OSError as error:
            raise StorageError(f"cannot read {self.url}/{name}: {error}") from error
        return content

    def write_bytes(self, name: str, content: bytes) -> None:
        """Write a whole file, or leave what was there.

        Raises:
            StorageError: The folder can't be written.
        """
        with (
            self._replacing(name) as (filesystem, path),
            filesystem.open_output_stream(path, compression=None) as stream,
        ):
            stream.write(content)

    def read_text(self, name: str) -> str:
        """Return a file's content as text."""
        return self.read_bytes(name).decode()

    def write_text(self, name: str, content: str) -> None:
        """Write a whole text file."""
        self.write_bytes(name, content.encode())

    def read_json(self, name: str) -> Any:
        """Return the value in a JSON file."""
        return json.loads(self.read_bytes(name))

    def write_json(self, name: str, value: Any) -> None:
        """Write a value as indented JSON.

        Raises:
            ValueError: The value holds NaN, which no other JSON reader takes.
        """
        self.write_text(name, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")

    def read_table(self, name: str) -> pa.Table:
        """Return the table in a Parquet file.

        Raises:
            StorageError: There is no such file, or it is not as it was written.
        """
        try:
            return decode_table(self.read_bytes(name))
        except ValueError as error:
            raise StorageError(f"cannot read {self.url}/{name} as Parquet: {error}") from error

    def read_group_sizes(self, name: str) -> list[int]:
        """Return how many rows each row group of a Parquet file has.

        Raises:
            StorageError: There is no such file, or it is not as it was written.
        """
        with self._opening_table(name) as file:
            return [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]

    def read_row_groups(
        self, name: str, groups: Sequence[int] | None = None, columns: Sequence[str] | None = None
    ) -> pa.Table:
        """Return some row groups of a Parquet file (None: all), in the order named, or some columns of them.

        Raises:
            StorageError: There is no such file, or it is not as it was written.
        """
        with self._opening_table(name) as file:
            return file.read_row_groups(range(file.num_row_groups) if groups is None else groups, columns=columns)

    def write_table(self, name: str, table: pa.Table) -> None:
        """Write a table as one Parquet file, with a checksum in each page."""
        with self._replacing(name) as (filesystem, path):
            pq.write_table(table, path, filesystem=filesystem, compression="zstd", write_page_checksum=True)

    @contextmanager
    def writing_table(self, name: str, schema: pa.Schema) -> Iterator[pq.ParquetWriter]:
        """Give a writer of one Parquet file, which is there, whole, once the body has ended without an error.

        Raises:
            StorageError: The folder can't be written.
        """
        if not self.is_local:
            # Closing an upload, which an error does too, would put what was written so far.
            with tempfile.TemporaryDirectory() as scratch:
                with Folder(scratch).writing_table("table", schema) as writer:
                    yield writer
                with self._replacing(name) as (filesystem, path):
                    pafs.copy_files(f"{scratch}/table", path, destination_filesystem=filesystem)
            return
        with (
            self._replacing(name) as (filesystem, path),
            pq.ParquetWriter(
                path, schema, filesystem=filesystem, compression="zstd", write_page_checksum=True
            ) as writer,
        ):
            yield writer

    def write_mappable(self, name: str, table: pa.Table) -> None:
        """Write a table as one Arrow IPC file, which a reader can map into memory."""
        with (
            self._replacing(name) as (filesystem, path),
            filesystem.open_output_stream(path, compression=None) as stream,
            pa.ipc.new_file(stream, table.schema) as writer,
        ):
            writer.write_table(table)

    def move(self, name: str, target: "Folder") -> bool:
        """Move a file into another folder of the same store; return whether it was still there.

        Raises:
            StorageError: It is there and can't be moved.
        """
        filesystem, path = self._resolve(name)
        _, new_path = target._resolve(name)
        try:
            filesystem.create_dir(target._resolve("")[1], recursive=True)
            filesystem.move(path, new_path)
        except OSError as error:
            if not self.exists(name):
                return False
            raise StorageError(f"cannot move {self.url}/{name} to {target}: {error}; give it write access") from error
        return True

    def modified_at(self, name: str) -> float:
        """Return when a file was last changed, in Unix seconds, by the clock of whoever stores it."""
        filesystem, path = self._resolve(name)
        return float(filesystem.get_file_info(path).mtime_ns or 0) / 1e9

    def delete(self, name: str) -> None:
        """Delete a file if it is there."""
        filesystem, path = self._resolve(name)
        if filesystem.get_file_info(path).type == pafs.FileType.File:
            filesystem.delete_file(path)

    def delete_folder(self, name: str) -> None:
        """Delete a folder and all inside, if it is there."""
        filesystem, path = self._resolve(name)
        if filesystem.get_file_info(path).type == pafs.FileType.Directory:
            filesystem.delete_dir(path)

    @contextmanager
    def filling(self, name: str) -> Iterator[Path]:
        """Give a local folder to write into, which is in this one under a name, whole, once the body has ended.

        Where that name is taken already, by another writer of the same, its content stays.
        """
        if not self.is_local:
            with tempfile.TemporaryDirectory() as copy:
                yield Path(copy)
                self.upload(Path(copy), name)
            return
        self.path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self.path, prefix=f"{name}.", suffix=".tmp") as temporary:
            content = Path(temporary) / name
            content.mkdir()
            yield content
            # Renamed, because others may have the files of that name mapped into memory.
            if not (self.path / name).exists():
                content.rename(self.path / name)

    def upload(self, source: Path, name: str) -> None:
        """Copy a local folder into this one, under a name."""
        filesystem, path = self._resolve(name)
        filesystem.create_dir(path, recursive=True)
        pafs.copy_files(str(source), path, destination_filesystem=filesystem)

    @contextmanager
    def as_local(self, name: str) -> Iterator[Path]:
        """Give a local path that holds a folder's content; a copy, deleted afterwards, where this is a URL."""
        if self.is_local:
            yield self.path / name
            return
        filesystem, path = self._resolve(name)
        with tempfile.TemporaryDirectory() as copy:
            pafs.copy_files(path, copy, source_filesystem=filesystem)
            yield Path(copy)

    def check_writable(self) -> None:
        """Write and delete a small file.

        Raises:
            StorageError: That failed; the message holds the reason.
        """
        probe = f".probe-{uuid.uuid4().hex}"
        self.write_bytes(probe, b"")
        self.delete(probe)

    @contextmanager
    def _opening_table(self, name: str) -> Iterator[pq.ParquetFile]:
        filesystem, path = self._resolve(name)
        try:
            with (
                filesystem.open_input_file(path) as source,
                pq.ParquetFile(source, page_checksum_verification=True, pre_buffer=True) as file,
            ):
                yield file
        except (OSError, pa.ArrowException) as error:
            raise StorageError(f"cannot read {self.url}/{name}: {str(error).splitlines()[0]}") from error

    def _resolve(self, name: str) -> tuple[pafs.FileSystem, str]:
        full = self._join(name) if name else self.url
        if self.is_local:
            return pafs.LocalFileSystem(), full
        try:
            filesystem, path = pafs.FileSystem.from_uri(full)
        except (OSError, ValueError) as error:
            raise StorageError(f"{full} is no place that can be used: {error}") from error
        return filesystem, path

    def _join(self, name: str) -> str:
        """Return the URL of something inside; options of the URL (`?endpoint_override=…`) stay at its end."""
        if self.is_local:
            return f"{self.url}/{name}"
        place, separator, options = self.url.partition("?")
        return f"{place}/{name}{separator}{options}"

    @contextmanager
    def _replacing(self, name: str) -> Iterator[tuple[pafs.FileSystem, str]]:
        filesystem, path = self._resolve(name)
        try:
            if not self.is_local:
                yield filesystem, path
                return
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            temporary = f"{path}.{uuid.uuid4().hex[:8]}.tmp"
            try:
                yield filesystem, temporary
                Path(temporary).replace(path)
            finally:
                Path(temporary).unlink(missing_ok=True)
        except OSError as error:
            raise StorageError(
                f"cannot write {path}: {error.strerror or error}; give a root you may write to"
            ) from error


def decode_table(content: bytes) -> pa.Table:
    """Return the table that the bytes of a Parquet file stand for.

    Raises:
        ValueError: They are no Parquet file, or no longer the one that was written.
    """
    try:
        table = pq.read_table(pa.BufferReader(content), page_checksum_verification=True)
        table.validate(full=True)
    except (OSError, pa.ArrowException) as error:
        raise ValueError(str(error).partition("\n")[0]) from error
    return table


def node_local(folder: Folder) -> Path:
    """Return a path on this machine's disk that stands for a folder: itself if local, else one named by its URL."""
    if folder.is_local:
        return folder.path
    name = hashlib.sha256(folder.url.encode()).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"raystill-{os.getuid()}" / name
