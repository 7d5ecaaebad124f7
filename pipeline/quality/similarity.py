"""Pairs of near texts, exactly, without looking at every pair.

The similarity of two texts is the Jaccard similarity of their sets of character 3-grams inside word boundaries:
blind to word order, mild on inflection. A comparison of all pairs takes hours at 100,000 long rows, so candidates
come from prefix filtering (Chaudhuri et al., ICDE 2006; Bayardo et al., WWW 2007): two sets as near as asked share
at least one of their rarest members. That loses no pair; a test holds it to brute force.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

N_BLOCK_ROWS = 256
"""Rows whose candidates are in memory at once: at worst this many times the number of texts."""
N_BLOCK_PAIRS = 20_000
"""Candidate pairs compared at once."""
_SLACK = 1e-9
"""Against a product such as 0.07 * 100 = 7.000000000000001 that would shorten a prefix."""


def similar_pairs(
    texts: Sequence[str], min_similarity: float, is_candidate: npt.NDArray[np.bool_], first: int = 0
) -> Iterator[tuple[int, int, float]]:
    """Yield (row, earlier row, similarity) for each text and each candidate before it that is near enough.

    Rows ascend; the most similar earlier rows come first, then the earliest. A text without any word has no pairs.

    Args:
        texts: Normalised texts.
        min_similarity: Above 0, at most 1; a pair of just this similarity counts.
        is_candidate: Which rows later ones are compared with. Read as the pairs are, so a caller that unmarks a
            row on the way gets no later pair with it.
        first: The first row to look for earlier ones of.
    """
    if not any(texts):
        return
    grams = _count_ngrams(texts)
    sizes = np.diff(grams.indptr)
    prefixes = _take_prefixes(grams, min_similarity)
    held = np.flatnonzero(is_candidate)
    holders = prefixes[held].T.tocsr()
    for start in range(first, len(texts), N_BLOCK_ROWS):
        candidates = (prefixes[start : start + N_BLOCK_ROWS] @ holders).tocoo()
        row, earlier = candidates.row + start, held[candidates.col]
        small, large = np.minimum(sizes[row], sizes[earlier]), np.maximum(sizes[row], sizes[earlier])
        possible = (earlier < row) & is_candidate[earlier] & (small >= min_similarity * large - _SLACK)
        row, earlier = row[possible], earlier[possible]
        shared = _count_shared(grams, row, earlier)
        similarity = shared / (sizes[row] + sizes[earlier] - shared)
        near = similarity >= min_similarity
        row, earlier, similarity = row[near], earlier[near], similarity[near]
        for position in np.lexsort((earlier, -similarity, row)):
            if is_candidate[earlier[position]]:
                yield int(row[position]), int(earlier[position]), float(similarity[position])


def _count_ngrams(texts: Sequence[str]) -> Any:
    """Return the sets as a sparse matrix of ones, texts x 3-grams, rarest 3-gram first."""
    from scipy.sparse import csr_array
    from sklearn.feature_extraction.text import CountVectorizer

    vectorizer = CountVectorizer(analyzer="char_wb", ngram_range=(3, 3), binary=True, lowercase=False, dtype=np.int32)
    grams = csr_array(vectorizer.fit_transform(texts))
    grams = grams[:, np.argsort(grams.sum(axis=0), kind="stable")]
    grams.sort_indices()
    return grams


def _take_prefixes(grams: Any, min_similarity: float) -> Any:
    """Return each set's rarest members: so many that the rest alone would not make two sets near."""
    from scipy.sparse import csr_array

    sizes = np.diff(grams.indptr)
    lengths = np.where(sizes > 0, sizes - np.ceil(min_similarity * sizes - _SLACK).astype(np.int64) + 1, 0)
    rank = np.arange(grams.nnz) - np.repeat(grams.indptr[:-1], sizes)
    taken = rank < np.repeat(lengths, sizes)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    return csr_array((grams.data[taken], grams.indices[taken], starts), shape=grams.shape)


def _count_shared(grams: Any, left: npt.NDArray[np.int64], right: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    shared = np.zeros(len(left), dtype=np.int64)
    for start in range(0, len(left), N_BLOCK_PAIRS):
        block = slice(start, start + N_BLOCK_PAIRS)
        shared[block] = grams[left[block]].multiply(grams[right[block]]).sum(axis=1)
    return shared
