"""Any endpoint that speaks OpenAI's chat completions: OpenAI itself, `vllm serve`, Ollama, llama.cpp.

A call that may succeed when it is sent again (too many requests, a server's fault, a lost connection) is sent again
here, to another endpoint where there is one. What concerns one request is that request's outcome; what no request can
get past is raised. A key leaves the teacher in one header and in nothing else.
"""

import asyncio
import json
import logging
import math
import os
import random
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal
from urllib.parse import urlsplit
from urllib.request import getproxies_environment

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from pipeline.config import Config
from pipeline.errors import ConfigError, TeacherError
from pipeline.identity import derive_seed, digest
from pipeline.records import Completion, Outcome, Request
from pipeline.teachers.chat_reply import ChatReply, Usage
from pipeline.teachers.endpoints import Endpoint, Endpoints
from pipeline.teachers.offline import CHARACTERS_PER_TOKEN
from pipeline.teachers.pace import compute_spacing, compute_wait
from pipeline.teachers.teacher import TeacherConfig, make_failure
from pipeline.teachers.window import Window

if TYPE_CHECKING:
    import aiohttp

LOG = logging.getLogger(__name__)
CAPACITY = 64
CONNECT_TIMEOUT_S = 30.0
LONGEST_OUTAGE_S = 900.0
"""Without an answer from any endpoint: then the run ends, rather than that every request becomes a reject."""
MAX_ERROR_CHARACTERS = 500
TOP_LOGPROBS = 20
"""The most alternatives that OpenAI and vLLM give for a token."""
NOT_IN_STRICT_DIALECT = ("minLength", "maxLength")

_HIDDEN_CREDENTIALS, _HIDDEN_QUERY = "[credentials]@", "?[query]"


def _check_base_url(url: str) -> str:
    if _HIDDEN_CREDENTIALS in url:
        raise ValueError("a URL must not hold a password; set api_key_env or api_key_file")
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0 or "?" in url or "#" in url:
        raise ValueError("needs http(s)://host[:port][/path] and nothing after it, as in http://localhost:8000/v1")
    return url.rstrip("/")


def _hide_secrets(url: Any) -> Any:
    # The message of a failed check repeats its input. What is validated after this gets the input without them.
    if not isinstance(url, str):
        return url
    return re.sub(r"\?.*", _HIDDEN_QUERY, re.sub(r".*@", _HIDDEN_CREDENTIALS, url))


BaseUrl = Annotated[str, AfterValidator(_check_base_url), BeforeValidator(_hide_secrets)]


class EndpointConfig(Config):
    """Another endpoint of the same model, or another key for the same endpoint."""

    base_url: BaseUrl
    api_key_env: str | None
    """Environment variable that holds the key, on every node that asks."""


class OpenAIConfig(TeacherConfig):
    """An endpoint and the model to ask there."""

    kind: Literal["openai"]
    base_url: BaseUrl
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
    further_endpoints: tuple[EndpointConfig, ...]
    """Asked beside the first, each with its own window and caps."""
    adaptive: bool
    """Whether fewer calls than `max_in_flight` are open where that is what the endpoint answers best."""
    max_retries: int = Field(ge=0)
    """How often a call is sent again after 408, 409, 429, 5xx or a lost connection, before it counts as `error`."""
    requests_per_minute: float | None = Field(gt=0)
    """Cap of each endpoint over all actors; null: none."""
    tokens_per_minute: float | None = Field(gt=0)
    """Cap on prompt and completion tokens of each endpoint over all actors; null: none."""

    @field_validator("api_key_file")
    @classmethod
    def _check_one_key(cls, file: str | None, info: ValidationInfo) -> str | None:
        if file is not None and info.data.get("api_key_env") is not None:
            raise ValueError("the key comes from api_key_env or from api_key_file, not from both; set one to null")
        return file

    @field_validator("further_endpoints", mode="before")
    @classmethod
    def _hide_bare_urls(cls, endpoints: Any) -> Any:
        is_list = isinstance(endpoints, list | tuple)
        return [_hide_secrets(item) for item in endpoints] if is_list else _hide_secrets(endpoints)

    @field_validator("further_endpoints")
    @classmethod
    def _check_distinct(cls, endpoints: tuple[EndpointConfig, ...], info: ValidationInfo) -> tuple[EndpointConfig, ...]:
        named = [(endpoint.base_url, endpoint.api_key_env) for endpoint in endpoints]
        named.append((info.data.get("base_url", ""), info.data.get("api_key_env")))
        if len(set(named)) < len(named):
            raise ValueError("an endpoint with the same key is named twice; name each once, or give it another key")
        return endpoints


