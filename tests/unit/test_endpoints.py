"""When an endpoint takes a call, how several share them, and what becomes of one that gives no answer."""

import asyncio
import math
from collections import Counter

import pytest

from pipeline.teachers.endpoints import LONGEST_PROBE_S, MIN_FAILURES, Call, Endpoint, Endpoints
from pipeline.teachers.window import Window


def make_endpoint(limit=4, per_minute=math.inf, tokens=math.inf, adaptive=False) -> Endpoint:
    return Endpoint(Window(limit, is_adaptive=adaptive), per_minute, tokens)


def answer(endpoint, now, call=None, tokens=10.0, **told) -> None:
    endpoint.finish(now, call or endpoint.start(now, 10), succeeded=True, tokens=tokens, **told)


def refuse(endpoint, now, call=None, **told) -> None:
    endpoint.finish(now, call or endpoint.start(now, 10), succeeded=False, tokens=0, **told)


def shut(endpoint, now, **told) -> None:
    for _ in range(MIN_FAILURES):
        refuse(endpoint, now, **told)


def test_as_many_calls_are_open_as_the_window_has_places():
    endpoint = make_endpoint(2)
    first = endpoint.start(1.0, 10)
    assert endpoint.free_at(1.0) <= 1.0
    endpoint.start(1.0, 10)
    assert endpoint.free_at(1.0) == math.inf
    assert endpoint.load == 1.0
    answer(endpoint, 2.0, first)
    assert endpoint.free_at(2.0) <= 2.0


def send_for(endpoint, seconds, used=10.0):
    """Return when calls were let through that each wait for the last one's answer."""
    now, sent = 0.0, []
    while (now := max(now, endpoint.free_at(now))) < seconds:
        call = endpoint.start(now, 100)
        sent.append(now)
        answer(endpoint, now + 0.01, call, used)
        now += 0.01
    return sent


def test_budgets_of_requests_and_tokens_hold_in_every_minute():
    assert len(send_for(make_endpoint(per_minute=120), 300)) == pytest.approx(600, abs=1)
    by_tokens = send_for(make_endpoint(tokens=1200), 300, used=10)
    assert 590 <= len(by_tokens) <= 600
    assert max(sum(start <= at < start + 60 for at in by_tokens) for start in by_tokens) * 10 <= 1200 + 100
    both = send_for(make_endpoint(per_minute=30, tokens=1200), 300, used=10)
    assert len(both) == pytest.approx(150, abs=1)


def test_a_refused_call_keeps_its_place_for_as_long_as_an_answer_takes():
    endpoint = make_endpoint(16, adaptive=True)
    calls = [endpoint.start(10.0, 10) for _ in range(16)]
    answer(endpoint, 12.0, calls[0])
    refuse(endpoint, 12.5, endpoint.start(12.0, 10))
    assert endpoint.free_at(12.5) == pytest.approx(14.0)
    answer(endpoint, 13.0, calls[1])
    assert endpoint.free_at(13.0) <= 13.0, "another place is free"


def test_one_that_never_answers_is_probed_by_single_calls_that_become_rare():
    endpoint = make_endpoint()
    shut(endpoint, 10.0)
    assert endpoint.closed_at == 10.0
    now, probes = 10.0, []
    while now < 60.0:
        now = endpoint.free_at(now)
        probe = endpoint.start(now, 10)
        assert endpoint.free_at(now) == math.inf, "one at a time"
        probes.append(now)
        refuse(endpoint, now, probe)
    gaps = [later - earlier for earlier, later in zip([10.0, *probes], probes, strict=False)]
    assert gaps[:4] == pytest.approx([0.5, 1.0, 2.0, 4.0])
    assert set(gaps[4:]) == {LONGEST_PROBE_S}


def test_it_is_left_alone_for_as_long_as_it_asks():
    endpoint = make_endpoint()
    shut(endpoint, 10.0, asked_wait_s=40.0)
    assert endpoint.free_at(10.0) == 50.0


def test_the_first_answer_opens_it_again():
    endpoint = make_endpoint()
    shut(endpoint, 10.0)
    probe = endpoint.start(10.5, 10)
    answer(endpoint, 10.6, probe)
    assert endpoint.closed_at is None
    assert endpoint.free_at(10.6) <= 10.6
    shut(endpoint, 20.0)
    assert endpoint.free_at(20.0) == 20.5, "and the next outage is probed as soon"


def test_failures_that_answers_come_between_close_nothing():
    endpoint = make_endpoint()
    for n in range(20):
        for _ in range(MIN_FAILURES - 1):
            refuse(endpoint, float(n))
        answer(endpoint, float(n))
    assert endpoint.closed_at is None


def test_all_that_are_open_must_fail_before_it_closes():
    endpoint = make_endpoint(64)
    calls = [endpoint.start(10.0, 10) for _ in range(40)]
    for call in calls[:19]:
        refuse(endpoint, 11.0, call)
    assert endpoint.closed_at is None
    for call in calls[19:]:
        refuse(endpoint, 11.0, call)
    assert endpoint.closed_at == 11.0
    few = make_endpoint(64)
    shut(few, 10.0)
    assert few.closed_at == 10.0, "the places that nobody takes say nothing"


def test_a_probe_that_nobody_waits_for_is_followed_by_another():
    endpoint = make_endpoint()
    shut(endpoint, 10.0)
    endpoint.drop(endpoint.start(10.5, 10))
    assert endpoint.free_at(10.5) <= 10.5


def test_calls_are_spaced_as_the_server_says_until_it_says_otherwise():
    endpoint = make_endpoint()
    answer(endpoint, 10.0, spacing_s=3.0)
    assert endpoint.free_at(10.0) == 13.0
    endpoint.start(13.0, 10)
    assert endpoint.free_at(13.0) == 16.0
    answer(endpoint, 14.0, endpoint.start(13.0, 10))
    assert endpoint.free_at(14.0) <= 14.0


