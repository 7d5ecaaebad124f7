"""What each actor of the pool does: it brings requests to their ends, and knows nothing of Ray.

Several units are open in an actor at once and share its teacher, so that the slow tail of one never starves it. The
answers go to the ledger; what is given back is only counts.

An engine that dies is replaced where it was. What was in flight is asked again, and the last try at a request that
engines died on is made alone among its kind: so one that kills its engine each time is found, and ends as an `error`,
without taking its neighbours along.
"""

import asyncio
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import RaystillError, TeacherDiedError, TeacherError
from pipeline.progress import DONE, TOKENS
from pipeline.records import SCHEMAS, Completion, Outcome, Request, from_table
from pipeline.teachers.completions import group_by_request
from pipeline.teachers.efficiency import Occupancy
from pipeline.teachers.histories import read_positions
from pipeline.teachers.ledger import Ledger, LedgerWriter, Snapshot
from pipeline.teachers.plan import DIED, Judge, Limits, Position, advance, locate
from pipeline.teachers.teacher import Teacher, TeacherConfig, make_failure

SPARE_DEATHS = 5
"""Deaths in a row without any answer that are borne beyond `max_tries`: so many bad requests may be the last ones left.
Beyond that it is the engine, or its machine, and no request should be blamed."""
REPORT_INTERVAL_S = 0.5
"""A report is a call of another actor: one for each completion cost more than all else that this actor does."""
STATE_INTERVAL_S = 2.0
STOP_INTERVAL_S = 2.0
"""Between two questions whether to stop, which are calls too."""
_TOTALS = pa.schema([("name", pa.string()), ("value", pa.float64())])
MEMORY = "memory"
"""The one total of which the largest counts, rather than the sum."""
FAILURE = "failure/"
"""What an actor ends a run with. Ray would pass an exception on without its cause."""


