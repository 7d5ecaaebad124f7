"""The ledger: every completion, on disk before anything else happens to it.

Under `<root>/ledger/<teacher>/`:

    open/<writer>.log     what one living writer did since its last roll, a JSON line each; on the machine's own disk
                          where the root is remote
    segments/*.parquet    what logs were rolled into, and what small segments were merged into
    set_aside/*           segments and logs that could not be read in whole, as they were found
    compact.lock          held by the process that merges

A log has `{"session": …}` where its writer belongs to one, `{"in_flight": [request_id, attempt], "at": …}` before a
request is sent, and the completion with one `write()` the moment it is there. Its writer holds a lock on it, so a log
that can be locked is a dead writer's, and anyone may roll it. A process that is killed loses what it had not yet
logged, which is what was in flight; a machine that loses its disk may also lose the rows since the last roll where the
root is remote.

Nothing here is ever changed in place. What is rolled or merged is deleted only after the segment that holds it has
been written; so a row may stand in two places after a crash, and readers count each only once. What turns out broken
is moved to `set_aside/` and told; its rows are then missing, and asked again.
"""

import logging
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import StorageError
from pipeline.records import Completion, Outcome, from_table, to_table
from pipeline.storage import Folder, decode_table, node_local
from pipeline.teachers.completions import Gathered, Packed, as_completions, drop_repeats, unique
from pipeline.teachers.logs import InFlight, LogWriter, Session, read_log, try_lock
from pipeline.teachers.plan import DIED

LOG = logging.getLogger(__name__)
T = TypeVar("T")

ROLL_ROWS = 1_000
ROLL_SECONDS = 60.0
SEGMENT_ROWS = 50_000
"""Segments smaller than this are merged when a run ends, into ones that are hardly larger: so many rows are read, and
kept in memory beside what is wanted of them, at a time."""
READ_TRIES = 40
"""Each but the last is followed by 0.05 s; only other processes that merge without end use up more than a few."""

_MERGED = "merged"
"""What segments are called that others were merged into."""
Snapshot = Mapping[str, int]
"""What a reader has seen: segment name to 0, log name to bytes."""


