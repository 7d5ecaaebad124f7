"""The rules of SynthesizRR: which documents and demonstrations a prompt gets, and what a reply becomes."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError

from pipeline.errors import SourceError
from pipeline.prompts.requests import make_request
from pipeline.records import Completion, Message, Outcome, Passage, Seed
from pipeline.tasks import AnyTaskConfig, make_task
from pipeline.tasks.classification_methods import assign
from tests.composing import compose_method, compose_option, compose_task

TASK = compose_task("ag_news")
LABELS = ("World", "Sports")
SEEDS = [Seed(f"{label}-{n}", f"The seed {n} on {label}.", f"{label}-{n}", label) for label in LABELS for n in range(4)]


def find(seeds=SEEDS, n=50, score=lambda seed, rank: 0.7) -> dict[str, list[Passage]]:
    """Return passages of each seed's own, with similarities that some function gives."""
    return {
        seed.seed_id: [
            Passage(
                f"{seed.seed_id}/{rank}", f"Document {rank} of {seed.seed_id}. It has more.", score(seed, rank), rank
            )
            for rank in range(1, n + 1)
        ]
        for seed in seeds
    }


def write(method, retrieved=None, seeds=SEEDS, run_seed=42, task=TASK):
    return task.write_prompts(seeds, find(seeds) if retrieved is None else retrieved, method, run_seed)


def ranks(prompts) -> set[int]:
    return {passage.rank for prompt in prompts for passage in prompt.passages}


def demonstrations(prompt) -> list[tuple[str, str]]:
    """Return what the user and the assistant say in each turn before the last."""
    turns = [message.content for message in prompt.messages[:-1]]
    return list(zip(turns[::2], turns[1::2], strict=True))


def test_retricl_asks_about_ranks_3_to_50_and_demonstrates_with_ranks_1_and_2():
    prompts = write(compose_method("retricl"))
    assert ranks(prompts) == set(range(3, 51))
    assert len(prompts) == len(SEEDS) * 48
    shown = {line for prompt in prompts for user, _ in demonstrations(prompt) for line in user.splitlines()}
    assert {line.split()[1] for line in shown if line.startswith("Document")} == {"1", "2"}


def test_nonretricl_asks_about_all_ranks_and_demonstrates_with_bare_seeds():
    prompts = write(compose_method("nonretricl", shots=3))
    assert ranks(prompts) == set(range(1, 51))
    texts = {seed.text for seed in SEEDS}
    for prompt in prompts:
        assert {user for user, _ in demonstrations(prompt)} == {"Summary:"}
        assert {text for _, text in demonstrations(prompt)} <= texts


def test_fewgen_asks_without_a_document():
    prompts = write(compose_method("fewgen", shots=3, rows_per_label=20), retrieved={})
    assert Counter(prompt.seed.label for prompt in prompts) == dict.fromkeys(LABELS, 20)
    for prompt in prompts:
        assert not prompt.passages
        assert "News Article:" not in "".join(message.content for message in prompt.messages)
        assert len(demonstrations(prompt)) == 3
    assert len({(prompt.seed.seed_id) for prompt in prompts}) == 40


def test_attributed_prompts_draw_a_value_of_each_dimension():
    method = compose_method("attributed", rows_per_label=30)
    prompts = write(method, retrieved={})
    asked = [prompt.messages[-1].content for prompt in prompts]
    assert all(any(f"Style: {value}." in text for value in method.attributes["style"]) for text in asked)
    assert all("Subtopic: " in text for text in asked)
    assert len(set(asked)) > 30


@pytest.mark.parametrize("precision", [float, np.float32])
@pytest.mark.parametrize(("similarity", "is_asked"), [(0.39, False), (0.4, True), (0.9, True), (0.91, False)])
def test_a_similarity_of_exactly_04_or_09_is_kept(similarity, is_asked, precision):
    retrieved = find(score=lambda seed, rank: float(precision(similarity if rank == 7 else 0.7)))
    assert (7 in ranks(write(compose_method("retricl"), retrieved))) == is_asked


@pytest.mark.parametrize(("similarity", "is_shown"), [(0.45, False), (0.5, True), (0.9, True), (0.95, False)])
def test_demonstrations_have_a_window_of_their_own(similarity, is_shown):
    retrieved = find(score=lambda seed, rank: similarity if rank == 1 else 0.7)
    prompts = write(compose_method("retricl"), retrieved)
    shown = "".join(user for prompt in prompts for user, _ in demonstrations(prompt))
    assert ("Document 1 of" in shown) == is_shown
    assert "Document 2 of" in shown


