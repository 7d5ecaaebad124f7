"""The actor that takes units of requests, without Ray: what it asks, how many at once, and what it never asks twice."""

import asyncio
import time
from collections import Counter
from dataclasses import asdict, dataclass, field

import pytest

from pipeline.errors import TeacherDiedError, TeacherError
from pipeline.progress import Tally
from pipeline.records import Completion, Outcome, Request, Seed
from pipeline.storage import Folder
from pipeline.teachers import actor as actor_module
from pipeline.teachers.actor import SPARE_DEATHS, TeacherActor
from pipeline.teachers.histories import read_positions, write_positions
from pipeline.teachers.ledger import Ledger
from pipeline.teachers.logs import read_log
from pipeline.teachers.plan import DIED, Limits, Position
from pipeline.teachers.teacher import PriceConfig, SamplingConfig, TeacherConfig

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
    capacity: int = 5
    closed: bool = False

    def describe_state(self) -> dict[str, int]:
        return {f"open {self.n_open}": 1} if self.n_open else {}

    def measure_memory(self) -> int:
        return 1_000

    async def close(self) -> None:
        self.closed = True

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


NO_PRICE = PriceConfig(per_million_prompt_tokens=None, per_million_completion_tokens=None, per_device_hour=None)


class DeferredConfig(TeacherConfig):
    """Of a teacher whose requests wait at a service."""

    @property
    def is_deferred(self) -> bool:
        return True


def start(
    ledger,
    *teachers,
    snapshot=None,
    max_in_flight=4,
    limits=LIMITS,
    report=lambda counts: None,
    show_state=lambda worker, state: None,
    make=None,
    model=TeacherConfig,
    find_stop=lambda: "",
) -> TeacherActor:
    """Return an actor that takes the teachers given, each when the one before has died."""
    config = model(
        label="sample", sampling=SamplingConfig(temperature=0.0, top_p=1.0), max_in_flight=max_in_flight, timeout_s=5.0,
        max_tries=limits.max_tries, cpus=1, gpus=0, price=NO_PRICE,
    )  # fmt: skip
    judge = lambda request, completion: completion.outcome  # noqa: E731
    seen = ledger.read()[1] if snapshot is None else snapshot
    left = iter(teachers)
    return TeacherActor(
        REQUESTS,
        config,
        make or (lambda: next(left)),
        judge,
        limits,
        ledger,
        seen,
        "session",
        time.time(),
        report,
        show_state,
        find_stop,
    )


def settle(actor, *units) -> dict[str, int]:
    """Hand all units to an actor at once, as Ray does; return all completions by outcome."""
    return {name.removeprefix("outcome/"): int(n) for name, n in count(actor, *units).items() if "outcome/" in name}


def count(actor, *units) -> dict[str, float]:
    """Return all that an actor counted, as the driver adds it up."""

    async def take(unit) -> Counter[str]:
        (table,) = [
            table async for table in actor(write_positions([REQUESTS.index(r) for r in unit], [Position()] * len(unit)))
        ]
        return Counter(dict(zip(table["name"].to_pylist(), table["value"].to_pylist(), strict=True)))

    async def take_all():
        return await asyncio.gather(*(take(unit) for unit in units))

    total: Counter[str] = Counter()
    for counts in asyncio.run(take_all()):
        total.update(counts)
    return {name: n for name, n in total.items() if n}


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
    expected = {
        "ok": 2,
        "invalid_json": 1,
        "timeout": 1,
        "error": 2,
        "truncated": 1,
        "schema_mismatch": 2,
        "refused": 1,
    }
    assert counts == expected
    completions, _ = ledger.read()
    assert Counter(c.outcome.value for c in completions) == expected
    assert Counter(teacher.asked) == Counter((c.request_id, c.attempt) for c in completions)
    total = sum(map(Counter, reports), Counter())
    assert total["done"] == 5
    assert total["error"] == 2
    assert total["ok"] == 0, "only what went wrong is shown beside what is done"


def test_what_holds_a_teacher_up_is_told_while_no_answer_comes_and_no_longer(ledger, monkeypatch):
    monkeypatch.setattr(actor_module, "STATE_INTERVAL_S", 0.05)
    tally, told = Tally(), []

    def show(worker, state):
        tally.show(worker, state)
        told.append(tally.totals())

    settle(start(ledger, Scripted(seconds=0.5), show_state=show), REQUESTS[:2], REQUESTS[2:3])
    assert {"open 3": 1} in told
    assert told[-1] == {}
    assert len(told) < 0.5 / 0.05 + 5, "two units don't tell it twice"


