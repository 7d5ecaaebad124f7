"""Dense retrieval: one ranking however a corpus is cut, and true similarities from every kind of index.

What a GPU does is not covered: nothing here can run it.
"""

import shutil
from pathlib import Path

import faiss
import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from pydantic import TypeAdapter

from pipeline.config import validate
from pipeline.encoder import EncoderConfig
from pipeline.errors import ConfigError, StorageError
from pipeline.retrieval.dense import AnyFaissConfig, DenseConfig, DenseShard, build, measure_recall, train
from pipeline.retrieval.hits import Hits, merge

CONF = Path(__file__).parents[2] / "conf"
N_DIMENSIONS = 32
SETTINGS = {
    "flat": {"kind": "flat"},
    "ivf_pq": {
        "kind": "ivf_pq",
        "n_lists": 16,
        "n_subquantizers": 8,
        "n_bits": 5,
        "n_probe": 8,
        "n_training_vectors": 1500,
        "candidates_per_hit": 8,
    },
    "hnsw": {"kind": "hnsw", "m": 16, "ef_construction": 100, "ef_search": 64},
}
KINDS = tuple(SETTINGS)
APPROXIMATE = ("ivf_pq", "hnsw")


def configure(kind, **changes) -> AnyFaissConfig:
    return TypeAdapter(AnyFaissConfig).validate_python(SETTINGS[kind] | changes)


FLAT = configure("flat")


@pytest.fixture(autouse=True)
def _one_thread():
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    yield
    faiss.omp_set_num_threads(before)


def to_unit(vectors):
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def draw_clustered(n, seed, n_clusters=20):
    """Return vectors in clusters, like those of texts."""
    centres = np.random.default_rng(0).normal(size=(n_clusters, N_DIMENSIONS))
    draw = np.random.default_rng(seed)
    return to_unit(centres[draw.integers(n_clusters, size=n)] + 0.6 * draw.normal(size=(n, N_DIMENSIONS)))


def rank_by_hand(vectors, queries, ids, k):
    """Return the ids and scores of each query's best k, from similarities in double precision."""
    scores = (queries.astype(np.float64) @ vectors.astype(np.float64).T).clip(-1, 1).astype(np.float32)
    orders = [np.lexsort((ids, -row))[:k] for row in scores]
    return [(ids[order], row[order]) for order, row in zip(orders, scores, strict=True)]


def search_shards(vectors, ids, queries, k, n_shards, config=FLAT, trained=None):
    """Deal documents out to shards at random, search each, and merge."""
    shard_of = np.random.default_rng(n_shards).integers(n_shards, size=len(vectors))
    found = []
    for number in range(n_shards):
        members = np.flatnonzero(shard_of == number)
        members = members[np.argsort(ids[members])]
        shard = build(vectors[members], config, trained)
        found.append(
            [
                Hits(ids[members][rows], scores, np.full(len(rows), number), rows)
                for rows, scores in shard.search(queries, k)
            ]
        )
    return [merge(hits, k) for hits in zip(*found, strict=True)]


def draw_ids(n, seed=1):
    return np.array([f"{number:016x}" for number in np.random.default_rng(seed).choice(2**62, size=n, replace=False)])


# --- exact search


@pytest.mark.parametrize("n_shards", [1, 3, 8])
def test_shards_rank_as_one_flat_index_does(n_shards):
    vectors, queries = draw_clustered(3000, seed=2), draw_clustered(50, seed=3)
    vectors[2000:2100] = vectors[:100]  # equal documents, in other shards
    queries[:20] = vectors[:20]
    ids = draw_ids(3000)
    index = faiss.IndexFlatIP(N_DIMENSIONS)
    index.add(vectors)
    expected_scores, _ = index.search(queries, 20)

    found = search_shards(vectors, ids, queries, 20, n_shards)
    for hits, of_faiss, (expected_ids, expected) in zip(
        found, expected_scores, rank_by_hand(vectors, queries, ids, 20), strict=True
    ):
        assert hits.scores == pytest.approx(of_faiss, abs=1e-5)
        assert hits.ids.tolist() == expected_ids.tolist()
        assert hits.scores.tolist() == expected.tolist()


