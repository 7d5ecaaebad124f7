"""The openai teacher with many calls at a time: caps, limits, outages, and several endpoints and keys."""

import asyncio
import json
import time
from collections import Counter
from contextlib import AsyncExitStack
from itertools import pairwise

import pytest
from aiohttp import web

from pipeline.errors import ConfigError, TeacherError
from pipeline.identity import digest
from pipeline.records import Outcome
from pipeline.teachers import endpoints, openai
from pipeline.teachers.endpoints import MIN_FAILURES
from pipeline.teachers.kinds import check_teacher
from pipeline.teachers.openai import OpenAITeacher
from pipeline.teachers.openai_config import list_endpoints
from pipeline.teachers.window import FIRST_LIMIT
from tests.composing import compose_experiment
from tests.scripted import KEY, Scripted, answer, configure, refuse, request_for, walk_chain


def test_more_requests_are_open_at_once_than_a_client_allows_by_itself():
    """aiohttp keeps 100; the server here answers only when all 150 are there."""
    server = Scripted([])
    arrived = []

    async def handle(request):
        arrived.append(request)
        while len(arrived) < 150:
            await asyncio.sleep(0.01)
        return answer()

    server.handle = handle

    async def run():
        async with server.run():
            teacher = OpenAITeacher(configure(server.base_url, timeout_s=20, max_in_flight=150, adaptive=False), 1.0)
            assert teacher.capacity == 64
            done = await asyncio.gather(*(teacher.complete(request_for(str(n)), 1) for n in range(150)))
            await teacher.close()
            return done

    assert Counter(c.outcome for c in asyncio.run(run())) == {Outcome.OK: 150}


def complete_all(requests, share, given, **changes):
    server = Scripted([given])

    async def run():
        async with server.run():
            teacher = OpenAITeacher(configure(server.base_url, **changes), share)
            await asyncio.gather(*(teacher.complete(request, 1) for request in requests))
            await teacher.close()

    asyncio.run(run())
    return [later - earlier for earlier, later in pairwise(server.times)]


def test_a_teacher_keeps_to_its_share_of_the_cap_on_requests():
    gaps = complete_all([request_for(str(n)) for n in range(5)], 0.5, answer(), requests_per_minute=600)
    assert len(gaps) == 4
    assert 0.7 < sum(gaps) < 2


def test_calls_that_are_sent_again_count_under_the_cap():
    busy = refuse(429, **{"Retry-After": "0"})
    gaps = complete_all([request_for()], 1.0, busy, requests_per_minute=300, max_retries=3)
    assert len(gaps) == 3
    assert 0.5 < sum(gaps) < 2


def test_a_cap_on_tokens_holds_for_what_is_estimated_until_the_use_is_known():
    request = request_for()
    estimate = request.max_new_tokens + sum(len(m.content) for m in request.messages) / 4
    cap = 60 * estimate / 0.4  # one request in 0.4 s
    costly = answer(usage={"prompt_tokens": 0, "completion_tokens": round(estimate)})
    assert 0.3 < complete_all([request, request], 1.0, costly, tokens_per_minute=cap)[0] < 2

    async def one_after_the_other(given):
        server = Scripted([given])
        async with server.run():
            teacher = OpenAITeacher(configure(server.base_url, tokens_per_minute=cap), 1.0)
            for _ in range(6):
                await teacher.complete(request, 1)
            await teacher.close()
        return server.times[-1] - server.times[0]

    assert asyncio.run(one_after_the_other(answer())) < 1.5
    assert asyncio.run(one_after_the_other(costly)) > 1.5


# What a server says of its limits, and what it doesn't


def test_what_the_headers_leave_is_not_sent_before_its_time():
    few = {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "300ms"}
    limited = web.json_response(json.loads(answer().body), headers=few)
    server = Scripted([limited])

    async def run():
        async with server.run():
            teacher = OpenAITeacher(configure(server.base_url), 1.0)
            for n in range(3):
                await teacher.complete(request_for(str(n)), 1)
            await teacher.close()

    asyncio.run(run())
    assert all(later - earlier > 0.25 for earlier, later in pairwise(server.times))


def test_calls_wait_for_a_server_to_come_back_without_using_up_their_retries():
    server = Scripted([answer("back")])
    calls = []

    async def handle(request, answer_well=server.handle):
        calls.append(time.monotonic())
        return refuse(503) if calls[-1] < calls[0] + 2.5 else await answer_well(request)

    server.handle = handle

    async def run():
        async with server.run():
            teacher = OpenAITeacher(configure(server.base_url, max_retries=2), 1.0)
            asked = asyncio.gather(*(teacher.complete(request_for(str(n)), 1) for n in range(40)))
            await asyncio.sleep(1.0)
            states = [dict(teacher.describe_state())]
            try:
                return Counter(completion.text for completion in await asked), [*states, dict(teacher.describe_state())]
            finally:
                await teacher.close()

    texts, states = asyncio.run(run())
    assert texts == {"back": 40}
    assert len(calls) < 40 + FIRST_LIMIT + 10, "one window's worth, and some probes"
    assert states == [{f"no answer from {server.base_url} (HTTP 503)": 1}, {}], "progress shows it while it lasts"


