import pytest

from pipeline.quality.shortcuts import ShortcutScores, tfidf_cross_validation
from pipeline.records import Example


def rows(triples):
    return [Example(f"r{i}", "", group, text, label) for i, (group, text, label) in enumerate(triples)]


def test_labels_told_by_one_word_score_one():
    examples = rows(
        (f"g{i}", f"{cue} topic{i} {j}", label)
        for i in range(10)
        for j in range(2)
        for cue, label in (("thing", "ambiguous"), ("exactly", "clear"))
    )
    assert tfidf_cross_validation(examples, seed=0, n_folds=5) == ShortcutScores(1.0, 1.0)


def test_more_than_two_labels_are_scored():
    examples = rows((f"g{i}", f"{label} topic{i}", label) for i in range(10) for label in "xyz")
    assert tfidf_cross_validation(examples, seed=0, n_folds=5) == ShortcutScores(1.0, 1.0)


def test_words_of_one_group_tell_nothing_of_another():
    # Each group labels by a word of its own, so a fold that split groups would score 1.
    examples = rows(
        (f"g{i}", f"word{i}{label}", label) for i in range(20) for label in ("ambiguous", "clear") for _ in range(3)
    )
    scores = tfidf_cross_validation(examples, seed=0, n_folds=5)
    assert scores.auroc == pytest.approx(0.5)
    assert scores.macro_f1 < 0.6


def test_the_same_seed_gives_the_same_scores():
    examples = rows(
        (f"g{i}", f"{'ab'[i % 2]} {'cde'[i % 3]} {'fghij'[i % 5]}", ("clear", "ambiguous")[i * i % 7 % 2])
        for i in range(60)
    )
    assert tfidf_cross_validation(examples, 1, 5) == tfidf_cross_validation(examples, 1, 5)
    assert 0 <= tfidf_cross_validation(examples, 1, 5).macro_f1 < 1


@pytest.mark.parametrize(
    "triples",
    [
        [],
        [(f"g{i}", "a", "clear") for i in range(9)],
        [(f"g{i % 4}", "a", ("clear", "ambiguous")[i % 2]) for i in range(40)],
        [(f"g{i}", "a", "ambiguous" if i < 4 else "clear") for i in range(40)],
        # All rows of one label in one group: that group's fold holds it in the test side only.
        [("g0", "a", "ambiguous")] * 6 + [(f"g{i}", "a", "clear") for i in range(1, 20)],
    ],
    ids=["no rows", "one label", "fewer groups than folds", "fewer rows of a label than folds", "one group per label"],
)
def test_what_cannot_be_computed_is_none(triples):
    assert tfidf_cross_validation(rows(triples), seed=0, n_folds=5) == ShortcutScores(None, None)