@pytest.mark.parametrize("n_shards", [1, 3])
def test_which_of_many_equal_documents_are_cut_off_depends_on_their_ids_alone(n_shards):
    vectors, ids = draw_clustered(900, seed=4), draw_ids(900)
    query = vectors[:1]
    vectors[100:700] = to_unit(query + 0.02 * draw_clustered(1, seed=5))
    found = search_shards(vectors, ids, query, 30, n_shards)[0]
    assert found.ids.tolist() == [ids[0], *np.sort(ids[100:700])[:29]]
    assert len(set(found.scores[1:].tolist())) == 1


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_similarities_that_single_precision_can_not_tell_apart_are_in_order(seed):
    # 3,000 documents within a millionth: closer than FAISS's own sums are to the truth.
    draw = np.random.default_rng(seed)
    query = to_unit(draw.normal(size=(1, 256)))
    near = to_unit(query + 1e-4 * draw.normal(size=(3000, 256)))
    vectors, ids = np.concatenate([near, to_unit(draw.normal(size=(500, 256)))]), draw_ids(3500)
    vectors, ids = vectors[np.argsort(ids)], np.sort(ids)
    (expected, scores) = rank_by_hand(vectors, query, ids, 50)[0]
    assert 1 < len(set(scores.tolist())) < 50  # they differ, and they tie
    rows, found = build(vectors, FLAT).search(query, 50)[0]
    assert ids[rows].tolist() == expected.tolist()
    assert found.tolist() == scores.tolist()


@given(data=st.data())
@settings(deadline=None, max_examples=40)
def test_a_score_depends_on_query_and_document_alone(data):
    n, n_queries = data.draw(st.integers(1, 120)), data.draw(st.integers(1, 40))
    row, asked = data.draw(st.integers(0, n - 1)), data.draw(st.integers(0, n_queries - 1))
    seed = data.draw(st.integers(0, 1000))
    vectors, queries = draw_clustered(n, seed), draw_clustered(n_queries, seed + 1)
    document, query = draw_clustered(2, seed=7)
    vectors[row], queries[asked] = document, query
    alone = build(document[np.newaxis], FLAT).search(query[np.newaxis], 1)[0][1][0]
    rows, scores = build(vectors, FLAT).search(queries, n)[asked]
    assert scores[rows == row].tolist() == [alone]


def test_a_document_is_as_similar_to_itself_as_can_be():
    vectors = draw_clustered(100, seed=8)
    vectors[::2] *= np.float32(1 + 1e-6)  # as long as rounding may leave them
    scores = np.array([scores[0] for _, scores in build(vectors, FLAT).search(vectors, 1)])
    assert scores == pytest.approx(1, abs=1e-6)
    assert scores.max() == 1


# --- approximate search


@pytest.fixture(scope="module")
def corpus():
    faiss.omp_set_num_threads(1)
    vectors, queries = draw_clustered(4000, seed=9, n_clusters=40), draw_clustered(60, seed=10, n_clusters=40)
    trained = {kind: train(vectors[:1500], configure(kind)) for kind in KINDS}
    return vectors, queries, trained


@pytest.mark.parametrize(("kind", "n_shards", "least"), [("ivf_pq", 1, 0.9), ("ivf_pq", 3, 0.9), ("hnsw", 1, 0.97)])
def test_approximate_indexes_find_most_and_score_truly(corpus, kind, n_shards, least):
    vectors, queries, trained = corpus
    ids = draw_ids(len(vectors))
    exact = [expected for expected, _ in rank_by_hand(vectors, queries, ids, 10)]
    found = search_shards(vectors, ids, queries, 10, n_shards, configure(kind), trained[kind])
    recall = measure_recall([hits.ids for hits in found], exact, 10)
    assert least <= recall <= 1
    row_of = {name: row for row, name in enumerate(ids.tolist())}
    for query, hits in zip(queries, found, strict=True):
        assert len(hits) == 10
        similarities = vectors[[row_of[name] for name in hits.ids.tolist()]].astype(np.float64) @ query
        assert hits.scores == pytest.approx(similarities, abs=1e-6)
        assert (np.diff(hits.scores) <= 0).all()


def test_looking_at_more_finds_more(corpus):
    vectors, queries, trained = corpus
    exact = [rows for rows, _ in build(vectors, FLAT).search(queries, 10)]

    def recall(**changes):
        shard = build(vectors, configure("ivf_pq", **changes), trained["ivf_pq"])
        return measure_recall([rows for rows, _ in shard.search(queries, 10)], exact, 10)

    assert recall(n_probe=1, candidates_per_hit=16) < recall(n_probe=4, candidates_per_hit=16)
    assert recall(n_probe=16, candidates_per_hit=1) < recall(n_probe=16, candidates_per_hit=4)
    assert recall(n_probe=16, candidates_per_hit=400) == 1


