"""How a job starts: Hydra composes `conf/`, the flow runs, and a user's mistake ends in one clear message.

Every file of `ray_jobs/` that runs the flow is a call of `launch`. The last line on stdout is always
`done: <folder>`, by plain `print`, so that scripts can read it.
"""

import logging
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console

from pipeline.config import validate
from pipeline.errors import ConfigError, RaystillError
from pipeline.evaluation.comparison import COMPARISON
from pipeline.experiment import ExperimentConfig, read_experiment
from pipeline.flow import Finished, Stage, run
from pipeline.indexing import IndexRunConfig, index
from pipeline.report.table import print_results
from pipeline.stages.compare import REPORT

CONF = Path(__file__).parent.parent / "conf"


def launch(until: Stage) -> None:
    """Compose the command line's configuration and run the flow up to a stage."""
    _launch("config", lambda composed: _run(read_composed(composed), until))


def launch_index() -> None:
    """Compose the command line's configuration and build an index."""
    _launch("index", lambda composed: _index(read_composed_index(composed)))


def _launch(config_name: str, run_job: Callable[[DictConfig], None]) -> None:
    OmegaConf.register_new_resolver("conf_dir", lambda: str(CONF), replace=True)

    def main(composed: DictConfig) -> None:
        logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr, force=True)
        for noisy in ("httpx", "matplotlib", "filelock", "huggingface_hub"):
            logging.getLogger(noisy).setLevel(logging.WARNING)
        try:
            run_job(composed)
        except RaystillError as error:
            sys.exit(f"error: {error}")

    hydra.main(version_base=None, config_path=str(CONF), config_name=config_name)(main)()


def read_composed(composed: DictConfig) -> ExperimentConfig:
    """Return the experiment that Hydra composed for this job.

    Raises:
        ConfigError: Names every mistake with its path.
    """
    overridden = frozenset(override.split("=", 1)[0].lstrip("+") for override in HydraConfig.get().overrides.task)
    return read_experiment(_to_values(composed), _read_choices(), overridden)


def read_composed_index(composed: DictConfig) -> IndexRunConfig:
    """Return what Hydra composed for this job of indexing.

    Raises:
        ConfigError: Names every mistake with its path.
    """
    values, choices = _to_values(composed), _read_choices()
    return validate(IndexRunConfig, {**values, "name": values["name"] or f"{choices['corpus']}_{choices['retriever']}"})


def _read_choices() -> dict[str, str]:
    """Return the option chosen in each root group."""
    choices = HydraConfig.get().runtime.choices
    return {group: choice for group, choice in choices.items() if isinstance(choice, str)}


def _to_values(composed: DictConfig) -> dict[str, Any]:
    """Return what Hydra composed as plain values.

    Raises:
        ConfigError: A value is missing, or refers to one that is not there.
    """
    try:
        missing = sorted(OmegaConf.missing_keys(composed))
        values = OmegaConf.to_container(composed, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(f"the configuration can't be resolved: {error}") from None
    if missing:
        raise ConfigError("\n".join(f"{key} is missing; set it, as in {key}=…" for key in missing))
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def _run(experiment: ExperimentConfig, until: Stage) -> None:
    started = time.monotonic()
    finished = run(experiment, until)
    if until == "compare":
        result = finished.steps[-1].folder
        print_results(result.read_json(COMPARISON), Console(file=sys.stdout))
        print(f"report: {result}/{REPORT}")
    _print_end(finished, started)


def _index(config: IndexRunConfig) -> None:
    started = time.monotonic()
    _print_end(index(config), started)


def _print_end(finished: Finished, started: float) -> None:
    kept = [step for step in finished.steps if step.kept]
    if finished.tracking_page:
        print(f"MLflow: {finished.tracking_page}")
    names = Counter(step.name for step in kept)
    print(
        f"{len(finished.steps)} steps, {len(kept)} kept"
        + (f" ({', '.join(f'{n} {name}' for name, n in names.items())})" if kept else "")
        + f", {time.monotonic() - started:.0f} s"
    )
    print(f"done: {finished.steps[-1].folder}", flush=True)
