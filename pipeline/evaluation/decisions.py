"""From scores to predictions: the records of one student or baseline, and thresholds chosen on a dev split.

A benchmark is judged in two settings. `standard` takes the decision a student or baseline makes by itself.
`dev-selected` lets the benchmark's own train and dev items choose the threshold on the same scores, and reports its
test split only. The scores are those of `standard`, so the second setting asks no student anything again.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from pipeline.evaluation.measures import Floats
from pipeline.records import GoldItem, Prediction

STANDARD = "standard"
DEV_SELECTED = "dev-selected"


def to_predictions(
    items: Sequence[GoldItem],
    predicted: Iterable[str],
    scores: Iterable[float],
    *,
    benchmark: str,
    setting: str,
    seed: int = 0,
) -> list[Prediction]:
    """Return decisions and scores, in the order of their items, as records.

    Raises:
        ValueError: There are more or fewer of them than items.
    """
    return [
        Prediction(benchmark, setting, item.item_id, item.text, item.label, decision, float(score), seed)
        for item, decision, score in zip(items, predicted, scores, strict=True)
    ]


def select_threshold(is_positive: npt.NDArray[np.bool_], scores: Floats) -> float:
    """Return the threshold of `score >= threshold` that gives the highest macro-F1 over two classes.

    Candidates are the midpoints between neighbouring distinct scores; of equally good ones, the one nearest .5, then
    the lower. Scores that are all equal leave nothing to choose and give .5.

    Args:
        is_positive: Whether each item is of the positive class, (n_items,).
        scores: Probabilities of the positive class or another finite score, (n_items,).
    """
    distinct, inverse = np.unique(scores, return_inverse=True)
    if len(distinct) == 1:
        return 0.5
    # Candidate k parts distinct[:k + 1], decided negative, from the rest.
    misses = np.bincount(inverse, weights=is_positive).cumsum()
    correct_rejections = np.bincount(inverse, weights=~is_positive).cumsum()
    hits, false_alarms = (misses[-1] - misses)[:-1], (correct_rejections[-1] - correct_rejections)[:-1]
    misses, correct_rejections = misses[:-1], correct_rejections[:-1]
    errors = misses + false_alarms
    macro_f1 = hits / (2 * hits + errors) + correct_rejections / (2 * correct_rejections + errors)

    below, above = distinct[:-1], distinct[1:]
    midpoints = below + (above - below) / 2
    midpoints = np.where(midpoints > below, midpoints, above)  # between neighbouring floats the midpoint rounds
    best = midpoints[macro_f1 >= macro_f1.max() - 1e-12]  # equal fractions differ in their last bits
    return float(best[np.argmin(np.abs(best - 0.5))])


def select_on_dev(
    predictions: Sequence[Prediction],
    items: Sequence[GoldItem],
    labels: Sequence[str],
    positive: str,
    selection_splits: Collection[str],
) -> list[Prediction]:
    """Return `standard` predictions as `dev-selected` ones: a threshold for each seed, the test split only.

    Args:
        predictions: Of all splits of one benchmark, all seeds.
        items: The benchmark's items, which know their split.
        labels: The task's two classes.
        positive: The class that a score at or above the threshold is decided as.
        selection_splits: The splits that choose the threshold, such as `("train", "dev")`.

    Raises:
        ValueError: A seed has no item to choose on, or only items of one class; the test split was to choose; or
            the task has more classes.
    """
    negative = other_label(labels, positive)
    if "test" in selection_splits:
        raise ValueError(f"the test split is what is reported; it can't choose the threshold: {selection_splits}")
    splits = {item.item_id: item.split for item in items}
    selected = []
    for seed in sorted({prediction.seed for prediction in predictions}):
        run = [prediction for prediction in predictions if prediction.seed == seed]
        dev = [prediction for prediction in run if splits[prediction.item_id] in selection_splits]
        is_positive = np.array([prediction.label == positive for prediction in dev], dtype=np.bool_)
        if len(set(is_positive)) != 2:
            raise ValueError(
                f"{run[0].benchmark}, seed {seed}: {len(dev)} items in {tuple(selection_splits)}, "
                f"{is_positive.sum()} of them {positive!r}; a threshold needs items of both classes"
            )
        threshold = select_threshold(is_positive, np.array([prediction.score for prediction in dev]))
        selected += [
            replace(prediction, setting=DEV_SELECTED, predicted=positive if prediction.score >= threshold else negative)
            for prediction in run
            if splits[prediction.item_id] == "test"
        ]
    return selected


def other_label(labels: Sequence[str], positive: str) -> str:
    """Return the negative class of a two-class task.

    Raises:
        ValueError: There are not two classes, or the positive one is none of them.
    """
    if len(labels) != 2 or positive not in labels:
        raise ValueError(f"a threshold parts two classes, one of them {positive!r}; the task has {tuple(labels)}")
    return labels[1 - labels.index(positive)]
