"""What is known of batches, kept beside the ledger so that it outlives every process.

`<root>/ledger/<teacher>/batches/<key>.json` says which requests a batch asks. It is there before anything of the batch
is at the API, and gets the ids of the file and of the batch as they come. It stays: results can be fetched again from
it, and it says what was sent.
"""

import asyncio
import time
import uuid
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from pipeline.errors import StorageError, TeacherError
from pipeline.storage import Folder
from pipeline.teachers.logs import try_lock

Ticket = tuple[str, int]
"""Request id and attempt."""
LOCK_WAIT_S = 120.0
"""An actor outlives its killed driver by some seconds."""


@dataclass(frozen=True, slots=True)
class BatchRecord:
    """One batch, as far as it has come."""

    key: str
    """Ours, by which it is found at the API; keys are in the order of time."""
    started_at: float
    """Unix time in seconds."""
    tickets: tuple[Ticket, ...]
    """In the order of the file's lines."""
    file_id: str = ""
    batch_id: str = ""

    @property
    def file_name(self) -> str:
        """The file's name at the API."""
        return f"raystill-{self.key}.jsonl"


_RECORD = TypeAdapter(BatchRecord)


@dataclass(frozen=True)
class BatchRecords:
    """All batches of a teacher."""

    folder: Folder

    def plan(self, tickets: Sequence[Ticket]) -> BatchRecord:
        """Return a new record, written."""
        key = f"{time.time_ns()}-{uuid.uuid4().hex[:8]}"
        return self.write(BatchRecord(key, time.time(), tuple(tickets)))

    def write(self, record: BatchRecord) -> BatchRecord:
        """Write a record in place of what was known of its batch."""
        self.folder.write_bytes(f"{record.key}.json", _RECORD.dump_json(record, indent=1))
        return record

    def delete(self, record: BatchRecord) -> None:
        """Forget a batch of which nothing was asked."""
        self.folder.delete(f"{record.key}.json")

    def read(self) -> list[BatchRecord]:
        """Return all of them, oldest first.

        Raises:
            StorageError: One can't be read; without it, requests would be paid for twice.
        """
        return [self._read_one(name) for name in self.folder.names(".json")]

    def _read_one(self, name: str) -> BatchRecord:
        try:
            return _RECORD.validate_json(self.folder.read_bytes(name))
        except ValidationError as error:
            raise StorageError(
                f"{self.folder}/{name} is no record of a batch: {error.errors()[0]['msg']}; restore it, or delete it, "
                "and what it asked is asked, and paid for, again"
            ) from None


async def hold_lock(path: Path) -> ExitStack:
    """Return a lock on a file, held until it is closed or the process ends.

    Raises:
        TeacherError: Another process holds it all the while.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    deadline = time.monotonic() + LOCK_WAIT_S
    while True:
        stack = ExitStack()
        if stack.enter_context(try_lock(path)):
            return stack
        stack.close()
        if time.monotonic() > deadline:
            raise TeacherError(
                f"another run has held {path} for {LOCK_WAIT_S:g} s; two at once would ask the same by two batches, so "
                "wait for its end, or give this teacher another label"
            )
        await asyncio.sleep(0.2)
