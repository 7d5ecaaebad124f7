import json
import random
import re

import numpy as np
import pytest
import ray

from pipeline.cluster import Cluster
from pipeline.errors import ConfigError, SourceError
from pipeline.indexing import index
from pipeline.records import Passage
from pipeline.stages.retrieve import SearchActor, read_retrieved, retrieve
from pipeline.stages.search import Index, open_here
from pipeline.steps import Steps
from pipeline.storage import Folder
from tests.composing import compose_index

pytestmark = pytest.mark.ray

WORDS = [
    f"{first}{last}" for first in ("wind", "solar", "river", "stone", "music") for last in ("mill", "song", "bank")
]


def write_corpus(folder, n_files=3, n_lines=20, seed=1):
    folder.mkdir(parents=True, exist_ok=True)
    draws = random.Random(seed)
    for number in range(n_files):
        texts = [" ".join(draws.choices(WORDS, k=draws.randint(4, 12))) for _ in range(n_lines)]
        lines = [json.dumps({"text": f"{text} {number}x{row}"}) for row, text in enumerate(texts)]
        (folder / f"{number}.jsonl").write_text("\n".join(lines) + "\n")


def compose_small(tmp_path, *overrides, retriever="bm25"):
    return compose_index(
        [
            "corpus=jsonl",
            f"retriever={retriever}",
            f"root={tmp_path}/root",
            f"data.root={tmp_path}/corpus",
            "corpus.paths=['*.jsonl']",
            "corpus.shard_documents=20",
            "tracking=none",
            *overrides,
        ]
    )


def build(tmp_path, *overrides, retriever="bm25"):
    return index(compose_small(tmp_path, *overrides, retriever=retriever)).steps


def read_documents(tmp_path):
    return [
        json.loads(line)["text"]
        for path in sorted((tmp_path / "corpus").iterdir())
        for line in path.read_text().splitlines()
    ]


def count_steps(tmp_path, name):
    return {path.name for path in (tmp_path / "root" / "steps" / name).glob("*") if (path / "manifest.json").exists()}


def test_an_index_finds_what_stands_in_the_corpus(ray_cluster, tmp_path):
    write_corpus(tmp_path / "corpus")
    (corpus, built) = build(tmp_path)
    assert corpus.manifest["counts"]["documents"] == built.manifest["counts"]["documents"] == 60
    assert built.manifest["counts"]["shards"] == 3
    texts = read_documents(tmp_path)
    for word in WORDS:
        holders = {text for text in texts if word in text.split()}
        (found,) = open_here(built.folder, k=100).search([word])
        assert {passage.text for passage in found} == holders
        assert [passage.rank for passage in found] == list(range(1, len(found) + 1))
        assert [p.score for p in found] == sorted((p.score for p in found), reverse=True)


def test_the_same_again_keeps_everything_and_more_files_redo_only_their_own(ray_cluster, tmp_path):
    write_corpus(tmp_path / "corpus")
    first = build(tmp_path)
    again = build(tmp_path)
    assert [step.kept for step in again] == [True, True]
    assert again[-1].fingerprint == first[-1].fingerprint
    counted = count_steps(tmp_path, "terms")
    write_corpus(tmp_path / "corpus", n_files=4)
    added = build(tmp_path)
    assert added[-1].manifest["counts"]["documents"] == 80
    assert counted < count_steps(tmp_path, "terms")
    assert len(count_steps(tmp_path, "terms") - counted) == 1
    # Fresh, in one go, the same comes of it.
    fresh = index(compose_small(tmp_path, f"root={tmp_path}/fresh")).steps
    assert fresh[-1].fingerprint == added[-1].fingerprint
    assert search(fresh[-1], WORDS) == search(added[-1], WORDS)


def search(step, texts, k=5) -> list[list[Passage]]:
    return open_here(step.folder, k).search(texts)


@pytest.mark.parametrize("shard_documents", [7, 1000])
def test_how_a_corpus_is_cut_into_shards_changes_no_ranking(ray_cluster, tmp_path, shard_documents):
    write_corpus(tmp_path / "corpus")
    one = build(tmp_path)[-1]
    other = build(tmp_path, f"corpus.shard_documents={shard_documents}")[-1]
    assert one.fingerprint != other.fingerprint
    assert search(one, WORDS) == search(other, WORDS)


def test_repeated_documents_are_dropped_and_counted(ray_cluster, tmp_path):
    write_corpus(tmp_path / "corpus")
    lines = (tmp_path / "corpus" / "0.jsonl").read_text()
    (tmp_path / "corpus" / "9.jsonl").write_text(lines)
    corpus = build(tmp_path)[0]
    assert corpus.manifest["counts"]["exact_duplicates"] == 20
    assert corpus.manifest["counts"]["documents"] == 60
    near = build(tmp_path, "corpus.near_duplicates=0.8", f"root={tmp_path}/near")[0]
    counts = near.manifest["counts"]
    assert counts["documents"] + counts["exact_duplicates"] + counts["near_duplicates"] == 80


