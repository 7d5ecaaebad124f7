"""Steps: named by what they are made of, run once, whole or absent."""

import pytest

from pipeline.config import Config
from pipeline.identity import digest
from pipeline.steps import MANIFEST, Outputs, Steps, versions
from pipeline.storage import Folder


class SizeConfig(Config):
    rows: int


BASE = {
    "arm": "offline",
    "config": {"size": SizeConfig(rows=3)},
    "inputs": {"seeds": "f00d"},
    "code": ["pipeline.config"],
}


class Sample:
    """Steps that count how often they ran."""

    def __init__(self, tmp_path):
        self.told, self.runs = [], 0
        self.steps = Steps(Folder.at(tmp_path), self.told.append)

    def produce(self, folder):
        self.runs += 1
        folder.write_text("rows.txt", "a\nb\nc\n")
        return Outputs(counts={"rows": 3}, metrics={"share": 0.5}, series=(("loss", 1, 0.7, 1.7e9),))

    def run(self, name="dataset", **changes):
        return self.steps.run(name, self.produce, **{**BASE, **changes})


@pytest.fixture
def sample(tmp_path):
    return Sample(tmp_path)


def test_a_step_runs_once_and_is_kept_after_that(sample):
    first, second = sample.run(), sample.run()
    assert sample.runs == 1
    assert (first.kept, second.kept) == (False, True)
    assert first.fingerprint == second.fingerprint
    assert second.folder.read_text("rows.txt") == "a\nb\nc\n"
    assert second.manifest == first.manifest


def test_the_listener_is_told_of_a_step_that_ran_and_of_one_that_was_kept(sample):
    steps = [sample.run(), sample.run()]
    assert sample.told == steps


def test_a_manifest_says_what_was_made_of_what(sample):
    step = sample.run()
    manifest = step.folder.read_json(MANIFEST)
    assert manifest["step"] == "dataset"
    assert manifest["counts"] == {"rows": 3}
    assert manifest["metrics"] == {"share": 0.5}
    assert manifest["series"] == [["loss", 1, 0.7, 1.7e9]]
    assert manifest["ingredients"]["config"] == {"size": {"rows": 3}}
    assert manifest["ingredients"]["inputs"] == {"seeds": "f00d"}
    assert manifest["versions"] == versions()
    assert {"raystill", "python", "pyarrow"} <= set(manifest["versions"])
    assert manifest["started_at"] > 1.7e9
    assert manifest["duration_s"] >= 0
    assert manifest["fingerprint"] == step.fingerprint == digest(manifest["ingredients"])
    assert step.folder.url.endswith(f"/steps/dataset/{step.fingerprint}")


@pytest.mark.parametrize(
    "change",
    [
        {"name": "requests"},
        {"config": {"size": SizeConfig(rows=4)}},
        {"inputs": {"seeds": "beef"}},
        {"inputs": {}},
        {"code": ["pipeline.config", "pipeline.errors"]},
        {"code": ["pipeline.errors"]},
    ],
    ids=str,
)
def test_another_name_config_input_or_code_is_another_step(sample, change):
    first, second = sample.run(), sample.run(**change)
    assert sample.runs == 2
    assert first.fingerprint != second.fingerprint
    assert sample.run().kept


def test_arms_that_ask_the_same_share_the_answer_under_their_own_names(sample):
    first, second = sample.run(), sample.run(arm="other", code=("pipeline.config",))
    assert second.kept
    assert (first.arm, second.arm) == ("offline", "other")
    assert first.folder == second.folder


def test_the_order_of_the_code_does_not_matter(sample):
    sample.run(code=["pipeline.config", "pipeline.errors"])
    assert sample.run(code=["pipeline.errors", "pipeline.config"]).kept


def test_a_step_that_died_leaves_no_manifest_and_is_run_again(sample):
    folders = []

    def die(folder):
        folders.append(folder)
        folder.write_text("fold-0.json", "{}")
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        sample.steps.run("dataset", die, **BASE)
    assert not folders[0].exists(MANIFEST)
    assert sample.told == []
    step = sample.run()
    assert (step.kept, sample.runs) == (False, 1)
    assert step.folder == folders[0], "long steps find their finished parts there"
    assert step.folder.names() == ["fold-0.json", MANIFEST, "rows.txt"]


def test_the_manifest_is_written_last(sample):
    def produce(folder):
        assert not folder.exists(MANIFEST)
        return Outputs()

    assert sample.steps.run("dataset", produce, **BASE).folder.exists(MANIFEST)


def test_a_config_without_a_canonical_form_is_refused_before_any_work(sample):
    with pytest.raises(TypeError, match="canonical form"):
        sample.run(config={"size": {3}})
    assert sample.runs == 0


def test_a_metric_that_is_no_number_is_not_recorded_as_a_finished_step(sample):
    with pytest.raises(ValueError, match="JSON"):
        sample.steps.run("dataset", lambda folder: Outputs(metrics={"f1": float("nan")}), **BASE)
    assert not sample.run().kept
