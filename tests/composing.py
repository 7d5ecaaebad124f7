"""Experiments for tests, composed from `conf/` like any user's, then cut down."""

from collections.abc import Sequence
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from pipeline.experiment import ExperimentConfig
from pipeline.indexing import IndexRunConfig
from pipeline.launch import CONF, read_composed, read_composed_index


def compose_experiment(overrides: Sequence[str]) -> ExperimentConfig:
    """Return the experiment of a command line."""
    return read_composed(_compose("config", overrides))


def compose_index(overrides: Sequence[str]) -> IndexRunConfig:
    """Return what a command line indexes."""
    return read_composed_index(_compose("index", overrides))


def _compose(config_name: str, overrides: Sequence[str]) -> DictConfig:
    OmegaConf.register_new_resolver("conf_dir", lambda: str(CONF), replace=True)
    with initialize_config_dir(str(CONF), version_base=None):
        composed = compose(config_name, list(overrides), return_hydra_config=True)
    HydraConfig.instance().set_config(composed)
    OmegaConf.set_struct(composed, False)
    composed.pop("hydra")
    return composed


def compose_teacher(name: str, missing: str = "") -> dict[str, Any]:
    """Return the plain values of one file of `conf/teacher/`, with a value for those that it leaves to the user."""
    with initialize_config_dir(str(CONF), version_base=None):
        composed = compose(f"teacher/{name}").teacher
    values = {str(key): missing if OmegaConf.is_missing(composed, key) else composed[key] for key in composed}
    return {key: OmegaConf.to_container(v, resolve=True) if OmegaConf.is_config(v) else v for key, v in values.items()}
