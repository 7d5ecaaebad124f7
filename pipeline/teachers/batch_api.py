"""The calls of OpenAI's Batch API: files go up and down, batches are created and looked at.

A call that may succeed when it is sent again is sent again here. One is different: a batch that was created although
its answer got lost would be paid for twice. So each batch carries a key of ours, and where one may be there already it
is looked for by that key first.
"""

import asyncio
import io
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, Field, SecretStr, ValidationError

from pipeline.errors import TeacherError
from pipeline.teachers.batch_rows import ENDPOINT
from pipeline.teachers.openai import MAX_ERROR_CHARACTERS, open_session
from pipeline.teachers.openai_config import OpenAIConfig, advise, read_key
from pipeline.teachers.pace import compute_wait

if TYPE_CHECKING:
    import aiohttp

KEY = "raystill"
"""The name of our key in a batch's metadata."""
PAGE_ROWS = 100
"""The most batches that OpenAI lists in one answer."""
ENDED = ("completed", "failed", "expired", "cancelled")
M = TypeVar("M", bound=BaseModel)


class RowFault(BaseModel):
    """Why a batch was not taken; of a line where it has a number, which counts from 1."""

    code: str | None = None
    message: str | None = None
    line: int | None = None


class Faults(BaseModel):
    """All of them."""

    data: list[RowFault] | None = None


class RowCounts(BaseModel):
    """How many rows of a batch have an answer, or failed."""

    completed: int = 0
    failed: int = 0


class Batch(BaseModel):
    """A batch as the API tells of it."""

    id: str
    status: str
    created_at: float
    completed_at: float | None = None
    expired_at: float | None = None
    cancelled_at: float | None = None
    output_file_id: str | None = None
    error_file_id: str | None = None
    errors: Faults | None = None
    request_counts: Any = None

    @property
    def n_ready(self) -> int:
        """Rows whose results wait there; 0 where the API doesn't say."""
        try:
            counts = RowCounts.model_validate(self.request_counts)
        except ValidationError:  # it is only shown, so whatever stands there must not end a run
            return 0
        return counts.completed + counts.failed

    @property
    def has_ended(self) -> bool:
        """Whether nothing more will come of it."""
        return self.status in ENDED

    @property
    def span_s(self) -> float:
        """Seconds from its creation to its end, by the API's clock."""
        return max(
            0.0, (self.completed_at or self.expired_at or self.cancelled_at or self.created_at) - self.created_at
        )

    @property
    def faults(self) -> list[RowFault]:
        """Why it was not taken."""
        return (self.errors and self.errors.data) or []


class UploadedFile(BaseModel):
    """A file as the API tells of it."""

    id: str


class _Page(BaseModel):
    data: list[dict[str, Any]] = Field(default_factory=list)
    has_more: bool = False


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    body: bytes
    retry_after: str = ""


