"""The offline teacher: deterministic rules over a seed and its passages.

It is the quickstart's default, the fake of the tests and the no-LLM arm of every comparison. Because it is a teacher
like any other, with faults on request, everything downstream of a real one can be rehearsed without one.
"""

import asyncio
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, field_validator

from pipeline.identity import derive_seed
from pipeline.records import Completion, Outcome, Request
from pipeline.teachers.teacher import TeacherConfig, make_failure

CHARACTERS_PER_TOKEN = 4
"""Rule of thumb for English, so that token counts have the right order of magnitude where there is no tokenizer."""


class OfflineConfig(TeacherConfig):
    """Rules instead of a model: no weights, no network; the baseline that a real teacher has to beat."""

    kind: Literal["offline"]
    latency_s: float = Field(ge=0)
    """Seconds that every answer takes, to rehearse a slow teacher."""
    faults: dict[Outcome, Annotated[float, Field(ge=0, le=1)]]
    """Share of the attempts that end in an outcome other than `ok`, to rehearse a bad teacher."""

    @field_validator("faults")
    @classmethod
    def _check_faults(cls, faults: dict[Outcome, float]) -> dict[Outcome, float]:
        if Outcome.OK in faults or sum(faults.values()) > 1:
            raise ValueError("shares of outcomes other than ok, 1 in all at most")
        return faults


@dataclass(frozen=True)
class OfflineTeacher:
    """Completes requests by a task's own rules (`Task.reply_offline`)."""

    config: OfflineConfig
    reply: Callable[[Request, int], str]
    capacity: int = 64

    async def complete(self, request: Request, attempt: int) -> Completion:
        """Return the rules' reply, or the fault that this attempt drew."""
        started_at = time.time()
        try:
            async with asyncio.timeout(self.config.timeout_s):
                await asyncio.sleep(self.config.latency_s)
        except TimeoutError:
            return make_failure(
                request, attempt, started_at, Outcome.TIMEOUT, f"no answer within {self.config.timeout_s:g} s"
            )
        seed = derive_seed(request.row_seed, attempt)
        outcome, text = _inject_fault(self.config, seed, self.reply(request, seed))
        return Completion(
            request_id=request.request_id,
            attempt=attempt,
            outcome=outcome,
            text=text,
            finish_reason={Outcome.OK: "stop", Outcome.TRUNCATED: "length"}.get(outcome, outcome.value),
            n_prompt_tokens=sum(len(m.content) for m in request.messages) // CHARACTERS_PER_TOKEN,
            n_completion_tokens=len(text) // CHARACTERS_PER_TOKEN,
            started_at=started_at,
            latency_s=time.time() - started_at,
            error="rehearsed fault" if outcome is Outcome.ERROR else "",
        )

    def measure_memory(self) -> None:
        """Return None: there is no model."""

    def describe_state(self) -> Mapping[str, int]:
        """Return nothing: it always answers."""
        return {}

    async def close(self) -> None:
        """Do nothing: there is nothing to let go of."""


def _inject_fault(config: OfflineConfig, seed: int, text: str) -> tuple[Outcome, str]:
    """Return the outcome that a teacher would report, and the text damaged to match."""
    draw = random.Random(f"fault-{seed}").random()
    for fault, share in sorted(config.faults.items()):
        if draw < share:
            match fault:
                case Outcome.INVALID_JSON:
                    return Outcome.OK, text[: len(text) // 2]
                case Outcome.SCHEMA_MISMATCH:
                    return Outcome.OK, "{}"
                case Outcome.TRUNCATED:
                    return Outcome.TRUNCATED, text[: len(text) // 2]
                case _:
                    return fault, ""
        draw -= share
    return Outcome.OK, text
