"""What a teacher is: something that completes one request, whatever stands behind it."""

import time
from collections.abc import Iterable, Mapping
from typing import Protocol

from pydantic import Field

from pipeline.config import Config
from pipeline.records import Completion, Outcome, Request


class Teacher(Protocol):
    """Answers requests, many at a time, from one event loop."""

    @property
    def capacity(self) -> int:
        """How many requests it can use at once."""
        ...

    async def complete(self, request: Request, attempt: int) -> Completion:
        """Return what came of one attempt, asked with the seed `derive_seed(request.row_seed, attempt)`.

        What goes wrong with one request, a timeout included, is an outcome, never an exception.

        Raises:
            TeacherDiedError: Nothing can be asked of this teacher any more.
            TeacherError: No request can succeed, such as when a key is refused.
        """
        ...

    def measure_memory(self) -> int | None:
        """Return the bytes that the model holds here; None where it is elsewhere, or there is none."""
        ...

    def describe_state(self) -> Mapping[str, int]:
        """Return what progress should show while it lasts, such as how many endpoints give no answer."""
        ...

    async def close(self) -> None:
        """Let go of processes and connections; also of those of an engine that died."""
        ...


class SamplingConfig(Config):
    """How a teacher draws its tokens."""

    temperature: float = Field(ge=0)
    top_p: float = Field(gt=0, le=1)


class PriceConfig(Config):
    """What a teacher costs, in US dollars; null: not known, and then no cost is stated."""

    per_million_prompt_tokens: float | None = Field(ge=0)
    per_million_completion_tokens: float | None = Field(ge=0)
    per_device_hour: float | None = Field(ge=0)

    def charge(self, completion: Completion) -> float | None:
        """Return what a completion's tokens cost in US dollars, accepted or not; None without both prices.

        The one place where tokens become money.
        """
        if self.per_million_prompt_tokens is None or self.per_million_completion_tokens is None:
            return None
        prompt_usd = completion.n_prompt_tokens * self.per_million_prompt_tokens
        completion_usd = completion.n_completion_tokens * self.per_million_completion_tokens
        return completion.price_factor * (prompt_usd + completion_usd) / 1e6

    def charge_all(self, completions: Iterable[Completion]) -> float | None:
        """Return what the tokens of some completions cost together; None without both prices."""
        if self.per_million_prompt_tokens is None or self.per_million_completion_tokens is None:
            return None
        return sum(self.charge(completion) or 0.0 for completion in completions)

    def charge_devices(self, device_s: float) -> float | None:
        """Return what some device-seconds cost in US dollars; None without their price."""
        return None if self.per_device_hour is None else device_s / 3600 * self.per_device_hour


class TeacherConfig(Config):
    """What all teachers have in common."""

    label: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    """Names the ledger's folder: under another label, answers are asked for again."""
    sampling: SamplingConfig
    max_in_flight: int | None = Field(gt=0)
    """Requests that one actor keeps open at once; null: what its engine can use."""
    timeout_s: float = Field(gt=0)
    """Seconds after which a request that was sent counts as `timeout`."""
    max_tries: int = Field(gt=0)
    """How often an attempt that ended in `timeout` or `error` is tried."""
    cpus: float = Field(ge=0)
    """Logical CPUs of one actor."""
    gpus: float = Field(ge=0)
    """GPUs of one actor, all on one node."""
    price: PriceConfig

    @property
    def devices(self) -> float:
        """Devices that one actor computes on; 0 where the teacher computes elsewhere, or hardly at all."""
        return 0.0

    @property
    def is_deferred(self) -> bool:
        """Whether requests wait for hours at a service that outlives whoever asks, and are found there again.

        Then one actor asks for all, in large units, and its death is no try at what was in flight.
        """
        return False


def make_failure(
    request: Request, attempt: int, started_at: float, outcome: Outcome, error: str, finish_reason: str = ""
) -> Completion:
    """Return the completion of an attempt that got no answer."""
    return Completion(
        request_id=request.request_id,
        attempt=attempt,
        outcome=outcome,
        text="",
        finish_reason=finish_reason or outcome.value,
        n_prompt_tokens=0,
        n_completion_tokens=0,
        started_at=started_at,
        latency_s=time.time() - started_at,
        error=error,
    )
