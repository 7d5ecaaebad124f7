"""From a corpus to an index of it, which is a description: which steps hold the parts of each shard."""

from dataclasses import asdict, dataclass
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from pipeline.cluster import Cluster
from pipeline.config import Config
from pipeline.encoder import describe_encoder
from pipeline.evaluation.fusion import FusionConfig
from pipeline.retrieval.bm25 import Bm25Config
from pipeline.retrieval.dense import DenseConfig
from pipeline.retrieval.scale import IndexingConfig
from pipeline.stages.corpus import Corpus
from pipeline.stages.index_vectors import DENSE_CODE, ENCODER_CODE, RECALL_DEPTH, index_vectors
from pipeline.stages.index_words import BM25_CODE, score_words
from pipeline.steps import Outputs, Step, Steps
from pipeline.storage import Folder
from pipeline.weights import pin_model

INDEX = "index.json"


class HybridConfig(Config):
    """Both kinds, and how their rankings become one."""

    kind: Literal["hybrid"]
    bm25: Bm25Config
    dense: DenseConfig
    fusion: FusionConfig


AnyRetrieverConfig = Annotated[Bm25Config | DenseConfig | HybridConfig, Field(discriminator="kind")]
RETRIEVER: TypeAdapter[AnyRetrieverConfig] = TypeAdapter(AnyRetrieverConfig)


@dataclass(frozen=True)
class IndexedShard:
    """Where the parts of one shard of an index lie, each the fingerprint of a step; empty: it has no such part."""

    documents: str
    n_documents: int
    bm25: str = ""
    vectors: str = ""
    faiss: str = ""


def get_bm25(config: AnyRetrieverConfig) -> Bm25Config | None:
    """Return the part of a retriever that matches words."""
    return config.bm25 if isinstance(config, HybridConfig) else config if isinstance(config, Bm25Config) else None


def get_dense(config: AnyRetrieverConfig) -> DenseConfig | None:
    """Return the part of a retriever that compares vectors."""
    return config.dense if isinstance(config, HybridConfig) else config if isinstance(config, DenseConfig) else None


def build_index(
    config: AnyRetrieverConfig, corpus: Corpus, scale: IndexingConfig, seed: int, steps: Steps, cluster: Cluster
) -> Step:
    """Return the index of a corpus, having made what was not there yet.

    Raises:
        ConfigError: The encoder is missing, or an IVF-PQ index has more lists than the corpus has documents.
    """
    bm25, dense = get_bm25(config), get_dense(config)
    encoder = pin_model(dense.encoder.model, dense.encoder.revision) if dense else None

    def produce(folder: Folder) -> Outputs:
        parts: dict[str, list[Step]] = {}
        metrics: dict[str, float] = {}
        if bm25:
            parts["bm25"] = score_words(bm25, corpus, steps, cluster)
        if dense and encoder:
            found = index_vectors(dense, encoder, corpus, scale, seed, steps, cluster)
            parts["vectors"] = found.vectors
            if found.recall is not None:
                parts["faiss"] = found.faiss
                metrics[f"recall@{RECALL_DEPTH}"] = found.recall
        shards = [
            IndexedShard(
                shard.fingerprint,
                shard.n_documents,
                **{name: made[number].fingerprint for name, made in parts.items()},
            )
            for number, shard in enumerate(corpus.shards)
        ]
        folder.write_json(
            INDEX,
            {
                "corpus": corpus.step.fingerprint,
                "retriever": config.model_dump(mode="json"),
                "model": asdict(encoder) if encoder else None,
                "encoder": describe_encoder(encoder, dense.encoder) if dense and encoder else None,
                "shards": [asdict(shard) for shard in shards],
            },
        )
        counts = {"documents": sum(shard.n_documents for shard in shards), "shards": len(shards)}
        return Outputs(counts=counts, metrics=metrics)

    return steps.run(
        "index",
        produce,
        arm="",
        config={"retriever": config, "seed": seed},
        inputs={"corpus": corpus.step.fingerprint, "encoder": encoder.identity if encoder else ""},
        code=[__name__, *BM25_CODE, *ENCODER_CODE, *DENSE_CODE],
    )
