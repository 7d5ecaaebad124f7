"""How a job starts: Hydra composes `conf/`, the flow runs, and a user's mistake ends in one clear message.

Every file of `ray_jobs/` that runs the flow is a call of `launch`. The last line on stdout is always
`done: <folder>`, by plain `print`, so that scripts can read it.
"""

import logging
import sys
import time
from collections import Counter
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console

from pipeline.errors import ConfigError, RaystillError
from pipeline.evaluation.comparison import COMPARISON
from pipeline.experiment import ExperimentConfig, read_experiment
from pipeline.flow import Stage, run
from pipeline.report.table import print_results
from pipeline.stages.compare import REPORT

CONF = Path(__file__).parent.parent / "conf"


def launch(until: Stage) -> None:
    """Compose the command line's configuration and run the flow up to a stage."""
    OmegaConf.register_new_resolver("conf_dir", lambda: str(CONF), replace=True)

    def main(composed: DictConfig) -> None:
        logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr, force=True)
        for noisy in ("httpx", "matplotlib", "filelock", "huggingface_hub"):
            logging.getLogger(noisy).setLevel(logging.WARNING)
        try:
            _run(read_composed(composed), until)
        except RaystillError as error:
            sys.exit(f"error: {error}")

    hydra.main(version_base=None, config_path=str(CONF), config_name="config")(main)()


def read_composed(composed: DictConfig) -> ExperimentConfig:
    """Return the experiment that Hydra composed for this job.

    Raises:
        ConfigError: Names every mistake with its path.
    """
    job = HydraConfig.get()
    choices = {group: choice for group, choice in job.runtime.choices.items() if isinstance(choice, str)}
    overridden = frozenset(override.split("=", 1)[0].lstrip("+") for override in job.overrides.task)
    try:
        missing = sorted(OmegaConf.missing_keys(composed))
        values = OmegaConf.to_container(composed, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(f"the configuration can't be resolved: {error}") from None
    if missing:
        raise ConfigError("\n".join(f"{key} is missing; set it, as in {key}=…" for key in missing))
    assert isinstance(values, dict)
    return read_experiment({str(key): value for key, value in values.items()}, choices, overridden)


def _run(experiment: ExperimentConfig, until: Stage) -> None:
    started = time.monotonic()
    finished = run(experiment, until)
    result = finished.steps[-1]
    kept = [step for step in finished.steps if step.kept]
    console = Console(file=sys.stdout)
    if until == "compare":
        print_results(result.folder.read_json(COMPARISON), console)
        print(f"report: {result.folder}/{REPORT}")
    if finished.tracking_page:
        print(f"MLflow: {finished.tracking_page}")
    names = Counter(step.name for step in kept)
    print(
        f"{len(finished.steps)} steps, {len(kept)} kept"
        + (f" ({', '.join(f'{n} {name}' for name, n in names.items())})" if kept else "")
        + f", {time.monotonic() - started:.0f} s"
    )
    print(f"done: {result.folder}", flush=True)
