"""Any endpoint that speaks OpenAI's chat completions: OpenAI itself, `vllm serve`, Ollama, llama.cpp.

A call that may succeed when it is sent again (too many requests, a server's fault, a lost connection) is sent again
here. What concerns one request is that request's outcome; what no request can get past is raised. The key leaves the
teacher in one header and in nothing else.
"""

import asyncio
import json
import math
import os
import random
import re
import time
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit
from urllib.request import getproxies_environment

from pydantic import Field, SecretStr, ValidationError, ValidationInfo, field_validator

from pipeline.errors import ConfigError, TeacherError
from pipeline.identity import derive_seed, digest
from pipeline.records import Completion, Outcome, Request
from pipeline.teachers.chat_reply import ChatReply
from pipeline.teachers.offline import CHARACTERS_PER_TOKEN
from pipeline.teachers.pace import Pace, compute_wait
from pipeline.teachers.teacher import TeacherConfig, make_failure

if TYPE_CHECKING:
    import aiohttp

CONNECT_TIMEOUT_S = 30.0
MAX_ERROR_CHARACTERS = 500
TOP_LOGPROBS = 20
"""The most alternatives that OpenAI and vLLM give for a token."""
NOT_IN_STRICT_DIALECT = ("minLength", "maxLength")

_HIDDEN_CREDENTIALS, _HIDDEN_QUERY = "[credentials]@", "?[query]"


class OpenAIConfig(TeacherConfig):
    """An endpoint and the model to ask there."""

    kind: Literal["openai"]
    base_url: str
    """Such as `https://api.openai.com/v1`. No part of the requests' identity: it says where, not what."""
    model: str = Field(min_length=1)
    response_format: Literal["strict_json_schema", "json_schema", "json_object", "none"]
    """How the endpoint is told of the schema. `strict_json_schema` is OpenAI's dialect, without bounds on strings."""
    max_tokens_field: Literal["max_tokens", "max_completion_tokens"]
    send_seed: bool
    extra_body: dict[str, Any]
    """Further fields of every request's body; part of the requests' identity."""
    api_key_env: str | None
    """Environment variable that holds the key, on every node that asks."""
    api_key_file: str | None
    """File that holds the key, in place of a variable."""
    max_retries: int = Field(ge=0)
    """How often a call is sent again after 408, 409, 429, 5xx or a lost connection, before it counts as `error`."""
    requests_per_minute: float | None = Field(gt=0)
    """Cap over all actors; null: none."""
    tokens_per_minute: float | None = Field(gt=0)
    """Cap on prompt and completion tokens over all actors; null: none."""

    @field_validator("base_url")
    @classmethod
    def _check_base_url(cls, url: str) -> str:
        if _HIDDEN_CREDENTIALS in url:
            raise ValueError("a URL must not hold a password; set api_key_env or api_key_file")
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0 or "?" in url or "#" in url:
            raise ValueError("needs http(s)://host[:port][/path] and nothing after it, as in http://localhost:8000/v1")
        return url.rstrip("/")

    @field_validator("base_url", mode="before")
    @classmethod
    def _hide_secrets(cls, url: Any) -> Any:
        # The message of a failed check repeats its input. What is defined below the check gives it that input.
        if not isinstance(url, str):
            return url
        return re.sub(r"\?.*", _HIDDEN_QUERY, re.sub(r".*@", _HIDDEN_CREDENTIALS, url))

    @field_validator("api_key_file")
    @classmethod
    def _check_one_key(cls, file: str | None, info: ValidationInfo) -> str | None:
        if file is not None and info.data.get("api_key_env") is not None:
            raise ValueError("the key comes from api_key_env or from api_key_file, not from both; set one to null")
        return file


def identify(config: OpenAIConfig) -> dict[str, str]:
    """Return what tells this teacher's answers from another's: the model's name and what is said to it, not where."""
    body = {"format": config.response_format, "seed": config.send_seed, "extra": config.extra_body}
    return {"kind": "openai", "model": config.model, "body": digest(body)}  # by a batch the same model answers


def read_key(config: OpenAIConfig) -> str | None:
    """Return the endpoint's key; None where none is needed.

    Raises:
        ConfigError: The variable or the file is missing or empty, or holds what can't be a key.
    """
    source = _name_key_source(config)
    if config.api_key_env is not None:
        key = os.environ.get(config.api_key_env, "").strip()
    elif config.api_key_file is not None:
        try:
            key = Path(config.api_key_file).read_bytes().decode(errors="replace").strip()
        except OSError as error:
            raise ConfigError(
                f"the key of teacher {config.label} can't be read from {source}: {error.strerror}; "
                "put the file on every node that asks, or set teacher.api_key_file to where it is"
            ) from None
    else:
        return None
    if not key:
        raise ConfigError(
            f"the key of teacher {config.label} is missing: {source} is not set or empty on this machine; "
            "set it on every node that asks, or set teacher.api_key_env or teacher.api_key_file to where the key is"
        )
    if not re.fullmatch(r"[!-~]+", key):
        raise ConfigError(
            f"the key of teacher {config.label} is not one word of ASCII characters; {source} should hold the key and "
            "nothing else"
        )
    return key


def _name_key_source(config: OpenAIConfig) -> str:
    if config.api_key_env is not None:
        return f"the environment variable {config.api_key_env}"
    if config.api_key_file is not None:
        return f"the file {config.api_key_file}"
    return "teacher.api_key_env or teacher.api_key_file, which are both null"


@dataclass(frozen=True, slots=True)
class _Answer:
    """What came back for one HTTP call."""

    status: int
    body: bytes
    retry_after: str
    latency_s: float


