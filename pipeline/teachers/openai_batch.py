"""OpenAI's Batch API: answers within a day instead of at once, for half the price.

Requests that wait here are gathered into batches. What a batch asks is on disk before the API knows of it
(`batch_records`), and each batch carries a key by which it is found there; so whatever process dies, and whenever, the
next one finds the same batch again and asks nothing twice. Answers reach the ledger as they do from any teacher.

For one (request, attempt) the last batch that holds it counts: it is put into another only after the ledger has what
came of the one before.
"""

import asyncio
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace

from pipeline.errors import RaystillError
from pipeline.records import Completion, Outcome, Request
from pipeline.storage import node_local
from pipeline.teachers.batch_api import BatchApi
from pipeline.teachers.batch_config import OpenAIBatchConfig
from pipeline.teachers.batch_records import BatchRecord, BatchRecords, Ticket, hold_lock
from pipeline.teachers.batch_rows import name_row, split_rows, write_row
from pipeline.teachers.batch_run import BatchRunner, Ended
from pipeline.teachers.ledger import Ledger
from pipeline.teachers.openai import OpenAITeacher, write_body


@dataclass(frozen=True)
class _Waiting:
    line: bytes
    planned: "asyncio.Future[None]"


class OpenAIBatchTeacher:
    """Completes requests by batches.

    Args:
        config: The endpoint, the model and how to batch.
        ledger: Beside which batches are remembered.

    Raises:
        ConfigError: The key can't be read.
    """

    def __init__(self, config: OpenAIBatchConfig, ledger: Ledger) -> None:
        self.capacity = config.batch.max_requests
        self._config = config
        self._lock_path = node_local(ledger.folder) / "batches.lock"
        self._api = BatchApi(config)
        self._records = BatchRecords(ledger.folder / "batches")
        self._runner = BatchRunner(config, self._api, self._records, ledger)
        self._online = OpenAITeacher(config, 1.0)
        self._open_online = asyncio.Semaphore(self._online.capacity)
        self._key_of: dict[Ticket, str] = {}
        """The last batch of each request, until its result was handed out."""
        self._unread: Counter[str] = Counter()
        """How many results of a batch were not handed out."""
        self._planned: dict[str, BatchRecord] = {}
        self._contents: dict[str, bytes] = {}
        """Files that are not at the API yet."""
        self._running: dict[str, asyncio.Task[Ended]] = {}
        """Batches that are on their way, or whose results are still wanted."""
        self._waiting: dict[Ticket, _Waiting] = {}
        self._gathering: asyncio.Task[None] | None = None
        self._opening: asyncio.Task[ExitStack] | None = None

    async def complete(self, request: Request, attempt: int) -> Completion:
        """Return what came of one attempt once its batch has ended.

        Raises:
            TeacherError: The API refuses the key, the model or the batch, or can't be reached.
            StorageError: What is known of batches can't be read or written.
        """
        # Tasks are shared, so they are shielded: one request that is cancelled must not end them for the others.
        if self._opening is None:
            self._opening = asyncio.create_task(self._open())
        await asyncio.shield(self._opening)
        ticket = (request.request_id, attempt)
        completion = None
        while completion is None:
            if ticket not in self._key_of:
                await self._gather(ticket, request)
            key = self._key_of[ticket]
            if key not in self._running:
                self._running[key] = asyncio.create_task(self._run(key))
            ended = await asyncio.shield(self._running[key])
            completion = ended.read(request, attempt)
            self._forget(ticket, key)
        if completion.outcome is Outcome.TIMEOUT and self._config.batch.on_expiry == "online":
            async with self._open_online:
                return await self._online.complete(request, attempt)
        return replace(
            completion,
            text=self._api.hide_key(completion.text),
            finish_reason=self._api.hide_key(completion.finish_reason),
            error=self._api.clean(completion.error),
            price_factor=self._config.batch.price_factor,
        )

    def measure_memory(self) -> None:
        """Return None: the model is elsewhere."""

    def describe_state(self) -> Mapping[str, int]:
        """Return how many batches are open, and how many of their results wait at the API."""
        batches = self._runner.open.values()
        ready = sum(batch.n_ready for batch in batches)
        counts = {"open batches": len(batches), "results waiting there": ready}
        return {**(counts if batches else {}), **self._online.describe_state()}

    async def close(self) -> None:
        """Let go of connections and of the lock; batches go on."""
        tasks = [task for task in (self._opening, self._gathering, *self._running.values()) if task is not None]
        for task in tasks:
            task.cancel()
        done = await asyncio.gather(*tasks, return_exceptions=True)
        await self._api.close()
        await self._online.close()
        if done and isinstance(done[0], ExitStack):
            done[0].close()

    async def _open(self) -> ExitStack:
        lock = await hold_lock(self._lock_path)
        for record in await asyncio.to_thread(self._records.read):
            self._remember(record)
        return lock

    async def _run(self, key: str) -> Ended:
        def runs_beside() -> bool:
            return any(other != key and not task.done() for other, task in self._running.items())

        return await self._runner.run(self._planned[key], self._contents.pop(key, None), runs_beside)

    def _remember(self, record: BatchRecord) -> None:
        self._planned[record.key] = record
        self._unread[record.key] = len(record.tickets)
        self._key_of |= dict.fromkeys(record.tickets, record.key)

    def _forget(self, ticket: Ticket, key: str) -> None:
        """Note that a result was handed out; when all of a batch were, its results go."""
        if self._key_of.get(ticket) == key:
            del self._key_of[ticket]
            self._unread[key] -= 1
            if not self._unread[key]:
                self._running.pop(key, None)

    async def _gather(self, ticket: Ticket, request: Request) -> None:
        """Put a request among those that wait, and return once it is part of a batch."""
        if ticket not in self._waiting:
            line = write_row(name_row(*ticket), write_body(self._config, request, ticket[1]))
            self._waiting[ticket] = _Waiting(line, asyncio.get_running_loop().create_future())
        if self._gathering is None or self._gathering.done():
            self._gathering = asyncio.create_task(self._plan_waiting())
        await asyncio.shield(self._waiting[ticket].planned)

    async def _plan_waiting(self) -> None:
        """Make batches of the requests that wait, once no more come."""
        settings = self._config.batch
        while n_before := len(self._waiting):
            if n_before < settings.max_requests:
                await asyncio.sleep(settings.gather_s)
                if len(self._waiting) > n_before:
                    continue
            waiting, self._waiting = self._waiting, {}
            tickets, parts = list(waiting), list(waiting.values())
            try:
                for rows in split_rows([len(part.line) for part in parts], settings.max_requests, settings.max_bytes):
                    record = await asyncio.to_thread(self._records.plan, tickets[rows])
                    self._contents[record.key] = b"".join(part.line for part in parts[rows])
                    self._remember(record)
                    for part in parts[rows]:
                        part.planned.set_result(None)
            except RaystillError as error:  # each request that waits has to hear of it
                for part in parts:
                    if not part.planned.done():
                        part.planned.set_exception(error)
