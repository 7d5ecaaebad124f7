from dataclasses import replace

import pytest

from pipeline.config import validate
from pipeline.errors import ConfigError
from pipeline.evaluation.bootstrap import Estimate
from pipeline.evaluation.comparison import Entry, sort_entries, to_entries, write_comparison
from pipeline.evaluation.config import EvaluationConfig
from pipeline.storage import Folder

ENTRY = Entry("llama31_8b", "minilm", "d1", "ClariQ", "standard", "AUROC", 0.7, 0.6, 0.8, 299)


def test_estimates_become_entries_of_one_combination():
    estimates = [Estimate("AUROC", 0.7, 0.6, 0.8, 299)]
    entries = to_entries(
        estimates, arm="llama31_8b", student="minilm", data="d1", benchmark="ClariQ", setting="standard"
    )
    assert entries == [ENTRY]


def test_entries_are_written_sorted_with_exactly_the_fields_of_the_comparison(tmp_path):
    folder = Folder.at(tmp_path)
    entries = [
        ENTRY,
        replace(ENTRY, measure="accuracy"),
        replace(ENTRY, arm="majority", student=None, data=""),
        replace(ENTRY, benchmark="AmbigNQ"),
        replace(ENTRY, setting="dev-selected"),
        replace(ENTRY, student="distilbert"),
    ]
    write_comparison(folder, entries)
    first = (tmp_path / "comparison.json").read_bytes()
    write_comparison(folder, entries[::-1])
    assert (tmp_path / "comparison.json").read_bytes() == first
    rows = folder.read_json("comparison.json")
    assert [Entry(**row) for row in rows] == sort_entries(entries)
    assert [(r["benchmark"], r["setting"], r["arm"], r["student"], r["measure"]) for r in rows] == [
        ("AmbigNQ", "standard", "llama31_8b", "minilm", "AUROC"),
        ("ClariQ", "dev-selected", "llama31_8b", "minilm", "AUROC"),
        ("ClariQ", "standard", "llama31_8b", "distilbert", "AUROC"),
        ("ClariQ", "standard", "llama31_8b", "minilm", "AUROC"),
        ("ClariQ", "standard", "llama31_8b", "minilm", "accuracy"),
        ("ClariQ", "standard", "majority", None, "AUROC"),
    ]
    keys = ["arm", "student", "data", "benchmark", "setting", "measure", "value", "low", "high", "n", "seed_sd"]
    assert all(list(row) == keys for row in rows)


@pytest.mark.parametrize("field", ["value", "low", "high"])
@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_numbers_that_json_has_not_are_refused_by_name(tmp_path, field, number):
    with pytest.raises(ValueError, match=r"llama31_8b.*AUROC.*not finite"):
        write_comparison(Folder.at(tmp_path), [replace(ENTRY, **{field: number})])
    assert not list(tmp_path.iterdir())


def test_a_combination_may_be_there_once(tmp_path):
    with pytest.raises(ValueError, match="2 entries for ClariQ / standard / llama31_8b / minilm / AUROC"):
        write_comparison(Folder.at(tmp_path), [ENTRY, replace(ENTRY, value=0.71)])


def test_the_configuration_of_evaluation_validates_and_is_bounded():
    encoder = {
        "model": "minilm", "revision": None, "pooling": "auto", "max_tokens": 64, "query_prefix": "",
        "document_prefix": "", "precision": "fp32", "batch_size": 64,
    }  # fmt: skip
    values = {
        "n_replicates": 1000,
        "seed": 0,
        "prior_seeds": 20,
        "cost": {"batch_size": 32, "n_warmup": 5, "n_single": 50},
        "prototype": {"encoder": encoder},
        "frozen": {"encoder": encoder, "inverse_regularisation": 1.0, "class_weights": True},
    }
    assert validate(EvaluationConfig, values).cost.batch_size == 32
    assert validate(EvaluationConfig, values | {"frozen": None}).frozen is None
    with pytest.raises(ConfigError, match=r"(?s)n_replicates.*cost\.batch_size"):
        validate(EvaluationConfig, values | {"n_replicates": 10, "cost": values["cost"] | {"batch_size": 0}})
