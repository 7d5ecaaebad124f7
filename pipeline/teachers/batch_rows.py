"""The lines of the Batch API's files: one for each request that goes up, one for each result that comes down."""

import json
import logging
from collections.abc import Iterator, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from pipeline.records import Completion, Outcome, Request
from pipeline.teachers.chat_reply import ChatReply
from pipeline.teachers.teacher import make_failure

LOG = logging.getLogger(__name__)

ENDPOINT = "/v1/chat/completions"
"""As lines and batches name it, wherever the API itself is."""
EXPIRED = "batch_expired"
"""The code of a request that was not answered in time."""


class RowResponse(BaseModel):
    """What one request would have got had it been sent by itself."""

    status_code: int
    body: Any = None


class RowError(BaseModel):
    """Why a request got no response."""

    code: str | None = None
    message: str | None = None


class ResultRow(BaseModel):
    """A line of an output file or of an error file."""

    custom_id: str
    response: RowResponse | None = None
    error: RowError | None = None


def name_row(request_id: str, attempt: int) -> str:
    """Return the custom id by which a result finds its request."""
    return f"{request_id}-{attempt}"


def write_row(custom_id: str, body: dict[str, Any]) -> bytes:
    """Return the line that asks one request, with its end."""
    row = {"custom_id": custom_id, "method": "POST", "url": ENDPOINT, "body": body}
    return json.dumps(row, separators=(",", ":")).encode() + b"\n"


def split_rows(sizes: Sequence[int], max_requests: int, max_bytes: int) -> Iterator[slice]:
    """Yield which lines go into one file each, in their order; a line that is too long by itself goes alone.

    Args:
        sizes: Bytes of each line.
        max_requests: Lines that a file may have.
        max_bytes: Bytes that it may have.
    """
    start, n_bytes = 0, 0
    for index, size in enumerate(sizes):
        if index > start and (index - start == max_requests or n_bytes + size > max_bytes):
            yield slice(start, index)
            start, n_bytes = index, 0
        n_bytes += size
    if start < len(sizes):
        yield slice(start, len(sizes))


def read_rows(*files: bytes) -> dict[str, ResultRow]:
    """Return the results in the files of one batch by custom id; of two for one request, a response wins."""
    found: dict[str, ResultRow] = {}
    n_broken = 0
    for line in (line for content in files for line in content.split(b"\n") if line.strip()):
        try:
            row = ResultRow.model_validate_json(line)
        except ValidationError:
            n_broken += 1
            continue
        if row.custom_id not in found or row.response is not None:
            found[row.custom_id] = row
    if n_broken:
        LOG.warning("%d lines of a batch's results can't be read; their requests count as not answered", n_broken)
    return found


def read_completion(
    row: ResultRow | None, status: str, request: Request, attempt: int, started_at: float, latency_s: float
) -> Completion:
    """Return what came of one attempt.

    Args:
        row: Its line; None where there is none.
        status: How the batch ended.
        request: The request.
        attempt: Its number.
        started_at: When the batch was sent; tells the tries at one attempt apart.
        latency_s: What the whole batch took.
    """

    def fail(outcome: Outcome, error: str) -> Completion:
        return make_failure(request, attempt, started_at, outcome, error)

    if row is not None and row.response is not None:
        body = row.response.body
        if row.response.status_code != 200:
            return fail(Outcome.ERROR, f"HTTP {row.response.status_code}: {json.dumps(body)}")
        try:
            return ChatReply.model_validate(body).to_completion(request, attempt, started_at, latency_s)
        except ValidationError:
            return fail(Outcome.ERROR, f"HTTP 200, but no completion: {json.dumps(body)}")
    code = row.error.code if row is not None and row.error is not None else None
    if code == EXPIRED or (code is None and status == "expired"):
        return fail(Outcome.TIMEOUT, "its batch expired before it was answered")
    if row is not None and row.error is not None:
        return fail(Outcome.ERROR, f"{code}: {row.error.message}")
    return fail(Outcome.ERROR, f"its batch ended as {status} without an answer to it")
