"""Running `ray_jobs/` as a user does, and reading what is left."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

import psutil
import pytest

from pipeline.records import Request, from_table
from pipeline.storage import Folder
from tests.conftest import PROJECT, RAY
from tests.endpoint import key_prompt


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


def wait_until(is_so: Callable[[], bool], what: str, timeout_s: float = 300) -> None:
    deadline = time.monotonic() + timeout_s
    while not is_so():
        if time.monotonic() > deadline:
            pytest.fail(f"{what}: not within {timeout_s:g} s")
        time.sleep(0.05)


def choose(processes: Iterable[psutil.Process], word: str) -> list[psutil.Process]:
    """Return those whose name or command line has a word in it."""
    chosen = []
    for process in processes:
        try:
            if word in " ".join([process.name(), *process.cmdline()]):
                chosen.append(process)
        except psutil.NoSuchProcess:  # ended meanwhile
            continue
    return chosen


def kill(processes: Iterable[psutil.Process]) -> None:
    """`kill -9`."""
    for process in processes:
        try:
            process.send_signal(signal.SIGKILL)
        except psutil.NoSuchProcess:  # went with its parent
            continue


def is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_until_gone(processes: Iterable[psutil.Process], timeout_s: float = 60) -> None:
    wait_until(lambda: not any(map(is_alive, processes)), "killed processes and those that follow them end", timeout_s)


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


def read_prompts(root: Path) -> dict[str, str]:
    """Return the ids of the one arm's requests under a root, by what names their prompts in an endpoint's log."""
    (step,) = (root / "steps" / "requests").iterdir()
    requests = from_table(Request, Folder.at(step).read_table("requests.parquet"))
    return {key_prompt([{"role": m.role, "content": m.content} for m in r.messages]): r.request_id for r in requests}


def count_mlflow_runs(root: Path) -> Counter[tuple[str, ...]]:
    """Return how many MLflow runs there are of each step, arm and student; the parent's are empty."""
    tags = ("raystill.step", "raystill.arm", "raystill.student")
    _, runs = read_mlflow_runs(root)
    return Counter(tuple(run.data.tags.get(tag, "") for tag in tags) for run in runs)


def forget_mlflow_run(root: Path, student: str) -> None:
    """Delete a student's run, if it is there."""
    client, runs = read_mlflow_runs(root)
    for run in runs:
        if run.data.tags.get("raystill.student") == student:
            client.delete_run(run.info.run_id)


def read_mlflow_runs(root: Path):
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{root}/mlflow.db")
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    return client, client.search_runs(experiments)


def submit(cluster: dict[str, str], *arguments: str, script: str = "run", wait: bool = True):
    """Submit a job as a user does, in the environment that `job_cluster` gives."""
    command = [RAY, "job", "submit", "--working-dir", ".", *([] if wait else ["--no-wait"])]
    entrypoint = ["--", "python", f"ray_jobs/{script}.py", *arguments]
    return subprocess.run(
        [*command, *entrypoint], cwd=PROJECT, env=cluster, capture_output=True, text=True, timeout=900, check=False
    )


def read_submitted(done) -> Path:
    """Return the folder of what a submitted job came to."""
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    lines = [line for line in done.stdout.splitlines() if line.startswith("done: ")]
    return read_result(lines[-1])
