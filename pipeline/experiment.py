"""An experiment: which arms, which students, which benchmarks, and where it all runs.

Arms say where rows come from, students what is trained on them; every arm is trained with every student unless it lists
its own. Judges are teachers that answer for the benchmarks' items themselves. Hydra composes the values from `conf/`,
this module says what they may be.
"""

import re
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from math import ceil
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, StringConstraints, field_validator, model_validator

from pipeline.cluster import ScaleConfig
from pipeline.config import Config, validate
from pipeline.errors import ConfigError
from pipeline.evaluation.config import EvaluationConfig
from pipeline.quality.cartography import SelectionConfig
from pipeline.quality.filters import FiltersConfig
from pipeline.quality.intrinsic import QualityConfig
from pipeline.quality.watch import WatchConfig
from pipeline.records import Outcome
from pipeline.sources.corpus_kinds import AnyCorpusConfig
from pipeline.sources.data import AnyDataConfig, JoinConfig, MixConfig, SeedData, ThreadsConfig, TopicsConfig
from pipeline.stages.index import AnyRetrieverConfig
from pipeline.students.config import AnyStudentConfig, ClassifierConfig, FineTunedConfig
from pipeline.students.dynamics import check_cartographer
from pipeline.tasks import AnyMethodConfig, AnyTaskConfig, make_task
from pipeline.tasks.cqa import CqaConfig
from pipeline.tasks.task import JudgePrompt, Task
from pipeline.teachers.batch_config import OpenAIBatchConfig
from pipeline.teachers.kinds import AnyTeacherConfig
from pipeline.teachers.offline import OfflineConfig
from pipeline.teachers.teacher import SamplingConfig
from pipeline.tracking import TrackingConfig

Key = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]*$")]
BASELINES = ("majority", "prior", "length", "prototype")
TFIDF, FROZEN = "tfidf_", "frozen_"
"""Before the key of an arm: the baseline that is trained on its rows."""


class DataRootConfig(Config):
    """Where benchmarks and data files are."""

    root: str | None
    """Folder or URL; null where nothing is looked for in it."""


class IndexConfig(Config):
    """Documents to retrieve from, and how."""

    corpus: AnyCorpusConfig | None
    """Null: the answers that the task's communities had before their first validation question."""
    retriever: AnyRetrieverConfig


class CartographyConfig(Config):
    """Rows of another arm, picked by how a student learns them (Swayamdipta et al. 2020, arXiv 2009.10795)."""

    kind: Literal["cartography"]
    arm: Key
    student: ClassifierConfig
    """Trained once on all rows of that arm, for all its epochs, under its one seed; kept for nothing else."""
    selection: SelectionConfig

    @field_validator("student")
    @classmethod
    def _check_student(cls, student: ClassifierConfig) -> ClassifierConfig:
        check_cartographer(student)
        return student

    @property
    def sources(self) -> tuple[str, ...]:
        """The arms whose rows these are."""
        return (self.arm,)


DerivedConfig = MixConfig | JoinConfig | CartographyConfig
"""Data that are other arms' rows."""
RELEASED, WITH_TAG = "released", "_tag"
"""The arm of students as they were published, and what an arm's name ends in where users' interests count too."""
_LARGEST_FLOOR = 0.02
"""Of the p that the surest difference between rankers can have after Holm's correction: well below the usual .05."""


