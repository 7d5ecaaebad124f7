"""The Batch API's teacher against a server of our own: what is asked once, what again, and what is remembered."""

import asyncio
import json
from collections import Counter
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import validate
from pipeline.errors import ConfigError, StorageError, TeacherError
from pipeline.records import Message, Outcome
from pipeline.storage import Folder
from pipeline.teachers import batch_records
from pipeline.teachers.batch_api import Batch
from pipeline.teachers.batch_config import OpenAIBatchConfig
from pipeline.teachers.batch_rows import name_row, read_completion, read_rows, split_rows
from pipeline.teachers.kinds import check_teacher, make_teacher, pin_teacher
from pipeline.teachers.ledger import Ledger, LedgerWriter
from pipeline.teachers.openai_batch import OpenAIBatchTeacher
from pipeline.teachers.openai_config import OpenAIConfig
from tests.batch_endpoint import STAGES, serve_batches
from tests.composing import compose_experiment, compose_teacher
from tests.endpoint import OK, draw
from tests.scripted import KEY, complete_at, key_of, request_for

REQUESTS = [request_for(f"topic {n}") for n in range(12)]


def configure(base_url="http://localhost:1/v1", **changes) -> OpenAIBatchConfig:
    values = compose_teacher("openai_batch", "sample")
    given_batch = {name: changes.pop(name) for name in list(changes) if name in values["batch"]}
    batch = {**values["batch"], "gather_s": 0.05, "poll_s": 0.05, **given_batch}
    fast = {"api_key_env": None, "max_retries": 3, "timeout_s": 20.0, "response_format": "json_schema"}
    return validate(OpenAIBatchConfig, {**values, **fast, "base_url": base_url, **changes, "batch": batch})


@pytest.fixture
def ledger(tmp_path):
    return Ledger.of(Folder.at(tmp_path), "sample")


@asynccontextmanager
async def opened(ledger, base_url, **changes):
    teacher = OpenAIBatchTeacher(configure(base_url, **changes), ledger)
    try:
        yield teacher
    finally:
        await teacher.close()


def ask(ledger, served, requests=REQUESTS, attempt=1, **changes):
    """Return what one teacher gives for all requests at once."""

    async def run():
        async with opened(ledger, served.base_url, **changes) as teacher:
            return await asyncio.gather(*(teacher.complete(request, attempt) for request in requests))

    return asyncio.run(run())


def ask_and_die(ledger, served, stage, requests=REQUESTS):
    """Ask all requests with a teacher that goes away when the server has come to a stage."""

    async def run():
        async with opened(ledger, served.base_url) as teacher:
            asked = [asyncio.ensure_future(teacher.complete(request, 1)) for request in requests]
            while not count_calls(served)[stage]:
                await asyncio.sleep(0.02)
            for task in asked:
                task.cancel()

    asyncio.run(run())


def count_calls(served) -> Counter[str]:
    return Counter(line["call"] for line in served.log() if "call" in line)


def count_asked(served) -> Counter[str]:
    """Return how often each prompt was answered, whether by a batch or by itself."""
    return Counter(line["prompt"] for line in served.log() if "prompt" in line and line["finished"])


def find_draws(shares, n_of_each=1, seed=0):
    """Return requests whose first draw is a fault, and others whose first is none; all are fine when asked again."""
    found = {OK: [], "fault": []}
    for n in range(500):
        request = request_for(f"drawn {n}")
        first, second = (draw(seed, shares, key_of(request), at) for at in (1, 2))
        if second == OK:
            found[OK if first == OK else "fault"].append(request)
    return found["fault"][:n_of_each], found[OK][:n_of_each]


# Files


@given(st.lists(st.integers(1, 30), max_size=40), st.integers(1, 7), st.integers(5, 60))
def test_lines_are_split_in_order_within_both_limits_and_no_sooner(sizes, max_requests, max_bytes):
    parts = [sizes[rows] for rows in split_rows(sizes, max_requests, max_bytes)]
    assert [size for part in parts for size in part] == sizes
    assert all(0 < len(part) <= max_requests for part in parts)
    assert all(sum(part) <= max_bytes or len(part) == 1 for part in parts)
    for part, after in pairwise(parts):
        assert len(part) == max_requests or sum(part) + after[0] > max_bytes


