"""Configurations of labelled rows for tests, with the values of `conf/` wherever a test names none."""

from typing import Any, TypeVar

import yaml

from pipeline.config import validate
from pipeline.launch import CONF
from pipeline.sources.data import LabelledConfig, SeedsConfig
from pipeline.sources.labelled import RowsConfig
from tests.composing import compose_experiment

R = TypeVar("R", bound=RowsConfig)


def make_rows(model: type[R], **changes: Any) -> R:
    """Return rows as `conf/rows/base.yaml` has them, with changes; `columns` are changed one by one."""
    values = yaml.safe_load((CONF / "rows" / "base.yaml").read_text())
    columns = values["columns"] | changes.pop("columns", {})
    if model is RowsConfig:
        del values["root"]
    return validate(model, values | {"columns": columns} | changes)


def compose_data(*overrides: str) -> LabelledConfig | SeedsConfig:
    """Return the data of a command line."""
    (arm,) = compose_experiment(overrides).arms.values()
    assert isinstance(arm.data, LabelledConfig | SeedsConfig)
    return arm.data
