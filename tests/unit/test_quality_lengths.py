from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from pipeline.quality.lengths import length_auroc, match_lengths
from pipeline.records import Example

LABELS = ("clear", "ambiguous", "third")
ROWS = st.lists(st.tuples(st.integers(0, 4), st.sampled_from(LABELS)), max_size=30)


def rows(pairs):
    return [Example(f"r{i}", "", f"g{i}", " ".join(["w"] * n), label) for i, (n, label) in enumerate(pairs)]


def lengths_by_label(examples):
    return {
        label: Counter(len(e.text.split()) for e in examples if e.label == label)
        for label in {e.label for e in examples}
    }


def test_length_auroc_of_hand_worked_rows():
    # Of four (ambiguous, clear) pairs two are shorter, one ties, one is longer: 2.5 / 4.
    examples = rows([(1, "ambiguous"), (3, "ambiguous"), (3, "clear"), (2, "clear")])
    assert length_auroc(examples, "ambiguous") == pytest.approx(0.625)
    assert length_auroc(examples, "clear") == pytest.approx(0.375)


@given(ROWS)
def test_length_auroc_counts_the_pairs_in_which_the_positive_row_is_shorter(pairs):
    positive = [n for n, label in pairs if label == "ambiguous"]
    negative = [n for n, label in pairs if label != "ambiguous"]
    if not positive or not negative:
        assert length_auroc(rows(pairs), "ambiguous") is None
        return
    wins = sum((p < n) + 0.5 * (p == n) for p in positive for n in negative)
    assert length_auroc(rows(pairs), "ambiguous") == pytest.approx(wins / len(positive) / len(negative))


def test_length_auroc_counts_whitespace_words():
    examples = [Example("a", "", "a", "what's self-help?", "ambiguous"), Example("b", "", "b", "a  b\tc", "clear")]
    assert length_auroc(examples, "ambiguous") == roc_auc_score([1, 0], [-2, -3]) == 1.0


def test_the_smallest_unmatched_row_is_rejected():
    kept, rejects = match_lengths(rows([(1, "clear"), (1, "ambiguous"), (2, "clear")]), seed=0)
    assert [example.row_id for example in kept] == ["r0", "r1"]
    assert [(r.row_id, r.stage, r.reason, r.detail) for r in rejects] == [
        ("r2", "filter", "length_unmatched", "1 rows of 2 words under 'clear', kept 0")
    ]


@given(ROWS, st.integers(0, 3))
def test_matched_labels_have_one_distribution_of_lengths_and_nothing_vanishes(pairs, seed):
    examples = rows(pairs)
    kept, rejects = match_lengths(examples, seed)
    before, after = lengths_by_label(examples), lengths_by_label(kept)
    for n_words in range(5):
        smallest = min((counts[n_words] for counts in before.values()), default=0)
        assert all(counts[n_words] == smallest for counts in after.values())
        assert bool(after) or smallest == 0
    assert sorted(e.row_id for e in [*kept, *rejects]) == sorted(e.row_id for e in examples)
    assert kept == [e for e in examples if e in kept]
    assert match_lengths(examples, seed) == (kept, rejects)


def test_the_seed_draws_the_rows():
    examples = rows([(1, "clear")] * 20 + [(1, "ambiguous")])
    drawn = {match_lengths(examples, seed)[0][0].row_id for seed in range(10)}
    assert len(drawn) > 3
