"""Asking an index: one ranking over all its shards, wherever they are open."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import numpy.typing as npt

from pipeline.encoder import Encoder, check_encoder, describe_encoder, load_encoder
from pipeline.errors import ConfigError
from pipeline.evaluation.fusion import fuse
from pipeline.records import Passage
from pipeline.retrieval.hits import Hits
from pipeline.retrieval.search import OpenShard, search_vectors, search_words
from pipeline.stages.corpus import open_documents
from pipeline.stages.index import INDEX, RETRIEVER, AnyRetrieverConfig, HybridConfig, IndexedShard, get_bm25, get_dense
from pipeline.stages.index_vectors import open_dense
from pipeline.stages.index_words import open_bm25
from pipeline.steps import MANIFEST
from pipeline.storage import Folder
from pipeline.weights import PinnedModel, pin_model


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

    def read_texts(self, places: Mapping[int, Sequence[int]]) -> dict[int, list[str]]:
        """Return the texts of rows of shards, by shard, in the order of the rows."""


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

    def read_texts(self, places: Mapping[int, Sequence[int]]) -> dict[int, list[str]]:
        """See `Shards`."""
        return {
            number: self.shards[number].read_texts(rows) for number, rows in places.items() if number in self.shards
        }


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
        # Each shard gives its texts in the order in which they were asked for above.
        texts_of = {number: iter(read) for number, read in self.shards.read_texts(places).items()}
        return [
            [
                Passage(document_id, next(texts_of[number]), score, rank)
                for rank, (document_id, score, number) in enumerate(
                    zip(hits.ids.tolist(), hits.scores.tolist(), hits.shards.tolist(), strict=True), start=1
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


def open_here(folder: Folder, k: int) -> Searcher:
    """Return a searcher with all shards open in this process.

    Raises:
        ConfigError: There is no finished index, or its encoder has changed or is gone.
    """
    index = Index.read(folder)
    return Searcher(index, LocalShards({n: index.open_shard(n) for n in range(len(index.shards))}), k)


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
