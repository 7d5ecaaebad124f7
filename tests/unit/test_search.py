"""Searching open shards: however a corpus is cut, the ranking is that of one FAISS index over all its vectors."""

import hashlib
import os
import random
from pathlib import Path

import faiss
import numpy as np
import pyarrow as pa
import pytest

from pipeline.encoder import EncoderConfig, load_encoder
from pipeline.records import Document, to_table
from pipeline.retrieval.bm25 import Bm25Config, score
from pipeline.retrieval.dense import DenseShard, FlatConfig
from pipeline.retrieval.search import OpenShard, search_vectors, search_words
from pipeline.retrieval.terms import TermsConfig, count_terms, merge_statistics
from pipeline.sources.tables import read_rows
from pipeline.weights import pin_model
from tests.composing import compose_index

N_QUERIES, K = 200, 50
NEWS = ("ag_news/keaml_ag_corpus.tsv.gz", "reuters21578/reuters21578.jsonl.gz", "bbc_news/bbc_news.jsonl.gz")


def encode(texts: list[str], cache: Path | None = None) -> np.ndarray:
    """Return MiniLM's vectors of the first 24 tokens; kept in a folder where one is given, since they take minutes."""
    config: EncoderConfig = compose_index(["corpus=ag_news", "retriever=dense"]).retriever.encoder
    config = config.model_copy(update={"max_tokens": 24})
    pinned = pin_model(config.model, config.revision)
    name = hashlib.sha256("\n".join([pinned.identity, str(config), *texts]).encode()).hexdigest()[:16]
    if cache and (cache / f"{name}.npy").exists():
        return np.load(cache / f"{name}.npy")
    vectors = load_encoder(pinned, config, "cpu").encode_documents(texts)
    if cache:
        cache.mkdir(parents=True, exist_ok=True)
        temporary = cache / f"{name}.{os.getpid()}.npy"
        np.save(temporary, vectors)
        temporary.rename(cache / f"{name}.npy")
    return vectors


def cut(texts: list[str], vectors: np.ndarray, n_shards: int) -> list[OpenShard]:
    """Return shards of documents named by their place, in shares that no order of ids explains."""
    config = Bm25Config(
        kind="bm25", variant="lucene", k1=1.5, b=0.75, delta=0.5,
        terms=TermsConfig(stemmer=None, stop_words="en", word_pattern=r"(?u)\b\w\w+\b"),
    )  # fmt: skip
    places = [np.arange(number, len(texts), n_shards) for number in range(n_shards)]
    counts = [count_terms([texts[place] for place in of_shard], config.terms) for of_shard in places]
    statistics = merge_statistics(counts)
    return [
        OpenShard(
            number,
            to_table(Document, [Document(name(place), texts[place], "", {}) for place in of_shard]),
            score(counts[number], statistics, config),
            DenseShard(vectors[of_shard], FlatConfig(kind="flat")),
        )
        for number, of_shard in enumerate(places)
    ]


def name(place: int) -> str:
    return f"{place:08d}"


def search_one_index(vectors: np.ndarray, queries: np.ndarray, k: int) -> list[tuple[list[str], np.ndarray]]:
    """Return what one FAISS index over everything finds, ordered by score, then id."""
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors)
    scores, rows = index.search(queries, k)
    found = []
    for query_scores, query_rows in zip(scores, rows, strict=True):
        # Equal vectors differ in FAISS by the last digits of a sum.
        order = np.lexsort((query_rows, -np.round(query_scores.astype(np.float64), 5)))
        found.append(([name(row) for row in query_rows[order]], query_scores[order]))
    return found


def check_parity(texts: list[str], vectors: np.ndarray) -> None:
    rows = np.random.default_rng(0).choice(len(texts), size=N_QUERIES, replace=False)
    queries = vectors[rows]
    expected = search_one_index(vectors, queries, K)
    one = search_vectors(cut(texts, vectors, 1), queries, K)
    for n_shards in (1, 3, 8):
        shards = cut(texts, vectors, n_shards)
        found = search_vectors(shards, queries, K)
        for hits, (ids, scores), of_one in zip(found, expected, one, strict=True):
            assert np.allclose(hits.scores, scores, atol=1e-5)
            # The same documents, but where the last of them is as near as what was cut off.
            differing = set(hits.ids.tolist()) ^ set(ids)
            assert all(abs(s - scores[-1]) < 1e-5 for i, s in zip(ids, scores, strict=True) if i in differing)
            assert hits.ids.tolist() == of_one.ids.tolist()
            assert (np.lexsort((hits.ids, -hits.scores)) == np.arange(len(hits))).all()
            places = zip(hits.shards, hits.rows, strict=True)
            assert [shards[shard].read_texts([row])[0] for shard, row in places] == [texts[int(i)] for i in hits.ids]


@pytest.fixture(scope="module")
def sample():
    """2,000 documents, some of them equal, with their vectors."""
    draws = random.Random(5)
    words = [
        f"{first}{last}" for first in ("wind", "snow", "rail", "book") for last in ("mill", "road", "shop", "song")
    ]
    texts = [" ".join(draws.choices(words, k=draws.randint(3, 9))) for _ in range(1_900)]
    texts += draws.sample(texts, 100)
    return texts, encode(texts)


def test_shards_rank_vectors_as_one_index_does(sample):
    check_parity(*sample)


@pytest.mark.data
def test_shards_rank_vectors_of_real_news_as_one_index_does(data_root):
    texts = [row.values["text"] for file in NEWS for row in read_rows(f"{data_root}/{file}", {"text": "text"})]
    assert len(texts) == 8_769 + 19_043 + 2_225
    check_parity(texts, encode(texts, cache=Path.home() / ".cache/raystill/vectors"))


def test_words_and_vectors_are_searched_in_the_same_documents(sample):
    texts, vectors = sample
    shards = cut(texts, vectors, 3)
    (by_words,) = search_words(shards, [texts[7]], k=5)
    (by_vectors,) = search_vectors(shards, vectors[7:8], k=5)
    for hits in (by_words, by_vectors):
        assert hits.scores[0] == hits.scores.max()
        assert name(7) in hits.ids.tolist()
        read = [shards[shard].read_texts([row])[0] for shard, row in zip(hits.shards, hits.rows, strict=True)]
        assert read == [texts[int(i)] for i in hits.ids]


def test_more_than_a_shard_holds_gives_what_there_is(sample):
    texts, vectors = sample
    shards = cut(texts[:10], vectors[:10], 3)
    (found,) = search_vectors(shards, vectors[:1], k=1_000)
    assert sorted(found.ids.tolist()) == [name(place) for place in range(10)]
    (found,) = search_words(shards, ["nothing of this stands there"], k=1_000)
    assert len(found) == 0
    assert found.ids.dtype.kind == "U"
    assert isinstance(shards[0].documents, pa.Table)