class ArmConfig(Config):
    """Where the rows of one line of the comparison come from."""

    data: Annotated[AnyDataConfig | CartographyConfig, Field(discriminator="kind")]
    index: Key | None = None
    """What the method retrieves from; null where it needs no documents."""
    teacher: AnyTeacherConfig | None = None
    method: AnyMethodConfig | None = None
    filters: FiltersConfig
    students: tuple[Key, ...] | None = None
    """Keys of the students to train; null: all."""

    @model_validator(mode="after")
    def _check_parts(self) -> "ArmConfig":
        if isinstance(self.data, SeedData):
            if self.teacher is None or self.method is None:
                raise ValueError(f"data of kind {self.data.kind} are seeds; they need a `teacher` and a `method`")
            if self.method.n_passages and self.index is None:
                raise ValueError(f"the method {self.method.name} asks about retrieved documents; name an `index`")
            if self.index is not None and not self.method.n_passages:
                raise ValueError(f"the method {self.method.name} retrieves no documents; leave out `index`")
        elif self.teacher is not None or self.method is not None or self.index is not None:
            raise ValueError(
                f"data of kind {self.data.kind} are rows already; leave out `teacher`, `method` and `index`"
            )
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
        if isinstance(teacher, OpenAIBatchConfig):
            raise ValueError(
                "a judge's row says how long one answer takes, which a batch can't tell; name a teacher that is asked "
                "directly, as in teacher=openai"
            )
        return teacher


