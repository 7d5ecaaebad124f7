"""`kill -9` of the driver at random moments, then the same command."""

import random
import time

import pytest

from tests.jobs import count_mlflow_runs, read_entries, read_result, read_row_ids, run_job, start_job
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
        f"evaluation.prototype.model={tmp_path}/model",
        "evaluation.n_replicates=100",
    ]


def test_a_killed_driver_goes_on_where_it_was(tmp_path, small_experiment):
    started = time.monotonic()
    undisturbed = read_result(run_job(*small_experiment, f"root={tmp_path}/a"))
    duration = time.monotonic() - started

    draw = random.Random(20)
    for killed in range(N_KILLS):
        job = start_job(*small_experiment, f"root={tmp_path}/b")
        # What is left to do shrinks with each run; the start-up doesn't.
        time.sleep(draw.uniform(0.15, 0.9) * duration / (killed + 1))
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
