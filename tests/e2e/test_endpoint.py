"""The `openai` teacher in whole runs against an endpoint with faults: what is asked, counted where it arrives."""

from collections import Counter

import pytest

from pipeline.records import Outcome
from pipeline.storage import Folder
from pipeline.teachers.ledger import Ledger
from tests.endpoint import OK, draw, serve
from tests.jobs import read_prompts, read_result, run_job, start_job

pytestmark = pytest.mark.ray

FAULTS = {"rate_limited": 0.05, "broken": 0.02, "malformed": 0.03, "truncated": 0.01}
KEY_NAME, KEY = "RAYSTILL_TEST_KEY", "sk-one-that-nobody-has"


def write_command(tmp_path, base_url, n_topics, *more):
    topics = tmp_path / "topics.txt"
    topics.write_text("".join(f"Topic number {i}\n" for i in range(n_topics)))
    return [
        "task=ambiguity", "data=topics", f"data.path={topics}", "teacher=openai", f"teacher.base_url={base_url}",
        "teacher.model=sample", "tracking=none", f"root={tmp_path}/runs", *more,
    ]  # fmt: skip


def generate(*arguments):
    return Folder.at(read_result(run_job(*arguments, script="generate")))


def count_arrivals(served):
    """Return how many requests came for each prompt."""
    return Counter(line["prompt"] for line in served.log() if not line["finished"])


def find_first_good(prompt):
    """Return which request for a prompt is the first that gets a good answer from an endpoint of seed 0."""
    n = 1
    while draw(0, FAULTS, prompt, n) != OK:
        n += 1
    return n


@pytest.mark.parametrize("n_requests", [300, pytest.param(2000, marks=pytest.mark.crash)])
def test_each_prompt_is_asked_until_its_first_good_answer_and_then_never_again(tmp_path, n_requests):
    with serve(**FAULTS) as served:
        command = write_command(tmp_path, served.base_url, n_requests, "method.max_attempts=8")
        dataset = generate(*command)
        arrived = count_arrivals(served)
        assert arrived == {prompt: find_first_good(prompt) for prompt in read_prompts(tmp_path / "runs")}
        counts = dataset.read_json("manifest.json")["counts"]
        assert counts["requests"] == counts["requests_accepted"] == n_requests
        assert generate(*command) == dataset
        assert count_arrivals(served) == arrived


def find_ends(dataset):
    """Return the requests that got no usable answer, and why."""
    rejects = dataset.read_table("rejects.parquet").to_pylist()
    return {reject["request_id"]: reject["reason"] for reject in rejects if reject["stage"] == "parse"}


@pytest.mark.crash  # for its length: three runs
def test_a_replay_asks_again_what_ended_for_its_reasons_and_nothing_else(tmp_path):
    with serve(malformed=0.2, truncated=0.1, broken=0.1) as served:
        command = write_command(
            tmp_path, served.base_url, 60, "method.max_attempts=1", "teacher.max_retries=0", "teacher.max_tries=1"
        )
        ends = find_ends(generate(*command))
        assert set(ends.values()) == {Outcome.INVALID_JSON, Outcome.TRUNCATED, Outcome.ERROR}
        prompts = read_prompts(tmp_path / "runs")
        first = count_arrivals(served)
        assert first == dict.fromkeys(prompts, 1)

        replayed = generate(*command, "replay=[invalid_json,truncated]")
        wanted = {request_id for request_id, reason in ends.items() if reason != Outcome.ERROR}
        asked_again = count_arrivals(served) - first
        assert asked_again == {prompt: 1 for prompt, request_id in prompts.items() if request_id in wanted}
        n_failed = replayed.read_json("manifest.json")["counts"]["requests_failed"]
        assert n_failed < len(ends), "no replayed request was accepted"

        assert generate(*command) == replayed
        assert count_arrivals(served) - first == asked_again


def fail(*arguments, **environment):
    """Return what a run that fails says."""
    job = start_job(*arguments, script="generate", **environment)
    stdout, stderr = job.communicate(timeout=200)
    assert job.returncode != 0
    assert "Traceback" not in stderr
    assert "done:" not in stdout
    return stderr


def test_a_refused_key_is_told_by_the_name_of_its_variable(tmp_path):
    with serve(wanted_key="sk-the-right-one") as served:
        command = write_command(tmp_path, served.base_url, 20, f"teacher.api_key_env={KEY_NAME}")
        error = fail(*command, **{KEY_NAME: KEY})
    assert "HTTP 401" in error
    assert f"check the key in the environment variable {KEY_NAME}" in error
    assert KEY not in error
    assert Ledger.of(Folder.at(tmp_path / "runs"), "openai").read()[0] == []


def test_a_missing_key_is_told_before_any_cluster_starts(tmp_path):
    with serve() as served:
        command = write_command(tmp_path, served.base_url, 20, f"teacher.api_key_env={KEY_NAME}")
        error = fail(*command)
        assert served.log() == []
    assert f"the environment variable {KEY_NAME} is not set" in error
    assert "teach " not in error