class ExperimentConfig(Config):
    """Everything that one command runs."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    task: AnyTaskConfig
    root: str = Field(min_length=1)
    """Folder or URL that everything is kept under."""
    root_is_shared: bool
    """Whether a local root is the same folder on every node."""
    data: DataRootConfig
    seed: int = Field(ge=0)
    """Of teachers' rows, folds and filters. Final fits, samples of data files and the bootstrap have their own."""
    indexes: dict[Key, IndexConfig]
    """What arms retrieve from."""
    arms: dict[Key, ArmConfig] = Field(min_length=1)
    students: dict[Key, AnyStudentConfig] = Field(min_length=1)
    judges: dict[Key, JudgeConfig]
    export: tuple[str, ...] | None
    """Students that `ray_jobs/export.py` exports, each as `arm/student`; null: all."""
    replay: tuple[Outcome, ...]
    """Outcomes; requests that ended so are asked again, in this run alone."""
    watch: WatchConfig
    """Over all arms' teachers, while they are asked."""
    evaluation: EvaluationConfig
    quality: QualityConfig | None
    """Null: data sets are described by their cards alone."""
    oracle: str | None
    """A student, as `arm/student`, that is trained on gold rows and says whether others' rows keep their label."""
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
                if key in BASELINES or key.startswith((TFIDF, FROZEN)):
                    raise ValueError(f"{kind}.{key}: that is the name of a baseline; choose another key")
        if shared := sorted(self.arms.keys() & self.judges.keys()):
            raise ValueError(f"judges.{shared[0]}: that is the key of an arm; choose another key")
        for key, arm in self.arms.items():
            if unknown := [s for s in arm.students or () if s not in self.students]:
                raise ValueError(f"arms.{key}.students: no student {', '.join(unknown)}; have {list(self.students)}")
            if isinstance(arm.data, DerivedConfig) and (unknown := [n for n in arm.data.sources if n not in self.arms]):
                raise ValueError(
                    f"arms.{key}.data: no arm {', '.join(unknown)} to take rows from; have {list(self.arms)}"
                )
            if arm.index is not None and arm.index not in self.indexes:
                raise ValueError(f"arms.{key}.index: no index {arm.index}; have {list(self.indexes) or 'none'}")
        try:
            self.order_arms()
        except CycleError as error:
            raise ValueError(f"arms: {' <- '.join(error.args[1])} take rows from each other in a circle") from None
        if self.watch.resample_topics and not any(
            isinstance(arm.data, TopicsConfig) and arm.data.limit is not None for arm in self.arms.values()
        ):
            raise ValueError(
                "watch.resample_topics: no arm leaves topics of its file to draw from; give an arm data=topics and "
                "data.limit"
            )
        pairs = ["/".join(pair) for pair in self.pairs()]
        if unknown := [pair for pair in self.export or () if pair not in pairs]:
            raise ValueError(f"export: {', '.join(unknown)} is not trained; trained are {', '.join(pairs)}")
        if self.oracle is not None and self.oracle not in pairs:
            raise ValueError(f"oracle: {self.oracle} is not trained; trained are {', '.join(pairs)}")
        task = make_task(self.task)
        self._check_task(task)
        for key, student in self.students.items():
            if student.kind not in task.student_kinds:
                raise ValueError(
                    f"students.{key}: a student of kind {student.kind} can't learn the task {self.task.name}; "
                    f"choose one of kind {' or '.join(task.student_kinds)}"
                )
            if student.selected_on and "dev-selected" not in self.task.settings:
                raise ValueError(
                    f"students.{key}: its settings were chosen on dev items of {', '.join(student.selected_on)}, so it "
                    "is reported on test items alone there; add dev-selected to task.settings"
                )
            if isinstance(student, FineTunedConfig):
                for n_workers in self.scale.training.worker_counts:
                    if student.batch_size % n_workers:
                        raise ValueError(
                            f"students.{key}.batch_size: {n_workers} workers (scale.training.workers, min_workers) "
                            f"can't share batches of {student.batch_size} rows evenly"
                        )
        return self

    def _check_task(self, task: Task) -> None:
        """Check that arms and judges ask for what the task can be asked for."""
        has_communities = isinstance(self.task, CqaConfig)
        if isinstance(self.task, CqaConfig):
            self._check_rankers(self.task)
        for key, index in self.indexes.items():
            if index.corpus is None and not has_communities:
                raise ValueError(f"indexes.{key}.corpus: {task.name} has no communities with answers; name a corpus")
        for key, arm in self.arms.items():
            if has_communities and (key == RELEASED or key.endswith(WITH_TAG)):
                raise ValueError(f"arms.{key}: that is the name of a baseline; choose another key")
            if not isinstance(arm.data, DerivedConfig) and has_communities != isinstance(arm.data, ThreadsConfig):
                raise ValueError(
                    f"arms.{key}.data: data of kind {arm.data.kind} are "
                    + (
                        f"no questions and answers, which {task.name} is about; use data=questions, "
                        "data=accepted_answers or data=answers"
                        if has_communities
                        else f"of communities, and {task.name} has none"
                    )
                )
            if arm.method is not None and not isinstance(arm.method, task.methods):
                raise ValueError(f"arms.{key}.method: {arm.method.name} is none of the methods of the task {task.name}")
            if isinstance(arm.teacher, OfflineConfig) and task.offline_needs_passages and arm.index is None:
                raise ValueError(
                    f"arms.{key}.teacher: the offline teacher of {task.name} copies from a retrieved document, and "
                    f"the method {arm.method.name if arm.method else ''} has none; name another teacher"
                )
        for key, judge in self.judges.items():
            if task.judging is None:
                raise ValueError(
                    f"judges.{key}: the task {task.name} has no labels that a judge could say; leave it out"
                )
            if judge.prompt not in task.judging.templates:
                raise ValueError(
                    f"judges.{key}.prompt: {task.name} can't be asked {judge.prompt}; choose "
                    f"{' or '.join(task.judging.templates)}"
                )
        if "dev-selected" in self.task.settings and task.positive is None:
            raise ValueError(
                "task.settings: dev-selected chooses a threshold, which takes a task with a positive label"
            )

    def _check_rankers(self, config: CqaConfig) -> None:
        """Check that rankers can be told apart, and that nothing is asked of their data that they don't have."""
        if self.quality is not None:
            raise ValueError(
                f"quality: its page is of rows with labels, beside a benchmark's, and {config.name} has none; leave "
                "out quality=default: the comparison's report says what arms' answers look like"
            )
        # BM25, each student as released, and each that is trained; all without and with TAG.
        n_rankers = 2 * (1 + len(self.students) + len(list(self.pairs())))
        n_pairs = n_rankers * (n_rankers - 1) // 2
        floor = n_pairs / (config.n_permutations + 1)
        if floor > _LARGEST_FLOOR:
            raise ValueError(
                f"task.n_permutations: with {config.n_permutations}, Holm's correction for the {n_pairs} pairs of "
                f"{n_rankers} rankers leaves no p below {floor:.3f}, and hardly any difference could be significant; "
                f"set it to {ceil(n_pairs / _LARGEST_FLOOR) - 1} or more"
            )

    def order_arms(self) -> list[str]:
        """Return the arms' keys, those whose rows others take before these.

        Raises:
            graphlib.CycleError: Arms take rows from each other in a circle.
        """
        sources = {
            key: arm.data.sources if isinstance(arm.data, DerivedConfig) else () for key, arm in self.arms.items()
        }
        return list(TopologicalSorter(sources).static_order())

    def pairs(self) -> Iterator[tuple[str, str]]:
        """Yield the (arm, student) keys to train, in the order of the configuration."""
        for key, arm in self.arms.items():
            for student in self.students if arm.students is None else arm.students:
                yield key, student

    def exports(self) -> Iterator[tuple[str, str]]:
        """Yield the (arm, student) keys to export."""
        return (
            (arm, student) for arm, student in self.pairs() if self.export is None or f"{arm}/{student}" in self.export
        )


