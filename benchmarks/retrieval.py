"""What sharding costs and gives: indexing and searching through Ray, beside one process of plain bm25s and plain FAISS.

`python -m benchmarks.retrieval` writes a corpus to size (real texts where `--data` says where they are, the rest drawn
from a Zipfian vocabulary) and measures all contestants on it, each with one thread a worker. Ray's own start is left
out. FAISS works on ready-made vectors; how fast texts become vectors is measured apart.
"""

import argparse
import gzip
import json
import random
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import psutil

from benchmarks.harness import Contestant, Figures, Ratio, report, run_alone, run_rounds
from pipeline.cluster import Cluster
from pipeline.encoder import load_encoder
from pipeline.records import Document, to_table
from pipeline.retrieval.dense import DenseShard, FlatConfig
from pipeline.retrieval.hits import Hits, merge
from pipeline.stages.corpus import DOCUMENTS, build_corpus
from pipeline.stages.index import IndexedShard, build_index
from pipeline.stages.retrieve import RemoteShards, SearchActor
from pipeline.stages.search import Index, Searcher
from pipeline.steps import MANIFEST, Outputs, Plan, Steps
from pipeline.storage import Folder
from pipeline.weights import pin_model
from tests.composing import compose_index

MODULE = "benchmarks.retrieval"
REAL = ("ag_news/keaml_ag_corpus.tsv.gz", "reuters21578/reuters21578.jsonl.gz", "bbc_news/bbc_news.jsonl.gz")
N_FILES = 8
SHARD_DOCUMENTS = 25_000
VOCABULARY, ZIPF_EXPONENT = 200_000, 1.1
"""Words that texts are drawn from, and how steeply their frequencies fall; about as in English news."""
MEDIAN_WORDS, SD_LOG_WORDS = 67, 0.6
"""Of a generated text's length, whose logarithm is normal: as in short news."""
N_QUERIES, QUERY_WORDS, K = 1_000, 6, 100
DIMENSIONS, N_VECTOR_QUERIES = 384, 200
N_ENCODED = 2_000
SMALL = 10
"""The small corpus is so many times smaller."""
SAMPLE_INTERVAL_S = 0.1
WORKER_START_S = 5.0
"""For so long each warm-up task holds its worker, so that no worker takes two of them."""


@dataclass(frozen=True)
class Work:
    """What one contestant has to do."""

    corpus: Path
    """JSON lines, each with a `text`; `queries.json` beside them."""
    n_documents: int
    workers: int


