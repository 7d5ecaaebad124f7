"""MAUVE: how close generated texts are to gold ones, by the library of its authors on vectors of our encoder."""

from typing import NamedTuple

import numpy as np
from pydantic import Field

from pipeline.config import Config
from pipeline.errors import NotMeasuredError
from pipeline.quality.diversity import Vectors
from pipeline.quality.optional import require


class MauveConfig(Config):
    """How vectors become histograms, and histograms a score."""

    buckets: int = Field(ge=2)
    """Clusters of the histograms; at least so many texts are needed."""
    scaling_factor: float = Field(gt=0)
    """The paper's constant c; SynthesizRR takes 1, the library itself 5, and scores of two don't compare."""
    clusterings: int = Field(ge=2)
    """Clusterings by k-means, each by a seed of its own, whose scores are averaged."""


class Mauve(NamedTuple):
    """A score from 0 to 1; higher is closer to the gold texts."""

    mean: float
    """Over the clusterings."""
    sd: float
    """Of a single clustering's score."""


def measure_mauve(vectors: Vectors, gold: Vectors, config: MauveConfig, seed: int) -> Mauve:
    """Return MAUVE of generated texts (q) against gold ones (p).

    Pillutla et al. (NeurIPS 2021). As in SynthesizRR, the gold texts are permuted by the seed and repeated, or cut, to
    as many as were generated.

    Args:
        vectors: Of the generated texts; shape (texts, dimensions).
        gold: Of the gold texts, by the same encoder.
        config: Of the clustering and of the score.
        seed: Of the permutation; the clusterings' seeds start at it.

    Raises:
        NotMeasuredError: mauve-text is not installed, or there are too few texts.
    """
    require("mauve-text")
    if len(vectors) < config.buckets or not len(gold):
        raise NotMeasuredError(
            f"{config.buckets} buckets need at least as many generated texts, and a gold text; "
            f"given {len(vectors)} and {len(gold)}"
        )
    from mauve import compute_mauve

    order = np.random.default_rng(seed).permutation(len(gold))
    matched = gold[np.resize(order, len(vectors))]
    scores = [
        compute_mauve(
            p_features=matched,
            q_features=vectors,
            num_buckets=config.buckets,
            mauve_scaling_factor=config.scaling_factor,
            seed=seed + number,
        ).mauve
        for number in range(config.clusterings)
    ]
    return Mauve(float(np.mean(scores)), float(np.std(scores, ddof=1)))