def row(custom_id, status=None, body=None, error=None) -> bytes:
    response = None if status is None else {"status_code": status, "body": body}
    return json.dumps({"custom_id": custom_id, "response": response, "error": error}).encode() + b"\n"


def test_of_two_results_a_response_wins_and_what_is_broken_is_left_out():
    expired = {"code": "batch_expired", "message": "late"}
    rows = read_rows(row("a", 200, {}) + b'{"custom_id": \n', row("a", error=expired) + row("b", error=expired))
    assert set(rows) == {"a", "b"}
    assert rows["a"].response.status_code == 200
    assert rows["b"].error.code == "batch_expired"


REPLY = {"choices": [{"message": {"content": "hi"}, "finish_reason": "stop"}], "usage": {"prompt_tokens": 3}}


@pytest.mark.parametrize(
    ("line", "status", "outcome", "error"),
    [
        (row("a", 200, REPLY), "completed", Outcome.OK, ""),
        (row("a", 200, REPLY), "expired", Outcome.OK, ""),
        (row("a", 200, {"choices": []}), "completed", Outcome.ERROR, "HTTP 200, but no completion"),
        (row("a", 429, {"error": "slow"}), "completed", Outcome.ERROR, 'HTTP 429: {"error": "slow"}'),
        (row("a", error={"code": "batch_expired"}), "expired", Outcome.TIMEOUT, "expired before"),
        (row("a", error={"code": "server_error", "message": "oh"}), "expired", Outcome.ERROR, "server_error: oh"),
        (b"", "expired", Outcome.TIMEOUT, "expired before"),
        (b"", "cancelled", Outcome.ERROR, "ended as cancelled without an answer"),
        (b"", "completed", Outcome.ERROR, "ended as completed without an answer"),
    ],
)  # fmt: skip
def test_a_result_becomes_an_outcome(line, status, outcome, error):
    completion = read_completion(read_rows(line).get("a"), status, REQUESTS[0], 2, 5.0, 60.0)
    assert (completion.outcome, completion.attempt, completion.started_at) == (outcome, 2, 5.0)
    assert error in completion.error
    if outcome is Outcome.OK:
        assert (completion.text, completion.n_prompt_tokens, completion.latency_s) == ("hi", 3, 60.0)


# One run


def test_what_waits_together_is_one_batch_and_gets_the_answers_of_the_endpoint_at_half_the_price(ledger):
    with serve_batches() as served:
        batched = ask(ledger, served)
        direct = complete_at(served.base_url, REQUESTS, max_tokens_field="max_completion_tokens")
        calls = count_calls(served)
    assert [c.text for c in batched] == [c.text for c in direct]
    assert {c.outcome for c in batched} == {Outcome.OK}
    assert {c.price_factor for c in batched} == {0.5}
    assert {c.price_factor for c in direct} == {1.0}
    assert all(c.n_prompt_tokens > 0 and c.n_completion_tokens > 0 for c in batched)
    assert (calls["upload"], calls["create"], calls["download"]) == (1, 1, 1)


def test_how_far_open_batches_have_come_is_told_until_they_end(ledger):
    async def run(served):
        async with opened(ledger, served.base_url, max_requests=6) as teacher:
            assert teacher.describe_state() == {}
            asked = asyncio.gather(*(teacher.complete(request, 1) for request in REQUESTS))
            states = []
            while not asked.done():
                states.append(teacher.describe_state())
                await asyncio.sleep(0.02)
            return [state for state in states if state.get("open batches") == 2], teacher.describe_state()

    with serve_batches(batch_s=3.0) as served:
        states, last = asyncio.run(run(served))
    assert last == {}
    assert any(0 < state["results waiting there"] < 12 for state in states)


@pytest.mark.parametrize("counts", [None, {}, {"completed": None}, {"completed": 1.5}, [], "many"], ids=repr)
def test_counts_that_say_nothing_are_no_fault(counts):
    assert Batch(id="b", status="in_progress", created_at=1.0, request_counts=counts).n_ready == 0


