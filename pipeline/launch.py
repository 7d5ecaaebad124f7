"""How a job starts: Hydra composes `conf/`, the flow runs, and a user's mistake ends in one clear message.

Every file of `ray_jobs/` that runs the flow is a call of `launch`. The last line on stdout is always
`done: <folder>`, by plain `print`, so that scripts can read it.
"""

import logging
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import hydra
import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console

from pipeline.cluster import ScaleConfig
from pipeline.config import validate
from pipeline.doctor.diagnose import DoctorConfig, diagnose, write_findings
from pipeline.doctor.finding import Level, print_findings
from pipeline.errors import ConfigError, RaystillError
from pipeline.evaluation.comparison import COMPARISON
from pipeline.experiment import E, ExperimentConfig, read_experiment
from pipeline.flow import Finished, Stage, run
from pipeline.indexing import IndexRunConfig, index
from pipeline.report.curves import to_entries
from pipeline.report.plan import print_plan
from pipeline.report.search import print_trials
from pipeline.report.table import print_results
from pipeline.stages.annotate import KEY, SHEETS, ExportConfig, ImportConfig, export_sheets, import_labels
from pipeline.stages.annotate import PAGE as ANNOTATION
from pipeline.stages.compare import REPORT
from pipeline.stages.curves import CURVES, CurvesExperimentConfig
from pipeline.stages.probe import GenerateExperimentConfig
from pipeline.stages.project import PLAN, PLAN_PAGE
from pipeline.stages.quality import PAGE
from pipeline.stages.trials import read_trials
from pipeline.stages.tune import SEARCH, SearchExperimentConfig, write_tuned
from pipeline.stages.verdicts import VerdictsConfig, judge_items
from pipeline.storage import Folder
from pipeline.tasks import make_task

CONF = Path(__file__).parent.parent / "conf"
INTERRUPTED = 130
"""What a shell makes of SIGINT."""


def launch(until: Stage) -> None:
    """Compose the command line's configuration and run the flow up to a stage."""
    _launch("config", lambda composed: _run(read_composed(composed, ExperimentConfig), until))


def launch_generation() -> None:
    """Compose the command line's configuration and build its data sets, or plan that."""
    _launch("generate", lambda composed: _generate(read_composed(composed, GenerateExperimentConfig)))


def launch_curves() -> None:
    """Compose the command line's configuration and trace learning curves."""
    _launch("curves", lambda composed: _trace(read_composed(composed, CurvesExperimentConfig)))


def launch_search() -> None:
    """Compose the command line's configuration and search a student's settings."""
    _launch("tune", lambda composed: _search(read_composed(composed, SearchExperimentConfig)))


def launch_index() -> None:
    """Compose the command line's configuration and build an index."""
    _launch("index", lambda composed: _index(read_composed_index(composed)))


def launch_doctor() -> None:
    """Compose the command line's configuration and look at its set-up."""
    _launch("doctor", lambda composed: _diagnose(read_composed(composed, DoctorConfig)))


def launch_annotation() -> None:
    """Compose the command line's configuration and write annotators' sheets, ask an LLM, or read labels."""
    _launch("annotate", lambda composed: _annotate(read_composed_annotation(composed)))


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
        except KeyboardInterrupt:
            print("\nstopped; what is done is kept, and the same command goes on from there", file=sys.stderr)
            sys.exit(INTERRUPTED)

    with _finding_tuned(sys.argv[1:]) as overrides:
        # Beside the other overrides: argparse takes them in one piece only.
        first = next((i for i, a in enumerate(sys.argv) if i and "=" in a and not a.startswith("-")), len(sys.argv))
        sys.argv[first:first] = overrides
        hydra.main(version_base=None, config_path=str(CONF), config_name=config_name)(main)()


@contextmanager
def _finding_tuned(arguments: Sequence[str]) -> Iterator[list[str]]:
    """Give what has Hydra look under the root too, where searches leave the best student as a file of `student`."""
    root = yaml.safe_load((CONF / "config.yaml").read_text())["root"]
    for argument in arguments:
        if argument.startswith("root="):
            with suppress(OverrideParseException):  # Hydra tells of it
                root = OverridesParser.create().parse_override(argument).value()
    folder = Folder.at(str(root))
    try:
        is_there = folder.exists("conf")
    except (OSError, RaystillError):  # a root that can't be read is told of when the job checks it
        is_there = False
    if not is_there or any(argument.startswith("hydra.searchpath=") for argument in arguments):
        yield []
        return
    with folder.as_local("conf") as path:
        yield [f'hydra.searchpath=["file://{path}"]']


