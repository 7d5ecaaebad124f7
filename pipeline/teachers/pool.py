"""The pool: actors that hold a teacher each and ask it what the ledger does not know yet.

Units of requests are the rows of a Ray Data data set, one block each, which `map_batches` hands to a fixed pool.
Several units are open in an actor at once and share its teacher, so that the slow tail of one never starves it. The
answers go to the ledger; what comes back through Ray is only counts.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from math import ceil

import pyarrow as pa
from pydantic import Field

from pipeline.config import Config
from pipeline.errors import TeacherError
from pipeline.progress import DONE
from pipeline.records import Completion, Outcome, Request, from_table, to_table
from pipeline.teachers.ledger import Ledger, LedgerWriter, Snapshot, group_by_request, sort_history
from pipeline.teachers.plan import Judge, Limits, Position, advance, find_unsettled, locate
from pipeline.teachers.teacher import Teacher, TeacherConfig

UNITS_PER_ACTOR = 4
MAX_UNIT_ROWS = 1_000
_COUNTS = pa.schema([("outcome", pa.string()), ("completions", pa.int64())])


class PoolConfig(Config):
    """How many actors ask, and what each takes of the cluster."""

    actors: int = Field(gt=0)
    cpus_per_actor: float = Field(ge=0)
    gpus_per_actor: float = Field(ge=0)


def teach(
    requests: Sequence[Request],
    ledger: Ledger,
    teacher: TeacherConfig,
    make_teacher: Callable[[], Teacher],
    judge: Judge,
    limits: Limits,
    config: PoolConfig,
    report: Callable[[Mapping[str, int]], None] = lambda counts: None,
) -> dict[str, int]:
    """Ask a teacher for all that the ledger lacks; return how many completions of each outcome came in.

    Args:
        requests: All requests of an arm, answered ones included: they are left out here, once.
        ledger: Where completions are read from and written to.
        teacher: How many requests an actor keeps open, and how long it waits for one.
        make_teacher: Builds the teacher inside an actor.
        judge: What parsing makes of a completion.
        limits: How often a request may be asked.
        config: Size of the pool.
        report: Picklable; called with counts as completions come, and with `done` for each settled request.

    Raises:
        TeacherError: Some requests are still without an end after all was asked, which means that rows got lost.
    """
    import ray.data

    ledger.recover()
    completions, snapshot = ledger.read()
    unsettled = find_unsettled(requests, group_by_request(completions), judge, limits)
    if not unsettled:
        return {}
    logging.getLogger("ray.data").setLevel(logging.ERROR)  # set up on import; its lines would bury ours
    context = ray.data.DataContext.get_current()
    context.execution_options.verbose_progress = False
    context.enable_progress_bars = False
    context.execution_no_progress_timeout_s = -1  # a slow teacher is no stuck one; each request has its own timeout
    unit_rows = min(MAX_UNIT_ROWS, ceil(len(unsettled) / (UNITS_PER_ACTOR * config.actors)))
    table = _with_positions(unsettled)
    units = [table.slice(start, unit_rows) for start in range(0, table.num_rows, unit_rows)]
    counts = ray.data.from_arrow(units).map_batches(
        TeacherActor,
        batch_size=None,
        batch_format="pyarrow",
        fn_constructor_kwargs={
            "config": teacher,
            "make_teacher": make_teacher,
            "judge": judge,
            "limits": limits,
            "ledger": ledger,
            "snapshot": snapshot,
            "report": report,
        },
        num_cpus=config.cpus_per_actor,
        num_gpus=config.gpus_per_actor,
        compute=ray.data.ActorPoolStrategy(
            size=config.actors,
            max_tasks_in_flight_per_actor=UNITS_PER_ACTOR,
            max_concurrent_calls_per_actor=UNITS_PER_ACTOR,
        ),
    )
    total: Counter[str] = Counter()
    try:
        for row in counts.iter_rows():
            total[row["outcome"]] += row["completions"]
    except ray.exceptions.RayError as error:
        raise TeacherError(f"an actor failed: {_find_cause(error)}; answered requests are kept") from error
    ledger.recover()
    ledger.compact()
    completions, _ = ledger.read()
    if lost := find_unsettled(requests, group_by_request(completions), judge, limits):
        raise TeacherError(
            f"{len(lost)} of {len(unsettled)} requests have no end in {ledger.folder}, the first is "
            f"{lost[0][0].request_id}; run the same command again, answered ones are kept"
        )
    return dict(total)


class TeacherActor:
    """Takes units of requests and brings each request to its end."""

    def __init__(
        self,
        config: TeacherConfig,
        make_teacher: Callable[[], Teacher],
        judge: Judge,
        limits: Limits,
        ledger: Ledger,
        snapshot: Snapshot,
        report: Callable[[Mapping[str, int]], None],
    ) -> None:
        self._teacher = make_teacher()
        self._open_requests = asyncio.Semaphore(config.max_in_flight)
        self._timeout_s = config.timeout_s
        self._judge = judge
        self._limits = limits
        self._ledger = ledger
        self._seen = snapshot
        self._younger: dict[str, list[Completion]] = {}
        self._report = report
        ledger.recover()  # what an earlier actor on this machine left behind when it died
        self._writer = LedgerWriter(ledger)

    async def __call__(self, unit: pa.Table) -> AsyncIterator[pa.Table]:
        """Bring the requests of a unit to their ends; yield the completions by outcome."""
        counts: Counter[str] = Counter()
        # Another job, or an actor that died, may have answered part of this plan: of this unit or of one to come.
        younger, self._seen = self._ledger.read(self._seen)
        for completion in younger:
            self._younger.setdefault(completion.request_id, []).append(completion)
        async with asyncio.TaskGroup() as group:
            for request, position in _read_positions(unit):
                history = sort_history(self._younger.get(request.request_id, ()))
                position = locate(request, history, self._judge, self._limits, position)
                group.create_task(self._settle(request, position, counts))
        self._writer.roll()
        yield pa.Table.from_pylist(
            [{"outcome": outcome, "completions": n} for outcome, n in counts.items()], schema=_COUNTS
        )

    async def _settle(self, request: Request, position: Position, counts: Counter[str]) -> None:
        while not position.settled:
            async with self._open_requests:
                completion = await self._ask(request, position.attempt)
            self._writer.write(completion)
            if self._writer.is_due:
                self._writer.roll()
            outcome = self._judge(request, completion)
            counts[outcome.value] += 1
            position = advance(position, outcome, self._limits)
            self._report({DONE: int(position.settled), outcome.value: int(outcome is not Outcome.OK)})

    async def _ask(self, request: Request, attempt: int) -> Completion:
        self._writer.start(request.request_id, attempt)
        started_at = time.time()
        try:
            return await asyncio.wait_for(self._teacher.complete(request, attempt), self._timeout_s)
        except TimeoutError:
            waited = time.time() - started_at
            return Completion(
                request.request_id, attempt, Outcome.TIMEOUT, "", "timeout", 0, 0, started_at, waited,
                f"no answer within {self._timeout_s} s",
            )  # fmt: skip


def _find_cause(error: BaseException) -> str:
    """Return what the innermost error says, of those that Ray and a group of tasks have wrapped it in."""
    while True:
        inner = getattr(error, "cause", None) or error.__cause__
        if isinstance(error, BaseExceptionGroup):
            inner = error.exceptions[0]
        if not isinstance(inner, BaseException):
            return f"{type(error).__name__}: {error}".strip().splitlines()[0]
        error = inner


def _with_positions(requests: Sequence[tuple[Request, Position]]) -> pa.Table:
    table = to_table(Request, [request for request, _ in requests])
    for name in _POSITION:
        table = table.append_column(name, pa.array([getattr(position, name) for _, position in requests], pa.int64()))
    return table


def _read_positions(table: pa.Table) -> Iterator[tuple[Request, Position]]:
    columns = [table.column(name).to_pylist() for name in _POSITION]
    positions = (Position(attempt, tries) for attempt, tries in zip(*columns, strict=True))
    yield from zip(from_table(Request, table.drop_columns(list(_POSITION))), positions, strict=True)


_POSITION = ("attempt", "tries")
