"""`kill -9` of the driver at random moments, then the same command."""

import json
import random
import signal
import time
from itertools import pairwise
from pathlib import Path

import pytest

from pipeline.launch import INTERRUPTED
from tests.jobs import count_mlflow_runs, read_entries, read_result, read_row_ids, run_job, start_job, wait_until
from tests.models import build_tiny

pytestmark = pytest.mark.crash
N_KILLS = 3


@pytest.fixture
def small_experiment(tmp_path):
    """The quickstart with a slow teacher, folds and a tiny student: something to kill at every stage."""
    build_tiny("distilbert", tmp_path / "model")
    return [
        "experiment=quickstart",
        "arms.offline.data.limit=40",
        "arms.offline.teacher.latency_s=0.4",
        "arms.offline.teacher.max_in_flight=2",
        "arms.offline.teacher.faults.invalid_json=0.2",
        "arms.offline.teacher.faults.error=0.1",
        f"students.minilm.model={tmp_path}/model",
        "students.minilm.folds=2",
        "students.minilm.seeds=[1,2]",
        f"evaluation.prototype.encoder.model={tmp_path}/model",
        f"evaluation.frozen.encoder.model={tmp_path}/model",
        "evaluation.n_replicates=100",
    ]


def find_manifests(root: Path) -> list[Path]:
    return list(root.glob("steps/*/*/manifest.json"))


def read_pauses(root: Path) -> list[float]:
    """Return the seconds between the ends of steps, in the order in which they ended."""
    manifests = [json.loads(path.read_text()) for path in find_manifests(root)]
    return [
        later - earlier for earlier, later in pairwise(sorted(m["started_at"] + m["duration_s"] for m in manifests))
    ]


def test_an_interrupt_is_told_in_a_line_and_loses_nothing(tmp_path, small_experiment):
    root = tmp_path / "runs"
    job = start_job(*small_experiment, f"root={root}", "arms.offline.teacher.latency_s=2")
    wait_until(lambda: any(root.glob("ledger/*/open/*")) or job.poll() is not None, "the teacher is at work")
    job.send_signal(signal.SIGINT)
    _, stderr = job.communicate(timeout=60)
    assert job.returncode == INTERRUPTED
    assert "stopped; what is done is kept" in stderr
    assert "Traceback" not in stderr
    run_job(*small_experiment, f"root={root}", script="generate")


def test_a_killed_driver_goes_on_where_it_was(tmp_path, small_experiment):
    undisturbed = read_result(run_job(*small_experiment, f"root={tmp_path}/a"))
    pauses = read_pauses(tmp_path / "a")

    draw = random.Random(20)
    # Never during the last step: on a machine that has become faster it might be over.
    for n_steps in sorted(draw.sample(range(1, len(pauses)), N_KILLS)):
        job = start_job(*small_experiment, f"root={tmp_path}/b")
        wait_until(
            lambda n=n_steps, job=job: len(find_manifests(tmp_path / "b")) >= n or job.poll() is not None,
            f"{n_steps} steps are finished",
        )
        time.sleep(draw.uniform(0, 1) * pauses[n_steps - 1])
        assert job.poll() is None, "the job was over before it could be killed"
        job.kill()
        job.communicate()
    stdout = run_job(*small_experiment, f"root={tmp_path}/b")

    assert read_row_ids(tmp_path / "b") == read_row_ids(tmp_path / "a")
    expected, found = read_entries(undisturbed), read_entries(read_result(stdout))
    assert found.keys() == expected.keys()
    for key, numbers in expected.items():
        assert found[key] == pytest.approx(numbers, abs=1e-6), key
    assert " 0 kept" not in stdout, "three runs finished nothing that a fourth could keep"
    runs = count_mlflow_runs(tmp_path / "b")
    assert runs == count_mlflow_runs(tmp_path / "a")
    assert set(runs.values()) == {1}
