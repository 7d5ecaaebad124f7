from dataclasses import asdict
from types import SimpleNamespace

import numpy as np
import pytest

from pipeline.errors import NotMeasuredError, SourceError
from pipeline.evaluation.annotation import Fault, Label
from pipeline.prompts.hallucination import ask_of_answer
from pipeline.quality.answers import compare_texts
from pipeline.quality.overlap import corpus_bleu, corpus_chrf
from pipeline.quality.support import SupportConfig, measure_support, split_claims
from pipeline.records import Completion, Example, Outcome, Passage
from pipeline.stages.answers import correlate_texts, describe_answers
from pipeline.stages.verdicts import collect_verdicts

QUESTIONS = {"1": "What is a visa", "2": "Why is it"}
ARMS = {
    "short": {"1": "a paper", "2": "it is", "3": "left out"},
    "long": {"1": "it says what a visa is", "2": "ask them why is it so"},
}


def test_texts_of_arms_are_compared_on_the_questions_that_all_answer():
    found = compare_texts(ARMS, QUESTIONS)
    assert (found.n, found.n_left_out) == (2, 1)
    short, long = found.arms["short"], found.arms["long"]
    # {what, is, a, visa} and {why, is, it}: a; it, is. Then what, a, visa, is; why, is, it.
    assert short.overlap == pytest.approx((1 / 4 + 2 / 3) / 2)
    assert long.overlap == pytest.approx(1)
    assert (long.mean_words, long.max_words) == (6, 6)
    (pair,) = found.pairs
    texts = [[ARMS[arm]["1"], ARMS[arm]["2"]] for arm in ("short", "long")]
    assert (pair.first, pair.second) == ("short", "long")
    assert (pair.bleu, pair.chrf) == (corpus_bleu(*texts), corpus_chrf(*texts))


def test_at_equal_length_an_answer_is_cut_to_its_questions_shortest():
    found = compare_texts(ARMS, QUESTIONS)
    # Cut to two words: "it says" has none of the question's words, "ask them" neither.
    assert found.arms["long"].overlap_at_equal_length == 0
    assert found.arms["short"].overlap_at_equal_length == found.arms["short"].overlap


def test_arms_without_a_question_in_common_are_not_compared():
    with pytest.raises(NotMeasuredError, match="no question is answered by all of a, b"):
        compare_texts({"a": {"1": "x"}, "b": {"2": "y"}}, QUESTIONS)


def test_self_bleu_is_of_the_shared_questions_alone_and_none_of_a_single_answer():
    alone = compare_texts({"a": {"1": "one two"}, "b": {"1": "one two", "2": "three"}}, QUESTIONS)
    assert alone.arms["b"].self_bleu is None
    twins = compare_texts({"a": {"1": "so it is said", "2": "so it is said"}, "b": ARMS["short"]}, QUESTIONS)
    assert twins.arms["a"].self_bleu > twins.arms["b"].self_bleu


def to_row(question_id, text, passages="", **extras):
    extras = {"query": QUESTIONS[question_id], "question_id": question_id, "community": "beer"} | extras
    if passages:
        extras["passage_text"] = passages
    return Example(f"row {question_id}", f"request {question_id}", "asker", text, "", extras)


def test_arms_are_described_by_their_texts_and_by_what_retrieved_passages_support_of_them():
    rows = {
        "plain": [to_row("1", "a visa"), to_row("2", "because")],
        "grounded": [
            to_row("1", "A visa is paper. Made of gold.", "a visa is a paper\n\nor not"),
            to_row("2", "it is"),
        ],
    }
    found = describe_answers(rows, SupportConfig(recall=0.9, cosine=1))
    assert found["texts"]["n"] == 2
    shared = {"passages_of": "grounded", "n_answers": 1, "n_left_out": 1, "cosine": None}
    assert found["support"] == {
        "plain": {**shared, "n_claims": 1, "recall": 1.0},  # held against what the other arm was shown
        "grounded": {**shared, "n_claims": 2, "recall": 0.5},
    }


def test_where_no_arm_has_passages_nothing_is_said_of_support():
    rows = {arm: [to_row("1", arm), to_row("2", "because")] for arm in ("a", "b")}
    assert describe_answers(rows, SupportConfig(recall=0.9, cosine=1))["support"] == {}


def test_arms_without_a_common_question_are_described_as_not_comparable():
    found = describe_answers({"a": [to_row("1", "x")], "b": [to_row("2", "y")]}, SupportConfig(recall=0.9, cosine=1))
    assert found["texts"]["note"].startswith("no question is answered by all of a, b")
    assert correlate_texts(found["texts"], {"a": 0.1, "b": 0.2})["overlap"]["note"] == "too few points: 0, of 3 needed"


