"""Self-BLEU: how much each text repeats the others, exactly as NLTK scores it and without comparing pairs."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from pipeline.errors import NotMeasuredError

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
SMOOTHING = 0.1
"""Matches that count where there is none: `epsilon` of NLTK's smoothing method 1 (Chen and Cherry, WMT 2014)."""


def self_bleu(texts: Sequence[Sequence[str]], max_n: int) -> list[float]:
    """Return Self-BLEU-1 to Self-BLEU-`max_n`: the plain mean of each text's BLEU against all others.

    From 0 to 1, lower is more diverse. It rises with the number of texts, so compare equal numbers only. Zhu et al.,
    Texygen (SIGIR 2018); as SynthesizRR computes it (arXiv 2405.10040).

    Args:
        texts: Tokens of each text.
        max_n: Longest n-grams. Of each BLEU-n all n-grams up to n weigh the same.

    Raises:
        NotMeasuredError: There are fewer than two texts, so there are no others.
    """
    means: list[float] = score_against_others(texts, max_n).mean(axis=0).tolist()
    return means


def score_against_others(texts: Sequence[Sequence[str]], max_n: int) -> Floats:
    """Return each text's BLEU-1 to BLEU-`max_n` with all other texts as references; shape (texts, `max_n`).

    NLTK's `sentence_bleu` with smoothing method 1. A match is clipped by the highest count that any one reference has,
    so of each n-gram the two highest counts over all texts are enough: time and memory grow with the number of tokens.

    Raises:
        NotMeasuredError: There are fewer than two texts.
    """
    if len(texts) < 2:
        raise NotMeasuredError(f"at least 2 texts are needed, given {len(texts)}")
    lengths = np.array([len(text) for text in texts], dtype=np.int64)
    vocabulary: dict[str, int] = {}
    tokens = np.array([vocabulary.setdefault(token, len(vocabulary)) for text in texts for token in text], np.int64)
    owners, ends = np.repeat(np.arange(len(texts)), lengths), np.repeat(np.cumsum(lengths), lengths)
    starts, grams = np.arange(len(tokens)), tokens
    matches, totals = np.zeros((len(texts), max_n)), np.ones((len(texts), max_n))
    for n in range(1, max_n + 1):
        if n > 1:  # each gram of n - 1 tokens with the token after it, numbered anew from 0 on
            is_whole = starts + n <= ends[starts]
            starts, grams = starts[is_whole], grams[is_whole]
            grams = np.unique(grams * len(vocabulary) + tokens[starts + n - 1], return_inverse=True)[1]
        matches[:, n - 1] = _count_matches(grams, owners[starts], len(texts))
        totals[:, n - 1] = np.maximum(lengths - n + 1, 1)
    logs = np.log(np.where(matches == 0, SMOOTHING, matches) / totals)
    scores: Floats = _brevity_penalties(lengths)[:, None] * np.exp(np.cumsum(logs, axis=1) / np.arange(1, max_n + 1))
    scores[matches[:, 0] == 0] = 0.0
    return scores


def _count_matches(grams: Integers, owners: Integers, n_texts: int) -> Floats:
    """Return how many of each text's n-grams some other text has too; shape (texts,).

    Args:
        grams: The n-grams of all texts, as numbers from 0 on without a gap.
        owners: The text of each.
        n_texts: How many texts there are.
    """
    pairs, counts = np.unique(grams * n_texts + owners, return_counts=True)
    gram, owner = np.divmod(pairs, n_texts)
    starts = np.flatnonzero(np.diff(gram, prepend=-1))
    highest = np.maximum.reduceat(counts, starts)
    is_highest = counts == highest[gram]
    second = np.maximum.reduceat(np.where(is_highest, 0, counts), starts)
    is_alone = is_highest & (np.add.reduceat(is_highest.astype(np.int64), starts)[gram] == 1)
    elsewhere = np.where(is_alone, second[gram], highest[gram])
    return np.bincount(owner, np.minimum(counts, elsewhere), n_texts).astype(np.float64)


def _brevity_penalties(lengths: Integers) -> Floats:
    """Return what each text's score is multiplied with for being shorter than the closest of the others."""
    distinct, place, counts = np.unique(lengths, return_inverse=True, return_counts=True)
    shorter, longer = np.append(-np.inf, distinct[:-1]), np.append(distinct[1:], np.inf)
    # Of two that are as close, NLTK takes the shorter.
    neighbour = np.where(distinct - shorter <= longer - distinct, shorter, longer)
    closest = np.where(counts > 1, distinct, neighbour)[place]
    penalties: Floats = np.exp(np.minimum(0.0, 1 - closest / np.maximum(lengths, 1)))
    return penalties
