"""The ambiguity task: pairs by intent, in the reply's order, with the source system's columns."""

import json
from collections import Counter

import pytest

from pipeline.config import validate
from pipeline.errors import ConfigError
from pipeline.prompts.requests import make_request
from pipeline.records import Completion, Outcome, Passage, Request, Seed
from pipeline.tasks.ambiguity import AmbiguityConfig, PairedConfig
from pipeline.tasks.ambiguity_rules import MAX_INTENTS
from tests.composing import compose_option, compose_task

METHOD = {"name": "paired", "n_intents": 2, "similar_lengths": False, "max_attempts": 3}
AMBIGUITY = compose_task("ambiguity")
SEED = Seed("gardening", "Gardening", "gardening")
REPLY = {
    "intents": [
        {
            "intent": "when to prune",
            "specific": {"query": "when to prune roses in Leeds", "information_need": "The month."},
            "ambiguous": {"query": "when to prune", "information_need": "It leaves open what."},
        },
        {
            "intent": "soil for\tpots",
            "specific": {"query": " best  soil for\nbasil in pots ", "information_need": "A mix."},
            "ambiguous": {"query": "Which soil?", "information_need": "It leaves open for\twhat."},
        },
    ]
}


def make(**changes) -> Request:
    (prompt,) = AMBIGUITY.write_prompts([SEED], {}, validate(PairedConfig, {**METHOD, **changes}), 1)
    return make_request(SEED, (), prompt.messages, prompt.schema, temperature=1.0, top_p=0.9, teacher={}, run_seed=1)


def parse(reply, request=None):
    completion = Completion("r", 1, Outcome.OK, json.dumps(reply), "stop", 1, 1, 0.0, 0.1)
    return AMBIGUITY.parse(request or make(), completion, PairedConfig(**METHOD))


def write_user_prompt(**changes) -> str:
    return make(**changes).messages[1].content


def test_a_reply_becomes_two_rows_an_intent_in_its_order():
    parsed = parse(REPLY)
    assert parsed.outcome is Outcome.OK
    assert [(example.text, example.label) for example in parsed.examples] == [
        ("when to prune roses in Leeds", "clear"),
        ("when to prune", "ambiguous"),
        ("best soil for basil in pots", "clear"),
        ("Which soil?", "ambiguous"),
    ]
    assert parsed.examples[3].extras == {
        "topic": "Gardening",
        "intent": "soil for pots",
        "information_need": "It leaves open for what.",
    }
    assert {example.group for example in parsed.examples} == {"gardening"}


def test_the_export_has_the_source_systems_columns():
    assert AMBIGUITY.export(parse(REPLY).examples[:2]) == {
        "topic": ["Gardening", "Gardening"],
        "initial_request": ["when to prune roses in Leeds", "when to prune"],
        "binary_label": ["0", "1"],
        "user_information_need": ["The month.", "It leaves open what."],
    }


@pytest.mark.parametrize("n_intents", [1, 3])
def test_another_number_of_intents_than_asked_for_is_a_mismatch(n_intents):
    parsed = parse({"intents": (REPLY["intents"] * 2)[:n_intents]})
    assert (parsed.outcome, parsed.examples) == (Outcome.SCHEMA_MISMATCH, ())
    assert parsed.detail.startswith("intents: ")


def test_an_intent_without_one_of_its_queries_is_a_mismatch():
    second = {key: value for key, value in REPLY["intents"][1].items() if key != "ambiguous"}
    assert parse({"intents": [REPLY["intents"][0], second]}).outcome is Outcome.SCHEMA_MISMATCH


@pytest.mark.parametrize("blank", ["", " ", "\n\t"])
def test_a_blank_query_is_a_mismatch_that_says_where(blank):
    second = {**REPLY["intents"][1], "specific": {"query": blank, "information_need": "A mix."}}
    parsed = parse({"intents": [REPLY["intents"][0], second]})
    assert (parsed.outcome, parsed.examples) == (Outcome.SCHEMA_MISMATCH, ())
    assert "intents/1/specific" in parsed.detail


def test_a_query_longer_than_its_bound_is_a_mismatch():
    first = {**REPLY["intents"][0], "specific": {"query": "q" * 161, "information_need": "x"}}
    assert parse({"intents": [first, REPLY["intents"][1]]}).outcome is Outcome.SCHEMA_MISMATCH


@pytest.mark.parametrize("n_intents", [1, 5, MAX_INTENTS])
def test_the_rules_write_as_many_pairs_as_asked_for(n_intents):
    request = make(n_intents=n_intents)
    parsed = parse(json.loads(AMBIGUITY.reply_offline(request, 7)), request)
    assert Counter(example.label for example in parsed.examples) == {"clear": n_intents, "ambiguous": n_intents}


@pytest.mark.parametrize(("key", "value"), [("n_intents", 0), ("n_intents", MAX_INTENTS + 1), ("max_attempts", 0)])
def test_a_number_out_of_bounds_is_refused(key, value):
    with pytest.raises(ConfigError, match=key):
        validate(PairedConfig, {**METHOD, key: value})


def test_the_token_budget_worked_by_hand():
    """Two characters a token; a query takes 160 characters at most, a need 240, an intent 80, quotes not counted."""
    query = len('{"query":"","information_need":""}') + 160 + 240
    intent = len('{"intent":"","specific":,"ambiguous":}') + 80 + 2 * query
    assert make(n_intents=5).max_new_tokens == -(-(len('{"intents":[]}') + 5 * intent + 4) // 2)


def test_the_prompt_asks_for_the_topic_the_number_and_the_form():
    prompt = write_user_prompt(n_intents=7)
    assert prompt.startswith("Topic: Gardening\n")
    assert "Think of 7 different things" in prompt
    assert 'exactly 7 items in "intents"' in prompt
    form = prompt[prompt.index('{"intents"') :]
    assert set(json.loads(form)["intents"][0]) == {"intent", "specific", "ambiguous"}


def test_similar_lengths_are_asked_for_only_where_wanted():
    plain, similar = write_user_prompt(), write_user_prompt(similar_lengths=True)
    assert "equally long" in similar
    assert "equally long" not in plain
    assert make(similar_lengths=True).request_id != make().request_id


def test_passages_are_quoted_with_their_ranks():
    passages = (Passage("p1", "Prune in March.", 2.0, 1), Passage("p2", "Water at dawn.", 1.0, 2))
    (prompt,) = AMBIGUITY.write_prompts([SEED], {SEED.seed_id: passages}, PairedConfig(**METHOD), 1)
    content = prompt.messages[1].content
    assert "Document 1:\nPrune in March." in content
    assert "Document 2:\nWater at dawn." in content
    assert "Document" not in write_user_prompt()


@pytest.mark.parametrize("labels", [[], ["clear"], ["clear", "ambiguous", "vague"]])
def test_each_label_has_one_prototype(labels):
    values = compose_option("task", "ambiguity") | {"prototypes": dict.fromkeys(labels, "A sentence.")}
    with pytest.raises(ConfigError, match=r"prototypes: Value error, one sentence for each of"):
        validate(AmbiguityConfig, values)
