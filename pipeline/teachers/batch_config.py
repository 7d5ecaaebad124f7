"""What is said about a teacher that is asked by OpenAI's Batch API."""

from collections.abc import Iterable
from typing import Any, Literal

from pydantic import Field, field_validator

from pipeline.config import Config
from pipeline.errors import ConfigError
from pipeline.records import Request
from pipeline.teachers.batch_rows import name_row, write_row
from pipeline.teachers.openai import write_body
from pipeline.teachers.openai_config import EndpointConfig, OpenAIConfig


class BatchApiConfig(Config):
    """How requests become batches."""

    completion_window: str = Field(pattern=r"^[1-9][0-9]*[hd]$")
    """How long a batch may take; OpenAI knows `24h` alone."""
    max_requests: int = Field(gt=0)
    """Requests of one batch."""
    max_bytes: int = Field(gt=0)
    """Bytes of one file of requests."""
    gather_s: float = Field(ge=0)
    """Seconds without another request after which those that wait become a batch."""
    poll_s: float = Field(gt=0)
    """Seconds between two looks at a batch."""
    on_expiry: Literal["resubmit", "online"]
    """What follows where a batch expires before a request was answered: a place in another batch, `max_tries` in all,
    or a call of the ordinary endpoint at its full price."""
    price_factor: float = Field(ge=0)
    """Price of a batch's tokens as a share of `teacher.price`."""


class OpenAIBatchConfig(OpenAIConfig):
    """An endpoint that takes batches. The caps per minute hold for what is asked online."""

    kind: Literal["openai_batch"]  # type: ignore[assignment]  # tells it apart in the union of teachers
    batch: BatchApiConfig

    @field_validator("extra_body")
    @classmethod
    def _check_body(cls, body: dict[str, Any]) -> dict[str, Any]:
        if body.get("stream"):
            raise ValueError("a batch can't stream; leave out `stream`")
        return body

    @field_validator("further_endpoints")
    @classmethod
    def _check_one_endpoint(cls, endpoints: tuple[EndpointConfig, ...]) -> tuple[EndpointConfig, ...]:
        if endpoints:
            raise ValueError("a batch is one account's; leave it empty")
        return endpoints

    @property
    def is_deferred(self) -> bool:
        """True: requests wait at the API, and are found there again."""
        return True


def check_requests(config: OpenAIBatchConfig, requests: Iterable[Request]) -> None:
    """Check that each request fits into a file.

    Raises:
        ConfigError: The longest one does not.
    """
    longest = max(requests, key=lambda r: sum(len(m.content) for m in r.messages), default=None)
    if longest is None:
        return
    n_bytes = len(write_row(name_row(longest.request_id, 1), write_body(config, longest, 1)))
    if n_bytes > config.batch.max_bytes:
        raise ConfigError(
            f"teacher {config.label}: request {longest.request_id} is a line of {n_bytes} bytes, and a file may have "
            f"teacher.batch.max_bytes={config.batch.max_bytes}; raise it, as far as the API allows, or shorten prompts"
        )
