"""From texts to the documents nearest to them, through an index whose shards many actors hold."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.cluster import Cluster
from pipeline.errors import ConfigError
from pipeline.evaluation.fusion import fuse
from pipeline.identity import digest
from pipeline.progress import DONE, Tally, show_progress
from pipeline.records import Document, Passage
from pipeline.retrieval.encoder import Encoder, check_encoder, describe_encoder, load_encoder
from pipeline.retrieval.hits import Hits, merge
from pipeline.retrieval.scale import SearchConfig
from pipeline.retrieval.search import OpenShard, search_vectors, search_words
from pipeline.stages.corpus import open_documents
from pipeline.stages.index import (
    INDEX,
    RETRIEVER,
    AnyRetrieverConfig,
    HybridConfig,
    IndexedShard,
    get_bm25,
    get_dense,
)
from pipeline.stages.index_vectors import open_dense
from pipeline.stages.index_words import open_bm25
from pipeline.steps import MANIFEST, Outputs, Step, Steps
from pipeline.storage import Folder
from pipeline.weights import PinnedModel, pin_model

RETRIEVED = "retrieved.parquet"
_SCHEMA = pa.schema(
    [
        ("query_id", pa.string()),
        (
            "passages",
            pa.list_(
                pa.struct(
                    [("passage_id", pa.string()), ("text", pa.string()), ("score", pa.float64()), ("rank", pa.int64())]
                )
            ),
        ),
    ]
)
_CODE = (
    __name__,
    "pipeline.retrieval.search",
    "pipeline.retrieval.hits",
    "pipeline.retrieval.bm25",
    "pipeline.retrieval.dense",
    "pipeline.retrieval.encoder",
    "pipeline.evaluation.fusion",
)


@dataclass(frozen=True)
class Index:
    """A finished index, as its folder describes it."""

    folder: Folder
    retriever: AnyRetrieverConfig
    model: PinnedModel | None
    """The encoder's weights."""
    shards: tuple[IndexedShard, ...]

    @staticmethod
    def read(folder: Folder) -> "Index":
        """Return the index in the folder of its step.

        Raises:
            ConfigError: There is no finished index, or its encoder has changed or is gone.
        """
        if not folder.exists(MANIFEST) or not folder.exists(INDEX):
            raise ConfigError(f"{folder} holds no finished index; give the folder that ray_jobs/index.py ends with")
        described = folder.read_json(INDEX)
        retriever = RETRIEVER.validate_python(described["retriever"])
        model = None
        if dense := get_dense(retriever):
            built_with = PinnedModel(**described["model"])
            model = pin_model(built_with.location, built_with.revision)
            check_encoder(str(folder), described["encoder"], describe_encoder(model, dense.encoder))
        return Index(folder, retriever, model, tuple(IndexedShard(**shard) for shard in described["shards"]))

    @property
    def root(self) -> Folder:
        """Where the steps are that the index is made of."""
        return Folder(re.sub(r"/steps/index/[0-9a-f]+(?=$|\?)", "", self.folder.url))

    def open_shard(self, number: int, on_gpu: bool = False) -> OpenShard:
        """Return one shard, mapped into memory."""
        shard, root = self.shards[number], self.root
        config = get_dense(self.retriever)
        dense = open_dense(root, config, shard.vectors, shard.faiss) if config else None
        return OpenShard(
            number,
            documents=open_documents(root, shard.documents),
            bm25=open_bm25(root, shard.bm25) if shard.bm25 else None,
            dense=dense.to_gpu() if dense and on_gpu else dense,
        )


class Shards(Protocol):
    """All shards of an index, wherever they are open."""

    def search_words(self, texts: Sequence[str], k: int) -> list[Hits]:
        """Return the best k by words for each text."""

    def search_vectors(self, vectors: npt.NDArray[np.float32], k: int) -> list[Hits]:
        """Return the best k by cosine for each vector."""

    def read(self, places: Mapping[int, Sequence[int]]) -> dict[tuple[int, int], Document]:
        """Return documents by shard and row."""


@dataclass(frozen=True)
class LocalShards:
    """Shards that are open in this process."""

    shards: Mapping[int, OpenShard]

    def search_words(self, texts: Sequence[str], k: int) -> list[Hits]:
        """See `Shards`."""
        return search_words(list(self.shards.values()), texts, k)

    def search_vectors(self, vectors: npt.NDArray[np.float32], k: int) -> list[Hits]:
        """See `Shards`."""
        return search_vectors(list(self.shards.values()), vectors, k)

    def read(self, places: Mapping[int, Sequence[int]]) -> dict[tuple[int, int], Document]:
        """See `Shards`."""
        return {
            (number, row): document
            for number, rows in places.items()
            if number in self.shards
            for row, document in zip(rows, self.shards[number].read(rows), strict=True)
        }


