"""The whole path with the real engine, by `ray job submit`: rows, a student, a judge. The text is noise."""

import pytest

from pipeline.evaluation.comparison import COMPARISON
from pipeline.records import Completion, Example, Outcome, Request, from_table
from pipeline.stages.generate import judge_completion
from pipeline.storage import Folder
from pipeline.teachers.ledger import Ledger
from tests.composing import compose_method, compose_task
from tests.jobs import read_submitted, submit
from tests.models import build_tiny

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]


def test_the_engine_writes_rows_that_train_a_student_and_judges_beside_it(job_cluster, tiny_teacher, tmp_path):
    everyday = ["task=ambiguity", "teacher=vllm_tiny", "judge=zero_shot", f"root={tmp_path}/root"]
    dataset = Folder.at(read_submitted(submit(job_cluster, *everyday, script="generate")))

    counts = dataset.read_json("manifest.json")["counts"]
    outcomes = {name: n for name, n in counts.items() if name.startswith("completions_")}
    completions, _ = Ledger.of(Folder.at(tmp_path / "root"), "vllm_tiny").read()
    assert sum(outcomes.values()) == counts["completions"] == len(completions)
    rejected = sum(n for name, n in counts.items() if name.startswith("rejected_"))
    assert counts["rows"] + rejected == counts["rows_in"] == 10 * outcomes["completions_ok"]
    assert counts["rows"] >= 100
    rows = list(from_table(Example, dataset.read_table("examples.parquet")))
    assert {row.label for row in rows} == {"clear", "ambiguous"}
    stopped = [c for c in completions if c.finish_reason == "stop"]
    assert len(stopped) >= 0.9 * len(completions)
    requests = read_requests(tmp_path / "root")
    task, method = compose_task("ambiguity"), compose_method("paired")
    assert {judge_completion(task, method, requests[c.request_id], c) for c in stopped} == {Outcome.OK}
    efficiency = dataset.read_json("efficiency.json")
    assert sum(efficiency["time_shares"].values()) == pytest.approx(1)
    assert efficiency["tokens_per_s"] > 0
    assert efficiency["device_s_per_row"] > 0

    build_tiny("distilbert", tmp_path / "model")
    student = [f"student.model={tmp_path}/model", "student.folds=0", "student.seeds=[1]", "evaluation.n_replicates=100"]
    student += [f"evaluation.{baseline}.encoder.model={tmp_path}/model" for baseline in ("prototype", "frozen")]
    folder = Folder.at(read_submitted(submit(job_cluster, *everyday, *student)))
    judged = {(entry["arm"], entry["student"]) for entry in folder.read_json(COMPARISON)}
    assert {("vllm_tiny", "minilm"), ("vllm_tiny_zero_shot", "zero-shot")} <= judged
    assert len(read_completions(tmp_path / "root")) == len(completions) + 60, "60 items judged, no topic asked again"


def read_completions(root) -> list[Completion]:
    return Ledger.of(Folder.at(root), "vllm_tiny").read()[0]


def read_requests(root):
    steps = Folder.at(root) / "steps" / "requests"
    tables = [(steps / name).read_table("requests.parquet") for name in steps.names()]
    return {request.request_id: request for table in tables for request in from_table(Request, table)}