@pytest.mark.parametrize("name", ["retricl", "nonretricl", "fewgen"])
def test_demonstrations_are_of_the_same_label_and_distinct(name):
    for prompt in write(compose_method(name, shots=3)):
        texts = [text for _, text in demonstrations(prompt)]
        pairs = demonstrations(prompt)
        assert len(set(pairs)) == 3
        assert all(prompt.seed.label in text for text in texts)


def test_demonstrations_depend_on_the_runs_seed_and_the_row_alone():
    method = compose_method("retricl")
    first, again, other = write(method), write(method, seeds=[*reversed(SEEDS)]), write(method, run_seed=43)

    def chats(prompts):
        return {prompt.passages[0].passage_id: prompt.messages for prompt in prompts}

    assert chats(first) == chats(again)
    assert chats(first) != chats(other)
    assert len({tuple(demonstrations(prompt)) for prompt in first}) > 100


def test_a_document_is_never_its_own_demonstration():
    shared = Passage("shared", "A document that every seed finds. It has more.", 0.8, 1)
    retrieved = {
        seed.seed_id: [
            replace(shared, rank=one.rank) if one.rank == (1 if n == 0 else 3) else one
            for one in find([seed])[seed.seed_id]
        ]
        for n, seed in enumerate(SEEDS)
    }
    method = compose_method("retricl", shared_documents="all")
    prompts = [prompt for prompt in write(method, retrieved) if prompt.passages[0].passage_id == "shared"]
    assert prompts
    for prompt in prompts:
        assert all("every seed finds" not in user for user, _ in demonstrations(prompt))


def test_a_document_of_several_seeds_goes_to_the_nearest_or_to_all():
    nearness = {seed.seed_id: 0.6 + n / 100 for n, seed in enumerate(SEEDS)}
    retrieved = {
        seed_id: [Passage("shared", "Shared.", near, 3), Passage(f"own-{seed_id}", "Own.", 0.5, 4)]
        for seed_id, near in nearness.items()
    }
    method = compose_method("retricl", shots=0)
    owners = [p.seed.seed_id for p in write(method, retrieved) if p.passages[0].passage_id == "shared"]
    assert owners == [SEEDS[-1].seed_id]
    everyone = write(method.model_copy(update={"shared_documents": "all"}), retrieved)
    assert len([p for p in everyone if p.passages[0].passage_id == "shared"]) == len(SEEDS)


def test_a_row_has_its_seeds_label_and_rows_per_label_is_a_bound():
    prompts = write(compose_method("retricl", rows_per_label=10))
    assert Counter(prompt.seed.label for prompt in prompts) == dict.fromkeys(LABELS, 10)
    assert all(prompt.passages[0].passage_id.startswith(prompt.seed.seed_id) for prompt in prompts)
    fewer = write(compose_method("retricl", rows_per_label=4))
    assert {p.passages[0].passage_id for p in fewer} < {p.passages[0].passage_id for p in prompts}


def test_a_window_of_percentiles_is_fitted_to_what_is_retrieved():
    window = {"kind": "percentile", "low": 50, "high": 100}
    retrieved = find(score=lambda seed, rank: 0.3 - rank / 1000)
    prompts = write(compose_method("retricl", shots=0, synthesis_window=window), retrieved)
    assert ranks(prompts) == set(range(3, 27))


def test_a_label_without_documents_or_demonstrations_is_an_error_that_says_what_there_was():
    far = find(score=lambda seed, rank: 0.2 if seed.label == "Sports" else 0.7)
    with pytest.raises(SourceError, match=r"'Sports': none of .* 4 seeds .*similarities are 0\.200 to 0\.200"):
        write(compose_method("retricl"), far)
    near = find(score=lambda seed, rank: 0.45)
    with pytest.raises(SourceError, match=r"'World': no demonstrations, 3 were wanted"):
        write(compose_method("retricl"), near)


def test_queries_are_seeds_or_their_label_and_text():
    seed = SEEDS[0]
    assert TASK.write_query(seed, compose_method("retricl")) == seed.text
    augmented = TASK.write_query(seed, compose_method("retricl", query="label_and_seed_text"))
    assert augmented.startswith("about world affairs")
    assert augmented.endswith(seed.text)


