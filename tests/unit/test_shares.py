import hashlib
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.sources.shares import ShareConfig, place


def make_share(low, high, seed=42):
    return ShareConfig(column="asin", low=low, high=high, seed=seed)


def test_a_place_is_the_fraction_that_a_hash_says():
    # SHA-256 of the canonical JSON; its first 53 bits behind the point.
    bits = int(hashlib.sha256(b'[42,"B000123"]').hexdigest(), 16) >> (256 - 53)
    assert place("B000123", 42) == bits / 2**53
    assert place("B000123", 43) != place("B000123", 42)


@given(st.text(), st.integers(), st.lists(st.floats(0, 1, exclude_min=True, exclude_max=True), unique=True))
def test_shares_side_by_side_hold_every_value_once(value, seed, bounds):
    edges = [0.0, *sorted(bounds), 1.0]
    shares = [make_share(low, high, seed) for low, high in pairwise(edges)]
    assert sum(share.holds(value) for share in shares) == 1


@pytest.mark.parametrize(("low", "high"), [(0, 0.25), (0.25, 0.75), (0.75, 1)])
def test_a_share_is_as_large_as_it_says(low, high):
    share = high - low
    n_held = sum(make_share(low, high).holds(f"B{number}") for number in range(10_000))
    assert abs(n_held / 10_000 - share) < 4 * (share * (1 - share) / 10_000) ** 0.5


def test_bounds_are_held_as_written(monkeypatch):
    monkeypatch.setattr("pipeline.sources.shares.place", lambda value, seed: float(value))
    share = make_share(0.25, 0.75)
    assert [share.holds(value) for value in ("0.2499", "0.25", "0.7499", "0.75")] == [False, True, True, False]
