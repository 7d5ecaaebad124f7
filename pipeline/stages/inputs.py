"""All that a run reads from outside, read and checked before any cluster work.

A user's mistake (a missing file, a model that doesn't exist, a root that can't be written) costs seconds here and
would cost hours later.
"""

import logging
import os
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field

from pipeline.errors import ConfigError, SourceError
from pipeline.experiment import CartographyConfig, DerivedConfig, ExperimentConfig
from pipeline.identity import digest
from pipeline.quality.intrinsic import pin_tools
from pipeline.records import Example, GoldItem, Seed
from pipeline.sources.answers import read_answers
from pipeline.sources.benchmarks import Benchmark, find_benchmark, site_benchmark
from pipeline.sources.communities import read_communities
from pipeline.sources.community import NO_COMMUNITIES, Communities
from pipeline.sources.corpora import list_files
from pipeline.sources.corpus_kinds import AnyCorpusConfig, FilesConfig, get_parts
from pipeline.sources.data import (
    AcceptedAnswersConfig,
    AnswersConfig,
    LabelledConfig,
    QuestionsConfig,
    SeedData,
    SeedsConfig,
    TopicsConfig,
    read_examples,
    read_seeds,
    read_spare_topics,
)
from pipeline.stages.index import get_dense
from pipeline.storage import Folder
from pipeline.tasks import make_task
from pipeline.tasks.cqa import CqaConfig, to_example, to_seed, to_written_examples
from pipeline.tasks.task import LabellingConfig, Task
from pipeline.tracking import TrackingConfig, redact, tracking_uri
from pipeline.weights import PinnedModel, count_positions, pin_model

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
    spare_topics: Mapping[str, Sequence[Seed]]
    """By arm whose topics may be resampled: those that its limit leaves out."""
    examples: Mapping[str, Sequence[Example]]
    """By arm that brings its rows."""
    gold: Mapping[str, Gold]
    """By benchmark."""
    models: Mapping[str, PinnedModel]
    """By student."""
    baseline_models: Mapping[str, PinnedModel]
    """By what encodes with it: `prototype`, and `frozen` and `quality` where they aren't left out."""
    cartographers: Mapping[str, PinnedModel]
    """By arm whose rows are picked by how a student learns them."""
    communities: Communities
    """Whose questions are answered; empty where the task labels texts, and then there is `gold`."""
    left_out: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """By arm whose answers were written elsewhere: how many of them are none of its rows, by why."""

    def list_gold(self) -> dict[str, Sequence[GoldItem]]:
        """Return what no training row may repeat, by benchmark: items to label, or what answers a test query."""
        answers: dict[str, Sequence[GoldItem]] = {
            name: [GoldItem(one.document_id, one.text, "", "test") for one in ranking.find_test_answers()]
            for name, ranking in self.communities.rankings.items()
        }
        return {**{name: gold.items for name, gold in self.gold.items()}, **answers}

    @property
    def gold_digests(self) -> dict[str, str]:
        """What identifies the benchmarks."""
        return {
            **{f"gold {name}": gold.digest for name, gold in self.gold.items()},
            **{f"ranking {name}": ranking.digest for name, ranking in self.communities.rankings.items()},
        }

    @property
    def digests(self) -> dict[str, str]:
        """What identifies every input."""
        return {
            **{f"seeds {key}": digest([asdict(seed) for seed in seeds]) for key, seeds in self.seeds.items()},
            **{f"rows {key}": digest([asdict(row) for row in rows]) for key, rows in self.examples.items()},
            **self.gold_digests,
            **{f"model {key}": model.identity for key, model in self.models.items()},
            **{f"baseline {key}": model.identity for key, model in self.baseline_models.items()},
            **{f"cartographer {key}": model.identity for key, model in self.cartographers.items()},
        }


