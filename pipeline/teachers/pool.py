"""The pool: actors that hold a teacher each and ask it what the ledger does not know yet.

Units of requests are the rows of a Ray Data data set, one block each, which `map_batches` hands to a fixed pool. The
answers go to the ledger; what comes back through Ray is only counts.
"""

import logging
import time
import uuid
from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from math import ceil
from typing import Any

from pydantic import Field

from pipeline.config import Config
from pipeline.errors import TeacherError
from pipeline.records import Request
from pipeline.teachers.actor import FAILURE, MEMORY, TeacherActor
from pipeline.teachers.efficiency import Session, summarize
from pipeline.teachers.histories import Histories, find_unsettled, sort_by_prefix
from pipeline.teachers.ledger import Ledger
from pipeline.teachers.plan import Judge, Limits
from pipeline.teachers.teacher import Teacher, TeacherConfig

UNITS_PER_ACTOR = 4
MAX_UNIT_ROWS = 1_000
MAX_DEFERRED_UNIT_ROWS = 25_000
"""Of a teacher that answers hours later: what is in no open unit waits that long before it is even asked."""
_KEPT = "answered requests are kept"


class PoolConfig(Config):
    """How wide teachers are asked; what one actor takes of the cluster is said with the teacher."""

    actors: int = Field(gt=0)
    """Of which each holds a whole teacher."""


def teach(
    requests: Sequence[Request],
    ledger: Ledger,
    teacher: TeacherConfig,
    make_teacher: Callable[[], Teacher],
    judge: Judge,
    limits: Limits,
    config: PoolConfig,
    *,
    replays: Mapping[str, int] | None = None,
    report: Callable[[Mapping[str, int]], None] = lambda counts: None,
    show_state: Callable[[str, Mapping[str, int]], None] = lambda actor, state: None,
    find_stop: Callable[[], str] = lambda: "",
) -> Session:
    """Ask a teacher for all that the ledger lacks; return what that came to.

    Args:
        requests: All requests of an arm, answered ones included: they are left out here, once. From a file that every
            node can read, they stay in it; a list travels to each actor.
        ledger: Where completions are read from and written to.
        teacher: What an actor takes of the cluster, and how many requests it keeps open.
        make_teacher: Builds the teacher inside an actor.
        judge: What parsing makes of a completion.
        limits: How often a request may be asked in one round.
        config: Size of the pool.
        replays: Rounds granted besides the first, by request id.
        report: Picklable; called with counts as completions come, and with `done` for each settled request.
        show_state: Picklable; called with an actor's name and its teacher's state, again and again while there is one.
        find_stop: Picklable; asked every few seconds why to stop. With a reason, what is in flight is waited for, and
            nothing else is asked.

    Raises:
        TeacherError: There was a reason to stop, no request can succeed, engines die without an answer in between, or
            some requests are still without an end after all was asked, which means that rows got lost.
    """
    import ray.data

    replays, max_unit_rows = replays or {}, MAX_UNIT_ROWS
    if teacher.is_deferred:
        config, max_unit_rows = PoolConfig(actors=1), MAX_DEFERRED_UNIT_ROWS
    _recover(ledger)
    histories = Histories(requests, ledger)
    unsettled, snapshot = find_unsettled(requests, histories, judge, limits, replays), histories.snapshot
    del histories
    if not unsettled:
        return summarize({}, requests=0, span_s=0.0, actors=config.actors, devices_per_actor=teacher.devices)
    logging.getLogger("ray.data").setLevel(logging.ERROR)  # set up on import; its lines would bury ours
    context = ray.data.DataContext.get_current()
    context.execution_options.verbose_progress = False
    context.enable_progress_bars = False
    context.execution_no_progress_timeout_s = -1  # a slow teacher is no stuck one; each request has its own timeout
    unit_rows = min(max_unit_rows, ceil(len(unsettled) / (UNITS_PER_ACTOR * config.actors)))
    table = sort_by_prefix(unsettled)
    units = [table.slice(start, unit_rows) for start in range(0, table.num_rows, unit_rows)]
    session, started_at = uuid.uuid4().hex, time.time()
    counts = ray.data.from_arrow(units).map_batches(
        TeacherActor,
        batch_size=None,
        batch_format="pyarrow",
        fn_constructor_kwargs={
            "requests": requests,
            "config": teacher,
            "make_teacher": make_teacher,
            "judge": judge,
            "limits": limits,
            "ledger": ledger,
            "snapshot": snapshot,
            "session": session,
            "started_at": started_at,
            "report": report,
            "show_state": show_state,
            "find_stop": find_stop,
        },
        num_cpus=teacher.cpus,
        num_gpus=teacher.gpus,
        compute=ray.data.ActorPoolStrategy(
            size=config.actors,
            max_tasks_in_flight_per_actor=UNITS_PER_ACTOR,
            max_concurrent_calls_per_actor=UNITS_PER_ACTOR,
        ),
    )
    totals: Counter[str] = Counter()
    memory_bytes = 0
    try:
        with closing(_iterate_rows(counts)) as rows:
            for row in rows:
                if row["name"].startswith(FAILURE):
                    raise TeacherError(f"{row['name'].removeprefix(FAILURE)}\n{_KEPT}")
                if row["name"] == MEMORY:
                    memory_bytes = max(memory_bytes, int(row["value"]))
                else:
                    totals[row["name"]] += row["value"]
    except ray.exceptions.RayError as error:
        raise TeacherError(f"an actor failed; {_KEPT}\n{error}") from None
    span_s = time.time() - started_at
    _recover(ledger, session)
    ledger.compact()
    if lost := find_unsettled(requests, Histories(requests, ledger), judge, limits, replays):
        if reason := find_stop():
            raise TeacherError(f"{reason}\n{_KEPT}")
        request, _ = next(iter(lost))
        raise TeacherError(
            f"{len(lost)} of {len(unsettled)} requests have no end in {ledger.folder}, the first is "
            f"{request.request_id}; run the same command again, answered ones are kept"
        )
    return summarize(
        totals,
        requests=len(unsettled),
        span_s=span_s,
        actors=config.actors,
        devices_per_actor=teacher.devices,
        memory_bytes=memory_bytes or None,
    )


def _recover(ledger: Ledger, session: str = "") -> None:
    """Roll the logs that dead writers left, as `Ledger.recover` does, on every node that has some of its own."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    if ledger.folder.is_local:  # so that all nodes' logs lie in it
        ledger.recover(session)
        return
    nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
    recover = ray.remote(num_cpus=0)(Ledger.recover)
    ray.get(
        [
            recover.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=True)).remote(ledger, session)
            for node in nodes
        ]
    )


def _iterate_rows(dataset: Any) -> Generator[dict[str, Any], None, None]:
    """Yield the rows of a Ray data set as they come; closing this ends its execution.

    Not by `iter_rows`, whose threads outlive it when an error ends it: one that still touches Ray after the cluster was
    left ends the process before the error is told.
    """
    import ray

    for bundle in dataset.iter_internal_ref_bundles():
        for block in bundle.blocks:
            yield from ray.get(block.ref).to_pylist()