def test_more_than_a_file_may_have_are_several_batches(ledger):
    with serve_batches() as served:
        assert {c.outcome for c in ask(ledger, served, max_requests=5)} == {Outcome.OK}
        assert count_calls(served)["create"] == 3
        assert set(count_asked(served).values()) == {1}
        n_bytes = sum(len(json.dumps(m.content)) for m in REQUESTS[0].messages) + 900
        other = Ledger(ledger.folder / "other")
        assert {c.outcome for c in ask(other, served, max_bytes=2 * n_bytes)} == {Outcome.OK}
        assert count_calls(served)["create"] > 3 + 3


def test_rows_that_fail_are_errors_of_their_own(ledger):
    faulty, fine = find_draws({"broken": 0.3}, 4)
    with serve_batches(broken=0.3) as served:
        completions = ask(ledger, served, [*faulty, *fine])
    assert [c.outcome for c in completions] == [Outcome.ERROR] * 4 + [Outcome.OK] * 4
    assert all(c.error.startswith("HTTP 500: ") for c in completions[:4])


def test_what_expired_is_a_timeout_and_asked_again_by_another_batch(ledger):
    late, fine = find_draws({"stall": 0.3}, 3)

    async def run(served):
        async with opened(ledger, served.base_url) as teacher:
            first = await asyncio.gather(*(teacher.complete(request, 1) for request in [*late, *fine]))
            return first, await asyncio.gather(*(teacher.complete(request, 1) for request in late))

    with serve_batches(stall=0.3) as served:
        first, second = asyncio.run(run(served))
        assert [c.outcome for c in first] == [Outcome.TIMEOUT] * 3 + [Outcome.OK] * 3
        assert [c.outcome for c in second] == [Outcome.OK] * 3
        assert count_calls(served)["create"] == 2
        assert set(count_asked(served).values()) == {1}


def test_what_expired_is_asked_online_where_that_is_wanted_and_costs_the_full_price(ledger):
    late, fine = find_draws({"stall": 0.3}, 3)
    with serve_batches(stall=0.3) as served:
        completions = ask(ledger, served, [*late, *fine], on_expiry="online")
        assert {c.outcome for c in completions} == {Outcome.OK}
        assert [c.price_factor for c in completions] == [1.0] * 3 + [0.5] * 3
        assert count_calls(served)["create"] == 1
        assert set(count_asked(served).values()) == {1}


def test_of_a_cancelled_batch_the_answers_count_and_the_rest_is_asked_again(ledger):
    async def run(served):
        async with opened(ledger, served.base_url) as teacher:
            first = await asyncio.gather(*(teacher.complete(request, 1) for request in REQUESTS))
            left = [r for r, c in zip(REQUESTS, first, strict=True) if c.outcome is Outcome.ERROR]
            return first, await asyncio.gather(*(teacher.complete(request, 1) for request in left))

    with serve_batches(cancel_first=1) as served:
        first, second = asyncio.run(run(served))
        assert Counter(c.outcome for c in first) == {Outcome.OK: 6, Outcome.ERROR: 6}
        assert Counter(c.outcome for c in second) == {Outcome.OK: 6}
        assert set(count_asked(served).values()) == {1}


def test_an_answer_that_can_not_be_used_is_asked_anew_under_its_next_attempt(ledger):
    with serve_batches() as served:
        first, second = ask(ledger, served), ask(ledger, served, attempt=2)
    assert [c.attempt for c in second] == [2] * 12
    assert all(one.text != other.text for one, other in zip(first, second, strict=True)), "another seed"


# A batch that is not taken


def test_a_batch_for_which_there_is_no_room_is_created_again_from_its_file(ledger):
    with serve_batches(not_taken=2) as served:
        assert {c.outcome for c in ask(ledger, served)} == {Outcome.OK}
        calls = count_calls(served)
        assert (calls["upload"], calls["create"]) == (1, 3)
        assert set(count_asked(served).values()) == {1}


def test_room_is_asked_for_again_by_whoever_comes_after(ledger):
    with serve_batches(not_taken=1, hold="poll") as served:
        ask_and_die(ledger, served, "poll")
        assert {c.outcome for c in ask(ledger, served)} == {Outcome.OK}
        calls = count_calls(served)
        assert (calls["upload"], calls["create"]) == (1, 2)