def read_scale(name: str) -> ScaleConfig:
    """Return a file of `conf/scale`, for jobs that need nothing else of `conf/`.

    Raises:
        ConfigError: Names every mistake with its path.
    """
    with hydra.initialize_config_dir(str(CONF), version_base=None):
        return validate(ScaleConfig, _to_values(hydra.compose(f"scale/{name}").scale))


def read_composed(composed: DictConfig, model: type[E]) -> E:
    """Return the experiment that Hydra composed for this job.

    Raises:
        ConfigError: Names every mistake with its path.
    """
    overridden = frozenset(override.split("=", 1)[0].lstrip("+") for override in HydraConfig.get().overrides.task)
    return read_experiment(_to_values(composed), _read_choices(), overridden, model)


def read_composed_index(composed: DictConfig) -> IndexRunConfig:
    """Return what Hydra composed for this job of indexing.

    Raises:
        ConfigError: Names every mistake with its path.
    """
    values, choices = _to_values(composed), _read_choices()
    return validate(IndexRunConfig, {**values, "name": values["name"] or f"{choices['corpus']}_{choices['retriever']}"})


def read_composed_annotation(composed: DictConfig) -> ExportConfig | VerdictsConfig | ImportConfig:
    """Return what Hydra composed for this job of annotation.

    Raises:
        ConfigError: Names every mistake with its path.
    """
    values = _to_values(composed)
    if values["annotate"] == "export":
        return validate(ExportConfig, values)
    return validate(VerdictsConfig, values) if values["annotate"] == "judge" else validate(ImportConfig, values)


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
        print_results(result.read_json(COMPARISON), Console(file=sys.stdout), make_task(experiment.task).measures)
        print(f"report: {result}/{REPORT}")
    for step in finished.steps:
        if step.name == "quality_page":
            print(f"data quality: {step.folder}/{PAGE}")
        if step.name == "export":
            print(f"exported {step.arm}: {step.folder}")
    _print_end(finished, started)


def _generate(experiment: GenerateExperimentConfig) -> None:
    if not experiment.plan:
        _run(experiment, "generate")
        return
    started = time.monotonic()
    finished = run(experiment, "plan")
    result = finished.steps[-1].folder
    print_plan(result.read_json(PLAN), Console(file=sys.stdout))
    print(f"page: {result}/{PLAN_PAGE}")
    _print_end(finished, started)


def _trace(experiment: CurvesExperimentConfig) -> None:
    started = time.monotonic()
    finished = run(experiment)
    result = finished.steps[-1].folder
    print_results(to_entries(result.read_json(CURVES)), Console(file=sys.stdout))
    print(f"report: {result}/{REPORT}")
    _print_end(finished, started)


def _search(experiment: SearchExperimentConfig) -> None:
    started = time.monotonic()
    finished = run(experiment)
    searched, step = finished.steps[-2:]
    print_trials(read_trials(searched.folder), Console(file=sys.stdout))
    found = step.folder.read_json(SEARCH)
    print(f"report: {step.folder}/{REPORT}")
    print(f"best: trial {found['best']['number']}, as student={write_tuned(step, Folder.at(experiment.root))}")
    for name, value in found["data"].items():
        print(f"  its rows: {name}={value}")
    _print_end(finished, started)


def _index(config: IndexRunConfig) -> None:
    started = time.monotonic()
    _print_end(index(config), started)


def _diagnose(experiment: DoctorConfig) -> None:
    findings = diagnose(experiment)
    print_findings(findings, Console(file=sys.stdout))
    if experiment.output is not None:
        write_findings(findings, Path(experiment.output).expanduser().absolute())
    if any(finding.level is Level.FAULT for finding in findings):
        sys.exit(1)


def _annotate(config: ExportConfig | VerdictsConfig | ImportConfig) -> None:
    if isinstance(config, ExportConfig):
        output = export_sheets(config)
        print(f"sheets for annotators: {output / SHEETS}")
        print(f"key, to be kept from them: {output}/{KEY}")
    elif isinstance(config, VerdictsConfig):
        print(f"labels of the judge: {judge_items(config)}")
        output = Folder.at(config.output)
    else:
        output = import_labels(config)
        print(f"report: {output}/{ANNOTATION}")
    print(f"done: {output}", flush=True)


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
