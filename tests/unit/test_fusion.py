import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import validate
from pipeline.errors import ConfigError
from pipeline.evaluation.fusion import FusionConfig, fuse


def configure(method, **changes) -> FusionConfig:
    values = {"method": method, "rrf_k": 60, "weights": {"bm25": 0.5, "dense": 0.5}, "depth": 100}
    return validate(FusionConfig, values | changes)


def test_reciprocal_ranks_worked_by_hand():
    fused = fuse({"bm25": {"a": 9.0, "b": 7.0, "c": 1.0}, "dense": {"c": 0.9, "a": 0.2}}, configure("rrf"))
    assert list(fused) == ["a", "c", "b"]
    assert fused == pytest.approx({"a": (1 / 61 + 1 / 62) / 2, "c": (1 / 63 + 1 / 61) / 2, "b": 1 / 62 / 2})


def test_min_max_worked_by_hand():
    weights = {"bm25": 0.3, "dense": 0.7}
    found = {"bm25": {"a": 10.0, "b": 6.0, "c": 2.0}, "dense": {"b": 0.5, "c": 0.25, "d": 0.0}}
    fused = fuse(found, configure("min_max", weights=weights))
    assert fused == pytest.approx({"b": 0.3 * 0.5 + 0.7, "c": 0.7 * 0.5, "a": 0.3, "d": 0.0})
    assert list(fused) == ["b", "c", "a", "d"]


@pytest.mark.parametrize("constant", [{"x": 4.0, "y": 4.0}, {"x": 4.0}])
def test_a_run_of_equal_scores_gives_nothing_rather_than_no_number(constant):
    fused = fuse({"bm25": constant, "dense": {"y": 0.9, "z": 0.1}}, configure("min_max"))
    assert fused == {"y": 0.5, "x": 0.0, "z": 0.0}
    assert list(fused) == ["y", "x", "z"]


@pytest.mark.parametrize("method", ["rrf", "min_max"])
def test_a_run_that_found_nothing_leaves_the_order_of_the_other(method):
    fused = fuse({"bm25": {}, "dense": {"b": 0.1, "a": 0.9, "c": 0.5}}, configure(method))
    assert list(fused) == ["a", "c", "b"]
    assert fuse({"bm25": {}, "dense": {}}, configure(method)) == {}


def test_equal_scores_rank_by_id_whatever_order_they_come_in():
    found = {"bm25": {"d": 1.0, "b": 1.0}, "dense": {"c": 2.0, "a": 2.0}}
    assert list(fuse(found, configure("rrf"))) == ["a", "b", "c", "d"]
    # a and b swap their ranks between the runs: an exact tie.
    crossed = {"bm25": {"b": 2.0, "a": 1.0}, "dense": {"a": 2.0, "b": 1.0}}
    assert list(fuse(crossed, configure("rrf"))) == ["a", "b"]


@pytest.mark.parametrize("method", ["rrf", "min_max"])
def test_only_the_best_of_each_run_count(method):
    found = {"bm25": {"a": 1.0, "b": 3.0, "c": 2.0, "aa": 2.0}, "dense": {}}
    # Of the equal second ones, the earlier id.
    assert list(fuse(found, configure(method, depth=2))) == ["b", "aa"]


def test_the_scale_is_that_of_what_counts():
    fused = fuse({"bm25": {"a": 4.0, "b": 3.0, "c": 2.0, "d": -90.0}, "dense": {}}, configure("min_max", depth=3))
    assert fused == {"a": 0.5, "b": 0.25, "c": 0.0}


def test_scores_in_single_precision_are_summed_in_double():
    found = {"bm25": {"a": np.float32(0.9), "b": np.float32(0.4), "c": np.float32(0.1)}, "dense": {}}
    plain = {"bm25": {document: float(score) for document, score in found["bm25"].items()}, "dense": {}}
    fused = fuse(found, configure("min_max"))
    assert fused == fuse(plain, configure("min_max"))
    assert {type(score) for score in fused.values()} == {float}


RUNS = st.dictionaries(st.sampled_from("abcdefgh"), st.integers(-3, 3).map(float), max_size=8)


@given(bm25=RUNS, dense=RUNS, tag=RUNS, method=st.sampled_from(["rrf", "min_max"]))
def test_neither_the_order_of_runs_nor_that_of_documents_matters(bm25, dense, tag, method):
    config = configure(method, weights={"bm25": 0.1, "dense": 0.2, "tag": 0.7})
    one = fuse({"bm25": bm25, "dense": dense, "tag": tag}, config)
    other = fuse(
        {name: dict(reversed(run.items())) for name, run in (("tag", tag), ("dense", dense), ("bm25", bm25))}, config
    )
    assert list(one.items()) == list(other.items())
    assert one.keys() == bm25.keys() | dense.keys() | tag.keys()
    assert list(one.items()) == sorted(one.items(), key=lambda pair: (-pair[1], pair[0]))
    assert all(0 <= score <= 1 for score in one.values())


def test_a_query_that_one_run_lacks_is_fused_from_the_rest():
    assert fuse({"bm25": {}, "dense": {"c": 0.5}}, configure("rrf")) == pytest.approx({"c": 1 / 61 / 2})


def test_runs_and_weights_name_the_same():
    with pytest.raises(ValueError, match="weights for bm25, dense, but runs of bm25, tag"):
        fuse({"bm25": {}, "tag": {}}, configure("rrf"))


@pytest.mark.parametrize("weights", [{"bm25": 0.5, "dense": 0.6}, {"bm25": 1.5, "dense": -0.5}, {}])
def test_weights_share_out_one(weights):
    with pytest.raises(ConfigError, match="weights"):
        configure("rrf", weights=weights)
    assert configure("rrf", weights={"a": 0.1, "b": 0.2, "c": 0.7})