def write_corpus(folder: Path, n_documents: int, data: Path | None, median_words: int) -> None:
    """Write the documents, in files of equal length, and the queries: a few words in a row of some of them."""
    draws = random.Random(0)
    texts = [*(_read_real(data) if data else ())][:n_documents]
    texts += draw_texts(n_documents - len(texts), median_words)
    draws.shuffle(texts)
    size = -(-n_documents // N_FILES)
    for number in range(N_FILES):
        lines = (json.dumps({"text": text}) for text in texts[number * size : (number + 1) * size])
        (folder / f"{number}.jsonl").write_text("\n".join(lines) + "\n")
    queries = []
    for text in draws.choices(texts, k=N_QUERIES):
        words = text.split()
        start = draws.randrange(max(1, len(words) - QUERY_WORDS))
        queries.append(" ".join(words[start : start + QUERY_WORDS]))
    (folder / "queries.json").write_text(json.dumps(queries))


def _read_real(data: Path) -> Iterator[str]:
    for name in REAL:
        with gzip.open(data / name, "rt", encoding="utf-8") as lines:
            for number, line in enumerate(lines):
                if name.endswith(".tsv.gz"):
                    if number:  # the header
                        yield line.rstrip("\n").split("\t")[-1]
                else:
                    yield str(json.loads(line)["text"])


def draw_texts(n: int, median_words: int) -> list[str]:
    """Return generated texts, the same each time."""
    generator = np.random.default_rng(0)
    weights = 1 / np.arange(1, VOCABULARY + 1) ** ZIPF_EXPONENT
    lengths = np.exp(generator.normal(np.log(median_words), SD_LOG_WORDS, n)).astype(int) + 1
    drawn = generator.choice(VOCABULARY, size=lengths.sum(), p=weights / weights.sum())
    return [" ".join(f"w{word:x}" for word in words) for words in np.split(drawn, np.cumsum(lengths)[:-1])] if n else []


def measure_plain_bm25(work: Work) -> Figures:
    """One process of bm25s: read, tokenise, index, write; then search what was written."""
    import bm25s

    started = time.perf_counter()
    documents = [
        json.loads(line) for path in sorted(work.corpus.glob("*.jsonl")) for line in path.read_text().splitlines()
    ]
    tokens = bm25s.tokenize([document["text"] for document in documents], stopwords="en", show_progress=False)
    model = bm25s.BM25(k1=1.5, b=0.75, method="lucene")
    model.index(tokens, show_progress=False)
    with tempfile.TemporaryDirectory() as folder:
        model.save(folder, corpus=documents, show_progress=False)
        indexed = time.perf_counter()
        model = bm25s.BM25.load(folder, load_corpus=True, mmap=True)
        queries = _read_queries(work)
        begun = time.perf_counter()
        tokens = bm25s.tokenize(queries, stopwords="en", show_progress=False)
        model.retrieve(tokens, k=K, show_progress=False, n_threads=0)
        ended = time.perf_counter()
    return _describe(work, indexed - started, len(queries) / (ended - begun), _measure_peak_here())


def measure_ours_bm25(work: Work) -> Figures:
    """The steps of `ray_jobs/index.py`, then an actor for each worker that holds its part of the index."""
    with tempfile.TemporaryDirectory() as root:
        config = compose_index(
            [
                "corpus=jsonl",
                "corpus.paths=['*.jsonl']",
                f"corpus.root={work.corpus}",
                f"corpus.shard_documents={SHARD_DOCUMENTS}",
                # Neither does the plain process clean or cut.
                "corpus.cleaning={html: false, unicode: false}",
                "corpus.cutting.tokenizer=null",
                f"root={root}",
                f"scale.num_cpus={work.workers}",
                "tracking=none",
            ]
        )
        steps = Steps(Folder.at(root))
        with Cluster(config.scale, steps.root, root_is_shared=False) as cluster:
            cluster.join()
            _start_workers(work.workers)
            with _watching_workers() as peak:
                started = time.perf_counter()
                corpus = build_corpus(config.corpus, None, steps, cluster)
                built = build_index(config.retriever, corpus, config.scale.indexing, config.seed, steps, cluster)
                indexed = time.perf_counter()
            index, queries = Index.read(built.folder), _read_queries(work)
            searcher = Searcher(index, _start_search(index, work.workers), K)
            searcher.search(queries[:1])
            begun = time.perf_counter()
            for start in range(0, len(queries), config.scale.search.batch_queries):
                searcher.search(queries[start : start + config.scale.search.batch_queries])
            ended = time.perf_counter()
        merging = _time_merging(
            [partial(index.open_shard(number).search_words, queries, K) for number in range(len(index.shards))]
        )
        sizes = _measure_steps(Path(root), work.n_documents)
    return {**_describe(work, indexed - started, len(queries) / (ended - begun), peak()), **merging, **sizes}


def measure_plain_flat(work: Work) -> Figures:
    """One process of FAISS: add, write; then search."""
    import faiss

    faiss.omp_set_num_threads(1)
    vectors, queries = _draw_vectors(work.n_documents), _draw_vectors(N_VECTOR_QUERIES, seed=1)
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        index = faiss.IndexFlatIP(DIMENSIONS)
        index.add(vectors)
        faiss.write_index(index, f"{folder}/index.faiss")
        indexed = time.perf_counter()
        index.search(queries, K)
        ended = time.perf_counter()
    return _describe(work, indexed - started, len(queries) / (ended - indexed), _measure_peak_here())


def measure_ours_flat(work: Work) -> Figures:
    """A step for each shard's vectors, then an actor for each worker that holds its part of them."""
    vectors, queries = _draw_vectors(work.n_documents), _draw_vectors(N_VECTOR_QUERIES, seed=1)
    with tempfile.TemporaryDirectory() as root:
        config = compose_index(
            ["corpus=ag_news", "retriever=dense", f"root={root}", f"scale.num_cpus={work.workers}", "tracking=none"]
        )
        steps = Steps(Folder.at(root))
        starts = range(0, work.n_documents, SHARD_DOCUMENTS)
        for start in starts:
            np.save(f"{root}/{start}.npy", vectors[start : start + SHARD_DOCUMENTS])
            ids = range(start, min(start + SHARD_DOCUMENTS, work.n_documents))
            documents = to_table(Document, [Document(f"{number:09d}", "", "", {}) for number in ids])
            (steps.root / "steps" / "shard" / f"{start}").write_mappable(DOCUMENTS, documents)
        plans = [
            Plan("vectors", partial(_keep_vectors, f"{root}/{start}.npy"), {}, {"": str(start)}, ()) for start in starts
        ]
        with Cluster(config.scale, steps.root, root_is_shared=False) as cluster:
            cluster.join()
            _start_workers(work.workers)
            with _watching_workers() as peak:
                started = time.perf_counter()
                made = cluster.fulfil("keep vectors", plans, steps.root)
                indexed = time.perf_counter()
            shards = tuple(
                IndexedShard(f"{start}", 0, vectors=step.fingerprint) for start, step in zip(starts, made, strict=True)
            )
            index = Index(steps.root / "steps" / "index" / "0", config.retriever, None, shards)
            opened = _start_search(index, work.workers)
            opened.search_vectors(queries[:1], K)
            begun = time.perf_counter()
            opened.search_vectors(queries, K)
            ended = time.perf_counter()
        merging = _time_merging(
            [partial(index.open_shard(number).search_vectors, queries, K) for number in range(len(shards))]
        )
    return {**_describe(work, indexed - started, len(queries) / (ended - begun), peak()), **merging}


def _keep_vectors(path: str, folder: Folder) -> Outputs:
    with folder.filling("vectors") as target:
        DenseShard(np.load(path), FlatConfig(kind="flat")).save(target)
    return Outputs()


def measure_encoder(work: Work) -> Figures:
    """How fast the offline encoder makes vectors of texts."""
    import torch

    torch.set_num_threads(1)
    config = compose_index(["corpus=jsonl", "corpus.paths=[x]", "retriever=dense"]).retriever.encoder
    encoder = load_encoder(pin_model(config.model, config.revision), config, "cpu")
    paths = sorted(work.corpus.glob("*.jsonl"))
    texts = [json.loads(line)["text"] for path in paths for line in path.read_text().splitlines()][:N_ENCODED]
    encoder.encode_documents(texts[: config.batch_size])
    started = time.perf_counter()
    encoder.encode_documents(texts)
    duration_s = time.perf_counter() - started
    return {"encode_documents_per_s": len(texts) / duration_s, "encode_ms_per_document": 1e3 * duration_s / len(texts)}


CONTESTANTS: dict[str, Callable[[Work], Figures]] = {
    "plain": measure_plain_bm25,
    "ours": measure_ours_bm25,
    "plain/flat": measure_plain_flat,
    "ours/flat": measure_ours_flat,
    "encoder": measure_encoder,
}


def _describe(work: Work, index_s: float, queries_per_s: float, peak_mb: float) -> Figures:
    return {
        "index_documents_per_s": work.n_documents / index_s,
        "index_ms_per_document": 1e3 * index_s / work.n_documents,
        "search_queries_per_s": queries_per_s,
        "peak_memory_mb": peak_mb,
    }


def _measure_steps(root: Path, n_documents: int) -> Figures:
    """Return what each kind of step takes of the disk, and of a worker's time."""
    figures: dict[str, float] = {}
    for step in ("documents", "shard", "terms", "bm25"):
        files = [path for path in (root / "steps" / step).rglob("*") if path.is_file()]
        manifests = [json.loads(path.read_text()) for path in files if path.name == MANIFEST]
        figures[f"{step}_bytes_per_document"] = sum(path.stat().st_size for path in files) / n_documents
        figures[f"{step}_ms_per_document"] = 1e3 * sum(m["duration_s"] for m in manifests) / n_documents
    return figures


def _start_workers(n: int) -> None:
    """Have each of Ray's workers import what it will run, as the plain process has before its clock starts."""
    import ray

    ray.get([ray.remote(num_cpus=1)(_import).remote() for _ in range(n)])


def _import() -> None:
    import bm25s  # noqa: F401
    import faiss  # noqa: F401
    import scipy.sparse  # noqa: F401

    time.sleep(WORKER_START_S)


def _start_search(index: Index, workers: int) -> RemoteShards:
    """Return an index's shards, shared among as many actors as there are workers, each open already."""
    import ray

    actor = ray.remote(num_cpus=1)(SearchActor)
    numbers = range(len(index.shards))
    actors = [actor.remote(index, numbers[n::workers], False) for n in range(min(workers, len(numbers)))]
    ray.get([actor.__ray_ready__.remote() for actor in actors])
    return RemoteShards(actors)


def _time_merging(searches: Sequence[Callable[[], list[Hits]]]) -> Figures:
    """Return what one process takes to search all shards and to make one ranking of what they find."""
    started = time.perf_counter()
    found = [search() for search in searches]
    searched = time.perf_counter()
    rankings = [merge(hits, K) for hits in zip(*found, strict=True)]
    merged = time.perf_counter()
    return {
        "merge_ms_per_query": 1e3 * (merged - searched) / len(rankings),
        "search_and_merge_ms_per_query": 1e3 * (merged - started) / len(rankings),
    }


def _read_queries(work: Work) -> list[str]:
    queries: list[str] = json.loads((work.corpus / "queries.json").read_text())
    return queries


def _draw_vectors(n: int, seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((n, DIMENSIONS), dtype=np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def _measure_peak_here() -> float:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


@contextmanager
def _watching_workers() -> Iterator[Callable[[], float]]:
    """Give what says the most memory, in MB, that one worker of Ray had while the body ran; shared pages left out."""
    peak, is_over = 0.0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not is_over.wait(SAMPLE_INTERVAL_S):
            for process in psutil.Process().children(recursive=True):
                try:
                    if process.name().startswith("ray::"):
                        peak = max(peak, process.memory_full_info().uss / 1e6)
                except psutil.Error:  # ended meanwhile
                    continue

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield lambda: peak
    finally:
        is_over.set()
        watcher.join()


def list_ratios(n_documents: int) -> list[Ratio]:
    """Return what ours is measured by; names without a kind are of BM25."""
    rate, cost = "index_documents_per_s", "index_ms_per_document"
    ratios = [
        Ratio("index@1worker", rate, "ours@1worker", "plain"),
        Ratio("index@2workers", rate, "ours@2workers", "plain"),
        Ratio("search@1worker", "search_queries_per_s", "ours@1worker", "plain"),
        Ratio("merge_share", "merge_ms_per_query", "ours@1worker", "ours@1worker", "search_and_merge_ms_per_query"),
        Ratio(
            f"growth@{_round(n_documents)}/{_round(n_documents // SMALL)}", cost, "ours@1worker", "ours-small@1worker"
        ),
    ]
    return ratios + [
        Ratio(
            f"{ratio.name}/flat",
            ratio.figure,
            f"{ratio.contestant}/flat",
            f"{ratio.reference}/flat",
            ratio.reference_figure,
        )
        for ratio in ratios
    ]


def _round(n: int) -> str:
    """Return a number as in `2e5`."""
    return f"{n:.0e}".replace("e+0", "e")


def read_arguments() -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--documents", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--words", type=int, default=MEDIAN_WORDS, help="median length of generated texts")
    parser.add_argument("--data", type=Path, help="folder of real texts; without it all are generated")
    parser.add_argument("--contestants", nargs="+", help="only these, as in ours@1worker")
    parser.add_argument("--only", choices=CONTESTANTS, help="measure this one in this process, on a prepared corpus")
    parser.add_argument("--corpus", type=Path, help="prepared corpus")
    parser.add_argument("--workers", type=int, default=1)
    return parser.parse_args()


def main() -> None:
    """Measure all contestants, or the one that `--only` names."""
    arguments = read_arguments()
    if arguments.only:
        work = Work(arguments.corpus, arguments.documents, arguments.workers)
        sys.stdout.write(json.dumps(CONTESTANTS[arguments.only](work)) + "\n")
        return
    with tempfile.TemporaryDirectory() as folder:
        contestants = []
        for kind in ("", "/flat"):
            for name, only, share, workers in (
                ("plain", "plain", 1, 1),
                ("ours@1worker", "ours", 1, 1),
                ("ours@2workers", "ours", 1, 2),
                ("ours-small@1worker", "ours", SMALL, 1),
            ):
                contestants.append((f"{name}{kind}", f"{only}{kind}", arguments.documents // share, workers))
        contestants.append(("encoder", "encoder", arguments.documents, 1))
        measured = []
        for name, only, n_documents, workers in contestants:
            if arguments.contestants and name not in arguments.contestants:
                continue
            corpus = Path(folder) / str(n_documents)
            if not corpus.exists():
                corpus.mkdir()
                write_corpus(corpus, n_documents, arguments.data, arguments.words)
            alone = [f"--only={only}", f"--documents={n_documents}", f"--corpus={corpus}", f"--workers={workers}"]
            measured.append(Contestant(name, partial(run_alone, MODULE, alone)))
        rounds = run_rounds(measured, arguments.rounds)
    names = {contestant.name for contestant in measured}
    report("retrieval", rounds, [r for r in list_ratios(arguments.documents) if {r.contestant, r.reference} <= names])


if __name__ == "__main__":
    main()
