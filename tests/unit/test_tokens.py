"""Token ids against the tokenizer's own, and words against what a tokenizer makes of them."""

from dataclasses import dataclass
from math import log

import pytest
from transformers import AutoTokenizer

from pipeline.records import Message
from pipeline.teachers.tokens import encode_prompt, find_openings, read_choices
from tests.models import build_llm

CHAT = (Message("system", "Be brief."), Message("user", "Name a river, and its source."))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return AutoTokenizer.from_pretrained(build_llm(tmp_path_factory.mktemp("llm"), layers=1, width=32))


def test_a_chat_has_the_ids_of_the_tokenizers_own_template_and_begins_once(tokenizer):
    ids = encode_prompt(tokenizer, CHAT, "chat")
    text = tokenizer.apply_chat_template(
        [{"role": m.role, "content": m.content} for m in CHAT], add_generation_prompt=True, tokenize=False
    )
    assert ids == tokenizer.encode(text, add_special_tokens=False)
    assert ids.count(tokenizer.bos_token_id) == 1
    assert tokenizer.encode(text).count(tokenizer.bos_token_id) == 2, "the trap that this is about"
    assert tokenizer.decode(ids).endswith("<|assistant|>")


def test_plain_text_is_the_messages_alone_with_one_beginning(tokenizer):
    ids = encode_prompt(tokenizer, CHAT, "plain")
    assert ids == tokenizer.encode("Be brief.\n\nName a river, and its source.")
    assert ids.count(tokenizer.bos_token_id) == 1
    assert tokenizer.decode(ids[1:]) == "Be brief.\n\nName a river, and its source."


def test_openings_are_tokens_that_begin_one_choice_and_no_other(tokenizer):
    openings = find_openings(tokenizer, ("yes", "no"))
    texts = {tokenizer.decode([token]): choice for token, choice in openings.items()}
    assert texts["y"] == texts["Y"] == "yes"
    assert texts["n"] == texts["N"] == "no"
    assert " " not in texts
    assert all(choice.startswith(text.strip().lower()) for text, choice in texts.items())
    assert find_openings(tokenizer, ("north", "no")).keys() != find_openings(tokenizer, ("north",)).keys()
    assert find_openings(tokenizer, ()) == {}


@dataclass
class Logprob:
    logprob: float


def test_choices_sum_over_their_openings():
    openings = {1: "yes", 2: "yes", 3: "no"}
    first = {1: Logprob(log(0.25)), 2: Logprob(log(0.125)), 3: Logprob(log(0.5)), 9: Logprob(log(0.125))}
    assert read_choices([first, {3: Logprob(0.0)}], openings) == pytest.approx({"yes": log(0.375), "no": log(0.5)})
    assert read_choices([{1: Logprob(0.0)}], openings) == {}, "one of two says nothing of the other"
    assert read_choices(None, openings) == {}
    assert read_choices([first], {}) == {}