class SearchActor:
    """Holds some shards of an index on a worker. Ray starts it anew where it dies, and asks it again."""

    def __init__(self, index: Index, numbers: Sequence[int], on_gpu: bool) -> None:
        # FAISS and torch have as many threads as the actor has CPUs: Ray sets OMP_NUM_THREADS to that.
        self._shards = LocalShards({number: index.open_shard(number, on_gpu) for number in numbers})

    def search_words(self, texts: Sequence[str], k: int) -> list[Hits]:
        """See `Shards`."""
        return self._shards.search_words(texts, k)

    def search_vectors(self, vectors: npt.NDArray[np.float32], k: int) -> list[Hits]:
        """See `Shards`."""
        return self._shards.search_vectors(vectors, k)

    def read(self, places: Mapping[int, Sequence[int]]) -> dict[tuple[int, int], Document]:
        """See `Shards`."""
        return self._shards.read(places)


@dataclass(frozen=True)
class RemoteShards:
    """Shards that actors hold."""

    actors: Sequence[Any]

    def search_words(self, texts: Sequence[str], k: int) -> list[Hits]:
        """See `Shards`."""
        return self._merge([actor.search_words.remote(texts, k) for actor in self.actors], k)

    def search_vectors(self, vectors: npt.NDArray[np.float32], k: int) -> list[Hits]:
        """See `Shards`."""
        return self._merge([actor.search_vectors.remote(vectors, k) for actor in self.actors], k)

    def read(self, places: Mapping[int, Sequence[int]]) -> dict[tuple[int, int], Document]:
        """See `Shards`."""
        import ray

        found: dict[tuple[int, int], Document] = {}
        for part in ray.get([actor.read.remote(places) for actor in self.actors]):
            found |= part
        return found

    def _merge(self, references: Sequence[Any], k: int) -> list[Hits]:
        import ray

        return [merge(found, k) for found in zip(*ray.get(references), strict=True)]


@dataclass
class Searcher:
    """Asks all shards of an index for texts."""

    index: Index
    shards: Shards
    k: int
    device: str = "cpu"

    def search(self, texts: Sequence[str]) -> list[list[Passage]]:
        """Return the k best documents for each text, ranked from 1; fewer where fewer match."""
        found = self._search_all(texts)
        places: dict[int, list[int]] = {}
        for hits in found:
            for number, row in zip(hits.shards.tolist(), hits.rows.tolist(), strict=True):
                places.setdefault(number, []).append(row)
        documents = self.shards.read(places)
        return [
            [
                Passage(document_id, documents[number, row].text, score, rank)
                for rank, (document_id, score, number, row) in enumerate(
                    zip(hits.ids.tolist(), hits.scores.tolist(), hits.shards.tolist(), hits.rows.tolist(), strict=True),
                    start=1,
                )
            ]
            for hits in found
        ]

    def _search_all(self, texts: Sequence[str]) -> list[Hits]:
        config = self.index.retriever
        depth = max(self.k, config.fusion.depth) if isinstance(config, HybridConfig) else self.k
        found: dict[str, list[Hits]] = {}
        if get_bm25(config):
            found["bm25"] = self.shards.search_words(texts, depth)
        if get_dense(config):
            found["dense"] = self.shards.search_vectors(self._encoder.encode_queries(texts), depth)
        if not isinstance(config, HybridConfig):
            (hits,) = found.values()
            return hits
        return [
            _fuse({name: hits[number] for name, hits in found.items()}, config, self.k) for number in range(len(texts))
        ]

    @cached_property
    def _encoder(self) -> Encoder:
        dense = get_dense(self.index.retriever)
        assert dense is not None
        assert self.index.model is not None
        return load_encoder(self.index.model, dense.encoder, self.device)


def _fuse(found: Mapping[str, Hits], config: HybridConfig, k: int) -> Hits:
    """Return what two rankings of one query come to."""
    runs = {name: dict(zip(hits.ids.tolist(), hits.scores.tolist(), strict=True)) for name, hits in found.items()}
    places = {
        document_id: place
        for hits in found.values()
        for document_id, place in zip(
            hits.ids.tolist(), zip(hits.shards.tolist(), hits.rows.tolist(), strict=True), strict=True
        )
    }
    fused = fuse(runs, config.fusion)
    best = list(fused)[:k]
    return Hits(
        np.array(best, np.str_),
        np.array([fused[document_id] for document_id in best], np.float32),
        np.array([places[document_id][0] for document_id in best], np.int64),
        np.array([places[document_id][1] for document_id in best], np.int64),
    )


