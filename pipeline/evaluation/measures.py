"""Classification measures over weighted items, for all bootstrap replicates at once.

`bootstrap` calls this with weights of one for a measure's value and with the counts of drawn items for its interval,
so that both are the same formula. scikit-learn's functions take one weight vector a call, which makes 1,000
replicates of 13 measures a matter of minutes; the tests hold every formula here against scikit-learn instead.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


def compute_measures(
    truth: Integers, predicted: Integers, scores: Floats, weights: Floats, labels: Sequence[str], positive: str | None
) -> dict[str, Floats]:
    """Return every measure by its name, in the order of tables; each (n_replicates,).

    A ratio without a denominator counts 0, as does MCC where truth or prediction is constant. AUROC and PR-AUC
    rank by score, tied items together; they are NaN where the class they need was not drawn.

    Args:
        truth: Class index of each item, (n_items,).
        predicted: Class index of each decision, (n_items,).
        scores: Higher means more of the positive class, (n_items,).
        weights: How much each item counts, (n_replicates, n_items), at least 0.
        labels: The task's classes, in index order; all of them count in macro-F1, drawn or not.
        positive: The class that the scores rank against the rest; None leaves AUROC and PR-AUC out.
    """
    confusion = _count_confusion(truth, predicted, weights, len(labels))
    support, claimed = confusion.sum(axis=2), confusion.sum(axis=1)
    hits = np.diagonal(confusion, axis1=1, axis2=2)
    total = support.sum(axis=1)
    precision, recall = _divide(hits, claimed), _divide(hits, support)
    f1 = _divide(2 * hits, support + claimed)

    measures = {
        "weighted-F1": _divide((f1 * support).sum(axis=1), total),
        "macro-F1": f1.mean(axis=1),
        "MCC": _correlate(support, claimed, hits, total),
    }
    if positive is not None:
        is_positive = truth == labels.index(positive)
        measures["AUROC"], measures["PR-AUC"] = _rank(is_positive, scores, weights)
    # Classes that were not drawn have no recall to average (scikit-learn does likewise).
    measures["balanced-accuracy"] = _divide(recall.sum(axis=1), (support > 0).sum(axis=1))
    measures["accuracy"] = _divide(hits.sum(axis=1), total)
    for name, by_class in (("precision", precision), ("recall", recall), ("F1", f1)):
        measures |= {f"{name}@{label}": by_class[:, index] for index, label in enumerate(labels)}
    return measures


def _count_confusion(truth: Integers, predicted: Integers, weights: Floats, n_classes: int) -> Floats:
    """Return the weight of each (true, predicted) pair, (n_replicates, n_classes, n_classes)."""
    cells = np.eye(n_classes * n_classes)[truth * n_classes + predicted]
    confusion: Floats = weights @ cells
    return confusion.reshape(-1, n_classes, n_classes)


def _correlate(support: Floats, claimed: Floats, hits: Floats, total: Floats) -> Floats:
    """Return the multi-class Matthews correlation (R_K of Gorodkin 2004, doi:10.1016/j.compbiolchem.2004.09.006)."""
    covariance = total * hits.sum(axis=1) - (support * claimed).sum(axis=1)
    spread = (total**2 - (support**2).sum(axis=1)) * (total**2 - (claimed**2).sum(axis=1))
    return _divide(covariance, np.sqrt(spread))


def _rank(is_positive: npt.NDArray[np.bool_], scores: Floats, weights: Floats) -> tuple[Floats, Floats]:
    """Return AUROC (ties count half) and average precision, each (n_replicates,)."""
    order = np.argsort(-scores, kind="stable")
    starts = np.flatnonzero(np.diff(scores[order], prepend=np.nan))  # where each run of equal scores begins
    ranked = weights[:, order]
    positives = np.add.reduceat(ranked * is_positive[order], starts, axis=1)
    negatives = np.add.reduceat(ranked * ~is_positive[order], starts, axis=1)
    hits, false_alarms = positives.cumsum(axis=1), negatives.cumsum(axis=1)
    n_positive, n_negative = hits[:, -1], false_alarms[:, -1]

    won = (negatives * (hits - positives / 2)).sum(axis=1)
    precision_sum = (positives * _divide(hits, hits + false_alarms)).sum(axis=1)
    return _divide(won, n_positive * n_negative, np.nan), _divide(precision_sum, n_positive, np.nan)


def _divide(numerator: Floats, denominator: npt.NDArray[np.generic], otherwise: float = 0.0) -> Floats:
    quotient = np.full(numerator.shape, otherwise)
    np.divide(numerator, denominator, out=quotient, where=denominator != 0)
    return quotient
