"""Any endpoint that speaks OpenAI's chat completions: OpenAI itself, `vllm serve`, Ollama, llama.cpp.

A call that may succeed when it is sent again (too many requests, a server's fault, a lost connection) is sent again
here, to another endpoint where there is one. What concerns one request is that request's outcome; what no request can
get past is raised. A key leaves the teacher in one header and in nothing else.
"""

import asyncio
import json
import logging
import math
import random
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any
from urllib.request import getproxies_environment

from pydantic import SecretStr, ValidationError

from pipeline.errors import TeacherError
from pipeline.identity import derive_seed
from pipeline.records import Completion, Outcome, Request
from pipeline.teachers.chat_reply import ChatReply
from pipeline.teachers.endpoints import Call, Endpoint, Endpoints
from pipeline.teachers.offline import CHARACTERS_PER_TOKEN
from pipeline.teachers.openai_config import OpenAIConfig, advise, list_endpoints, read_key
from pipeline.teachers.pace import compute_spacing, compute_wait
from pipeline.teachers.teacher import make_failure
from pipeline.teachers.window import Window

if TYPE_CHECKING:
    import aiohttp

LOG = logging.getLogger(__name__)
CAPACITY = 64
MOST_DOUBLINGS = 1
"""Of the wait before a call is sent again: it is the window that relieves an endpoint, and who waits holds a place."""
CONNECT_TIMEOUT_S = 30.0
LOST, LATE = 0, -1
"""In place of an HTTP status: the connection was lost, or no answer came in time."""
LONGEST_OUTAGE_S = 900.0
"""Without an answer from any endpoint: then the run ends, rather than that every request becomes a reject."""
MAX_ERROR_CHARACTERS = 500
TOP_LOGPROBS = 20
"""The most alternatives that OpenAI and vLLM give for a token."""
NOT_IN_STRICT_DIALECT = ("minLength", "maxLength")


@dataclass(frozen=True, slots=True)
class _Answer:
    """What came back for one HTTP call."""

    status: int
    """Of HTTP; `LOST` or `LATE` where none came, and then the body says why."""
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)
    latency_s: float = 0.0

    @property
    def may_succeed_later(self) -> bool:
        return self.status in (LOST, LATE, 408, 409, 429) or self.status >= 500

    @property
    def is_of_nobody(self) -> bool:
        """Whether there was no server to blame the request: no connection, or a proxy before one that is down."""
        return self.status in (LOST, 502, 503, 504)

    @property
    def brief(self) -> str:
        """What came, without what the server wrote."""
        return {LOST: "no connection", LATE: "too late"}.get(self.status, f"HTTP {self.status}")

    @property
    def retry_after(self) -> str:
        return self.headers.get("Retry-After", "")


@dataclass(frozen=True, slots=True)
class _Address:
    """Where an endpoint is, and what it is asked with."""

    config: OpenAIConfig
    key: SecretStr | None

    @property
    def url(self) -> str:
        return f"{self.config.base_url}/chat/completions"

    @property
    def headers(self) -> dict[str, str]:
        return {} if self.key is None else {"Authorization": f"Bearer {self.key.get_secret_value()}"}


