"""Curves by the command that traces them, twice: every fit is a run of Ray Train, so this takes minutes."""

import json
import re

import pytest

from tests.jobs import count_mlflow_runs, read_result, run_job
from tests.models import build_tiny

pytestmark = [pytest.mark.ray, pytest.mark.crash]


def test_curves_are_traced_once(tmp_path):
    build_tiny("distilbert", tmp_path / "tiny")
    command = (
        "experiment=quickstart",
        "arms.offline.data.limit=12",
        "arms.offline.teacher.price.per_million_prompt_tokens=1",
        "arms.offline.teacher.price.per_million_completion_tokens=2",
        f"students.minilm.model={tmp_path}/tiny",
        "students.minilm.epochs=1",
        f"evaluation.prototype.encoder.model={tmp_path}/tiny",
        f"evaluation.frozen.encoder.model={tmp_path}/tiny",
        "evaluation.n_replicates=100",
        "curves.sizes=[40]",
        "curves.draws=2",
        f"root={tmp_path}/runs",
    )
    first = run_job(*command, script="curves", timeout_s=900)
    result = read_result(first)
    assert result.parent == tmp_path / "runs/steps/curves"
    points = json.loads((result / "curves.json").read_text())
    curve = [p for p in points if (p["student"], p["measure"]) == ("minilm", "macro-F1")]
    assert [p["fits"] for p in curve] == [2, 1]
    assert 0 < curve[0]["rows"] <= 40 < curve[1]["rows"]
    # The rules have a price here, and no device.
    (efficiency,) = (tmp_path / "runs/steps/dataset").glob("*/efficiency.json")
    usd_per_row = json.loads(efficiency.read_text())["usd_per_row"]
    assert usd_per_row > 0
    assert [p["usd"] for p in curve] == pytest.approx([p["rows"] * usd_per_row for p in curve], rel=0.02)
    assert {p["device_s"] for p in points} == {None}
    assert {p["arm"] for p in points if p["student"] is None} >= {"majority", "tfidf_offline"}
    assert {path.name for path in result.glob("*.png")} == {
        f"minilm_handwritten-60_standard_{along}.png" for along in ("rows", "usd")
    }
    runs = count_mlflow_runs(tmp_path / "runs")
    assert runs["student", "offline_rows40_draw2", "minilm"] == 1
    assert runs["curves", "", ""] == 1

    second = run_job(*command, script="curves")
    assert read_result(second) == result
    n_steps, n_kept = re.search(r"(\d+) steps, (\d+) kept", second).groups()
    assert n_steps == n_kept
