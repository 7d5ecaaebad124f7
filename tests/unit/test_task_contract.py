"""What every task promises, asked of each one there is."""

import json
import re
from dataclasses import replace
from itertools import cycle, permutations
from typing import get_args

import pytest

from pipeline.identity import source_digest
from pipeline.prompts.replies import Parsed
from pipeline.prompts.requests import make_request
from pipeline.prompts.schemas import compute_max_new_tokens, count_characters
from pipeline.prompts.templates import digest_templates
from pipeline.records import Completion, Example, Outcome, Passage, Seed, from_table, to_table
from pipeline.sources.benchmarks import find_benchmark
from pipeline.tasks.task import JudgePrompt
from pipeline.teachers.offline import CHARACTERS_PER_TOKEN
from tests.composing import compose_method, compose_task, list_tasks

TASKS = {name: compose_task(name) for name in list_tasks()}
COMMUNITY_TASKS = ("cqa", "se_pqa")
METHODS = {name: compose_method("retricl", shots=1) for name in TASKS} | {
    "ambiguity": compose_method("paired"),
    **{name: compose_method("grounded", passages=2) for name in COMMUNITY_TASKS},
}
EXTRAS = {"title": "How", "body": "to", "interests": "trees, bread", "community": "pets", "own_answers": "a1 a2"}
"""Of a seed that is a question."""
TEXTS = ("Gardening", "3D printers", "Café {{ crème }}")
SEEDS = {
    name: [
        Seed(text.casefold(), text, text.casefold(), label, {**EXTRAS, "body": text} if not task.labels else {})
        for text, label in zip(TEXTS, cycle([""] if name == "ambiguity" else task.labels[:2] or [""]))
    ]
    for name, task in TASKS.items()
}
JUDGE_PROMPTS = get_args(JudgePrompt)
QUESTION = "Café {{ crème }} recipe"
PASSAGES = (Passage("p1", "Prune the roses in March.", 0.6, 1), Passage("p2", "Water them at dawn. Twice.", 0.5, 3))
every_task = pytest.mark.parametrize("name", TASKS)
labelling_tasks = pytest.mark.parametrize("name", [name for name, task in TASKS.items() if task.labels])
community_tasks = pytest.mark.parametrize("name", COMMUNITY_TASKS)
json_tasks = pytest.mark.parametrize("name", [name for name in TASKS if name == "ambiguity"])


def write(name, seeds, run_seed=42, passages=PASSAGES):
    """Return the prompts for some seeds, each of which has found passages of its own."""
    retrieved = {
        seed.seed_id: [replace(passage, passage_id=f"{seed.seed_id}-{passage.passage_id}") for passage in passages]
        for seed in seeds
    }
    return TASKS[name].write_prompts(seeds, retrieved, METHODS[name], run_seed)


def ask_all(name, seeds, run_seed=42):
    return [
        make_request(
            prompt.seed, prompt.passages, prompt.messages, prompt.schema, max_new_tokens=prompt.max_new_tokens,
            stop=prompt.stop, temperature=0.0, top_p=1.0, teacher={"kind": "offline"}, run_seed=run_seed,
        )
        for prompt in write(name, seeds, run_seed)
    ]  # fmt: skip


def ask(name, seed, run_seed=42):
    (request,) = ask_all(name, [seed], run_seed)
    return request


def answer(name, request, attempt=1, text=None, outcome=Outcome.OK) -> Parsed:
    text = TASKS[name].reply_offline(request, attempt) if text is None else text
    completion = Completion(request.request_id, attempt, outcome, text, "stop", 1, 1, 0.0, 0.1)
    return TASKS[name].parse(request, completion, METHODS[name])


@every_task
def test_each_file_is_a_task_by_its_name(name):
    assert TASKS[name].name == name


@labelling_tasks
def test_labels_are_distinct_and_the_positive_is_one_of_them(name):
    task = TASKS[name]
    assert len(set(task.labels)) == len(task.labels) >= 2
    assert task.positive is None or task.positive in task.labels
    assert (task.positive is None) == (len(task.labels) > 2)
    assert set(task.prototypes) == set(task.labels)
    assert task.judging.fallback in task.labels


