"""The vLLM teacher on the real engine: what it sends, what it makes of answers, and how it knows an engine's end."""

import asyncio
import math
import signal
import time
from dataclasses import replace

import psutil
import pytest

from pipeline.config import validate
from pipeline.errors import TeacherDiedError
from pipeline.prompts.replies import read_reply
from pipeline.prompts.requests import make_request
from pipeline.prompts.schemas import array, record, text
from pipeline.records import Message, Outcome, Seed
from pipeline.teachers.vllm import VllmConfig, VllmTeacher
from tests.composing import compose_teacher
from tests.models import build_lora

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(300)]

SCHEMA = record(pairs=array(record(query=text(40), clear={"type": "boolean"}), 2))


def configure(**changes) -> VllmConfig:
    return validate(VllmConfig, {**compose_teacher("vllm_tiny"), **changes})


def ask(n=1, schema=SCHEMA, words="Write two queries.", temperature=1.0, choices=()):
    messages = (Message("system", "You write search queries. " * 60), Message("user", words))
    return [
        make_request(
            Seed(f"s{i}", "t", "g"), (), messages, schema,
            choices=choices, temperature=temperature, top_p=1.0, teacher={"kind": "vllm"}, run_seed=7,
        )
        for i in range(n)
    ]  # fmt: skip


@pytest.fixture(scope="module")
def runner():
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(scope="module")
def teacher(tiny_teacher, tmp_path_factory, runner):
    """One engine with an adapter at hand, which only the adapter's test uses."""
    teacher = VllmTeacher(configure(lora=str(build_lora(tiny_teacher, tmp_path_factory.mktemp("lora")))))
    teacher._lora, teacher.adapter = None, teacher._lora
    yield teacher
    runner.run(teacher.close())


def complete(runner, teacher, requests, attempt=1):
    async def gather():
        return await asyncio.gather(*(teacher.complete(request, attempt) for request in requests))

    return runner.run(gather())


def test_replies_are_held_to_their_schema_and_stop_by_themselves(runner, teacher):
    requests = ask(24)
    completions = complete(runner, teacher, requests)
    assert {(c.outcome, c.finish_reason) for c in completions} == {(Outcome.OK, "stop")}
    assert {read_reply(r, c).outcome for r, c in zip(requests, completions, strict=True)} == {Outcome.OK}
    assert len({c.text for c in completions}) == 24, "each row has a seed of its own"
    assert all(c.text.startswith('{"pairs":[{"query":"') for c in completions), (
        "properties in the schema's order, no blanks"
    )
    for c in completions:
        assert 0 < c.n_completion_tokens <= requests[0].max_new_tokens
        assert c.n_prompt_tokens > 50
        assert c.latency_s > 0


def test_a_prompt_that_another_shares_is_found_in_the_cache(runner, teacher):
    (request,) = ask()
    fresh = replace(request, messages=(Message("system", "Nobody asked this before. " * 60), request.messages[1]))
    (first,) = complete(runner, teacher, [fresh])
    (second,) = complete(runner, teacher, [fresh], attempt=2)
    assert first.n_cached_tokens == 0
    assert 128 <= second.n_cached_tokens <= second.n_prompt_tokens


def test_a_seed_gives_the_same_reply_and_another_attempt_another(runner, teacher):
    requests = ask(4)
    first, again, other = ([c.text for c in complete(runner, teacher, requests, attempt)] for attempt in (1, 1, 2))
    assert first == again
    assert not set(first) & set(other)


def test_a_reply_that_is_cut_off_is_truncated_and_keeps_its_text(runner, teacher):
    (request,) = ask()
    (completion,) = complete(runner, teacher, [replace(request, max_new_tokens=5)])
    assert completion.outcome is Outcome.TRUNCATED
    assert completion.finish_reason == "length"
    assert completion.n_completion_tokens == 5
    assert completion.text


def test_choices_come_with_the_log_probability_of_each(runner, teacher):
    (request,) = ask(schema=None, choices=("yes", "no"), temperature=0.0)
    (completion,) = complete(runner, teacher, [request])
    assert completion.text.strip().lower() in ("yes", "no")
    assert set(completion.choice_logprobs) == {"yes", "no"}
    assert sum(math.exp(value) for value in completion.choice_logprobs.values()) == pytest.approx(1, abs=0.2), (
        "the reply is one of the two, but for spellings that begin with a blank of their own"
    )


def test_a_prompt_that_leaves_no_room_is_told_with_the_setting_to_raise(runner, teacher):
    (completion,) = complete(runner, teacher, ask(words="word " * 9000))
    assert completion.outcome is Outcome.ERROR
    assert "raise engine.max_model_len" in completion.error


def test_an_answer_that_takes_too_long_is_a_timeout_and_leaves_the_engine_at_work(runner, teacher):
    slow = teacher.config
    teacher.config = validate(VllmConfig, {**slow.model_dump(), "timeout_s": 0.01})
    completions = complete(runner, teacher, ask(3))
    teacher.config = slow
    assert {c.outcome for c in completions} == {Outcome.TIMEOUT}
    assert complete(runner, teacher, ask(1))[0].outcome is Outcome.OK


def test_an_adapter_changes_what_is_written(runner, teacher):
    requests = ask(2, temperature=0.0)
    plain = [c.text for c in complete(runner, teacher, requests)]
    teacher._lora = teacher.adapter
    adapted = [c.text for c in complete(runner, teacher, requests)]
    teacher._lora = None
    assert adapted != plain
    assert [c.text for c in complete(runner, teacher, requests)] == plain


def test_memory_is_that_of_the_engines_processes(teacher):
    assert teacher.measure_memory() > 100e6


def find_youngest_engine() -> list[psutil.Process]:
    """Return the processes of the engine that was started last."""
    engines = [process for process in psutil.Process().children(recursive=True) if "EngineCore" in process.name()]
    youngest = max(engines, key=lambda process: process.create_time())
    return [youngest, *youngest.children(recursive=True)]


def lives(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize(("blow", "words"), [(signal.SIGKILL, "died"), (signal.SIGSTOP, "made no step for")])
def test_an_engine_that_dies_or_stalls_is_known_to_all_that_wait_for_it(runner, tiny_teacher, blow, words):
    teacher = VllmTeacher(configure(stall_timeout_s=3.0))
    processes = find_youngest_engine()
    long_replies = ask(8, schema=record(sentences=array(text(200), 40)))

    async def strike():
        waiting = [asyncio.create_task(teacher.complete(request, 1)) for request in long_replies]
        await asyncio.sleep(0.5)
        processes[0].send_signal(blow)
        return await asyncio.gather(*waiting, return_exceptions=True)

    started = time.monotonic()
    results = runner.run(strike())
    assert time.monotonic() - started < 60
    assert {type(result) for result in results} == {TeacherDiedError}
    assert all(words in str(result) for result in results)
    runner.run(teacher.close())
    assert not list(filter(lives, processes)), "closing leaves no process behind, nor the memory that it held"
