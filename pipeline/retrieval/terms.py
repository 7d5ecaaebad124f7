"""Words of texts, counted: what one shard of a corpus says by itself, and what all shards together say of a word.

Counts know nothing of BM25's formula. So documents that are added, or another k1 and b, have nothing counted again.
"""

import json
import re
from array import array
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import field_validator

from pipeline.config import Config
from pipeline.errors import ConfigError, StorageError

_FREQUENCIES = pa.schema([("term", pa.string()), ("documents", pa.int64())])


class TermsConfig(Config):
    """How a text becomes terms: lower case, words, without stop words, stemmed."""

    stemmer: str | None
    """A language of PyStemmer, such as `english`; null: words stay as they are."""
    stop_words: (
        Literal["en", "en_plus", "da", "de", "es", "fr", "it", "ko", "nl", "no", "pt", "ru", "sv", "tr", "zh"] | None
    )
    """The language whose list in bm25s is left out; null: nothing is."""
    word_pattern: str
    """Regular expression of one word; sets its least length too."""

    @field_validator("word_pattern")
    @classmethod
    def _check_pattern(cls, pattern: str) -> str:
        try:
            n_groups = re.compile(pattern).groups
        except re.error as error:
            raise ValueError(f"no regular expression: {error}") from None
        if n_groups > 1:
            raise ValueError(f"{n_groups} groups, of which one can be the word; write the others as (?:…)")
        return pattern


@dataclass(frozen=True)
class TermCounts:
    """How often each term stands in each document of one shard."""

    vocabulary: pa.ChunkedArray
    """The shard's terms, ascending."""
    counts: Any
    """`scipy.sparse.csc_array` of int32; shape (documents, terms)."""
    lengths: npt.NDArray[np.int32]
    """Terms of each document, each occurrence counted; shape (documents,)."""

    def save(self, folder: Path) -> None:
        """Write the counts into a local folder, made where it is missing."""
        save_matrix(folder, self.vocabulary, self.counts)
        np.save(folder / "lengths.npy", self.lengths)

    @staticmethod
    def load(folder: Path) -> "TermCounts":
        """Return saved counts, mapped into memory.

        Raises:
            StorageError: The folder doesn't hold them, or not whole.
        """
        with reading(folder):
            lengths = np.load(folder / "lengths.npy", mmap_mode="r")
            return TermCounts(*load_matrix(folder, len(lengths)), lengths)


@dataclass(frozen=True)
class Statistics:
    """What all shards together say of the corpus."""

    n_documents: int
    n_tokens: int
    """Sum of all documents' lengths."""
    frequencies: pa.Table
    """Each `term`, ascending, and the number of `documents` that it occurs in."""

    @property
    def average_length(self) -> float:
        """Terms of a document, on average."""
        return self.n_tokens / self.n_documents

    def save(self, folder: Path) -> None:
        """Write the statistics into a local folder, made where it is missing."""
        folder.mkdir(parents=True, exist_ok=True)
        _write_table(folder / "frequencies.arrow", self.frequencies)
        totals = {"n_documents": self.n_documents, "n_tokens": self.n_tokens}
        (folder / "totals.json").write_text(json.dumps(totals))

    @staticmethod
    def load(folder: Path) -> "Statistics":
        """Return saved statistics, mapped into memory.

        Raises:
            StorageError: The folder doesn't hold them, or not whole.
        """
        with reading(folder):
            totals = json.loads((folder / "totals.json").read_text())
            return Statistics(**totals, frequencies=_map_table(folder / "frequencies.arrow"))


