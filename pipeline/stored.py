"""Records in a file, read where and when they are asked for, so that a million of them take no memory."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any, Generic, TypeVar, overload

import numpy as np
import pyarrow as pa

from pipeline.records import SCHEMAS, from_table, to_table
from pipeline.storage import Folder

R = TypeVar("R")

PART_ROWS = 5_000
"""Records that are read, or worked on, at a time. More would take memory, fewer time: a Parquet file has its costs for
each row group."""


def write_records(kind: type, records: Iterable[Any], folder: Folder, name: str) -> int:
    """Write records as a Parquet file as they come; return how many there were.

    Raises:
        StorageError: The folder can't be written.
    """
    n_rows, left = 0, iter(records)
    with folder.writing_table(name, SCHEMAS[kind]) as writer:
        while part := list(islice(left, PART_ROWS)):
            writer.write_table(to_table(kind, part))
            n_rows += len(part)
    return n_rows


@dataclass(frozen=True)
class StoredRecords(Sequence[R], Generic[R]):
    """The records in a Parquet file that `to_table` or `write_records` wrote. Picklable."""

    kind: type[R]
    folder: Folder
    name: str

    def __len__(self) -> int:
        return int(self._starts[-1])

    @overload
    def __getitem__(self, place: int) -> R: ...
    @overload
    def __getitem__(self, place: slice) -> list[R]: ...
    def __getitem__(self, place: int | slice) -> R | list[R]:
        if isinstance(place, slice):
            return self.take(range(len(self))[place])
        return self.take([range(len(self))[place]])[0]

    def __iter__(self) -> Iterator[R]:
        for start in range(0, len(self), PART_ROWS):
            yield from self[start : start + PART_ROWS]

    def take(self, rows: Sequence[int]) -> list[R]:
        """Return some records, in the order in which they are named.

        Raises:
            StorageError: The file is gone, or it is not as it was written.
        """
        wanted = np.asarray(rows, dtype=np.int64)
        groups = np.searchsorted(self._starts, wanted, side="right") - 1
        needed, places = np.unique(groups, return_inverse=True)
        if not len(needed):
            return []
        table = self.folder.read_row_groups(self.name, needed.tolist())
        # Where each group begins in what was read of them.
        begins = np.cumsum([0, *np.diff(self._starts)[needed]])
        return list(from_table(self.kind, table.take(wanted - self._starts[groups] + begins[places])))

    def read_column(self, name: str) -> pa.Array:
        """Return one field of all records.

        Raises:
            StorageError: The file is gone, or it is not as it was written.
        """
        return self.folder.read_row_groups(self.name, columns=[name])[name].combine_chunks()

    @cached_property
    def _starts(self) -> np.ndarray:
        """Row that each row group begins with, and behind them the number of rows."""
        return np.cumsum([0, *self.folder.read_group_sizes(self.name)])


def take(records: Sequence[R], rows: Sequence[int]) -> list[R]:
    """Return some records, in the order in which they are named, from a file or from memory."""
    return records.take(rows) if isinstance(records, StoredRecords) else [records[row] for row in rows]
