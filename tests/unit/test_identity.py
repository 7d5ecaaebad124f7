"""Names made of content: one form per value, nothing ambiguous accepted, and only what can't matter left out."""

import hashlib
import importlib
import pkgutil
import sys
from datetime import date
from decimal import Decimal
from enum import Enum
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import pipeline
from pipeline.config import Config
from pipeline.identity import EXCLUDED, canonical_json, derive_seed, digest, source_digest
from pipeline.records import Outcome, Seed

MODULES = [m.name for m in pkgutil.walk_packages(pipeline.__path__, "pipeline.")]
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


class Colour(Enum):
    RED = "red"


class Inner(Config):
    depth: int


class Outer(Config):
    inner: Inner
    names: tuple[str, ...]


def test_canonical_form_of_a_value_worked_by_hand():
    value = {"b": (1, 2.5), "a": None, "d": "é", "c": True, "e": Outer(inner=Inner(depth=3), names=("x",))}
    assert canonical_json(value) == (
        '{"a":null,"b":[1,2.5],"c":true,"d":"\\u00e9","e":{"inner":{"depth":3},"names":["x"]}}'
    )


def test_a_digest_is_the_start_of_the_sha256_of_the_canonical_form():
    assert digest({"a": 1}) == hashlib.sha256(b'{"a":1}').hexdigest()[:16]


def test_outcomes_count_as_their_text_as_values_and_as_keys():
    assert canonical_json({Outcome.TIMEOUT: Outcome.OK}) == '{"timeout":"ok"}'


@given(st.dictionaries(st.text(), PLAIN, min_size=2, max_size=4))
def test_the_order_of_keys_does_not_matter(value):
    assert digest(dict(reversed(value.items()))) == digest(value)


@given(PLAIN, PLAIN)
def test_two_values_share_a_form_only_if_they_are_equal(first, second):
    if canonical_json(first) == canonical_json(second):
        assert first == second


@pytest.mark.parametrize(("first", "second"), [(1, True), (1, "1"), (None, ""), ([], {}), ([1, 2], [2, 1]), (0.1, 0.2)])
def test_values_that_look_alike_have_different_digests(first, second):
    assert digest(first) != digest(second)
    assert digest({"k": [first]}) != digest({"k": [second]})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_number_that_is_not_finite_is_refused(value):
    with pytest.raises(ValueError, match="finite"):
        digest({"rate": [value]})


WITHOUT_A_FORM = [
    *(
        {1},
        frozenset(),
        b"bytes",
        object(),
        len,
        Colour.RED,
        date(2024, 1, 2),
        Decimal(1),
        1j,
        np.int64(1),
        np.zeros(2),
    ),
    *(Seed("s", "text", "g"), {1: "a"}, {None: "a"}, {("a",): 1}, iter(())),
]


@pytest.mark.parametrize("value", WITHOUT_A_FORM, ids=lambda value: type(value).__name__)
def test_a_value_without_one_obvious_form_is_refused_at_any_depth(value):
    for nested in (value, [value], {"key": {"deeper": (value,)}}):
        with pytest.raises(TypeError, match=r"canonical form|text keys"):
            digest(nested)


def test_a_path_is_refused_with_advice():
    with pytest.raises(TypeError, match="hash the file's content"):
        digest({"file": Path("a.tsv")})


def find_config_models() -> list[type[Config]]:
    for name in MODULES:
        importlib.import_module(name)
    found, pending = [], [Config]
    while pending:
        subclasses = pending.pop().__subclasses__()
        found += subclasses
        pending += subclasses
    # A model with two parents is found under each.
    return [model for model in dict.fromkeys(found) if model.__module__.startswith("pipeline.")]


MODELS = find_config_models()


def test_every_exclusion_names_a_field_of_a_model():
    assert len(MODELS) >= 15
    for entry in EXCLUDED:
        owner, field = entry.split(".")
        models = [m for m in MODELS if owner in {parent.__name__ for parent in m.__mro__}]
        assert owner in {m.__name__ for m in models}, f"{entry}: no such model"
        assert any(field in m.model_fields for m in models), f"{entry}: no such field"


def test_no_two_models_have_one_name():
    names = [model.__name__ for model in MODELS]
    assert sorted(set(names)) == sorted(names), "an exclusion of one would hold for the other"


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_a_model_changes_its_digest_with_each_field_that_is_not_excluded(model):
    # Values need not be valid ones: what is asked here is which fields are looked at.
    base = model.model_construct(**dict.fromkeys(model.model_fields, "before"))
    for field in model.model_fields:
        changed = base.model_copy(update={field: "after"})
        is_excluded = any(f"{parent.__name__}.{field}" in EXCLUDED for parent in model.__mro__)
        assert (digest({"config": changed}) == digest({"config": base})) == is_excluded, field


def test_a_seed_follows_from_its_parts_as_written_down():
    expected = int(hashlib.sha256(b'["fold",1]').hexdigest()[:8], 16) & 0x7FFFFFFF
    assert derive_seed("fold", 1) == expected


@given(st.lists(st.text() | st.integers(), max_size=4))
def test_a_seed_has_31_bits(parts):
    assert 0 <= derive_seed(*parts) < 2**31


@pytest.mark.parametrize(
    ("first", "second"), [(("a", "b"), ("ab",)), ((1, 2), (12,)), ((1, 2), (2, 1)), ((1,), ("1",)), ((1,), (1, ""))]
)
def test_parts_of_a_seed_do_not_run_into_each_other(first, second):
    assert derive_seed(*first) != derive_seed(*second)


def test_seeds_of_neighbouring_rows_are_spread_evenly():
    seeds = np.array([derive_seed(42, row) for row in range(4000)])
    assert len(set(seeds)) == 4000
    # Four standard errors of a uniform draw's mean, and of the correlation of neighbours.
    assert abs(seeds.mean() / 2**31 - 0.5) < 4 / np.sqrt(12 * 4000)
    assert abs(np.corrcoef(seeds[:-1], seeds[1:])[0, 1]) < 4 / np.sqrt(4000)


def digest_module(source: str, folder: Path, monkeypatch, name: str = "raystill_sample") -> str:
    folder.mkdir()
    (folder / f"{name}.py").write_text(source)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, name, raising=False)
    return source_digest([name])


def test_a_source_digest_is_blind_to_comments_docstrings_and_layout_only(tmp_path, monkeypatch):
    plain = digest_module("LIMIT = 3\n\ndef double(x):\n    return 2 * x\n", tmp_path / "a", monkeypatch)
    commented = (
        '"""A module."""\n# Why 3.\nLIMIT = (3)  # rows\n"""Rows."""\ndef double(\n    x,\n):\n\n    return 2*x\n'
    )
    assert digest_module(commented, tmp_path / "b", monkeypatch) == plain
    described = 'LIMIT = 3\n\ndef double(x):\n    """Return twice x."""\n    return 2 * x\n'
    assert digest_module(described, tmp_path / "e", monkeypatch) == plain
    changed = "LIMIT = 3\n\ndef double(x):\n    return 3 * x\n"
    assert digest_module(changed, tmp_path / "c", monkeypatch) != plain
    renamed = digest_module(
        "LIMIT = 3\n\ndef double(x):\n    return 2 * x\n", tmp_path / "d", monkeypatch, "other_name"
    )
    assert renamed != plain