def test_a_limit_takes_the_first_documents(ray_cluster, tmp_path):
    write_corpus(tmp_path / "corpus")
    corpus, built = build(tmp_path, "corpus.limit=25")
    assert corpus.manifest["counts"]["documents"] == 25
    found = {passage.text for passages in search(built, WORDS, k=100) for passage in passages}
    assert found == set(read_documents(tmp_path)[:25])


def test_an_empty_corpus_is_an_error_that_says_so(ray_cluster, tmp_path):
    (tmp_path / "corpus").mkdir()
    with pytest.raises(SourceError, match=re.escape("*.jsonl")):
        build(tmp_path)
    (tmp_path / "corpus" / "0.jsonl").write_text("")
    with pytest.raises(SourceError, match="no documents"):
        build(tmp_path)


def test_broken_lines_are_named_and_too_many_of_them_end_the_run(ray_cluster, tmp_path, caplog):
    write_corpus(tmp_path / "corpus")
    path = tmp_path / "corpus" / "1.jsonl"
    path.write_text(path.read_text() + '{"text": "half a li\n')
    with pytest.raises(SourceError, match=r"1 of 61 lines(.|\n)*1\.jsonl, line 21") as error:
        build(tmp_path, "corpus.max_broken_share=0.001")
    assert "max_broken_share" in str(error.value)
    corpus = build(tmp_path, "corpus.max_broken_share=0.1")[0]
    assert corpus.manifest["counts"]["broken"] == 1
    assert corpus.manifest["counts"]["documents"] == 60
    assert "1.jsonl, line 21" in caplog.text


def test_documents_outside_of_a_share_are_left_out_and_counted(ray_cluster, tmp_path):
    (tmp_path / "corpus").mkdir()
    lines = [json.dumps({"text": f"wind {n}", "asin": f"B{n % 30}"}) for n in range(120)]
    (tmp_path / "corpus" / "0.jsonl").write_text("\n".join(lines))
    found = []
    for low, high in ((0, 0.5), (0.5, 1)):
        share = f"corpus.share={{column: product, low: {low}, high: {high}, seed: 3}}"
        steps = build(tmp_path, "+corpus.columns.extras.product=asin", share)
        counts = steps[0].manifest["counts"]
        assert counts["documents"] + counts["outside_share"] == 120
        found += [passage.text for passage in search(steps[-1], ["wind"], k=120)[0]]
    assert sorted(found) == sorted(f"wind {n}" for n in range(120))
    (tmp_path / "corpus" / "0.csv").write_text('"1","Wind","A mill"\n')
    changes = ["paths=['*.csv']", "share={column: product, low: 0, high: 0.5, seed: 3}"]
    places = [f"data.root={tmp_path}/corpus", f"root={tmp_path}/root", "tracking=none"]
    with pytest.raises(SourceError, match=r"0\.csv, line 1: share.column 'product' .*: class, title"):
        index(compose_index(["corpus=ag_news", *places, *(f"corpus.{change}" for change in changes)]))


def test_a_corpus_of_two_parts_is_one(ray_cluster, tmp_path, caplog):
    folder = tmp_path / "corpus"
    folder.mkdir()
    (folder / "a.tsv").write_text("text\nwind mill\nstone bank\nriver song\n")
    texts = ["music bank", "wind mill", "solar song"]
    (folder / "b.jsonl").write_text("\n".join(json.dumps({"title": "", "text": t, "category": ""}) for t in texts))
    paths = ["corpus=ag_bbc", "corpus.parts.keaml_ag.paths=['*.tsv']", "corpus.parts.bbc_news.paths=['*.jsonl']"]

    def build_both(*overrides, root="root"):
        common = [f"data.root={folder}", f"root={tmp_path}/{root}", "retriever=bm25", "tracking=none"]
        return index(compose_index([*paths, *common, *overrides])).steps

    corpus, built = build_both()
    counts = corpus.manifest["counts"]
    assert (counts["documents_read"], counts["exact_duplicates"], counts["documents"]) == (6, 1, 5)
    (found,) = search(built, [" ".join(WORDS) + " wind stone river music solar mill bank song"])
    assert sorted(p.text for p in found) == sorted({"wind mill", "stone bank", "river song", *texts})
    first, _ = build_both("corpus.limit=4")
    assert first.manifest["counts"]["beyond_limit"] == 1
    assert [step.kept for step in build_both()] == [True, True]
    with (folder / "b.jsonl").open("a") as file:
        file.write('\n{"title": "", "text": "half')
    with pytest.raises(
        SourceError, match=r"1 of 4 lines(.|\n)*b\.jsonl, line 4(.|\n)*corpus\.parts\.bbc_news\.max_broken"
    ):
        build_both()
    build_both("corpus.parts.bbc_news.max_broken_share=0.5")
    with pytest.raises(SourceError, match=r"no file matches '\*\.x'"):
        build_both("corpus.parts.bbc_news.paths=['*.x']", root="other")
    assert not (tmp_path / "other" / "steps").exists()


