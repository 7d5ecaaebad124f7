"""The offline teacher: deterministic replies, and faults in the shares that were asked for."""

import asyncio
import json
import math
from collections import Counter

import pytest

from pipeline.config import validate
from pipeline.errors import ConfigError
from pipeline.identity import derive_seed
from pipeline.prompts.replies import read_reply
from pipeline.prompts.schemas import record, text
from pipeline.records import Message, Outcome, Request, Seed
from pipeline.teachers.offline import OfflineConfig, OfflineTeacher

SETTINGS = {
    "kind": "offline",
    "label": "offline",
    "sampling": {"temperature": 0.0, "top_p": 1.0},
    "max_in_flight": 8,
    "timeout_s": 5.0,
    "max_tries": 2,
    "latency_s": 0.0,
    "faults": {},
    "cpus": 1,
    "gpus": 0,
    "price": {"per_million_prompt_tokens": None, "per_million_completion_tokens": None, "per_device_hour": None},
}
SCHEMA = json.dumps(record(answer=text(40)))


def make_request(number: int) -> Request:
    messages = (Message("system", "s" * 40), Message("user", "u" * 60))
    return Request(f"r{number}", Seed(f"s{number}", "topic", "g"), (), messages, SCHEMA, 50, 0.0, 1.0, number)


def reply(request: Request, seed: int) -> str:
    return json.dumps({"answer": f"seed {seed}"})


def ask(requests, attempt=1, **changes):
    """Return the completions of all requests by one teacher."""
    teacher = OfflineTeacher(validate(OfflineConfig, {**SETTINGS, **changes}), reply)

    async def gather():
        return await asyncio.gather(*(teacher.complete(request, attempt) for request in requests))

    return asyncio.run(gather())


def test_a_completion_holds_the_rules_reply_for_its_own_seed():
    (completion,) = ask([make_request(3)], attempt=2)
    assert (completion.request_id, completion.attempt, completion.outcome) == ("r3", 2, Outcome.OK)
    assert json.loads(completion.text) == {"answer": f"seed {derive_seed(3, 2)}"}
    assert completion.finish_reason == "stop"
    assert completion.error == ""
    assert completion.n_prompt_tokens == 25  # 100 characters, four a token
    assert completion.n_completion_tokens == len(completion.text) // 4
    assert completion.started_at > 1.7e9


def test_the_same_request_and_attempt_get_the_same_reply_and_fault():
    requests = [make_request(number) for number in range(200)]
    faults = {"timeout": 0.3, "invalid_json": 0.3}
    first, second = ([(c.outcome, c.text) for c in ask(requests, faults=faults)] for _ in range(2))
    assert first == second
    assert first != [(c.outcome, c.text) for c in ask(requests, attempt=2, faults=faults)]


@pytest.mark.parametrize("outcome", [outcome for outcome in Outcome if outcome is not Outcome.OK])
def test_a_fault_ends_in_its_own_outcome_once_parsed(outcome):
    request = make_request(1)
    (completion,) = ask([request], faults={outcome.value: 1.0})
    assert read_reply(request, completion).outcome is outcome
    if outcome in (Outcome.INVALID_JSON, Outcome.SCHEMA_MISMATCH):
        assert completion.outcome is Outcome.OK, "a teacher can't tell; parsing does"
    else:
        assert completion.outcome is outcome


def test_an_error_says_that_it_is_rehearsed():
    (completion,) = ask([make_request(1)], faults={"error": 1.0})
    assert completion.error == "rehearsed fault"
    assert completion.text == ""


def test_a_truncated_reply_ended_by_length():
    (completion,) = ask([make_request(1)], faults={"truncated": 1.0})
    assert completion.finish_reason == "length"
    assert reply(make_request(1), derive_seed(1, 1)).startswith(completion.text)


def test_faults_come_in_their_shares():
    shares = {"timeout": 0.1, "invalid_json": 0.2, "refused": 0.05, "schema_mismatch": 0.15}
    requests = [make_request(number) for number in range(4000)]
    completions = ask(requests, faults=shares)
    counts = Counter(read_reply(*pair).outcome.value for pair in zip(requests, completions, strict=True))
    for outcome, share in {**shares, "ok": 0.5}.items():
        standard_error = math.sqrt(share * (1 - share) / 4000)
        assert counts[outcome] / 4000 == pytest.approx(share, abs=4 * standard_error)
    assert sum(counts.values()) == 4000
    assert set(counts) == {*shares, "ok"}


def test_another_attempt_draws_another_fate():
    requests = [make_request(number) for number in range(1000)]
    failed = [c.outcome is Outcome.TIMEOUT for c in ask(requests, 1, faults={"timeout": 0.5})]
    again = [c.outcome is Outcome.TIMEOUT for c in ask(requests, 2, faults={"timeout": 0.5})]
    both = sum(a and b for a, b in zip(failed, again, strict=True)) / 1000
    assert both == pytest.approx(0.25, abs=4 * math.sqrt(0.25 * 0.75 / 1000))


def test_a_slow_teacher_takes_its_time():
    (completion,) = ask([make_request(1)], latency_s=0.05)
    assert 0.05 <= completion.latency_s < 5


@pytest.mark.parametrize(
    "faults",
    [{"nonsense": 0.1}, {"timeout": 1.1}, {"timeout": -0.1}, {"ok": 0.5}, {"timeout": 0.6, "error": 0.5}],
    ids=str,
)
def test_faults_that_are_none_or_too_many_are_refused(faults):
    with pytest.raises(ConfigError, match="faults"):
        validate(OfflineConfig, {**SETTINGS, "faults": faults})


def test_an_answer_that_takes_too_long_is_a_timeout():
    (completion,) = ask([make_request(1)], latency_s=5.0, timeout_s=0.05)
    assert (completion.outcome, completion.text) == (Outcome.TIMEOUT, "")
    assert completion.error == "no answer within 0.05 s"
    assert 0.05 <= completion.latency_s < 2
