"""`ray job submit` on a cluster started by `ray start --head`, token authentication on, as in production."""

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import PROJECT
from tests.jobs import read_entries, read_result, read_row_ids, run_job
from tests.models import build_tiny

pytestmark = pytest.mark.crash
RAY = str(Path(sys.executable).parent / "ray")


def find_free_ports(n):
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(n)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """The address of a head node's job server; the node's processes end with the test."""
    folder = tmp_path_factory.mktemp("cluster")
    (folder / "token").write_text(secrets.token_hex(32))
    gcs, dashboard, agent = find_free_ports(3)
    environment = {
        **os.environ,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(folder / "token"),
        # As on a cluster: workers find the packages, and nothing of this checkout, in their environment.
        "PATH": f"{Path(RAY).parent}:{os.environ['PATH']}",
    }
    command = [
        RAY, "start", "--head", "--block", f"--port={gcs}", f"--dashboard-port={dashboard}", "--num-cpus=4",
        f"--dashboard-agent-listen-port={agent}", "--object-store-memory=500000000",
        "--node-ip-address=127.0.0.1", "--disable-usage-stats",
    ]  # fmt: skip
    with (folder / "ray.log").open("w") as log:
        head = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True)
    address = f"http://127.0.0.1:{dashboard}"
    environment["RAY_API_SERVER_ADDRESS"] = address
    deadline = time.monotonic() + 90
    while subprocess.run([RAY, "job", "list"], env=environment, capture_output=True, check=False).returncode:
        assert time.monotonic() < deadline, (folder / "ray.log").read_text()
        time.sleep(1)
    yield environment
    head.send_signal(signal.SIGTERM)
    head.wait(60)


@pytest.fixture
def experiment(tmp_path):
    build_tiny("distilbert", tmp_path / "model")
    return [
        "experiment=quickstart",
        "arms.offline.data.limit=20",
        f"students.minilm.model={tmp_path}/model",
        "students.minilm.folds=2",
        f"evaluation.prototype.model={tmp_path}/model",
        "evaluation.n_replicates=100",
    ]


def submit(cluster, *arguments, wait=True):
    command = [RAY, "job", "submit", "--working-dir", ".", *([] if wait else ["--no-wait"])]
    entrypoint = ["--", "python", "ray_jobs/run.py", *arguments]
    return subprocess.run(
        [*command, *entrypoint], cwd=PROJECT, env=cluster, capture_output=True, text=True, timeout=400, check=False
    )


def read_submitted(done):
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    lines = [line for line in done.stdout.splitlines() if line.startswith("done: ")]
    return read_result(lines[-1])


def test_a_submitted_job_gives_what_a_plain_run_gives(cluster, experiment, tmp_path):
    plain = read_entries(read_result(run_job(*experiment, f"root={tmp_path}/plain")))
    submitted = read_entries(read_submitted(submit(cluster, *experiment, f"root={tmp_path}/submitted")))
    assert submitted.keys() == plain.keys()
    for key, numbers in plain.items():
        assert submitted[key] == pytest.approx(numbers, abs=1e-6), key
    assert read_row_ids(tmp_path / "submitted") == read_row_ids(tmp_path / "plain")


def test_a_relative_root_is_refused(cluster, experiment):
    done = submit(cluster, *experiment, "root=runs")
    assert done.returncode != 0
    assert "root=runs is a relative path" in done.stdout + done.stderr


def test_a_stopped_job_goes_on_when_submitted_again(cluster, experiment, tmp_path):
    slow = [*experiment, "arms.offline.teacher.latency_s=1.0", "arms.offline.teacher.max_in_flight=2"]
    slow += [f"root={tmp_path}/stopped", "arms.offline.data.limit=30"]
    started = submit(cluster, *slow, wait=False)
    assert started.returncode == 0, started.stderr
    job = next(line.split("'")[1] for line in started.stdout.splitlines() if "raysubmit_" in line and "'" in line)
    ledger = tmp_path / "stopped" / "ledger"
    answered = wait_for_answers(ledger, 5)
    subprocess.run([RAY, "job", "stop", job], cwd=PROJECT, env=cluster, check=True, capture_output=True)
    read_submitted(submit(cluster, *slow))
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