def test_a_search_that_finds_too_few_gives_what_it_found(corpus):
    vectors, queries, trained = corpus
    shard = build(vectors, configure("ivf_pq", n_probe=1), trained["ivf_pq"])
    rows, scores = shard.search(queries[:1], 4000)[0]
    assert 0 < len(rows) == len(scores) < 4000
    assert rows.min() >= 0
    assert np.isfinite(scores).all()
    # The shard's last document, asked for itself: what is missing must not pass for it.
    assert len(shard.search(vectors[-1:], 100)[0][0]) == 100


def test_all_shards_share_what_was_learned_once(corpus):
    vectors, _, trained = corpus
    first, second = (build(part, configure("ivf_pq"), trained["ivf_pq"]) for part in (vectors[:100], vectors[100:]))
    assert (first.index.ntotal, second.index.ntotal) == (100, 3900)
    assert first.index.quantizer.reconstruct_n().tolist() == second.index.quantizer.reconstruct_n().tolist()
    assert trained["flat"] is trained["hnsw"] is None


def test_learning_twice_gives_the_same(corpus):
    vectors, _, trained = corpus
    assert train(vectors[:1500], configure("ivf_pq")) == trained["ivf_pq"]


def test_what_can_not_be_learned_is_told():
    vectors = draw_clustered(30, seed=11)
    with pytest.raises(ConfigError, match=r"needs 32 documents at least, the corpus gave 30"):
        train(vectors, configure("ivf_pq"))
    with pytest.raises(ConfigError, match="n_subquantizers=7 does not divide the encoder's 32 dimensions"):
        train(vectors, configure("ivf_pq", n_subquantizers=7, n_bits=4))
    with pytest.raises(ValueError, match="built on what `train` gives"):
        build(vectors, configure("ivf_pq"))


@pytest.mark.parametrize("changes", [{"n_probe": 17}, {"n_training_vectors": 31}])
def test_settings_that_contradict_each_other_are_refused(changes):
    with pytest.raises(ValueError, match=next(iter(changes))):
        configure("ivf_pq", **changes)


# --- every kind


@pytest.mark.parametrize("kind", KINDS)
def test_a_loaded_shard_searches_as_the_built_one_and_reads_from_disk(corpus, kind, tmp_path):
    vectors, queries, trained = corpus
    built = build(vectors, configure(kind), trained[kind])
    built.save(tmp_path / "deep" / "shard")
    loaded = DenseShard.load(tmp_path / "deep" / "shard", configure(kind))
    assert len(loaded) == len(vectors)
    for (rows, scores), (expected_rows, expected) in zip(
        loaded.search(queries, 15), built.search(queries, 15), strict=True
    ):
        assert rows.tolist() == expected_rows.tolist()
        assert scores.tolist() == expected.tolist()
    mapped = Path("/proc/self/maps").read_text()
    assert all(str(path) in mapped for path in (tmp_path / "deep" / "shard").iterdir())


@pytest.mark.parametrize("kind", APPROXIMATE)
def test_an_index_may_lie_apart_from_its_vectors(corpus, kind, tmp_path):
    vectors, queries, trained = corpus
    build(vectors, FLAT).save(tmp_path / "vectors")
    built = build(vectors, configure(kind), trained[kind])
    built.save_index(tmp_path / "index")
    assert [path.name for path in (tmp_path / "index").iterdir()] == ["index.faiss"]
    loaded = DenseShard.load(tmp_path / "vectors", configure(kind), tmp_path / "index")
    found, expected = (shard.search(queries, 5) for shard in (loaded, built))
    assert [rows.tolist() for rows, _ in found] == [rows.tolist() for rows, _ in expected]


@pytest.mark.parametrize("kind", KINDS)
def test_fewer_documents_than_asked_for_and_none_at_all(corpus, kind, tmp_path):
    vectors, queries, trained = corpus
    few = build(vectors[:3], configure(kind, **({"n_probe": 16} if kind == "ivf_pq" else {})), trained[kind])
    assert [sorted(rows.tolist()) for rows, _ in few.search(queries[:5], 10)] == [[0, 1, 2]] * 5
    assert [len(rows) for rows, _ in few.search(queries[:5], 0)] == [0] * 5
    assert few.search(queries[:0], 10) == []
    build(vectors[:0], configure(kind), trained[kind]).save(tmp_path)
    empty = DenseShard.load(tmp_path, configure(kind))
    assert [(rows.dtype, len(rows), len(scores)) for rows, scores in empty.search(queries[:2], 10)] == [
        (np.int64, 0, 0)
    ] * 2


