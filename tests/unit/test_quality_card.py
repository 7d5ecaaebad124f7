import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.quality.card import describe, sample_rows
from pipeline.quality.leakage import Overlap
from pipeline.records import Example, Reject

SETTINGS = {"positive": "ambiguous", "seed": 0, "n_folds": 5}


def rows(*triples):
    return [Example(f"r{i}", "", group, text, label) for i, (group, text, label) in enumerate(triples)]


def reject(row_id, stage, reason):
    return Reject(row_id, "", "g", stage, reason, "text", "clear", "detail")


def test_card_of_hand_worked_rows():
    examples = rows(
        ("g0", "a b c d", "clear"),
        ("g0", "A b?", "ambiguous"),
        ("g1", "a b", "ambiguous"),
        ("g2", "c d e f g h", "clear"),
    )
    rejects = [
        reject("x", "filter", "near_duplicate"),
        reject("y", "filter", "near_duplicate"),
        reject("z", "parse", "refused"),
    ]
    assert describe(examples, rejects, {"ClariQ": Overlap(299, 1, 2)}, **SETTINGS) == {
        "rows_in": 6,
        "rows": 4,
        "groups": 3,
        "labels": {
            "ambiguous": {"rows": 2, "share": 0.5, "words_mean": 2.0, "words_sd": 0.0},
            "clear": {"rows": 2, "share": 0.5, "words_mean": 5.0, "words_sd": pytest.approx(2**0.5)},
        },
        "exact_duplicates": 1,
        "unique_fraction": 0.75,
        "length_auroc": 1.0,
        "tfidf_cross_validation": {"macro_f1": None, "auroc": None},
        "benchmark_overlap": {"ClariQ": {"n_items": 299, "n_exact": 1, "n_near": 2}},
        "rejects": {"filter": {"near_duplicate": 2}, "parse": {"refused": 1}},
    }


def test_card_holds_the_shortcut_scores():
    examples = rows(*((f"g{i}", f"{label} {i}", label) for i in range(10) for label in ("clear", "ambiguous")))
    assert describe(examples, [], {}, **SETTINGS)["tfidf_cross_validation"] == {"macro_f1": 1.0, "auroc": 1.0}


@given(
    st.lists(
        st.tuples(
            st.sampled_from("ghijkl"), st.sampled_from(["a", "a b", "c?"]), st.sampled_from(["clear", "ambiguous"])
        ),
        max_size=12,
    )
)
@settings(deadline=None, max_examples=30)
def test_every_card_is_json_without_nan(triples):
    card = describe(rows(*triples), [], {}, **SETTINGS)
    assert json.loads(json.dumps(card, allow_nan=False)) == card


def test_samples_hold_up_to_n_rows_of_each_label_and_reason_in_order():
    examples = rows(*(("g", f"text {i}", "clear" if i else "ambiguous") for i in range(30)))
    rejects = [reject(f"x{i}", "filter", "exact_duplicate") for i in range(30)] + [reject("y", "parse", "refused")]
    samples = sample_rows(examples, rejects, n=4, seed=0)
    assert samples["accepted"]["ambiguous"] == [{"row_id": "r0", "group": "g", "text": "text 0"}]
    assert samples["rejected"]["refused"] == [
        {
            "row_id": "y",
            "request_id": "",
            "group": "g",
            "stage": "parse",
            "reason": "refused",
            "text": "text",
            "label": "clear",
            "detail": "detail",
        }
    ]
    for drawn in (samples["accepted"]["clear"], samples["rejected"]["exact_duplicate"]):
        positions = [int(row["row_id"][1:]) for row in drawn]
        assert len(positions) == 4
        assert positions == sorted(set(positions))
    assert samples == sample_rows(examples, rejects, n=4, seed=0)
    assert samples != sample_rows(examples, rejects, n=4, seed=1)
    json.dumps(samples)