def test_one_id_of_two_documents_is_an_error_that_names_both(ray_cluster, tmp_path):
    (tmp_path / "corpus").mkdir()
    lines = [{"id": "a", "text": "wind mill"}, {"id": "b", "text": "stone bank"}, {"id": "a", "text": "river song"}]
    (tmp_path / "corpus" / "0.jsonl").write_text("\n".join(map(json.dumps, lines)))
    own = ["corpus.ids=own", "corpus.columns.id=id"]
    with pytest.raises(SourceError, match=r"the id a(.|\n)*0\.jsonl:1(.|\n)*0\.jsonl:3"):
        build(tmp_path, *own)
    (tmp_path / "corpus" / "0.jsonl").write_text("\n".join(map(json.dumps, lines[:2])))
    built = build(tmp_path, *own)[-1]
    assert [[p.passage_id for p in found] for found in search(built, ["wind", "bank"])] == [["a"], ["b"]]


@pytest.fixture
def cluster(ray_cluster, tmp_path):
    config = compose_small(tmp_path)
    with Cluster(config.scale, Folder.at(config.root), root_is_shared=False) as cluster:
        yield cluster


# Each process that encodes takes long to start, so what needs several of them is left to the tier of slow tests.
@pytest.mark.parametrize("retriever", ["bm25", pytest.param("hybrid", marks=pytest.mark.crash)])
def test_a_retrieved_set_is_a_step_and_the_same_as_a_search_in_one_process(cluster, tmp_path, retriever):
    write_corpus(tmp_path / "corpus")
    built = build(tmp_path, retriever=retriever)[-1]
    queries = {f"q{number:03d}": f"{word} {WORDS[-number]}" for number, word in enumerate(WORDS)}
    scale = compose_small(tmp_path, "scale.search.actors=2", "scale.search.batch_queries=4").scale.search
    steps = Steps(Folder.at(tmp_path / "root"))
    step = retrieve(queries, built, 5, scale, steps, cluster)
    expected = open_here(built.folder, 5).search(list(queries.values()))
    assert read_retrieved(step) == {query: tuple(found) for query, found in zip(queries, expected, strict=True)}
    assert retrieve(queries, built, 5, scale, steps, cluster).kept


def test_a_search_actor_that_dies_is_started_again_and_nothing_is_lost(cluster, tmp_path):
    write_corpus(tmp_path / "corpus")
    built = build(tmp_path)[-1]
    actor = ray.remote(num_cpus=1, max_restarts=-1, max_task_retries=-1)(SearchActor)
    actor = actor.remote(Index.read(built.folder), [0, 1, 2], False)
    before = ray.get(actor.search_words.remote(WORDS, 5))
    ray.kill(actor, no_restart=False)
    after = ray.get(actor.search_words.remote(WORDS, 5))
    assert [hits.ids.tolist() for hits in after] == [hits.ids.tolist() for hits in before]
    ray.kill(actor)


@pytest.mark.crash
def test_an_approximate_index_reports_its_recall(ray_cluster, tmp_path):
    write_corpus(tmp_path / "corpus")
    built = build(tmp_path, retriever="dense_hnsw")[-1]
    assert 0.5 < built.manifest["metrics"]["recall@10"] <= 1.0


def test_an_index_whose_encoder_is_another_now_is_refused(ray_cluster, tmp_path):
    write_corpus(tmp_path / "corpus")
    built = build(tmp_path, retriever="dense")[-1]
    described = built.folder.read_json("index.json")
    described["encoder"]["weights"] = "0123456789abcdef"
    built.folder.write_json("index.json", described)
    with pytest.raises(ConfigError, match="0123456789abcdef"):
        open_here(built.folder, k=3)


def test_dense_scores_are_cosines(ray_cluster, tmp_path):
    write_corpus(tmp_path / "corpus")
    built = build(tmp_path, retriever="dense")[-1]
    (text,) = read_documents(tmp_path)[:1]
    (found,) = search(built, [text])
    assert found[0].text == text
    assert np.isclose(found[0].score, 1.0, atol=1e-5)
