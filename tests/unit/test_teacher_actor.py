"""The actor that takes units of requests, without Ray: what it asks, how many at once, and what it never asks twice."""

import asyncio
import time
from collections import Counter
from dataclasses import dataclass, field

import pyarrow as pa
import pytest

from pipeline.records import Completion, Outcome, Request, Seed
from pipeline.storage import Folder
from pipeline.teachers.ledger import Ledger
from pipeline.teachers.plan import Limits, Position
from pipeline.teachers.pool import TeacherActor, _with_positions
from pipeline.teachers.teacher import SamplingConfig, TeacherConfig

LIMITS = Limits(max_attempts=3, max_tries=2)
REQUESTS = [Request(f"r{n}", Seed(f"s{n}", "t", "g"), (), (), "{}", 10, 0.0, 1.0, n) for n in range(12)]


@dataclass
class Scripted:
    """A teacher that answers `ok`, or what is written down for (request, attempt), and counts."""

    outcomes: dict[tuple[str, int], list[Outcome]] = field(default_factory=dict)
    seconds: float = 0.0
    asked: list[tuple[str, int]] = field(default_factory=list)
    n_open: int = 0
    most_open: int = 0

    async def complete(self, request: Request, attempt: int) -> Completion:
        self.asked.append((request.request_id, attempt))
        self.n_open += 1
        self.most_open = max(self.most_open, self.n_open)
        try:
            await asyncio.sleep(self.seconds)
        finally:
            self.n_open -= 1
        left = self.outcomes.get((request.request_id, attempt))
        outcome = left.pop(0) if left else Outcome.OK
        return Completion(request.request_id, attempt, outcome, "{}", "stop", 1, 1, time.time(), 0.0)


@pytest.fixture
def ledger(tmp_path):
    return Ledger.of(Folder.at(tmp_path), "sample")


def start(ledger, teacher, snapshot=None, max_in_flight=4, timeout_s=5.0, report=lambda counts: None) -> TeacherActor:
    sampling = SamplingConfig(temperature=0.0, top_p=1.0)
    config = TeacherConfig(
        label="sample", sampling=sampling, max_in_flight=max_in_flight, timeout_s=timeout_s, max_tries=LIMITS.max_tries
    )
    judge = lambda request, completion: completion.outcome  # noqa: E731
    seen = ledger.read()[1] if snapshot is None else snapshot
    return TeacherActor(config, lambda: teacher, judge, LIMITS, ledger, seen, report)


def settle(actor, *units) -> list[dict[str, int]]:
    """Hand all units to an actor at once, as Ray does; return each one's counts."""

    async def take(unit) -> dict[str, int]:
        (table,) = [table async for table in actor(_with_positions([(request, Position()) for request in unit]))]
        return dict(zip(table["outcome"].to_pylist(), table["completions"].to_pylist(), strict=True))

    async def take_all():
        return await asyncio.gather(*(take(unit) for unit in units))

    return asyncio.run(take_all())


def test_each_request_is_brought_to_its_end_and_every_completion_is_in_the_ledger(ledger):
    outcomes = {
        ("r0", 1): [Outcome.INVALID_JSON],
        ("r1", 1): [Outcome.TIMEOUT, Outcome.ERROR],
        ("r2", 1): [Outcome.ERROR, Outcome.TRUNCATED],
        ("r2", 2): [Outcome.SCHEMA_MISMATCH],
        ("r2", 3): [Outcome.SCHEMA_MISMATCH],
        ("r3", 1): [Outcome.REFUSED],
    }
    teacher = Scripted(outcomes)
    reports = []
    counts = settle(start(ledger, teacher, report=reports.append), REQUESTS[:3], REQUESTS[3:5])
    assert counts == [
        {"ok": 1, "invalid_json": 1, "timeout": 1, "error": 2, "truncated": 1, "schema_mismatch": 2},
        {"ok": 1, "refused": 1},
    ]
    completions, _ = ledger.read()
    assert Counter(c.outcome.value for c in completions) == Counter(counts[0]) + Counter(counts[1])
    assert Counter(teacher.asked) == Counter((c.request_id, c.attempt) for c in completions)
    total = sum(map(Counter, reports), Counter())
    assert total["done"] == 5
    assert total["error"] == 2
    assert total["ok"] == 0, "only what went wrong is shown beside what is done"


def test_no_more_requests_are_open_than_allowed_over_all_units(ledger):
    teacher = Scripted(seconds=0.01)
    settle(start(ledger, teacher, max_in_flight=3), REQUESTS[:4], REQUESTS[4:8], REQUESTS[8:])
    assert teacher.most_open == 3
    assert len(teacher.asked) == 12


def test_a_slow_request_holds_up_no_other(ledger):
    class Slow(Scripted):
        async def complete(self, request, attempt):
            self.seconds = 0.5 if request.request_id == "r0" else 0.0
            return await super().complete(request, attempt)

    settle(start(ledger, Slow(), max_in_flight=2), REQUESTS[:6], REQUESTS[6:])
    assert ledger.read()[0][-1].request_id == "r0"


def test_an_answer_that_never_comes_is_a_timeout_and_asked_as_often_as_allowed(ledger):
    teacher = Scripted(seconds=60.0)
    assert settle(start(ledger, teacher, timeout_s=0.05), REQUESTS[:1]) == [{"timeout": 2}]
    completions, _ = ledger.read()
    assert [(c.attempt, c.outcome, c.error) for c in completions] == [
        (1, Outcome.TIMEOUT, "no answer within 0.05 s")
    ] * 2
    assert teacher.n_open == 0


def test_what_another_has_answered_since_the_plan_is_not_asked_again_in_any_unit(ledger):
    """As after an actor died: its log is recovered, and all its units come to the next one."""
    _, plan_snapshot = ledger.read()
    first = Scripted({("r1", 1): [Outcome.INVALID_JSON]})
    settle(start(ledger, first), REQUESTS[:3])
    second = Scripted()
    settle(start(ledger, second, plan_snapshot), REQUESTS[:1], REQUESTS[1:2], REQUESTS[2:4])
    assert second.asked == [("r3", 1)]


def test_failed_tries_of_a_dead_actor_count_once_and_its_request_goes_on(ledger):
    _, plan_snapshot = ledger.read()
    failed = Completion("r0", 1, Outcome.TIMEOUT, "", "timeout", 0, 0, 1.0, 0.1)
    ledger.store([failed], "one")
    actor = start(ledger, Scripted(), plan_snapshot)
    settle(actor, REQUESTS[1:2])
    ledger.compact()  # the same rows turn up in a segment of another name
    ledger.store([failed], "again")
    assert settle(actor, REQUESTS[:1]) == [{"ok": 1}]


def test_a_unit_without_open_requests_asks_nothing(ledger):
    settle(start(ledger, Scripted()), REQUESTS[:2])
    teacher = Scripted()
    assert settle(start(ledger, teacher, {}), REQUESTS[:2]) == [{}]
    assert teacher.asked == []


def test_positions_travel_with_their_requests():
    table = _with_positions([(REQUESTS[0], Position(2, 1)), (REQUESTS[1], Position())])
    assert table.num_rows == 2
    assert table["attempt"].to_pylist() == [2, 1]
    assert table["tries"].to_pylist() == [1, 0]
    assert table.schema.field("attempt").type == pa.int64()
