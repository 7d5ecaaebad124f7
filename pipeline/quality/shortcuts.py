"""What word counts alone can tell of the labels: a bag-of-words model, cross-validated on the synthetic rows.

A high score is a warning, not a success: rows that a bag of words can label are labelled by their wording, and
such scores say nothing of a benchmark.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.quality.text import normalise
from pipeline.records import Example


@dataclass(frozen=True, slots=True)
class ShortcutScores:
    """Means over folds; None where no fold could be scored."""

    macro_f1: float | None
    auroc: float | None


def tfidf_cross_validation(examples: Sequence[Example], seed: int, n_folds: int) -> ShortcutScores:
    """Return the scores of TF-IDF (words, word pairs) and logistic regression on held-out groups.

    Folds keep groups whole and labels balanced. A fold counts if both its sides hold every label; with more than two
    labels, AUROC is the unweighted mean of each label against the rest. Not computable with one label, or with fewer
    groups, or rows of a label, than folds.
    """
    import numpy as np
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import f1_score, roc_auc_score
    from sklearn.model_selection import StratifiedGroupKFold
    from sklearn.pipeline import make_pipeline

    texts = np.array([normalise(example.text) for example in examples], dtype=object)
    groups = np.array([example.group for example in examples])
    labels, codes, counts = np.unique([example.label for example in examples], return_inverse=True, return_counts=True)
    if len(labels) < 2 or len(set(groups)) < n_folds or counts.min() < n_folds:
        return ShortcutScores(None, None)
    f1_scores, aurocs = [], []
    folds = StratifiedGroupKFold(n_folds, shuffle=True, random_state=seed)
    for train, test in folds.split(texts, codes, groups):
        if min(len(set(codes[train])), len(set(codes[test]))) < len(labels):
            continue
        model = make_pipeline(
            TfidfVectorizer(ngram_range=(1, 2), token_pattern=r"\S+"),
            LogisticRegression(max_iter=1000, class_weight="balanced"),
        ).fit(texts[train], codes[train])
        probabilities = model.predict_proba(texts[test])
        f1_scores.append(f1_score(codes[test], probabilities.argmax(axis=1), average="macro"))
        scores = probabilities[:, 1] if len(labels) == 2 else probabilities
        aurocs.append(roc_auc_score(codes[test], scores, multi_class="ovr"))
    if not f1_scores:
        return ShortcutScores(None, None)
    return ShortcutScores(float(np.mean(f1_scores)), float(np.mean(aurocs)))
