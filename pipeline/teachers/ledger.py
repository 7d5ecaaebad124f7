"""The ledger: every completion, on disk before anything else happens to it.

`<root>/ledger/<teacher>/open/<writer>.log` takes each completion with one `write()` the moment it is there;
`segments/*.parquet` are what logs are rolled into. A process that is killed loses what it had not yet logged, which
is what was in flight; a machine that loses its disk may also lose the rows since the last roll where the root is
remote. Nothing here is ever changed in place. A row may stand in a log and a segment at once (a crash between writing
the one and deleting the other), so readers count each only once.
"""

import fcntl
import json
import os
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import pyarrow as pa
from pydantic import TypeAdapter

from pipeline.errors import StorageError
from pipeline.records import Completion, from_table, to_table
from pipeline.storage import Folder, node_local

ROLL_ROWS = 1_000
ROLL_SECONDS = 60.0
SEGMENT_ROWS = 50_000
"""Segments smaller than this are merged when a run ends."""

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
    def open_logs(self) -> Path:
        """Where the logs of this machine are: in the ledger itself if that is local."""
        return node_local(self.folder) / "open"

    def read(self, seen: Snapshot | None = None) -> tuple[list[Completion], Snapshot]:
        """Return the completions that a reader has not seen yet, each once, and the snapshot to go on from."""
        for _ in range(10):
            try:
                return self._read(seen or {})
            except StorageError:  # a segment was merged, or a log rolled, between the listing and the reading
                time.sleep(0.05)
        return self._read(seen or {})

    def recover(self) -> int:
        """Roll the logs that dead writers left on this machine; return how many completions they held."""
        recovered = 0
        for path in sorted(self.open_logs.glob("*.log")):
            try:
                descriptor = os.open(path, os.O_RDWR)
            except FileNotFoundError:  # another process recovered it first
                continue
            try:
                # Locked: no writer is alive. Gone: its writer rolled it after we had listed it.
                if _lock(descriptor) and path.exists():
                    completions, _ = _read_log(path, 0)
                    self.store(completions, path.stem)
                    path.unlink()
                    recovered += len(completions)
            finally:
                os.close(descriptor)
        return recovered

    def store(self, completions: list[Completion], name: str) -> None:
        """Write completions as a segment, unless there are none."""
        if completions:
            self.segments.write_table(f"{time.time_ns()}-{name}.parquet", to_table(Completion, completions))

    def compact(self) -> None:
        """Merge small segments into one. Only one process does so at a time; the others leave it to that one."""
        with _try_lock(node_local(self.folder) / "compact.lock") as is_ours:
            if not is_ours:
                return
            try:
                small = [
                    (name, table)
                    for name in self.segments.names(".parquet")
                    if (table := self.segments.read_table(name)).num_rows < SEGMENT_ROWS
                ]
            except StorageError:  # another machine, which this lock does not reach, is merging them
                return
            if len(small) < 2:
                return
            merged = _unique(from_table(Completion, pa.concat_tables([table for _, table in small])))
            self.store(merged, "merged")
            for name, _ in small:
                self.segments.delete(name)

    def _read(self, seen: Snapshot) -> tuple[list[Completion], Snapshot]:
        snapshot: dict[str, int] = {}
        found: list[Completion] = []
        # Logs first: a log that is rolled meanwhile turns up as a segment, never nowhere.
        for path in sorted(self.open_logs.glob("*.log")):
            completions, snapshot[path.name] = _read_log(path, seen.get(path.name, 0))
            found += completions
        for name in self.segments.names(".parquet"):
            snapshot[name] = 0
            if name not in seen:
                found += from_table(Completion, self.segments.read_table(name))
        return _unique(found), snapshot