@every_task
@pytest.mark.parametrize("number", range(len(TEXTS)))
def test_the_rules_reply_is_accepted(name, number):
    seed = SEEDS[name][number]
    request = ask(name, seed)
    parsed = answer(name, request)
    assert parsed.outcome is Outcome.OK, parsed.detail
    assert {example.label for example in parsed.examples} == (
        {seed.label} if seed.label else set(TASKS[name].labels) or {""}
    )
    for example in parsed.examples:
        assert example.request_id == request.request_id
        assert example.group == seed.group
        assert example.text == " ".join(example.text.split()) != ""


@every_task
def test_rows_survive_storage(name):
    examples = answer(name, ask(name, SEEDS[name][2])).examples
    assert tuple(from_table(Example, to_table(Example, examples))) == examples


@every_task
def test_row_ids_are_unique_and_stable(name):
    requests = [ask(name, seed, run_seed=run_seed) for seed in SEEDS[name] for run_seed in (1, 2)]
    rows = [e for request in requests for attempt in (1, 2) for e in answer(name, request, attempt).examples]
    assert len({row.row_id for row in rows}) == len(rows) > 0
    again = [e for request in requests for attempt in (1, 2) for e in answer(name, request, attempt).examples]
    assert again == rows


@json_tasks
def test_the_rules_draw_by_their_seed_alone(name):
    request = ask(name, SEEDS[name][0])
    replies = [TASKS[name].reply_offline(request, seed) for seed in (1, 1, 2)]
    assert replies[0] == replies[1] != replies[2]


@json_tasks
@pytest.mark.parametrize("passages", [(), PASSAGES], ids=["no passages", "passages"])
def test_a_prompt_holds_the_seed_and_the_passages_and_no_unfilled_hole(name, passages):
    for seed in SEEDS[name]:
        (prompt,) = write(name, [seed], passages=passages)
        assert [message.role for message in prompt.messages] == ["system", "user"]
        whole = check_whole(prompt.messages, seed.text)
        assert seed.text in whole
        for passage in PASSAGES:
            assert (passage.text in whole) == bool(passages)


@every_task
def test_a_prompt_holds_its_passage_and_no_unfilled_hole_and_ends_with_the_users_turn(name):
    for prompt in write(name, SEEDS[name]):
        whole = check_whole(prompt.messages, *TEXTS)
        assert all(passage.text in whole for passage in prompt.passages)
        assert prompt.messages[-1].role == "user"
        assert (prompt.schema is None) != (prompt.max_new_tokens is None)


def check_whole(messages, *texts) -> str:
    whole = "\n".join(message.content for message in messages)
    rest = whole
    for text in texts:
        rest = rest.replace(text, "")
    assert not re.search(r"\{\{|\}\}(?!\])|\{%|%\}|\bNone\b|\bUndefined\b|<[a-z]+ object", rest)
    assert "\n\n\n" not in whole
    assert all(message.content == message.content.strip() != "" for message in messages)
    return whole


@json_tasks
def test_the_token_budget_follows_from_the_schema_and_holds_the_rules_reply(name):
    for seed in SEEDS[name]:
        request = ask(name, seed)
        schema = json.loads(request.response_schema)
        assert request.max_new_tokens == compute_max_new_tokens(schema) < 10_000
        compact = json.dumps(json.loads(TASKS[name].reply_offline(request, 1)), separators=(",", ":"))
        assert len(compact) <= count_characters(schema)
        assert len(compact) / CHARACTERS_PER_TOKEN < request.max_new_tokens


@json_tasks
def test_a_reply_of_another_shape_is_a_mismatch(name):
    request = ask(name, SEEDS[name][0])
    reply = json.loads(TASKS[name].reply_offline(request, 1))
    for other in ({}, [], {**reply, "note": ""}, [reply]):
        parsed = answer(name, request, text=json.dumps(other))
        assert (parsed.outcome, parsed.examples) == (Outcome.SCHEMA_MISMATCH, ())
        assert parsed.detail


@every_task
@pytest.mark.parametrize("outcome", [outcome for outcome in Outcome if outcome is not Outcome.OK])
def test_a_completion_that_is_not_ok_gives_no_rows(name, outcome):
    parsed = answer(name, ask(name, SEEDS[name][0]), text="Cut off in", outcome=outcome)
    assert (parsed.outcome, parsed.examples) == (outcome, ())


