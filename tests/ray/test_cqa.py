"""Community question answering end to end: two communities, answers that people accepted and extracted ones."""

import pytest

from pipeline.flow import run
from pipeline.records import Example, from_table
from pipeline.stages.dataset import EXAMPLES
from pipeline.stages.rank import RANKED
from tests.communities import write_communities
from tests.composing import compose_experiment
from tests.models import build_tiny

pytestmark = pytest.mark.ray
# Each asker has two questions every fifth day, one on each site: from day 15 on, six are earlier. Of those 65 days the
# later half is for tests, and of the 32 others the last fifth validates.
FIRST_VALIDATION, N_TEST = 15 + 32 - 6, 33
RANKERS = ("bm25", "released", "real", "offline")


@pytest.fixture(scope="module")
def folder(tmp_path_factory, ray_cluster):
    folder = tmp_path_factory.mktemp("cqa")
    write_communities(folder / "data/stackexchange")
    build_tiny("distilbert", folder / "model")
    return folder


def compose(folder, *overrides):
    return compose_experiment(
        [
            "experiment=stackexchange_cqa",
            f"data.root={folder}/data",
            "task.communities.posts.paths=[stackexchange/*.posts.jsonl]",
            "~task.communities.sites.onstartups",
            f"root={folder}/runs",
            f"students.minilm.model={folder}/model",
            "students.minilm.batch_size=8",
            f"evaluation.prototype.encoder.model={folder}/model",
            "evaluation.frozen=null",
            "evaluation.n_replicates=100",
            "tracking=none",
            *overrides,
        ]
    )


@pytest.fixture(scope="module")
def finished(folder):
    return run(compose(folder))


@pytest.fixture(scope="module")
def entries(finished):
    return finished.steps[-1].folder.read_json("comparison.json")


def test_every_ranker_stands_in_the_comparison_with_and_without_tag(entries):
    assert {entry["arm"] for entry in entries} == {name + tag for name in RANKERS for tag in ("", "_tag")}
    assert {entry["benchmark"] for entry in entries} == {"bikes", "gardens"}
    measures = {"P@1", "nDCG@3", "nDCG@10", "R@100", "MAP@100", "MRR"}
    assert {entry["measure"] for entry in entries} == measures
    assert len(entries) == 2 * 2 * len(RANKERS) * len(measures)
    assert all(0 <= entry["low"] <= entry["high"] <= 1 for entry in entries)


def test_putting_candidates_in_order_neither_finds_nor_loses_any(entries):
    for benchmark in ("bikes", "gardens"):
        found = {e["value"] for e in entries if e["measure"] == "R@100" and e["benchmark"] == benchmark}
        assert len(found) == 1


def test_arms_learn_from_the_same_questions_all_asked_before_those_that_select(finished):
    rows = {
        step.arm: list(from_table(Example, step.folder.read_table(EXAMPLES)))
        for step in finished.steps
        if step.name == "dataset"
    }
    asked = {arm: {row.extras["question_id"] for row in examples} for arm, examples in rows.items()}
    assert asked["real"] == asked["offline"]
    assert max(int(one.rpartition("_")[2]) // 10 for one in asked["real"]) < FIRST_VALIDATION
    texts = {row.extras["question_id"]: row.text for row in rows["real"]}
    assert all(row.text != texts[row.extras["question_id"]] for row in rows["offline"])


def test_what_the_answers_look_like_is_measured_on_the_questions_of_all_arms(finished):
    (step,) = [step for step in finished.steps if step.name == "answers"]
    found = step.folder.read_json("answers.json")
    assert {*found["texts"]["arms"]} == {"real", "offline"}
    assert found["texts"]["n"] > 0
    assert found["support"]["offline"]["recall"] == 1.0  # it writes nothing of its own
    assert found["support"]["real"]["passages_of"] == "offline"
    assert "Claims that a retrieved passage supports" in finished.steps[-1].folder.read_text("report.html")


def test_the_measures_of_each_query_and_the_weights_are_kept(finished):
    (step,) = [step for step in finished.steps if step.name == "evaluation" and step.arm == "real/minilm"]
    ranked = step.folder.read_json(RANKED)
    assert [(one["arm"], one["benchmark"]) for one in ranked] == [
        (arm, site) for site in ("bikes", "gardens") for arm in ("real", "real_tag")
    ]
    for one in ranked:
        for weights in one["weights"]:
            assert sum(weights.values()) == pytest.approx(1)
            assert ("tag" in weights) == one["arm"].endswith("_tag")
        assert {len(values) for values in one["values"].values()} == {N_TEST}


def test_a_second_run_keeps_everything(folder, finished):
    again = run(compose(folder))
    assert [step.fingerprint for step in again.steps] == [step.fingerprint for step in finished.steps]
    assert all(step.kept for step in again.steps)
