"""The openai teacher against servers of our own: what it sends, what it makes of answers, and what it never tells."""

import asyncio
import json
import math
import pickle
import time
from collections import Counter
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from itertools import pairwise

import pytest
import yaml
from aiohttp import web

from pipeline.config import validate
from pipeline.errors import ConfigError, TeacherError
from pipeline.identity import derive_seed, digest
from pipeline.prompts.requests import make_request
from pipeline.prompts.schemas import array, record, text
from pipeline.records import Message, Outcome, Seed
from pipeline.tasks.ambiguity import PairedConfig, parse, write_prompts
from pipeline.teachers import openai
from pipeline.teachers.kinds import check_teacher
from pipeline.teachers.openai import OpenAITeacher, write_body
from pipeline.teachers.openai_config import OpenAIConfig, list_endpoints, read_key
from pipeline.teachers.window import FIRST_LIMIT
from tests.composing import compose_experiment
from tests.conftest import PROJECT
from tests.endpoint import OK, draw, key_prompt, serve

KEY = "sk-verySecret/0123456789"
SCHEMA = record(answer=text(40), parts=array(text(9), 2))


def read_conf(name: str) -> dict:
    return yaml.safe_load((PROJECT / "conf" / f"{name}.yaml").read_text())


BASE = read_conf("teacher/openai")


def configure(base_url="http://localhost:1/v1", **changes) -> OpenAIConfig:
    return validate(OpenAIConfig, {**BASE, "base_url": base_url, "model": "sample", **changes})


def request_for(topic="bikes", schema=SCHEMA, choices=()):
    messages = (Message("system", "Reply in JSON."), Message("user", f"About {topic}"))
    teacher = {"model": "sample"}
    seed = Seed(topic, topic, topic)
    return make_request(
        seed, (), messages, None if choices else schema, choices=choices, temperature=0.7, top_p=0.9, teacher=teacher,
        run_seed=1,
    )  # fmt: skip


def answer(content="{}", finish_reason="stop", status=200, usage=None, logprobs=None, **message) -> web.Response:
    choice = {"message": {"role": "assistant", "content": content, **message}, "finish_reason": finish_reason}
    body = {
        "choices": [choice | {"logprobs": logprobs}],
        "usage": usage or {"prompt_tokens": 7, "completion_tokens": 3},
    }
    return web.json_response(body, status=status)


def refuse(status, message="no", code="some_code", **headers) -> web.Response:
    return web.json_response({"error": {"message": message, "code": code}}, status=status, headers=headers)


LOST = "the connection is closed without an answer"
STALLED = "no answer comes"


@dataclass
class Scripted:
    """A server that gives its answers one after the other, the last one for ever, and keeps what it was sent."""

    answers: list
    base_url: str = ""
    bodies: list[dict] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    times: list[float] = field(default_factory=list)

    async def handle(self, request: web.Request):
        self.times.append(time.monotonic())
        self.keys.append(request.headers.get("Authorization"))
        self.bodies.append(await request.json())
        given = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if given == LOST:
            request.transport.close()
            return web.Response()
        if given == STALLED:
            await asyncio.sleep(3600)
        return web.Response(status=given.status, body=given.body, headers=given.headers)

    @asynccontextmanager
    async def run(self):
        app = web.Application()
        app.router.add_post("/v1/chat/completions", self.handle)
        runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.base_url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        yield self
        await runner.cleanup()


def ask(answers, request=None, attempt=1, **changes):
    """Return what one request comes to at a server that gives these answers, and the server."""
    server = Scripted(answers)

    async def run():
        async with server.run():
            teacher = OpenAITeacher(configure(server.base_url, **changes), 1.0)
            try:
                return await teacher.complete(request or request_for(), attempt)
            finally:
                await teacher.close()

    return asyncio.run(run()), server


# What is sent


def test_a_body_holds_what_was_asked():
    request = request_for()
    body = write_body(configure(), request, 2)
    assert body["model"] == "sample"
    assert body["messages"] == [
        {"role": "system", "content": "Reply in JSON."},
        {"role": "user", "content": "About bikes"},
    ]
    assert (body["temperature"], body["top_p"]) == (0.7, 0.9)
    assert body["max_tokens"] == request.max_new_tokens
    assert body["seed"] == derive_seed(request.row_seed, 2)
    assert body["seed"] != write_body(configure(), request, 1)["seed"]


