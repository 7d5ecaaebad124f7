"""One batch from its plan to its results, from wherever a process that died has left it.

Each step is taken only where it was not: a file is uploaded unless there is one, a batch created unless there is one,
and what is known is on disk before the next step.
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from pipeline.errors import TeacherError
from pipeline.records import Completion, Outcome, Request
from pipeline.teachers.batch_api import Batch, BatchApi
from pipeline.teachers.batch_config import OpenAIBatchConfig
from pipeline.teachers.batch_records import BatchRecord, BatchRecords, Ticket
from pipeline.teachers.batch_rows import ResultRow, name_row, read_completion, read_rows
from pipeline.teachers.ledger import Ledger
from pipeline.teachers.teacher import make_failure

LOG = logging.getLogger(__name__)

QUEUE_FULL = ("token_limit_exceeded", "request_limit_exceeded")
"""Codes of a batch that was not taken because too much waits at the API already."""


@dataclass(frozen=True)
class Ended:
    """What came of a batch."""

    record: BatchRecord
    status: str
    """As the API has it; `failed`: it was not taken, and asked nothing."""
    span_s: float = 0.0
    rows: dict[str, ResultRow] = field(default_factory=dict)
    """By custom id."""
    refused: dict[Ticket, str] = field(default_factory=dict)
    """Requests that the API blames for not taking it, and why."""
    told: frozenset[Ticket] = frozenset()
    """Requests of which the ledger has this batch's result."""

    def read(self, request: Request, attempt: int) -> Completion | None:
        """Return what came of one attempt; None where it was not asked, or the ledger has the result already."""
        ticket, started_at = (request.request_id, attempt), self.record.started_at
        if ticket in self.told:
            return None
        if ticket in self.refused:
            return make_failure(request, attempt, started_at, Outcome.ERROR, self.refused[ticket])
        if self.status == "failed":
            return None
        row = self.rows.get(name_row(*ticket))
        return read_completion(row, self.status, request, attempt, started_at, self.span_s)


@dataclass(frozen=True)
class BatchRunner:
    """Brings batches to their ends."""

    config: OpenAIBatchConfig
    api: BatchApi
    records: BatchRecords
    ledger: Ledger
    open: dict[str, Batch] = field(default_factory=dict)
    """Those that have not ended, as the API last told of them, by the key of their record."""

    async def run(self, record: BatchRecord, content: bytes | None, runs_beside: Callable[[], bool]) -> Ended:
        """Return what comes of a batch.

        Args:
            record: How far it has come.
            content: Its file, where this process has planned it; None where an earlier one did.
            runs_beside: Whether another batch of ours is on its way.

        Raises:
            TeacherError: The API does not take it, does not know it, or can't be reached.
            StorageError: The record can't be written.
        """
        is_new = content is not None
        if not record.file_id:
            if content is not None:
                file_id = await self.api.upload(record.file_name, content)
            elif (found := await self.api.find_file(record.file_name)) is not None:
                file_id = found
            else:  # that process died before anything was at the API
                self.records.delete(record)
                return Ended(record, "failed")
            record = self.records.write(replace(record, file_id=file_id))
        del content  # up to `max_bytes`, for hours
        batch, record = await self._see_through(record, runs_beside, is_new=is_new)
        if batch.status == "failed":
            return await self._read_faults(record, batch)
        files = [
            await self.api.download(file_id, self._tell_lost(record))
            for file_id in (batch.output_file_id, batch.error_file_id)
            if file_id
        ]
        rows = await asyncio.to_thread(read_rows, *files)
        LOG.info("batch %s ended as %s: results of %d of %d", batch.id, batch.status, len(rows), len(record.tickets))
        told = frozenset() if is_new else await asyncio.to_thread(self._find_told, record)
        return Ended(record, batch.status, batch.span_s, rows, told=told)

    async def _see_through(
        self, record: BatchRecord, runs_beside: Callable[[], bool], *, is_new: bool
    ) -> tuple[Batch, BatchRecord]:
        """Return the batch once it has ended; where too much waits at the API, it is created again and again."""
        settings, hint, n_refused = self.config.batch, self._tell_lost(record), 0
        while True:
            if not record.batch_id:
                batch = await self.api.create(
                    record.key, record.file_id, settings.completion_window, may_exist=not is_new, hint=hint
                )
                record = self.records.write(replace(record, batch_id=batch.id))
                LOG.info("batch %s asks %d requests", batch.id, len(record.tickets))
            try:
                while not (batch := await self.api.retrieve(record.batch_id, hint)).has_ended:
                    self.open[record.key] = batch
                    await asyncio.sleep(settings.poll_s)
            finally:
                self.open.pop(record.key, None)
            if batch.status != "failed" or not any(fault.code in QUEUE_FULL for fault in batch.faults):
                return batch, record
            n_refused = 0 if runs_beside() else n_refused + 1
            if n_refused > self.config.max_retries:
                self.records.delete(record)  # nothing was asked; the next run gathers anew
                raise TeacherError(
                    f"{self.config.base_url} did not take batch {batch.id} of {len(record.tickets)} requests although "
                    f"no other of this run waits: {self._list_faults(batch)}\n"
                    "lower teacher.batch.max_requests, or run the same command again later"
                )
            record = self.records.write(replace(record, batch_id=""))
            await asyncio.sleep(settings.poll_s)

    async def _read_faults(self, record: BatchRecord, batch: Batch) -> Ended:
        """Return what follows where the API did not take a batch: the lines it blames failed, the others wait again."""
        refused = {
            record.tickets[fault.line - 1]: f"{fault.code}: {fault.message}"
            for fault in batch.faults
            if fault.line is not None and 0 < fault.line <= len(record.tickets)
        }
        if not refused:
            self.records.delete(record)  # nothing was asked; the next run tries anew
            raise TeacherError(
                f"{self.config.base_url} did not take batch {batch.id} with model {self.config.model}: "
                f"{self._list_faults(batch)}\n"
                "check teacher.model and what the account may do, then run the same command again"
            )
        told = await asyncio.to_thread(self._find_told, record)
        return Ended(record, batch.status, refused=refused, told=told)

    def _list_faults(self, batch: Batch) -> str:
        faults = [f"{fault.code}: {fault.message}" for fault in batch.faults]
        return self.api.clean("; ".join(faults) or "no reason is given")

    def _find_told(self, record: BatchRecord) -> frozenset[Ticket]:
        completions, _ = self.ledger.read(wanted={request_id for request_id, _ in record.tickets})
        return frozenset((c.request_id, c.attempt) for c in completions if c.started_at == record.started_at)

    def _tell_lost(self, record: BatchRecord) -> str:
        return (
            f"{self.records.folder}/{record.key}.json says what was sent there: ask with the address and the account "
            "that sent it, or delete that file, and what it asked is asked, and paid for, again"
        )