def test_where_there_is_never_room_the_run_ends_with_advice_and_the_next_one_starts_anew(ledger):
    with serve_batches(not_taken=3) as served:
        with pytest.raises(TeacherError, match=r"too much waits\nlower teacher\.batch\.max_requests"):
            ask(ledger, served, max_retries=2)
        assert {c.outcome for c in ask(ledger, served, max_requests=6)} == {Outcome.OK}


def test_a_row_that_spoils_its_batch_is_found_and_harms_no_other(ledger):
    bad = request_for("verboten")
    with serve_batches(bad_word="verboten") as served:
        *fine, spoilt = ask(ledger, served, [*REQUESTS, bad])
        assert {c.outcome for c in fine} == {Outcome.OK}
        assert (spoilt.outcome, spoilt.error) == (Outcome.ERROR, "invalid_request: no verboten here")
        assert set(count_asked(served).values()) == {1}


# Restarts


@pytest.mark.parametrize("stage", STAGES)
def test_whoever_comes_after_a_teacher_that_went_away_asks_nothing_twice(ledger, stage):
    with serve_batches(hold=stage, batch_s=0.5) as served:
        ask_and_die(ledger, served, stage)
        held = count_calls(served)
        completions = ask(ledger, served)
        calls, asked = count_calls(served), count_asked(served)
        log = served.log()
    assert {c.outcome for c in completions} == {Outcome.OK}
    assert set(asked.values()) == {1}
    assert len(asked) == len(REQUESTS)
    assert calls["uploaded"] == 1, "the file is used again"
    assert calls["created"] == 1, "the batch is found again"
    assert held["created"] == (stage in ("created", "poll", "download"))
    ids = {json.dumps([line["id"] for line in log if line.get("call") == call]) for call in ("uploaded", "created")}
    (record,) = (ledger.folder / "batches").names(".json")
    kept = (ledger.folder / "batches").read_json(record)
    assert {json.dumps([kept["file_id"]]), json.dumps([kept["batch_id"]])} == ids


def test_only_what_a_dead_teacher_had_not_sent_is_gathered_anew(ledger):
    with serve_batches(hold="poll") as served:
        ask_and_die(ledger, served, "poll", REQUESTS[:8])
        assert {c.outcome for c in ask(ledger, served)} == {Outcome.OK}
        assert count_calls(served)["create"] == 2
        assert set(count_asked(served).values()) == {1}


def test_a_batch_whose_creation_was_not_confirmed_is_found_by_its_key(ledger):
    with serve_batches(lose_created=1) as served:
        for part in range(3):  # of lists with several pages
            assert {c.outcome for c in ask(ledger, served, REQUESTS[4 * part : 4 * part + 4])} == {Outcome.OK}
        assert count_calls(served)["created"] == 3
        assert set(count_asked(served).values()) == {1}


def test_a_failure_that_the_ledger_has_is_no_result_any_more_and_one_that_it_lacks_is(ledger):
    faulty, _ = find_draws({"broken": 0.3}, 4)
    with serve_batches(broken=0.3) as served:
        first = ask(ledger, served, faulty)
        writer = LedgerWriter(ledger)
        for completion in first[:2]:
            writer.write(completion)
        second = ask(ledger, served, faulty)
        assert count_calls(served)["create"] == 2
        writer.close()
    assert [c.outcome for c in second] == [Outcome.OK] * 2 + [Outcome.ERROR] * 2
    assert [c.started_at for c in second[2:]] == [c.started_at for c in first[2:]], "the same try, told again"


def test_a_batch_that_the_api_does_not_know_is_told_with_where_it_is_remembered(ledger):
    with serve_batches(hold="poll") as served:
        ask_and_die(ledger, served, "poll")
    with (
        serve_batches() as other,
        pytest.raises(TeacherError, match=r"HTTP 404.*\n.*batches/.*\.json says what") as told,
    ):
        ask(ledger, other)
    (record,) = (ledger.folder / "batches").names(".json")
    assert record in str(told.value)


def test_a_record_that_can_not_be_read_ends_the_run(ledger):
    (ledger.folder / "batches").write_text("1-a.json", '{"key": "1-a", ')
    with serve_batches() as served, pytest.raises(StorageError, match=r"batches/1-a\.json is no record of a batch"):
        ask(ledger, served)


