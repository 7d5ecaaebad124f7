"""The space of a search: what lies in it, and its grid."""

import pytest

from pipeline.config import validate
from pipeline.errors import ConfigError
from pipeline.students.search import HeldOutConfig, StudentSearchConfig
from pipeline.students.space import SpaceConfig, check_point, list_grid

RATES = {"kind": "log_uniform", "low": 1e-5, "high": 1e-3}
SIZES = {"kind": "choice", "values": [8, 16, 32]}


def make_space(student=None, filters=None, arm=None) -> SpaceConfig:
    return validate(SpaceConfig, {"student": student or {}, "filters": filters or {}, "arm": arm})


def test_dimensions_are_named_by_where_they_stand():
    space = make_space(
        {"learning_rate": RATES},
        {"max_rows": {"kind": "choice", "values": [None, 100]}},
        {"kind": "choice", "values": ["a", "b"]},
    )
    assert list(space.dimensions()) == ["student.learning_rate", "filters.max_rows", "arm"]
    assert list(space.data_dimensions()) == ["filters.max_rows", "arm"]


@pytest.mark.parametrize(
    ("dimension", "inside", "outside"),
    [
        (RATES, [1e-5, 5e-5, 1e-3], [9e-6, 2e-3, "5e-5", None]),
        ({"kind": "uniform", "low": -1.0, "high": 1.0}, [-1.0, 0, 1.0], [1.5, None]),
        ({"kind": "integer", "low": 2, "high": 5}, [2, 5], [1, 6]),
        (SIZES, [8, 32], [64, None]),
        ({"kind": "choice", "values": [None, 100]}, [None, 100], [50]),
    ],
)
def test_a_default_outside_is_told_with_its_dimension(dimension, inside, outside):
    space = make_space({"x": dimension})
    for value in inside:
        check_point({"student.x": value}, space)
    for value in outside:
        with pytest.raises(ConfigError, match=r"search\.space\.student\.x: the default .* is outside"):
            check_point({"student.x": value}, space)


def test_a_grid_has_every_point_once_and_the_default_first():
    space = make_space({"batch_size": SIZES, "patience": {"kind": "choice", "values": [1, 2]}})
    default = {"student.batch_size": 16, "student.patience": 2}
    grid = list_grid(space, default)
    assert grid[0] == default
    assert len(grid) == 6
    assert {tuple(point.values()) for point in grid} == {
        (size, patience) for size in (8, 16, 32) for patience in (1, 2)
    }


def test_there_is_no_grid_of_a_range():
    with pytest.raises(ConfigError, match="learning_rate is of kind log_uniform, of which there is no grid"):
        list_grid(make_space({"learning_rate": RATES}), {"student.learning_rate": 1e-4})


@pytest.mark.parametrize(
    ("space", "told"),
    [
        ({"student": {}, "filters": {}, "arm": None}, "nothing to search"),
        ({"student": {"x": {**RATES, "low": 1.0}}, "filters": {}, "arm": None}, "low must be less"),
        ({"student": {"x": {"kind": "choice", "values": [1, 1]}}, "filters": {}, "arm": None}, "each once"),
        ({"student": {"x": {"kind": "normal"}}, "filters": {}, "arm": None}, "log_uniform"),
        ({"student": {}, "filters": {"x": RATES}, "arm": None}, "choice"),
    ],
)
def test_a_space_that_is_none_is_refused(space, told):
    with pytest.raises(ConfigError, match=told):
        validate(SpaceConfig, space)


def make_search(**changes):
    values = {
        "arm": None, "student": None, "save_as": None, "sampler": "tpe", "trials": 4,
        "stop_early": None,
        "space": {"student": {"learning_rate": RATES}, "filters": {}, "arm": None},
    } | changes  # fmt: skip
    return validate(StudentSearchConfig, values)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"space": {"student": {"batch_size": SIZES}, "filters": {}, "arm": None}},
            "which student.batch_size can't bear",
        ),
        ({"stop_early": {"grace_epochs": 1, "reduction_factor": 3}}, "a population ends nobody early"),
    ],
)
def test_what_a_population_can_not_do_is_refused(changes, told):
    make_search(sampler="population")
    with pytest.raises(ConfigError, match=told):
        make_search(sampler="population", **changes)
    make_search(**changes)


def test_more_folds_than_there_are_can_not_be_measured():
    with pytest.raises(ConfigError, match="measured is 6, but there are 5 folds"):
        validate(HeldOutConfig, {"kind": "held_out", "folds": 5, "measured": 6})
