"""The README's first command, twice."""

import json
import re

import pytest

from tests.jobs import read_entries, read_result, run_job

pytestmark = pytest.mark.ray


def list_files(root):
    return sorted((str(path), path.stat().st_mtime_ns) for path in (root / "steps").rglob("*"))


def test_quickstart_runs_and_the_second_time_does_nothing(tmp_path):
    command = ("experiment=quickstart", f"root={tmp_path}")
    first = run_job(*command)
    result = read_result(first)
    assert result.parent == tmp_path / "steps" / "comparison"
    entries = read_entries(result)
    assert {(arm, student) for arm, student, *_ in entries} == {
        ("offline", "minilm"), ("majority", None), ("prior", None), ("length", None), ("prototype", None),
        ("tfidf_offline", None), ("frozen_offline", None),
    }  # fmt: skip
    assert {(benchmark, setting) for _, _, benchmark, setting, _ in entries} == {("Handwritten-60", "standard")}
    assert {n for *_, n in entries.values()} == {60}
    assert entries["majority", None, "Handwritten-60", "standard", "accuracy"][0] == 0.5
    assert entries["offline", "minilm", "Handwritten-60", "standard", "AUROC"][0] > 0.5
    manifest = json.loads((result / "manifest.json").read_text())
    assert {"counts", "started_at", "duration_s", "versions", "fingerprint"} <= set(manifest)
    assert {cost["student"] for cost in json.loads((result / "cost.json").read_text())} == {"minilm"}
    assert "Handwritten-60" in (result / "report.html").read_text()

    before = list_files(tmp_path)
    second = run_job(*command)
    assert read_result(second) == result
    n_steps, n_kept = re.search(r"(\d+) steps, (\d+) kept", second).groups()
    assert n_steps == n_kept
    assert list_files(tmp_path) == before


def test_doors_share_their_steps(tmp_path):
    """`generate` builds the data set that `run` would; a second door finds it."""
    command = ("experiment=quickstart", "arms.offline.data.limit=20", f"root={tmp_path}")
    dataset = read_result(run_job(*command, script="generate"))
    assert dataset.parent == tmp_path / "steps" / "dataset"
    assert {"examples.parquet", "rejects.parquet", "dataset.tsv", "card.json", "manifest.json"} <= {
        path.name for path in dataset.iterdir()
    }
    again = run_job(*command, script="generate")
    assert read_result(again) == dataset
    assert "2 steps, 2 kept (1 requests, 1 dataset)" in again
