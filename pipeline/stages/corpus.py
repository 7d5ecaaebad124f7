"""From documents to the shards of a corpus, without duplicates.

What is a duplicate is decided over all documents at once, the earlier one staying, so that files which are added behind
the others change no shard but their own.
"""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.cluster import Cluster
from pipeline.errors import SourceError
from pipeline.identity import digest
from pipeline.quality.minhash import find_near_duplicates, sign
from pipeline.sources.corpus_kinds import AnyCorpusConfig, AnyPartConfig, get_parts
from pipeline.stages.documents import BROKEN, IDS, PIECES, plan_documents
from pipeline.steps import Outputs, Plan, Step, Steps
from pipeline.storage import Folder

LOG = logging.getLogger(__name__)
SHARDS, DOCUMENTS, SIGNATURES = "shards.json", "documents.arrow", "signatures.parquet"
N_BROKEN_SHOWN = 5
_SIGNING = (__name__, "pipeline.quality.minhash")


@dataclass(frozen=True)
class Shard:
    """Documents that are indexed together; the folder of its step holds them in ascending order of their ids."""

    fingerprint: str
    """Of its step."""
    n_documents: int


@dataclass(frozen=True)
class Corpus:
    """A corpus, ready to be indexed."""

    step: Step
    shards: tuple[Shard, ...]


@dataclass(frozen=True)
class _Piece:
    """Documents as they were read together, before duplicates are dropped."""

    folder: Folder
    name: str
    digest: str
    dropped: tuple[int, ...]
    """Rows that are duplicates of earlier ones, or beyond the limit."""

    def plan_shard(self) -> Plan:
        """Return the step of the documents that stay."""
        inputs = {"documents": self.digest, "dropped": digest(list(self.dropped))}
        return Plan("shard", partial(_sort_documents, self), {}, inputs, (__name__,))


def build_corpus(config: AnyCorpusConfig, data_root: str | None, steps: Steps, cluster: Cluster) -> Corpus:
    """Return the corpus that a config describes, having read what was not there yet.

    Raises:
        SourceError: There are no files, no documents, too many broken lines, or one id for two documents.
        ConfigError: The tokenizer that documents are cut by is missing.
    """
    parts = get_parts(config)
    plans = {place: plan_documents(part, data_root) for place, part in parts.items()}
    read: list[Step] = []
    for place, part in parts.items():
        of_part = cluster.fulfil(f"read corpus{place}", plans[place], steps.root)
        _check_broken(place, of_part, part)
        read += of_part

    def produce(folder: Folder) -> Outputs:
        counts = _add_counts(read)
        pieces, dropped = _drop_duplicates(read, config, steps.root, cluster)
        sorted_pieces = cluster.fulfil("sort corpus", [piece.plan_shard() for piece in pieces], steps.root)
        shards = [Shard(step.fingerprint, n) for step in sorted_pieces if (n := step.manifest["counts"]["documents"])]
        n_documents = sum(shard.n_documents for shard in shards)
        if counts["documents"] != n_documents + sum(dropped.values()):
            raise AssertionError(f"{counts['documents']} documents in, {n_documents} + {dict(dropped)} out")
        if not n_documents:
            raise SourceError(f"the corpus has no documents: {_describe(counts)}; check its paths, columns and lengths")
        folder.write_json(SHARDS, [asdict(shard) for shard in shards])
        counts["documents_read"] = counts.pop("documents")
        return Outputs(counts={**counts, **dropped, "documents": n_documents, "shards": len(shards)})

    step = steps.run(
        "corpus",
        produce,
        arm="",
        config={"limit": config.limit, "near_duplicates": config.near_duplicates, "ids": config.ids},
        inputs={f"part {number}": step.fingerprint for number, step in enumerate(read)},
        code=_SIGNING,
    )
    return Corpus(step, read_shards(step.folder))


def read_shards(corpus: Folder) -> tuple[Shard, ...]:
    """Return the shards of a finished corpus."""
    return tuple(Shard(**shard) for shard in corpus.read_json(SHARDS))


def open_documents(root: Folder, fingerprint: str) -> pa.Table:
    """Return a shard's documents, mapped into memory, so that only what is looked at is read from disk.

    Args:
        root: Where steps are.
        fingerprint: Of the shard's step.
    """
    with (root / "steps" / "shard").as_local(fingerprint) as path, pa.memory_map(str(path / DOCUMENTS)) as source:
        return pa.ipc.open_file(source).read_all()


def read_texts(root: Folder, shard: Shard) -> list[str]:
    """Return the texts of a shard's documents, in ascending order of their ids."""
    texts: list[str] = open_documents(root, shard.fingerprint)["text"].to_pylist()
    return texts


def read_ids(root: Folder, shard: Shard) -> npt.NDArray[np.str_]:
    """Return the ids of a shard's documents, ascending."""
    return np.array(open_documents(root, shard.fingerprint)["document_id"].to_pylist(), dtype=np.str_)


