from collections import Counter

import pytest
from sklearn.metrics import roc_auc_score

from pipeline.sources.ambignq import read_ambignq_train
from pipeline.sources.benchmarks import find_benchmark
from pipeline.sources.labelled import RowsConfig, read_labelled
from pipeline.sources.tables import read_rows
from tests.rows import make_rows

pytestmark = pytest.mark.data
LABEL_NAMES = {"1": "ambiguous", "0": "clear"}


@pytest.fixture
def root(data_root):
    return data_root


def test_clariq_has_the_published_counts_and_labels(root):
    items = find_benchmark("ClariQ").load(root)
    assert Counter(item.split for item in items) == {"train": 187, "dev": 50, "test": 62}
    assert Counter(item.label for item in items) == {"ambiguous": 262, "clear": 37}
    assert len({item.item_id for item in items}) == 299
    assert (items[0].item_id, items[0].text, items[0].label) == ("1-1", "Tell me about Obama family tree.", "ambiguous")
    assert [item.item_id for item in items if item.item_id.startswith("260-")] == ["260-1", "260-2"]
    assert roc_auc_score(
        [item.label == "ambiguous" for item in items], [-len(item.text.split()) for item in items]
    ) == pytest.approx(0.677, abs=0.001)


def test_clariq_agrees_with_a_derivation_made_elsewhere(root):
    columns = {name: name for name in ("split", "initial_request", "label")}
    derived = [row.values for row in read_rows(f"{root}/clariq/clariq_requests.tsv", columns)]
    expected = {(row["initial_request"], LABEL_NAMES[row["label"]], row["split"]) for row in derived}
    assert {(item.text, item.label, item.split) for item in find_benchmark("ClariQ").load(root)} == expected


@pytest.mark.parametrize(
    ("name", "column", "n_ambiguous"),
    [
        ("AmbigNQ", "label_any", 1172),
        ("AmbigNQ-majority", "label_majority", 1002),
        ("AmbigNQ-all", "label_all", 1002),
    ],
)
def test_ambignq_dev_has_the_published_counts_and_labels(root, name, column, n_ambiguous):
    items = find_benchmark(name).load(root)
    assert Counter(item.label for item in items) == {"ambiguous": n_ambiguous, "clear": 2002 - n_ambiguous}
    assert items[0].item_id == "-807825952267713091"
    assert items[0].text == "Who plays the doctor in dexter season 1?"
    derived = read_rows(f"{root}/ambignq/ambignq_dev.tsv", {"id": "id", "label": column})
    expected = {row.values["id"]: LABEL_NAMES[row.values["label"]] for row in derived}
    assert {item.item_id: item.label for item in items} == expected


def test_ambignq_train_has_the_published_counts(root):
    rows = read_ambignq_train(root, "any")
    assert Counter(row.label for row in rows) == {"ambiguous": 4749, "clear": 5287}
    assert len({row.row_id for row in rows}) == len(rows) == 10036
    assert rows[0].text == "When did the simpsons first air on television?"
    assert rows[0].group == rows[0].row_id == "-4469503464110108318"


@pytest.mark.parametrize(
    ("name", "n_clear", "length_auroc"),
    [
        ("llama31_8b_balanced_strict", 505, 0.921),
        ("Llama-3.3-70B-Instruct_balanced_strict", 500, 0.856),
        ("gpt_4_1_balanced_strict", 500, 0.945),
    ],
)
def test_teacher_files_are_read_whole(root, name, n_clear, length_auroc):
    columns = {"text": "initial_request", "label": "binary_label", "group": "topic"}
    columns["extras"] = {"need": "user_information_need"}
    labels = {"0": "clear", "1": "ambiguous"}
    config = make_rows(RowsConfig, path=f"teacher_ambiguity/{name}.tsv", columns=columns, labels=labels)
    rows = read_labelled(config, root)
    assert Counter(row.label for row in rows) == {"clear": n_clear, "ambiguous": 1000 - n_clear}
    assert len({row.row_id for row in rows}) == 1000
    assert len({row.group for row in rows}) == 100
    assert all(row.extras["need"] for row in rows)
    lengths = [-len(row.text.split()) for row in rows]
    assert roc_auc_score([row.label == "ambiguous" for row in rows], lengths) == pytest.approx(length_auroc, abs=0.001)
