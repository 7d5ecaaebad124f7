"""Running `ray_jobs/` as a user does, and reading what is left."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

from pipeline.storage import Folder
from tests.conftest import PROJECT


def start_job(*arguments: str, script: str = "run", **environment: str) -> subprocess.Popen:
    command = [sys.executable, f"ray_jobs/{script}.py", *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=PROJECT, env={**os.environ, **environment}, **pipes)


def run_job(*arguments: str, script: str = "run", timeout_s: float = 400, **environment: str) -> str:
    """Return what a job printed; its last line names the result's folder."""
    job = start_job(*arguments, script=script, **environment)
    stdout, stderr = job.communicate(timeout=timeout_s)
    assert job.returncode == 0, stderr[-4000:]
    return stdout


def read_result(stdout: str) -> Path:
    last = stdout.rstrip("\n").splitlines()[-1]
    assert last.startswith("done: /"), last
    return Path(last.removeprefix("done: "))


def read_entries(folder: Path) -> dict[tuple, tuple[float, float, float, int]]:
    """Return a comparison's numbers by what they are of."""
    keys = ("arm", "student", "benchmark", "setting", "measure")
    entries = json.loads((folder / "comparison.json").read_text())
    found = {tuple(e[key] for key in keys): (e["value"], e["low"], e["high"], e["n"]) for e in entries}
    assert len(found) == len(entries)
    return found


def read_row_ids(root: Path) -> dict[str, list[str]]:
    """Return the row ids of every data set under a root, by fingerprint."""
    datasets = Folder.at(root) / "steps" / "dataset"
    return {
        name: (datasets / name).read_table("examples.parquet").column("row_id").to_pylist() for name in datasets.names()
    }


def count_mlflow_runs(root: Path) -> Counter[tuple[str, ...]]:
    """Return how many MLflow runs there are of each step, arm and student; the parent's are empty."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{root}/mlflow.db")
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    tags = ("raystill.step", "raystill.arm", "raystill.student")
    return Counter(tuple(run.data.tags.get(tag, "") for tag in tags) for run in client.search_runs(experiments))