def read_inputs(experiment: ExperimentConfig) -> Inputs:
    """Return all inputs of an experiment.

    Raises:
        ConfigError: The root or a model can't be used.
        SourceError: A file is missing or wrong.
        StorageError: The root can't be written.
    """
    check_root(experiment)
    task = make_task(experiment.task)
    seeds, spare_topics, examples, left_out = {}, {}, {}, {}
    communities = _read_communities(experiment)
    for key, arm in experiment.arms.items():
        if isinstance(arm.data, QuestionsConfig):
            threads = communities.training[: arm.data.limit]
            seeds[key] = [to_seed(thread) for thread in threads]
        elif isinstance(arm.data, AcceptedAnswersConfig):
            examples[key] = [to_example(thread) for thread in communities.training[: arm.data.limit]]
        elif isinstance(arm.data, AnswersConfig):
            examples[key], left_out[key] = _read_written_answers(key, arm.data, experiment.data.root, communities)
        elif isinstance(arm.data, SeedData):
            seeds[key] = read_seeds(arm.data, experiment.data.root)
            if experiment.watch.resample_topics and isinstance(arm.data, TopicsConfig):
                spare_topics[key] = read_spare_topics(arm.data, experiment.data.root)
            _check_labels(key, {seed.label for seed in seeds[key] if seed.label}, task)
        elif not isinstance(arm.data, DerivedConfig):
            examples[key] = read_examples(arm.data, experiment.data.root)
            _check_labels(key, {example.label for example in examples[key]}, task)
    _check_indexes(experiment)
    if experiment.quality is not None:
        pin_tools(experiment.quality)
    models = {
        key: _pin(f"students.{key}.max_length", student.model, student.revision, student.max_length)
        for key, student in experiment.students.items()
    }
    encoders = {
        "prototype": ("evaluation.prototype", experiment.evaluation.prototype),
        "frozen": ("evaluation.frozen", experiment.evaluation.frozen),
        "quality": ("quality", experiment.quality),
    }
    baseline_models = {
        key: _pin(f"{setting}.encoder.max_tokens", encoder.model, encoder.revision, encoder.max_tokens)
        for key, (setting, config) in encoders.items()
        if config is not None and (encoder := config.encoder) is not None
    }
    cartographers = {
        key: _pin(
            f"arms.{key}.data.student.max_length",
            arm.data.student.model,
            arm.data.student.revision,
            arm.data.student.max_length,
        )
        for key, arm in experiment.arms.items()
        if isinstance(arm.data, CartographyConfig)
    }
    gold = (
        _read_gold(experiment.task, experiment.data.root, task) if isinstance(experiment.task, LabellingConfig) else {}
    )
    return Inputs(
        task,
        seeds,
        spare_topics,
        examples,
        gold,
        models,
        baseline_models,
        cartographers,
        communities,
        left_out,
    )


def _read_written_answers(
    key: str, config: AnswersConfig, data_root: str | None, communities: Communities
) -> tuple[list[Example], Counter[str]]:
    left_out: Counter[str] = Counter()
    found = to_written_examples(read_answers(config, data_root, left_out), communities, left_out)
    reasons = ", ".join(f"{n:,} {why.replace('_', ' ')}" for why, n in left_out.items())
    counted = f"; left out: {reasons}" if left_out else ""
    if not found:
        raise SourceError(
            f"arms.{key}.data: {config.path} has no answer to a training question{counted}; its {config.question_id} "
            "must be ids of the communities' questions, or `question` name the columns of the file's own"
        )
    LOG.info("arms.%s: %d answers of %s%s", key, len(found), config.path, counted)
    return found, left_out


def _check_indexes(experiment: ExperimentConfig) -> None:
    """Check that all indexes' files and encoders are there."""
    for index in experiment.indexes.values():
        for part in get_parts(index.corpus).values() if index.corpus is not None else ():
            list_files(part, experiment.data.root)
        if dense := get_dense(index.retriever):
            pin_model(dense.encoder.model, dense.encoder.revision)


def _pin(setting: str, model: str, revision: str | None, max_tokens: int) -> PinnedModel:
    pinned = pin_model(model, revision)
    n_positions = count_positions(pinned)
    if n_positions is not None and max_tokens > n_positions:
        raise ConfigError(f"{setting} is {max_tokens}, but {model} takes {n_positions} tokens at most; set it lower")
    return pinned


