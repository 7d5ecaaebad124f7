import csv
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config import validate
from pipeline.errors import ConfigError, LeakageError, SourceError
from pipeline.quality.duplicates import drop_exact_duplicates, drop_near_duplicates
from pipeline.quality.filters import FiltersConfig, apply_filters
from pipeline.quality.leakage import Overlap
from pipeline.quality.lengths import length_auroc
from pipeline.records import Example, GoldItem

SETTINGS = {
    "drop_conflicting_labels": True,
    "drop_exact_duplicates": True,
    "near_duplicate_similarity": 0.9,
    "copying": None,
    "leak_similarity": 0.8,
    "max_leaked_share": 1.0,
    "length_matched": False,
    "label_shares": None,
    "max_rows": None,
}
NO_FILTERS = {
    **SETTINGS,
    "drop_conflicting_labels": False,
    "drop_exact_duplicates": False,
    "near_duplicate_similarity": None,
}
GOLD = {"B": [GoldItem("i0", "who won the cup", "clear", "test")]}
TEXTS = ["one", "One!", "two words", "two words here", "two words heres", "who won the cup", "who has won the cup", "?"]


def rows(*pairs):
    return [Example(f"r{i}", "", f"g{i}", text, label) for i, (text, label) in enumerate(pairs)]


def one_row_per_reason():
    return rows(
        ("a fine row", "clear"),
        ("another good one", "ambiguous"),
        ("both", "clear"),
        ("Both?", "ambiguous"),
        ("A fine row!", "clear"),
        ("can i get all of the concert tickets anywhere", "clear"),
        ("can i get all of the concert ticket anywhere", "clear"),
        ("Who won the cup?", "clear"),
        ("who has won the cup", "ambiguous"),
        ("short", "ambiguous"),
    )


def test_each_filter_rejects_its_row_in_order():
    config = FiltersConfig(**{**SETTINGS, "length_matched": True})
    filtered = apply_filters(one_row_per_reason(), config, GOLD, seed=0)
    assert [example.row_id for example in filtered.kept] == ["r0", "r1"]
    assert [(reject.reason, reject.row_id) for reject in filtered.rejects] == [
        ("conflicting_labels", "r2"),
        ("conflicting_labels", "r3"),
        ("exact_duplicate", "r4"),
        ("near_duplicate", "r6"),
        ("leaked_exact", "r7"),
        ("leaked_near", "r8"),
        ("length_unmatched", "r5"),
        ("length_unmatched", "r9"),
    ]
    assert filtered.leaked == {"B": Overlap(1, 1, 1)}


def test_the_limit_of_rows_counts_those_that_pass_all_other_filters_and_rejects_the_rest():
    examples = [
        Example(f"r{i}", "", f"g{i // 4}", f"{i % 4} of {i // 4}", ("clear", "ambiguous")[i % 2]) for i in range(40)
    ]
    repeated = [Example(f"x{i}", "", "g0", "0 of 0", "clear") for i in range(9)]
    config = FiltersConfig(**{**SETTINGS, "near_duplicate_similarity": None, "max_rows": 12})
    filtered = apply_filters(examples + repeated, config, GOLD, seed=0)
    assert Counter(reject.reason for reject in filtered.rejects) == {"exact_duplicate": 9, "beyond_max_rows": 28}
    assert len(filtered.kept) == 12
    assert "3 of 10 groups kept, 12 of 40 rows, for at most 12" in filtered.rejects[-1].detail


def test_filters_can_be_switched_off():
    filtered = apply_filters(one_row_per_reason(), FiltersConfig(**NO_FILTERS), {}, seed=0)
    assert filtered.kept == one_row_per_reason()
    assert filtered.rejects == []


def test_leakage_above_the_share_stops_the_filters():
    config = FiltersConfig(**{**SETTINGS, "max_leaked_share": 0.1})
    with pytest.raises(LeakageError, match="2 of 6 rows"):
        apply_filters(one_row_per_reason()[:2] + one_row_per_reason()[5:6] + one_row_per_reason()[7:], config, GOLD, 0)


def test_rows_of_one_label_are_refused_with_the_counts():
    examples = rows(("a", "clear"), ("b", "clear"), ("a", "ambiguous"), ("c", "clear"))
    with pytest.raises(SourceError) as caught:
        apply_filters(examples, FiltersConfig(**SETTINGS), {}, seed=0)
    assert "2 of 4 rows are left" in str(caught.value)
    assert "labels given: ambiguous 1, clear 3; left: clear 2; rejected: conflicting_labels 2" in str(caught.value)


def test_no_rows_are_refused():
    with pytest.raises(SourceError, match="0 of 0 rows are left"):
        apply_filters([], FiltersConfig(**SETTINGS), GOLD, seed=0)


@given(
    st.lists(st.tuples(st.sampled_from(TEXTS), st.sampled_from(["clear", "ambiguous"])), max_size=20),
    st.fixed_dictionaries(
        {
            "drop_conflicting_labels": st.booleans(),
            "drop_exact_duplicates": st.booleans(),
            "near_duplicate_similarity": st.sampled_from([None, 0.5, 0.9]),
            "leak_similarity": st.sampled_from([0.5, 0.9]),
            "length_matched": st.booleans(),
            "max_rows": st.sampled_from([None, 100]),
        }
    ),
)
@settings(deadline=None)
def test_rows_in_are_rows_out_and_rejects(pairs, choices):
    # Two rows that pass all filters, so that no choice leaves too little.
    examples = [
        *rows(*pairs),
        Example("x", "", "g", "p q r s t", "clear"),
        Example("y", "", "g", "u v w x y", "ambiguous"),
    ]
    config = FiltersConfig(**{**SETTINGS, **choices})
    filtered = apply_filters(examples, config, GOLD, seed=0)
    assert Counter(r.row_id for r in [*filtered.kept, *filtered.rejects]) == Counter(e.row_id for e in examples)
    assert filtered.kept == [example for example in examples if example in filtered.kept]
    assert apply_filters(examples, config, GOLD, seed=0) == filtered


def test_config_mistakes_are_named():
    with pytest.raises(ConfigError) as caught:
        validate(
            FiltersConfig,
            {**SETTINGS, "near_duplicate_similarity": 1.5, "leak_similarity": 0, "max_rows": 0, "length_match": True},
        )
    for key in ("near_duplicate_similarity", "leak_similarity", "max_rows", "length_match"):
        assert f"  {key}: " in str(caught.value)


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "n_repeats", "auroc"),
    [("Llama-3.3-70B-Instruct", 5, 0.856), ("gpt_4_1", 4, 0.945), ("llama31_8b", 14, 0.921)],
)
def test_teacher_files_have_the_published_marks(data_root, name, n_repeats, auroc):
    """GPT-4.1's file has 3 verbatim repeats, and a fourth with another apostrophe."""
    path = Path(data_root) / "teacher_ambiguity" / f"{name}_balanced_strict.tsv"
    with path.open(newline="", encoding="utf-8") as file:
        table = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    labels = {"0": "clear", "1": "ambiguous"}
    examples = [
        Example(str(i), "", row["topic"], row["initial_request"], labels[row["binary_label"]])
        for i, row in enumerate(table)
    ]
    assert length_auroc(examples, "ambiguous") == pytest.approx(auroc, abs=0.001)
    distinct, repeats = drop_exact_duplicates(examples)
    assert len(repeats) == n_repeats
    assert len(drop_near_duplicates(distinct, 0.8)[1]) in (2, 3)
