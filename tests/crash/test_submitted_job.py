"""`ray job submit` on a cluster started by `ray start --head`, token authentication on, as in production."""

import json
import subprocess
import time

import pytest

from tests.conftest import PROJECT
from tests.jobs import RAY, read_entries, read_result, read_row_ids, read_submitted, run_job, submit
from tests.models import build_tiny

pytestmark = pytest.mark.crash


@pytest.fixture
def experiment(tmp_path):
    build_tiny("distilbert", tmp_path / "model")
    return [
        "experiment=quickstart",
        "arms.offline.data.limit=20",
        f"students.minilm.model={tmp_path}/model",
        "students.minilm.folds=2",
        f"evaluation.prototype.encoder.model={tmp_path}/model",
        f"evaluation.frozen.encoder.model={tmp_path}/model",
        "evaluation.n_replicates=100",
    ]


def test_a_submitted_job_gives_what_a_plain_run_gives(job_cluster, experiment, tmp_path):
    plain = read_entries(read_result(run_job(*experiment, f"root={tmp_path}/plain")))
    submitted = read_entries(read_submitted(submit(job_cluster, *experiment, f"root={tmp_path}/submitted")))
    assert submitted.keys() == plain.keys()
    for key, numbers in plain.items():
        assert submitted[key] == pytest.approx(numbers, abs=1e-6), key
    assert read_row_ids(tmp_path / "submitted") == read_row_ids(tmp_path / "plain")


def test_a_relative_root_is_refused(job_cluster, experiment):
    done = submit(job_cluster, *experiment, "root=runs")
    assert done.returncode != 0
    assert "root=runs is a relative path" in done.stdout + done.stderr


def test_a_stopped_job_goes_on_when_submitted_again(job_cluster, experiment, tmp_path):
    slow = [*experiment, "arms.offline.teacher.latency_s=1.0", "arms.offline.teacher.max_in_flight=2"]
    slow += [f"root={tmp_path}/stopped", "arms.offline.data.limit=30"]
    started = submit(job_cluster, *slow, wait=False)
    assert started.returncode == 0, started.stderr
    job = next(line.split("'")[1] for line in started.stdout.splitlines() if "raysubmit_" in line and "'" in line)
    ledger = tmp_path / "stopped" / "ledger"
    answered = wait_for_answers(ledger, 5)
    subprocess.run([RAY, "job", "stop", job], cwd=PROJECT, env=job_cluster, check=True, capture_output=True)
    read_submitted(submit(job_cluster, *slow))
    from pipeline.storage import Folder
    from pipeline.teachers.ledger import Ledger

    completions, _ = Ledger.of(Folder.at(tmp_path / "stopped"), "offline").read()
    times = {c.request_id: c.started_at for c in completions}
    assert len(times) == len(completions) == 30
    assert all(times[request_id] == started_at for request_id, started_at in answered.items()), (
        "answers were paid twice"
    )


def wait_for_answers(ledger, n):
    """Return the first answers in the open logs, by request, once there are some."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        lines = [line for log in ledger.glob("*/open/*.log") for line in log.read_text().splitlines(keepends=True)]
        entries = [json.loads(line) for line in lines if line.endswith("\n")]
        answers = {e["request_id"]: e["started_at"] for e in entries if "request_id" in e}
        if len(answers) >= n:
            return answers
        time.sleep(0.2)
    pytest.fail(f"no {n} answers in {ledger} within two minutes")
