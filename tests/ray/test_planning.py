"""Plans against what the run then took: a local endpoint, the rules, and the real engine with the tiny model."""

import json
import random
from collections import Counter

import pytest

from pipeline.flow import run
from pipeline.launch import CONF
from pipeline.stages.project import PLAN, PLAN_PAGE
from pipeline.storage import Folder
from pipeline.teachers.ledger import Ledger
from tests.composing import compose_generation
from tests.endpoint import serve
from tests.jobs import read_result, run_job

pytestmark = pytest.mark.ray

N_TOPICS, PROBE = 120, 20
FAULTS = {"malformed": 0.08, "truncated": 0.02}
PRICE = ["teacher.price.per_million_prompt_tokens=0.4", "teacher.price.per_million_completion_tokens=1.6"]


def write_topics(folder, n=N_TOPICS):
    """Write topics of very different lengths."""
    draws = random.Random(5)
    words = (CONF / "topics" / "everyday.tsv").read_text().split()
    lines = [f"Topic {i}: {' '.join(draws.choices(words, k=draws.randint(1, 60)))}\n" for i in range(n)]
    (folder / "topics.txt").write_text("".join(lines))
    return ["task=ambiguity", "data=topics", f"data.path={folder}/topics.txt", "tracking=none", f"root={folder}/runs"]


def plan(*overrides):
    """Return a plan and the steps that made it."""
    finished = run(compose_generation(["plan=true", *overrides]), "plan")
    return finished.steps[-1].folder.read_json(PLAN), {step.name: step for step in finished.steps}


def generate(*overrides):
    """Return what a run's one data set counted."""
    finished = run(compose_generation(overrides), "generate")
    return finished.steps[-1].manifest["counts"]


def check(projected, used):
    """Check a plan's sums, of what is there and what is to come, against a data set's counts."""
    assert {name: estimate["value"] for name, estimate in projected.items() if name != "calls"} == {
        name: pytest.approx(used[name], rel=0.15) for name in ("prompt_tokens", "completion_tokens")
    }
    used = {**used, "calls": used["completions"]}
    for name, estimate in projected.items():
        assert estimate["low"] <= used[name] <= estimate["high"], name


def count_arrivals(served):
    return Counter(line["prompt"] for line in served.log() if not line["finished"])


def test_a_plan_of_an_endpoint_comes_true_and_its_probe_is_paid_once(ray_cluster, tmp_path):
    with serve(padding=1.0, **FAULTS) as served:
        command = [
            *write_topics(tmp_path), "teacher=openai", f"teacher.base_url={served.base_url}", "teacher.model=sample"
        ]  # fmt: skip
        found, steps = plan(*command)
        probed = count_arrivals(served)
        assert len(probed) == PROBE
        (part,) = found["parts"]
        assert part["probe"] == {"requests": PROBE, "accepted": PROBE, "calls": probed.total()}
        assert (part["held"]["requests"], part["to_come"]["requests"]) == (PROBE, N_TOPICS - PROBE)
        assert part["held"]["calls"] == probed.total()
        assert part["bad_replies"]["value"] == pytest.approx(1 - PROBE / probed.total())
        assert part["to_come"]["usd"] is None
        assert found["total"]["unpriced"] == ["openai"]
        assert "Topic 0: " in part["prompts"][0]["messages"][-1]["content"]
        assert "no price set" in steps["plan"].folder.read_text(PLAN_PAGE)

        again, kept = plan(*command)
        assert again == found
        assert all(step.kept for step in kept.values())
        priced, kept = plan(*command, *PRICE)
        assert kept["probe"].kept
        assert not kept["plan"].kept
        rest = priced["parts"][0]["to_come"]
        by_hand = (0.4 * rest["prompt_tokens"]["value"] + 1.6 * rest["completion_tokens"]["value"]) / 1e6
        assert rest["usd"]["value"] == pytest.approx(by_hand)
        assert count_arrivals(served) == probed, "a plan was paid for twice"

        counts = generate(*command)
        assert counts["requests_accepted"] == N_TOPICS
        assert count_arrivals(served).total() == counts["completions"], "what the probe had was asked again"
        check(part["in_all"], counts)

        after, _ = plan(*command)
        assert count_arrivals(served).total() == counts["completions"]
        (part,) = after["parts"]
        assert (part["to_come"]["requests"], part["to_come"]["calls"]["value"]) == (0, 0)
        assert part["in_all"]["completion_tokens"]["value"] == counts["completion_tokens"]


