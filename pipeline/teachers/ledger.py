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
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import StorageError
from pipeline.records import SCHEMAS, Completion, Outcome, from_table, to_table
from pipeline.storage import Folder, decode_table, node_local
from pipeline.teachers.logs import InFlight, LogWriter, Session, read_log, try_lock
from pipeline.teachers.plan import DIED

LOG = logging.getLogger(__name__)

ROLL_ROWS = 1_000
ROLL_SECONDS = 60.0
SEGMENT_ROWS = 50_000
"""Segments smaller than this are merged when a run ends."""
READ_TRIES = 40
"""Each but the last is followed by 0.05 s; only other processes that merge without end use up more than a few."""

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
        seen = seen or {}
        wanted = None if wanted is None else frozenset(wanted)
        snapshot: dict[str, int] = {}
        found: list[Completion] = []
        # Logs first: a log that is rolled meanwhile turns up as a segment, never nowhere.
        for path in sorted(self.open_logs.glob("*.log")):
            with suppress(FileNotFoundError):
                log = read_log(path, seen.get(path.name, 0))
                snapshot[path.name] = log.end
                found += [c for c in log.completions if wanted is None or c.request_id in wanted]
        names, tables = self._read_segments(seen, None if wanted is None else pa.array(list(wanted), pa.string()))
        for table in tables:
            found += from_table(Completion, table)
        return _unique(found), snapshot | dict.fromkeys(names, 0)

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
        if completions:
            self.segments.write_table(f"{time.time_ns()}-{name}.parquet", to_table(Completion, completions))

    def compact(self) -> None:
        """Merge small segments into one. Only one process does so at a time; the others leave it to that one."""
        lock = node_local(self.folder) / "compact.lock"
        lock.parent.mkdir(parents=True, exist_ok=True)
        lock.touch()
        with try_lock(lock) as is_ours:
            if not is_ours:
                return
            try:
                small = {
                    name: table
                    for name in self.segments.names(".parquet")
                    if (table := self._read_segment(name)).num_rows < SEGMENT_ROWS
                }
            except StorageError:  # another machine, which this lock does not reach, is merging them
                return
            if len(small) < 2:
                return
            self.store(_unique(c for table in small.values() for c in from_table(Completion, table)), "merged")
            for name in small:
                self.segments.delete(name)

    def _read_segments(self, seen: Snapshot, wanted: pa.Array | None) -> tuple[list[str], list[pa.Table]]:
        """Return the names of all segments, and the wanted rows of those that were not seen."""
        tables: dict[str, pa.Table] = {}
        tries = 0
        while True:
            names = self.segments.names(".parquet")
            try:
                for name in names:
                    if name not in seen and name not in tables:
                        table = self._read_segment(name)
                        # Here, because records take many times the memory.
                        tables[name] = table if wanted is None else table.filter(pc.is_in(table["request_id"], wanted))
                return names, list(tables.values())
            except StorageError:  # merged between the listing and the reading; what replaces it is listed next time
                tries += 1
                if tries == READ_TRIES:
                    raise
                time.sleep(0.05)

    def _read_segment(self, name: str) -> pa.Table:
        """Return a segment's rows; none of one that is broken, which is then set aside."""
        content = self.segments.read_bytes(name)
        try:
            return _as_completions(decode_table(content))
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


def _as_completions(table: pa.Table) -> pa.Table:
    """Return a segment's table with the columns of today's schema, as far as it has them.

    Raises:
        ValueError: Neither this version nor an older or newer one wrote it.
    """
    schema = SCHEMAS[Completion]
    missing = set(schema.names) - set(table.column_names)
    # An older version knew fewer columns, a newer one knows more; one with both was written by none.
    if missing & _REQUIRED or (missing and set(table.column_names) - set(schema.names)):
        raise ValueError(f"it has the columns {', '.join(table.column_names)}, not those of a completion")
    known = pa.schema([wanted for wanted in schema if wanted.name not in missing])
    for wanted in known:
        if table.schema.field(wanted.name).type != wanted.type:
            raise ValueError(f"its column {wanted.name} is no {wanted.type}")
    return table.select(known.names).cast(known)


_REQUIRED = {f.name for f in fields(Completion) if f.default is MISSING and f.default_factory is MISSING}


def _die(sent: InFlight) -> Completion:
    """Return what stands for a try whose actor did not live to end it."""
    error = "its actor died with this request in flight"
    return Completion(*sent.in_flight, Outcome.ERROR, "", DIED, 0, 0, sent.at, 0.0, error)


def _mend(text: str) -> str:
    """Return a text with U+FFFD for each half of a surrogate pair, which neither UTF-8 nor Arrow can hold."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _unique(completions: Iterable[Completion]) -> list[Completion]:
    """Return each completion once, in the order in which they were asked."""
    by_key = {
        (c.request_id, c.attempt, 0.0 if c.outcome.is_answer else c.started_at): c
        for c in sorted(completions, key=lambda c: (c.started_at, c.request_id), reverse=True)
    }
    return sorted(by_key.values(), key=lambda c: (c.started_at, c.request_id, c.attempt))


def group_by_request(completions: Iterable[Completion]) -> dict[str, list[Completion]]:
    """Return completions by request, each request's as `sort_history` has them."""
    groups: dict[str, list[Completion]] = {}
    for completion in completions:
        groups.setdefault(completion.request_id, []).append(completion)
    return {request_id: sort_history(group) for request_id, group in groups.items()}


def sort_history(completions: Iterable[Completion]) -> list[Completion]:
    """Return one request's completions, each once, in the order of attempts and tries."""
    return sorted(_unique(completions), key=lambda c: (c.attempt, c.started_at))