def test_fields_that_servers_differ_in_are_set_by_the_configuration():
    body = write_body(configure(max_tokens_field="max_completion_tokens", send_seed=False), request_for(), 1)
    assert "max_completion_tokens" in body
    assert not {"max_tokens", "seed"} & set(body)


def test_further_fields_come_last_and_win():
    extra = {"chat_template_kwargs": {"enable_thinking": False}, "temperature": 0.1}
    body = write_body(configure(extra_body=extra), request_for(), 1)
    assert body["chat_template_kwargs"] == {"enable_thinking": False}
    assert body["temperature"] == 0.1


def test_the_full_schema_is_sent_to_servers_that_know_it():
    form = write_body(configure(response_format="json_schema"), request_for(), 1)["response_format"]
    assert form == {"type": "json_schema", "json_schema": {"name": "reply", "schema": SCHEMA}}


def test_the_strict_dialect_has_no_bounds_on_strings_and_keeps_all_else():
    schema = record(minLength=text(40), parts=array(record(word=text(9)), 2))
    form = write_body(configure(response_format="strict_json_schema"), request_for(schema=schema), 1)["response_format"]
    assert form["json_schema"]["strict"] is True
    sent = form["json_schema"]["schema"]
    assert sent["properties"]["minLength"] == {"type": "string"}, "a property of that name is no bound"
    parts = sent["properties"]["parts"]
    assert (parts["minItems"], parts["maxItems"]) == (2, 2)
    assert parts["items"]["properties"] == {"word": {"type": "string"}}
    assert (sent["additionalProperties"], sent["required"]) == (False, ["minLength", "parts"])


def test_other_servers_are_told_less():
    assert write_body(configure(response_format="json_object"), request_for(), 1)["response_format"] == {
        "type": "json_object"
    }
    assert "response_format" not in write_body(configure(response_format="none"), request_for(), 1)


@pytest.mark.parametrize("form", ["strict_json_schema", "json_schema", "json_object", "none"])
def test_choices_are_asked_for_as_text_with_probabilities(form):
    body = write_body(configure(response_format=form), request_for(choices=("yes", "no")), 1)
    assert (body["logprobs"], body["top_logprobs"]) == (True, 20)
    assert "response_format" not in body
    assert "logprobs" not in write_body(configure(response_format=form), request_for(), 1)


def test_the_body_arrives_and_the_key_with_it(monkeypatch):
    monkeypatch.setenv("SOME_KEY", KEY)
    _, server = ask([answer()], api_key_env="SOME_KEY")
    assert server.bodies == [write_body(configure(), request_for(), 1)]
    assert server.keys == [f"Bearer {KEY}"]


