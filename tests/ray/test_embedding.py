"""Frozen students from rows to the comparison, and what shares the vectors that this takes."""

import json

import numpy as np
import pytest

from pipeline.config import validate
from pipeline.errors import ConfigError, StorageError
from pipeline.experiment import ExperimentConfig
from pipeline.flow import run
from pipeline.records import Prediction, from_table
from pipeline.stages.embed import read_vectors
from pipeline.storage import Folder
from pipeline.students.predictor import load_predictor
from tests.composing import compose_experiment
from tests.models import SENTENCES, build_tiny

pytestmark = pytest.mark.ray
EXTRA = "another row"


@pytest.fixture(scope="module")
def folder(tmp_path_factory, ray_cluster):
    """A tiny encoder, and two files with the same rows in another order."""
    folder = tmp_path_factory.mktemp("frozen")
    build_tiny("distilbert", folder / "model")
    rows = [
        {"text": f"{SENTENCES[i % 6]} number {i}", "label": int(i % 6 in (1, 3)), "topic": f"t{i % 12}"}
        for i in range(60)
    ]
    for name, content in {"one": rows, "two": rows[::-1]}.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))
    return folder


def compose(folder, *files, **changes) -> ExperimentConfig:
    """Return an experiment with an arm for each file."""
    experiment = compose_experiment(
        [
            *("data=labelled", f"data.path={folder}/{files[0]}.jsonl", "data.columns.text=text"),
            *("data.columns.label=label", "student=frozen_minilm", f"student.model={folder}/model", "student.folds=3"),
            *(f"evaluation.{baseline}.encoder.model={folder}/model" for baseline in ("prototype", "frozen")),
            *("task.optional_benchmarks=[]", "evaluation.n_replicates=100", "evaluation.cost.n_single=3"),
            *("tracking=none", f"root={folder}/root", *(f"{key}={value}" for key, value in changes.items())),
        ]
    ).model_dump()
    arm = experiment["arms"]["labelled"]
    experiment["arms"] = {name: arm | {"data": arm["data"] | {"path": f"{folder}/{name}.jsonl"}} for name in files}
    return validate(ExperimentConfig, experiment)


@pytest.fixture(scope="module")
def finished(folder):
    return run(compose(folder, "one", "two"))


def find(finished, name, arm):
    return next(step for step in finished.steps if (step.name, step.arm) == (name, arm))


def list_vectors(folder):
    return sorted((path.parent.name, path.stat().st_mtime_ns) for path in folder.glob("root/steps/embeddings/*/*"))


def test_arms_with_the_same_rows_students_and_baselines_share_their_vectors(folder, finished):
    """Two steps in all, one of the rows and one of the benchmark's items, with a manifest each."""
    assert len(list_vectors(folder)) == 2 * 2
    one, two = (find(finished, "student", f"{arm}/frozen_minilm") for arm in ("one", "two"))
    assert one.fingerprint != two.fingerprint, "the order of rows decides the folds"
    assert one.manifest["ingredients"]["inputs"]["vectors"] == two.manifest["ingredients"]["inputs"]["vectors"]


def test_another_regularisation_trains_anew_and_encodes_nothing(folder, finished):
    before = list_vectors(folder)
    other = run(compose(folder, "one", **{"student.inverse_regularisation": 9}), until="evaluate")
    assert not find(other, "student", "one/frozen_minilm").kept
    assert not find(other, "evaluation", "one/frozen_minilm").kept
    assert find(other, "evaluation", "frozen_one").kept
    assert list_vectors(folder) == before


def test_other_settings_of_the_encoder_do_encode_anew(folder, finished):
    before = list_vectors(folder)
    run(compose(folder, "one", **{"student.max_length": 8}), until="train")
    assert len(list_vectors(folder)) == len(before) + 2


def test_the_same_again_keeps_everything(folder, finished):
    assert all(step.kept for step in run(compose(folder, "one", "two")).steps)


def test_predictions_from_kept_vectors_are_the_students_own(finished):
    table = find(finished, "evaluation", "one/frozen_minilm").folder.read_table("predictions.parquet")
    predictions = list(from_table(Prediction, table))
    predict = load_predictor(find(finished, "student", "one/frozen_minilm").folder.path / "fits/final-42", False)
    probabilities = predict([prediction.text for prediction in predictions], 7)
    assert len(predictions) == 60
    assert [prediction.score for prediction in predictions] == pytest.approx(probabilities[:, 1], abs=1e-6)
    assert np.ptp(probabilities[:, 1]) > 0.01


def test_the_comparison_has_the_student_its_cost_and_the_baseline_of_each_arm(finished):
    result = finished.steps[-1].folder
    rows = {(entry["arm"], entry["student"]): entry["data"] for entry in result.read_json("comparison.json")}
    assert {("one", "frozen_minilm"), ("two", "frozen_minilm"), ("frozen_one", None), ("frozen_two", None)} <= set(rows)
    digest = find(finished, "dataset", "one").manifest["digests"]["rows"]
    assert rows["frozen_one", None] == rows["one", "frozen_minilm"] == digest
    cost = result.read_json("cost.json")[0]
    assert cost["latency_p50_ms"] > 0
    assert cost["n_parameters"] > 10_000
    assert find(finished, "student", "one/frozen_minilm").manifest["metrics"].keys() == {
        "final/duration_s",
        "folds/held_out_loss",
        "folds/held_out_macro-F1",
    }
    assert "frozen_…" in result.read_text("report.html")


def test_too_many_folds_are_refused_before_anything_is_encoded(folder, finished):
    before = list_vectors(folder)
    with pytest.raises(ConfigError, match="13 folds need at least 13 groups"):
        run(compose(folder, "one", **{"student.folds": 13, "student.max_length": 9}), until="train")
    assert list_vectors(folder) == before


def test_a_text_that_was_not_encoded_is_named(folder, finished):
    vectors = find(finished, "student", "one/frozen_minilm").manifest["ingredients"]["inputs"]["vectors"]
    with pytest.raises(StorageError, match=f"holds no vector of '{EXTRA}'"):
        read_vectors(Folder.at(folder / "root/steps/embeddings" / vectors), [EXTRA])
