import json
import sys
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config import validate
from pipeline.errors import ConfigError, StorageError
from pipeline.retrieval.terms import Statistics, TermCounts, TermsConfig, count_terms, merge_statistics

WORDS = TermsConfig(stemmer=None, stop_words=None, word_pattern=r"(?u)\b\w\w+\b")
TEXTS = st.lists(
    st.lists(
        st.sampled_from(["ant", "Ant", "bee", "école", "über", "zebra", "x", "42", "\U0001f600ok"]), max_size=8
    ).map(" ".join),
    max_size=8,
)


def read_counts(counts):
    """Return the counts as one mapping a document."""
    words = counts.vocabulary.to_pylist()
    dense = counts.counts.toarray()
    return [{word: int(n) for word, n in zip(words, row, strict=True) if n} for row in dense]


def read_frequencies(statistics):
    return {row["term"]: row["documents"] for row in statistics.frequencies.to_pylist()}


def is_same(left, right):
    matrices = [(getattr(left.counts, name), getattr(right.counts, name)) for name in ("indptr", "indices", "data")]
    return (
        left.vocabulary.equals(right.vocabulary)
        and left.counts.shape == right.counts.shape
        and all(np.array_equal(a, b) for a, b in [*matrices, (left.lengths, right.lengths)])
    )


def test_words_are_counted_in_each_document():
    counts = count_terms(["Cats, cats and a dog.", "", "the dog"], WORDS)
    assert read_counts(counts) == [{"and": 1, "cats": 2, "dog": 1}, {}, {"dog": 1, "the": 1}]
    assert counts.lengths.tolist() == [4, 0, 2]
    assert counts.counts.dtype == counts.lengths.dtype == np.int32


def test_stop_words_count_neither_as_terms_nor_as_length():
    counts = count_terms(["the dog and the cat", "the"], WORDS.model_copy(update={"stop_words": "en"}))
    assert read_counts(counts) == [{"cat": 1, "dog": 1}, {}]
    assert counts.lengths.tolist() == [2, 0]


def test_the_pattern_says_what_a_word_is():
    counts = count_terms(["C# a.b"], WORDS.model_copy(update={"word_pattern": r"[^\s.]+"}))
    assert read_counts(counts) == [{"c#": 1, "a": 1, "b": 1}]


def test_words_of_one_stem_are_one_term():
    pytest.importorskip("Stemmer", reason="needs the package PyStemmer")
    counts = count_terms(["connected connections", "connecting"], WORDS.model_copy(update={"stemmer": "english"}))
    assert read_counts(counts) == [{"connect": 2}, {"connect": 1}]
    with pytest.raises(ConfigError, match=r"no stemmer 'klingon'.*german"):
        count_terms(["a"], WORDS.model_copy(update={"stemmer": "klingon"}))


def test_a_stemmer_without_its_package_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "Stemmer", None)
    with pytest.raises(ConfigError, match=r"'english'.*PyStemmer.*terms\.stemmer=null"):
        count_terms(["a"], WORDS.model_copy(update={"stemmer": "english"}))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"word_pattern": "(a"}, "word_pattern: .*no regular expression"),
        ({"word_pattern": "(a)(b)"}, "word_pattern: .*2 groups"),
        ({"stop_words": "klingon"}, "stop_words: .*'en'.*klingon"),
        ({"stop_words": False}, "stop_words: .*False"),
    ],
)
def test_a_wrong_setting_is_told_with_its_path(values, message):
    with pytest.raises(ConfigError, match=message):
        validate(TermsConfig, {**WORDS.model_dump(), **values})


@given(texts=TEXTS)
@settings(deadline=None)
def test_counts_are_those_of_a_counter(texts):
    counts = count_terms(texts, WORDS)
    words = [[word for word in text.lower().replace("\U0001f600", "").split() if len(word) > 1] for text in texts]
    assert read_counts(counts) == [dict(Counter(document)) for document in words]
    assert counts.lengths.tolist() == [len(document) for document in words]
    assert counts.vocabulary.to_pylist() == sorted({word for document in words for word in document})
    statistics = merge_statistics([counts])
    assert read_frequencies(statistics) == Counter(word for document in words for word in set(document))


@given(texts=TEXTS, n_shards=st.integers(1, 4))
@settings(deadline=None)
def test_statistics_do_not_depend_on_how_the_corpus_is_cut(texts, n_shards):
    whole = merge_statistics([count_terms(texts, WORDS)])
    parts = merge_statistics(count_terms(texts[shard::n_shards], WORDS) for shard in range(n_shards))
    assert parts == whole
    assert parts.frequencies["term"].to_pylist() == sorted(read_frequencies(parts))


def test_the_average_length_counts_empty_documents():
    statistics = merge_statistics([count_terms(["aa bb cc", ""], WORDS), count_terms(["aa aa"], WORDS)])
    assert (statistics.n_documents, statistics.n_tokens) == (3, 5)
    assert statistics.average_length == pytest.approx(5 / 3)


@pytest.mark.parametrize("texts", [["one two", "two three three"], ["", ""], []], ids=["texts", "empty texts", "none"])
def test_what_is_saved_is_loaded_as_it_was(tmp_path, texts):
    counts = count_terms(texts, WORDS)
    counts.save(tmp_path / "counts")
    loaded = TermCounts.load(tmp_path / "counts")
    assert is_same(loaded, counts)
    statistics = merge_statistics([loaded])
    assert statistics == merge_statistics([counts])
    statistics.save(tmp_path / "statistics")
    assert Statistics.load(tmp_path / "statistics") == statistics


def test_loaded_counts_stay_on_disk(tmp_path):
    count_terms([" ".join(f"w{n % 5000}" for n in range(20_000))] * 5, WORDS).save(tmp_path)
    before = pa.total_allocated_bytes()
    loaded = TermCounts.load(tmp_path)
    assert pa.total_allocated_bytes() - before < 10_000
    for values in (loaded.counts.data, loaded.counts.indices, loaded.lengths):
        while isinstance(values.base, np.ndarray):
            values = values.base
        assert isinstance(values, np.memmap)


def test_two_counts_of_the_same_texts_are_the_same_files(tmp_path):
    for name in ("one", "two"):
        counts = count_terms(["b a b", "c", ""] * 20, WORDS)
        counts.save(tmp_path / name)
        merge_statistics([counts, counts]).save(tmp_path / name)
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert len(files) == 7
    for name in files:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


@pytest.mark.parametrize("name", ["vocabulary.arrow", "starts.npy", "rows.npy", "values.npy", "lengths.npy"])
@pytest.mark.parametrize("is_cut", [True, False], ids=["cut short", "missing"])
def test_a_broken_folder_is_named(tmp_path, name, is_cut):
    count_terms(["one two", "two"] * 50, WORDS).save(tmp_path)
    path = tmp_path / name
    content = path.read_bytes()
    path.unlink()
    if is_cut:
        path.write_bytes(content[: len(content) // 2])
    with pytest.raises(StorageError, match=f"{tmp_path} doesn't hold"):
        TermCounts.load(tmp_path)


def test_broken_statistics_are_named(tmp_path):
    with pytest.raises(StorageError, match=str(tmp_path)):
        Statistics.load(tmp_path)
    merge_statistics([count_terms(["one"], WORDS)]).save(tmp_path)
    (tmp_path / "totals.json").write_text(json.dumps({"n_documents": 1})[:-1])
    with pytest.raises(StorageError, match=str(tmp_path)):
        Statistics.load(tmp_path)
