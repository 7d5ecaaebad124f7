"""The files of a job: which are scored, what each becomes, and which are scored already.

Each becomes one Parquet file of the same name. It remembers what it was made of, so the same command again scores what
is missing or has changed, and nothing else.
"""

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import PurePosixPath

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from pipeline.errors import ConfigError, SourceError
from pipeline.identity import digest
from pipeline.prediction.model import Model
from pipeline.sources.streams import find_files
from pipeline.sources.tables import resolve
from pipeline.storage import Folder

PREDICTED, PROBABILITY = "predicted_label", "probability_{}"
"""The columns that are added. Not `label`, which is what labelled rows call the truth."""
MADE_OF = b"raystill.made_of"
"""Key of the output's Parquet metadata."""
_READERS = 16
"""Threads that look at files' footers, most of whose time is waiting."""


@dataclass(frozen=True)
class Source:
    """A file to score."""

    location: str
    name: str
    """Of its output, below the output folder."""
    n_rows: int
    made_of: str
    """A digest of its size and time of change, the model, the engine and the column."""


def find_sources(inputs: Iterable[str], column: str, model: Model, output: Folder) -> list[Source]:
    """Return the files to score, each with the name of its output.

    Raises:
        SourceError: An input names no file, or a file can't be used.
        ConfigError: The output is in an input folder, two outputs would have one name, or one would take an input's
            place.
    """
    names: dict[str, str] = {}
    for given in inputs:
        # A folder's files keep their place in it.
        is_folder = _is_folder(given)
        base = Folder.at(given)
        if is_folder and PurePosixPath(_find_real(output)).is_relative_to(_find_real(base)):
            raise ConfigError(
                f"--output {output} is in the folder --input {given}, where the next run would take what this one "
                "writes for rows to score; give an output outside it"
            )
        found = find_files(".", f"{given.rstrip('/')}/**/*.parquet" if is_folder else given)
        if not found:
            raise SourceError(f"no Parquet file at {given}; correct --input")
        for location in found:
            name = location.removeprefix(str(base)).lstrip("/") if is_folder else location.rpartition("/")[2]
            if names.setdefault(name, location) != location:
                raise ConfigError(f"{names[name]} and {location} would both be written to {name}; score them apart")
            if str(output / name) == location:
                raise ConfigError(f"{location} would be overwritten by its own output; give another --output")

    def look(item: tuple[str, str]) -> Source:
        name, location = item
        filesystem, path = resolve(location)
        try:
            info = filesystem.get_file_info(path)
            metadata = pq.read_metadata(path, filesystem=filesystem)
            schema = metadata.schema.to_arrow_schema()
        except (OSError, pa.ArrowException) as error:
            raise SourceError(f"{location} can't be read as Parquet: {str(error).splitlines()[0]}") from None
        extend_schema(schema, column, model.labels, location)
        made_of = digest([info.size, info.mtime_ns, model.identity, model.engine, column])
        return Source(location, name, metadata.num_rows, made_of)

    with ThreadPoolExecutor(_READERS) as readers:
        return list(readers.map(look, names.items()))


def find_pending(sources: Sequence[Source], output: Folder) -> list[Source]:
    """Return the files whose output is missing, or was made of something else."""
    with ThreadPoolExecutor(_READERS) as readers:
        found = readers.map(lambda source: _read_made_of(output, source.name), sources)
    return [source for source, made_of in zip(sources, found, strict=True) if made_of != source.made_of]


def extend_schema(schema: pa.Schema, column: str, labels: Sequence[str], location: str) -> pa.Schema:
    """Return a file's schema with the columns that are added, having checked that they can be.

    Raises:
        SourceError: The column is missing or holds no text, or a column that would be added is there already.
    """
    if schema.names.count(column) != 1:
        raise SourceError(f"{location}: one column {column!r} is needed, there are {schema.names}; see --column")
    kind = schema.field(column).type
    values = kind.value_type if pa.types.is_dictionary(kind) else kind
    if not (pa.types.is_string(values) or pa.types.is_large_string(values)):
        raise SourceError(f"{location}: column {column!r} holds {kind}, and text is needed")
    added = [pa.field(PREDICTED, pa.string())]
    added += [pa.field(PROBABILITY.format(label), pa.float32()) for label in labels]
    if taken := [field.name for field in added if field.name in schema.names]:
        raise SourceError(f"{location} has columns {taken} already; rename them, predictions would take their place")
    return pa.schema([*schema, *added], schema.metadata)


def _is_folder(location: str) -> bool:
    if any(sign in location for sign in "*?["):
        return False
    filesystem, path = resolve(location)
    kind = filesystem.get_file_info(path).type
    return bool(kind == pafs.FileType.Directory)


def _find_real(folder: Folder) -> str:
    """Return where a folder lies, local links and `..` followed."""
    return str(folder.path.resolve()) if folder.is_local else folder.url


def _read_made_of(output: Folder, name: str) -> str | None:
    """Return what an output says that it was made of; None where there is none, or one that something else wrote."""
    filesystem, path = resolve(str(output / name))
    try:
        metadata = pq.read_schema(path, filesystem=filesystem).metadata or {}
    except (OSError, pa.ArrowInvalid):
        return None
    value = metadata.get(MADE_OF)
    return None if value is None else value.decode()