class TeacherActor:
    """Takes units of requests and brings each request to its end."""

    def __init__(
        self,
        requests: Sequence[Request],
        config: TeacherConfig,
        make_teacher: Callable[[], Teacher],
        judge: Judge,
        limits: Limits,
        ledger: Ledger,
        snapshot: Snapshot,
        session: str,
        started_at: float,
        report: Callable[[Mapping[str, int]], None] = lambda counts: None,
        show_state: Callable[[str, Mapping[str, int]], None] = lambda actor, state: None,
        find_stop: Callable[[], str] = lambda: "",
    ) -> None:
        self._requests = requests
        self._make_teacher = make_teacher
        self._is_deferred = config.is_deferred
        self._judge = judge
        self._limits = limits
        self._ledger = ledger
        self._seen = snapshot
        self._younger = SCHEMAS[Completion].empty_table()
        self._report = report
        self._totals: Counter[str] = Counter()
        self._told: Counter[str] = Counter()
        self._session = session
        self._writer = LedgerWriter(ledger, session)
        self._unreported: Counter[str] = Counter()
        self._reported_at = time.monotonic()
        self._name = uuid.uuid4().hex
        self._show_state = show_state
        self._state_told_at = 0.0
        self._has_told_state = False
        self._find_stop = find_stop
        self._stop_check: asyncio.Task[None] | None = None
        self._next_stop_check = 0.0
        self._is_stopped = False
        self._failure = ""
        try:
            self._teacher = make_teacher()
        except RaystillError as error:
            self._failure = str(error)
            return
        self._teacher_lives = asyncio.Event()
        self._teacher_lives.set()
        self._deaths_in_row = 0
        self._alone = asyncio.Lock()
        max_in_flight = config.max_in_flight or self._teacher.capacity
        self._open_requests = asyncio.Semaphore(max_in_flight)
        self._occupancy = Occupancy(max_in_flight, started_at)

    async def __call__(self, unit: pa.Table) -> AsyncIterator[pa.Table]:
        """Bring the requests of a unit to their ends; yield what was counted since the last unit ended."""
        if not self._failure and not self._is_stopped:
            try:
                await self._settle_all(unit)
            except* RaystillError as group:
                self._failure = str(_find_first(group))
        if self._failure:
            yield _to_totals({FAILURE + self._failure: 1})
        else:
            yield self._tell_totals()

    async def _settle_all(self, unit: pa.Table) -> None:
        # Another job, or an actor that died, may have answered part of this plan: of this unit or of one to come.
        self._ledger.recover(self._session)
        younger, self._seen = self._ledger.read_tables(self._seen, lambda table: table)
        self._younger = pa.concat_tables([self._younger, *younger])
        planned = read_positions(self._requests, unit)
        ids = pa.array([request.request_id for request, _ in planned])
        answered = self._younger.filter(pc.is_in(self._younger["request_id"], ids))
        histories = group_by_request(from_table(Completion, answered))
        telling = asyncio.create_task(self._tell_states())
        try:
            async with asyncio.TaskGroup() as group:
                for request, position in planned:
                    history = histories.get(request.request_id, ())
                    position = locate(request, history, self._judge, self._limits, position)
                    group.create_task(self._settle(request, position))
        finally:
            telling.cancel()
            self._tell_state()
        self._writer.roll()
        self._send_report()

    async def _settle(self, request: Request, position: Position) -> None:
        while not position.settled:
            is_last_try = position.deaths > 0 and position.tries == self._limits.max_tries - 1
            is_suspect = is_last_try and not self._is_deferred
            async with self._alone if is_suspect else nullcontext(), self._open_requests:
                await self._teacher_lives.wait()
                if self._failure or self._is_stopped:  # what waited is not paid for any more
                    return
                with self._occupancy.request():
                    completion, death = await self._ask(request, position.attempt)
                completion = self._writer.write(completion)
                if self._writer.is_due:
                    self._writer.roll()
                outcome = self._judge(request, completion)
                position = advance(position, completion, outcome, self._limits)
                self._count(completion, outcome, position.settled)
                if death is None:
                    self._deaths_in_row = 0
                else:
                    await self._replace_teacher(*death)

    async def _ask(self, request: Request, attempt: int) -> tuple[Completion, tuple[Teacher, str] | None]:
        """Return a completion; where the teacher died of it, that teacher and all that is known of its death."""
        teacher, started_at = self._teacher, time.time()
        if not self._is_deferred:
            self._writer.start(request.request_id, attempt)
        try:
            return await teacher.complete(request, attempt), None
        except TeacherDiedError as error:
            summary = str(error).splitlines()[0]
            return make_failure(request, attempt, started_at, Outcome.ERROR, summary, DIED), (teacher, str(error))

    async def _replace_teacher(self, dead: Teacher, reason: str) -> None:
        """Put a new teacher in the place of one that died, unless another of its requests has seen to that."""
        if self._teacher is not dead or not self._teacher_lives.is_set():
            return
        self._teacher_lives.clear()
        self._deaths_in_row += 1
        if self._deaths_in_row > self._limits.max_tries + SPARE_DEATHS:
            raise TeacherError(
                f"died {self._deaths_in_row} times without an answer in between; the last time: {reason}"
            )
        with self._occupancy.start():
            await dead.close()
            self._teacher = await asyncio.to_thread(self._make_teacher)
        self._unreported["engines replaced"] += 1
        self._teacher_lives.set()

    def _count(self, completion: Completion, outcome: Outcome, is_settled: bool) -> None:
        is_accepted = outcome is Outcome.OK
        self._totals.update(
            {
                f"outcome/{outcome}": 1,
                "tokens/prompt": completion.n_prompt_tokens,
                "tokens/cached": completion.n_cached_tokens,
                "tokens/completion": completion.n_completion_tokens,
                "busy/all": completion.latency_s,
                "busy/accepted": completion.latency_s * is_accepted,
            }
        )
        self._unreported.update(
            {DONE: is_settled, TOKENS: completion.n_completion_tokens, outcome.value: not is_accepted}
        )
        if time.monotonic() - self._reported_at >= REPORT_INTERVAL_S:
            self._send_report()
        if self._stop_check is None or (self._stop_check.done() and time.monotonic() >= self._next_stop_check):
            self._next_stop_check = time.monotonic() + STOP_INTERVAL_S
            self._stop_check = asyncio.create_task(self._check_stop())

    async def _check_stop(self) -> None:
        self._is_stopped = bool(await asyncio.to_thread(self._find_stop))

    async def _tell_states(self) -> None:
        while True:
            await asyncio.sleep(STATE_INTERVAL_S)
            if time.monotonic() - self._state_told_at >= STATE_INTERVAL_S:  # and no other unit has just told it
                self._tell_state()

    def _tell_state(self) -> None:
        state = self._teacher.describe_state()
        if state or self._has_told_state:
            self._show_state(self._name, state)
        self._has_told_state, self._state_told_at = bool(state), time.monotonic()

    def _send_report(self) -> None:
        self._report(dict(self._unreported))
        self._unreported.clear()
        self._reported_at = time.monotonic()

    def _tell_totals(self) -> pa.Table:
        now = {**self._totals, **{f"seconds/{cause}": s for cause, s in self._occupancy.seconds().items()}}
        new = {name: value - self._told[name] for name, value in now.items()}
        self._told = Counter(now)
        return _to_totals({**new, MEMORY: self._teacher.measure_memory() or 0})


def _to_totals(values: Mapping[str, float]) -> pa.Table:
    return pa.Table.from_pylist([{"name": name, "value": float(value)} for name, value in values.items()], _TOTALS)


def _find_first(group: BaseExceptionGroup[Any]) -> BaseException:
    inner = group.exceptions[0]
    return _find_first(inner) if isinstance(inner, BaseExceptionGroup) else inner
