"""Trivial and cheap predictors that stand in every table beside the students.

Always answering "ambiguous" scores .8185 weighted F1 on ClariQ, where the published best is .83: without these rows
a table of students says little. Each function returns predictions like a student's, so they are measured alike.
`majority` and `prior` read the labels of the items they are judged on, on purpose: they stand for what the class
balance alone gives.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
from pydantic import Field

from pipeline.config import Config
from pipeline.encoder import EncoderConfig
from pipeline.evaluation.decisions import other_label, to_predictions
from pipeline.evaluation.measures import Floats
from pipeline.identity import derive_seed
from pipeline.records import Example, GoldItem, Prediction


class PrototypeConfig(Config):
    """The untrained encoder of the `prototype` baseline."""

    encoder: EncoderConfig


class FrozenBaselineConfig(Config):
    """The encoder of the `frozen` baselines, and the logistic regression on its vectors of an arm's rows."""

    encoder: EncoderConfig
    inverse_regularisation: float = Field(gt=0)
    """`C` of the logistic regression: smaller is smoother."""
    class_weights: bool
    """Weigh each class by the inverse of its share."""


def predict_majority(
    items: Sequence[GoldItem], labels: Sequence[str], positive: str | None, *, benchmark: str, setting: str
) -> list[Prediction]:
    """Return the items' most frequent class for all of them (the first such of `labels`), with a constant score."""
    counts = Counter(item.label for item in items)
    majority = max(labels, key=lambda label: counts[label])
    constant = float(majority == positive)  # no class ranks items where there is no positive one
    return to_predictions(items, [majority] * len(items), [constant] * len(items), benchmark=benchmark, setting=setting)


def predict_prior(
    items: Sequence[GoldItem],
    labels: Sequence[str],
    positive: str | None,
    seeds: Iterable[int],
    *,
    benchmark: str,
    setting: str,
) -> list[Prediction]:
    """Return random decisions drawn from the items' class shares, once per seed.

    One uniform number per item is both: as the score it ranks at random (AUROC .5 in expectation), and its place on
    the unit line, cut by the class shares with the positive class on top, is the decision. So for two classes the
    decision is a threshold on the score, as it is for a student. Without a positive class the order is the labels'.
    """
    counts = Counter(item.label for item in items)
    ascending = sorted(labels, key=lambda label: label == positive)
    cuts = np.cumsum([counts[label] for label in ascending])[:-1] / len(items)
    predictions = []
    for seed in seeds:
        draws = np.random.default_rng(derive_seed("prior", benchmark, seed)).random(len(items))
        decisions = [ascending[place] for place in np.searchsorted(cuts, draws, side="right")]
        predictions += to_predictions(items, decisions, draws, benchmark=benchmark, setting=setting, seed=seed)
    return predictions


def predict_length(
    items: Sequence[GoldItem],
    rows: Sequence[Example],
    labels: Sequence[str],
    positive: str,
    *,
    benchmark: str,
    setting: str,
) -> list[Prediction]:
    """Return the rule "short is positive": the score is minus the number of whitespace-separated words.

    An item is decided positive if it has at most as many words as the median training row.

    Raises:
        ValueError: There are no training rows, or the task has not two classes.
    """
    if not rows:
        raise ValueError(f"{benchmark}: the length rule needs training rows for its threshold, got none")
    negative = other_label(labels, positive)
    threshold = np.median([_count_words(row.text) for row in rows])
    lengths = [_count_words(item.text) for item in items]
    decisions = [positive if length <= threshold else negative for length in lengths]
    return to_predictions(items, decisions, [-length for length in lengths], benchmark=benchmark, setting=setting)


def predict_tfidf(
    items: Sequence[GoldItem],
    rows: Sequence[Example],
    labels: Sequence[str],
    positive: str | None,
    *,
    benchmark: str,
    setting: str,
) -> list[Prediction]:
    """Return a logistic regression on TF-IDF of words and word pairs, trained on an arm's rows.

    Everything but the word pairs is scikit-learn's default (lower case, L2 with C = 1, no class weights, no
    stop-words). Its solver draws nothing, so there is no seed. The score is the probability of the positive class, or
    of the decision where there is none; the decision is the most probable class, which for two is the threshold .5.

    Raises:
        ValueError: The rows lack the positive class or all others, or have a class that is not of the task.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    counts = Counter(row.label for row in rows)
    if len(counts) < 2 or not counts.keys() <= set(labels) or (positive is not None and positive not in counts):
        wanted = "two classes" if positive is None else f"{positive!r} and another class"
        raise ValueError(f"{benchmark}: TF-IDF needs rows of {wanted} of {tuple(labels)}, got {dict(counts)}")
    model = make_pipeline(TfidfVectorizer(ngram_range=(1, 2)), LogisticRegression())
    model.fit([row.text for row in rows], [row.label for row in rows])
    probabilities = model.predict_proba([item.text for item in items])
    decisions = [str(model.classes_[column]) for column in probabilities.argmax(axis=1)]
    own = None if positive is None else list(model.classes_).index(positive)
    scores = probabilities.max(axis=1) if own is None else probabilities[:, own]
    return to_predictions(items, decisions, scores, benchmark=benchmark, setting=setting)


def predict_prototype(
    items: Sequence[GoldItem],
    encode: Callable[[Sequence[str]], npt.NDArray[np.floating]],
    sentences: Mapping[str, str],
    labels: Sequence[str],
    positive: str | None,
    *,
    benchmark: str,
    setting: str,
) -> list[Prediction]:
    """Return for each item the class whose prototype sentence an untrained encoder finds most similar.

    The score is the cosine to the positive class's sentence minus the highest cosine to another class's; without a
    positive class, the cosine to the sentence of the decision.

    Args:
        items: What to judge.
        encode: Gives vectors of any length, (n_texts, n_dimensions), so that this module needs no torch.
        sentences: One for each class.
        labels: The task's classes.
        positive: The class that the score is for; None without one.
        benchmark: Name of the items.
        setting: What the predictions are filed under.
    """
    cosines = _normalise(encode([item.text for item in items])) @ _normalise(encode([sentences[n] for n in labels])).T
    if positive is None:
        scores = cosines.max(axis=1)
    else:
        own = labels.index(positive)
        scores = cosines[:, own] - np.delete(cosines, own, axis=1).max(axis=1)
    decisions = [labels[column] for column in cosines.argmax(axis=1)]
    return to_predictions(items, decisions, scores, benchmark=benchmark, setting=setting)


def _count_words(text: str) -> int:
    return len(text.split())


def _normalise(embeddings: npt.NDArray[np.floating]) -> Floats:
    vectors = np.asarray(embeddings, dtype=np.float64)
    unit_vectors: Floats = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit_vectors
