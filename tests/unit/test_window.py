"""How many calls are open, against endpoints that are simulated: seconds pass without anybody waiting."""

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count

import pytest

from pipeline.teachers.window import FIRST_LIMIT, MIN_ANSWERS, Round, Window, does_larger_pay

CEILING = 64
LATENCY_S = 0.4


@dataclass
class Simulated:
    """An endpoint; `takes` says whether it answers a call that comes at a moment while so many others are open."""

    takes: Callable[[float, int], bool]
    seed: int = 0
    window: Window = field(default_factory=lambda: Window(CEILING))
    n_answered: int = 0
    n_refused: int = 0
    limits: list[tuple[float, int]] = field(default_factory=list)

    def run(self, seconds: float, *, n_waiting: float = float("inf")) -> "Simulated":
        """Keep the window full, or as full as so many callers can; a refused call keeps its place for a while."""
        draws, order, open_, now, n_answering = random.Random(self.seed), count(), [], 0.0, 0
        while now < seconds:
            while len(open_) < min(self.window.limit, n_waiting):
                taken = self.takes(now, n_answering)
                n_answering += taken
                self.window.start(len(open_) + 1)
                ends_at = now + (LATENCY_S * draws.uniform(0.5, 1.5) if taken else LATENCY_S)
                heapq.heappush(open_, (ends_at, next(order), now, taken))
            now, _, sent_at, taken = heapq.heappop(open_)
            self.window.finish(now, sent_at, succeeded=taken)
            n_answering -= taken
            self.n_answered += taken
            self.n_refused += not taken
            self.limits.append((now, self.window.limit))
        return self

    def mean_limit(self, since: float) -> float:
        limits = [limit for at, limit in self.limits if at >= since]
        return sum(limits) / len(limits)


def refuse_at_random(share, seed):
    draws = random.Random(f"refused-{seed}")
    return lambda now, n_open: draws.random() >= share


def limit_rate(per_s):
    """Answer so many a second, with a second's worth as a burst."""
    state = {"left": 0.0, "at": 0.0}

    def takes(now, n_open):
        rate = per_s(now) if callable(per_s) else per_s
        state["left"] = min(rate, state["left"] + rate * (now - state["at"]))
        state["at"] = now
        if state["left"] < 1:
            return False
        state["left"] -= 1
        return True

    return takes


def test_a_window_begins_small_and_grows_to_its_ceiling_where_nothing_is_refused():
    endpoint = Simulated(lambda now, n_open: True)
    assert endpoint.window.limit == FIRST_LIMIT
    endpoint.run(8)
    assert endpoint.window.limit == CEILING
    assert max(limit for _, limit in endpoint.limits) == CEILING
    assert Window(5).limit == 5


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("share", "least"), [(0.05, 0.85), (0.2, 0.75)])
def test_random_refusals_do_not_shrink_the_window_for_long(share, least, seed):
    endpoint = Simulated(refuse_at_random(share, seed), seed).run(60)
    most = (1 - share) * CEILING / LATENCY_S * 60
    assert endpoint.n_answered > least * most


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("per_s", [5, 20, 50])
def test_a_limit_on_the_rate_is_used_and_hardly_passed(per_s, seed):
    endpoint = Simulated(limit_rate(per_s), seed).run(120)
    assert endpoint.n_answered > 0.9 * per_s * 120
    settled = endpoint.mean_limit(since=40)
    assert settled < 2.2 * per_s * LATENCY_S, "this many could be open, a burst apart"
    assert settled > 0.8 * per_s * LATENCY_S


def test_a_limit_on_open_calls_is_found():
    endpoint = Simulated(lambda now, n_open: n_open < 10, 1).run(120)
    assert endpoint.n_answered > 0.85 * 10 / LATENCY_S * 120
    assert 9 < endpoint.mean_limit(since=40) < 18


def test_capacity_that_comes_is_used():
    endpoint = Simulated(limit_rate(lambda now: 5 + 95 * min(1, now / 20)), 2).run(60)
    assert endpoint.n_answered > 0.85 * (20 * 52.5 + 40 * 100)


def test_capacity_that_goes_is_given_up():
    endpoint = Simulated(limit_rate(lambda now: 150 if now < 20 else 15), 3).run(100)
    assert endpoint.mean_limit(since=70) < 15
    assert endpoint.n_refused / (endpoint.n_answered + endpoint.n_refused) < 0.5


def test_a_window_that_is_not_filled_does_not_grow():
    assert Simulated(lambda now, n_open: True).run(30, n_waiting=10).window.limit == FIRST_LIMIT


def test_a_fixed_window_stays():
    endpoint = Simulated(limit_rate(5), window=Window(40, is_adaptive=False)).run(20)
    assert {limit for _, limit in endpoint.limits} == {40}
    endpoint.window.restart(20.0)
    assert endpoint.window.limit == 40


def test_after_an_outage_half_is_open_and_soon_all():
    endpoint = Simulated(lambda now, n_open: True).run(20)
    endpoint.window.restart(20.0)
    assert endpoint.window.limit == CEILING // 2
    endpoint.limits.clear()
    endpoint.run(23)
    assert endpoint.mean_limit(since=22.5) == CEILING


def test_an_endpoint_that_keeps_going_out_ends_with_one_call_at_a_time():
    window = Window(CEILING)
    for n in range(20):
        window.restart(float(n))
    assert window.limit == 1


def test_a_larger_window_pays_where_it_brings_half_of_what_it_asks():
    def at(limit, goodput):
        return Round(limit, goodput, 0.2, LATENCY_S)

    assert does_larger_pay(at(10, 20), at(20, 40))
    assert does_larger_pay(at(10, 20), at(20, 27))
    assert not does_larger_pay(at(10, 20), at(20, 26))
    assert not does_larger_pay(at(10, 20), at(20, 20))


def test_a_few_answers_decide_nothing():
    window = Window(CEILING)
    window.finish(1.0, 0.5, succeeded=False)
    for n in range(MIN_ANSWERS - 1):
        window.start(FIRST_LIMIT)
        window.finish(10.0 + n, 9.5 + n, succeeded=True)
    assert window.limit == FIRST_LIMIT
    window.finish(60.0, 59.5, succeeded=True)
    assert window.limit == FIRST_LIMIT, "so few can't be a round of a window of that size"
    for n in range(FIRST_LIMIT):
        window.finish(61.0 + n, 60.5 + n, succeeded=True)
    assert window.limit == CEILING