# Several


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def admit(endpoints, n, **wishes) -> list[Call]:
    """Let calls through that need not wait."""

    async def run():
        return [await asyncio.wait_for(endpoints.admit(10, **wishes), 1) for _ in range(n)]

    return asyncio.run(run())


def share_out(endpoints, n=1000, n_open=10, fails=lambda endpoint: False) -> Counter:
    """Return how many of so many calls each endpoint got, where some are always open and the oldest ends first."""
    clock, open_, given = endpoints._clock, [], Counter()
    for _ in range(n):
        open_ += admit(endpoints, 1)
        given[open_[-1].endpoint] += 1
        if len(open_) == n_open:
            call = open_.pop(0)
            endpoints.finish(call, succeeded=not fails(call.endpoint), tokens=10)
        clock.now += 0.01
    return given


def test_equal_endpoints_get_equally_many():
    trio = [make_endpoint(20) for _ in range(3)]
    given = share_out(Endpoints(trio, Clock()))
    assert [given[endpoint] for endpoint in trio] == pytest.approx([333] * 3, abs=20)


def test_calls_that_come_one_by_one_go_round():
    pair = [make_endpoint(20) for _ in range(2)]
    given = share_out(Endpoints(pair, Clock()), n_open=1)
    assert [given[endpoint] for endpoint in pair] == [500, 500]


def test_who_takes_more_gets_more():
    small, large = make_endpoint(5), make_endpoint(20)
    given = share_out(Endpoints([small, large], Clock()), n_open=20)
    assert given[large] / given[small] == pytest.approx(4, rel=0.25)


def test_one_that_fails_gets_next_to_nothing_and_its_part_when_it_has_healed():
    good, bad = make_endpoint(20), make_endpoint(8)
    clock = Clock()
    endpoints = Endpoints([good, bad], clock)
    given = share_out(endpoints, fails=lambda endpoint: endpoint is bad)
    assert given[good] > 960
    assert endpoints.has_other(bad)
    assert not endpoints.has_other(good)
    clock.now += LONGEST_PROBE_S
    healed = share_out(endpoints)
    assert healed[bad] > 200


def test_a_call_goes_elsewhere_than_where_it_failed_if_there_is_an_elsewhere():
    one, other = make_endpoint(8), make_endpoint(8)
    clock = Clock()
    endpoints = Endpoints([one, other], clock)
    assert {call.endpoint for call in admit(endpoints, 5, avoid=one, avoid_s=60.0)} == {other}
    shut(other, clock.now)
    assert {call.endpoint for call in admit(endpoints, 5, avoid=one)} == {one}


def test_a_call_that_failed_waits_for_no_other_endpoint_longer_than_it_has_to_and_keeps_nobody_waiting():
    one, other = make_endpoint(8), make_endpoint(8)
    endpoints = Endpoints([one, other])

    async def run():
        call = other.start(endpoints._clock(), 10)
        endpoints.finish(call, succeeded=True, tokens=10, spacing_s=30.0)  # it wants to be left alone
        again = asyncio.ensure_future(endpoints.admit(10, avoid=one, avoid_s=0.3))
        await asyncio.sleep(0.05)
        fresh = await asyncio.wait_for(endpoints.admit(10), 0.1)
        assert not again.done()
        return fresh, await asyncio.wait_for(again, 2)

    assert {call.endpoint for call in asyncio.run(run())} == {one}


def test_a_call_that_failed_goes_elsewhere_as_soon_as_there_is_a_place():
    one, other = make_endpoint(8), make_endpoint(1)
    endpoints = Endpoints([one, other])

    async def run():
        held = other.start(endpoints._clock(), 10)
        again = asyncio.ensure_future(endpoints.admit(10, avoid=one, avoid_s=30.0))
        await asyncio.sleep(0.05)
        assert not again.done()
        endpoints.finish(held, succeeded=True, tokens=10)
        return await asyncio.wait_for(again, 2)

    assert asyncio.run(run()).endpoint is other


def test_who_waits_is_let_through_in_order_when_a_call_ends():
    endpoint = make_endpoint(1)
    endpoints = Endpoints([endpoint])
    order = []

    async def ask(name):
        call = await endpoints.admit(10)
        order.append(name)
        await asyncio.sleep(0.01)
        endpoints.finish(call, succeeded=True, tokens=10)

    async def run():
        await asyncio.wait_for(asyncio.gather(*(ask(name) for name in "abcde")), 5)

    asyncio.run(run())
    assert order == list("abcde")


def test_who_gives_up_waiting_keeps_nobody_else_from_it():
    endpoints = Endpoints([make_endpoint(1)])

    async def run():
        held = await endpoints.admit(10)
        waiting = asyncio.ensure_future(endpoints.admit(10))
        behind = asyncio.ensure_future(endpoints.admit(10))
        await asyncio.sleep(0.01)
        waiting.cancel()
        await asyncio.sleep(0.01)
        endpoints.drop(held)
        return await asyncio.wait_for(behind, 1)

    assert asyncio.run(run()).endpoint is endpoints.all[0]


def test_an_outage_is_one_of_all_endpoints_since_the_last_one_closed():
    pair = [make_endpoint(), make_endpoint()]
    clock = Clock()
    endpoints = Endpoints(pair, clock)
    shut(pair[0], 100.0)
    clock.now = 150.0
    assert endpoints.measure_outage() == 0
    shut(pair[1], 150.0)
    clock.now = 170.0
    assert endpoints.measure_outage() == 20.0
