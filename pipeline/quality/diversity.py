"""How varied texts are: their n-grams, the entities that they name, and where their vectors lie."""

from collections import Counter
from collections.abc import Iterable, Sequence
from math import log2
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.errors import NotMeasuredError
from pipeline.quality.optional import find_version, require

Vectors = npt.NDArray[np.floating]
"""Of length 1; shape (texts, dimensions)."""
_UNIT_TOLERANCE = 1e-3
"""Of the mean squared length; half precision stays below it."""


class Entity(NamedTuple):
    """A name in a text."""

    kind: str
    """Its type, as spaCy calls it: PERSON, GPE, ORG, …"""
    surface: str
    """As the text writes it."""


def distinct_n(texts: Sequence[Sequence[str]], max_n: int) -> list[float | None]:
    """Return distinct-1 to distinct-`max_n`: of all n-grams of all texts, the share that is distinct.

    From above 0 to 1, higher is more diverse. It falls with the number of tokens, so compare equal numbers of texts of
    about one length only. Li et al. (NAACL 2016), who divide by the number of tokens for every n; by n-grams, as usual
    since, 1 means that none occurs twice, whatever n.

    Args:
        texts: Tokens of each text.
        max_n: Longest n-grams.

    Returns:
        A share for each n; None where no text has n tokens.
    """
    shares: list[float | None] = []
    for n in range(1, max_n + 1):
        grams = [gram for text in texts for gram in zip(*(text[start:] for start in range(n)), strict=False)]
        shares.append(len(set(grams)) / len(grams) if grams else None)
    return shares


def find_entities(texts: Sequence[str], model: str) -> list[list[Entity]]:
    """Return the entities that a pipeline of spaCy finds in each text.

    Args:
        texts: In the pipeline's language.
        model: An installed pipeline's name, such as `en_core_web_lg`, or its folder.

    Raises:
        NotMeasuredError: spaCy or the pipeline is not installed.
    """
    require("spacy")
    if find_version(model) is None and not Path(model).is_dir():
        raise NotMeasuredError(
            f"the spaCy pipeline {model} is not installed; run `python -m spacy download {model}`, "
            "or name another as `entity_model`"
        )
    import spacy

    # Named are those that entities don't depend on.
    pipeline = spacy.load(model, exclude=["tagger", "parser", "attribute_ruler", "lemmatizer"])
    return [[Entity(entity.label_, entity.text) for entity in text.ents] for text in pipeline.pipe(texts)]


def entity_entropy(entities: Iterable[Entity]) -> dict[str, float]:
    """Return, for each type of entity, the Shannon entropy in bits of its surface strings.

    0 where one name is all there is; higher is more diverse, at most the logarithm of the number of mentions. As in
    SynthesizRR (arXiv 2405.10040).
    """
    counts: dict[str, Counter[str]] = {}
    for kind, surface in entities:
        counts.setdefault(kind, Counter())[surface] += 1
    return {kind: _entropy(names) for kind, names in sorted(counts.items())}


def vendi_score(vectors: Vectors) -> float:
    """Return the effective number of different texts: from 1 (all alike) to their number (all orthogonal).

    The exponential of the entropy of the eigenvalues of the matrix of cosine similarities over the number of texts.
    Friedman and Dieng (TMLR 2023), at order 1. Higher is more diverse; compare equal numbers of texts, and vectors of
    one encoder, only.

    Raises:
        NotMeasuredError: There are no vectors.
        ValueError: Their lengths are not 1.
    """
    _check(vectors, 1)
    wide = vectors.astype(np.float64)
    # Either product has the same eigenvalues but for zeros; the smaller one is cheaper.
    product = wide @ wide.T if len(wide) <= wide.shape[1] else wide.T @ wide
    eigenvalues = np.linalg.eigvalsh(product / len(wide))
    positive = eigenvalues[eigenvalues > 0]
    return float(np.exp(-(positive * np.log(positive)).sum()))


def mean_cosine(vectors: Vectors) -> float:
    """Return the mean cosine similarity of all pairs of texts, from -1 to 1; lower is more diverse.

    Over texts of one label it is the label-wise, over all texts the pairwise similarity of SynthesizRR.

    Raises:
        NotMeasuredError: There are fewer than two vectors.
        ValueError: Their lengths are not 1.
    """
    _check(vectors, 2)
    total = vectors.astype(np.float64).sum(axis=0)
    n = len(vectors)
    return float((total @ total - n) / (n * (n - 1)))


def _entropy(counts: Counter[str]) -> float:
    total = counts.total()
    return sum(count / total * log2(total / count) for count in counts.values())


def _check(vectors: Vectors, minimum: int) -> None:
    if len(vectors) < minimum:
        raise NotMeasuredError(f"at least {minimum} vectors are needed, given {len(vectors)}")
    squared = float(np.square(vectors.astype(np.float64)).sum(axis=1).mean())
    if abs(squared - 1) > _UNIT_TOLERANCE:
        raise ValueError(f"vectors of length 1 are needed, given ones of mean squared length {squared:.4g}")
