"""Rows of one's own, by the README's command: no teacher, and no cluster until a student is trained."""

import json
import os
import subprocess
import sys

from tests.conftest import PROJECT
from tests.jobs import read_result


def test_own_rows_become_a_data_set(tmp_path):
    rows = [{"query": f"what is topic {i}", "y": i % 2} for i in range(20)] + [{"query": "What is topic 3?", "y": 1}]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = [
        sys.executable, PROJECT / "ray_jobs/generate.py", "data=labelled", "data.path=mine.jsonl",
        "data.columns.text=query", "data.columns.label=y", "data.columns.group=null", "root=kept",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, env=dict(os.environ))
    assert done.returncode == 0, done.stderr
    assert "Ray" not in done.stderr
    dataset = read_result(done.stdout)
    assert dataset.is_relative_to(tmp_path / "kept")
    lines = (dataset / "dataset.tsv").read_text().splitlines()
    assert lines[0].split("\t") == ["topic", "initial_request", "binary_label", "user_information_need"]
    assert len(lines) == 21
    card = json.loads((dataset / "card.json").read_text())
    assert (card["rows_in"], card["rows"], card["rejects"]) == (21, 20, {"filter": {"exact_duplicate": 1}})