@dataclass(frozen=True)
class Ledger:
    """All completions of one teacher."""

    folder: Folder

    @staticmethod
    def of(root: Folder, teacher: str) -> "Ledger":
        """Return the ledger of a teacher under a root."""
        return Ledger(root / "ledger" / teacher)

    @property
    def segments(self) -> Folder:
        """Where the rolled completions are."""
        return self.folder / "segments"

    @property
    def set_aside(self) -> Folder:
        """Where the files are that could not be read in whole."""
        return self.folder / "set_aside"

    @property
    def open_logs(self) -> Path:
        """Where the logs of this machine are: in the ledger itself if that is local."""
        return node_local(self.folder) / "open"

    def read(
        self, seen: Snapshot | None = None, wanted: Collection[str] | None = None
    ) -> tuple[list[Completion], Snapshot]:
        """Return completions, each once, and the snapshot to go on from.

        Args:
            seen: What this reader has read before, under the same `wanted`; that is left out. None: nothing.
            wanted: Ids of the requests whose completions to return. None: all.

        Raises:
            StorageError: The ledger is there and can't be read.
        """
        ids = None if wanted is None else pa.array(list(wanted), pa.string())
        tables, snapshot = self.read_tables(
            seen, lambda table: table if ids is None else table.filter(pc.is_in(table["request_id"], ids))
        )
        return unique(completion for table in tables for completion in from_table(Completion, table)), snapshot

    def read_parts(self, ids: pa.Array, part_rows: int) -> tuple[list[Packed], Snapshot]:
        """Return the completions for each part of some requests, packed, and the snapshot to go on from.

        A completion may stand there twice.

        Args:
            ids: The requests', in the order that parts go by.
            part_rows: How many requests make a part.

        Raises:
            StorageError: The ledger is there and can't be read.
        """
        starts = range(0, len(ids), part_rows)
        parts = [Packed() for _ in starts]

        def sort_in(table: pa.Table) -> None:
            rows = pc.index_in(table["request_id"], ids)
            is_wanted = pc.is_valid(rows)
            table, rows = table.filter(is_wanted), rows.filter(is_wanted).to_numpy()
            table = table.take(np.argsort(rows, kind="stable"))
            cuts = np.searchsorted(np.sort(rows), [*starts, len(ids)])
            for part, (start, end) in zip(parts, pairwise(cuts.tolist()), strict=True):
                part.add(table.slice(start, end - start))

        _, snapshot = self.read_tables(None, sort_in)
        pa.default_memory_pool().release_unused()  # which would else be as much again as what is kept
        return parts, snapshot

    def read_tables(
        self,
        seen: Snapshot | None,
        select: Callable[[pa.Table], T],
        *,
        with_logs: bool = True,
        with_merged: bool = True,
    ) -> tuple[list[T], Snapshot]:
        """Return what a function makes of the completions, which may stand there twice, some ten thousand at a time.

        Args:
            seen: As in `read`.
            select: Called with tables of completions.
            with_logs: Whether open logs are read. What stands in one comes again with the segment that it is rolled
                into; without them it comes once, but up to a minute late.
            with_merged: Whether segments are read that others were merged into, and whose rows came with those.

        Raises:
            StorageError: The ledger is there and can't be read.
        """
        seen, snapshot = seen or {}, {}
        tables, found = Gathered(), []
        # Logs first: a log that is rolled meanwhile turns up as a segment, never nowhere.
        for path in sorted(self.open_logs.glob("*.log")) if with_logs else ():
            with suppress(FileNotFoundError):
                log = read_log(path, seen.get(path.name, 0))
                snapshot[path.name] = log.end
                tables.add(to_table(Completion, log.completions))
        names, known, tries = self._list_segments(with_merged), {*seen}, 0
        while True:
            try:
                for name in names:
                    if name not in known:
                        tables.add(self._read_segment(name))
                        known.add(name)
                    if tables.n_rows >= SEGMENT_ROWS:
                        found.append(select(tables.take()))
                return [*found, select(tables.take())], snapshot | dict.fromkeys(names, 0)
            except StorageError:  # merged between the listing and the reading; what replaces it is listed next time
                tries += 1
                if tries == READ_TRIES:
                    raise
                time.sleep(0.05)
                names = self._list_segments(with_merged)

    def _list_segments(self, with_merged: bool) -> list[str]:
        return [
            name for name in self.segments.names(".parquet") if with_merged or not name.endswith(f"-{_MERGED}.parquet")
        ]

    def recover(self, session: str = "") -> int:
        """Roll the logs that dead writers left on this machine; return how many completions came of them.

        A request that was in flight when a writer of the same session died becomes a completion with the outcome
        `error`, so that one which kills its actor each time runs out of tries. Logs of other sessions add none: their
        jobs were killed, or gave up, for whatever reason.

        Args:
            session: That of the caller. Empty: none.
        """
        recovered = 0
        for path in sorted(self.open_logs.glob("*.log")):
            # Not there: another process recovered it, or its writer rolled it, after we had listed it.
            with suppress(FileNotFoundError), try_lock(path) as is_dead:
                if is_dead:
                    recovered += self._roll_for_the_dead(path, session)
        return recovered

    def store(self, completions: list[Completion], name: str) -> None:
        """Write completions as a segment, unless there are none."""
        self._store(to_table(Completion, completions), name)

    def compact(self) -> None:
        """Merge small segments into one. Only one process does so at a time; the others leave it to that one."""
        lock = node_local(self.folder) / "compact.lock"
        lock.parent.mkdir(parents=True, exist_ok=True)
        lock.touch()
        with try_lock(lock) as is_ours:
            if not is_ours:
                return
            try:
                self._merge_small()
            except StorageError:  # another machine, which this lock does not reach, is merging them
                return

    def _merge_small(self) -> None:
        tables, names = Gathered(), list[str]()

        def merge() -> None:
            if len(names) > 1:
                self._store(drop_repeats(tables.take()), _MERGED)
                for name in names:
                    self.segments.delete(name)
                names.clear()

        for name in self.segments.names(".parquet"):
            table = self._read_segment(name)
            if table.num_rows < SEGMENT_ROWS:
                tables.add(table)
                names.append(name)
            if tables.n_rows >= SEGMENT_ROWS:
                merge()
        merge()

    def _store(self, table: pa.Table, name: str) -> None:
        if table.num_rows:
            self.segments.write_table(f"{time.time_ns()}-{name}.parquet", table)

    def _read_segment(self, name: str) -> pa.Table:
        """Return a segment's rows; none of one that is broken, which is then set aside."""
        content = self.segments.read_bytes(name)
        try:
            return as_completions(decode_table(content))
        except ValueError as error:
            if self.segments.move(name, self.set_aside):  # or another reader has, and told it
                LOG.warning(
                    "%s/%s can't be read: %s; it is kept as %s/%s, and its rows are asked again",
                    *(self.segments, name, error, self.set_aside, name),
                )
            return to_table(Completion, [])

    def _roll_for_the_dead(self, path: Path, session: str) -> int:
        log = read_log(path)
        completions = log.completions
        # A line that can't be read may be the end of any request of its log, so such a log tells of no death.
        if session and log.session == session and not log.n_broken:
            completions += [_die(sent) for sent in log.in_flight.values()]
        self.store(completions, path.stem)
        if log.n_broken:
            self.set_aside.write_bytes(path.name, path.read_bytes())
        path.unlink()
        return len(completions)


