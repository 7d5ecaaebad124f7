"""Near duplicates among millions of texts, from short signatures instead of the texts.

The similarity of two texts is the Jaccard similarity of their sets of word 5-grams (Broder, 1997). A signature holds
the least value of 128 hash functions over the set; the share of places in which two signatures agree estimates the
similarity, with a standard error of at most 0.044. Signatures that agree in a whole band of places are compared, so
only a small part of all pairs is. For exact answers about few texts there is `pipeline.quality.similarity`.
"""

import re
from collections.abc import Sequence
from zlib import crc32

import numpy as np
import numpy.typing as npt

N_HASHES = 128
"""Values of a signature."""
N_SHINGLE_WORDS = 5
"""Words of a shingle; a text of fewer is one shingle."""
_MIN_RECALL = 0.999
"""Share of the pairs just as similar as asked that share a band."""
_N_BLOCK_SHINGLES = 4096
_N_BLOCK_PAIRS = 100_000
_WORD = re.compile(r"\w+")
_NONE = np.uint32(0xFFFF_FFFF)
"""Everywhere in the signature of a text without words."""


def sign(texts: Sequence[str]) -> npt.NDArray[np.uint32]:
    """Return the texts' signatures, (n_texts, 128). They depend on nothing but the words, whatever their case."""
    signatures = np.full((len(texts), N_HASHES), _NONE)
    for row, text in enumerate(texts):
        shingles = _hash_shingles(text)
        for start in range(0, len(shingles), _N_BLOCK_SHINGLES):
            block = shingles[start : start + _N_BLOCK_SHINGLES, None]
            values = (block * _MULTIPLIERS + _INCREMENTS) >> np.uint64(32)
            np.minimum(signatures[row], values.min(axis=0).astype(np.uint32), out=signatures[row])
    return signatures


def find_near_duplicates(signatures: npt.NDArray[np.uint32], min_similarity: float) -> dict[int, int]:
    """Return which rows repeat an earlier row, and which: always one that repeats none itself.

    What is said of a row depends on the rows before it alone. Texts without words repeat nothing.

    Args:
        signatures: Of `sign`, (n_texts, 128).
        min_similarity: Estimated similarity from which a row is a duplicate; above 0, at most 1.
    """
    rows, earlier = _find_candidates(signatures, min_similarity)
    near = _estimate(signatures, rows, earlier) >= min_similarity
    found: dict[int, int] = {}
    for row, other in zip(rows[near].tolist(), earlier[near].tolist(), strict=True):
        kept = found.get(other, other)
        if row not in found and (kept == other or np.mean(signatures[row] == signatures[kept]) >= min_similarity):
            found[row] = kept
    return found


def _find_candidates(
    signatures: npt.NDArray[np.uint32], min_similarity: float
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return pairs of rows and earlier rows to compare, in ascending order, each once.

    Of the rows that share a band, each is paired with the first and with the one before it. All pairs would be too many
    where thousands of texts fill in one form; what these two repeat themselves is looked up by the caller.
    """
    n_bands, n_places = _choose_bands(min_similarity)
    signed = np.flatnonzero((signatures != _NONE).any(axis=1))
    found = []
    for band in range(n_bands):
        keys = _hash_places(signatures[signed, band * n_places : (band + 1) * n_places])
        order = np.argsort(keys, kind="stable")
        is_first = np.append(True, keys[order][1:] != keys[order][:-1])[: len(order)]
        positions = np.arange(len(order))
        firsts = np.maximum.accumulate(np.where(is_first, positions, 0))
        for others in (firsts, positions - 1):
            rows, earlier = signed[order[~is_first]], signed[order[others[~is_first]]]
            found.append(rows * len(signatures) + earlier)
    rows, earlier = np.divmod(np.unique(np.concatenate(found)), max(len(signatures), 1))
    return rows, earlier


def _choose_bands(min_similarity: float) -> tuple[int, int]:
    """Return the number of bands and of places in each: as few candidates as finding nearly all pairs allows."""
    for n_places in range(N_HASHES, 1, -1):
        n_bands = N_HASHES // n_places
        if 1 - (1 - min_similarity**n_places) ** n_bands >= _MIN_RECALL:
            return n_bands, n_places
    return N_HASHES, 1


def _estimate(
    signatures: npt.NDArray[np.uint32], rows: npt.NDArray[np.int64], earlier: npt.NDArray[np.int64]
) -> npt.NDArray[np.float64]:
    similarity = np.empty(len(rows))
    for start in range(0, len(rows), _N_BLOCK_PAIRS):
        block = slice(start, start + _N_BLOCK_PAIRS)
        similarity[block] = (signatures[rows[block]] == signatures[earlier[block]]).mean(axis=1)
    return similarity


def _hash_shingles(text: str) -> npt.NDArray[np.uint64]:
    """Return a hash of each shingle; (n_shingles,)."""
    words = np.array([crc32(word.encode()) for word in _WORD.findall(text.casefold())], dtype=np.uint64)
    n_words = min(N_SHINGLE_WORDS, len(words))
    if not n_words:
        return words
    return _hash_places(np.lib.stride_tricks.sliding_window_view(words, n_words))


def _hash_places(values: npt.NDArray[np.unsignedinteger]) -> npt.NDArray[np.uint64]:
    """Return one hash of each row's values, which depends on their order; (n_rows,)."""
    hashes = np.zeros(len(values), dtype=np.uint64)
    for column in values.T:
        hashes = _mix(hashes + column)
    return hashes


def _mix(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Return values whose every bit depends on every bit given (SplitMix64; Steele, Lea and Flood, 2014)."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


# Written down by rule rather than drawn, because a generator's stream may change with numpy's version.
_MULTIPLIERS = _mix(np.arange(N_HASHES, dtype=np.uint64)) | np.uint64(1)
_INCREMENTS = _mix(np.arange(N_HASHES, 2 * N_HASHES, dtype=np.uint64))