@every_task
def test_an_export_has_a_value_in_each_column_for_each_row(name):
    examples = [e for seed in SEEDS[name] for e in answer(name, ask(name, seed)).examples]
    columns = TASKS[name].export(examples)
    assert len(columns) >= 2
    assert {len(column) for column in columns.values()} == {len(examples)}
    assert all(isinstance(value, str) and value for column in columns.values() for value in column)
    if name not in COMMUNITY_TASKS:  # whose rows are all written with their question
        bare = Example("r", "", "g", "text", TASKS[name].labels[0])
        assert {len(column) for column in TASKS[name].export([bare]).values()} == {1}
    assert {len(column) for column in TASKS[name].export([]).values()} == {0}


@every_task
def test_the_code_and_templates_that_it_names_are_there(name):
    task = TASKS[name]
    assert source_digest([*task.code, *task.offline_code])
    judging = [task.judging.write] if task.judging else []
    for function in (task.write_prompts, task.write_query, task.parse, *judging):
        assert getattr(function, "func", function).__module__ in task.code
    assert digest_templates(task.templates)
    assert len(task.templates) >= 1


@labelling_tasks
def test_a_judges_templates_are_there_and_its_own(name):
    task = TASKS[name]
    assert digest_templates(task.judging.templates.values())
    assert not set(task.judging.templates.values()) & set(task.templates)


@labelling_tasks
def test_a_judge_says_every_label_by_a_word_of_its_own(name):
    task = TASKS[name]
    assert set(task.judging.choices) == set(task.labels)
    assert len({word.casefold() for word in task.judging.choices.values()}) == len(task.labels)
    for word, other in permutations(task.judging.choices.values(), 2):
        assert not re.search(rf"\b{re.escape(word)}\b", other, re.IGNORECASE)


@labelling_tasks
def test_a_judge_is_told_the_item_and_the_words_and_nothing_is_left_unfilled(name):
    assert "zero_shot" in TASKS[name].judging.templates
    for prompt in TASKS[name].judging.templates:
        check_judgement(TASKS[name], prompt)


def check_judgement(task, prompt):
    messages = task.judging.write(QUESTION, prompt)
    assert messages[-1].role == "user"
    whole = "\n".join(message.content for message in messages)
    assert whole.count(QUESTION) == 1
    for word in task.judging.choices.values():
        assert re.search(rf"\b{re.escape(word)}\b", whole)
    assert not re.search(r"\{\{|\}\}|\{%|%\}|\bNone\b|\bUndefined\b", whole.replace(QUESTION, ""))
    assert whole == whole.strip()


def read_examples(name: str) -> list[tuple[str, str]]:
    """Return the queries of the few-shot prompt and the words that answer them."""
    whole = TASKS[name].judging.write(QUESTION, "few_shot")[-1].content
    return re.findall(r"^Query: (.*)\nAnswer: (\w+)$", whole, re.MULTILINE)


@json_tasks
def test_every_way_to_ask_has_a_prompt_and_examples_stand_in_one_only(name):
    task = TASKS[name]
    assert set(task.judging.templates) == set(JUDGE_PROMPTS)
    examples = read_examples(name)
    assert {answer for _, answer in examples} == set(task.judging.choices.values())
    assert len(examples) >= 10
    zero_shot = task.judging.write(QUESTION, "zero_shot")[-1].content
    assert not [query for query, _ in examples if query in zero_shot]


def find_shared(name: str, benchmark: str, root: str) -> list[str]:
    def words(text):
        return " ".join(re.findall(r"\w+", text.casefold()))

    items = {words(item.text) for item in find_benchmark(benchmark).load(root)}
    assert len(items) > 50
    return [query for query, _ in read_examples(name) if words(query) in items]


@json_tasks
def test_no_example_is_an_item_of_our_own_benchmark(name):
    assert find_shared(name, "Handwritten-60", ".") == []


@json_tasks
@pytest.mark.data
@pytest.mark.parametrize("benchmark", ["ClariQ", "AmbigNQ"])
def test_no_example_is_an_item_of_a_benchmark(name, benchmark, data_root):
    assert find_shared(name, benchmark, data_root) == []