@dataclass
class LedgerWriter:
    """One process's log in a ledger. A lock on the log tells others that its writer lives."""

    ledger: Ledger
    _pending: list[Completion] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._open()

    def start(self, request_id: str, attempt: int) -> None:
        """Note that a request is in flight, so that one which kills its engine can be found."""
        self._append({"in_flight": [request_id, attempt]})

    def write(self, completion: Completion) -> None:
        """Put a completion on disk.

        Raises:
            StorageError: The disk is full or gone.
        """
        self._append(asdict(completion))
        self._pending.append(completion)

    @property
    def is_due(self) -> bool:
        """Whether enough rows or seconds have gathered for a roll."""
        waited = time.monotonic() - self._opened_at
        return len(self._pending) >= ROLL_ROWS or (bool(self._pending) and waited >= ROLL_SECONDS)

    def roll(self) -> None:
        """Turn the log into a segment and go on with a new log."""
        completions, path, descriptor = self._pending, self._path, self._descriptor
        self._pending = []
        self._open()
        self.ledger.store(completions, path.stem)
        path.unlink(missing_ok=True)
        os.close(descriptor)

    def close(self) -> None:
        """Roll what is left and let the log go."""
        self.ledger.store(self._pending, self._path.stem)
        self._pending = []
        self._path.unlink(missing_ok=True)
        os.close(self._descriptor)

    def _open(self) -> None:
        folder = self.ledger.open_logs
        try:
            folder.mkdir(parents=True, exist_ok=True)
            name = f"{time.time_ns()}-{os.getpid()}-{uuid.uuid4().hex[:6]}"
            hidden = folder / f"{name}.new"  # locked before any other process can take it for a dead writer's log
            self._descriptor = os.open(hidden, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o644)
            fcntl.flock(self._descriptor, fcntl.LOCK_EX)
            self._path = hidden.rename(folder / f"{name}.log")
        except OSError as error:
            raise StorageError(f"cannot open a log in {folder}: {error}; give a root you may write to") from error
        self._opened_at = time.monotonic()

    def _append(self, entry: Mapping[str, object]) -> None:
        line = json.dumps(entry).encode() + b"\n"
        try:
            n_written = os.write(self._descriptor, line)
        except OSError as error:
            raise StorageError(f"cannot write to {self._path}: {error.strerror}; make room on its disk") from error
        if n_written != len(line):
            os.ftruncate(self._descriptor, os.fstat(self._descriptor).st_size - n_written)  # or the next line joins it
            raise StorageError(f"{self._path} took only part of a line; make room on its disk")


def _read_log(path: Path, offset: int) -> tuple[list[Completion], int]:
    """Return the completions on whole lines after an offset, and the offset behind the last whole line."""
    try:
        with path.open("rb") as log:
            log.seek(offset)
            content = log.read()
    except FileNotFoundError as error:
        raise StorageError(f"{path} was rolled meanwhile") from error
    end = content.rfind(b"\n") + 1  # what a killed writer had not finished does not count
    try:
        entries = [json.loads(line) for line in content[:end].splitlines()]
        return [_COMPLETION.validate_python(e) for e in entries if "in_flight" not in e], offset + end
    except ValueError as error:  # no JSON, or JSON of something else
        raise StorageError(f"{path} holds a line that is no completion: {error}") from error


_COMPLETION = TypeAdapter(Completion)


def _unique(completions: Iterable[Completion]) -> list[Completion]:
    """Return each completion once, in the order in which they were asked."""
    by_key = {
        (c.request_id, c.attempt, 0.0 if c.outcome.is_answer else c.started_at): c
        for c in sorted(completions, key=lambda c: (c.started_at, c.request_id), reverse=True)
    }
    return sorted(by_key.values(), key=lambda c: (c.started_at, c.request_id, c.attempt))


@contextmanager
def _try_lock(path: Path) -> Iterator[bool]:
    """Say whether the lock on a file was free, and hold it for the body."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR, 0o644)
    try:
        yield _lock(descriptor)
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def group_by_request(completions: Iterable[Completion]) -> dict[str, list[Completion]]:
    """Return completions by request, each request's as `sort_history` has them."""
    groups: dict[str, list[Completion]] = {}
    for completion in completions:
        groups.setdefault(completion.request_id, []).append(completion)
    return {request_id: sort_history(group) for request_id, group in groups.items()}


def sort_history(completions: Iterable[Completion]) -> list[Completion]:
    """Return one request's completions, each once, in the order of attempts and tries."""
    return sorted(_unique(completions), key=lambda c: (c.attempt, c.started_at))
