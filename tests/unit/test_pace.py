"""Rate caps on a clock that only moves when somebody sleeps, and how long a failed call waits."""

import asyncio
import heapq
import math
import random
import time
from email.utils import formatdate
from itertools import pairwise

import pytest

from pipeline.teachers.pace import Pace, compute_wait


class Clock:
    """Virtual seconds: whoever sleeps is woken in order, and no time passes otherwise."""

    def __init__(self):
        self.now = 100.0
        self._sleepers = []

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        woken = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self.now + seconds, id(woken), woken))
        await woken

    async def run(self, *coroutines) -> None:
        tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
        while not all(task.done() for task in tasks):
            for _ in range(5):  # whoever can go on does, before time goes on
                await asyncio.sleep(0)
            if self._sleepers:
                self.now, _, woken = heapq.heappop(self._sleepers)
                woken.set_result(None)
        await asyncio.gather(*tasks)


def send(n: int, per_minute: float, amount: float = 1, used: float | None = None, answer_s: float = 0.0, open_=10**9):
    """Return when each of `n` requests was let through, in seconds from the start."""
    clock = Clock()
    pace = Pace(per_minute, clock, clock.sleep)
    sent = []

    async def ask(slots):
        async with slots:
            await pace.reserve(amount)
            sent.append(clock.now - 100.0)
            await clock.sleep(answer_s)
            if used is not None:
                pace.settle(amount, used)

    async def run():
        slots = asyncio.Semaphore(open_)
        await clock.run(*(ask(slots) for _ in range(n)))

    asyncio.run(run())
    return sent


def count_most_in_a_minute(sent) -> int:
    return max(sum(start <= at <= start + 60 for at in sent) for start in sent)


@pytest.mark.parametrize("per_minute", [7, 60, 500])
def test_no_minute_ever_sees_more_than_the_cap_and_one(per_minute):
    sent = send(3 * per_minute, per_minute)
    assert count_most_in_a_minute(sent) <= per_minute + 1
    assert sent[0] == 0
    assert sent[-1] == pytest.approx((3 * per_minute - 1) * 60 / per_minute), "nor is the cap left unused"


def test_requests_are_let_through_evenly():
    sent = send(50, 600)
    assert [b - a for a, b in pairwise(sent)] == pytest.approx([0.1] * 49)


def test_a_pause_is_not_made_up_for_by_a_burst():
    clock = Clock()
    pace = Pace(60, clock, clock.sleep)
    sent = []

    async def run():
        await pace.reserve(1)
        clock.now += 1000
        for _ in range(3):
            await clock.run(pace.reserve(1))
            sent.append(clock.now)

    asyncio.run(run())
    assert sent == [1100, 1101, 1102]


def test_without_a_cap_nobody_waits():
    assert send(1000, math.inf) == [0] * 1000


def test_an_amount_takes_its_share_of_the_minute():
    assert send(4, 60_000, amount=20_000) == pytest.approx([0, 20, 40, 60])


def test_what_was_not_used_is_let_through_after_all():
    reserved_only = send(400, 60_000, amount=10_000, answer_s=1, open_=16)
    settled = send(400, 60_000, amount=10_000, used=2_500, answer_s=1, open_=16)
    assert reserved_only[-1] == pytest.approx(399 * 10)
    assert settled[-1] < 399 * 2.5 + 16 * 10, "the rate is that of what is used, after the first that were open"


def test_no_minute_uses_more_tokens_than_the_cap_once_the_size_of_answers_is_known():
    sent = send(600, 60_000, amount=10_000, used=2_500, answer_s=1, open_=16)
    assert count_most_in_a_minute(sent) * 2_500 <= 60_000 + 2_500


def test_what_was_used_beyond_the_reservation_is_paid_later():
    assert send(3, 60, amount=1, used=5, answer_s=0.5, open_=1) == pytest.approx([0, 5, 10])


@pytest.mark.parametrize(("header", "seconds"), [("0", 0), ("7", 7), ("0.25", 0.25), ("-3", 0), ("86400", 600)])
def test_a_server_is_left_alone_for_as_long_as_it_asks_up_to_ten_minutes(header, seconds):
    assert compute_wait(header, 5, random.Random(0)) == seconds


def test_a_date_is_waited_for():
    assert 27 < compute_wait(formatdate(time.time() + 30, usegmt=True), 0, random.Random(0)) <= 30
    assert compute_wait(formatdate(time.time() - 30, usegmt=True), 0, random.Random(0)) == 0
    assert compute_wait(formatdate(time.time() + 90_000, usegmt=True), 0, random.Random(0)) == 600


@pytest.mark.parametrize("header", ["", "soon", f"Mon, 01 Jan {10**20} 00:00:00 GMT"])
def test_without_such_a_wish_waits_double_and_are_spread_within_bounds(header):
    waits = [[compute_wait(header, n, random.Random(seed)) for seed in range(200)] for n in range(12)]
    for n, spread in enumerate(waits):
        assert min(spread) >= min(0.5 * 2**n, 60)
        assert max(spread) <= min(0.5 * 2 ** (n + 1), 60)
    assert len(set(waits[0])) == 200
    assert compute_wait(header, 10**6, random.Random(0)) == 60


def test_the_same_request_waits_the_same_again():
    assert compute_wait("", 2, random.Random("r1-1")) == compute_wait("", 2, random.Random("r1-1"))
