"""What a teacher is: something that completes one request, whatever stands behind it."""

from typing import Annotated, Literal, Protocol

from pydantic import Field, field_validator

from pipeline.config import Config
from pipeline.records import Completion, Outcome, Request


class Teacher(Protocol):
    """Answers requests, many at a time, from one event loop."""

    async def complete(self, request: Request, attempt: int) -> Completion:
        """Return what came of one attempt; failures are outcomes, never exceptions.

        The answer's seed is `derive_seed(request.row_seed, attempt)`.
        """
        ...


class SamplingConfig(Config):
    """How a teacher draws its tokens."""

    temperature: float = Field(ge=0)
    top_p: float = Field(gt=0, le=1)


class TeacherConfig(Config):
    """What all teachers have in common."""

    label: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    """Names the ledger's folder: under another label, answers are asked for again."""
    sampling: SamplingConfig
    max_in_flight: int = Field(gt=0)
    """Requests that one actor keeps open at once."""
    timeout_s: float = Field(gt=0)
    """Seconds after which an attempt counts as `timeout`."""
    max_tries: int = Field(gt=0)
    """How often an attempt that ended in `timeout` or `error` is tried."""


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


AnyTeacherConfig = OfflineConfig
"""The union of all teachers' configurations, told apart by `kind`."""
