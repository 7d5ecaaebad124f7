"""The dense part of an index: vectors of each shard's documents, and what finds the nearest of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.cluster import Cluster
from pipeline.encoder import Encoder, EncoderConfig, describe_encoder, load_encoder
from pipeline.identity import derive_seed, digest
from pipeline.retrieval.dense import (
    AnyFaissConfig,
    DenseConfig,
    DenseShard,
    FlatConfig,
    IvfPqConfig,
    build,
    measure_recall,
    train,
)
from pipeline.retrieval.scale import IndexingConfig
from pipeline.stages.corpus import Corpus, Shard, read_texts
from pipeline.steps import Outputs, Plan, Step, Steps
from pipeline.storage import Folder
from pipeline.weights import PinnedModel

VECTORS, FAISS, QUANTIZER = "vectors", "faiss", "quantizer.faiss"
"""Folders of a step, and the file of what all shards share."""
ENCODER_CODE = (__name__, "pipeline.encoder")
DENSE_CODE = (__name__, "pipeline.retrieval.dense")
RECALL_QUERIES, RECALL_DEPTH = 200, 10
"""Documents whose own vectors are looked for, and how far down, to tell what an approximate index misses."""


@dataclass(frozen=True)
class DenseSteps:
    """What the dense part of an index consists of."""

    vectors: list[Step]
    """Of each shard."""
    faiss: list[Step]
    """Of each shard; none where all vectors are compared."""
    recall: float | None
    """Share of the nearest documents that are found; None where all are."""


def index_vectors(
    config: DenseConfig,
    model: PinnedModel,
    corpus: Corpus,
    scale: IndexingConfig,
    seed: int,
    steps: Steps,
    cluster: Cluster,
) -> DenseSteps:
    """Return the dense part of an index.

    Raises:
        ConfigError: An IVF-PQ index has more lists than the corpus has documents.
    """
    # The name of the model is no part of what its vectors are.
    encoder = {key: value for key, value in describe_encoder(model, config.encoder).items() if key != "model"}
    plans = [
        Plan(
            "vectors",
            partial(_encode, shard, steps.root, model, config.encoder, scale.gpus_per_task > 0),
            encoder,
            {"shard": shard.fingerprint},
            ENCODER_CODE,
        )
        for shard in corpus.shards
    ]
    encoded = cluster.fulfil("encode", plans, steps.root, cpus=scale.cpus_per_task, gpus=scale.gpus_per_task)
    if isinstance(config.faiss, FlatConfig):
        return DenseSteps(encoded, [], None)
    trained = _train_all(config.faiss, encoded, seed, steps, cluster)
    quantizer = trained.folder if trained else None
    plans = [
        Plan(
            "faiss",
            partial(_build, step.folder, quantizer, config.faiss),
            _describe_built(config.faiss),
            {"vectors": step.fingerprint, "quantizer": trained.fingerprint if trained else ""},
            DENSE_CODE,
        )
        for step in encoded
    ]
    built = cluster.fulfil("index vectors", plans, steps.root)
    return DenseSteps(encoded, built, _measure_recall(config.faiss, encoded, built, corpus, seed, steps, cluster))


def open_dense(root: Folder, config: DenseConfig, vectors: str, faiss: str) -> DenseShard:
    """Return the dense part of one shard, mapped into memory.

    Args:
        root: Where steps are.
        config: That the index was built with.
        vectors: Fingerprint of the step of the shard's vectors.
        faiss: Fingerprint of the step of its index; empty where it has none.
    """
    with (root / "steps" / "vectors" / vectors).as_local(VECTORS) as path:
        if not faiss:
            return DenseShard.load(path, config.faiss)
        with (root / "steps" / "faiss" / faiss).as_local(FAISS) as index:
            return DenseShard.load(path, config.faiss, index)


def _encode(
    shard: Shard, root: Folder, model: PinnedModel, config: EncoderConfig, on_gpu: bool, folder: Folder
) -> Outputs:
    vectors = _load_encoder(model, config, "cuda" if on_gpu else "cpu").encode_documents(read_texts(root, shard))
    with folder.filling(VECTORS) as path:
        DenseShard(vectors, FlatConfig(kind="flat")).save(path)
    return Outputs(counts={"documents": len(vectors)})


@cache  # a worker encodes many shards
def _load_encoder(model: PinnedModel, config: EncoderConfig, device: str) -> Encoder:
    return load_encoder(model, config, device)


def _train_all(
    config: AnyFaissConfig, encoded: Sequence[Step], seed: int, steps: Steps, cluster: Cluster
) -> Step | None:
    """Return the step of what all shards share; None for a kind that learns nothing."""
    if not isinstance(config, IvfPqConfig):
        return None
    plan = Plan(
        "quantizer",
        partial(_train, [step.folder for step in encoded], config, seed),
        {"faiss": _describe_built(config), "seed": seed},
        {f"vectors {number}": step.fingerprint for number, step in enumerate(encoded)},
        DENSE_CODE,
    )
    (trained,) = cluster.fulfil("train quantizer", [plan], steps.root)
    return trained


def _describe_built(config: AnyFaissConfig) -> dict[str, Any]:
    """Return the settings that an index is built by; the others are of a search."""
    return config.model_dump(exclude={"n_probe", "candidates_per_hit", "ef_search"})


def _train(encoded: Sequence[Folder], config: IvfPqConfig, seed: int, folder: Folder) -> Outputs:
    """Learn from a sample to which each shard gives as many vectors as it has of all."""
    generator = np.random.default_rng(derive_seed(seed, "quantizer"))
    share = min(1.0, config.n_training_vectors / sum(len(_read_vectors(source)) for source in encoded))
    sample = []
    for source in encoded:
        vectors = _read_vectors(source)
        rows = generator.choice(len(vectors), size=round(share * len(vectors)), replace=False)
        sample.append(vectors[np.sort(rows)])
    if trained := train(np.concatenate(sample), config):
        folder.write_bytes(QUANTIZER, trained)
    return Outputs(counts={"vectors": sum(map(len, sample))})


def _build(encoded: Folder, trained: Folder | None, config: AnyFaissConfig, folder: Folder) -> Outputs:
    index = build(_read_vectors(encoded), config, trained.read_bytes(QUANTIZER) if trained else None)
    with folder.filling(FAISS) as path:
        index.save_index(path)
    return Outputs()


def _measure_recall(
    config: AnyFaissConfig,
    encoded: Sequence[Step],
    built: Sequence[Step],
    corpus: Corpus,
    seed: int,
    steps: Steps,
    cluster: Cluster,
) -> float:
    """Return the share of some documents' nearest ones that an approximate index finds."""
    sizes = np.array([shard.n_documents for shard in corpus.shards])
    starts = np.cumsum(sizes) - sizes
    generator = np.random.default_rng(derive_seed(seed, "recall"))
    drawn = np.sort(generator.choice(sizes.sum(), size=min(RECALL_QUERIES, int(sizes.sum())), replace=False))
    queries = np.concatenate(
        [
            _read_vectors(step.folder)[drawn[(drawn >= start) & (drawn < start + size)] - start]
            for step, start, size in zip(encoded, starts, sizes, strict=True)
        ]
    )
    plans = [
        Plan(
            "nearest",
            partial(_find_nearest, queries, vectors.folder, index.folder, config),
            config,
            {"vectors": vectors.fingerprint, "index": index.fingerprint, "queries": digest(drawn.tolist())},
            DENSE_CODE,
        )
        for vectors, index in zip(encoded, built, strict=True)
    ]
    found = [step.folder for step in cluster.fulfil("measure recall", plans, steps.root)]
    exact, approximate = (_merge_nearest(found, kind, starts) for kind in ("exact", "approximate"))
    return measure_recall(approximate, exact, RECALL_DEPTH)