def check_root(experiment: ExperimentConfig) -> None:
    """Check that everything of an experiment can be kept where it is to be kept; see `check_places`."""
    paths: dict[str, str | None] = {"root": experiment.root, "data.root": experiment.data.root}
    for key, arm in experiment.arms.items():
        if not isinstance(arm.data, TopicsConfig | SeedsConfig | LabelledConfig | AnswersConfig):
            continue
        if not (arm.data.root or experiment.data.root):
            for number, path in enumerate(arm.data.paths):
                paths[f"arms.{key}.data.path" + (f".{number}" if number else "")] = path
    if isinstance(experiment.task, CqaConfig):
        paths |= list_places(experiment.task.communities.posts, "task.communities.posts", experiment.data.root)
    for key, index in experiment.indexes.items():
        if index.corpus is None:
            continue
        paths |= list_places(index.corpus, f"indexes.{key}.corpus", experiment.data.root)
    check_places(paths, experiment.tracking)


def list_places(corpus: AnyCorpusConfig, setting: str, data_root: str | None) -> dict[str, str | None]:
    """Return where a corpus lies, by what sets it.

    Args:
        corpus: The corpus.
        setting: Where its configuration stands.
        data_root: The run's.
    """
    places: dict[str, str | None] = {}
    for name, part in get_parts(corpus).items():
        if isinstance(part, FilesConfig):
            places[f"{setting}{name}.root"] = part.root
            if not (part.root or data_root):
                places |= {f"{setting}{name}.paths.{number}": path for number, path in enumerate(part.paths)}
    return places


def check_places(paths: Mapping[str, str | None], tracking: TrackingConfig) -> Folder:
    """Return the root, having checked that all can be read and kept where it is to be.

    Args:
        paths: By what sets them; `root` is where everything is kept.
        tracking: Where runs are recorded.

    Raises:
        ConfigError: See `check_place`; or a remote root has no tracking server.
        StorageError: The root can't be written.
    """
    for key, value in paths.items():
        if value is not None:
            check_place(key, value)
    root = Folder.at(str(paths["root"]))
    if tracking.enabled:
        tracking_uri(tracking, root)
    root.check_writable()
    return root


def check_place(setting: str, location: str) -> None:
    """Check that a path or URL may be printed, and outlives the job.

    Raises:
        ConfigError: It holds credentials, or is relative in a submitted job, where the working directory is a copy
            that goes away.
    """
    if redact(location) != location:
        raise ConfigError(f"{setting} holds credentials, which would be printed and recorded; give them to the nodes")
    path = location.removeprefix("file://")
    if JOB_VARIABLE in os.environ and "://" not in path and not path.startswith("/"):
        raise ConfigError(
            f"{setting}={location} is a relative path, but a submitted job runs in a copy of the working directory "
            f"that is deleted afterwards; give {setting} an absolute path or a URL"
        )


def _read_communities(experiment: ExperimentConfig) -> Communities:
    if not isinstance(experiment.task, CqaConfig):
        return NO_COMMUNITIES
    communities = read_communities(experiment.task.communities, experiment.data.root)
    counted = ", ".join(f"{name.replace('_', ' ')} {n:,}" for name, n in communities.counts.items())
    LOG.info("communities: %s", counted)
    return communities


def _read_gold(config: LabellingConfig, root: str | None, task: Task) -> dict[str, Gold]:
    benchmarks = [find_benchmark(name) for name in config.benchmarks]
    for name in config.optional_benchmarks:
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
    for own in config.own_benchmarks.values():
        benchmark = site_benchmark(own)
        if benchmark.name in gold:
            raise ConfigError(f"task.own_benchmarks: {benchmark.name} is there twice; give each its own name")
        gold[benchmark.name] = Gold(benchmark, tuple(benchmark.load(own.root or root or ".")))
        if {item.label for item in gold[benchmark.name].items} != set(task.labels):
            raise ConfigError(
                f"task.own_benchmarks: {benchmark.name} has labels "
                f"{sorted({item.label for item in gold[benchmark.name].items})}, the task {sorted(task.labels)}"
            )
    if not gold:
        raise SourceError(f"none of the benchmarks {config.optional_benchmarks} is under data.root={root}")
    if "standard" not in config.settings and not any(one.benchmark.dev_splits for one in gold.values()):
        raise ConfigError(f"task.settings: dev-selected needs a benchmark with dev items; {list(gold)} have none")
    return gold


def _check_labels(key: str, labels: Collection[str], task: Task) -> None:
    if foreign := set(labels) - set(task.labels):
        raise ConfigError(f"arms.{key}.data: labels {sorted(foreign)} are none of the task's {list(task.labels)}")
