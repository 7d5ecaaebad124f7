import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.quality.minhash import find_near_duplicates, sign

WORDS = [f"word{n}" for n in range(400)]


def shingle(text):
    words = text.lower().split()
    n = min(5, len(words))
    return {tuple(words[i : i + n]) for i in range(len(words) - n + 1)} if words else set()


def jaccard(left, right):
    left, right = shingle(left), shingle(right)
    return len(left & right) / len(left | right)


def draw_texts(n_texts, n_words=120, seed=0):
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=n_words)) for _ in range(n_texts)]


def change(text, n_changes, seed=0):
    draw = random.Random(seed)
    words = text.split()
    for position in draw.sample(range(len(words)), n_changes):
        words[position] = f"other{draw.randrange(10**9)}"
    return " ".join(words)


def test_the_agreement_of_signatures_is_the_jaccard_similarity_within_its_error():
    originals = draw_texts(60)
    for n_changes in (0, 1, 3, 8, 120):
        changed = [change(text, n_changes, seed) for seed, text in enumerate(originals)]
        exact = np.array([jaccard(*pair) for pair in zip(originals, changed, strict=True)])
        estimated = (sign(originals) == sign(changed)).mean(axis=1)
        # One estimate has a standard error of at most .0442, so the mean of 60 has .0057.
        assert abs(estimated.mean() - exact.mean()) < 0.02
        assert np.abs(estimated - exact).max() < 0.2


def test_a_signature_is_of_the_words_alone_and_the_same_on_every_machine():
    signatures = sign(["The quick brown fox jumps over it.", "the QUICK, brown fox -- jumps over it"])
    assert signatures.shape == (2, 128)
    assert signatures.dtype == np.uint32
    assert (signatures[0] == signatures[1]).all()
    assert signatures[0, :3].tolist() == [1770352260, 2410520002, 1501753478]


def test_the_order_of_words_counts():
    ordered, turned = sign(["a b c d e f g h", "h g f e d c b a"])
    assert (ordered == turned).mean() < 0.1


def test_a_long_text_is_signed_as_one():
    long = draw_texts(1, n_words=9000)[0]
    halves = " ".join(long.split()[:4502]), " ".join(long.split()[4498:])
    assert (sign([long])[0] == np.minimum(*sign(halves))).all()


def test_short_texts_are_duplicates_of_equal_ones_alone():
    found = find_near_duplicates(sign(["two words", "Two words!", "two other", "", "", "..."]), 0.8)
    assert found == {1: 0}


@pytest.mark.parametrize("n_texts", [0, 1])
def test_few_texts_have_no_duplicates(n_texts):
    assert find_near_duplicates(sign(["some text"] * n_texts), 0.8) == {}
    assert find_near_duplicates(sign([""] * n_texts), 0.8) == {}


@pytest.mark.parametrize("min_similarity", [0.5, 0.8, 0.95, 1.0])
def test_what_is_clearly_near_is_found_and_what_is_clearly_not_is_left(min_similarity):
    originals = draw_texts(150)
    n_near = {0.5: 3, 0.8: 1, 0.95: 0, 1.0: 0}[min_similarity]
    texts = originals + [change(text, n_near, seed) for seed, text in enumerate(originals)]
    texts += [change(text, 30, seed) for seed, text in enumerate(originals)]
    exact = [jaccard(texts[150 + row], texts[row]) for row in range(150)]
    assert min(exact) >= min(min_similarity + 0.09, 1.0)
    assert max(jaccard(texts[300 + row], texts[row]) for row in range(150)) < min_similarity - 0.09
    found = find_near_duplicates(sign(texts), min_similarity)
    assert len(set(range(150, 300)) - set(found)) <= 2
    assert all(found[row] == row - 150 for row in found)
    assert set(found) <= set(range(150, 300))


def test_of_many_copies_the_first_stays_and_stands_for_all():
    text, other = draw_texts(2)
    texts = [other] + [change(text, 1, seed) for seed in range(40)]
    found = find_near_duplicates(sign(texts), 0.7)
    assert found == dict.fromkeys(range(2, 41), 1)


def test_what_a_row_repeats_is_never_itself_a_repetition():
    # A chain in which each text is near its neighbours and far from the first.
    chain = draw_texts(1, n_words=200)
    for step in range(12):
        chain.append(change(chain[-1], 3, step))
    found = find_near_duplicates(sign(chain), 0.75)
    assert 0 < len(found) < len(chain) - 1
    assert all(row > kept and kept not in found for row, kept in found.items())
    assert all(jaccard(chain[row], chain[kept]) > 0.6 for row, kept in found.items())


def test_a_row_is_found_behind_others_that_share_its_bands_and_nothing_else():
    n_bands, n_places = 25, 5  # for .8
    signatures = np.random.default_rng(0).integers(0, 2**32 - 1, (n_bands + 2, 128), dtype=np.uint32)
    signatures[-1] = signatures[-2]
    for band in range(n_bands):
        places = slice(band * n_places, (band + 1) * n_places)
        signatures[band, places] = signatures[-1, places]
    assert find_near_duplicates(signatures, 0.8) == {n_bands + 1: n_bands}


@given(st.lists(st.lists(st.sampled_from("abcd"), max_size=9).map(" ".join), max_size=25), st.integers(0, 25))
@settings(deadline=None, max_examples=60)
def test_rows_added_below_change_nothing_above(texts, n_before):
    signatures = sign(texts)
    before = find_near_duplicates(signatures[:n_before], 0.6)
    assert before == {row: kept for row, kept in find_near_duplicates(signatures, 0.6).items() if row < n_before}
