"""Prompts: bounded schemas, ids made of all that can change an answer, and replies read without guessing."""

import json
from dataclasses import replace

import jsonschema
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from jinja2 import UndefinedError

from pipeline.prompts import templates
from pipeline.prompts.replies import read_reply
from pipeline.prompts.requests import make_request
from pipeline.prompts.schemas import array, compute_max_new_tokens, count_characters, record, text
from pipeline.records import Completion, Message, Outcome, Passage, Seed

PAIR = record(query=text(20), need=text(30))
SCHEMA = record(pairs=array(PAIR, 2))
GOOD = {"pairs": [{"query": "a", "need": "b"}, {"query": "c", "need": "d"}]}


# Text as models write it: characters that JSON must escape (quotes, line ends) take more room than the bound counts.
UNESCAPED = st.characters(exclude_characters='"\\', exclude_categories=["Cc", "Cs"])


@st.composite
def schemas_with_a_value(draw, depth=3):
    """Draw a bounded schema and a value that fits it."""
    kinds = ["string", "enum", "boolean", "integer", "array", "object"][: 6 if depth else 4]
    match draw(st.sampled_from(kinds)):
        case "string":
            length = draw(st.integers(1, 8))
            return text(length), draw(st.text(UNESCAPED, min_size=1, max_size=length))
        case "enum":
            values = draw(st.lists(st.text(UNESCAPED, max_size=5) | st.integers(), min_size=1, max_size=4))
            return {"enum": values}, draw(st.sampled_from(values))
        case "boolean":
            return {"type": "boolean"}, draw(st.booleans())
        case "integer":
            low, high = sorted(draw(st.tuples(st.integers(-9999, 9999), st.integers(-9999, 9999))))
            return {"type": "integer", "minimum": low, "maximum": high}, draw(st.integers(low, high))
        case "array":
            schema, value = draw(schemas_with_a_value(depth - 1))
            length = draw(st.integers(0, 3))
            return array(schema, length), [value] * length
    names = draw(st.lists(st.text(UNESCAPED, max_size=5), unique=True, max_size=3))
    parts = {name: draw(schemas_with_a_value(depth - 1)) for name in names}
    return record(**{name: part[0] for name, part in parts.items()}), {name: part[1] for name, part in parts.items()}


@given(schemas_with_a_value())
@settings(deadline=None)
def test_no_valid_reply_is_longer_than_its_schemas_bound(pair):
    schema, value = pair
    jsonschema.validate(value, schema, jsonschema.Draft202012Validator)
    compact = json.dumps(value, separators=(",", ":"), ensure_ascii=False)
    assert len(compact) <= count_characters(schema)


@pytest.mark.parametrize(
    ("schema", "longest"),
    [
        (text(5), '"aaaaa"'),
        (record(), "{}"),
        (record(a=text(2), bc={"type": "boolean"}), '{"a":"aa","bc":false}'),
        (array(text(1), 0), "[]"),
        (array(text(1), 3), '["a","a","a"]'),
        ({"enum": ["a", "long", 3]}, '"long"'),
        ({"type": "integer", "minimum": -100, "maximum": 99}, "-100"),
        (
            SCHEMA,
            '{"pairs":[' + ",".join(['{"query":"' + "q" * 20 + '","need":"' + "n" * 30 + '"}'] * 2) + "]}",
        ),
    ],
    ids=lambda value: "" if isinstance(value, str) else str(sorted(value)),
)
def test_the_bound_is_reached_by_the_longest_reply(schema, longest):
    jsonschema.validate(json.loads(longest), schema)
    assert count_characters(schema) == len(longest)


def test_a_token_budget_holds_the_longest_reply_at_two_characters_a_token():
    assert compute_max_new_tokens(text(7)) == 5  # 9 characters


@pytest.mark.parametrize(
    "unbounded",
    [
        {"type": "string"},
        {"type": "array", "items": text(3)},
        {"type": "number"},
        {"type": "integer", "minimum": 0},
        {"type": "object", "properties": {}},
        {"type": "object", "properties": {"a": text(3)}},
        {"type": "object", "additionalProperties": text(3)},
        {},
    ],
    ids=str,
)
def test_a_schema_without_a_bound_is_refused_at_any_depth(unbounded):
    for schema in (unbounded, record(a=text(3), b=unbounded), array(unbounded, 2)):
        with pytest.raises(ValueError, match="needs a bound"):
            count_characters(schema)


BASE = {
    "seed": Seed("s1", "Gardening", "g1"),
    "passages": (Passage("p1", "Prune in March.", 2.5, 1),),
    "messages": (Message("system", "be brief"), Message("user", "write")),
    "schema": SCHEMA,
    "temperature": 1.0,
    "top_p": 0.95,
    "teacher": {"kind": "offline", "revision": "abc"},
    "run_seed": 42,
}


def build(**changes):
    return make_request(**{**BASE, **changes})


