"""Rate caps, what headers say of limits, and how long a failed call waits; no time passes."""

import heapq
import math
import random
import time
from email.utils import formatdate
from itertools import pairwise

import pytest

from pipeline.teachers.pace import Pace, compute_spacing, compute_wait


def send(n: int, per_minute: float, amount: float = 1, used: float | None = None, answer_s: float = 0.0, open_=10**9):
    """Return when each of `n` requests was let through, in seconds from the start, with at most so many open."""
    pace, now, sent, ends = Pace(per_minute), 100.0, [], []
    while len(sent) < n:
        at = max(now, pace.free_at)
        if ends and (len(ends) == open_ or ends[0] <= at):
            now = max(now, heapq.heappop(ends))
            if used is not None:
                pace.settle(amount, used)
            continue
        now = at
        pace.spend(now, amount)
        sent.append(now - 100.0)
        heapq.heappush(ends, now + answer_s)
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
    pace = Pace(60)
    pace.spend(100, 1)
    sent = []
    for _ in range(3):
        sent.append(max(1100, pace.free_at))
        pace.spend(sent[-1], 1)
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


def limits(remaining, reset, kind="requests"):
    return {f"x-ratelimit-remaining-{kind}": remaining, f"x-ratelimit-reset-{kind}": reset}


@pytest.mark.parametrize(
    ("reset", "seconds"),
    [("30", 30), ("7.5", 7.5), ("12ms", 0.012), ("1m30.5s", 90.5), ("1h0m0s", 600), ("", 0), ("soon", 0), ("-4", 0),
     ("5s later", 0), ("1767225600", 0)],
)  # fmt: skip
def test_where_nothing_remains_the_reset_is_waited_for_up_to_ten_minutes(reset, seconds):
    assert compute_spacing(limits("0", reset), 100, 8) == pytest.approx(seconds)


def test_what_remains_is_spread_until_the_reset_where_it_is_little():
    assert compute_spacing(limits("5", "30s"), 100, 8) == pytest.approx(5)
    assert compute_spacing(limits("8", "30s"), 100, 8) == 0, "as many as may be open"
    assert compute_spacing(limits("500", "30s", "tokens"), 100, 8) == pytest.approx(5)
    assert compute_spacing(limits("500", "30s", "tokens") | limits("1", "20s"), 100, 8) == pytest.approx(10)


def test_without_such_headers_nothing_is_spread():
    for headers in ({}, limits("many", "30s"), {"x-ratelimit-remaining-requests": "0"}):
        assert compute_spacing(headers, 100, 8) == 0


@pytest.mark.parametrize("refill_per_s", [1, 10])
def test_a_limit_that_fills_up_all_the_time_is_used_at_its_rate(refill_per_s):
    """As OpenAI's: the reset is when it would be full again."""
    size, left, now, sent = 60 * refill_per_s, 0.0, 0.0, 0
    while now < 600:
        spacing_s = compute_spacing(limits(str(int(left)), f"{(size - left) / refill_per_s:.3f}s"), 100, 64)
        step_s = max(spacing_s, 0.01)
        now, left = now + step_s, min(size, left + step_s * refill_per_s)
        if left >= 1:
            left, sent = left - 1, sent + 1
    assert 0.9 < sent / (600 * refill_per_s) <= 1
