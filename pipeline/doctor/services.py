"""The servers that a run talks to: endpoints of teachers, and MLflow's."""

from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from pipeline.doctor.finding import Finding, fault, ok, warn
from pipeline.doctor.folders import check_sqlite
from pipeline.doctor.http import Reply, fetch
from pipeline.doctor.machine import check_clock
from pipeline.errors import ConfigError
from pipeline.storage import Folder
from pipeline.teachers.openai_config import OpenAIConfig, list_endpoints, read_key
from pipeline.tracking import TrackingConfig, redact, tracking_uri

MAX_NAMED = 8
"""Models of an endpoint that a finding names."""


def check_endpoint(setting: str, config: OpenAIConfig) -> list[Finding]:
    """Return what is wrong with a teacher's endpoints: their models are asked for, which costs nothing.

    Args:
        setting: Where the teacher's configuration stands, as in `arms.gpt.teacher`.
        config: The teacher.
    """
    first, *further = list_endpoints(config)
    settings = [setting, *(f"{setting}.further_endpoints.{n}" for n in range(len(further)))]
    return [f for place, one in zip(settings, [first, *further], strict=True) for f in _check_one(place, one)]


def _check_one(setting: str, config: OpenAIConfig) -> list[Finding]:
    key_setting = f"{setting}.{'api_key_file' if config.api_key_file else 'api_key_env'}"
    try:
        key = read_key(config)
    except ConfigError as error:
        source = config.api_key_env or config.api_key_file
        return [fault(key_setting, str(error), f"the endpoint's key in {source}", f"put the key into {source}")]
    reply = fetch(f"{config.base_url}/models", key)
    findings = [_judge_models(setting, key_setting, config, reply, has_key=key is not None)]
    if reply.ahead_s is not None:
        findings.append(check_clock(config.base_url, reply.ahead_s))
    return findings


def _judge_models(setting: str, key_setting: str, config: OpenAIConfig, reply: Reply, *, has_key: bool) -> Finding:
    url_setting = f"{setting}.base_url"
    match reply.status:
        case None:
            return fault(
                url_setting,
                f"{reply.url}: {reply.describe()}",
                "an endpoint that answers",
                f"start it, open the way to it, or correct {url_setting}",
            )
        case 401 | 403:
            source = config.api_key_env or config.api_key_file
            return fault(
                key_setting,
                f"{reply.url} refuses {f'the key in {source}' if has_key else 'a request without a key'} "
                f"(HTTP {reply.status})",
                "a key that is valid there",
                f"put a valid key into {source}" if has_key else f"set {key_setting} to the variable with the key",
            )
        case 404 | 405 | 301 | 302 | 307 | 308:
            return fault(
                url_setting,
                f"{reply.url}: {reply.describe()}",
                "the address below which /models and /chat/completions are, most often one that ends in /v1",
                f"correct {url_setting}={config.base_url}",
            )
        case 200:
            return _judge_listing(setting, config, reply)
    return warn(
        url_setting,
        f"{reply.url}: {reply.describe()}",
        "HTTP 200",
        "look again later; if it stays so, look at the server's log",
    )


def _judge_listing(setting: str, config: OpenAIConfig, reply: Reply) -> Finding:
    data = reply.json.get("data") if isinstance(reply.json, Mapping) else None
    models = [str(m["id"]) for m in data if isinstance(m, Mapping) and "id" in m] if isinstance(data, list) else []
    if not models:
        return warn(
            f"{setting}.model",
            f"{reply.url} lists no models",
            f"{config.model} among them",
            f"see that {setting}.base_url is an OpenAI-compatible endpoint",
        )
    if config.model in models:
        return ok(f"{setting}.base_url", f"{config.base_url} answers and lists {config.model}")
    more = f" and {len(models) - MAX_NAMED} more" if len(models) > MAX_NAMED else ""
    return fault(
        f"{setting}.model",
        f"{reply.url} doesn't list {config.model}; it lists {', '.join(models[:MAX_NAMED])}{more}",
        "a model that the endpoint serves",
        f"set {setting}.model to one of these, or load {config.model} there",
    )


