"""All that a run reads from outside, read and checked before any cluster work.

A user's mistake (a missing file, a model that doesn't exist, a root that can't be written) costs seconds here and
would cost hours later.
"""

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from pipeline.errors import ConfigError, SourceError
from pipeline.experiment import ArmConfig, ExperimentConfig
from pipeline.identity import digest
from pipeline.records import Example, GoldItem, Seed
from pipeline.sources.benchmarks import Benchmark, find_benchmark, site_benchmark
from pipeline.sources.data import AmbigNQTrainConfig, TopicsConfig, read_examples, read_seeds
from pipeline.storage import Folder
from pipeline.tasks import TASKS
from pipeline.tasks.task import Task
from pipeline.tracking import TrackingConfig, redact, tracking_uri
from pipeline.weights import PinnedModel, pin_model

LOG = logging.getLogger(__name__)
JOB_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Set by Ray's job supervisor in every driver that `ray job submit` starts."""


@dataclass(frozen=True)
class Gold:
    """A benchmark and its items."""

    benchmark: Benchmark
    items: tuple[GoldItem, ...]

    @property
    def digest(self) -> str:
        """What identifies the items, their labels, and which of them may select."""
        splits = [self.benchmark.dev_splits, self.benchmark.test_splits]
        return digest([splits, [asdict(item) for item in self.items]])


@dataclass(frozen=True)
class Inputs:
    """What was read."""

    task: Task
    seeds: Mapping[str, Sequence[Seed]]
    """By arm that a teacher writes."""
    examples: Mapping[str, Sequence[Example]]
    """By arm that brings its rows."""
    gold: Mapping[str, Gold]
    """By benchmark."""
    models: Mapping[str, PinnedModel]
    """By student, and `prototype`."""

    @property
    def digests(self) -> dict[str, str]:
        """What identifies every input."""
        return {
            **{f"seeds {key}": digest([asdict(seed) for seed in seeds]) for key, seeds in self.seeds.items()},
            **{f"rows {key}": digest([asdict(row) for row in rows]) for key, rows in self.examples.items()},
            **{f"gold {name}": gold.digest for name, gold in self.gold.items()},
            **{f"model {key}": model.identity for key, model in self.models.items()},
        }


def read_inputs(experiment: ExperimentConfig) -> Inputs:
    """Return all inputs of an experiment.

    Raises:
        ConfigError: The root or a model can't be used.
        SourceError: A file is missing or wrong.
        StorageError: The root can't be written.
    """
    check_root(experiment)
    task = TASKS[experiment.task.name]
    seeds, examples = {}, {}
    for key, arm in experiment.arms.items():
        if isinstance(arm.data, TopicsConfig):
            seeds[key] = read_seeds(arm.data, experiment.data.root)
        else:
            examples[key] = _check_labels(key, arm, task, read_examples(arm.data, experiment.data.root))
    models = {key: pin_model(student.model, student.revision) for key, student in experiment.students.items()}
    prototype = experiment.evaluation.prototype
    models["prototype"] = pin_model(prototype.model, None)
    if set(prototype.sentences) != set(task.labels):
        raise ConfigError(
            f"evaluation.prototype.sentences: one sentence for each of {sorted(task.labels)}, got "
            f"{sorted(prototype.sentences)}"
        )
    return Inputs(task, seeds, examples, _read_gold(experiment, task), models)


def check_root(experiment: ExperimentConfig) -> None:
    """Check that everything of an experiment can be kept where it is to be kept; see `check_places`."""
    paths = {"root": experiment.root, "data.root": experiment.data.root}
    for key, arm in experiment.arms.items():
        if not isinstance(arm.data, AmbigNQTrainConfig) and not (arm.data.root or experiment.data.root):
            paths[f"arms.{key}.data.path"] = arm.data.path
    check_places(paths, experiment.tracking)


def check_places(paths: Mapping[str, str | None], tracking: TrackingConfig) -> Folder:
    """Return the root, having checked that all can be read and kept where it is to be.

    Args:
        paths: By what sets them; `root` is where everything is kept.
        tracking: Where runs are recorded.

    Raises:
        ConfigError: A path is relative in a submitted job, where the working directory is a copy that goes away; or
            a remote root has no tracking server.
        StorageError: The root can't be written.
    """
    for key, value in paths.items():
        if value is not None and redact(value) != value:
            raise ConfigError(f"{key} holds credentials, which would be printed and recorded; give them to the nodes")
        if JOB_VARIABLE in os.environ and value is not None and "://" not in value and not value.startswith("/"):
            raise ConfigError(
                f"{key}={value} is a relative path, but a submitted job runs in a copy of the working directory "
                f"that is deleted afterwards; give {key} an absolute path or a URL"
            )
    root = Folder.at(str(paths["root"]))
    if tracking.enabled:
        tracking_uri(tracking, root)
    root.check_writable()
    return root


def _read_gold(experiment: ExperimentConfig, task: Task) -> dict[str, Gold]:
    root = experiment.data.root
    benchmarks = [find_benchmark(name) for name in experiment.task.benchmarks]
    for name in experiment.task.optional_benchmarks:
        benchmark = find_benchmark(name)
        if root is not None and benchmark.is_present(root):
            benchmarks.append(benchmark)
        else:
            LOG.warning("%s is left out: its files are not under data.root=%s", name, root)
    gold = {}
    for benchmark in benchmarks:
        if benchmark.files and root is None:
            raise SourceError(f"{benchmark.name} is looked for under data.root, which is not set")
        gold[benchmark.name] = Gold(benchmark, tuple(benchmark.load(root or ".")))
    for config in experiment.task.own_benchmarks:
        benchmark = site_benchmark(config, task.positive)
        if benchmark.name in gold:
            raise ConfigError(f"task.own_benchmarks: {benchmark.name} is there twice; give each its own name")
        gold[benchmark.name] = Gold(benchmark, tuple(benchmark.load(config.root or root or ".")))
        if {item.label for item in gold[benchmark.name].items} != set(task.labels):
            raise ConfigError(
                f"task.own_benchmarks: {benchmark.name} has labels "
                f"{sorted({item.label for item in gold[benchmark.name].items})}, the task {sorted(task.labels)}"
            )
    if not gold:
        raise SourceError(f"none of the benchmarks {experiment.task.optional_benchmarks} is under data.root={root}")
    if "standard" not in experiment.task.settings and not any(one.benchmark.dev_splits for one in gold.values()):
        raise ConfigError(f"task.settings: dev-selected needs a benchmark with dev items; {list(gold)} have none")
    return gold


def _check_labels(key: str, arm: ArmConfig, task: Task, examples: Sequence[Example]) -> Sequence[Example]:
    if foreign := {example.label for example in examples} - set(task.labels):
        raise ConfigError(f"arms.{key}.data: labels {sorted(foreign)} are none of the task's {list(task.labels)}")
    return examples