@pytest.mark.parametrize(
    "change",
    [
        {"messages": (Message("system", "be brief"), Message("user", "write."))},
        {"messages": (Message("user", "be brief"), Message("system", "write"))},
        {"messages": (Message("user", "write"),)},
        {"schema": record(pairs=array(PAIR, 3))},
        {"schema": dict(reversed(SCHEMA.items()))},  # a decoder writes the properties in the schema's order
        {"schema": None, "choices": ("yes", "no")},
        {"temperature": 0.5},
        {"top_p": 0.9},
        {"teacher": {"kind": "offline", "revision": "abd"}},
        {"teacher": {"kind": "vllm", "revision": "abc"}},
        {"run_seed": 43},
        {"seed": Seed("s2", "Gardening", "g1")},
    ],
    ids=lambda change: next(iter(change)),
)
def test_whatever_can_change_the_answer_changes_the_id(change):
    assert build(**change).request_id != build().request_id


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"passages": (Passage("p1", "Prune in March.", 9.0, 1),)},
        {"passages": ()},
        {"temperature": 1},
        {"seed": Seed("s1", "Gardening", "another group", "a label")},
        {"teacher": dict(reversed(BASE["teacher"].items()))},
    ],
    ids=str,
)
def test_what_the_teacher_does_not_see_leaves_the_id_alone(change):
    assert build(**change).request_id == build().request_id


def test_a_request_carries_all_that_a_teacher_needs():
    request = build()
    assert request.seed == BASE["seed"]
    assert request.passages == BASE["passages"]
    assert request.messages == BASE["messages"]
    assert json.loads(request.response_schema) == SCHEMA
    assert request.max_new_tokens == compute_max_new_tokens(SCHEMA)
    assert (request.temperature, request.top_p) == (1.0, 0.95)
    assert 0 <= request.row_seed < 2**31
    assert build(seed=Seed("s2", "Gardening", "g1")).row_seed != request.row_seed


def read(content: str, outcome: Outcome = Outcome.OK, **changes):
    completion = Completion("r", 1, outcome, content, "stop", 1, 1, 0.0, 0.1)
    return read_reply(build(), replace(completion, **changes))


COMPACT = json.dumps(GOOD)


@pytest.mark.parametrize(
    "content",
    [
        COMPACT,
        json.dumps(GOOD, indent=2),
        f"```json\n{COMPACT}\n```",
        f"```\n{COMPACT}\n```",
        f"\n ```json\n{json.dumps(GOOD, indent=1)}\n```  \n",
    ],
    ids=["compact", "indented", "fenced json", "fenced", "fenced with space"],
)
def test_a_good_reply_is_read_with_or_without_a_fence(content):
    reply = read(content)
    assert (reply.outcome, reply.value) == (Outcome.OK, GOOD)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "Sure! Here you are.",
        COMPACT[:-1],
        f"{COMPACT} {COMPACT}",
        f"Here you are:\n```json\n{COMPACT}\n```",
        f"```json\n{COMPACT}",
        "[" * 100_000,
        "1" * 5_000,
        COMPACT.replace('"a"', '"a \\ud83d"'),
    ],
    ids=["empty", "prose", "cut", "two", "prose and fence", "open fence", "deep", "huge number", "half a character"],
)
def test_what_is_no_json_is_invalid_and_never_repaired(content):
    reply = read(content)
    assert reply.outcome is Outcome.INVALID_JSON
    assert reply.value is None
    assert reply.detail


@pytest.mark.parametrize(
    ("value", "where"),
    [
        ({}, "pairs"),
        ([], "(reply)"),
        (None, "(reply)"),
        ({"pairs": GOOD["pairs"][:1]}, "pairs: "),
        ({"pairs": GOOD["pairs"] * 2}, "pairs: "),
        ({"pairs": GOOD["pairs"], "note": "x"}, "note"),
        ({"pairs": [GOOD["pairs"][0], {"query": "c"}]}, "pairs/1: "),
        ({"pairs": [GOOD["pairs"][0], {"query": "", "need": "d"}]}, "pairs/1/query: "),
        ({"pairs": [{"query": "q" * 21, "need": "d"}] * 2}, "pairs/0/query: "),
        ({"pairs": [{"query": 3, "need": "d"}] * 2}, "pairs/0/query: "),
    ],
    ids=str,
)
def test_json_that_does_not_fit_the_schema_is_a_mismatch_and_says_where(value, where):
    reply = read(json.dumps(value))
    assert reply.outcome is Outcome.SCHEMA_MISMATCH
    assert where in reply.detail


@pytest.mark.parametrize("outcome", [outcome for outcome in Outcome if outcome is not Outcome.OK])
def test_what_the_teacher_reported_stands_even_over_a_good_text(outcome):
    assert read(COMPACT, outcome).outcome is outcome
    assert read(COMPACT, outcome).detail == "stop"
    assert read(COMPACT, outcome, error="no route").detail == "no route"


@given(st.text() | st.recursive(st.none() | st.text() | st.floats() | st.integers(), st.lists).map(json.dumps))
@example('{"pairs": NaN}')
@example('"\\ud800"')
@example("[" * 900 + "]" * 900)
@example('{"pairs":' * 400 + "1" + "}" * 400)
@settings(deadline=None)
def test_no_text_makes_reading_fail(content):
    assert read(content).outcome in (Outcome.INVALID_JSON, Outcome.SCHEMA_MISMATCH)


def test_a_template_with_a_hole_that_nobody_fills_is_an_error():
    with pytest.raises(UndefinedError, match="topic"):
        templates.render("ambiguity/user.jinja", passages=(), n_intents=5, similar_lengths=False)


def test_a_template_digest_changes_with_the_templates():
    user, system = "ambiguity/user.jinja", "ambiguity/system.jinja"
    assert templates.digest_templates([user]) == templates.digest_templates([user])
    assert len({templates.digest_templates(names) for names in ([user], [system], [user, system])}) == 3
