"""Records survive Arrow and Parquet unchanged, also where there are none."""

import io
from dataclasses import fields, is_dataclass, replace
from typing import Literal, get_origin, get_type_hints

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from pipeline import records
from pipeline.records import SCHEMAS, Example, Message, Outcome, Passage, Request, Seed, from_table, to_table

_BASIC = {
    str: st.text(max_size=20),
    bool: st.booleans(),
    int: st.integers(-(2**63), 2**63 - 1),
    float: st.floats(allow_nan=False),
    Outcome: st.sampled_from(Outcome),
    dict[str, str]: st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=3),
    dict[str, float]: st.dictionaries(st.text(max_size=5), st.floats(allow_nan=False), max_size=3),
}


def build(kind) -> st.SearchStrategy:
    if kind in _BASIC:
        return _BASIC[kind]
    if get_origin(kind) is Literal:
        return st.sampled_from(kind.__args__)
    if is_dataclass(kind):
        return st.builds(kind, **{name: build(hint) for name, hint in get_type_hints(kind).items()})
    (item, _) = kind.__args__  # tuple[item, ...]
    return st.lists(build(item), max_size=3).map(tuple)


def test_every_record_that_is_stored_has_a_schema_with_its_fields_in_order():
    assert len(SCHEMAS) >= 6
    for kind, schema in SCHEMAS.items():
        assert schema.names == [field.name for field in fields(kind)]
    stored = {Seed, Request, Example, records.Completion, records.Reject, records.Prediction}
    assert set(SCHEMAS) >= stored


@pytest.mark.parametrize("kind", SCHEMAS, ids=lambda kind: kind.__name__)
def test_a_table_without_rows_has_the_full_schema(kind):
    table = to_table(kind, [])
    assert table.schema == SCHEMAS[kind]
    assert list(from_table(kind, table)) == []


@pytest.mark.parametrize("kind", SCHEMAS, ids=lambda kind: kind.__name__)
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_records_are_equal_after_a_table_and_a_file(kind, data):
    rows = data.draw(st.lists(build(kind), max_size=3))
    table = to_table(kind, rows)
    assert table.schema == SCHEMAS[kind]
    assert list(from_table(kind, table)) == rows
    file = io.BytesIO()
    pq.write_table(table, file)
    assert list(from_table(kind, pq.read_table(file))) == rows


def test_nested_records_come_back_as_records():
    seed = Seed("s1", "Gardening", "s1")
    passages = (Passage("p1", "Prune in March.", 2.5, 1), Passage("p2", "Water it.", 1.0, 2))
    request = Request("r1", seed, passages, (Message("user", "?"),), "{}", 10, 1.0, 0.9, 7)
    (found,) = from_table(Request, to_table(Request, [request]))
    assert found == request
    assert isinstance(found.seed, Seed)
    assert isinstance(found.passages, tuple)
    assert found.passages[1] == passages[1]


def test_extras_of_one_row_do_not_leak_into_another():
    one, two = Example("1", "", "g", "t", "l", {"a": "1"}), Example("2", "", "g", "t", "l", {"b": ""})
    assert list(from_table(Example, to_table(Example, [one, two, replace(one, extras={})]))) == [
        one,
        two,
        replace(one, extras={}),
    ]


def test_a_table_of_something_else_is_refused():
    table = to_table(Seed, [Seed("s1", "Gardening", "s1")])
    with pytest.raises(ValidationError, match="text"):
        list(from_table(Seed, table.drop_columns(["text"])))
    with pytest.raises(ValidationError, match="string_type"):
        list(from_table(Seed, table.set_column(1, "text", pa.array([3]))))


@pytest.mark.parametrize(
    ("outcome", "is_answer", "is_worth_another_attempt"),
    [
        ("ok", True, False),
        ("invalid_json", True, True),
        ("schema_mismatch", True, True),
        ("truncated", True, True),
        ("refused", True, False),
        ("timeout", False, False),
        ("error", False, False),
    ],
)
def test_outcomes_say_whether_they_are_answers_and_worth_another_attempt(outcome, is_answer, is_worth_another_attempt):
    assert Outcome(outcome).is_answer == is_answer
    assert Outcome(outcome).is_worth_another_attempt == is_worth_another_attempt


def test_no_outcome_is_left_out_above():
    assert len(Outcome) == 7
