"""The space that a search draws a student's settings from."""

from collections.abc import Mapping, Sequence
from itertools import product
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from pipeline.config import Config
from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

Value = bool | int | float | str | None
"""What a dimension holds."""


class LogUniformConfig(Config):
    """A positive number whose logarithm is drawn evenly: every power of ten is as likely as the next."""

    kind: Literal["log_uniform"]
    low: float = Field(gt=0)
    high: float

    @model_validator(mode="after")
    def _check(self) -> "LogUniformConfig":
        _check_order(self.low, self.high)
        return self

    def to_distribution(self) -> "BaseDistribution":
        """Return it as Optuna's."""
        from optuna.distributions import FloatDistribution

        return FloatDistribution(self.low, self.high, log=True)


class UniformConfig(Config):
    """A number that is drawn evenly."""

    kind: Literal["uniform"]
    low: float
    high: float

    @model_validator(mode="after")
    def _check(self) -> "UniformConfig":
        _check_order(self.low, self.high)
        return self

    def to_distribution(self) -> "BaseDistribution":
        """Return it as Optuna's."""
        from optuna.distributions import FloatDistribution

        return FloatDistribution(self.low, self.high)


class IntegerConfig(Config):
    """A whole number that is drawn evenly, both ends included."""

    kind: Literal["integer"]
    low: int
    high: int

    @model_validator(mode="after")
    def _check(self) -> "IntegerConfig":
        _check_order(self.low, self.high)
        return self

    def to_distribution(self) -> "BaseDistribution":
        """Return it as Optuna's."""
        from optuna.distributions import IntDistribution

        return IntDistribution(self.low, self.high)


class ChoiceConfig(Config):
    """One of some values."""

    kind: Literal["choice"]
    values: tuple[Value, ...] = Field(min_length=2)

    @model_validator(mode="after")
    def _check(self) -> "ChoiceConfig":
        if len(set(map(repr, self.values))) != len(self.values):
            raise ValueError(f"values: each once, given {list(self.values)}")
        return self

    def to_distribution(self) -> "BaseDistribution":
        """Return it as Optuna's."""
        from optuna.distributions import CategoricalDistribution

        return CategoricalDistribution(self.values)


AnyDimensionConfig = Annotated[
    LogUniformConfig | UniformConfig | IntegerConfig | ChoiceConfig, Field(discriminator="kind")
]


class SpaceConfig(Config):
    """What is searched, by where it stands in an experiment."""

    student: dict[str, AnyDimensionConfig]
    """Settings of the student."""
    filters: dict[str, ChoiceConfig]
    """Filters of the arm's rows. Data sets are steps, so each choice is built once, and no teacher is asked anew."""
    arm: ChoiceConfig | None
    """Which arm's rows: another teacher, a mix of several; null: the searched arm's alone."""

    @model_validator(mode="after")
    def _check(self) -> "SpaceConfig":
        if not self.dimensions():
            raise ValueError("there is nothing to search; give at least one dimension of student, filters or arm")
        return self

    def dimensions(self) -> dict[str, AnyDimensionConfig]:
        """Return all dimensions by the names that trials know them by, such as `student.learning_rate`."""
        return {
            **{f"student.{name}": dimension for name, dimension in self.student.items()},
            **{f"filters.{name}": dimension for name, dimension in self.filters.items()},
            **({"arm": self.arm} if self.arm else {}),
        }

    def data_dimensions(self) -> dict[str, ChoiceConfig]:
        """Return those that say which rows there are, by the same names."""
        found = {name: dimension for name, dimension in self.dimensions().items() if not name.startswith("student.")}
        return {name: dimension for name, dimension in found.items() if isinstance(dimension, ChoiceConfig)}


def check_point(point: Mapping[str, Value], space: SpaceConfig) -> None:
    """Check that a point, one value for each dimension, lies in a space.

    Raises:
        ConfigError: It doesn't; names every dimension in which it lies outside.
    """
    outside = []
    for name, dimension in space.dimensions().items():
        value, distribution = point[name], dimension.to_distribution()
        is_inside = (
            value in dimension.values
            if isinstance(dimension, ChoiceConfig)
            else isinstance(value, int | float) and distribution._contains(distribution.to_internal_repr(value))
        )
        if not is_inside:
            outside.append(
                f"search.space.{name}: the default {value!r} is outside {distribution}; the default is trial 0, so "
                "widen the dimension, or set another default"
            )
    if outside:
        raise ConfigError("\n".join(outside))


def list_grid(space: SpaceConfig, default: Mapping[str, Value]) -> list[dict[str, Value]]:
    """Return every point of a space of choices, the default first.

    Raises:
        ConfigError: A dimension is no choice.
    """
    axes: dict[str, Sequence[Value]] = {}
    for name, dimension in space.dimensions().items():
        if not isinstance(dimension, ChoiceConfig):
            raise ConfigError(
                f"search.space.{name} is of kind {dimension.kind}, of which there is no grid; give it as kind=choice "
                "with values, or choose another sampler"
            )
        axes[name] = dimension.values
    points: list[dict[str, Any]] = [dict(zip(axes, values, strict=True)) for values in product(*axes.values())]
    return [dict(default), *(point for point in points if point != default)]


def _check_order(low: float, high: float) -> None:
    if not low < high:
        raise ValueError(f"low is {low:g} and high {high:g}; low must be less")
