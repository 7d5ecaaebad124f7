"""The openai teacher against servers of our own: what it sends, what it makes of answers, and what it never tells."""

import asyncio
import json
import math
import pickle
import time

import pytest
from aiohttp import web

from pipeline.errors import ConfigError, TeacherError
from pipeline.identity import derive_seed
from pipeline.prompts.schemas import array, record, text
from pipeline.records import Outcome
from pipeline.teachers.openai import OpenAITeacher, write_body
from pipeline.teachers.openai_config import read_key
from tests.scripted import (
    KEY,
    LOST,
    SCHEMA,
    STALLED,
    Scripted,
    answer,
    ask,
    complete_at,
    configure,
    refuse,
    request_for,
    walk_chain,
)

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
