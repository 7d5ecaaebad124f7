"""The base of every configuration model, and validation that reports all mistakes at once.

Each model is defined beside what it configures. Defaults live in `conf/`, once; the models hold types and
bounds, so a key that neither a file nor the command line sets is reported as missing.
"""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.errors import ConfigError


class Config(BaseModel):
    """A frozen configuration model that refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


C = TypeVar("C", bound=Config)


def validate(model: type[C], values: Mapping[str, Any]) -> C:
    """Return `values` as a `model`.

    Raises:
        ConfigError: Names every mistake with its path, not only the first.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise ConfigError(_describe(error, values)) from None


def _describe(error: ValidationError, values: Mapping[str, Any]) -> str:
    lines = []
    for problem in error.errors(include_url=False):
        path = ".".join(_find_path(problem["loc"], values)) or "(whole configuration)"
        if problem["type"] == "extra_forbidden":
            message = "unknown key; remove it or correct its spelling"
        elif problem["type"] == "missing":
            message = "is missing; set it in a file of conf/ or on the command line"
        elif isinstance(
            problem["input"], Mapping
        ):  # a whole part, with values that are none of this mistake's business
            message = problem["msg"]
        else:
            message = f"{problem['msg']} (given: {problem['input']!r})"
        lines.append(f"  {path}: {message}")
    noun = "mistake" if len(lines) == 1 else "mistakes"
    return f"the configuration has {len(lines)} {noun}:\n" + "\n".join(lines)


def _find_path(location: Sequence[str | int], values: Any) -> list[str]:
    """Return where a mistake is in the values; pydantic also names the kind that it chose where there are several."""
    path = []
    for place, part in enumerate(location):
        is_kind = isinstance(values, Mapping) and part not in values and place < len(location) - 1
        if not is_kind:
            path.append(str(part))
            values = values[part] if isinstance(values, Mapping) and part in values else None
    return path