def test_rows_that_are_no_answers_are_named():
    with pytest.raises(SourceError, match=r"arms\.a: row 7 has no query, question_id, community"):
        describe_answers({"a": [Example("7", "", "", "x", "")]}, SupportConfig(recall=0.9, cosine=1))
    other = to_row("1", "x", query="Another question")
    with pytest.raises(SourceError, match=r"arms\.b: question 1 reads otherwise"):
        describe_answers({"a": [to_row("1", "x")], "b": [other]}, SupportConfig(recall=0.9, cosine=1))


def test_figures_of_texts_are_correlated_with_quality_over_arms():
    texts = asdict(
        compare_texts(
            {name: {"1": f"what {'visa ' * n}", "2": "it"} for n, name in enumerate(("a", "b", "c"), start=1)},
            QUESTIONS,
        )
    )
    found = correlate_texts(texts, {"a": 0.3, "b": 0.2, "c": 0.1})
    assert found["mean words"]["pearson"] == pytest.approx(-1)
    assert found["overlap"]["note"] == "one of the two is the same for all arms"


def test_claims_are_sentences_with_words():
    assert split_claims('It is. "Is it?" Yes!\n- 3.5 litres\n---\nno end') == [
        "It is.",
        '"Is it?"',
        "Yes!",
        "- 3.5 litres",
        "no end",
    ]


def test_support_by_words_is_of_the_best_passage_and_never_of_two_together():
    answers = {"1": "Hops are bitter. Malt is very sweet.", "2": "Nothing retrieved.", "3": "?!"}
    passages = {"1": ["hops are green", "malt is sweet"], "2": [], "3": ["words"]}
    # 2 of 3 words of the first claim, 3 of 4 of the second.
    at = {t: measure_support(answers, passages, SupportConfig(recall=t, cosine=0.5)) for t in (0.66, 0.7, 0.76)}
    assert {t: found.recall for t, found in at.items()} == {0.66: 1.0, 0.7: 0.5, 0.76: 0.0}
    assert (at[0.7].n_answers, at[0.7].n_left_out, at[0.7].n_claims, at[0.7].cosine) == (1, 2, 2, None)


def test_support_by_vectors_is_the_cosine_with_the_best_passage():
    vectors = {"One.": [1, 0], "Two.": [0, 1], "p": [0.8, 0.6], "q": [1, 0]}
    encoder = SimpleNamespace(encode_documents=lambda texts: np.array([vectors[text] for text in texts]))
    config = SupportConfig(recall=0.5, cosine=0.7)
    found = measure_support({"1": "One. Two."}, {"1": ["p", "q"]}, config, encoder)
    assert (found.cosine, found.recall) == (0.5, 0.0)  # 1 and .6


def test_without_passages_nothing_is_said_of_support():
    found = measure_support({"1": "One."}, {}, SupportConfig(recall=0.5, cosine=0.5))
    assert (found.n_claims, found.n_left_out, found.recall) == (0, 1, None)


def ask(item, answer, passages=()):
    return ask_of_answer(item, "Why?", answer, passages, teacher={"model": "m"}, run_seed=1)


def complete(request, text, outcome=Outcome.OK):
    return Completion(request.request_id, 0, outcome, text, "stop", 1, 1, 0.0, 0.0)


def test_a_judge_sees_question_answer_and_sources_and_nothing_else():
    passage = Passage("p1", "Hops are bitter.", 1.0, 1)
    (alone,), (grounded,) = ask("0", "{{ so }}").messages, ask("0", "{{ so }}", [passage]).messages
    assert "Why?" in alone.content
    assert "{{ so }}" in alone.content
    assert "ources" not in alone.content
    assert "[1] Hops are bitter." in grounded.content
    assert ask("0", "a").request_id != ask("0", "b").request_id
    assert ask("0", "a").choices == ("yes", "no")


def test_verdicts_are_labels_and_what_is_no_verdict_is_none():
    requests = [ask(str(i), f"answer {i}") for i in range(5)]
    texts = ["Yes.", "no", "I can't say", "", ""]
    outcomes = [Outcome.OK, Outcome.OK, Outcome.OK, Outcome.ERROR]
    completions = {
        r.request_id: complete(r, text, outcome) for r, text, outcome in zip(requests, texts, outcomes, strict=False)
    }
    found = collect_verdicts("llm", "s", requests, completions)
    assert [(one.item_id, one.label, one.fault) for one in found.annotations] == [
        ("0", Label.YES, Fault.UNSUPPORTED),
        ("1", Label.NO, None),
    ]
