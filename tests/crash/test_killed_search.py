"""`kill -9` of a search's driver, then the same command; and a population, whose trials go on from each other's."""

import json
from pathlib import Path

import pytest
import yaml

from tests.jobs import count_mlflow_runs, forget_mlflow_run, read_result, run_job, start_job, wait_until
from tests.models import build_tiny

pytestmark = pytest.mark.crash
N_TRIALS, N_BEFORE = 5, 2


@pytest.fixture
def small_search(tmp_path):
    build_tiny("distilbert", tmp_path / "model")
    return [
        *("experiment=quickstart", "arms.offline.data.limit=40", f"root={tmp_path}/runs"),
        *(f"students.minilm.model={tmp_path}/model", "students.minilm.epochs=3"),
        f"evaluation.prototype.encoder.model={tmp_path}/model",
        "evaluation.frozen=null",
    ]


def read_records(root: Path) -> dict[str, tuple[int, dict]]:
    """Return when each trial's record was written, and what it says."""
    found = root.glob("steps/search/*/trials/*/manifest.json")
    return {path.parent.name: (path.stat().st_mtime_ns, json.loads(path.read_text())) for path in found}


def count_trials(root: Path) -> dict[str, int]:
    runs = count_mlflow_runs(root)
    return {student: n for (step, _, student), n in runs.items() if step == "trial"}


def test_a_killed_search_goes_on_and_shows_every_trial_once(tmp_path, small_search):
    # Two at once: one is at work when the other has ended, and Tune puts it elsewhere when it is restored.
    root, command = tmp_path / "runs", [*small_search, f"search.trials={N_TRIALS}", "scale.trials.at_once=2"]
    job = start_job(*command, script="tune")
    wait_until(lambda: len(read_records(root)) >= N_BEFORE or job.poll() is not None, "two trials have ended")
    assert job.poll() is None, "the search was over before it could be killed"
    job.kill()
    job.communicate()
    before = read_records(root)
    forget_mlflow_run(root, f"minilm {next(iter(before))}")  # as where the kill comes before MLflow has heard of it

    stdout = run_job(*command, "resume=true", script="tune")
    after = read_records(root)
    assert list(after) == [f"{number:04d}" for number in range(N_TRIALS)]
    assert {name: after[name] for name in before} == before, "a trial that had ended was run again"
    assert {record["state"] for _, record in after.values()} <= {"complete", "stopped early"}
    points = [json.dumps(record["ingredients"]["config"] | {"number": 0, "state": ""}) for _, record in after.values()]
    assert len(set(points)) == N_TRIALS, "a trial stands under two numbers"
    assert after["0000"][1]["ingredients"]["config"]["student.learning_rate"] == 5e-5, "trial 0 is the default"
    assert count_trials(root) == {f"minilm {number:04d}": 1 for number in range(N_TRIALS)}

    result = read_result(stdout)
    found = json.loads((result / "search.json").read_text())
    scores = [record["score"] for _, record in after.values()]
    assert found["best"]["score"] == max(scores) >= scores[0] == found["default"]["score"]
    assert not list(root.glob("steps/search/*/tune"))
    assert (result / "report.html").read_text().count("<img ") >= 1

    again = run_job(*command, script="tune")
    assert f"{N_TRIALS + 4} steps, {N_TRIALS + 4} kept" in again, "requests, data set, trials, search, report"
    assert count_trials(root) == {f"minilm {number:04d}": 1 for number in range(N_TRIALS)}

    # The best is a student by its name, under the same root.
    composed = run_job(
        "experiment=quickstart", "+student@students.best=tuned_minilm_offline", f"root={root}", "--cfg", "job"
    )
    best = yaml.safe_load(composed)["students"]["best"]
    assert best["learning_rate"] == found["best"]["point"]["student.learning_rate"]
    assert best["epochs"] == 3


def test_a_population_copies_and_changes_and_ends_whole(tmp_path, small_search):
    stdout = run_job(*small_search, "search=population", "search.trials=3", script="tune")
    records = [record for _, record in read_records(tmp_path / "runs").values()]
    assert [record["state"] for record in records] == ["complete"] * 3
    for record in records:
        assert [epoch["epoch"] for epoch in record["course"]] == [1, 2, 3], "a copied course is the copier's as well"
        assert record["score"] == record["course"][-1]["held_out_score"], "the best may be of settings it no longer has"
    found = json.loads((read_result(stdout) / "search.json").read_text())
    assert found["best"]["score"] == max(record["score"] for record in records)
    assert found["default"] is None