class OpenAITeacher:
    """Completes requests by calls to one endpoint or several.

    Args:
        config: The endpoints and the model.
        share: The part of the rate caps that this teacher may use, of all that ask at the same time.

    Raises:
        ConfigError: A key can't be read.
    """

    def __init__(self, config: OpenAIConfig, share: float) -> None:
        self.capacity = CAPACITY
        self._config = config
        self._share = share
        self._addresses = {_make_endpoint(config, share): _read_address(one) for one in list_endpoints(config)}
        self._endpoints = Endpoints(tuple(self._addresses))
        self._last_failures: dict[Endpoint, str] = {}
        self._session: aiohttp.ClientSession | None = None

    def __reduce__(self) -> Any:
        """Pickle the configuration alone: the key is read again where the teacher is built."""
        return OpenAITeacher, (self._config, self._share)

    async def complete(self, request: Request, attempt: int) -> Completion:
        """Return what came of one attempt, after as many calls as it took.

        Raises:
            TeacherError: An endpoint refuses the key, the model or the address, or the account has no quota left; or
                no endpoint has answered for a long time.
        """
        config = self._config
        body = write_body(config, request, attempt)
        jitter = random.Random(f"{request.request_id}-{attempt}")
        estimate = sum(len(m.content) for m in request.messages) / CHARACTERS_PER_TOKEN + request.max_new_tokens
        started_at, wait_s, problem = 0.0, 0.0, ""
        failed: Endpoint | None = None
        n_calls = n_retries = 0
        while n_retries <= config.max_retries:
            call = await self._endpoints.admit(estimate, failed, wait_s)
            n_calls += 1
            started_at = started_at or time.time()
            answer = await self._post(call, body)
            if answer.status == 200:
                return self._read(request, attempt, started_at, answer, call)
            wait_s = compute_wait(answer.retry_after, min(n_retries, MOST_DOUBLINGS), jitter)
            problem = self._note_failure(call, answer, wait_s)
            if answer.status == LATE:
                return make_failure(request, attempt, started_at, Outcome.TIMEOUT, problem)
            if not answer.may_succeed_later:
                return make_failure(request, attempt, started_at, Outcome.ERROR, problem)
            failed = call.endpoint
            if failed.closed_at is not None and not self._endpoints.has_other(failed):
                wait_s = 0.0  # closed ones make it wait
            # A request is no victim of an outage, which has its own limit; but one that a server fails at is found.
            n_retries += not (call.is_probe and answer.is_of_nobody)
        gave_up = f"gave up after {n_calls} calls; the last one: {problem}"
        return make_failure(request, attempt, started_at, Outcome.ERROR, gave_up)

    def measure_memory(self) -> None:
        """Return None: the model is elsewhere."""

    def describe_state(self) -> Mapping[str, int]:
        """Return the endpoints that give no answers, with what came last."""
        return Counter(
            f"no answer from {address.config.base_url} ({self._last_failures[endpoint]})"
            for endpoint, address in self._addresses.items()
            if endpoint.closed_at is not None
        )

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()

    async def _post(self, call: Call, body: dict[str, Any]) -> _Answer:
        import aiohttp

        if self._session is None:
            self._session = open_session(self._config, None)
        address, start = self._addresses[call.endpoint], time.perf_counter()
        try:
            async with self._session.post(
                address.url, json=body, headers=address.headers, allow_redirects=False
            ) as response:
                content = await response.read()
                return _Answer(response.status, content, response.headers, time.perf_counter() - start)
        except aiohttp.ClientError as error:
            return _Answer(LOST, f"{type(error).__name__}: {error}".encode())
        except TimeoutError:
            return _Answer(LATE, f"no answer within {self._config.timeout_s:g} s".encode())
        except asyncio.CancelledError:
            self._endpoints.drop(call)
            raise

    def _note_failure(self, call: Call, answer: _Answer, wait_s: float) -> str:
        """Tell the endpoints of a call without a completion, and return what is told of it."""
        endpoint, address = call.endpoint, self._addresses[call.endpoint]
        problem = self._clean(answer.body.decode(errors="replace"))
        if answer.status > 0:
            problem = f"HTTP {answer.status}: {problem}"
        if advice := advise(address.config, answer.status, answer.body):
            self._endpoints.drop(call)
            raise TeacherError(f"{address.url} with model {self._config.model} answered {problem}\n{advice}")
        self._last_failures[endpoint] = answer.brief
        was_open = endpoint.closed_at is None
        self._endpoints.finish(
            call,
            succeeded=not answer.may_succeed_later,  # one that refuses a request for what it is answers well
            tokens=call.tokens if answer.status == LATE else 0.0,
            asked_wait_s=wait_s if answer.retry_after else None,
            spacing_s=compute_spacing(answer.headers, call.tokens, endpoint.limit),
        )
        if was_open and endpoint.closed_at is not None:
            LOG.warning("%s gives no answers and is only tried now and then: %s", address.url, problem)
        if self._endpoints.measure_outage() > LONGEST_OUTAGE_S:
            raise TeacherError(
                f"no endpoint of {self._config.model} has answered for {LONGEST_OUTAGE_S / 60:g} minutes; the last one "
                f"to be tried, {address.url}: {problem}\nsee that it is up, then run the same command again"
            )
        return problem

    def _read(self, request: Request, attempt: int, started_at: float, answer: _Answer, call: Call) -> Completion:
        """Return the completion of a call that got one, and tell the endpoints what it took."""
        try:
            reply = ChatReply.model_validate_json(answer.body)
        except ValidationError:
            reply = None
        spacing_s = compute_spacing(answer.headers, call.tokens, call.endpoint.limit)
        usage = reply and reply.usage
        tokens = usage.prompt_tokens + usage.completion_tokens if usage else call.tokens
        self._endpoints.finish(call, succeeded=True, tokens=tokens, spacing_s=spacing_s)
        if reply is None:
            body = self._clean(answer.body.decode(errors="replace"))
            return make_failure(request, attempt, started_at, Outcome.ERROR, f"HTTP 200, but no completion: {body}")
        completion = reply.to_completion(request, attempt, started_at, answer.latency_s)
        text, finish_reason = self._hide_key(completion.text), self._hide_key(completion.finish_reason)
        return replace(completion, text=text, finish_reason=finish_reason)

    def _hide_key(self, text: str) -> str:
        # Of all endpoints: two may be the same gateway. The longest first, as one key may begin with another.
        keys = {address.key.get_secret_value() for address in self._addresses.values() if address.key is not None}
        for key in sorted(keys, key=len, reverse=True):
            text = text.replace(key, "[api key]")
        return text

    def _clean(self, text: str) -> str:
        return self._hide_key(text)[:MAX_ERROR_CHARACTERS]  # in this order: a key that is cut in two is not found