def count_terms(texts: Iterable[str], config: TermsConfig) -> TermCounts:
    """Count the terms of one shard's documents.

    Raises:
        ConfigError: There is no such stemmer.
    """
    from scipy.sparse import csr_array

    tokenizer = make_tokenizer(config)
    tokens, lengths = array("i"), array("i")
    for document in tokenizer.streaming_tokenize(texts, update_vocab=True, allow_empty=False):
        tokens.fromlist(document)
        lengths.append(len(document))

    terms = pa.array(list(tokenizer.get_vocab_dict()), pa.string())  # in the order of their ids
    order = pc.array_sort_indices(terms)
    places = np.empty(len(terms), dtype=np.int32)
    places[order.to_numpy()] = np.arange(len(terms), dtype=np.int32)

    # One entry for each token; turning it to columns brings a document's equal terms side by side.
    starts = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    ones = np.ones(len(tokens), dtype=np.int32)
    counts = csr_array((ones, places[np.asarray(tokens)], starts), shape=(len(lengths), len(terms))).tocsc()
    counts.sum_duplicates()
    return TermCounts(pa.chunked_array([terms.take(order)]), counts, np.array(lengths, dtype=np.int32))


def merge_statistics(shards: Iterable[TermCounts]) -> Statistics:
    """Add up what the shards of one corpus say."""
    n_documents = n_tokens = 0
    tables = [_FREQUENCIES.empty_table()]
    for shard in shards:
        n_documents += len(shard.lengths)
        n_tokens += int(shard.lengths.sum(dtype=np.int64))
        widths = np.diff(shard.counts.indptr)
        tables.append(pa.table({"term": shard.vocabulary, "documents": widths}, schema=_FREQUENCIES))
    summed = pa.concat_tables(tables).group_by("term").aggregate([("documents", "sum")]).sort_by("term")
    frequencies = pa.table({"term": summed["term"], "documents": summed["documents_sum"]}, schema=_FREQUENCIES)
    return Statistics(n_documents, n_tokens, frequencies)


def make_tokenizer(config: TermsConfig) -> Any:
    """Return a bm25s tokenizer that has seen no text.

    Raises:
        ConfigError: There is no such stemmer.
    """
    from bm25s.tokenization import Tokenizer

    stemmer = None if config.stemmer is None else _load_stemmer(config.stemmer)
    return Tokenizer(splitter=config.word_pattern, stopwords=config.stop_words, stemmer=stemmer)


def save_matrix(folder: Path, vocabulary: pa.ChunkedArray, matrix: Any) -> None:
    """Write a `csc_array` and the term of each of its columns into a local folder, made where it is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    _write_table(folder / "vocabulary.arrow", pa.table({"term": vocabulary}))
    for name, values in (("starts", matrix.indptr), ("rows", matrix.indices), ("values", matrix.data)):
        np.save(folder / f"{name}.npy", values)


def load_matrix(folder: Path, n_documents: int) -> tuple[pa.ChunkedArray, Any]:
    """Return a saved vocabulary and `csc_array`, mapped into memory."""
    from scipy.sparse import csc_array

    vocabulary = _map_table(folder / "vocabulary.arrow")["term"]
    starts, rows, values = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("starts", "rows", "values"))
    return vocabulary, csc_array((values, rows, starts), shape=(n_documents, len(vocabulary)))


@contextmanager
def reading(folder: Path) -> Iterator[None]:
    """Let what goes wrong in reading a folder name the folder, and what to do."""
    try:
        yield
    except (OSError, ValueError) as error:
        raise StorageError(
            f"{folder} doesn't hold what was written there: {error}; delete it, and run the same command again"
        ) from error


def _load_stemmer(language: str) -> Any:
    try:
        import Stemmer
    except ImportError:
        raise ConfigError(
            f"the stemmer {language!r} is one of the package PyStemmer, which is not installed; "
            "install it, or set terms.stemmer=null"
        ) from None
    if language not in Stemmer.algorithms():
        raise ConfigError(
            f"PyStemmer has no stemmer {language!r}; set terms.stemmer to null or one of "
            f"{', '.join(Stemmer.algorithms())}"
        )
    return Stemmer.Stemmer(language)


def _write_table(path: Path, table: pa.Table) -> None:
    with pa.ipc.new_file(str(path), table.schema) as writer:
        writer.write_table(table)


def _map_table(path: Path) -> pa.Table:
    return pa.ipc.open_file(pa.memory_map(str(path))).read_all()