@dataclass
class LedgerWriter:
    """One process's part in a ledger: a log, and the rows that the next roll makes a segment of."""

    ledger: Ledger
    session: str = ""
    """Names a job. Its actors may tell from the log, once its writer is dead, what was in flight."""
    _pending: list[Completion] = field(default_factory=list)
    _in_flight: dict[tuple[str, int], InFlight] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._open()

    def start(self, request_id: str, attempt: int) -> None:
        """Note that a request is in flight, so that one which kills its actor can be found.

        Raises:
            StorageError: The disk is full or gone.
        """
        sent = InFlight((request_id, attempt), time.time())
        self._log.append(sent)
        self._in_flight[sent.in_flight] = sent

    def write(self, completion: Completion) -> Completion:
        """Put a completion on disk; return it as it stands there, with U+FFFD for what is no character.

        Raises:
            StorageError: The disk is full or gone.
        """
        written = completion
        if not (completion.text.isascii() and completion.finish_reason.isascii() and completion.error.isascii()):
            written = replace(
                completion,
                text=_mend(completion.text),
                finish_reason=_mend(completion.finish_reason),
                error=_mend(completion.error),
            )
        self._log.append(written)
        self._pending.append(written)
        self._in_flight.pop((written.request_id, written.attempt), None)
        return written

    @property
    def is_due(self) -> bool:
        """Whether enough rows or seconds have gathered for a roll."""
        waited = time.monotonic() - self._opened_at
        return len(self._pending) >= ROLL_ROWS or (bool(self._pending) and waited >= ROLL_SECONDS)

    def roll(self) -> None:
        """Turn the log into a segment and go on with a new log, which tells again what is in flight.

        Raises:
            StorageError: That failed; the old log goes on.
        """
        self.ledger.store(self._pending, self._log.path.stem)
        old = self._log
        self._open()
        self._pending = []
        old.delete()

    def close(self) -> None:
        """Roll what is left and let the log go."""
        self.ledger.store(self._pending, self._log.path.stem)
        self._pending = []
        self._log.delete()

    def _open(self) -> None:
        head = [Session(self.session)] if self.session else []
        self._log = LogWriter(self.ledger.open_logs, [*head, *self._in_flight.values()])
        self._opened_at = time.monotonic()


def _die(sent: InFlight) -> Completion:
    """Return what stands for a try whose actor did not live to end it."""
    error = "its actor died with this request in flight"
    return Completion(*sent.in_flight, Outcome.ERROR, "", DIED, 0, 0, sent.at, 0.0, error)


def _mend(text: str) -> str:
    """Return a text with U+FFFD for each half of a surrogate pair, which neither UTF-8 nor Arrow can hold."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