def _find_nearest(
    queries: npt.NDArray[np.float32], encoded: Folder, built: Folder, config: AnyFaissConfig, folder: Folder
) -> Outputs:
    with encoded.as_local(VECTORS) as vectors, built.as_local(FAISS) as index:
        shards = {
            "exact": DenseShard.load(vectors, FlatConfig(kind="flat")),
            "approximate": DenseShard.load(vectors, config, index),
        }
        for kind, shard in shards.items():
            found = shard.search(queries, RECALL_DEPTH)
            folder.write_json(f"{kind}.json", [[rows.tolist(), scores.tolist()] for rows, scores in found])
    return Outputs()


def _merge_nearest(found: Sequence[Folder], kind: str, starts: npt.NDArray[np.int64]) -> list[npt.NDArray[np.int64]]:
    """Return the documents nearest to each query over all shards, each by its place in the whole corpus."""
    merged = []
    for query in zip(*(folder.read_json(f"{kind}.json") for folder in found), strict=True):
        pairs = [
            (-score, int(start) + row)
            for start, (rows, scores) in zip(starts, query, strict=True)
            for row, score in zip(rows, scores, strict=True)
        ]
        merged.append(np.array([place for _, place in sorted(pairs)[:RECALL_DEPTH]], dtype=np.int64))
    return merged


def _read_vectors(encoded: Folder) -> npt.NDArray[np.float32]:
    with encoded.as_local(VECTORS) as path:
        return DenseShard.load(path, FlatConfig(kind="flat")).vectors