ARMS = [
    "+data@arms.first.data=topics", "+teacher@arms.first.teacher=offline", "+method@arms.first.method=paired",
    "+filters@arms.first.filters=default", "+data@arms.twin.data=topics", "+teacher@arms.twin.teacher=offline",
    "+method@arms.twin.method=paired", "+filters@arms.twin.filters=length_matched", "+data@arms.other.data=topics",
    "+teacher@arms.other.teacher=offline", "+method@arms.other.method=paired_similar_lengths",
    "+filters@arms.other.filters=default", "+student@students.minilm=minilm",
]  # fmt: skip


def test_a_probe_is_drawn_from_every_arm_and_what_two_arms_ask_is_counted_once(ray_cluster, tmp_path):
    _, *rest = write_topics(tmp_path, 30)
    paths = [f"arms.{arm}.data.path={tmp_path}/topics.txt" for arm in ("first", "twin", "other")]
    common = ["name=arms", *ARMS, *paths, *(o for o in rest if not o.startswith("data")), "probe_rows=9"]
    with serve() as served:
        judge = [
            "+teacher@judges.llm.teacher=openai", "+judge@judges.llm=zero_shot", "judges.llm.teacher.model=sample",
            f"judges.llm.teacher.base_url={served.base_url}",
        ]  # fmt: skip
        found, _ = plan(*common, *judge)
        assert count_arrivals(served).total() == 3
    parts = {part["key"]: part for part in found["parts"]}
    assert {key: part["probe"]["requests"] for key, part in parts.items()} == {
        "first": 3, "twin": 0, "other": 3, "llm": 3
    }  # fmt: skip
    assert parts["twin"]["asked_elsewhere"] == 30
    assert [part["stage"] for part in parts.values()] == ["teaching", "teaching", "teaching", "judging"]
    completions, _ = Ledger.of(Folder.at(tmp_path / "runs"), "offline").read()
    assert len(completions) == 6
    total = found["total"]
    assert total["to_come"]["requests"] == sum(part["to_come"]["requests"] for part in parts.values())
    assert total["to_come"]["calls"]["value"] == pytest.approx(total["to_come"]["requests"])


def test_the_job_prints_prompts_and_table_and_ends_as_others_do(tmp_path):
    stdout = run_job(*write_topics(tmp_path, 25), "plan=true", "probe_rows=5", script="generate")
    result = read_result(stdout)
    assert {path.name for path in result.iterdir()} == {PLAN, PLAN_PAGE, "manifest.json"}
    assert json.loads((result / PLAN).read_text())["parts"][0]["to_come"]["requests"] == 20
    for text in ("[system] You write", "[user] Topic: Topic 0", "to come", "no price is set for offline", PLAN_PAGE):
        assert text in stdout


@pytest.mark.vllm
def test_a_plan_of_the_real_engine_comes_true_and_counts_prompts_exactly(ray_cluster, tiny_teacher, tmp_path):
    command = [*write_topics(tmp_path), "teacher=vllm_tiny", "method.n_intents=1"]
    found, _ = plan(*command)
    (part,) = found["parts"]
    rest = part["to_come"]
    counts = generate(*command)
    check(part["in_all"], counts)
    assert rest["prompt_tokens"]["value"] / rest["calls"]["value"] == pytest.approx(
        (counts["prompt_tokens"] - part["held"]["prompt_tokens"]) / (counts["completions"] - part["held"]["calls"]),
        rel=0.02,
    ), "only how often it is asked was projected"
    assert rest["time_s"]["value"] > 0
    assert rest["device_s"]["value"] == pytest.approx(rest["time_s"]["value"])
