"""Dense retrieval in one shard: FAISS proposes documents, and their cosine similarity decides.

FAISS sums in single precision, in an order that depends on how many queries are asked at once and on where in a shard
a vector lies. Equal vectors in two shards could so differ in the last digit, and a corpus cut in another way would
give another ranking. Here each similarity is computed in double precision from the query and the stored vector alone,
then rounded, for every kind of index: equal vectors tie wherever they are, an approximate index gives true similarities
of what it finds, and only which documents it finds is approximate.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from pipeline.config import Config
from pipeline.encoder import EncoderConfig
from pipeline.errors import ConfigError, StorageError
from pipeline.retrieval.hits import Found

Vectors = npt.NDArray[np.float32]

_VECTORS, _INDEX = "vectors.npy", "index.faiss"
_N_SPARE = 16
"""Rows proposed beyond k, so that the exact search seldom has to ask again."""
_N_BLOCK_VALUES = 65_536
"""Products computed at once: 512 kB, which a core's cache holds."""
_N_BLAS_VALUES = 3_000
"""Numbers in a batch of queries, for each thread, from which on a product of matrices is faster than one of vectors
after the other: measured at 384, 768 and 1,024 dimensions. FAISS 1.15 waits for 128,000 whatever the threads, which on
one thread makes batches of up to 300 queries five times slower; its later versions count threads too."""
_N_GPU_ROWS = 2048
"""The most rows a query that FAISS gives on a GPU."""


class FlatConfig(Config):
    """Exact: every vector is compared."""

    kind: Literal["flat"]


class IvfPqConfig(Config):
    """Approximate and small: vectors as short codes, in lists around centroids of which the nearest are searched."""

    kind: Literal["ivf_pq"]
    n_lists: int = Field(gt=0)
    """In each shard."""
    n_subquantizers: int = Field(gt=0)
    """Parts that a vector is cut into, each with a code of its own; must divide the encoder's dimensions."""
    n_bits: int = Field(gt=0, le=16)
    """Of each code: a document takes n_subquantizers * n_bits / 8 bytes."""
    n_probe: int = Field(gt=0)
    """Lists searched for each query."""
    n_training_vectors: int = Field(gt=0)
    """Sample of the corpus that centroids and codes are learned from; FAISS advises 39 to 256 a list."""
    candidates_per_hit: int = Field(gt=0)
    """Documents that the codes propose for each hit asked for; the most similar of them are the hits."""

    @model_validator(mode="after")
    def _check_sizes(self) -> "IvfPqConfig":
        if self.n_probe > self.n_lists:
            raise ValueError(f"n_probe={self.n_probe} of n_lists={self.n_lists} lists; search at most all")
        if self.n_training_vectors < self.n_centroids:
            raise ValueError(
                f"n_training_vectors={self.n_training_vectors} can't give {self.n_centroids} centroids; raise it to "
                f"{39 * self.n_centroids} or so, or lower n_lists or n_bits"
            )
        return self

    @property
    def n_centroids(self) -> int:
        """Centroids of the largest set that is learned, of lists or of codes; each takes one vector at least."""
        return int(max(self.n_lists, 2**self.n_bits))


class HnswConfig(Config):
    """Approximate and fast: a graph of near neighbours over the whole vectors."""

    kind: Literal["hnsw"]
    m: int = Field(ge=2)
    """Neighbours of each document; twice as many on the lowest level."""
    ef_construction: int = Field(gt=0)
    """Candidates kept while a document's neighbours are looked for."""
    ef_search: int = Field(gt=0)
    """Candidates kept while a query's hits are looked for, or k where that is more."""


AnyFaissConfig = Annotated[FlatConfig | IvfPqConfig | HnswConfig, Field(discriminator="kind")]
"""The union of all kinds of index."""


class DenseConfig(Config):
    """Retrieval by the similarity of vectors."""

    kind: Literal["dense"]
    encoder: EncoderConfig
    faiss: AnyFaissConfig


def train(sample: Vectors, config: AnyFaissConfig) -> bytes | None:
    """Return what all shards share: the centroids and codes of an IVF-PQ index; None for kinds that learn nothing.

    Args:
        sample: Vectors of length 1 from all over the corpus; shape (vectors, dimensions).
        config: The kind of index.

    Raises:
        ConfigError: There are too few vectors, or they can't be cut into that many parts.
    """
    if not isinstance(config, IvfPqConfig):
        return None
    import faiss

    _check_lengths(sample)
    n_vectors, n_dimensions = sample.shape
    if n_vectors < config.n_centroids:
        raise ConfigError(
            f"an IVF-PQ index with n_lists={config.n_lists} and n_bits={config.n_bits} needs {config.n_centroids} "
            f"documents at least, the corpus gave {n_vectors}; lower these, or take the kind flat"
        )
    if n_dimensions % config.n_subquantizers:
        raise ConfigError(
            f"n_subquantizers={config.n_subquantizers} does not divide the encoder's {n_dimensions} dimensions"
        )
    codes = f"IVF{config.n_lists},PQ{config.n_subquantizers}x{config.n_bits}"
    index = faiss.index_factory(n_dimensions, codes, faiss.METRIC_INNER_PRODUCT)
    index.train(sample)
    trained: bytes = faiss.serialize_index(index).tobytes()
    return trained


