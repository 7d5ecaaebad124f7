"""Experiments for tests, composed from `conf/` like any user's, then cut down."""

from collections.abc import Sequence
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from pydantic import TypeAdapter

from pipeline.doctor.diagnose import DoctorConfig
from pipeline.experiment import ExperimentConfig
from pipeline.indexing import IndexRunConfig
from pipeline.launch import CONF, read_composed, read_composed_annotation, read_composed_index
from pipeline.stages.annotate import ExportConfig, ImportConfig
from pipeline.stages.curves import CurvesExperimentConfig
from pipeline.stages.probe import GenerateExperimentConfig
from pipeline.stages.tune import SearchExperimentConfig
from pipeline.tasks import AnyMethodConfig, AnyTaskConfig, make_task
from pipeline.tasks.task import MethodConfig, Task


def compose_experiment(overrides: Sequence[str]) -> ExperimentConfig:
    """Return the experiment of a command line."""
    return read_composed(_compose("config", overrides), ExperimentConfig)


def compose_generation(overrides: Sequence[str]) -> GenerateExperimentConfig:
    """Return the experiment of a command line of `ray_jobs/generate.py`."""
    return read_composed(_compose("generate", overrides), GenerateExperimentConfig)


def compose_curves(overrides: Sequence[str]) -> CurvesExperimentConfig:
    """Return the experiment of a command line of `ray_jobs/curves.py`."""
    return read_composed(_compose("curves", overrides), CurvesExperimentConfig)


def compose_doctor(overrides: Sequence[str]) -> DoctorConfig:
    """Return what a command line of `ray_jobs/doctor.py` looks at."""
    return read_composed(_compose("doctor", overrides), DoctorConfig)


def compose_search(overrides: Sequence[str]) -> SearchExperimentConfig:
    """Return what a command line searches."""
    return read_composed(_compose("tune", overrides), SearchExperimentConfig)


def compose_index(overrides: Sequence[str]) -> IndexRunConfig:
    """Return what a command line indexes."""
    return read_composed_index(_compose("index", overrides))


def compose_annotation(overrides: Sequence[str]) -> ExportConfig | ImportConfig:
    """Return what a command line of `ray_jobs/annotate.py` says."""
    return read_composed_annotation(_compose("annotate", overrides))


def _compose(config_name: str, overrides: Sequence[str]) -> DictConfig:
    OmegaConf.register_new_resolver("conf_dir", lambda: str(CONF), replace=True)
    with initialize_config_dir(str(CONF), version_base=None):
        composed = compose(config_name, list(overrides), return_hydra_config=True)
    HydraConfig.instance().set_config(composed)
    OmegaConf.set_struct(composed, False)
    composed.pop("hydra")
    return composed


def compose_part(group: str, option: str) -> dict[str, Any]:
    """Return the plain values of one file of a group, which leaves none to the user."""
    with initialize_config_dir(str(CONF), version_base=None):
        return OmegaConf.to_container(compose(f"{group}/{option}")[group], resolve=True, throw_on_missing=True)


def compose_teacher(name: str, missing: str = "") -> dict[str, Any]:
    """Return the plain values of one file of `conf/teacher/`, with a value for those that it leaves to the user."""
    with initialize_config_dir(str(CONF), version_base=None):
        composed = compose(f"teacher/{name}").teacher
    values = {str(key): missing if OmegaConf.is_missing(composed, key) else composed[key] for key in composed}
    return {key: OmegaConf.to_container(v, resolve=True) if OmegaConf.is_config(v) else v for key, v in values.items()}


def list_tasks() -> list[str]:
    """Return the names of the files of `conf/task/` that are tasks, and no base of others."""
    found = {path.stem: yaml.safe_load(path.read_text()) for path in sorted((CONF / "task").glob("*.yaml"))}
    return [stem for stem, values in found.items() if values["name"] != "???"]


def compose_task(name: str) -> Task:
    """Return the task of one file of `conf/task/`."""
    return make_task(TypeAdapter(AnyTaskConfig).validate_python(compose_option("task", name)))


def compose_method(name: str, **changes: Any) -> MethodConfig:
    """Return what one file of `conf/method/` says, with changes."""
    return TypeAdapter(AnyMethodConfig).validate_python(compose_option("method", name) | changes)


def compose_option(group: str, option: str) -> dict[str, Any]:
    """Return the plain values of one file of `conf/`."""
    with initialize_config_dir(str(CONF), version_base=None):
        composed = compose(f"{group}/{option}")
    OmegaConf.set_struct(composed, False)
    if group != "task":
        composed.task = {"rows_per_label": 3000}  # which methods refer to
    return OmegaConf.to_container(composed[group], resolve=True)
