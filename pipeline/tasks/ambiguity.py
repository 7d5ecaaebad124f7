"""Query ambiguity: is a search query clear, or does it need a clarifying question first?

After the query-ambiguity distillation of `intent_cf` (README of the WISER repository). Per topic the teacher writes
some intents and, for each, one specific and one ambiguous query with the information need behind it. Departures from
the source, each for a measured reason: JSON by schema instead of tab-separated lines (860 of 1,000 lines of one
committed file had to be repaired by hand), a reply with wrong counts is asked again, and the prompt names kinds of
ambiguity.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import Field, field_validator

from pipeline.identity import digest
from pipeline.prompts.replies import Parsed, read_reply
from pipeline.prompts.schemas import array, record, text
from pipeline.prompts.templates import render
from pipeline.records import Completion, Example, Message, Outcome, Request, Seed
from pipeline.tasks.task import JudgePrompt, Judging, LabellingConfig, MethodConfig, Prompt, Retrieved, Task

CLEAR, AMBIGUOUS = "clear", "ambiguous"
_LABEL_OF = {"specific": CLEAR, "ambiguous": AMBIGUOUS}
_PROMPT_CODE = ("replies", "requests", "schemas", "templates")
_TEMPLATES = ("ambiguity/system.jinja", "ambiguity/user.jinja")
_JUDGE_TEMPLATES: Mapping[JudgePrompt, str] = {
    "zero_shot": "ambiguity/judge_zero_shot.jinja",
    "few_shot": "ambiguity/judge_few_shot.jinja",
}


class AmbiguityConfig(LabellingConfig):
    """The task, and what it is judged on."""

    kind: Literal["ambiguity"]
    prototypes: dict[str, str]
    """For each label one sentence that describes its texts."""

    @field_validator("prototypes")
    @classmethod
    def _check_prototypes(cls, sentences: dict[str, str]) -> dict[str, str]:
        if set(sentences) != {CLEAR, AMBIGUOUS}:
            raise ValueError(f"one sentence for each of {[CLEAR, AMBIGUOUS]}, got {sorted(sentences)}")
        return sentences


class PairedConfig(MethodConfig):
    """Pairs of a specific and an ambiguous query on the same intent."""

    name: Literal["paired"]
    n_intents: int = Field(gt=0, le=13)
    """Per topic; the offline teacher has rules for 13 kinds of intent."""
    similar_lengths: bool
    """Ask for queries of similar length in a pair, so that length gives the label away less."""


def write_query(seed: Seed, method: PairedConfig) -> str:
    """Return the topic."""
    return seed.text


def write_prompts(seeds: Sequence[Seed], retrieved: Retrieved, method: PairedConfig, run_seed: int) -> list[Prompt]:
    """Return the prompt for each topic's pairs."""
    return [_write_prompt(seed, retrieved, method) for seed in seeds]


def _write_prompt(seed: Seed, retrieved: Retrieved, method: PairedConfig) -> Prompt:
    query = record(query=text(160), information_need=text(240))
    intent = record(intent=text(80), specific=query, ambiguous=query)
    system, user = (
        render(
            template,
            topic=seed.text,
            passages=retrieved.get(seed.seed_id, ()),
            n_intents=method.n_intents,
            similar_lengths=method.similar_lengths,
        )
        for template in _TEMPLATES
    )
    return Prompt(
        seed,
        tuple(retrieved.get(seed.seed_id, ())),
        (Message("system", system), Message("user", user)),
        record(intents=array(intent, method.n_intents)),
    )


def parse(request: Request, completion: Completion, method: PairedConfig) -> Parsed:
    """Return two examples for each intent, in the order of the reply."""
    reply = read_reply(request, completion)
    if reply.outcome is not Outcome.OK:
        return Parsed(reply.outcome, detail=reply.detail)
    examples = []
    for position, intent in enumerate(reply.value["intents"]):
        for kind, label in _LABEL_OF.items():
            query = _collapse(intent[kind]["query"])
            if not query:
                return Parsed(Outcome.SCHEMA_MISMATCH, detail=f"intents/{position}/{kind}: the query is blank")
            extras = {
                "topic": request.seed.text,
                "intent": _collapse(intent["intent"]),
                "information_need": _collapse(intent[kind]["information_need"]),
            }
            row_id = digest([request.request_id, completion.attempt, position, kind])
            examples.append(Example(row_id, request.request_id, request.seed.group, query, label, extras))
    return Parsed(Outcome.OK, tuple(examples))


def reply_offline(request: Request, seed: int) -> str:
    """Return what the rules write for a request's topic, as a teacher would."""
    import json

    from pipeline.tasks.ambiguity_rules import write_intents

    n_intents = json.loads(request.response_schema)["properties"]["intents"]["maxItems"]
    return json.dumps({"intents": write_intents(request.seed.text, n_intents, seed)})


def export(examples: Sequence[Example]) -> Mapping[str, Sequence[str]]:
    """Return the four columns of the source system's files."""
    return {
        "topic": [e.extras.get("topic", e.group) for e in examples],
        "initial_request": [e.text for e in examples],
        "binary_label": [str(int(e.label == AMBIGUOUS)) for e in examples],
        "user_information_need": [e.extras.get("information_need", "") for e in examples],
    }


def write_judgement(query: str, prompt: JudgePrompt) -> tuple[Message, ...]:
    """Return the question whether a query is ambiguous, as one turn: not every chat template has a system's."""
    return (Message("user", render(_JUDGE_TEMPLATES[prompt], query=query)),)


def _collapse(value: str) -> str:
    return " ".join(value.split())


def make_ambiguity(config: AmbiguityConfig) -> Task:
    """Return the task as configured."""
    return Task(
        name=config.name,
        labels=(CLEAR, AMBIGUOUS),
        positive=AMBIGUOUS,
        prototypes=config.prototypes,
        measures=("macro-F1", "MCC", "AUROC", "weighted-F1"),
        methods=(PairedConfig,),
        student_kinds=("classifier", "frozen"),
        settings={},
        templates=_TEMPLATES,
        code=("pipeline.tasks.ambiguity", *(f"pipeline.prompts.{name}" for name in _PROMPT_CODE)),
        offline_code=("pipeline.tasks.ambiguity_rules",),
        write_query=write_query,
        write_prompts=write_prompts,
        parse=parse,
        reply_offline=reply_offline,
        offline_needs_passages=False,
        export=export,
        judging=Judging({CLEAR: "no", AMBIGUOUS: "yes"}, CLEAR, _JUDGE_TEMPLATES, write_judgement),
    )