def test_vectors_that_give_no_cosine_are_refused():
    vectors = draw_clustered(10, seed=12)
    for row, wrong in ((3, vectors[3] * 1.1), (7, np.zeros(N_DIMENSIONS)), (5, np.full(N_DIMENSIONS, np.nan))):
        broken = vectors.copy()
        broken[row] = wrong
        with pytest.raises(ValueError, match=f"row {row} has"):
            build(broken, FLAT)
        with pytest.raises(ValueError, match=f"row {row} has"):
            build(vectors, FLAT).search(broken, 1)


def test_queries_of_another_width_are_refused():
    with pytest.raises(ValueError, match="queries of 2 dimensions, documents of 32: another encoder"):
        build(draw_clustered(10, seed=13), FLAT).search(np.array([[1, 0]], dtype=np.float32), 1)


def test_a_shard_that_is_not_whole_is_told_by_its_folder(corpus, tmp_path):
    vectors, _, trained = corpus
    with pytest.raises(StorageError, match=f"flat index of {tmp_path}"):
        DenseShard.load(tmp_path, FLAT)
    build(vectors, FLAT).save(tmp_path)
    with pytest.raises(StorageError, match=f"hnsw index of {tmp_path}"):
        DenseShard.load(tmp_path, configure("hnsw"))
    build(vectors[:50], configure("ivf_pq"), trained["ivf_pq"]).save(tmp_path / "other")
    shutil.copy(tmp_path / "other" / "index.faiss", tmp_path)
    with pytest.raises(StorageError, match=r"indexes 50 documents, and .* holds 4000"):
        DenseShard.load(tmp_path, configure("ivf_pq"))
    (tmp_path / "index.faiss").write_bytes((tmp_path / "other" / "index.faiss").read_bytes()[:1000])
    with pytest.raises(StorageError, match="ivf_pq index"):
        DenseShard.load(tmp_path, configure("ivf_pq"))
    (tmp_path / "vectors.npy").write_bytes(b"")
    with pytest.raises(StorageError, match="flat index"):
        DenseShard.load(tmp_path, FLAT)


@pytest.mark.skipif(hasattr(faiss, "StandardGpuResources"), reason="this faiss is for GPUs")
def test_a_gpu_without_faiss_for_gpus_is_told():
    with pytest.raises(ConfigError, match="needs faiss-gpu"):
        build(draw_clustered(10, seed=14), FLAT).to_gpu()


def test_faiss_has_no_graphs_on_gpus():
    with pytest.raises(ConfigError, match="no HNSW index on GPUs"):
        build(draw_clustered(10, seed=15), configure("hnsw")).to_gpu()


def test_recall_worked_by_hand():
    exact = [np.array([1, 2, 3, 4]), np.array([5, 6]), np.array([], dtype=np.int64)]
    found = [np.array([3, 1, 9, 2]), np.array([6]), np.array([8])]
    assert measure_recall(found, exact, 3) == pytest.approx(3 / 5)
    assert measure_recall(found, exact, 1) == 0
    assert measure_recall(exact, exact, 10) == 1
    with pytest.raises(ValueError, match="no recall over 1 queries"):
        measure_recall([np.array([1])], [np.array([])], 10)


# --- conf/


@pytest.mark.parametrize(("option", "kind"), [("dense", "flat"), ("dense_ivf_pq", "ivf_pq"), ("dense_hnsw", "hnsw")])
@pytest.mark.parametrize("encoder", ["minilm", "contriever", "e5_base"])
def test_each_file_composes_with_each_encoder(option, kind, encoder):
    with initialize_config_dir(str(CONF), version_base=None):
        composed = compose(f"retriever/{option}", [f"encoder@retriever.encoder={encoder}"]).retriever
        alone = compose(f"encoder/{encoder}").encoder
    config = validate(DenseConfig, OmegaConf.to_container(composed, resolve=True))
    assert config.faiss.kind == kind
    assert config.encoder == validate(EncoderConfig, OmegaConf.to_container(alone, resolve=True))