def open_here(folder: Folder, k: int) -> Searcher:
    """Return a searcher with all shards open in this process.

    Raises:
        ConfigError: There is no finished index, or its encoder has changed or is gone.
    """
    index = Index.read(folder)
    return Searcher(index, LocalShards({n: index.open_shard(n) for n in range(len(index.shards))}), k)


def retrieve(
    queries: Mapping[str, str], index: Step, k: int, scale: SearchConfig, steps: Steps, cluster: Cluster, arm: str = ""
) -> Step:
    """Return the step that holds the k best documents for each query.

    Args:
        queries: Text by id.
        index: The step of an index.
        k: Documents for each query.
        scale: How wide to search.
        steps: Where the step runs or is found.
        cluster: Where actors run.
        arm: What the step belongs to.

    Raises:
        ConfigError: The index's encoder has changed or is gone, or the actors don't fit the cluster.
    """

    def produce(folder: Folder) -> Outputs:
        tally, tables = Tally(), []
        with show_progress(f"retrieve {arm}".strip(), "queries", len(queries), tally.totals):
            for table in _stream(queries, Index.read(index.folder), k, scale, cluster):
                tables.append(table)
                tally.add({DONE: table.num_rows})
        # Batches come as they are finished; the step must not depend on that.
        table = pa.concat_tables(tables) if tables else _SCHEMA.empty_table()
        table = table.sort_by("query_id")
        folder.write_table(RETRIEVED, table)
        n_passages = sum(map(len, table["passages"].to_pylist()))
        return Outputs(counts={"queries": table.num_rows, "passages": n_passages})

    return steps.run(
        "retrieved",
        produce,
        arm=arm,
        config={"k": k},
        inputs={"index": index.fingerprint, "queries": digest(dict(queries))},
        code=_CODE,
    )


def read_retrieved(step: Step) -> dict[str, tuple[Passage, ...]]:
    """Return the passages of each query, best first."""
    rows = step.folder.read_table(RETRIEVED).to_pylist()
    return {row["query_id"]: tuple(Passage(**passage) for passage in row["passages"]) for row in rows}


class SearchBatches:
    """Searches batches of queries as Ray Data hands them on."""

    def __init__(self, index: Index, actors: Sequence[Any], k: int, device: str) -> None:
        self._searcher = Searcher(index, RemoteShards(actors), k, device)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Return the passages of each query."""
        found = self._searcher.search(batch["text"].to_pylist())
        passages = [
            [{"passage_id": p.passage_id, "text": p.text, "score": p.score, "rank": p.rank} for p in ranking]
            for ranking in found
        ]
        return pa.table({"query_id": batch["query_id"], "passages": passages}, schema=_SCHEMA)


def _stream(
    queries: Mapping[str, str], index: Index, k: int, scale: SearchConfig, cluster: Cluster
) -> Iterable[pa.Table]:
    n_actors = min(scale.actors, len(index.shards))
    # One more CPU for whoever encodes the queries and merges what the actors find.
    cluster.check_room(
        "scale.search.{}s_per_actor", cpus=scale.cpus_per_actor * n_actors + 1, gpus=scale.gpus_per_actor * n_actors
    )
    import ray
    import ray.data

    actor = ray.remote(
        num_cpus=scale.cpus_per_actor, num_gpus=scale.gpus_per_actor, max_restarts=-1, max_task_retries=-1
    )(SearchActor)
    numbers = range(len(index.shards))
    actors = [actor.remote(index, numbers[n::n_actors], scale.gpus_per_actor > 0) for n in range(n_actors)]
    table = pa.table({"query_id": list(queries), "text": list(queries.values())})
    batches = [table.slice(start, scale.batch_queries) for start in range(0, table.num_rows, scale.batch_queries)]
    found = ray.data.from_arrow(batches).map_batches(
        SearchBatches,
        batch_size=None,
        batch_format="pyarrow",
        fn_constructor_args=(index, actors, k, "cpu"),
        num_cpus=1,
        compute=ray.data.ActorPoolStrategy(size=1),
    )
    for bundle in found.iter_internal_ref_bundles():
        for block in bundle.blocks:
            yield ray.get(block.ref)