def test_without_a_key_none_is_sent(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    assert ask([answer()])[1].keys == [None]


def test_a_proxy_is_used_where_one_is_set(monkeypatch):
    server = Scripted([answer("by proxy")])

    async def run():
        async with server.run():
            monkeypatch.setenv("http_proxy", server.base_url.removesuffix("/v1"))
            monkeypatch.delenv("no_proxy", raising=False)
            monkeypatch.delenv("NO_PROXY", raising=False)
            teacher = OpenAITeacher(configure("http://nowhere.invalid/v1", max_retries=0), 1.0)
            completion = await teacher.complete(request_for(), 1)
            await teacher.close()
            return completion

    assert asyncio.run(run()).text == "by proxy"


# What answers become


@pytest.mark.parametrize(
    ("given", "outcome", "text_", "finish_reason"),
    [
        (answer('{"a": 1}'), Outcome.OK, '{"a": 1}', "stop"),
        (answer("cut", "length"), Outcome.TRUNCATED, "cut", "length"),
        (answer(None, "length"), Outcome.TRUNCATED, "", "length"),
        (answer("bad", "content_filter"), Outcome.REFUSED, "bad", "content_filter"),
        (answer(None, refusal="I won't"), Outcome.REFUSED, "I won't", "stop"),
        (answer("text", "eos"), Outcome.OK, "text", "eos"),
        (answer("text", None), Outcome.OK, "text", ""),
        (answer(None), Outcome.ERROR, "", "stop"),
    ],
    ids=["ok", "truncated", "thought too long", "filtered", "refused", "other reason", "no reason", "no text"],
)
def test_an_answer_becomes_an_outcome(given, outcome, text_, finish_reason):
    completion, server = ask([given], attempt=4)
    assert (completion.outcome, completion.text, completion.finish_reason) == (outcome, text_, finish_reason)
    assert (completion.request_id, completion.attempt) == (request_for().request_id, 4)
    assert (completion.n_prompt_tokens, completion.n_completion_tokens) == (7, 3)
    assert completion.error == ("the endpoint sent no text" if outcome is Outcome.ERROR else "")
    assert len(server.bodies) == 1


def test_tokens_from_the_cache_are_counted_where_they_are_told():
    usage = {"prompt_tokens": 90, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": 64}}
    assert ask([answer(usage=usage)])[0].n_cached_tokens == 64
    for details in (None, {}, {"cached_tokens": None}):
        assert ask([answer(usage={**usage, "prompt_tokens_details": details})])[0].n_cached_tokens == 0


def test_an_answer_without_usage_is_one():
    body = json.dumps({"choices": [{"message": {"content": "hi"}}], "usage": None})
    completion, _ = ask([web.Response(text=body)])
    assert (completion.outcome, completion.text, completion.n_prompt_tokens) == (Outcome.OK, "hi", 0)


@pytest.mark.parametrize(
    "body",
    ["<html>busy</html>", "", "[]", '{"choices": []}', '{"error": "x"}', '{"choices": [{"message": {"content": [1]}}]}',
     '{"choices": [{"message": {"content": "\\ud800"}}]}'],
)  # fmt: skip
def test_a_success_without_a_completion_is_an_error_that_shows_it(body):
    completion, server = ask([web.Response(text=body + " " * 3000)])
    assert completion.outcome is Outcome.ERROR
    assert completion.error.startswith(f"HTTP 200, but no completion: {body}")
    assert len(completion.error) < 600
    assert len(server.bodies) == 1


def alternatives(**shares):
    first = {"token": "x", "top_logprobs": [{"token": t, "logprob": math.log(p)} for t, p in shares.items()]}
    return {"content": [first, {"token": "y", "top_logprobs": [{"token": "no", "logprob": 0.0}]}]}


def test_a_choice_is_as_probable_as_all_its_spellings_at_the_first_token():
    logprobs = alternatives(**{"yes": 0.3, " Yes": 0.2, "YES ": 0.1, "No": 0.25, "yesterday": 0.15})
    found = ask([answer("yes", logprobs=logprobs)], request_for(choices=("Yes", "no")))[0].choice_logprobs
    assert found == {"Yes": pytest.approx(math.log(0.6)), "no": pytest.approx(math.log(0.25))}


@pytest.mark.parametrize("logprobs", [None, {"content": None}, {"content": []}, alternatives(yes=0.9, maybe=0.1)])
def test_choices_that_are_not_all_found_have_no_probabilities(logprobs):
    completion, _ = ask([answer("yes", logprobs=logprobs)], request_for(choices=("yes", "no")))
    assert (completion.outcome, completion.choice_logprobs) == (Outcome.OK, {})


def test_latency_is_that_of_the_answered_call():
    before = time.time()
    completion, server = ask([refuse(503, **{"Retry-After": "0.5"}), answer()])
    assert server.times[1] - server.times[0] >= 0.5
    assert 0 < completion.latency_s < 0.4
    assert before <= completion.started_at <= time.time() - 0.5, "the first call counts as the start"


# What is sent again, and what is not


@pytest.mark.parametrize("status", [408, 409, 429, 500, 503, 529])
def test_what_may_succeed_is_sent_again(status):
    completion, server = ask([refuse(status, **{"Retry-After": "0"}), answer("at last")], max_retries=1)
    assert (completion.outcome, completion.text) == (Outcome.OK, "at last")
    assert len(server.bodies) == 2
    assert server.bodies[0] == server.bodies[1]


def test_a_lost_connection_is_made_again():
    completion, server = ask([LOST, answer()], max_retries=1)
    assert completion.outcome is Outcome.OK
    assert len(server.bodies) == 2
    assert server.times[1] - server.times[0] >= 0.5


def test_at_last_it_gives_up_and_says_what_it_saw():
    busy = {"Retry-After": "0"}
    completion, server = ask([refuse(500, "first", **busy), refuse(429, "second", **busy)], max_retries=3)
    assert completion.outcome is Outcome.ERROR
    assert completion.error.startswith("gave up after 4 calls; the last one: HTTP 429: ")
    assert "second" in completion.error
    assert len(server.bodies) == 4
    assert completion.started_at > 1.7e9


def test_a_server_that_is_not_there_is_an_error_that_names_it():
    (completion,) = complete_at("http://127.0.0.1:9/v1", [request_for()], max_retries=0)
    assert completion.outcome is Outcome.ERROR
    assert "127.0.0.1:9" in completion.error


@pytest.mark.parametrize("status", [400, 413, 422])
def test_what_concerns_one_request_is_its_error_and_is_not_sent_again(status):
    completion, server = ask([refuse(status, "the prompt is too long")])
    assert completion.outcome is Outcome.ERROR
    assert completion.error.startswith(f"HTTP {status}: ")
    assert "the prompt is too long" in completion.error
    assert len(server.bodies) == 1


def test_a_call_that_takes_too_long_is_a_timeout_and_is_not_sent_again():
    completion, server = ask([STALLED], timeout_s=0.3)
    assert completion.outcome is Outcome.TIMEOUT
    assert completion.error == "no answer within 0.3 s"
    assert 0.3 <= completion.latency_s < 3
    assert len(server.bodies) == 1


@pytest.mark.parametrize(
    ("refusal", "advice"),
    [
        (refuse(401), "check the key in the environment variable SOME_KEY"),
        (refuse(402), "add credit"),
        (refuse(403), "the environment variable SOME_KEY may use this model"),
        (refuse(404), "check teacher.base_url and teacher.model"),
        (refuse(307, Location="/elsewhere"), "set teacher.base_url"),
        (refuse(429, code="insufficient_quota"), "add credit"),
    ],
    ids=["401", "402", "403", "404", "307", "quota"],
)
def test_what_no_request_can_get_past_is_raised_with_what_to_do(refusal, advice, monkeypatch):
    monkeypatch.setenv("SOME_KEY", KEY)
    with pytest.raises(TeacherError) as caught:
        ask([refusal], api_key_env="SOME_KEY")
    told = str(caught.value)
    assert advice in told
    assert f"HTTP {refusal.status}" in told
    assert "/v1/chat/completions with model sample" in told


def test_where_no_key_is_configured_the_advice_says_so():
    with pytest.raises(TeacherError, match=r"api_key_env or teacher\.api_key_file, which are both null"):
        ask([refuse(401)])


# The key


def walk_chain(error):
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


@pytest.mark.parametrize("status", [200, 400, 500])
def test_the_key_is_in_nothing_that_is_kept(status, monkeypatch):
    monkeypatch.setenv("SOME_KEY", KEY)
    given = (
        answer(f"your key is {KEY}", f"stop {KEY}") if status == 200 else refuse(status, "x" * 460 + f" Bearer {KEY}")
    )
    completion, server = ask([given], api_key_env="SOME_KEY", max_retries=0)
    assert server.keys == [f"Bearer {KEY}"]
    told = repr(completion)
    assert "[api key]" in told or status != 200
    assert KEY not in told
    assert KEY[:8] not in told, "not even where the error's text is cut"


def test_the_key_is_in_no_exception(monkeypatch):
    monkeypatch.setenv("SOME_KEY", KEY)
    with pytest.raises(TeacherError) as caught:
        ask([refuse(401, f"wrong key: {KEY}")], api_key_env="SOME_KEY")
    errors = list(walk_chain(caught.value))
    assert "wrong key: [api key]" in str(errors[0])
    assert all(KEY not in repr(error) for error in errors)


def test_the_key_is_neither_shown_nor_pickled(monkeypatch):
    monkeypatch.setenv("SOME_KEY", KEY)
    config = configure(api_key_env="SOME_KEY")
    teacher = OpenAITeacher(config, 0.5)
    assert KEY not in repr(teacher) + repr(vars(teacher)) + repr(config)
    pickled = pickle.dumps(teacher)
    assert KEY.encode() not in pickled
    monkeypatch.setenv("SOME_KEY", "another")
    (address,) = pickle.loads(pickled)._addresses.values()
    assert address.key.get_secret_value() == "another"


def test_a_key_is_read_from_a_variable_or_a_file(monkeypatch, tmp_path):
    monkeypatch.setenv("SOME_KEY", f" {KEY}\n")
    assert read_key(configure(api_key_env="SOME_KEY")) == KEY
    path = tmp_path / "key"
    path.write_text(f"{KEY}\n")
    assert read_key(configure(api_key_file=str(path))) == KEY
    assert read_key(configure()) is None


@pytest.mark.parametrize("content", [None, "", " \n"])
def test_a_key_that_is_missing_is_told_by_where_it_should_be(content, monkeypatch, tmp_path):
    monkeypatch.delenv("SOME_KEY", raising=False)
    path = tmp_path / "key"
    if content is not None:
        monkeypatch.setenv("SOME_KEY", content)
        path.write_text(content)
    with pytest.raises(ConfigError, match="the environment variable SOME_KEY is not set or empty"):
        read_key(configure(api_key_env="SOME_KEY"))
    with pytest.raises(ConfigError, match=str(path)):
        read_key(configure(api_key_file=str(path)))


@pytest.mark.parametrize(
    "content", [b"sk-verySecret two", b"sk-verySecret\nkey", b"sk-verySecret\xff", "sk-verySecretü".encode()]
)
def test_what_can_be_no_key_is_refused_without_showing_it(content, tmp_path):
    path = tmp_path / "key"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="not one word") as caught:
        OpenAITeacher(configure(api_key_file=str(path)), 1.0)
    assert all("verySecret" not in f"{error!r}{getattr(error, 'object', '')}" for error in walk_chain(caught.value))


def test_a_key_comes_from_one_place():
    with pytest.raises(ConfigError, match="not from both"):
        configure(api_key_env="A", api_key_file="b")


@pytest.mark.parametrize(
    "url",
    ["", "localhost:8000/v1", "ftp://host/v1", "http://", "http:///v1", "http://host:x/v1", "http://host/v1#a",
     "https://host/v1?key=verySecret", "https://me:verySecret@host/v1", "https://me:very/Secret@host",
     "me:Secret@host"],
)  # fmt: skip
def test_a_url_that_is_none_or_holds_a_secret_is_refused_without_showing_it(url):
    with pytest.raises(ConfigError, match="base_url") as caught:
        configure(url)
    assert "Secret" not in "".join(repr(error) for error in walk_chain(caught.value))


def test_a_slash_at_the_end_of_a_url_is_dropped():
    assert configure("https://host:81/v1/").base_url == configure("https://host:81/v1").base_url == "https://host:81/v1"


# Many at a time


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
            for _ in range(4):
                await teacher.complete(request, 1)
            await teacher.close()
        return server.times[-1] - server.times[0]

    assert asyncio.run(one_after_the_other(answer())) < 1
    assert asyncio.run(one_after_the_other(costly)) > 1.1


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
            try:
                return await asyncio.gather(*(teacher.complete(request_for(str(n)), 1) for n in range(40)))
            finally:
                await teacher.close()

    assert Counter(c.text for c in asyncio.run(run())) == {"back": 40}
    assert len(calls) < 40 + FIRST_LIMIT + 10, "one window's worth, and some probes"


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


# Against the endpoint that other tests and benchmarks use


def complete_at(base_url, requests, **changes):
    async def run():
        teacher = OpenAITeacher(configure(base_url, **changes), 1.0)
        try:
            return await asyncio.gather(*(teacher.complete(request, 1) for request in requests))
        finally:
            await teacher.close()

    return asyncio.run(run())


def key_of(request) -> str:
    return key_prompt([{"role": m.role, "content": m.content} for m in request.messages])


def predict(shares, seed, request, max_calls) -> list[str]:
    """Return what the calls for one request meet, until one is not sent again."""
    met = []
    while len(met) < max_calls and (not met or met[-1] == "rate_limited"):
        met.append(draw(seed, shares, key_of(request), len(met) + 1))
    return met


@pytest.mark.parametrize("form", ["json_schema", "strict_json_schema"])
def test_every_prompt_gets_as_many_calls_as_its_faults_need(form):
    shares = {"rate_limited": 0.4, "malformed": 0.1, "truncated": 0.1}
    method = validate(PairedConfig, {**read_conf("method/paired"), "n_intents": 3})
    requests = []
    for n in range(60):
        (prompt,) = write_prompts([Seed(f"t{n}", f"topic {n}", f"t{n}")], {}, method, 1)
        requests.append(request_for(f"topic {n}", prompt.schema))
    expected = {request.request_id: predict(shares, 5, request, 4) for request in requests}
    assert {len(met) for met in expected.values()} >= {1, 2, 3, 4}
    with serve(seed=5, **shares) as endpoint:
        completions = complete_at(endpoint.base_url, requests, max_retries=3, response_format=form)
        log = endpoint.log()
    finished = [(line["prompt"], line["n"], line["kind"]) for line in log if line["finished"]]
    assert sorted(finished) == sorted((line["prompt"], line["n"], line["kind"]) for line in log if not line["finished"])
    wanted = [(key_of(r), n, kind) for r in requests for n, kind in enumerate(expected[r.request_id], start=1)]
    assert sorted(finished) == sorted(wanted)
    outcomes = {
        OK: Outcome.OK, "malformed": Outcome.INVALID_JSON, "truncated": Outcome.TRUNCATED, "rate_limited": Outcome.ERROR
    }  # fmt: skip
    texts = []
    for request, completion in zip(requests, completions, strict=True):
        parsed = parse(request, completion, method)
        assert parsed.outcome is outcomes[expected[request.request_id][-1]]
        texts += [example.text for example in parsed.examples]
    assert len(texts) > 100
    assert len(set(texts)) == len(texts)


def test_the_endpoint_gives_probabilities_for_yes_and_no_and_repeats_itself():
    requests = [request_for(str(n), choices=("yes", "no")) for n in range(20)]
    with serve() as endpoint:
        first = complete_at(endpoint.base_url, requests)
    with serve() as endpoint:
        second = complete_at(endpoint.base_url, requests)
    assert [c.text for c in first] == [c.text for c in second]
    assert {c.text for c in first} == {"yes", "no"}
    assert all(max(c.choice_logprobs, key=c.choice_logprobs.get) == c.text for c in first)


def test_the_endpoint_tells_an_unfinished_request_from_a_finished_one(tmp_path):
    with serve(log=tmp_path / "log", stall=1.0) as endpoint:
        (completion,) = complete_at(endpoint.base_url, [request_for()], timeout_s=0.2)
    assert completion.outcome is Outcome.TIMEOUT
    assert [(line["kind"], line["finished"]) for line in endpoint.log()] == [("stall", False)]


def test_the_endpoint_repeats_the_key_only_to_show_that_the_teacher_does_not(monkeypatch):
    monkeypatch.setenv("SOME_KEY", KEY)
    with serve(broken=1.0, echo_key=1) as endpoint:
        (completion,) = complete_at(endpoint.base_url, [request_for()], api_key_env="SOME_KEY", max_retries=0)
    assert "something broke Bearer [api key]" in completion.error


def test_faults_are_drawn_in_their_shares():
    shares = {"broken": 0.2, "stall": 0.1}
    drawn = Counter(draw(1, shares, f"p{n}", 1) for n in range(5000))
    assert set(drawn) == {OK, *shares}
    assert drawn["broken"] / 5000 == pytest.approx(0.2, abs=4 * math.sqrt(0.2 * 0.8 / 5000))
    assert draw(1, {}, "p", 1) == OK