def test_two_teachers_do_not_ask_at_once(ledger, monkeypatch):
    monkeypatch.setattr(batch_records, "LOCK_WAIT_S", 0.3)

    async def run(served):
        async with opened(ledger, served.base_url) as first:
            await first.complete(REQUESTS[0], 1)
            async with opened(ledger, served.base_url) as second:
                with pytest.raises(TeacherError, match=r"another run has held .*batches\.lock"):
                    await second.complete(REQUESTS[1], 1)
        async with opened(ledger, served.base_url) as third:
            return await third.complete(REQUESTS[1], 1)

    with serve_batches() as served:
        assert asyncio.run(run(served)).outcome is Outcome.OK


# What is said and refused


def test_the_key_reaches_the_api_and_nothing_that_is_kept(ledger, monkeypatch):
    monkeypatch.setenv("SOME_KEY", KEY)
    with serve_batches(wanted_key=KEY, broken=0.3, echo_key=1) as served:
        completions = ask(ledger, served, api_key_env="SOME_KEY")
    assert Counter(c.outcome for c in completions).keys() == {Outcome.OK, Outcome.ERROR}
    assert any("[api key]" in c.error for c in completions)
    kept = [path.read_bytes() for path in ledger.folder.path.rglob("*") if path.is_file()]
    assert KEY not in repr(completions)
    assert all(KEY.encode() not in content for content in kept)


def test_an_api_that_is_not_there_ends_the_run(ledger):
    with pytest.raises(TeacherError, match=r"POST files at http://127\.0\.0\.1:9/v1: gave up after 1 calls"):
        asyncio.run(_complete_nowhere(ledger))


async def _complete_nowhere(ledger):
    async with opened(ledger, "http://127.0.0.1:9/v1", max_retries=0) as teacher:
        await teacher.complete(REQUESTS[0], 1)


def test_a_missing_key_is_found_before_anything_is_asked(monkeypatch):
    monkeypatch.delenv("SOME_KEY", raising=False)
    with pytest.raises(ConfigError, match="the environment variable SOME_KEY is not set or empty"):
        check_teacher(configure(api_key_env="SOME_KEY"), REQUESTS, is_local=True)


def test_a_request_that_fits_into_no_file_is_found_before_anything_is_asked():
    long = replace(REQUESTS[3], messages=(Message("user", "word " * 1000),))
    check_teacher(configure(max_bytes=3000), REQUESTS, is_local=True)
    with pytest.raises(ConfigError, match=rf"{long.request_id} is a line of 5\d\d\d bytes.*max_bytes=3000"):
        check_teacher(configure(max_bytes=3000), [*REQUESTS, long], is_local=True)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"on_expiry": "wait"}, "batch.on_expiry: Input should be 'resubmit' or 'online'"),
        ({"completion_window": "a day"}, "batch.completion_window"),
        ({"max_requests": 0}, "batch.max_requests"),
        ({"price_factor": -0.5}, "batch.price_factor"),
        ({"extra_body": {"stream": True}}, "extra_body: Value error, a batch can't stream"),
        (
            {"further_endpoints": [{"base_url": "http://other:1/v1", "api_key_env": None}]},
            "further_endpoints: Value error, a batch is one account's",
        ),
    ],
)
def test_a_setting_that_makes_no_sense_is_refused(changes, told):
    with pytest.raises(ConfigError, match=told):
        configure(**changes)


def test_an_arm_may_name_it_and_a_judge_may_not():
    teacher = ["teacher=openai_batch", "teacher.model=some/model"]
    (arm,) = compose_experiment(teacher).arms.values()
    assert isinstance(arm.teacher, OpenAIBatchConfig)
    with pytest.raises(ConfigError, match="how long one answer takes, which a batch can't tell"):
        compose_experiment([*teacher, "judge=zero_shot"])


def test_answers_by_a_batch_and_without_one_have_one_identity(ledger):
    config = configure()
    direct = validate(OpenAIConfig, {**config.model_dump(exclude={"batch"}), "kind": "openai"})
    assert pin_teacher(config, ())[1] == pin_teacher(direct, ())[1]
    assert isinstance(make_teacher(config, lambda request, seed: "", 1, ledger), OpenAIBatchTeacher)


def test_a_row_is_named_by_request_and_attempt():
    assert name_row("abc", 2) == "abc-2"
