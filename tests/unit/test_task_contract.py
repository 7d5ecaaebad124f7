"""What every task promises, asked of each one there is."""

import json
import re
from typing import get_args

import pytest

from pipeline.identity import source_digest
from pipeline.prompts.replies import Parsed
from pipeline.prompts.requests import make_request
from pipeline.prompts.schemas import compute_max_new_tokens, count_characters
from pipeline.prompts.templates import digest_templates
from pipeline.records import Completion, Example, Outcome, Passage, Seed, from_table, to_table
from pipeline.sources.benchmarks import find_benchmark
from pipeline.tasks import TASKS
from pipeline.tasks.ambiguity import PairedConfig
from pipeline.tasks.task import JudgePrompt
from pipeline.teachers.offline import CHARACTERS_PER_TOKEN

METHODS = {"ambiguity": PairedConfig(name="paired", n_intents=5, similar_lengths=False, max_attempts=3)}
"""One method of each task."""
SEEDS = [Seed(text.casefold(), text, text.casefold()) for text in ("Gardening", "3D printers", "Café {{ crème }}")]
JUDGE_PROMPTS = get_args(JudgePrompt)
QUESTION = "Café {{ crème }} recipe"
PASSAGES = (Passage("p1", "Prune the roses in March.", 2.0, 1), Passage("p2", "Water them at dawn.", 1.0, 2))

pytestmark = pytest.mark.parametrize("name", TASKS)


def ask(name, seed, passages=(), run_seed=42):
    prompt = TASKS[name].write_prompt(seed, passages, METHODS[name])
    return make_request(
        seed, passages, prompt.messages, prompt.schema,
        temperature=0.0, top_p=1.0, teacher={"kind": "offline"}, run_seed=run_seed,
    )  # fmt: skip


def answer(name, request, attempt=1, text=None, outcome=Outcome.OK) -> Parsed:
    text = TASKS[name].reply_offline(request, attempt) if text is None else text
    completion = Completion(request.request_id, attempt, outcome, text, "stop", 1, 1, 0.0, 0.1)
    return TASKS[name].parse(request, completion)


def test_there_are_tasks_and_each_is_tested(name):
    assert set(METHODS) == set(TASKS)
    assert TASKS[name].name == name


def test_labels_are_distinct_and_one_of_them_is_positive(name):
    task = TASKS[name]
    assert len(set(task.labels)) == len(task.labels) >= 2
    assert task.positive in task.labels


@pytest.mark.parametrize("seed", SEEDS, ids=lambda seed: seed.text)
def test_the_rules_reply_is_accepted_and_has_every_label(name, seed):
    request = ask(name, seed)
    parsed = answer(name, request)
    assert parsed.outcome is Outcome.OK, parsed.detail
    assert {example.label for example in parsed.examples} == set(TASKS[name].labels)
    for example in parsed.examples:
        assert example.request_id == request.request_id
        assert example.group == seed.group
        assert example.text == " ".join(example.text.split()) != ""


def test_rows_survive_storage(name):
    examples = answer(name, ask(name, SEEDS[2])).examples
    assert tuple(from_table(Example, to_table(Example, examples))) == examples


def test_row_ids_are_unique_and_stable(name):
    requests = [ask(name, seed, run_seed=run_seed) for seed in SEEDS for run_seed in (1, 2)]
    rows = [e for request in requests for attempt in (1, 2) for e in answer(name, request, attempt).examples]
    assert len({row.row_id for row in rows}) == len(rows) > 0
    again = [e for request in requests for attempt in (1, 2) for e in answer(name, request, attempt).examples]
    assert again == rows


def test_the_rules_draw_by_their_seed_alone(name):
    request = ask(name, SEEDS[0])
    replies = [TASKS[name].reply_offline(request, seed) for seed in (1, 1, 2)]
    assert replies[0] == replies[1] != replies[2]


@pytest.mark.parametrize("passages", [(), PASSAGES], ids=["no passages", "passages"])
def test_a_prompt_holds_the_seed_and_the_passages_and_no_unfilled_hole(name, passages):
    for seed in SEEDS:
        messages = TASKS[name].write_prompt(seed, passages, METHODS[name]).messages
        assert [message.role for message in messages] == ["system", "user"]
        whole = "\n".join(message.content for message in messages)
        assert seed.text in whole
        for passage in PASSAGES:
            assert (passage.text in whole) == bool(passages)
        rest = whole.replace(seed.text, "")
        assert not re.search(r"\{\{|\}\}(?!\])|\{%|%\}|\bNone\b|\bUndefined\b|<[a-z]+ object", rest)
        assert "\n\n\n" not in whole
        assert all(message.content == message.content.strip() != "" for message in messages)