@pytest.mark.parametrize(
    ("status", "outcome", "n_calls"), [(503, Outcome.OK, MIN_FAILURES + 5), (500, Outcome.ERROR, MIN_FAILURES + 1)]
)
def test_the_last_request_outlives_an_outage_but_not_its_own_failures(status, outcome, n_calls):
    """It alone makes all the calls, so all the probes."""
    server = Scripted([*[refuse(status)] * (MIN_FAILURES + 4), answer("back")])

    async def run():
        async with server.run():
            teacher = OpenAITeacher(configure(server.base_url, max_retries=MIN_FAILURES), 1.0)
            try:
                return await teacher.complete(request_for(), 1)
            finally:
                await teacher.close()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(openai, "compute_wait", lambda *_: 0.01)
        patch.setattr(endpoints, "FIRST_PROBE_S", 0.01)
        assert asyncio.run(run()).outcome is outcome
    assert len(server.bodies) == n_calls


def test_an_outage_without_end_ends_the_run_and_says_so(monkeypatch):
    monkeypatch.setattr(openai, "LONGEST_OUTAGE_S", 0.6)
    with pytest.raises(
        TeacherError, match=r"no endpoint of sample has answered(.|\n)*HTTP 503: .*down for good"
    ) as caught:
        complete_all([request_for(str(n)) for n in range(40)], 1.0, refuse(503, "down for good"))
    assert "run the same command again" in str(caught.value)


# Several endpoints


OTHER_KEY = "sk-verySecret/0123456789-longer"


def further(*servers, api_key_env=None):
    return [{"base_url": server.base_url, "api_key_env": api_key_env} for server in servers]


def ask_several(n, *servers, n_open=20, **changes):
    """Return what `n` requests come to at several servers."""

    async def run():
        async with AsyncExitStack() as stack:
            for server in servers:
                await stack.enter_async_context(server.run())
            settings = {"further_endpoints": further(*servers[1:])} | changes
            if callable(settings["further_endpoints"]):
                settings["further_endpoints"] = settings["further_endpoints"]()
            teacher = OpenAITeacher(configure(servers[0].base_url, **settings), 1.0)
            places = asyncio.Semaphore(n_open)

            async def complete(number):
                async with places:
                    return await teacher.complete(request_for(str(number)), 1)

            try:
                return await asyncio.gather(*(complete(number) for number in range(n)))
            finally:
                await teacher.close()

    return asyncio.run(run())


def test_endpoints_share_the_calls():
    servers = [Scripted([answer()]) for _ in range(3)]
    assert len(ask_several(300, *servers)) == 300
    assert [len(server.bodies) for server in servers] == pytest.approx([100] * 3, abs=25)


def test_a_dead_endpoint_costs_no_request_and_gets_few():
    good, bad = Scripted([answer("good")]), Scripted([refuse(503)])
    completions = ask_several(300, bad, good)
    assert Counter(c.text for c in completions) == {"good": 300}
    assert len(bad.bodies) < FIRST_LIMIT + 20


def test_another_endpoint_is_asked_at_once_whatever_the_first_asks_for():
    started_at = time.monotonic()
    (completion,) = ask_several(1, Scripted([refuse(429, **{"Retry-After": "60"})]), Scripted([answer("good")]))
    assert completion.text == "good"
    assert time.monotonic() - started_at < 10


def test_an_endpoint_that_heals_is_used_again():
    good, healing = Scripted([answer()]), Scripted([answer()])
    counted = {"refused": 0, "answered": 0}

    async def handle(request, answer_well=healing.handle):
        counted["refused" if (is_ill := counted["refused"] < 16) else "answered"] += 1
        return refuse(503) if is_ill else await answer_well(request)

    async def answer_slowly(request, answer_well=good.handle):
        await asyncio.sleep(0.05)
        return await answer_well(request)

    healing.handle, good.handle = handle, answer_slowly
    assert {c.outcome for c in ask_several(900, healing, good, n_open=40)} == {Outcome.OK}
    assert counted["answered"] > 100