def test_a_teacher_without_a_state_tells_none(ledger, monkeypatch):
    monkeypatch.setattr(actor_module, "STATE_INTERVAL_S", 0.01)
    told = []
    teacher = Scripted(seconds=0.1)
    teacher.describe_state = dict
    settle(start(ledger, teacher, show_state=lambda *state: told.append(state)), REQUESTS[:2])
    assert told == []


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


def test_without_a_number_of_ones_own_the_teachers_capacity_is_filled(ledger):
    teacher = Scripted(seconds=0.01)
    settle(start(ledger, teacher, max_in_flight=None), REQUESTS)
    assert teacher.most_open == teacher.capacity


class Mortal(Scripted):
    """Dies when asked for one of the requests that are poison to it, and takes all that is in flight along."""

    def __init__(self, *poison: str) -> None:
        super().__init__(seconds=0.01)
        self.poison = poison
        self.dead = asyncio.Event()

    async def complete(self, request, attempt):
        if request.request_id in self.poison:
            await asyncio.sleep(0.002)
            self.dead.set()
        done, _ = await asyncio.wait(
            [asyncio.ensure_future(self.dead.wait()), asyncio.ensure_future(super().complete(request, attempt))],
            return_when=asyncio.FIRST_COMPLETED,
        )
        if self.dead.is_set():
            raise TeacherDiedError("the engine died\nits last line")
        return done.pop().result()


def test_an_engine_that_dies_is_replaced_and_what_was_in_flight_is_asked_again(ledger):
    first, second = Mortal("r3"), Scripted()
    reports = []
    assert settle(start(ledger, first, second, report=reports.append), REQUESTS) == {"ok": 12, "error": 4}
    assert sum(counts.get("engines replaced", 0) for counts in reports) == 1
    assert first.closed
    died = [c for c in ledger.read()[0] if c.outcome is Outcome.ERROR]
    assert {(c.finish_reason, c.error) for c in died} == {(DIED, "the engine died")}
    assert len(died) == 4, "just those in flight"


@pytest.mark.parametrize("poison", [["r3"], ["r0", "r7"], ["r8", "r9", "r10", "r11"]], ids=" ".join)
def test_a_request_that_kills_its_engine_each_time_is_found_and_harms_no_other(ledger, poison):
    limits = Limits(max_attempts=3, max_tries=3)
    teachers = [Mortal(*poison) for _ in range(20)]
    settle(start(ledger, *teachers, limits=limits), REQUESTS)
    completions, _ = ledger.read()
    accepted = {c.request_id for c in completions if c.outcome is Outcome.OK}
    assert accepted == {request.request_id for request in REQUESTS} - set(poison)
    for request_id in poison:
        assert [c.finish_reason for c in completions if c.request_id == request_id] == [DIED] * limits.max_tries


def test_an_engine_that_only_dies_ends_the_job_with_its_last_words(ledger):
    class Dead(Scripted):
        async def complete(self, request, attempt):
            raise TeacherDiedError("no such device\nits last line")

    limits = Limits(max_attempts=1, max_tries=20)
    teachers = [Dead() for _ in range(limits.max_tries + SPARE_DEATHS + 1)]
    (failure,) = count(start(ledger, *teachers, limits=limits), REQUESTS)
    assert failure.startswith("failure/")
    assert failure.endswith("no such device\nits last line")


def test_a_teacher_that_can_not_be_made_is_told_by_every_unit(ledger):
    def fail():
        raise TeacherError("no such model; name another")

    actor = start(ledger, make=fail)
    assert count(actor, REQUESTS[:2], REQUESTS[2:]) == {"failure/no such model; name another": 2}


@pytest.mark.parametrize(("model", "n_noted"), [(TeacherConfig, 4), (DeferredConfig, 0)])
def test_what_is_in_flight_is_noted_unless_it_waits_elsewhere(ledger, model, n_noted):
    """Where the actor dies, what was noted counts as a try."""

    async def look():
        unit = write_positions(range(len(REQUESTS)), [Position()] * len(REQUESTS))
        asking = asyncio.ensure_future(anext(start(ledger, Scripted(seconds=60), model=model)(unit)))
        await asyncio.sleep(0.05)
        (log,) = ledger.open_logs.glob("*.log")
        noted = read_log(log).in_flight
        asking.cancel()
        return noted

    assert len(asyncio.run(look())) == n_noted


