"""From files to the shards of a corpus: read, cleaned, cut, without duplicates.

Files are read in parallel, a step for each part of them. What is a duplicate is decided over all parts at once, the
earlier document staying, so that files which are added behind the others change no shard but their own.
"""

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.cluster import Cluster
from pipeline.errors import SourceError
from pipeline.identity import digest
from pipeline.quality.minhash import find_near_duplicates, sign
from pipeline.records import Document, to_table
from pipeline.sources.cleaning import clean
from pipeline.sources.corpora import identify_lists, list_files, read_documents
from pipeline.sources.corpus_kinds import AnyCorpusConfig, HubConfig
from pipeline.sources.cutting import Cutter, pin_tokenizer
from pipeline.sources.streams import Broken, RawDocument, measure_file
from pipeline.sources.tables import file_digest
from pipeline.steps import Outputs, Plan, Step, Steps
from pipeline.storage import Folder
from pipeline.weights import PinnedModel

LOG = logging.getLogger(__name__)
IDS, BROKEN, PIECES, SHARDS, DOCUMENTS = "ids.parquet", "broken.json", "pieces.json", "shards.json", "documents.arrow"
SIGNATURES = "signatures.parquet"
N_BROKEN_KEPT = 100
"""Broken lines of one part that are told; the rest is counted."""
N_BROKEN_SHOWN = 5
BATCH_DOCUMENTS = 256
"""Documents that are cut with one call of the tokenizer."""
_SIGNING = (__name__, "pipeline.quality.minhash")
_READERS = (
    "cleaning",
    "corpora",
    "corpus_formats",
    "cutting",
    "delimited",
    "hub",
    "published",
    "stackexchange",
    "streams",
)
_READING = (__name__, *(f"pipeline.sources.{name}" for name in _READERS))
SMALL_FILE_BYTES, PART_BYTES = 2**20, 2**26
"""Smaller files than the one are read together, up to the other: a corpus may be a million files, or one."""


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
    tokenizer = pin_tokenizer(config.cutting)
    inputs = {**identify_lists(config), "tokenizer": tokenizer.identity if tokenizer else ""}
    plans = [
        Plan("documents", partial(_read_part, part, config, tokenizer), config, {**inputs, **files}, _READING)
        for part, files in _identify_parts(config, data_root)
    ]
    read = cluster.fulfil("read corpus", plans, steps.root)

    def produce(folder: Folder) -> Outputs:
        counts: Counter[str] = Counter()
        for step in read:
            counts.update(step.manifest["counts"])
        _check_broken(counts, read, config)
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
        code=[__name__, "pipeline.quality.minhash"],
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


def _identify_parts(config: AnyCorpusConfig, data_root: str | None) -> list[tuple[list[str], dict[str, str]]]:
    """Return the files that are read together, and what identifies their contents."""
    files = list_files(config, data_root)
    if isinstance(config, HubConfig):  # each location holds the commit
        return [([location], {"file 0": location}) for location in files]
    parts: list[list[str]] = []
    room = 0
    for location in files:
        size = measure_file(location)
        is_small = size < SMALL_FILE_BYTES
        if not parts or not is_small or size > room:
            parts.append([])
            room = PART_BYTES if is_small else -1
        parts[-1].append(location)
        room -= size
    with ThreadPoolExecutor() as threads:
        digests = dict(zip(files, threads.map(file_digest, files), strict=True))
    return [(part, {f"file {number}": digests[path] for number, path in enumerate(part)}) for part in parts]


def _read_part(part: Sequence[str], config: AnyCorpusConfig, tokenizer: PinnedModel | None, folder: Folder) -> Outputs:
    """Read some files into pieces of raw documents; runs on a worker."""
    counts: Counter[str] = Counter(files=len(part))
    broken: list[dict[str, Any]] = []
    ids: list[pa.Table] = []
    pieces: list[dict[str, Any]] = []
    cutter = Cutter(config.cutting, tokenizer)
    pending: list[Document] = []

    def write() -> None:
        name = f"{len(pieces):05d}.parquet"
        table = to_table(Document, pending)
        folder.write_table(name, table)
        # Under ids of our own, an id is what a text is digested to.
        contents = [digest(d.text) if config.ids == "own" else d.document_id for d in pending]
        ids.append(table.select(["document_id", "source"]).append_column("content", pa.array(contents, pa.string())))
        described = [[d.document_id, content, d.extras] for d, content in zip(pending, contents, strict=True)]
        pieces.append({"name": name, "rows": len(pending), "digest": digest(described)})
        counts["documents"] += len(pending)
        pending.clear()

    for document in _cut_documents(part, config, cutter, counts, broken):
        pending.append(document)
        if len(pending) == config.shard_documents:
            write()
        if config.limit is not None and counts["documents"] + len(pending) >= config.limit:
            break
    if pending or not pieces:
        write()
    folder.write_table(IDS, pa.concat_tables(ids))
    folder.write_json(PIECES, pieces)
    folder.write_json(BROKEN, broken)
    return Outputs(counts=dict(counts))


def _cut_documents(
    part: Sequence[str],
    config: AnyCorpusConfig,
    cutter: Cutter,
    counts: Counter[str],
    broken: list[dict[str, Any]],
) -> Iterator[Document]:
    batch: list[tuple[str, RawDocument]] = []

    def cut() -> Iterator[Document]:
        texts = [clean(raw.text, config.cleaning) for _, raw in batch]
        for (name, raw), cut_text in zip(batch, cutter.cut_all(texts), strict=True):
            counts["too_short"] += cut_text.n_short
            for number, text in enumerate(cut_text.pieces):
                own_id = raw.own_id if len(cut_text.pieces) == 1 else f"{raw.own_id}#{number}"
                document_id = own_id if config.ids == "own" else digest(text)
                yield Document(document_id, text, f"{name}:{raw.line}", raw.extras)
        batch.clear()

    for location in part:
        name = PurePosixPath(location).name
        for found in read_documents(config, location):
            counts["lines"] += 1
            if isinstance(found, Broken):
                counts["broken"] += 1
                if len(broken) < N_BROKEN_KEPT:
                    broken.append({"file": name, "line": found.line, "reason": found.reason})
                continue
            batch.append((name, found))
            if len(batch) == BATCH_DOCUMENTS:
                yield from cut()
    yield from cut()


def _check_broken(counts: Mapping[str, int], read: Sequence[Step], config: AnyCorpusConfig) -> None:
    n_broken, n_lines = counts.get("broken", 0), counts.get("lines", 0)
    if not n_broken:
        return
    shown: list[str] = []
    for step in read:
        if len(shown) < N_BROKEN_SHOWN:
            shown += [f"  {b['file']}, line {b['line']}: {b['reason']}" for b in step.folder.read_json(BROKEN)]
    told = f"{n_broken:,} of {n_lines:,} lines can't be read:\n" + "\n".join(shown[:N_BROKEN_SHOWN])
    if n_broken > config.max_broken_share * n_lines:
        raise SourceError(
            f"{told}\nat most a share of {config.max_broken_share:g} may be so (corpus.max_broken_share); mend the "
            "files, or raise it"
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
