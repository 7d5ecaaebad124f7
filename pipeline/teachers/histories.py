"""What a ledger holds of some requests, and which of them still need the teacher.

Both are gone through in parts: of a million requests, prompts and answers become records a few thousand at a time.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.identity import digest
from pipeline.records import Completion, Request, from_table
from pipeline.stored import PART_ROWS, StoredRecords, take
from pipeline.teachers.completions import group_by_request
from pipeline.teachers.ledger import Ledger
from pipeline.teachers.plan import Judge, Limits, Position, locate

History = Sequence[Completion]
"""A request's completions, each once, in the order of attempts and tries."""
_POSITION = [field.name for field in fields(Position) if field.name != "settled"]
SORT_ROWS = 20_000
"""Requests that are sorted by their prompts at a time, which are in memory then."""


class Histories(Mapping[str, History]):
    """The history of each request by its id, in the requests' order; fast where it is followed."""

    def __init__(
        self,
        requests: Sequence[Request],
        ledger: Ledger,
        cut: Callable[[Request, History], History] | None = None,
    ) -> None:
        """Read a ledger.

        Args:
            requests: Those whose completions are wanted.
            ledger: What is written to it later is no part of this.
            cut: What of a request's history counts. None: all.

        Raises:
            StorageError: The ledger is there and can't be read.
        """
        self.requests = requests
        self._ids = read_ids(requests)
        self._firsts = pc.index_in(self._ids, self._ids).to_numpy()
        self._parts, self.snapshot = ledger.read_parts(self._ids, PART_ROWS)
        self._cut = cut
        self._open: dict[str, History] = {}

    def __len__(self) -> int:
        return len(self._ids)

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self._ids), PART_ROWS):
            yield from self._ids.slice(start, PART_ROWS).to_pylist()

    def __getitem__(self, request_id: str) -> History:
        if request_id not in self._open:
            row = pc.index(self._ids, request_id).as_py()
            if row < 0:
                raise KeyError(request_id)
            self._open = self._read_part(row // PART_ROWS)
        return self._open[request_id]

    def is_empty(self, start: int, stop: int) -> bool:
        """Return whether the ledger holds nothing of the requests in some rows."""
        parts = np.unique(self._firsts[start:stop] // PART_ROWS)
        return not any(self._parts[part] for part in parts)

    def _read_part(self, part: int) -> dict[str, History]:
        rows = slice(part * PART_ROWS, (part + 1) * PART_ROWS)
        found = group_by_request(from_table(Completion, self._parts[part].read()))
        ids = self._ids[rows].to_pylist()
        # A request that stands there twice has its completions in the part where it stands first.
        owned = [
            i for row, (i, first) in enumerate(zip(ids, self._firsts[rows], strict=True), rows.start) if row == first
        ]
        if self._cut is None:
            return {i: found.get(i, ()) for i in owned}
        requests = {request.request_id: request for request in self.requests[rows]}
        return {i: self._cut(requests[i], found.get(i, ())) for i in owned}


@dataclass(frozen=True)
class Unsettled:
    """Requests that still need a teacher, and how far each has come. What is held in memory is numbers."""

    requests: Sequence[Request]
    """All, settled ones included."""
    table: pa.Table
    """A row for each that is not: its place among the requests (`row`), and its position."""

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def __iter__(self) -> Iterator[tuple[Request, Position]]:
        for start in range(0, len(self), PART_ROWS):
            yield from read_positions(self.requests, self.table.slice(start, PART_ROWS))


def find_unsettled(
    requests: Sequence[Request], histories: Histories, judge: Judge, limits: Limits, replays: Mapping[str, int]
) -> Unsettled:
    """Return the requests that still need a teacher, and how far each has come.

    Args:
        requests: All that is wanted.
        histories: Theirs.
        judge: What parsing makes of a completion.
        limits: How often a request may be asked in one round.
        replays: Rounds granted besides the first, by request id.
    """
    parts = []
    for start in range(0, len(requests), PART_ROWS):
        rows = range(len(requests))[start : start + PART_ROWS]
        if not replays and histories.is_empty(rows.start, rows.stop):  # so no prompt has to be read
            parts.append(write_positions(rows, [Position()] * len(rows)))
            continue
        located = {
            row: locate(r, histories[r.request_id], judge, limits, Position(replays=replays.get(r.request_id, 0)))
            for row, r in zip(rows, requests[start : start + PART_ROWS], strict=True)
        }
        unsettled = {row: position for row, position in located.items() if not position.settled}
        parts.append(write_positions(list(unsettled), list(unsettled.values())))
    return Unsettled(requests, pa.concat_tables([write_positions([], []), *parts]))


def sort_by_prefix(unsettled: Unsettled) -> pa.Table:
    """Return the table with neighbours that share the longest prefixes, as far as they stand near each other.

    So the prompts of one actor find each other's in the prefix cache.
    """
    sorted_parts = []
    for start in range(0, len(unsettled), SORT_ROWS):
        part = unsettled.table.slice(start, SORT_ROWS)
        prompts = [
            [(m.role, m.content) for m in request.messages] for request, _ in Unsettled(unsettled.requests, part)
        ]
        sorted_parts.append(part.take(sorted(range(len(prompts)), key=prompts.__getitem__)))
    return pa.concat_tables(sorted_parts)


def write_positions(rows: Sequence[int], positions: Sequence[Position]) -> pa.Table:
    """Return places among requests and how far each of these has come, as `Unsettled.table` has them."""
    columns = [pa.array(rows, pa.int32())]
    for name in _POSITION:
        type_ = pa.float64() if name == "tried_at" else pa.int32()
        columns.append(pa.array([getattr(position, name) for position in positions], type_))
    return pa.table(columns, names=["row", *_POSITION])


def read_positions(requests: Sequence[Request], table: pa.Table) -> list[tuple[Request, Position]]:
    """Return the requests that stand in some rows of `Unsettled.table`, and how far each has come.

    Raises:
        StorageError: The file that the requests are in is gone, or it is not as it was written.
    """
    positions = (Position(**values) for values in table.select(_POSITION).to_pylist())
    return list(zip(take(requests, table["row"].to_pylist()), positions, strict=True))


def digest_answers(histories: Mapping[str, History]) -> str:
    """Return what stands for all that a teacher said, however long it took and whenever it was."""
    said = hashlib.sha256()
    for request_id, history in histories.items():
        answers = [[c.attempt, c.outcome, c.text, c.choice_logprobs] for c in history]
        said.update(digest([request_id, answers]).encode())
    return said.hexdigest()[:16]


def read_ids(requests: Sequence[Request]) -> pa.Array:
    """Return the ids of some requests, in their order."""
    if isinstance(requests, StoredRecords):
        return requests.read_column("request_id")
    return pa.array([request.request_id for request in requests], pa.string())
