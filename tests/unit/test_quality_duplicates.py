from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.quality.duplicates import drop_conflicting_labels, drop_exact_duplicates, drop_near_duplicates
from pipeline.records import Example

TEXTS = ["how do i", "how do i?", "How can I", "how do we", "how do i 1", "how do i 2", "what for", "?", ""]


def rows(*pairs):
    return [Example(f"r{i}", f"q{i}", f"g{i}", text, label) for i, (text, label) in enumerate(pairs)]


def ids(records):
    return [record.row_id for record in records]


def jaccard_by_hand(left, right):
    left, right = (
        {f" {word} "[i : i + 3] for word in text.split() for i in range(len(word))} for text in (left, right)
    )
    return len(left & right) / len(left | right) if left | right else 0.0


def test_all_copies_of_a_text_under_two_labels_are_rejected():
    kept, rejects = drop_conflicting_labels(
        rows(("A b?", "clear"), ("c", "clear"), ("a B", "ambiguous"), ("a b", "clear"))
    )
    assert ids(kept) == ["r1"]
    assert [(r.row_id, r.reason, r.detail) for r in rejects] == [
        ("r0", "conflicting_labels", "ambiguous, r2: a B"),
        ("r2", "conflicting_labels", "clear, r0: A b?"),
        ("r3", "conflicting_labels", "ambiguous, r2: a B"),
    ]


def test_a_copy_under_one_label_is_no_conflict():
    assert drop_conflicting_labels(rows(("a", "clear"), ("a", "clear")))[1] == []


def test_exact_duplicates_keep_the_first_across_groups_and_record_it():
    kept, rejects = drop_exact_duplicates(rows(("What's up?", "clear"), ("b", "clear"), ("whats UP", "clear")))
    assert ids(kept) == ["r0", "r1"]
    (reject,) = rejects
    assert (reject.row_id, reject.request_id, reject.group, reject.text, reject.label) == (
        "r2",
        "q2",
        "g2",
        "whats UP",
        "clear",
    )
    assert (reject.stage, reject.reason, reject.detail) == ("filter", "exact_duplicate", "r0: What's up?")


def test_one_text_under_two_labels_is_no_exact_duplicate():
    assert drop_exact_duplicates(rows(("a", "clear"), ("a", "ambiguous")))[1] == []


def test_a_near_duplicate_is_rejected_with_what_it_is_near():
    kept, rejects = drop_near_duplicates(
        rows(("Can I get tickets somewhere?", "ambiguous"), ("Can you get tickets somewhere?", "ambiguous")), 0.8
    )
    assert ids(kept) == ["r0"]
    # 22 3-grams are in both, "i" has one of its own and "you" three: 22 / 26.
    assert [(r.reason, r.detail) for r in rejects] == [
        ("near_duplicate", "similarity 0.846, r0: Can I get tickets somewhere?")
    ]


def test_the_most_similar_earlier_row_is_cited():
    texts = ("aaa bbb ccc", "aaa ccc fff", "aaa bbb ccc fff", "aaa bbb ddd")
    _, rejects = drop_near_duplicates(rows(*((text, "clear") for text in texts)), 0.55)
    assert [(r.row_id, r.detail) for r in rejects] == [("r2", "similarity 0.750, r0: aaa bbb ccc")]


def test_a_minimal_pair_under_two_labels_is_kept():
    pair = rows(("capital of Georgia", "ambiguous"), ("capital of the US state of Georgia", "clear"))
    assert drop_near_duplicates(pair, 0.5)[1] == []
    same_label = rows(("capital of Georgia", "clear"), ("capital of the US state of Georgia", "clear"))
    assert len(drop_near_duplicates(same_label, 0.5)[1]) == 1


def test_rows_with_other_numbers_are_kept():
    assert (
        drop_near_duplicates(rows(("who won season 5 of it", "clear"), ("who won season 2 of it", "clear")), 0.7)[1]
        == []
    )


def test_one_template_with_two_subjects_is_kept_at_the_recommended_similarity():
    for template in (
        "What is the best way to learn {}",
        "How can a complete beginner learn to play {} at home for free?",
    ):
        pair = rows((template.format("chess"), "clear"), (template.format("piano"), "clear"))
        assert drop_near_duplicates(pair, 0.9)[1] == []


def test_a_row_near_a_rejected_row_only_is_kept():
    chain = rows(("aaa bbb ccc ddd", "clear"), ("aaa bbb ccc eee", "clear"), ("aaa bbb fff eee", "clear"))
    assert ids(drop_near_duplicates(chain, 0.6)[0]) == ["r0", "r2"]


@given(
    st.lists(st.tuples(st.sampled_from(TEXTS), st.sampled_from(["clear", "ambiguous"])), max_size=15),
    st.sampled_from([0.3, 0.5, 0.8, 1.0]),
)
@settings(deadline=None)
def test_near_duplicates_are_those_of_brute_force(pairs, min_similarity):
    kept = []
    for position, (text, label) in enumerate(pairs):
        words = text.lower().replace("?", "")
        numbers = {word for word in words.split() if word.isdigit()}
        if not any(
            label == other_label and numbers == other_numbers and jaccard_by_hand(words, other) >= min_similarity
            for _, other, other_label, other_numbers in kept
        ):
            kept.append((f"r{position}", words, label, numbers))
    assert ids(drop_near_duplicates(rows(*pairs), min_similarity)[0]) == [row_id for row_id, *_ in kept]


@given(
    st.lists(st.tuples(st.sampled_from(TEXTS), st.sampled_from(["clear", "ambiguous", "third"])), max_size=15),
)
@settings(deadline=None)
def test_rows_in_are_rows_out_and_rejects(pairs):
    examples = rows(*pairs)
    for drop in (drop_conflicting_labels, drop_exact_duplicates, lambda rows: drop_near_duplicates(rows, 0.6)):
        kept, rejects = drop(examples)
        order = {example.row_id: i for i, example in enumerate(examples)}
        assert sorted(ids(kept) + ids(rejects)) == sorted(order)
        assert [order[i] for i in ids(kept)] == sorted(order[i] for i in ids(kept))
        assert drop(kept) == (kept, [])
