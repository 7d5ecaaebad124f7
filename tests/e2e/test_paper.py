"""The source system's experiment on two of its real data sets, with students small enough for a CPU."""

import pytest

from tests.jobs import read_entries, read_result, run_job
from tests.models import build_tiny

pytestmark = [pytest.mark.data, pytest.mark.ray]


def test_paper_experiment_runs_in_full_with_tiny_students(tmp_path, data_root):
    for kind in ("distilbert", "roberta"):
        build_tiny(kind, tmp_path / kind)
    left_out = [f"~arms.{arm}" for arm in ("gpt41_mini", "gpt41_nano", "llama33_70b", "gemma3_27b")]
    stdout = run_job(
        "experiment=ambiguity_paper",
        *left_out,
        *(f"students.{kind}.{change}" for kind in ("distilbert", "roberta") for change in (
            f"model={tmp_path}/{kind}", "epochs=1", "seeds=[42,43]",
        )),
        f"evaluation.prototype.encoder.model={tmp_path}/distilbert",
        f"evaluation.frozen.encoder.model={tmp_path}/distilbert",
        "evaluation.n_replicates=200",
        "task.settings=[standard,dev-selected]",
        f"data.root={data_root}",
        f"root={tmp_path}/runs",
        timeout_s=1200,
    )  # fmt: skip
    entries = read_entries(read_result(stdout))
    students = {(arm, student) for arm, student, *_ in entries if student}
    assert students == {(arm, student) for arm in ("gpt41", "llama31_8b") for student in ("distilbert", "roberta")}
    assert round(entries["majority", None, "ClariQ", "standard", "weighted-F1"][0], 4) == 0.8185
    assert round(entries["majority", None, "AmbigNQ", "standard", "weighted-F1"][0], 4) == 0.4323
    sizes = {(benchmark, setting): n for (_, _, benchmark, setting, _), (*_, n) in entries.items()}
    assert sizes == {("ClariQ", "standard"): 299, ("ClariQ", "dev-selected"): 62, ("AmbigNQ", "standard"): 2002}
    fits = sorted(path.name for path in next((tmp_path / "runs/steps/student").iterdir()).glob("fits/*.json"))
    assert fits == ["final-42.json", "final-43.json", *(f"fold-{fold}.json" for fold in range(5))]
