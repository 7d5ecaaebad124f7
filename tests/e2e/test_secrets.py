"""A planted key, and an endpoint that repeats it wherever it can: the key is in nothing that a run leaves behind."""

import re
import sqlite3
import subprocess
import tempfile
from contextlib import closing
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.conftest import KEY, KEY_NAME
from tests.endpoint import serve
from tests.jobs import RAY, read_result, read_submitted, start_job, submit
from tests.models import build_tiny

pytestmark = pytest.mark.crash

HIDDEN = "[api key]"


def find_files_with(text: str, folder: Path) -> set[str]:
    """Return the files under a folder that hold a text, in their bytes, their names, or the values they stand for."""
    return {
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file() and (text in path.name or text.encode() in path.read_bytes() or text in read_values(path))
    }


def read_values(path: Path) -> str:
    """Return the values in a file whose bytes don't show them as they are; else nothing."""
    match path.suffix:
        case ".parquet":
            return str(pq.read_table(path).to_pylist())
        case ".db":
            with closing(sqlite3.connect(path)) as database:
                return "\n".join(database.iterdump())
    return ""


@pytest.fixture
def ray_folder():
    """Where Ray keeps what it logs; short, because a socket's path has to fit into 107 characters."""
    with tempfile.TemporaryDirectory(prefix="ray-") as folder:
        yield Path(folder)


@pytest.fixture
def command(tmp_path):
    topics = tmp_path / "topics.txt"
    topics.write_text("".join(f"Topic number {i}\n" for i in range(40)))
    model = build_tiny("distilbert", tmp_path / "model")
    return [
        "data=topics", f"data.path={topics}", "teacher=openai", "teacher.model=sample",
        f"teacher.api_key_env={KEY_NAME}", "teacher.max_retries=0", "teacher.max_tries=1", "student=classifier",
        f"student.model={model}", "student.folds=0", "student.seeds=[1]", "student.epochs=1",
        f"evaluation.prototype.encoder.model={model}", f"evaluation.frozen.encoder.model={model}",
        "evaluation.n_replicates=100", f"root={tmp_path}/runs",
    ]  # fmt: skip


def run(command, ray_folder, served):
    """Return a run's exit status and all that it printed."""
    job = start_job(*command, f"teacher.base_url={served.base_url}", RAY_TMPDIR=str(ray_folder), **{KEY_NAME: KEY})
    stdout, stderr = job.communicate(timeout=300)
    return job.returncode, stdout, stderr


def test_a_key_is_in_nothing_that_a_run_leaves(tmp_path, command, ray_folder):
    with serve(broken=0.2, malformed=0.1, echo_key=2) as served:
        status, stdout, stderr = run(command, ray_folder, served)
    assert status == 0, stderr[-4000:]
    assert read_result(stdout).is_relative_to(tmp_path / "runs")
    runs = tmp_path / "runs"
    # What stands in the key's place shows that it was there to be told, and that this test would have seen it.
    told = find_files_with(HIDDEN, runs)
    assert {Path(name).name for name in told} >= {"examples.parquet", "rejects.parquet"}
    assert any(name.startswith("ledger/") for name in told)
    assert find_files_with("comparison", runs) >= {"mlflow.db"}
    assert find_files_with(KEY, runs) == set()
    assert KEY not in stdout + stderr
    assert find_files_with("TeacherActor", ray_folder), "Ray logged elsewhere"
    assert find_files_with(KEY, ray_folder) == set()


def test_a_key_is_in_nothing_that_a_failed_run_leaves(tmp_path, command, ray_folder):
    with serve(quota=1.0, echo_key=1) as served:
        status, stdout, stderr = run(command, ray_folder, served)
    assert status != 0
    assert f"no credit left Bearer {HIDDEN}" in stderr
    assert KEY not in stdout + stderr
    assert find_files_with(KEY, tmp_path / "runs") == set()
    assert find_files_with("TeacherActor", ray_folder), "Ray logged elsewhere"
    assert find_files_with(KEY, ray_folder) == set()


def test_a_key_of_the_nodes_is_in_nothing_that_ray_tells_of_a_job(job_cluster, tmp_path, command):
    with serve(broken=0.2, echo_key=2, wanted_key=KEY) as served:
        done = submit(job_cluster, *command, f"teacher.base_url={served.base_url}", script="generate")
    assert read_submitted(done).is_relative_to(tmp_path / "runs")
    (job,) = set(re.findall(r"raysubmit_\w+", done.stdout))
    told = {what: tell(job_cluster, "job", *what.split()) for what in ("list", f"status {job}", f"logs {job}")}
    assert "teach openai" in told[f"logs {job}"], "another job's logs"
    assert KEY not in done.stdout + done.stderr + "".join(told.values())


def tell(job_cluster, *arguments):
    """Return what a command of Ray prints."""
    done = subprocess.run([RAY, *arguments], env=job_cluster, capture_output=True, text=True, check=True)
    return done.stdout + done.stderr
