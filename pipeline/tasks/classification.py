"""Text classification by retrieval and refinement, after SynthesizRR (arXiv 2405.10040).

A teacher rewrites documents that were retrieved for labelled examples (seeds) in the manner of the task; the text has
its seed's label, which is given and never predicted. What the task is (its labels, how they are said to the teacher,
its instruction) stands in its file under `conf/task/`.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Literal

from jinja2 import TemplateError
from pydantic import Field, model_validator

from pipeline.config import Config
from pipeline.identity import digest
from pipeline.prompts.replies import Parsed
from pipeline.prompts.templates import render, render_source
from pipeline.records import Completion, Example, Message, Outcome, Request, Seed
from pipeline.tasks.classification_methods import (
    AnySynthesisConfig,
    AttributedConfig,
    Demonstration,
    FewGenConfig,
    FromDocumentsConfig,
    NonRetrIclConfig,
    RetrIclConfig,
    SynthesisConfig,
    assign,
)
from pipeline.tasks.free_text import take_sentences, trim
from pipeline.tasks.task import JudgePrompt, Judging, LabellingConfig, Prompt, Retrieved, Task

_USER, _JUDGE = "classification/user.jinja", "classification/judge_zero_shot.jinja"
_QUOTES = {'"': '"', "'": "'", "\u201c": "\u201d", "\u2018": "\u2019"}


class LabelConfig(Config):
    """What one label means."""

    verbalised: str = Field(min_length=1)
    """The phrase that says it in the instruction."""
    prototype: str = Field(min_length=1)
    """A sentence that describes its texts; the `prototype` baseline compares with it."""
    subtopics: list[str]
    """For attributed prompts; may be empty."""


class ClassificationConfig(LabellingConfig):
    """The task: its labels, how they are asked for, and what it is judged on."""

    kind: Literal["classification"]
    labels: dict[str, LabelConfig] = Field(min_length=2)
    """In the order of their class indices."""
    positive: str | None
    """Of two labels the one that scores rank by; null: accuracy and F1 alone."""
    instruction: str = Field(min_length=1)
    """Jinja source. Knows `label` (verbalised), `has_document`, and `attributes` by their dimension."""
    document_header: str = Field(min_length=1)
    """The line before a document."""
    cue: str = Field(min_length=1)
    """The line that the text is to follow; a reply is split where it comes again."""
    refusals: list[str]
    """A reply that holds one of these is no text of the task."""
    max_new_tokens: int = Field(gt=0)
    """Of a text."""
    rows_per_label: int = Field(gt=0)
    """That methods ask for, unless they say otherwise."""
    rows: int = Field(gt=0)
    """That arms are compared at, where an experiment says so."""
    lead_sentences: int = Field(gt=0)
    """Of a document that the offline teacher copies."""

    @model_validator(mode="after")
    def _check(self) -> "ClassificationConfig":
        if self.positive is not None and (self.positive not in self.labels or len(self.labels) != 2):
            raise ValueError(f"positive: {self.positive!r} is not one of two labels; they are {list(self.labels)}")
        for label, config in self.labels.items():
            try:
                self.render_instruction(label, has_document=True, attributes={})
            except TemplateError as error:
                raise ValueError(f"instruction, with label {config.verbalised!r}: {error}") from None
        return self

    def render_instruction(self, label: str, *, has_document: bool, attributes: Mapping[str, str]) -> str:
        """Return what the teacher is told to do."""
        return render_source(
            self.instruction, label=self.labels[label].verbalised, has_document=has_document, attributes=attributes
        )


def write_query(config: ClassificationConfig, seed: Seed, method: AnySynthesisConfig) -> str:
    """Return the seed's text, after its label's phrase where the method wants that."""
    if isinstance(method, FromDocumentsConfig) and method.query == "label_and_seed_text":
        return f"{config.labels[seed.label].verbalised}: {seed.text}"
    return seed.text


def write_prompts(
    config: ClassificationConfig,
    seeds: Sequence[Seed],
    retrieved: Retrieved,
    method: AnySynthesisConfig,
    run_seed: int,
) -> list[Prompt]:
    """Return one prompt for each row that is asked for; demonstrations are earlier turns of the chat.

    Raises:
        SourceError: A label is left without documents or demonstrations.
    """
    subtopics = {label: one.subtopics for label, one in config.labels.items()}
    prompts = []
    for assignment, demonstrations in assign(seeds, retrieved, method, subtopics, run_seed):
        label, passage = assignment.seed.label, assignment.passage
        turns = []
        for demonstration in demonstrations:
            turns.append(Message("user", _write_demonstration(config, label, demonstration, method)))
            turns.append(Message("assistant", demonstration.text))
        document = passage.text if passage else ""
        instruction = config.render_instruction(
            label, has_document=passage is not None, attributes=assignment.attributes
        )
        turns.append(Message("user", _write_turn(config, document, instruction)))
        prompts.append(
            Prompt(
                assignment.seed,
                (passage,) if passage else (),
                tuple(turns),
                schema=None,
                max_new_tokens=config.max_new_tokens,
                # On a line of their own: many a model begins its reply with the cue, and would stop at once.
                stop=(f"\n{config.document_header}", f"\n{config.cue}"),
            )
        )
    return prompts


def _write_demonstration(
    config: ClassificationConfig, label: str, demonstration: Demonstration, method: AnySynthesisConfig
) -> str:
    if isinstance(method, NonRetrIclConfig):  # a bare text: there is no document that it was written from
        return config.cue
    document = demonstration.passage.text if demonstration.passage else ""
    instruction = config.render_instruction(label, has_document=bool(document), attributes={})
    return _write_turn(config, document, instruction)


def _write_turn(config: ClassificationConfig, document: str, instruction: str) -> str:
    return render(_USER, header=config.document_header, document=document, instruction=instruction, cue=config.cue)


def parse(config: ClassificationConfig, request: Request, completion: Completion, method: SynthesisConfig) -> Parsed:
    """Return an example for each text of a reply: a model may go on with the pattern and write several."""
    if completion.outcome not in (Outcome.OK, Outcome.TRUNCATED):
        return Parsed(completion.outcome, detail=completion.error or completion.finish_reason)
    is_cut = completion.outcome is Outcome.TRUNCATED
    if is_cut and method.truncated == "reject":
        return Parsed(Outcome.TRUNCATED, detail=completion.finish_reason)
    if refusal := next((marker for marker in config.refusals if marker in completion.text), None):
        return Parsed(Outcome.REFUSED, detail=refusal)
    pieces = completion.text.split(config.cue)
    if is_cut and method.truncated == "trim":
        pieces[-1] = trim(pieces[-1])
    texts = [text for text in map(_unquote, pieces) if text]
    if not texts:
        return Parsed(Outcome.TRUNCATED if is_cut else Outcome.SCHEMA_MISMATCH, detail="no text is left of it")
    passage = request.passages[0] if request.passages else None
    extras = {"seed_id": request.seed.seed_id, "seed_text": request.seed.text}
    if passage:
        extras |= {
            "passage_id": passage.passage_id,
            "passage_text": passage.text,
            "passage_rank": str(passage.rank),
            "similarity": f"{passage.score:.6f}",
        }
    return Parsed(
        Outcome.OK,
        tuple(
            Example(
                digest([request.request_id, completion.attempt, position]),
                request.request_id,
                request.seed.group,
                text,
                request.seed.label,
                extras,
            )
            for position, text in enumerate(texts)
        ),
    )


def _unquote(text: str) -> str:
    text = text.strip()
    while len(text) > 1 and _QUOTES.get(text[0]) == text[-1]:
        text = text[1:-1].strip()
    return text


def copy_lead(config: ClassificationConfig, request: Request, seed: int) -> str:
    """Return the first sentences of the document: a known family of baselines, and no writing at all."""
    return take_sentences(request.passages[0].text, config.lead_sentences)


def export(examples: Sequence[Example]) -> Mapping[str, Sequence[str]]:
    """Return texts and labels."""
    return {"text": [e.text for e in examples], "label": [e.label for e in examples]}


def write_judgement(config: ClassificationConfig, text: str, prompt: JudgePrompt) -> tuple[Message, ...]:
    """Return the question which label a text has."""
    meanings = {label: one.prototype for label, one in config.labels.items()}
    return (Message("user", render(_JUDGE, text=text, labels=meanings)),)


def make_classification(config: ClassificationConfig) -> Task:
    """Return the task that a file describes."""
    prompting = ("labels", "instruction", "document_header", "cue", "refusals", "max_new_tokens", "lead_sentences")
    return Task(
        name=config.name,
        labels=tuple(config.labels),
        positive=config.positive,
        prototypes={label: one.prototype for label, one in config.labels.items()},
        measures=("accuracy", "macro-F1", "MCC", *(("AUROC",) if config.positive else ())),
        methods=(RetrIclConfig, NonRetrIclConfig, FewGenConfig, AttributedConfig),
        student_kinds=("classifier", "frozen"),
        settings=config.model_dump(mode="json", include={*prompting}),
        templates=(_USER,),
        code=(
            __name__,
            "pipeline.tasks.classification_methods",
            "pipeline.tasks.free_text",
            "pipeline.retrieval.windows",
            *(f"pipeline.prompts.{name}" for name in ("replies", "requests", "templates")),
        ),
        offline_code=(__name__, "pipeline.tasks.free_text"),
        write_query=partial(write_query, config),
        write_prompts=partial(write_prompts, config),
        parse=partial(parse, config),
        reply_offline=partial(copy_lead, config),
        offline_needs_passages=True,
        export=export,
        judging=Judging(
            choices={label: label for label in config.labels},
            fallback=next(iter(config.labels)),
            templates={"zero_shot": _JUDGE},
            write=partial(write_judgement, config),
        ),
    )
