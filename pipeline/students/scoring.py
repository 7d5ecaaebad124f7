"""From texts to logits, whatever computes them."""

from collections.abc import Callable, Sequence, Sized
from typing import TypeVar

import numpy as np

T = TypeVar("T", bound=Sized)
Scorer = Callable[[Sequence[str], int], np.ndarray]
"""(texts, batch size) to logits, (n_texts, n_classes), in the order of the texts."""


def score_in_batches(score_batch: Callable[[list[T]], np.ndarray], texts: Sequence[T], batch_size: int) -> np.ndarray:
    """Return the logits of all texts, (n_texts, n_classes), in their own order.

    Texts are batched in order of length, so that little padding is computed.

    Args:
        score_batch: Texts to logits.
        texts: At least one; as they are, or as tokens.
        batch_size: Texts at once.
    """
    order = sorted(range(len(texts)), key=lambda i: (len(texts[i]), i))
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    scored = np.concatenate([score_batch([texts[i] for i in batch]) for batch in batches])
    logits: np.ndarray = np.empty_like(scored)
    logits[order] = scored
    return logits


def to_probabilities(logits: np.ndarray) -> np.ndarray:
    """Return the softmax over classes, (n_texts, n_classes), in double precision."""
    from scipy.special import softmax

    probabilities: np.ndarray = np.asarray(softmax(logits.astype(np.float64), axis=1))
    return probabilities