def build(vectors: Vectors, config: AnyFaissConfig, trained: bytes | None = None) -> "DenseShard":
    """Return a searchable shard. FAISS takes all cores unless `faiss.omp_set_num_threads` was told otherwise.

    Args:
        vectors: One of length 1 for each document, in ascending order of document id; shape (documents, dimensions).
        config: The kind of index.
        trained: What `train` gave.

    Raises:
        ValueError: Vectors are not of length 1, or an IVF-PQ index comes without what `train` gave.
    """
    _check_lengths(vectors)
    match config:
        case FlatConfig():
            return DenseShard(vectors, config)
        case IvfPqConfig():
            import faiss

            if trained is None:
                raise ValueError("an IVF-PQ index is built on what `train` gives, and got none")
            index = faiss.deserialize_index(np.frombuffer(trained, dtype=np.uint8))
        case HnswConfig():
            import faiss

            index = faiss.IndexHNSWFlat(vectors.shape[1], config.m, faiss.METRIC_INNER_PRODUCT)
            index.hnsw.efConstruction = config.ef_construction
    index.add(vectors)
    return DenseShard(vectors, config, index)


@dataclass(frozen=True)
class DenseShard:
    """The vectors of one shard, and what finds the nearest of them."""

    vectors: Vectors
    """Of length 1; shape (documents, dimensions)."""
    config: AnyFaissConfig
    index: Any = None
    """FAISS's; None where all vectors are compared."""
    gpu_index: Any = None

    def __len__(self) -> int:
        return len(self.vectors)

    def save(self, folder: Path) -> None:
        """Write the shard's files into a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        np.save(folder / _VECTORS, self.vectors)
        if self.index is not None:
            self.save_index(folder)

    def save_index(self, folder: Path) -> None:
        """Write what FAISS built, without the vectors, into a folder."""
        import faiss

        folder.mkdir(parents=True, exist_ok=True)
        faiss.write_index(self.index, str(folder / _INDEX))

    @staticmethod
    def load(folder: Path, config: AnyFaissConfig, index_folder: Path | None = None) -> "DenseShard":
        """Return a saved shard; its vectors, lists and graph stay on disk until they are read.

        Args:
            folder: Holds the vectors.
            config: The kind of index, and how it is searched.
            index_folder: Holds what FAISS built, where that was saved by itself.

        Raises:
            StorageError: There is no such shard, or its parts don't belong together.
        """
        import faiss

        # Two flags, because FAISS maps lists one way, and graphs another.
        flags = faiss.IO_FLAG_MMAP_IFC if isinstance(config, HnswConfig) else faiss.IO_FLAG_MMAP
        path = (index_folder or folder) / _INDEX
        try:
            # As a plain array, which numpy handles faster than its own class for mapped ones.
            vectors = np.asarray(np.load(folder / _VECTORS, mmap_mode="r"))
            index = None if isinstance(config, FlatConfig) else faiss.read_index(str(path), flags)
        except (OSError, EOFError, ValueError, RuntimeError) as error:
            raise StorageError(f"cannot read the {config.kind} index of {folder}: {error}; build it again") from error
        if index is not None and index.ntotal != len(vectors):
            raise StorageError(
                f"{path} indexes {index.ntotal} documents, and {folder} holds {len(vectors)}; build it again"
            )
        return DenseShard(vectors, config, index)

    def to_gpu(self) -> "DenseShard":
        """Return the shard with its index on the GPU that this process sees.

        Raises:
            ConfigError: FAISS has no GPU support here, or none for this kind of index.
        """
        import faiss

        if isinstance(self.config, HnswConfig):
            raise ConfigError("FAISS has no HNSW index on GPUs; take the kind flat or ivf_pq there, or search on CPUs")
        if not hasattr(faiss, "StandardGpuResources"):
            raise ConfigError(
                "searching on a GPU needs faiss-gpu, and the faiss installed here is for CPUs; install the extra `gpu` "
                "in place of `cpu`, or search on CPUs"
            )
        index = self.index
        if index is None:
            index = faiss.IndexFlatIP(self.vectors.shape[1])
            index.add(self.vectors)
        return replace(self, gpu_index=faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), 0, index))

    def search(self, queries: Vectors, k: int) -> list[Found]:
        """Return the k rows most similar to each query, of equal ones the earlier first; fewer where there are fewer.

        A flat index is exact, also in which of equal rows are cut off.

        Args:
            queries: Vectors of length 1; shape (queries, dimensions).
            k: Rows wanted for each.

        Raises:
            ValueError: Queries are not of length 1, or of other dimensions than the shard.
        """
        _check_lengths(queries)
        n_dimensions = self.vectors.shape[1]
        if queries.shape[1] != n_dimensions:
            raise ValueError(f"queries of {queries.shape[1]} dimensions, documents of {n_dimensions}: another encoder")
        k = min(k, len(self))
        found: list[Found] = [(np.empty(0, dtype=np.int64), np.empty(0, dtype=np.float32))] * len(queries)
        if k == 0:
            return found
        pending = np.arange(len(queries))
        n_proposed = k * self.config.candidates_per_hit if isinstance(self.config, IvfPqConfig) else k + _N_SPARE
        while len(pending):
            n_proposed = min(n_proposed, len(self))
            scores, rows = self._propose(queries[pending], n_proposed)
            is_settled = self._is_settled(scores, k)
            settled = pending[is_settled]
            for query, hits in zip(settled, self._rank(queries[settled], rows[is_settled], k), strict=True):
                found[query] = hits
            pending = pending[~is_settled]
            n_proposed *= 2
        return found

    def _propose(self, queries: Vectors, n: int) -> tuple[Vectors, npt.NDArray[np.int64]]:
        """Return FAISS's scores and rows, (queries, n) each; rows of -1 fill up what it did not find."""
        import faiss

        index = self.gpu_index if self.gpu_index is not None and n <= _N_GPU_ROWS else self.index
        if index is None:
            faiss.cvar.distance_compute_blas_threshold = _N_BLAS_VALUES * faiss.omp_get_max_threads()
            scores, rows = faiss.knn(queries, self.vectors, n, faiss.METRIC_INNER_PRODUCT)
        else:
            # Set here, because they are no part of a saved index.
            if isinstance(self.config, IvfPqConfig):
                index.nprobe = self.config.n_probe
            elif isinstance(self.config, HnswConfig):
                index.hnsw.efSearch = self.config.ef_search
            scores, rows = index.search(queries, n)
        return scores, rows

    def _is_settled(self, scores: Vectors, k: int) -> npt.NDArray[np.bool_]:
        """Return for which queries no row that was not proposed can be among the best k."""
        n_proposed = scores.shape[1]
        if not isinstance(self.config, FlatConfig) or n_proposed == len(self):
            return np.ones(len(scores), dtype=np.bool_)
        # A sum of d products in single precision is off by d/2 * eps at most (Higham 2002, section 3.1; lengths are 1).
        # Two such sums are compared; twice that, because lengths and the similarity itself are rounded as well.
        margin = 2 * self.vectors.shape[1] * np.finfo(np.float32).eps
        settled: npt.NDArray[np.bool_] = scores[:, k - 1] - scores[:, -1] > margin
        return settled

    def _rank(self, queries: Vectors, rows: npt.NDArray[np.int64], k: int) -> list[Found]:
        """Return the best k of the proposed rows of each query."""
        scores = self._compare(queries, rows)
        best = np.lexsort((rows, -scores))[:, :k]
        found = zip(np.take_along_axis(rows, best, axis=1), np.take_along_axis(scores, best, axis=1), strict=True)
        return [(of_query[of_query >= 0], similarities[of_query >= 0]) for of_query, similarities in found]

    def _compare(self, queries: Vectors, rows: npt.NDArray[np.int64]) -> Vectors:
        """Return the cosine similarity of each query and each row proposed for it, as `rows`; -inf for a row of -1."""
        pairs = rows.ravel()
        query_of = np.repeat(np.arange(len(queries)), rows.shape[1])
        cosines = np.empty(len(pairs))
        n_block = max(1, _N_BLOCK_VALUES // queries.shape[1])
        for start in range(0, len(pairs), n_block):
            block = slice(start, start + n_block)
            # Not a matrix product: there, what a sum stands beside changes its order. Here each pair is summed by
            # itself, over products that double precision holds exactly.
            products = np.multiply(self.vectors[pairs[block]], queries[query_of[block]], dtype=np.float64)
            cosines[block] = products.sum(axis=1)
        cosines = cosines.clip(-1, 1)  # vectors rounded to single precision may be a digit longer than 1
        cosines[pairs < 0] = -np.inf
        return cosines.astype(np.float32).reshape(rows.shape)


def measure_recall(found: Sequence[npt.NDArray[np.generic]], exact: Sequence[npt.NDArray[np.generic]], k: int) -> float:
    """Return the share of the exact top k that an approximate search has in its own, over all queries.

    Args:
        found: Rows or document ids for each query, best first.
        exact: The same of an exact search.
        k: The cut.

    Raises:
        ValueError: The exact search found nothing, so that there is no share.
    """
    n_wanted = sum(len(ids[:k]) for ids in exact)
    if n_wanted == 0:
        raise ValueError(f"no recall over {len(exact)} queries for which an exact search finds nothing")
    shared = sum(int(np.isin(right[:k], ids[:k]).sum()) for ids, right in zip(found, exact, strict=True))
    return shared / n_wanted


def _check_lengths(vectors: Vectors) -> None:
    """Refuse what gives no cosine.

    Raises:
        ValueError: A vector's length is not 1.
    """
    lengths = np.sqrt(np.einsum("nd,nd->n", vectors, vectors))
    if (wrong := np.flatnonzero(~(np.abs(lengths - 1) < 1e-3))).size:
        raise ValueError(f"vectors need a length of 1; row {wrong[0]} has {lengths[wrong[0]]}")