def list_endpoints(config: OpenAIConfig) -> list[OpenAIConfig]:
    """Return a configuration for each endpoint, as if there were no other."""
    alone: dict[str, Any] = {"further_endpoints": ()}
    return [
        config.model_copy(update=alone),
        *(
            config.model_copy(update=alone | {"api_key_file": None} | dict(endpoint))
            for endpoint in config.further_endpoints
        ),
    ]


def identify(config: OpenAIConfig) -> dict[str, str]:
    """Return what tells this teacher's answers from another's: the model's name and what is said to it, not where."""
    body = {"format": config.response_format, "seed": config.send_seed, "extra": config.extra_body}
    return {"kind": config.kind, "model": config.model, "body": digest(body)}


def read_key(config: OpenAIConfig) -> str | None:
    """Return the key of the first endpoint; None where none is needed.

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
    headers: Mapping[str, str]
    latency_s: float


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
        import aiohttp

        config, endpoints = self._config, self._endpoints
        body = write_body(config, request, attempt)
        jitter = random.Random(f"{request.request_id}-{attempt}")
        estimate = sum(len(m.content) for m in request.messages) / CHARACTERS_PER_TOKEN + request.max_new_tokens
        started_at, wait_s, problem = 0.0, 0.0, ""
        failed: Endpoint | None = None
        for n_retries in range(config.max_retries + 1):
            await asyncio.sleep(wait_s)
            call = await endpoints.admit(estimate, failed)
            endpoint, address = call.endpoint, self._addresses[call.endpoint]
            started_at = started_at or time.time()
            asked_wait_s, spacing_s = None, 0.0
            try:
                answer = await self._post(address, body)
            except aiohttp.ClientError as error:
                problem = self._clean(f"{type(error).__name__}: {error}")
                wait_s = compute_wait("", n_retries, jitter)
            except TimeoutError:
                endpoints.finish(call, succeeded=False, tokens=estimate)
                late = f"no answer within {config.timeout_s:g} s"
                return make_failure(request, attempt, started_at, Outcome.TIMEOUT, late)
            except asyncio.CancelledError:
                endpoints.drop(call)
                raise
            else:
                spacing_s = compute_spacing(answer.headers, estimate, endpoint.limit)
                if answer.status == 200:
                    reply = _parse(answer)
                    usage = reply and reply.usage
                    used = usage.prompt_tokens + usage.completion_tokens if usage else estimate
                    endpoints.finish(call, succeeded=True, tokens=used, spacing_s=spacing_s)
                    return self._read(request, attempt, started_at, answer, reply)
                problem = f"HTTP {answer.status}: {self._clean(answer.body.decode(errors='replace'))}"
                if advice := _advise(address.config, answer):
                    endpoints.drop(call)
                    raise TeacherError(f"{address.url} with model {config.model} answered {problem}\n{advice}")
                if answer.status not in (408, 409, 429) and answer.status < 500:
                    endpoints.finish(call, succeeded=True, tokens=0, spacing_s=spacing_s)
                    return make_failure(request, attempt, started_at, Outcome.ERROR, problem)
                retry_after = answer.headers.get("Retry-After", "")
                wait_s = compute_wait(retry_after, n_retries, jitter)
                asked_wait_s = wait_s if retry_after else None
            was_open = endpoint.closed_at is None
            endpoints.finish(call, succeeded=False, tokens=0, asked_wait_s=asked_wait_s, spacing_s=spacing_s)
            if was_open and endpoint.closed_at is not None:
                LOG.warning("%s gives no answers and is only tried now and then: %s", address.url, problem)
            if endpoints.measure_outage() > LONGEST_OUTAGE_S:
                raise TeacherError(_tell_outage(address, problem))
            failed = endpoint
            if endpoint.closed_at is not None or endpoints.has_other(endpoint):
                wait_s = 0.0  # a closed endpoint makes it wait, and another one needn't
        gave_up = f"gave up after {config.max_retries + 1} calls; the last one: {problem}"
        return make_failure(request, attempt, started_at, Outcome.ERROR, gave_up)

    def measure_memory(self) -> None:
        """Return None: the model is elsewhere."""

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()

    async def _post(self, address: _Address, body: dict[str, Any]) -> _Answer:
        if self._session is None:
            self._session = self._open_session()
        start = time.perf_counter()
        async with self._session.post(
            address.url, json=body, headers=address.headers, allow_redirects=False
        ) as response:
            content = await response.read()
            return _Answer(response.status, content, response.headers, time.perf_counter() - start)

    def _open_session(self) -> "aiohttp.ClientSession":
        import aiohttp

        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),  # the windows bound what is in flight
            timeout=aiohttp.ClientTimeout(total=self._config.timeout_s, sock_connect=CONNECT_TIMEOUT_S),
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=bool(getproxies_environment()),  # otherwise proxies are looked up for every request
        )

    def _read(
        self, request: Request, attempt: int, started_at: float, answer: _Answer, reply: ChatReply | None
    ) -> Completion:
        if reply is None:
            body = self._clean(answer.body.decode(errors="replace"))
            return make_failure(request, attempt, started_at, Outcome.ERROR, f"HTTP 200, but no completion: {body}")
        choice, usage = reply.choices[0], reply.usage or Usage()
        outcome = choice.outcome
        return Completion(
            request_id=request.request_id,
            attempt=attempt,
            outcome=outcome,
            text=self._hide_key(choice.message.refusal or choice.message.content or ""),
            finish_reason=self._hide_key(choice.finish_reason or ""),
            n_prompt_tokens=usage.prompt_tokens,
            n_completion_tokens=usage.completion_tokens,
            started_at=started_at,
            latency_s=answer.latency_s,
            error="the endpoint sent no text" if outcome is Outcome.ERROR else "",
            n_cached_tokens=usage.n_cached_tokens,
            choice_logprobs=choice.read_logprobs(request.choices),
        )

    def _hide_key(self, text: str) -> str:
        # Of all endpoints: two may be the same gateway. The longest first, as one key may begin with another.
        keys = {address.key.get_secret_value() for address in self._addresses.values() if address.key is not None}
        for key in sorted(keys, key=len, reverse=True):
            text = text.replace(key, "[api key]")
        return text

    def _clean(self, text: str) -> str:
        return self._hide_key(text)[:MAX_ERROR_CHARACTERS]  # in this order: a key that is cut in two is not found


def _make_endpoint(config: OpenAIConfig, share: float) -> Endpoint:
    return Endpoint(
        Window(config.max_in_flight or CAPACITY, is_adaptive=config.adaptive),
        (config.requests_per_minute or math.inf) * share,
        (config.tokens_per_minute or math.inf) * share,
    )


def _read_address(config: OpenAIConfig) -> _Address:
    key = read_key(config)
    return _Address(config, None if key is None else SecretStr(key))


def _parse(answer: _Answer) -> ChatReply | None:
    try:
        return ChatReply.model_validate_json(answer.body)
    except ValidationError:
        return None


def _tell_outage(address: _Address, problem: str) -> str:
    return (
        f"no endpoint of {address.config.model} has answered for {LONGEST_OUTAGE_S / 60:g} minutes; the last one to be "
        f"tried, {address.url}: {problem}\nsee that it is up, then run the same command again"
    )


def _advise(config: OpenAIConfig, answer: _Answer) -> str:
    """Return what to do where no request can succeed; an empty text where one may."""
    source = _name_key_source(config)
    no_credit = f"the account of the key in {source} can't pay; add credit, then run the same command again"
    match answer.status:
        case status if 300 <= status < 400:
            return "set teacher.base_url to where this one leads; redirects are not followed"
        case 401:
            return f"check the key in {source}"
        case 402:
            return no_credit
        case 403:
            return f"check that the key in {source} may use this model"
        case 404 | 405:
            return "check teacher.base_url and teacher.model"
        case 429 if b"insufficient_quota" in answer.body:  # OpenAI's code for an account without credit
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
