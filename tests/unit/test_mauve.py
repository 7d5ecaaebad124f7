import numpy as np
import pytest

from pipeline.errors import NotMeasuredError
from pipeline.quality.mauve import MauveConfig, measure_mauve

CONFIG = MauveConfig(buckets=4, scaling_factor=1.0, clusterings=2)


def draw(centre, n, seed):
    """Vectors of length 1 around one of the axes."""
    vectors = np.eye(8)[centre] + 0.2 * np.random.default_rng(seed).standard_normal((n, 8))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def test_texts_like_the_gold_ones_score_high_and_others_low():
    gold = np.concatenate([draw(0, 40, 1), draw(1, 40, 2)])
    like = measure_mauve(np.concatenate([draw(0, 40, 3), draw(1, 40, 4)]), gold, CONFIG, 42)
    half = measure_mauve(draw(0, 80, 5), gold, CONFIG, 42)
    other = measure_mauve(np.concatenate([draw(2, 40, 6), draw(3, 40, 7)]), gold, CONFIG, 42)
    assert like.mean > 0.95
    assert like.mean > half.mean + 0.05
    # Nothing shared: at scaling factor 1 the area under the points (w, 1 - w) is a half.
    assert other.mean == pytest.approx(0.5, abs=0.01)
    assert like.sd >= 0


def test_a_seed_gives_the_same_score_again():
    gold, texts = draw(0, 50, 1), draw(1, 50, 2)
    assert measure_mauve(texts, gold, CONFIG, 42) == measure_mauve(texts, gold, CONFIG, 42)


def test_gold_texts_are_permuted_and_repeated_to_as_many_as_were_generated(monkeypatch):
    seen = []

    class Result:
        mauve = 0.5

    monkeypatch.setattr("mauve.compute_mauve", lambda **given: seen.append(given) or Result())
    gold = draw(0, 3, 1)
    measure_mauve(draw(1, 8, 2), gold, CONFIG, 42)
    matched = seen[0]["p_features"]
    rows = [int(np.flatnonzero((gold == vector).all(axis=1))[0]) for vector in matched]
    assert sorted(rows[:3]) == [0, 1, 2]
    assert rows == (rows[:3] * 3)[:8]
    assert seen[0]["num_buckets"] == 4
    assert seen[0]["mauve_scaling_factor"] == 1.0
    assert [given["seed"] for given in seen] == [42, 43]


@pytest.mark.parametrize(("n", "n_gold"), [(3, 10), (10, 0)])
def test_too_few_texts_are_told(n, n_gold):
    with pytest.raises(NotMeasuredError, match=f"4 buckets need at least as many .* given {n} and {n_gold}"):
        measure_mauve(draw(0, n, 1), draw(0, n_gold, 1), CONFIG, 42)


def test_the_missing_package_is_told_with_what_to_do(monkeypatch):
    monkeypatch.setattr("pipeline.quality.optional.find_version", lambda package: None)
    with pytest.raises(NotMeasuredError, match="the package mauve-text is not installed; install the extra `mauve`"):
        measure_mauve(draw(0, 9, 1), draw(0, 9, 1), CONFIG, 42)