def test_each_endpoint_gets_its_own_key_and_nothing_tells_either(monkeypatch):
    monkeypatch.setenv("SOME_KEY", KEY)
    monkeypatch.setenv("OTHER_KEY", OTHER_KEY)
    told = answer(f"keys are {KEY} and {OTHER_KEY}", f"stop {OTHER_KEY}")
    one, other = Scripted([told]), Scripted([told])
    completions = ask_several(
        40, one, other, api_key_env="SOME_KEY", further_endpoints=lambda: further(other, api_key_env="OTHER_KEY")
    )
    assert set(one.keys) == {f"Bearer {KEY}"}
    assert set(other.keys) == {f"Bearer {OTHER_KEY}"}
    assert {c.text for c in completions} == {"keys are [api key] and [api key]"}
    assert "verySecret" not in repr(completions)
    assert "longer" not in repr(completions), "one key begins with the other"
    assert "OTHER_KEY" not in repr(completions)


def test_a_refused_key_is_told_by_its_own_variable(monkeypatch):
    monkeypatch.setenv("SOME_KEY", KEY)
    monkeypatch.setenv("OTHER_KEY", OTHER_KEY)
    other = Scripted([refuse(401, f"wrong key {OTHER_KEY}")])
    with pytest.raises(TeacherError, match="check the key in the environment variable OTHER_KEY") as caught:
        ask_several(
            9, Scripted([answer()]), other, api_key_env="SOME_KEY",
            further_endpoints=lambda: further(other, api_key_env="OTHER_KEY"),
        )  # fmt: skip
    assert other.base_url in str(caught.value)
    assert all("verySecret" not in repr(error) for error in walk_chain(caught.value))


def test_the_log_tells_of_a_closed_endpoint_without_a_key(monkeypatch, caplog):
    monkeypatch.setenv("SOME_KEY", KEY)
    bad = Scripted([refuse(503, f"down, {KEY}")])
    ask_several(60, bad, Scripted([answer()]), api_key_env="SOME_KEY")
    (line,) = caplog.messages
    assert f"{bad.base_url}/chat/completions gives no answers" in line
    assert "down, [api key]" in line
    assert KEY not in caplog.text


def test_the_keys_of_all_endpoints_are_looked_for_before_anything_starts(monkeypatch):
    monkeypatch.setenv("SOME_KEY", KEY)
    monkeypatch.delenv("OTHER_KEY", raising=False)
    endpoints = [{"base_url": "http://other:1/v1", "api_key_env": "OTHER_KEY"}]
    with pytest.raises(ConfigError, match="the environment variable OTHER_KEY is not set"):
        check_teacher(configure(api_key_env="SOME_KEY", further_endpoints=endpoints), (), is_local=True)


def test_the_same_endpoint_with_the_same_key_is_refused():
    one = {"base_url": "http://localhost:1/v1/", "api_key_env": None}
    with pytest.raises(ConfigError, match="named twice"):
        configure("http://localhost:1/v1", further_endpoints=[one])
    other_key = one | {"api_key_env": "OTHER_KEY"}
    assert len(list_endpoints(configure("http://localhost:1/v1", further_endpoints=[other_key]))) == 2


@pytest.mark.parametrize(
    "endpoints",
    [[{"base_url": "https://me:verySecret@host/v1", "api_key_env": None}], ["https://me:verySecret@host/v1"],
     "https://me:verySecret@host/v1"],
)  # fmt: skip
def test_further_endpoints_that_are_none_or_hold_a_secret_are_refused_without_showing_it(endpoints):
    with pytest.raises(ConfigError, match="further_endpoints") as caught:
        configure(further_endpoints=endpoints)
    assert "Secret" not in "".join(repr(error) for error in walk_chain(caught.value))


def test_a_key_in_place_of_its_variable_is_refused_without_showing_it():
    with pytest.raises(ConfigError, match=r"further_endpoints\.0\.api_key: unknown key") as caught:
        configure(further_endpoints=[{"base_url": "http://host/v1", "api_key": "verySecret"}])
    assert "Secret" not in str(caught.value)


def test_further_endpoints_are_given_on_the_command_line():
    endpoint = "{base_url: 'http://other:1/v1', api_key_env: OTHER_KEY}"
    experiment = compose_experiment(
        ["teacher=openai", "teacher.base_url=http://localhost:1/v1", "teacher.model=sample",
         f"teacher.further_endpoints=[{endpoint}]"]
    )  # fmt: skip
    (arm,) = experiment.arms.values()
    assert [(e.base_url, e.api_key_env) for e in list_endpoints(arm.teacher)] == [
        ("http://localhost:1/v1", None),
        ("http://other:1/v1", "OTHER_KEY"),
    ]


def test_where_and_how_fast_a_model_is_asked_is_no_part_of_who_it_is():
    endpoints = [{"base_url": "http://other:1/v1", "api_key_env": None}]
    assert digest(configure(further_endpoints=endpoints, adaptive=False)) == digest(configure())
