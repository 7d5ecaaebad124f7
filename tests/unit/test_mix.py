"""Arms whose rows are drawn from other arms' kept rows: built by the flow, without Ray and without a token."""

import json
from collections import Counter

import pytest

from pipeline.cluster import Cluster
from pipeline.experiment import ExperimentConfig
from pipeline.records import Example, from_table
from pipeline.stages.dataset import Answers, run_dataset
from pipeline.stages.generate import build_datasets
from pipeline.stages.inputs import read_inputs
from pipeline.steps import Steps
from pipeline.storage import Folder
from tests.composing import compose_experiment
from tests.two_teachers import REPEATED, TOPICS, list_overrides, write_files


@pytest.fixture
def files(tmp_path):
    return write_files(tmp_path)


def compose(files, *overrides) -> ExperimentConfig:
    return compose_experiment(list_overrides(files, *overrides))


def build(experiment: ExperimentConfig):
    root, finished = Folder.at(experiment.root), []
    cluster = Cluster(experiment.scale, root, root_is_shared=False)
    datasets = build_datasets(experiment, read_inputs(experiment), Steps(root, finished.append), cluster)
    assert not cluster._is_joined
    return datasets, finished


def read(step) -> list[Example]:
    return list(from_table(Example, step.folder.read_table("examples.parquet")))


def test_a_mix_is_built_after_its_arms_from_what_they_keep_and_filtered_again(files):
    datasets, finished = build(compose(files))
    assert list(datasets) == ["mixed", "first", "second"]  # the order of the configuration, for tables
    assert [step.arm for step in finished] == ["first", "second", "mixed"]
    counts = datasets["mixed"].manifest["counts"]
    assert counts == {
        "drawn_first": 24, "drawn_second": 24, "rows_in": 48, "rows": 45, "rejected_exact_duplicate": REPEATED,
    }  # fmt: skip
    rows = read(datasets["mixed"])
    # Of two rows that repeat each other, that of the arm named first stays.
    assert Counter(row.extras["arm"] for row in rows) == {"first": 24, "second": 21}
    assert {row.row_id.partition(":")[2] for row in rows} <= {
        r.row_id for k in ("first", "second") for r in read(datasets[k])
    }
    assert rows[0].extras == {"topic": "topic 0", "information_need": "the cost", "arm": "first"}
    card = json.loads(datasets["mixed"].folder.read_text("card.json"))
    assert (card["groups"], card["rejects"]) == (TOPICS, {"filter": {"exact_duplicate": REPEATED}})
    assert not datasets["mixed"].folder.exists("efficiency.json")


def test_a_mix_is_kept_until_its_arms_rows_its_shares_or_their_order_change(files):
    first = build(compose(files))[0]["mixed"]
    again = build(compose(files))[0]
    assert all(step.kept for step in again.values())
    assert again["mixed"].fingerprint == first.fingerprint
    turned = build(compose(files, "arms.mixed.data.shares=null", "arms.mixed.data.shares={second: 0.5, first: 0.5}"))[0]
    assert Counter(row.extras["arm"] for row in read(turned["mixed"])) == {"second": 24, "first": 21}
    others = [
        turned,
        build(compose(files, "arms.mixed.data.shares={first: 0.75, second: 0.25}"))[0],
        build(compose(files, "arms.mixed.data.seed=7"))[0],
        build(compose(files, "arms.first.filters.max_rows=20"))[0],
    ]
    assert len({first.fingerprint, *(other["mixed"].fingerprint for other in others)}) == 5


def test_a_mix_of_as_many_rows_as_asked_for_is_whole_groups_of_both(files):
    rows = read(build(compose(files, "arms.mixed.filters.max_rows=9"))[0]["mixed"])
    assert len(rows) <= 8  # two topics of each, 4 rows by their shares of 9
    assert Counter(row.label for row in rows if row.extras["arm"] == "first") == {"clear": 2, "ambiguous": 2}


def test_a_limit_of_rows_makes_no_row_dearer(files):
    """Of 24 good rows that cost 12 USD, the 8 that a limit keeps cost 0.50 each as before."""
    experiment = compose(files, "arms.first.filters.max_rows=8")
    inputs = read_inputs(experiment)

    def describe(n_rows):
        names = ("tokens_per_s", "tokens_per_row", "device_s_per_row", "usd")
        return {**dict.fromkeys(names), "usd_per_row": 12 / n_rows, "time_shares": None}

    answers = Answers(inputs.examples["first"], describe_efficiency=describe)
    arm, steps = experiment.arms["first"], Steps(Folder.at(experiment.root))
    dataset = run_dataset("first", arm, experiment, inputs, steps, {}, lambda: answers)
    assert dataset.manifest["counts"]["rows"] == 8
    assert dataset.folder.read_json("efficiency.json")["usd_per_row"] == 0.5