def test_the_token_budget_follows_from_the_schema_and_holds_the_rules_reply(name):
    for seed in SEEDS:
        request = ask(name, seed)
        schema = json.loads(request.response_schema)
        assert request.max_new_tokens == compute_max_new_tokens(schema) < 10_000
        compact = json.dumps(json.loads(TASKS[name].reply_offline(request, 1)), separators=(",", ":"))
        assert len(compact) <= count_characters(schema)
        assert len(compact) / CHARACTERS_PER_TOKEN < request.max_new_tokens


def test_a_reply_of_another_shape_is_a_mismatch(name):
    request = ask(name, SEEDS[0])
    reply = json.loads(TASKS[name].reply_offline(request, 1))
    for other in ({}, [], {**reply, "note": ""}, [reply]):
        parsed = answer(name, request, text=json.dumps(other))
        assert (parsed.outcome, parsed.examples) == (Outcome.SCHEMA_MISMATCH, ())
        assert parsed.detail


@pytest.mark.parametrize("outcome", [outcome for outcome in Outcome if outcome is not Outcome.OK])
def test_a_completion_that_is_not_ok_gives_no_rows(name, outcome):
    parsed = answer(name, ask(name, SEEDS[0]), outcome=outcome)
    assert (parsed.outcome, parsed.examples) == (outcome, ())


def test_an_export_has_a_value_in_each_column_for_each_row(name):
    examples = [e for seed in SEEDS for e in answer(name, ask(name, seed)).examples]
    columns = TASKS[name].export(examples)
    assert len(columns) >= 2
    assert {len(column) for column in columns.values()} == {len(examples)}
    assert all(isinstance(value, str) and value for column in columns.values() for value in column)
    bare = Example("r", "", "g", "text", TASKS[name].labels[0])
    assert {len(column) for column in TASKS[name].export([bare]).values()} == {1}
    assert {len(column) for column in TASKS[name].export([]).values()} == {0}


def test_the_code_and_templates_that_it_names_are_there(name):
    task = TASKS[name]
    assert source_digest([*task.code, *task.offline_code])
    assert task.write_prompt.__module__ in task.code
    assert task.parse.__module__ in task.code
    assert digest_templates(task.templates)
    assert len(task.templates) >= 1
    assert task.write_judgement.__module__ in task.code
    assert digest_templates(task.judge_templates.values())
    assert not set(task.judge_templates.values()) & set(task.templates)


def test_a_judge_says_every_label_by_a_word_of_its_own(name):
    task = TASKS[name]
    assert set(task.choices) == set(task.labels)
    assert len({word.casefold() for word in task.choices.values()}) == len(task.labels)
    assert all(re.fullmatch(r"\w+", word) for word in task.choices.values())


@pytest.mark.parametrize("prompt", JUDGE_PROMPTS)
def test_a_judge_is_told_the_item_and_the_words_and_nothing_is_left_unfilled(name, prompt):
    task = TASKS[name]
    messages = task.write_judgement(QUESTION, prompt)
    assert messages[-1].role == "user"
    whole = "\n".join(message.content for message in messages)
    assert whole.count(QUESTION) == 1
    for word in task.choices.values():
        assert re.search(rf"\b{word}\b", whole)
    assert not re.search(r"\{\{|\}\}|\{%|%\}|\bNone\b|\bUndefined\b", whole.replace(QUESTION, ""))
    assert whole == whole.strip()


def read_examples(name: str) -> list[tuple[str, str]]:
    """Return the queries of the few-shot prompt and the words that answer them."""
    whole = TASKS[name].write_judgement(QUESTION, "few_shot")[-1].content
    return re.findall(r"^Query: (.*)\nAnswer: (\w+)$", whole, re.MULTILINE)


def test_every_way_to_ask_has_a_prompt_and_examples_stand_in_one_only(name):
    task = TASKS[name]
    assert set(task.judge_templates) == set(JUDGE_PROMPTS)
    examples = read_examples(name)
    assert {answer for _, answer in examples} == set(task.choices.values())
    assert len(examples) >= 10
    zero_shot = task.write_judgement(QUESTION, "zero_shot")[-1].content
    assert not [query for query, _ in examples if query in zero_shot]


def find_shared(name: str, benchmark: str, root: str) -> list[str]:
    def words(text):
        return " ".join(re.findall(r"\w+", text.casefold()))

    items = {words(item.text) for item in find_benchmark(benchmark).load(root)}
    assert len(items) > 50
    return [query for query, _ in read_examples(name) if words(query) in items]


def test_no_example_is_an_item_of_our_own_benchmark(name):
    assert find_shared(name, "Handwritten-60", ".") == []


@pytest.mark.data
@pytest.mark.parametrize("benchmark", ["ClariQ", "AmbigNQ"])
def test_no_example_is_an_item_of_a_benchmark(name, benchmark, data_root):
    assert find_shared(name, benchmark, data_root) == []