class OpenAITeacher:
    """Completes requests by calls to an endpoint.

    Args:
        config: The endpoint and the model.
        share: The part of the rate caps that this teacher may use, of all that ask at the same time.

    Raises:
        ConfigError: The key can't be read.
    """

    def __init__(self, config: OpenAIConfig, share: float) -> None:
        self.capacity = 64
        self._config = config
        self._share = share
        key = read_key(config)
        self._key = None if key is None else SecretStr(key)
        self._url = f"{config.base_url}/chat/completions"
        self._requests = Pace((config.requests_per_minute or math.inf) * share)
        self._tokens = Pace((config.tokens_per_minute or math.inf) * share)
        self._session: aiohttp.ClientSession | None = None

    def __reduce__(self) -> Any:
        """Pickle the configuration alone: the key is read again where the teacher is built."""
        return OpenAITeacher, (self._config, self._share)

    async def complete(self, request: Request, attempt: int) -> Completion:
        """Return what came of one attempt, after as many calls as it took.

        Raises:
            TeacherError: The endpoint refuses the key, the model or the address, or the account has no quota left.
        """
        import aiohttp

        config = self._config
        body = write_body(config, request, attempt)
        jitter = random.Random(f"{request.request_id}-{attempt}")
        estimate = sum(len(m.content) for m in request.messages) / CHARACTERS_PER_TOKEN + request.max_new_tokens
        started_at, wait_s, problem = 0.0, 0.0, ""
        for n_retries in range(config.max_retries + 1):
            await asyncio.sleep(wait_s)
            await self._tokens.reserve(estimate)
            await self._requests.reserve(1)
            started_at = started_at or time.time()
            try:
                answer = await self._post(body)
            except aiohttp.ClientError as error:
                self._tokens.settle(estimate, 0)
                problem = self._clean(f"{type(error).__name__}: {error}")
                wait_s = compute_wait("", n_retries, jitter)
                continue
            except TimeoutError:
                late = f"no answer within {config.timeout_s:g} s"
                return make_failure(request, attempt, started_at, Outcome.TIMEOUT, late)
            if answer.status == 200:
                return self._read(request, attempt, started_at, answer, estimate)
            self._tokens.settle(estimate, 0)
            problem = f"HTTP {answer.status}: {self._clean(answer.body.decode(errors='replace'))}"
            if advice := advise(config, answer.status, answer.body):
                raise TeacherError(f"{self._url} with model {config.model} answered {problem}\n{advice}")
            if answer.status not in (408, 409, 429) and answer.status < 500:
                return make_failure(request, attempt, started_at, Outcome.ERROR, problem)
            wait_s = compute_wait(answer.retry_after, n_retries, jitter)
        gave_up = f"gave up after {config.max_retries + 1} calls; the last one: {problem}"
        return make_failure(request, attempt, started_at, Outcome.ERROR, gave_up)

    def measure_memory(self) -> None:
        """Return None: the model is elsewhere."""

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()

    async def _post(self, body: dict[str, Any]) -> _Answer:
        if self._session is None:
            self._session = open_session(self._config, self._key)
        start = time.perf_counter()
        async with self._session.post(self._url, json=body, allow_redirects=False) as response:
            content = await response.read()
            retry_after = response.headers.get("Retry-After", "")
            return _Answer(response.status, content, retry_after, time.perf_counter() - start)

    def _read(self, request: Request, attempt: int, started_at: float, answer: _Answer, estimate: float) -> Completion:
        try:
            reply = ChatReply.model_validate_json(answer.body)
        except ValidationError:
            body = self._clean(answer.body.decode(errors="replace"))
            return make_failure(request, attempt, started_at, Outcome.ERROR, f"HTTP 200, but no completion: {body}")
        if (usage := reply.usage) is not None:
            self._tokens.settle(estimate, usage.prompt_tokens + usage.completion_tokens)
        completion = reply.to_completion(request, attempt, started_at, answer.latency_s)
        text, finish_reason = self._hide_key(completion.text), self._hide_key(completion.finish_reason)
        return replace(completion, text=text, finish_reason=finish_reason)

    def _hide_key(self, text: str) -> str:
        return text if self._key is None else text.replace(self._key.get_secret_value(), "[api key]")

    def _clean(self, text: str) -> str:
        return self._hide_key(text)[:MAX_ERROR_CHARACTERS]  # in this order: a key that is cut in two is not found


def open_session(config: OpenAIConfig, key: SecretStr | None) -> "aiohttp.ClientSession":
    """Return a session that sends the key in the header of each call; needs a running event loop."""
    import aiohttp

    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0),  # whoever calls `complete` bounds what is in flight
        headers={} if key is None else {"Authorization": f"Bearer {key.get_secret_value()}"},
        timeout=aiohttp.ClientTimeout(total=config.timeout_s, sock_connect=CONNECT_TIMEOUT_S),
        cookie_jar=aiohttp.DummyCookieJar(),
        trust_env=bool(getproxies_environment()),  # otherwise proxies are looked up for every request
    )


def advise(config: OpenAIConfig, status: int, body: bytes) -> str:
    """Return what to do where no request can succeed; an empty text where one may."""
    source = _name_key_source(config)
    no_credit = f"the account of the key in {source} can't pay; add credit, then run the same command again"
    match status:
        case _ if 300 <= status < 400:
            return "set teacher.base_url to where this one leads; redirects are not followed"
        case 401:
            return f"check the key in {source}"
        case 402:
            return no_credit
        case 403:
            return f"check that the key in {source} may use this model"
        case 404 | 405:
            return "check teacher.base_url and teacher.model"
        case 429 if b"insufficient_quota" in body:  # OpenAI's code for an account without credit
            return no_credit
    return ""


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
