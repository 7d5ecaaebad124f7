"""An experiment: which arms, which students, which benchmarks, and where it all runs.

Arms say where rows come from, students what is trained on them; every arm is trained with every student unless it lists
its own. Hydra composes the values from `conf/`, this module says what they may be.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, field_validator, model_validator

from pipeline.config import Config, validate
from pipeline.errors import ConfigError
from pipeline.evaluation.config import EvaluationConfig
from pipeline.quality.filters import FiltersConfig
from pipeline.sources.benchmarks import BENCHMARKS, BenchmarkConfig
from pipeline.sources.data import AnyDataConfig, TopicsConfig
from pipeline.students.config import StudentConfig
from pipeline.students.train import TrainingConfig
from pipeline.tasks import TASKS, AnyMethodConfig
from pipeline.teachers.pool import PoolConfig
from pipeline.teachers.teacher import AnyTeacherConfig
from pipeline.tracking import TrackingConfig

Key = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]*$")]
Setting = Literal["standard", "dev-selected"]
BASELINES = ("majority", "prior", "length", "prototype")


class DataRootConfig(Config):
    """Where benchmarks and data files are."""

    root: str | None
    """Folder or URL; null where nothing is looked for in it."""


class TaskConfig(Config):
    """The task, and what it is judged on."""

    name: str
    benchmarks: tuple[str, ...]
    optional_benchmarks: tuple[str, ...]
    """Used where their files are under `data.root`, and named as left out where they are not."""
    own_benchmarks: tuple[BenchmarkConfig, ...]
    settings: tuple[Setting, ...] = Field(min_length=1)

    @field_validator("name")
    @classmethod
    def _check_name(cls, name: str) -> str:
        if name not in TASKS:
            raise ValueError(f"no such task; known: {', '.join(TASKS)}")
        return name

    @field_validator("benchmarks", "optional_benchmarks")
    @classmethod
    def _check_benchmarks(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if unknown := [name for name in names if name not in BENCHMARKS]:
            raise ValueError(f"no benchmark {', '.join(unknown)}; known: {', '.join(BENCHMARKS)}")
        return names

    @model_validator(mode="after")
    def _check_some(self) -> "TaskConfig":
        if not (self.benchmarks or self.optional_benchmarks or self.own_benchmarks):
            raise ValueError("name at least one benchmark: students that nothing judges are of no use")
        return self


class ArmConfig(Config):
    """Where the rows of one line of the comparison come from."""

    data: AnyDataConfig
    teacher: AnyTeacherConfig | None = None
    method: AnyMethodConfig | None = None
    filters: FiltersConfig
    students: tuple[Key, ...] | None = None
    """Keys of the students to train; null: all."""

    @model_validator(mode="after")
    def _check_parts(self) -> "ArmConfig":
        if isinstance(self.data, TopicsConfig):
            if self.teacher is None or self.method is None:
                raise ValueError(f"data of kind {self.data.kind} are seeds; they need a `teacher` and a `method`")
        elif self.teacher is not None or self.method is not None:
            raise ValueError(f"data of kind {self.data.kind} are rows already; leave out `teacher` and `method`")
        return self


class ScaleConfig(Config):
    """Where and how wide everything runs."""

    address: str | None
    """Ray cluster; null starts one on this machine. Inside `ray job submit` the job's cluster is taken."""
    num_cpus: int | None = Field(gt=0)
    """Logical CPUs of a cluster started here; null: all. Not used with an address."""
    pool: PoolConfig
    training: TrainingConfig


class ExperimentConfig(Config):
    """Everything that one command runs."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    task: TaskConfig
    root: str = Field(min_length=1)
    """Folder or URL that everything is kept under."""
    root_is_shared: bool
    """Whether a local root is the same folder on every node."""
    data: DataRootConfig
    seed: int = Field(ge=0)
    """Of teachers' rows, folds and filters. Final fits, samples of data files and the bootstrap have their own."""
    arms: dict[Key, ArmConfig] = Field(min_length=1)
    students: dict[Key, StudentConfig] = Field(min_length=1)
    evaluation: EvaluationConfig
    scale: ScaleConfig
    tracking: TrackingConfig

    @model_validator(mode="after")
    def _check_keys(self) -> "ExperimentConfig":
        for key, arm in self.arms.items():
            if key in BASELINES or key.startswith("tfidf_"):
                raise ValueError(f"arms.{key}: that is the name of a baseline; choose another key")
            if unknown := [s for s in arm.students or () if s not in self.students]:
                raise ValueError(f"arms.{key}.students: no student {', '.join(unknown)}; have {list(self.students)}")
        for key, student in self.students.items():
            if student.batch_size % self.scale.training.workers:
                raise ValueError(
                    f"students.{key}.batch_size: {self.scale.training.workers} workers (scale.training.workers) can't "
                    f"share batches of {student.batch_size} rows evenly"
                )
        return self

    def pairs(self) -> Iterator[tuple[str, str]]:
        """Yield the (arm, student) keys to train, in the order of the configuration."""
        for key, arm in self.arms.items():
            for student in self.students if arm.students is None else arm.students:
                yield key, student


_ARM_GROUPS = ("data", "teacher", "method", "filters")


def read_experiment(
    composed: Mapping[str, Any], choices: Mapping[str, str], overridden: frozenset[str]
) -> ExperimentConfig:
    """Return the experiment in a composed configuration.

    Without arms (no `experiment=`), the root groups form one arm and one student, named by their choices.

    Args:
        composed: What Hydra composed, as plain values.
        choices: The option chosen in each root group.
        overridden: The root groups and keys that the command line names.

    Raises:
        ConfigError: Names every mistake with its path.
    """
    values = dict(composed)
    parts = {group: values.pop(group) for group in (*_ARM_GROUPS, "student")}
    if values["arms"]:
        of_arms = {key for key in overridden if key.split(".")[0] in (*_ARM_GROUPS, "student")}
        if ignored := sorted(of_arms - {"data.root"}):
            group = ignored[0].split(".")[0]
            place = "students.<key>" if group == "student" else f"arms.<key>.{group}"
            raise ConfigError(
                f"{ignored[0]}=… has no effect beside experiment={choices.get('experiment')}, which has arms and "
                f"students of its own; set single values as {place}.…, or leave out experiment="
            )
    else:
        is_rows = parts["data"].get("kind") != "topics"
        if is_rows and "teacher" not in overridden:
            parts["teacher"] = parts["method"] = None
        arm = _to_key(choices["data"] if is_rows else choices["teacher"])
        values["arms"] = {arm: {group: parts[group] for group in _ARM_GROUPS}}
        values["students"] = {_to_key(choices["student"]): parts["student"]}
        values["name"] = values["name"] or f"{values['task']['name']}_{arm}_{_to_key(choices['student'])}"
    values["data"] = {"root": parts["data"].get("root")}
    if not values["name"]:
        values["name"] = choices.get("experiment")
    return validate(ExperimentConfig, values)


def _to_key(choice: str) -> str:
    return re.sub(r"[^a-z0-9_]", "_", choice.lower())