def test_requests_that_wait_elsewhere_are_never_asked_one_by_one(ledger):
    teacher = Scripted(seconds=0.05)
    died = [Completion(r.request_id, 1, Outcome.ERROR, "", DIED, 0, 0, 1.0, 0.1) for r in REQUESTS]
    ledger.store(died, "by-another-kind-of-teacher")
    settle(start(ledger, teacher, max_in_flight=12, model=DeferredConfig, snapshot={}), REQUESTS)
    assert teacher.most_open == 12


def test_with_a_reason_to_stop_what_is_in_flight_is_kept_and_nothing_else_is_asked(ledger):
    """The second unit has nothing in flight and ends at once, but tells of no failure, which would end the run."""
    teacher = Scripted(seconds=0.05)
    reasons = iter(["", "too many rejects"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(actor_module, "STOP_INTERVAL_S", 0.0)
        actor = start(ledger, teacher, max_in_flight=2, find_stop=lambda: next(reasons, "too late"))
        found = count(actor, REQUESTS[:6], REQUESTS[6:])
        assert count(actor, REQUESTS[6:]).keys() <= {"memory"} | {name for name in found if "seconds" in name}
    assert 2 <= len(teacher.asked) <= 8
    assert found["outcome/ok"] == len(teacher.asked)
    assert not any(name.startswith("failure") for name in found)
    assert sorted(c.request_id for c in ledger.read()[0]) == sorted(request_id for request_id, _ in teacher.asked)


def test_what_is_counted_adds_up_over_units(ledger):
    teacher = Scripted({("r0", 1): [Outcome.INVALID_JSON]}, seconds=0.02)
    found = count(start(ledger, teacher, max_in_flight=2), REQUESTS[:6], REQUESTS[6:])
    assert found["tokens/prompt"] == found["tokens/completion"] == 13
    assert found["memory"] == 2_000, "once for each unit"
    assert found["seconds/running"] > found["seconds/tail"] > 0
    assert found["seconds/start"] > 0


def test_what_another_has_answered_since_the_plan_is_not_asked_again_in_any_unit(ledger):
    """As after an actor died: its log is recovered, and all its units come to the next one."""
    _, plan_snapshot = ledger.read()
    first = Scripted({("r1", 1): [Outcome.INVALID_JSON]})
    settle(start(ledger, first), REQUESTS[:3])
    second = Scripted()
    settle(start(ledger, second, snapshot=plan_snapshot), REQUESTS[:1], REQUESTS[1:2], REQUESTS[2:4])
    assert second.asked == [("r3", 1)]


def test_failed_tries_of_a_dead_actor_count_once_and_its_request_goes_on(ledger):
    _, plan_snapshot = ledger.read()
    failed = Completion("r0", 1, Outcome.TIMEOUT, "", "timeout", 0, 0, 1.0, 0.1)
    ledger.store([failed], "one")
    actor = start(ledger, Scripted(), snapshot=plan_snapshot)
    settle(actor, REQUESTS[1:2])
    ledger.compact()  # the same rows turn up in a segment of another name
    ledger.store([failed], "again")
    assert settle(actor, REQUESTS[:1]) == {"ok": 1}


def test_a_unit_without_open_requests_asks_nothing(ledger):
    settle(start(ledger, Scripted()), REQUESTS[:2])
    teacher = Scripted()
    assert settle(start(ledger, teacher, snapshot={}), REQUESTS[:2]) == {}
    assert teacher.asked == []


def test_positions_travel_with_the_rows_of_their_requests():
    at = 1_700_000_000.123456
    table = write_positions([7, 1], [Position(2, tries=1, tried_at=at), Position(3, 2, deaths=1, replays=4)])
    assert table.nbytes == 2 * (6 * 4 + 8), "of a million requests there are as many"
    assert [(r, asdict(p)) for r, p in read_positions(REQUESTS, table)] == [
        (REQUESTS[7], asdict(Position(2, tries=1, tried_at=at))),
        (REQUESTS[1], asdict(Position(3, 2, deaths=1, replays=4))),
    ]