def open_session(config: OpenAIConfig, key: SecretStr | None) -> "aiohttp.ClientSession":
    """Return a session that sends the key, if any, in the header of each call; needs a running event loop."""
    import aiohttp

    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0),  # the windows bound what is in flight
        headers={} if key is None else {"Authorization": f"Bearer {key.get_secret_value()}"},
        timeout=aiohttp.ClientTimeout(total=config.timeout_s, sock_connect=CONNECT_TIMEOUT_S),
        cookie_jar=aiohttp.DummyCookieJar(),
        trust_env=bool(getproxies_environment()),  # otherwise proxies are looked up for every request
    )


def _make_endpoint(config: OpenAIConfig, share: float) -> Endpoint:
    return Endpoint(
        Window(config.max_in_flight or CAPACITY, is_adaptive=config.adaptive),
        (config.requests_per_minute or math.inf) * share,
        (config.tokens_per_minute or math.inf) * share,
    )


def _read_address(config: OpenAIConfig) -> _Address:
    key = read_key(config)
    return _Address(config, None if key is None else SecretStr(key))


def write_body(config: OpenAIConfig, request: Request, attempt: int) -> dict[str, Any]:
    """Return the JSON body of the call that asks one attempt."""
    body: dict[str, Any] = {
        "model": config.model,
        "messages": [{"role": message.role, "content": message.content} for message in request.messages],
        "temperature": request.temperature,
        "top_p": request.top_p,
        config.max_tokens_field: request.max_new_tokens,
    }
    if request.stop:
        body["stop"] = list(request.stop)
    if config.send_seed:
        body["seed"] = derive_seed(request.row_seed, attempt)
    if request.choices:
        # No schema: a reply forced to be a choice would hide the probability of everything else.
        body |= {"logprobs": True, "top_logprobs": TOP_LOGPROBS}
    elif request.response_schema and config.response_format != "none":
        body["response_format"] = _write_response_format(request.response_schema, config.response_format)
    return body | config.extra_body


@lru_cache(maxsize=64)
def _write_response_format(schema: str, form: str) -> dict[str, Any]:
    match form:
        case "json_object":
            return {"type": "json_object"}
        case "strict_json_schema":
            described = {"name": "reply", "strict": True, "schema": _drop_keywords(json.loads(schema))}
        case _:
            described = {"name": "reply", "schema": json.loads(schema)}
    return {"type": "json_schema", "json_schema": described}


def _drop_keywords(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a schema without the keywords that OpenAI's strict dialect refuses; a property's name is no keyword."""
    kept = {keyword: value for keyword, value in schema.items() if keyword not in NOT_IN_STRICT_DIALECT}
    if "properties" in kept:
        kept["properties"] = {name: _drop_keywords(part) for name, part in kept["properties"].items()}
    if "items" in kept:
        kept["items"] = _drop_keywords(kept["items"])
    return kept
