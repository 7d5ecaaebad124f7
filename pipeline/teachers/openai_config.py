"""Where an OpenAI-compatible model answers: its endpoints, their keys, and what is wrong where none can be asked."""

import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo, field_validator

from pipeline.config import Config
from pipeline.errors import ConfigError
from pipeline.identity import digest
from pipeline.teachers.teacher import TeacherConfig

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
    return {"kind": "openai", "model": config.model, "body": digest(body)}  # by a batch the same model answers


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
