"""From texts to the documents nearest to them: a cached step, made by actors that hold an index between them."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.cluster import Cluster
from pipeline.identity import digest
from pipeline.progress import DONE, Tally, show_progress
from pipeline.records import Passage
from pipeline.retrieval.hits import Hits, merge
from pipeline.retrieval.scale import SearchConfig
from pipeline.stages.search import Index, LocalShards, Searcher
from pipeline.steps import Outputs, Step, Steps
from pipeline.storage import Folder

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
    "pipeline.stages.search",
    "pipeline.retrieval.search",
    "pipeline.retrieval.hits",
    "pipeline.retrieval.bm25",
    "pipeline.retrieval.dense",
    "pipeline.encoder",
    "pipeline.evaluation.fusion",
)


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

    def read_texts(self, places: Mapping[int, Sequence[int]]) -> dict[int, list[str]]:
        """See `Shards`."""
        return self._shards.read_texts(places)


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

    def read_texts(self, places: Mapping[int, Sequence[int]]) -> dict[int, list[str]]:
        """See `Shards`."""
        import ray

        found: dict[int, list[str]] = {}
        for part in ray.get([actor.read_texts.remote(places) for actor in self.actors]):
            found |= part
        return found

    def _merge(self, references: Sequence[Any], k: int) -> list[Hits]:
        import ray

        return [merge(found, k) for found in zip(*ray.get(references), strict=True)]


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

    logging.getLogger("ray.data").setLevel(logging.ERROR)  # set up on import; its lines would bury ours
    ray.data.DataContext.get_current().enable_progress_bars = False
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
