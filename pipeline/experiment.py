"""An experiment: which arms, which students, which benchmarks, and where it all runs.

Arms say where rows come from, students what is trained on them; every arm is trained with every student unless it lists
its own. Judges are teachers that answer for the benchmarks' items themselves. Hydra composes the values from `conf/`,
this module says what they may be.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, field_validator, model_validator

from pipeline.cluster import ScaleConfig
from pipeline.config import Config, validate
from pipeline.errors import ConfigError
from pipeline.evaluation.config import EvaluationConfig
from pipeline.quality.filters import FiltersConfig
from pipeline.records import Outcome
from pipeline.sources.benchmarks import BENCHMARKS, BenchmarkConfig
from pipeline.sources.data import AnyDataConfig, TopicsConfig
from pipeline.students.config import StudentConfig
from pipeline.tasks import TASKS, AnyMethodConfig
from pipeline.tasks.task import JudgePrompt
from pipeline.teachers.kinds import AnyTeacherConfig
from pipeline.teachers.offline import OfflineConfig
from pipeline.teachers.teacher import SamplingConfig
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


class JudgeConfig(Config):
    """A teacher that says the label of every benchmark item itself."""

    teacher: AnyTeacherConfig
    prompt: JudgePrompt
    sampling: SamplingConfig
    """In place of the teacher's, which is meant for writing rows."""
    max_attempts: int = Field(gt=0)
    """Attempts at one item, each under a new seed, while the answer holds none of the words asked for."""

    @field_validator("teacher")
    @classmethod
    def _check_teacher(cls, teacher: AnyTeacherConfig) -> AnyTeacherConfig:
        if isinstance(teacher, OfflineConfig):
            raise ValueError("rules write rows and can't judge; name a teacher of another kind, as in teacher=openai")
        return teacher


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
    judges: dict[Key, JudgeConfig]
    replay: tuple[Outcome, ...]
    """Outcomes; requests that ended so are asked again, in this run alone."""
    evaluation: EvaluationConfig
    scale: ScaleConfig
    tracking: TrackingConfig

    @field_validator("replay")
    @classmethod
    def _check_replay(cls, reasons: tuple[Outcome, ...]) -> tuple[Outcome, ...]:
        if Outcome.OK in reasons:
            raise ValueError("what ended as ok has its answer; other filters cost no new ones")
        return reasons

    @model_validator(mode="after")
    def _check_keys(self) -> "ExperimentConfig":
        for kind, keys in (("arms", self.arms), ("judges", self.judges)):
            for key in keys:
                if key in BASELINES or key.startswith("tfidf_"):
                    raise ValueError(f"{kind}.{key}: that is the name of a baseline; choose another key")
        if shared := sorted(self.arms.keys() & self.judges.keys()):
            raise ValueError(f"judges.{shared[0]}: that is the key of an arm; choose another key")
        for key, arm in self.arms.items():
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
_PLACES = {
    **{group: f"arms.<key>.{group}" for group in _ARM_GROUPS},
    "student": "students.<key>",
    "judge": "judges.<key>",
}
"""Where an experiment has what a root group holds."""


def read_experiment(
    composed: Mapping[str, Any], choices: Mapping[str, str], overridden: frozenset[str]
) -> ExperimentConfig:
    """Return the experiment in a composed configuration.

    Without arms (no `experiment=`), the root groups form one arm, one student and at most one judge, named by their
    choices.

    Args:
        composed: What Hydra composed, as plain values.
        choices: The option chosen in each root group.
        overridden: The root groups and keys that the command line names.

    Raises:
        ConfigError: Names every mistake with its path.
    """
    values = dict(composed)
    parts = {group: values.pop(group) for group in _PLACES}
    if values["arms"]:
        of_groups = {key for key in overridden if key.split(".")[0] in _PLACES}
        if ignored := sorted(of_groups - {"data.root"}):
            raise ConfigError(
                f"{ignored[0]}=… has no effect beside experiment={choices.get('experiment')}, which has arms, students "
                f"and judges of its own; set single values as {_PLACES[ignored[0].split('.')[0]]}.…, or leave out "
                "experiment="
            )
    else:
        values |= _form_parts(parts, choices, overridden)
        keys = [key for kind in ("arms", "students", "judges") for key in values[kind]]
        values["name"] = values["name"] or "_".join([values["task"]["name"], *keys])
    values["data"] = {"root": parts["data"].get("root")}
    if not values["name"]:
        values["name"] = choices.get("experiment")
    return validate(ExperimentConfig, values)


def _form_parts(
    parts: Mapping[str, Any], choices: Mapping[str, str], overridden: frozenset[str]
) -> dict[str, dict[str, Any]]:
    """Return the arms, students and judges that the root groups form."""
    judge, teacher = parts["judge"], parts["teacher"]
    has_judge = any(value is not None for value in judge.values())
    is_rows = parts["data"].get("kind") != "topics"
    arm = {group: parts[group] for group in _ARM_GROUPS}
    # A teacher that is named beside rows is the judge's, or else a mistake to be told.
    if is_rows and (has_judge or "teacher" not in overridden):
        arm["teacher"] = arm["method"] = None
    return {
        "arms": {_to_key(choices["data"] if is_rows else choices["teacher"]): arm},
        "students": {_to_key(choices["student"]): parts["student"]},
        "judges": {_to_key(f"{choices['teacher']}_{choices['judge']}"): {**judge, "teacher": teacher}}
        if has_judge
        else {},
    }


def _to_key(choice: str) -> str:
    return re.sub(r"[^a-z0-9_]", "_", choice.lower())
