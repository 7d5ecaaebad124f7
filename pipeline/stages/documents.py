"""From a corpus's files to documents: read, cleaned, cut, named. A step for each part of the files."""

from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa

from pipeline.errors import SourceError
from pipeline.identity import digest
from pipeline.records import Document, to_table
from pipeline.sources.cleaning import clean
from pipeline.sources.corpora import identify_lists, list_files, read_documents
from pipeline.sources.corpus_kinds import AnyPartConfig, HubConfig
from pipeline.sources.cutting import Cutter, pin_tokenizer
from pipeline.sources.streams import Broken, RawDocument, measure_file
from pipeline.sources.tables import file_digest
from pipeline.steps import Outputs, Plan
from pipeline.storage import Folder
from pipeline.weights import PinnedModel

IDS, BROKEN, PIECES = "ids.parquet", "broken.json", "pieces.json"
N_BROKEN_KEPT = 100
"""Broken lines of one part that are told; the rest is counted."""
BATCH_DOCUMENTS = 256
"""Documents that are cut with one call of the tokenizer."""
SMALL_FILE_BYTES, PART_BYTES = 2**20, 2**26
"""Smaller files than the one are read together, up to the other: a corpus may be a million files, or one."""
_READERS = (
    *("cleaning", "corpora", "corpus_formats", "cutting", "delimited"),
    *("hub", "published", "shares", "stackexchange", "streams", "tables"),
)
_CODE = (__name__, *(f"pipeline.sources.{name}" for name in _READERS))


def plan_documents(config: AnyPartConfig, data_root: str | None) -> list[Plan]:
    """Return a step for each part of a corpus's files.

    Its folder holds the documents in pieces of `shard_documents` at most, what the pieces are, the ids of all, and the
    first broken lines.

    Raises:
        SourceError: There are no files.
        ConfigError: The tokenizer that documents are cut by is missing.
    """
    tokenizer = pin_tokenizer(config.cutting)
    inputs = {**identify_lists(config), "tokenizer": tokenizer.identity if tokenizer else ""}
    return [
        Plan("documents", partial(_read_part, part, config, tokenizer), config, {**inputs, **files}, _CODE)
        for part, files in _identify_parts(config, data_root)
    ]


def _identify_parts(config: AnyPartConfig, data_root: str | None) -> list[tuple[list[str], dict[str, str]]]:
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


def _read_part(part: Sequence[str], config: AnyPartConfig, tokenizer: PinnedModel | None, folder: Folder) -> Outputs:
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
    config: AnyPartConfig,
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
            if config.share is not None and not config.share.holds(_get_extra(found, config.share.column, name)):
                counts["outside_share"] += 1
                continue
            batch.append((name, found))
            if len(batch) == BATCH_DOCUMENTS:
                yield from cut()
    yield from cut()


def _get_extra(document: RawDocument, name: str, file: str) -> str:
    if name not in document.extras:
        raise SourceError(
            f"{file}, line {document.line}: share.column {name!r} is none of what is known of a document: "
            f"{', '.join(document.extras) or 'nothing'}"
        )
    return document.extras[name]
