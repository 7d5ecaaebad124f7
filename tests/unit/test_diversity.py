from math import log2

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import NotMeasuredError
from pipeline.quality.diversity import Entity, distinct_n, entity_entropy, find_entities, mean_cosine, vendi_score


def draw_vectors(n, dimensions, seed=0):
    vectors = np.random.default_rng(seed).standard_normal((n, dimensions))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_distinct_n_of_hand_worked_texts():
    # Words: a b a c b (3 of 5 distinct); pairs: ab ba ac (3 of 3); triples: aba bac (2 of 2).
    assert distinct_n([["a", "b", "a", "c"], ["b"]], 3) == [3 / 5, 1, 1]


def test_n_grams_end_with_their_text():
    assert distinct_n([["a", "b"], ["b", "a"], ["a", "b"]], 2) == [2 / 6, 2 / 3]


def test_where_no_text_has_n_tokens_there_is_no_share():
    assert distinct_n([["a"], ["a"], []], 2) == [1 / 2, None]


def test_entropy_is_of_the_names_of_each_type():
    names = ["Paris", "Paris", "Lima", "Oslo"]
    entities = [Entity("GPE", name) for name in names] + [Entity("PERSON", "Ann")] * 3
    assert entity_entropy(entities) == {"GPE": pytest.approx(0.5 * 1 + 2 * 0.25 * 2), "PERSON": 0}
    assert entity_entropy([]) == {}


@given(st.lists(st.sampled_from("abcdef"), min_size=1, max_size=40))
def test_entropy_lies_between_none_and_that_of_equal_shares(names):
    entropy = entity_entropy(Entity("ORG", name) for name in names)["ORG"]
    assert -1e-12 <= entropy <= log2(len(set(names))) + 1e-12


@pytest.fixture
def pipeline_folder(tmp_path):
    """A pipeline of spaCy that knows two names by rule."""
    import spacy

    pipeline = spacy.blank("en")
    ruler = pipeline.add_pipe("entity_ruler")
    ruler.add_patterns([{"label": "GPE", "pattern": "New Zealand"}, {"label": "ORG", "pattern": "Intel"}])
    pipeline.to_disk(tmp_path / "pipeline")
    return str(tmp_path / "pipeline")


def test_entities_are_those_of_the_pipeline(pipeline_folder):
    found = find_entities(["Intel leaves New Zealand.", "Nobody", "New Zealand"], pipeline_folder)
    assert found == [[("ORG", "Intel"), ("GPE", "New Zealand")], [], [("GPE", "New Zealand")]]


def test_a_missing_pipeline_is_told_with_what_to_do():
    with pytest.raises(NotMeasuredError, match=r"en_core_none is not installed; run `python -m spacy download en_core"):
        find_entities(["Paris"], "en_core_none")


def test_a_missing_package_is_told_with_what_to_do(monkeypatch):
    monkeypatch.setattr("pipeline.quality.optional.find_version", lambda package: None)
    with pytest.raises(NotMeasuredError, match="the package spacy is not installed; install the extra `quality`"):
        find_entities(["Paris"], "en_core_web_sm")


def test_vendi_score_counts_texts_that_differ():
    assert vendi_score(np.eye(4)) == pytest.approx(4)
    assert vendi_score(np.eye(3)[[0, 0, 0]]) == pytest.approx(1)
    assert vendi_score(np.eye(3)[[0, 1, 0, 1]]) == pytest.approx(2)


def test_vendi_score_of_two_texts_by_hand():
    # The similarities [[1, s], [s, 1]] over 2 have the eigenvalues (1 + s) / 2 and (1 - s) / 2.
    s = 0.6
    vectors = np.array([[1, 0], [s, np.sqrt(1 - s**2)]])
    high, low = (1 + s) / 2, (1 - s) / 2
    assert vendi_score(vectors) == pytest.approx(np.exp(-high * np.log(high) - low * np.log(low)))


@pytest.mark.parametrize(("n", "dimensions"), [(5, 40), (40, 5), (12, 12)])
def test_vendi_score_is_the_same_by_texts_and_by_dimensions(n, dimensions):
    vectors = draw_vectors(n, dimensions)
    eigenvalues = np.linalg.svd(vectors, compute_uv=False) ** 2 / n
    assert vendi_score(vectors) == pytest.approx(np.exp(-(eigenvalues * np.log(eigenvalues)).sum()))
    assert vendi_score(vectors.astype(np.float32)) == pytest.approx(vendi_score(vectors), rel=1e-5)


def test_mean_cosine_is_that_of_all_pairs():
    vectors = draw_vectors(9, 6)
    pairs = [float(vectors[i] @ vectors[j]) for i in range(9) for j in range(i)]
    assert mean_cosine(vectors) == pytest.approx(np.mean(pairs))
    assert mean_cosine(np.eye(3)[[0, 0]]) == pytest.approx(1)


@pytest.mark.parametrize(("measure", "n"), [(vendi_score, 0), (mean_cosine, 1)])
def test_too_few_vectors_have_no_measure(measure, n):
    with pytest.raises(NotMeasuredError, match=f"given {n}"):
        measure(np.eye(3)[:n])


@pytest.mark.parametrize("measure", [vendi_score, mean_cosine])
def test_vectors_of_another_length_are_refused(measure):
    with pytest.raises(ValueError, match="vectors of length 1 are needed, given ones of mean squared length 4"):
        measure(2 * np.eye(3))
