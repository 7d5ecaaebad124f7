"""What a task is: a value with a few small pure functions. Nothing else in the system asks which task it has."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from pipeline.config import Config
from pipeline.prompts.replies import Parsed
from pipeline.records import Completion, Example, Message, Passage, Request, Seed
from pipeline.sources.benchmarks import BENCHMARKS, BenchmarkConfig

JudgePrompt = Literal["zero_shot", "few_shot"]
"""How a teacher is asked for a label: with nothing but the question, or with examples of our own."""
Setting = Literal["standard", "dev-selected"]
Retrieved = Mapping[str, Sequence[Passage]]
"""What was found for each seed, by the seed's id, best first."""


class TaskConfig(Config):
    """What all tasks have in common."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    settings: tuple[Setting, ...] = Field(min_length=1)


class LabellingConfig(TaskConfig):
    """A task whose students label texts, and the labelled texts that they are judged on."""

    benchmarks: tuple[str, ...]
    optional_benchmarks: tuple[str, ...]
    """Used where their files are under `data.root`, and named as left out where they are not."""
    own_benchmarks: dict[str, BenchmarkConfig]
    """By keys that nothing depends on, so that single values can be set."""

    @field_validator("benchmarks", "optional_benchmarks")
    @classmethod
    def _check_benchmarks(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if unknown := [name for name in names if name not in BENCHMARKS]:
            raise ValueError(f"no benchmark {', '.join(unknown)}; known: {', '.join(BENCHMARKS)}")
        return names

    @model_validator(mode="after")
    def _check_some(self) -> "LabellingConfig":
        if not (self.benchmarks or self.optional_benchmarks or self.own_benchmarks):
            raise ValueError("name at least one benchmark: students that nothing judges are of no use")
        return self


class MethodConfig(Config):
    """What every generation method has in common; each task adds its own."""

    max_attempts: int = Field(gt=0)
    """Attempts at one request, each under a new seed, while its answers can't be used."""

    @property
    def n_passages(self) -> int:
        """How many passages are retrieved for each seed; 0: none."""
        return 0


@dataclass(frozen=True)
class Prompt:
    """What is asked: a chat, and what bounds its reply."""

    seed: Seed
    passages: tuple[Passage, ...]
    """Those that the chat asks about; not those of its demonstrations."""
    messages: tuple[Message, ...]
    schema: Mapping[str, Any] | None
    """JSON schema of the reply, bounded everywhere; None: free text."""
    max_new_tokens: int | None = None
    """Of free text."""
    stop: tuple[str, ...] = ()
    """Free text ends before the first of these."""


@dataclass(frozen=True)
class Judging:
    """How a teacher is asked for the label of a text itself."""

    choices: Mapping[str, str]
    """For each label the word that it is said by."""
    fallback: str
    """The label that counts as said where none of these words is."""
    templates: Mapping[JudgePrompt, str]
    """By the ways in which it can be asked."""
    write: Callable[[str, JudgePrompt], tuple[Message, ...]]
    """(a text, how it is asked) to a question that one of `choices` answers."""


@dataclass(frozen=True)
class Task:
    """All that distinguishes one distillation task from another."""

    name: str
    labels: tuple[str, ...]
    """A label's place here is its class index. Empty: students rank, and label nothing."""
    positive: str | None
    """The label that scores rank by; None: the classes are equals, and scores say how sure the decision is."""
    prototypes: Mapping[str, str]
    """For each label one sentence that describes its texts; the `prototype` baseline compares with them."""
    measures: tuple[str, ...]
    """Those that tables show, in order; the first decides which students clear the trivial baselines."""
    methods: tuple[type[MethodConfig], ...]
    """What it can be asked for by."""
    student_kinds: tuple[str, ...]
    """Kinds of students (`students/config.py`) that can learn it."""
    settings: Mapping[str, Any]
    """What of its configuration can change a prompt or a parsed row."""
    templates: tuple[str, ...]
    code: tuple[str, ...]
    """The modules whose source can change a prompt or a parsed row."""
    offline_code: tuple[str, ...]
    """The modules whose source can change the offline teacher's replies."""
    write_query: Callable[[Seed, Any], str]
    """(seed, method) to what passages are retrieved by."""
    write_prompts: Callable[[Sequence[Seed], Retrieved, Any, int], list[Prompt]]
    """(seeds, their passages, method, the experiment's seed) to prompts."""
    parse: Callable[[Request, Completion, Any], Parsed]
    """(request, completion, method) to examples, or to what is wrong."""
    reply_offline: Callable[[Request, int], str]
    """(request, seed) to the reply of the offline teacher's rules; a perfect one, which `parse` accepts."""
    offline_needs_passages: bool
    """Whether those rules write from a retrieved passage, so that a method without any leaves them nothing."""
    export: Callable[[Sequence[Example]], Mapping[str, Sequence[str]]]
    """Examples to the columns of the task's own TSV format."""
    judging: Judging | None
    """None: there is no label to ask for."""
