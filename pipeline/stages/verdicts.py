"""An LLM as a judge of the items of an annotation sheet: its labels as a file, like an annotator's.

They stand beside people's labels, with their agreement (`annotate=import judge_labels=…`), and never in their place.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import Field, field_validator

from pipeline.cluster import Cluster, ScaleConfig
from pipeline.config import Config
from pipeline.errors import SourceError
from pipeline.evaluation.annotation import Annotation, Fault, Label, LabelFile
from pipeline.evaluation.label_files import write_labels
from pipeline.identity import digest
from pipeline.prompts.hallucination import TEMPLATE, ask_of_answer
from pipeline.prompts.replies import read_choice
from pipeline.prompts.templates import digest_templates
from pipeline.records import Completion, Outcome, Passage, Request
from pipeline.stages.annotate import ITEMS
from pipeline.stages.ask import plan_ask, prepare_asks
from pipeline.stages.inputs import check_place
from pipeline.stages.judge import judge_completion
from pipeline.steps import Steps
from pipeline.storage import Folder
from pipeline.teachers.kinds import AnyTeacherConfig, pin_teacher

LOG = logging.getLogger(__name__)


class VerdictsConfig(Config):
    """Which sheet an LLM labels."""

    annotate: Literal["judge"]
    output: str = Field(min_length=1)
    """Folder or URL."""
    exported: str = Field(min_length=1)
    """What the export ended with."""
    teacher: AnyTeacherConfig
    max_attempts: int = Field(gt=0)
    """At a usable word, for each item."""
    root: str = Field(min_length=1)
    """Folder or URL that holds what was ever said, so that nothing is paid twice."""
    root_is_shared: bool
    seed: int = Field(ge=0)
    scale: ScaleConfig

    @field_validator("teacher")
    @classmethod
    def _check_teacher(cls, teacher: AnyTeacherConfig) -> AnyTeacherConfig:
        if teacher.kind == "offline":
            raise ValueError("the offline teacher is rules that write, and can't judge; name a model's")
        return teacher


@dataclass(frozen=True)
class _Judging:
    """What asking wants to know of whose requests these are."""

    name: str = "hallucination"
    settings: Mapping[str, Any] = field(default_factory=dict)
    code: Sequence[str] = tuple(f"pipeline.prompts.{name}" for name in ("hallucination", "requests", "templates"))

    def reply_offline(self, request: Request, seed: int) -> str:
        """Rules can't judge; the configuration has seen to it that none are asked to."""
        raise NotImplementedError


def judge_items(config: VerdictsConfig) -> str:
    """Ask an LLM about every item of a sheet; return where the file of its labels lies.

    Raises:
        ConfigError: The teacher lacks its key or its engine, or the root can't be used.
        SourceError: The export is of an older version, or the LLM said nothing usable of any item.
        TeacherError: The teacher left requests without an end.
    """
    for setting in ("root", "exported", "output"):
        check_place(setting, getattr(config, setting))
    exported, output, root = (Folder.at(place) for place in (config.exported, config.output, config.root))
    root.check_writable()
    if not exported.exists(ITEMS):
        raise SourceError(f"{exported} holds no {ITEMS}; give the folder that annotate=export ended with")
    content = exported.read_json(ITEMS)
    teacher, identity = pin_teacher(config.teacher, offline_code=())

    def write_requests() -> list[Request]:
        return [
            ask_of_answer(
                item["item_id"],
                item["question"],
                item["answer"],
                [Passage(str(rank), text, 0.0, rank) for rank, text in enumerate(item["passages"], start=1)],
                teacher=identity,
                run_seed=config.seed,
            )
            for item in content["items"]
        ]

    ask = plan_ask(
        f"judge {teacher.label}",
        teacher,
        write_requests,
        config={"seed": config.seed},
        made_of={
            "items": digest(content["items"]),
            "template": digest_templates([TEMPLATE]),
            "teacher": digest(identity),
        },
        code=[__name__],
        judge=judge_completion,
        max_attempts=config.max_attempts,
        task=_Judging(),
        steps=Steps(root),
    )
    with Cluster(config.scale, root, config.root_is_shared) as cluster:
        prepare_asks([ask], (), is_local=config.scale.address is None)
        histories = ask.complete(cluster)
    last = {request_id: history[-1] for request_id, history in histories.items() if history}
    labels = collect_verdicts(teacher.label, content["sheet"], ask.requests, last)
    if not labels.annotations:
        raise SourceError(f"{teacher.label} said neither yes nor no of any of {len(ask.requests)} items")
    LOG.info("%s said yes or no of %d of %d items", teacher.label, len(labels.annotations), len(ask.requests))
    name = f"labels_{labels.sheet}_{teacher.label}.json"
    output.write_text(name, write_labels(labels))
    return f"{output}/{name}"


def collect_verdicts(
    judge: str, sheet: str, requests: Sequence[Request], completions: Mapping[str, Completion]
) -> LabelFile:
    """Return what an LLM said of a sheet's items as a file of labels; items without a usable word have none.

    Args:
        judge: Its name.
        sheet: Whose items they are.
        requests: Of `ask_of_answer`.
        completions: The last of each request, by its id.
    """
    replies = {
        r.seed.seed_id: read_choice(r, completions[r.request_id]) for r in requests if r.request_id in completions
    }
    annotations = (
        Annotation(item, Label(reply.value), Fault.UNSUPPORTED if reply.value == Label.YES else None)
        for item, reply in replies.items()
        if reply.outcome is Outcome.OK
    )
    return LabelFile(judge, sheet, judge, tuple(annotations))
