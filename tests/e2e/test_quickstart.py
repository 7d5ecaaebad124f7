"""The README's first command, twice."""

import json
import os
import subprocess
import sys

import pytest

from tests.conftest import PROJECT

pytestmark = pytest.mark.ray


def run_quickstart(root):
    command = [sys.executable, "ray_jobs/run.py", "experiment=quickstart", f"root={root}"]
    return subprocess.run(
        command, cwd=PROJECT, capture_output=True, text=True, timeout=400, env={**os.environ, "COLUMNS": "160"}
    )


def test_quickstart_runs_and_the_second_time_does_nothing(tmp_path):
    first = run_quickstart(tmp_path)
    assert first.returncode == 0, first.stderr[-3000:]
    last = first.stdout.splitlines()[-1]
    assert last.startswith(f"done: {tmp_path}/steps/comparison/")
    result = last.removeprefix("done: ")
    entries = json.loads(open(f"{result}/comparison.json").read())
    assert {(e["arm"], e["student"]) for e in entries} == {
        ("offline", "minilm"), ("majority", None), ("prior", None), ("length", None), ("prototype", None),
        ("tfidf_offline", None),
    }  # fmt: skip
    assert {(e["benchmark"], e["setting"], e["n"]) for e in entries} == {("Handwritten-60", "standard", 60)}
    value = {(e["arm"], e["measure"]): e["value"] for e in entries}
    assert value["majority", "accuracy"] == 0.5
    assert value["offline", "AUROC"] > 0.5
    assert set(json.loads(open(f"{result}/manifest.json").read())) >= {
        "counts",
        "duration_s",
        "versions",
        "fingerprint",
    }
    assert "<html" in open(f"{result}/report.html").read()

    before = sorted((str(p), p.stat().st_mtime_ns) for p in (tmp_path / "steps").rglob("*"))
    second = run_quickstart(tmp_path)
    assert second.returncode == 0, second.stderr[-3000:]
    assert second.stdout.splitlines()[-1] == last
    assert "10 steps, 10 kept" in second.stdout
    assert sorted((str(p), p.stat().st_mtime_ns) for p in (tmp_path / "steps").rglob("*")) == before
