"""Questions to prompts, and replies to pairs of a question and an answer."""

import pytest

from pipeline.prompts.requests import make_request
from pipeline.records import Completion, Outcome, Passage, Seed
from tests.composing import compose_method, compose_task

TASK = compose_task("cqa")
EXTRAS = {
    "title": "Why does my dough not rise?",
    "body": "I followed the recipe, yet after an hour it is flat.",
    "interests": "baking, bread, yeast",
    "community": "cooking",
    "own_answers": "cooking_2 cooking_3",
}
SEED = Seed("cooking_1", f"{EXTRAS['title']} {EXTRAS['body']}", "user_7", extras=EXTRAS)
PASSAGES = (
    Passage("cooking_2", "This answers the question itself.", 9.0, 1),
    Passage("cooking_9", "Old yeast is dead. A dough with dead yeast stays flat. Buy new yeast!", 8.0, 2),
    Passage("cooking_8", "Ovens differ. Keep the dough warm for an hour.", 7.0, 3),
    Passage("cooking_7", "Nothing of use.", 6.0, 4),
)


def write(prompt: str, found=(), **changes):
    method = compose_method(prompt, **changes)
    (written,) = TASK.write_prompts([SEED], {SEED.seed_id: found}, method, 1)
    return written


def ask(prompt: str, found=(), **changes):
    written = write(prompt, found, **changes)
    return make_request(
        written.seed, written.passages, written.messages, written.schema, max_new_tokens=written.max_new_tokens,
        temperature=0.0, top_p=1.0, teacher={"kind": "offline"}, run_seed=1,
    )  # fmt: skip


def parse(text: str, outcome=Outcome.OK, truncated="trim"):
    request = ask("basic")
    completion = Completion(request.request_id, 1, outcome, text, "stop", 1, 1, 0.0, 0.1)
    return TASK.parse(request, completion, compose_method("basic", truncated=truncated))


@pytest.mark.parametrize(
    ("prompt", "held"),
    [
        ("basic", {"title", "body"}),
        ("personalized", {"title", "body", "interests"}),
        ("contextual", {"title", "body", "community"}),
        ("title_only", {"title", "interests"}),
        ("grounded", {"title", "body"}),
    ],
)
def test_each_prompt_says_what_the_paper_says_it_does_and_no_more(prompt, held):
    content = write(prompt, PASSAGES).messages[0].content
    assert {name for name, text in EXTRAS.items() if text in content} == held
    assert (PASSAGES[1].text in content) == (prompt == "grounded")


def test_an_asker_without_a_history_gets_the_basic_prompt():
    stranger = Seed(SEED.seed_id, SEED.text, SEED.group, extras={**EXTRAS, "interests": ""})
    (personalized,) = TASK.write_prompts([stranger], {}, compose_method("personalized"), 1)
    (basic,) = TASK.write_prompts([stranger], {}, compose_method("basic"), 1)
    assert personalized.messages == basic.messages


def test_a_grounded_answer_never_rests_on_an_answer_to_its_own_question():
    written = write("grounded", PASSAGES, passages=2)
    assert [passage.passage_id for passage in written.passages] == ["cooking_9", "cooking_8"]
    assert PASSAGES[0].text not in written.messages[0].content


def test_more_is_retrieved_than_is_quoted_and_nothing_without_need():
    assert compose_method("grounded", passages=3).n_passages > 3
    assert compose_method("basic").n_passages == 0


def test_a_reply_is_one_answer_with_its_question():
    (example,) = parse("  Use fresh yeast.\n\nThen wait.  ").examples
    assert example.text == "Use fresh yeast.\n\nThen wait."
    assert example.group == "user_7"
    assert example.extras == {
        "query": SEED.text,
        "question_id": "cooking_1",
        "community": "cooking",
        "own_answers": "cooking_2 cooking_3",
    }


def test_a_reply_that_was_cut_off():
    cut = "Use fresh yeast. Then wai"
    assert parse(cut, Outcome.TRUNCATED, "trim").examples[0].text == "Use fresh yeast."
    assert parse(cut, Outcome.TRUNCATED, "keep").examples[0].text == cut
    assert parse(cut, Outcome.TRUNCATED, "reject").outcome is Outcome.TRUNCATED
    assert parse("Use fre", Outcome.TRUNCATED, "trim").outcome is Outcome.TRUNCATED
    assert parse(" \n").outcome is Outcome.SCHEMA_MISMATCH


def test_the_offline_teacher_takes_sentences_near_the_question_in_the_passages_order():
    request = ask("grounded", PASSAGES, passages=3)
    # By shared words over the logarithm of the length: 4 of 7, 2 of 7, 1 of 4, then the first of those with none.
    assert TASK.reply_offline(request, 1) == (
        "Old yeast is dead. A dough with dead yeast stays flat. Buy new yeast! Keep the dough warm for an hour."
    )