class BatchApi:
    """An endpoint's files and batches.

    Args:
        config: The endpoint.

    Raises:
        ConfigError: The key can't be read.
    """

    def __init__(self, config: OpenAIConfig) -> None:
        self._config = config
        key = read_key(config)
        self._key = None if key is None else SecretStr(key)
        self._session: aiohttp.ClientSession | None = None

    async def upload(self, name: str, content: bytes) -> str:
        """Return the id of a new file.

        Raises:
            TeacherError: The API refuses it, or can't be reached.
        """
        import aiohttp

        async def ask() -> _Answer:
            form = aiohttp.FormData()  # anew for each call: one that was sent is used up
            form.add_field("purpose", "batch")
            form.add_field("file", io.BytesIO(content), filename=name, content_type="application/jsonl")
            return await self._send("POST", "files", data=form)

        hint = "check teacher.base_url; an endpoint without a Batch API can be asked as teacher=openai"
        return (await self._call(UploadedFile, "POST files", ask, hint)).id

    async def find_file(self, name: str) -> str | None:
        """Return the id of a file by its name; None if there is none."""
        async for item in self._list("files", purpose="batch"):
            if item.get("filename") == name:
                return UploadedFile.model_validate(item).id
        return None

    async def create(self, key: str, file_id: str, window: str, *, may_exist: bool, hint: str) -> Batch:
        """Return the one batch of a key, created unless it is there.

        Args:
            key: Ours.
            file_id: What it asks.
            window: How long it may take, as in `24h`.
            may_exist: Whether it may have been created before.
            hint: What to do where the file is not there.

        Raises:
            TeacherError: The API refuses it, or can't be reached.
        """
        body = {
            "input_file_id": file_id,
            "endpoint": ENDPOINT,
            "completion_window": window,
            "metadata": {KEY: key},
        }

        async def ask() -> _Answer:
            nonlocal may_exist
            if may_exist and (found := await self.find_batch(key)):
                return _Answer(200, found.model_dump_json().encode())
            may_exist = True  # should this answer get lost
            return await self._send("POST", "batches", json=body)

        return await self._call(Batch, "POST batches", ask, hint)

    async def find_batch(self, key: str) -> Batch | None:
        """Return the batch of a key; None if there is none. One that was not taken asks nothing, and counts as none."""
        async for item in self._list("batches"):
            if (item.get("metadata") or {}).get(KEY) == key and item.get("status") != "failed":
                return Batch.model_validate(item)
        return None

    async def retrieve(self, batch_id: str, hint: str) -> Batch:
        """Return how a batch stands.

        Args:
            batch_id: As it was created.
            hint: What to do where it is not there.

        Raises:
            TeacherError: There is no such batch, or the API can't be reached.
        """
        path = f"batches/{batch_id}"
        return await self._call(Batch, f"GET {path}", partial(self._send, "GET", path), hint)

    async def download(self, file_id: str, hint: str) -> bytes:
        """Return a file's content.

        Args:
            file_id: As a batch names it.
            hint: What to do where it is not there.

        Raises:
            TeacherError: There is no such file, or the API can't be reached.
        """
        path = f"files/{file_id}/content"
        return (await self._repeat(f"GET {path}", partial(self._send, "GET", path), hint)).body

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()

    def hide_key(self, text: str) -> str:
        """Return a text without the key."""
        return text if self._key is None else text.replace(self._key.get_secret_value(), "[api key]")

    def clean(self, text: str) -> str:
        """Return a text as it may stand in an error."""
        return self.hide_key(text)[:MAX_ERROR_CHARACTERS]

    async def _list(self, path: str, **query: str) -> AsyncIterator[dict[str, Any]]:
        after: dict[str, str] = {}
        while True:
            params = {"limit": str(PAGE_ROWS), **query, **after}
            page = await self._call(_Page, f"GET {path}", partial(self._send, "GET", path, params=params))
            for item in page.data:
                yield item
            if not page.has_more or not page.data:
                return
            after = {"after": page.data[-1]["id"]}

    async def _send(self, method: str, path: str, **given: Any) -> _Answer:
        if self._session is None:
            self._session = open_session(self._config, self._key)
        url = f"{self._config.base_url}/{path}"
        async with self._session.request(method, url, allow_redirects=False, **given) as response:
            return _Answer(response.status, await response.read(), response.headers.get("Retry-After", ""))

    async def _call(self, model: type[M], what: str, ask: Callable[[], Awaitable[_Answer]], hint: str = "") -> M:
        """Return an answer's content; one that can't be read counts as lost."""

        async def ask_whole() -> _Answer:
            answer = await ask()
            if answer.status == 200:
                try:
                    model.model_validate_json(answer.body)
                except ValidationError:
                    return _Answer(502, b"HTTP 200, but not what was asked for: " + answer.body)
            return answer

        return model.model_validate_json((await self._repeat(what, ask_whole, hint)).body)

    async def _repeat(self, what: str, ask: Callable[[], Awaitable[_Answer]], hint: str = "") -> _Answer:
        import aiohttp

        jitter, wait_s, problem = random.Random(what), 0.0, ""
        for n_retries in range(self._config.max_retries + 1):
            await asyncio.sleep(wait_s)
            retry_after = ""
            try:
                answer = await ask()
            except aiohttp.ClientError as error:
                problem = self.clean(f"{type(error).__name__}: {error}")
            except TimeoutError:
                problem = f"no answer within {self._config.timeout_s:g} s"
            else:
                if answer.status == 200:
                    return answer
                problem = f"HTTP {answer.status}: {self.clean(answer.body.decode(errors='replace'))}"
                is_unknown = answer.status in (400, 404) and hint
                advice = hint if is_unknown else advise(self._config, answer.status, answer.body)
                if advice or (answer.status not in (408, 409, 429) and answer.status < 500):
                    raise TeacherError(f"{what} at {self._config.base_url} was answered by {problem}\n{advice}".strip())
                retry_after = answer.retry_after
            wait_s = compute_wait(retry_after, n_retries, jitter)
        raise TeacherError(
            f"{what} at {self._config.base_url}: gave up after {self._config.max_retries + 1} calls; the last one: "
            f"{problem}\nbatches go on without this run; the same command finds them again"
        )
