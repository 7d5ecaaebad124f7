import pytest

from pipeline.quality.copying import CopyingConfig, drop_copied, measure_copied
from pipeline.records import Example


def config(n=3, passage=0.5, seed=0.5) -> CopyingConfig:
    return CopyingConfig(n=n, max_passage_share=passage, max_seed_share=seed)


def row(text, label="a", passage="") -> Example:
    return Example("r", "q", "g", text, label, {"passage_text": passage} if passage else {})


def drop(example, seeds=(), settings=None):
    kept, rejects = drop_copied([example], {"a": list(seeds)}, settings or config())
    assert len(kept) + len(rejects) == 1
    return rejects[0].reason if rejects else None


@pytest.mark.parametrize(
    ("text", "source", "share"),
    [
        ("a b c d e", "x a b c d y", 2 / 3),  # abc bcd cde
        ("a b c d e", "a b c d e", 1),
        ("a b c d e", "e d c b a", 0),
        ("a b", "x a b y", 1),  # shorter than a trigram: all of it or nothing
        ("a b", "x ab y", 0),
        ("a b", "a x b", 0),
    ],
)
def test_the_share_is_of_the_texts_own_ngrams(text, source, share):
    assert measure_copied(text, source, 3) == pytest.approx(share)


def test_a_row_that_copies_its_document_is_dropped():
    document = "The price of oil rose on Monday, said traders in London."
    assert drop(row("Price of oil rose on Monday!", passage=document)) == "copied_from_passage"
    assert drop(row("Oil is dearer since Monday, traders say.", passage=document)) is None
    assert drop(row("Price of oil rose on Monday!", passage=document), settings=config(passage=None)) is None


def test_a_row_that_holds_a_seed_of_its_label_is_dropped_however_long_it_is():
    long = " ".join(f"word{n}" for n in range(200))
    assert drop(row(f"{long} oil is up, {long}"), ["Oil is UP."]) == "copied_from_seed"
    assert drop(row(f"{long} oil is up, {long}", label="b"), ["Oil is UP."]) is None
    assert drop(row("oil is update"), ["Oil is up"]) is None


def test_a_row_of_which_most_stands_in_a_seed_is_dropped():
    seed = "one two three four five six seven"
    assert drop(row("zero two three four five six"), [seed]) == "copied_from_seed"
    assert drop(row("zero two three four nine ten"), [seed]) is None
    assert drop(row("zero two three four five six"), [seed], config(seed=None)) is None