def test_a_chat_has_document_instruction_and_cue_and_stops_at_the_next():
    prompt = write(compose_method("retricl", shots=1))[0]
    assert [message.role for message in prompt.messages] == ["user", "assistant", "user"]
    asked = prompt.messages[-1].content
    assert asked.startswith(f"News Article:\n{prompt.passages[0].text}\n\nSum up the news article above")
    assert asked.endswith("\n\nSummary:")
    assert prompt.stop == ("\nNews Article:", "\nSummary:")
    assert prompt.messages[1] in [Message("assistant", seed.text) for seed in SEEDS]


def answer(text, outcome=Outcome.OK, task=TASK, **changes):
    method = compose_method("retricl", shots=0, **changes)
    prompt = write(method, task=task)[0]
    request = make_request(
        prompt.seed, prompt.passages, prompt.messages, None,
        max_new_tokens=prompt.max_new_tokens, temperature=0.95, top_p=0.9, teacher={}, run_seed=1,
    )  # fmt: skip
    completion = Completion(request.request_id, 1, outcome, text, "stop", 1, 1, 0.0, 0.1)
    return task.parse(request, completion, method)


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("Oil is up.", ["Oil is up."]),
        (' "Oil is up." ', ["Oil is up."]),
        ("Summary: Oil is up.", ["Oil is up."]),
        ("One.\n\nSummary: \u201cTwo.\u201d\nSummary:\n", ["One.", "Two."]),
        ('He said "no"', ['He said "no"']),
    ],
)
def test_a_reply_is_split_at_the_cue_and_loses_its_quotes(text, rows):
    parsed = answer(text)
    assert [example.text for example in parsed.examples] == rows
    assert {example.label for example in parsed.examples} == {"World"}
    assert len({example.row_id for example in parsed.examples}) == len(rows)


def test_a_row_remembers_its_document_and_seed():
    (row,) = answer("Oil is up.").examples
    assert row.extras["passage_text"].startswith("Document")
    assert row.extras["seed_text"].startswith("The seed")
    assert row.group == row.extras["seed_id"]
    assert 3 <= int(row.extras["passage_rank"]) <= 50


@pytest.mark.parametrize("text", ["", "  \n", "Summary:", '""'])
def test_a_reply_without_text_is_asked_again(text):
    parsed = answer(text)
    assert parsed.outcome is Outcome.SCHEMA_MISMATCH
    assert parsed.outcome.is_worth_another_attempt


@pytest.mark.parametrize(
    ("what", "rows"),
    [("trim", ["Oil is up. It was down."]), ("keep", ["Oil is up. It was down. And then"]), ("reject", [])],
)
def test_a_reply_that_was_cut_off(what, rows):
    parsed = answer("Oil is up. It was down. And then", Outcome.TRUNCATED, truncated=what)
    assert [example.text for example in parsed.examples] == rows
    assert parsed.outcome is (Outcome.OK if rows else Outcome.TRUNCATED)
    assert answer("No end", Outcome.TRUNCATED).outcome is Outcome.TRUNCATED


def change(**changes):
    values = compose_option("task", "ag_news") | changes
    return make_task(TypeAdapter(AnyTaskConfig).validate_python(values))


def test_a_refusal_is_no_text():
    task = change(refusals=["UNABLE TO SUM UP"])
    assert answer("UNABLE TO SUM UP this.", task=task).outcome is Outcome.REFUSED


def test_the_offline_teacher_copies_the_lead_of_the_document():
    method = compose_method("retricl", shots=0)
    prompt = write(method)[0]
    passage = replace(prompt.passages[0], text="One is up.\nTwo is down! Three rests. Four.")
    request = make_request(
        prompt.seed, [passage], prompt.messages, None,
        max_new_tokens=200, temperature=1.0, top_p=1.0, teacher={}, run_seed=1,
    )  # fmt: skip
    assert TASK.reply_offline(request, 1) == "One is up. Two is down!"


def test_every_label_needs_a_phrase_and_the_instruction_its_values():
    labels = compose_option("task", "ag_news")["labels"]
    with pytest.raises(ValidationError, match=r"World.verbalised"):
        change(labels=labels | {"World": {"prototype": "News.", "subtopics": []}})
    with pytest.raises(ValidationError, match=r"'topic' is undefined"):
        change(instruction="Write about {{ topic }}.")
    with pytest.raises(ValidationError, match=r"positive: 'World' is not one of two labels"):
        change(positive="World")


def test_shown_and_asked_ranks_may_not_overlap():
    with pytest.raises(ValidationError, match=r"ranks \[3\] are both"):
        compose_method("retricl", demonstration_ranks={"first": 1, "last": 3})


def test_assignments_of_no_seeds_are_none():
    assert assign([], {}, compose_method("retricl"), {}, 1) == []
