"""What a task is: a value with a few small pure functions. Nothing else in the system asks which task it has."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field

from pipeline.config import Config
from pipeline.prompts.replies import Parsed
from pipeline.records import Completion, Example, Message, Passage, Request, Seed

JudgePrompt = Literal["zero_shot", "few_shot"]
"""How a teacher is asked for a label: with nothing but the question, or with examples of our own."""


@dataclass(frozen=True)
class Prompt:
    """What is asked: a chat, and the JSON schema of its reply, bounded everywhere."""

    messages: tuple[Message, ...]
    schema: Mapping[str, Any]


@dataclass(frozen=True)
class Task:
    """All that distinguishes one distillation task from another."""

    name: str
    labels: tuple[str, ...]
    """A label's place here is its class index."""
    positive: str
    """The label that scores rank by."""
    templates: tuple[str, ...]
    code: tuple[str, ...]
    """The modules whose source can change a prompt or a parsed row."""
    offline_code: tuple[str, ...]
    """The modules whose source can change the offline teacher's replies."""
    write_prompt: Callable[[Seed, Sequence[Passage], Any], Prompt]
    """(seed, passages, method configuration) to prompt."""
    parse: Callable[[Request, Completion], Parsed]
    reply_offline: Callable[[Request, int], str]
    """(request, seed) to the reply of the offline teacher's rules; a perfect one, which `parse` accepts."""
    export: Callable[[Sequence[Example]], Mapping[str, Sequence[str]]]
    """Examples to the columns of the task's own TSV format."""
    choices: Mapping[str, str]
    """For each label the word that a judge says it by."""
    judge_templates: Mapping[JudgePrompt, str]
    write_judgement: Callable[[str, JudgePrompt], tuple[Message, ...]]
    """(an item's text, how it is asked) to a question that one of `choices` answers."""


class MethodConfig(Config):
    """What every generation method has in common; each task adds its own."""

    max_attempts: int = Field(gt=0)
    """Attempts at one request, each under a new seed, while its answers can't be used."""