def _add_counts(read: Sequence[Step]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for step in read:
        counts.update(step.manifest["counts"])
    return counts


def _check_broken(place: str, read: Sequence[Step], config: AnyPartConfig) -> None:
    counts = _add_counts(read)
    n_broken, n_lines = counts["broken"], counts["lines"]
    if not n_broken:
        return
    shown: list[str] = []
    for step in read:
        if len(shown) < N_BROKEN_SHOWN:
            shown += [f"  {b['file']}, line {b['line']}: {b['reason']}" for b in step.folder.read_json(BROKEN)]
    told = f"{n_broken:,} of {n_lines:,} lines can't be read:\n" + "\n".join(shown[:N_BROKEN_SHOWN])
    if n_broken > config.max_broken_share * n_lines:
        raise SourceError(
            f"{told}\nat most a share of {config.max_broken_share:g} may be so (corpus{place}.max_broken_share); "
            "mend the files, or raise it"
        )
    LOG.warning("%s\nthey are left out", told)


def _drop_duplicates(
    read: Sequence[Step], config: AnyCorpusConfig, root: Folder, cluster: Cluster
) -> tuple[list[_Piece], Counter[str]]:
    """Return all pieces with the rows that don't stay, and how many those are by reason."""
    found = [(step, piece) for step in read for piece in step.folder.read_json(PIECES)]
    ids = pa.concat_tables([step.folder.read_table(IDS) for step in read])
    dropped: Counter[str] = Counter()
    stays = np.ones(ids.num_rows, dtype=np.bool_)

    def drop(rows: npt.NDArray[np.int64], reason: str) -> None:
        dropped[reason] += int(stays[rows].sum())
        stays[rows] = False

    drop(_find_repeated(ids, config), "exact_duplicates")
    if config.near_duplicates is not None:
        plans = [
            Plan("signatures", partial(_sign, step.folder, piece["name"]), {}, {"documents": piece["digest"]}, _SIGNING)
            for step, piece in found
        ]
        signed = cluster.fulfil("sign corpus", plans, root)
        left = np.flatnonzero(stays)
        signatures = np.concatenate([_read_signatures(step.folder) for step in signed])[left]
        near = find_near_duplicates(signatures, config.near_duplicates)
        drop(left[sorted(near)], "near_duplicates")
    if config.limit is not None:
        drop(np.flatnonzero(stays)[config.limit :], "beyond_limit")
    pieces, start = [], 0
    for step, piece in found:
        rows = np.flatnonzero(~stays[start : start + piece["rows"]])
        pieces.append(_Piece(step.folder, piece["name"], piece["digest"], tuple(rows.tolist())))
        start += piece["rows"]
    return pieces, dropped


def _find_repeated(ids: pa.Table, config: AnyCorpusConfig) -> npt.NDArray[np.int64]:
    """Return the rows whose id stood before.

    Raises:
        SourceError: Under the source's own ids, two documents of one id say different things.
    """
    codes = ids["document_id"].combine_chunks().dictionary_encode().indices.to_numpy()
    _, first, original = np.unique(codes, return_index=True, return_inverse=True)
    rows = np.arange(len(codes))
    repeated: npt.NDArray[np.int64] = rows[first[original] != rows]
    if config.ids == "own":
        earlier = first[original][repeated]
        same = pc.equal(ids["content"].take(repeated), ids["content"].take(earlier)).to_numpy()
        for row, other in zip(repeated[~same], earlier[~same], strict=True):
            raise SourceError(
                f"the id {ids['document_id'][row]} stands for two documents, at {ids['source'][other]} and at "
                f"{ids['source'][row]}; name a column of ids that differ, or use corpus.ids=content"
            )
    return repeated


def _sign(source: Folder, name: str, folder: Folder) -> Outputs:
    """Write the signatures of raw documents; runs on a worker."""
    signatures = sign(source.read_table(name)["text"].to_pylist())
    flat = pa.array(signatures.ravel(), pa.uint32())
    column = pa.FixedSizeListArray.from_arrays(flat, signatures.shape[1])
    folder.write_table(SIGNATURES, pa.table({"signature": column}))
    return Outputs(counts={"documents": len(signatures)})


def _read_signatures(folder: Folder) -> npt.NDArray[np.uint32]:
    column = folder.read_table(SIGNATURES)["signature"].combine_chunks()
    signatures: npt.NDArray[np.uint32] = column.flatten().to_numpy().reshape(len(column), -1)
    return signatures


def _sort_documents(piece: _Piece, folder: Folder) -> Outputs:
    """Write the documents that stay in the order of their ids; runs on a worker."""
    table = piece.folder.read_table(piece.name)
    stays = np.ones(table.num_rows, dtype=np.bool_)
    stays[list(piece.dropped)] = False
    table = table.filter(pa.array(stays)).sort_by("document_id")
    folder.write_mappable(DOCUMENTS, table)
    return Outputs(counts={"documents": table.num_rows})


def _describe(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {n:,}" for name, n in counts.items())
