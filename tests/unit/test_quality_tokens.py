import pytest

from pipeline.quality.tokens import tokenise


def test_words_and_marks_are_tokens_as_written():
    assert tokenise(["Don't  pay $5!", ""], "words") == [["Don", "'", "t", "pay", "$", "5", "!"], []]


def test_spacy_cuts_as_its_english_pipelines_do():
    assert tokenise(["Don't pay  $5!", ""], "spacy") == [["Do", "n't", "pay", " ", "$", "5", "!"], []]


@pytest.mark.parametrize("tokeniser", ["words", "spacy"])
def test_one_list_for_each_text(tokeniser):
    assert [len(tokens) for tokens in tokenise(["a b", "c", "d e f"], tokeniser)] == [2, 1, 3]