E = TypeVar("E", bound=ExperimentConfig)
_ARM_GROUPS = ("data", "teacher", "method", "filters")
_PLACES = {
    **{group: f"arms.<key>.{group}" for group in _ARM_GROUPS},
    **{group: f"indexes.<key>.{group}" for group in ("corpus", "retriever")},
    "student": "students.<key>",
    "judge": "judges.<key>",
}
"""Where an experiment has what a root group holds."""


def read_experiment(
    composed: Mapping[str, Any], choices: Mapping[str, str], overridden: frozenset[str], model: type[E]
) -> E:
    """Return the experiment in a composed configuration.

    Without arms (no `experiment=`), the root groups form one arm, one student and at most one judge, named by their
    choices.

    Args:
        composed: What Hydra composed, as plain values.
        choices: The option chosen in each root group.
        overridden: The root groups and keys that the command line names.
        model: What the values must be.

    Raises:
        ConfigError: Names every mistake with its path.
    """
    values = dict(composed)
    parts = {group: values.pop(group, None) for group in _PLACES}
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
    return validate(model, values)


def _form_parts(
    parts: Mapping[str, Any], choices: Mapping[str, str], overridden: frozenset[str]
) -> dict[str, dict[str, Any]]:
    """Return the indexes, arms, students and judges that the root groups form."""
    judge, teacher = parts["judge"], parts["teacher"]
    has_judge = any(value is not None for value in judge.values())
    is_rows = parts["data"].get("kind") not in ("topics", "seeds", "questions")
    arm = {group: parts[group] for group in _ARM_GROUPS}
    # A teacher that is named beside rows is the judge's, or else a mistake to be told.
    if is_rows and (has_judge or "teacher" not in overridden):
        arm["teacher"] = arm["method"] = None
    indexes = {}
    wants_own_answers = parts["data"].get("kind") == "questions" and bool(parts["method"].get("passages"))
    if parts["corpus"] is not None or wants_own_answers:
        corpus = "own_answers" if parts["corpus"] is None else choices["corpus"]
        arm["index"] = _to_key(f"{corpus}_{choices['retriever']}")
        indexes[arm["index"]] = {"corpus": parts["corpus"], "retriever": parts["retriever"]}
    return {
        "indexes": indexes,
        "arms": {_to_key(choices["data"] if is_rows else choices["teacher"]): arm},
        "students": {_to_key(choices["student"]): parts["student"]},
        "judges": {_to_key(f"{choices['teacher']}_{choices['judge']}"): {**judge, "teacher": teacher}}
        if has_judge
        else {},
    }


def _to_key(choice: str) -> str:
    return re.sub(r"[^a-z0-9_]", "_", choice.lower())