def check_tracking(config: TrackingConfig, root: Folder, environ: Mapping[str, str]) -> list[Finding]:
    """Return what is wrong with the place where runs are recorded.

    Args:
        config: The place.
        root: The run's.
        environ: MLFLOW_TRACKING_USERNAME, MLFLOW_TRACKING_PASSWORD and MLFLOW_TRACKING_TOKEN count.
    """
    if not config.enabled:
        return [ok("tracking.enabled", "false; runs are not recorded")]
    try:
        uri = tracking_uri(config, root)
    except ConfigError as error:
        return [fault("tracking.uri", redact(str(error)), "a place for runs", "tracking=server, or tracking=none")]
    parts = urlsplit(uri)
    if parts.scheme == "sqlite":
        # sqlite:////a/b is /a/b, sqlite:///a/b is a/b
        return [check_sqlite(Path(parts.path[1:]))]
    if parts.scheme not in ("http", "https"):
        return [
            warn(
                "tracking.uri", f"{parts.scheme}://…: not looked at", "a tracking server or SQLite", "see that it works"
            )
        ]
    return check_server(uri, environ)


def check_server(uri: str, environ: Mapping[str, str]) -> list[Finding]:
    """Return what is wrong with a tracking server. Nothing is recorded there.

    Whether it writes is seen from an experiment that can't be created, because it has the name of one that is there: a
    store that can be written says so, others say why they can't.

    Args:
        uri: The server's URL.
        environ: See `check_tracking`.
    """
    token = environ.get("MLFLOW_TRACKING_TOKEN")
    user = environ.get("MLFLOW_TRACKING_USERNAME")
    login = (user, environ.get("MLFLOW_TRACKING_PASSWORD", "")) if user else None
    api = f"{uri.rstrip('/')}/api/2.0/mlflow/experiments"
    reply = fetch(f"{api}/search?max_results=1", token, login=login)
    findings = [] if reply.ahead_s is None else [check_clock(redact(uri), reply.ahead_s)]
    found = reply.json.get("experiments") if isinstance(reply.json, Mapping) else None
    if reply.status in (401, 403):
        return [_refuse(reply), *findings]
    if reply.status != 200 or not isinstance(reply.json, Mapping):
        problem = fault(
            "tracking.uri",
            f"{redact(uri)}: {reply.describe()}{'' if reply.status != 200 else ', but no answer of MLflow'}",
            "an MLflow server that answers",
            "start it (docs/cluster.md), open the way to it, correct MLFLOW_TRACKING_URI or tracking.uri, or set "
            "tracking=none",
        )
        return [problem, *findings]
    if not found:
        return [ok("tracking.uri", f"{redact(uri)} answers; it has no experiment, so writing was not tried"), *findings]
    reply = fetch(f"{api}/create", token, login=login, body={"name": found[0]["name"]})
    code = reply.json.get("error_code") if isinstance(reply.json, Mapping) else None
    if code == "RESOURCE_ALREADY_EXISTS":
        return [ok("tracking.uri", f"{redact(uri)} answers and takes what is written"), *findings]
    if reply.status in (401, 403):
        return [_refuse(reply), *findings]
    problem = fault(
        "tracking.uri",
        f"{redact(uri)} can be read and not written: {reply.describe()} {code or ''}".strip(),
        "a server whose store can be written",
        "look at the server's log; its --backend-store-uri must be a database that it may write",
    )
    return [problem, *findings]


def _refuse(reply: Reply) -> Finding:
    return fault(
        "tracking.uri",
        f"{reply.url} refuses this user (HTTP {reply.status})",
        "a user who may record runs, and this host among the server's --allowed-hosts",
        "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN; see --allowed-hosts",
    )
