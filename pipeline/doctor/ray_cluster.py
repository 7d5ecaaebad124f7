"""Ray: the cluster's version, its token, its ports. Nothing is joined or started."""

import socket
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from urllib.parse import urlsplit

from pipeline.doctor.finding import Finding, fault, ok, warn
from pipeline.doctor.http import fetch

GCS_PORT, DASHBOARD_PORT = 6379, 8265
"""Where `ray start --head` listens unless told otherwise."""
CONNECT_TIMEOUT_S = 3.0
_GENERATE = "ray get-auth-token --generate, and the same file on every node (docs/cluster.md)"


def check_ray(environ: Mapping[str, str], address: str | None, home: Path) -> list[Finding]:
    """Return what is wrong with the cluster that a run would join, or with this machine as one.

    Args:
        environ: Environment variables.
        address: `scale.address`; RAY_ADDRESS wins, as it does in a run.
        home: The user's home folder.
    """
    address = environ.get("RAY_ADDRESS") or address
    findings = [check_token(environ, home, is_cluster=bool(address))]
    if not address:
        return [
            *findings,
            check_port_free("GCS", GCS_PORT, "--port"),
            check_port_free("dashboard", DASHBOARD_PORT, "--dashboard-port"),
        ]
    host, port = split_address(address)
    if not address.startswith("http"):
        findings.append(check_port_open("RAY_ADDRESS or scale.address", host, port))
    server = environ.get("RAY_API_SERVER_ADDRESS") or f"http://{host}:{DASHBOARD_PORT}"
    return [*findings, check_version(server, metadata.version("ray"), read_token(environ, home))]


def split_address(address: str) -> tuple[str, int]:
    """Return host and port of an address: `auto`, `local`, `host:port`, `ray://host:port` or `http://host:port`."""
    if address in ("auto", "local"):
        return "127.0.0.1", GCS_PORT
    parts = urlsplit(address if "://" in address else f"//{address}")
    return parts.hostname or "127.0.0.1", parts.port or GCS_PORT


def check_token(environ: Mapping[str, str], home: Path, *, is_cluster: bool) -> Finding:
    """Return whether the cluster asks for a token and this machine has it.

    Args:
        environ: RAY_AUTH_MODE, RAY_AUTH_TOKEN and RAY_AUTH_TOKEN_PATH count.
        home: Holds `.ray/auth_token`.
        is_cluster: Whether a run joins a cluster; one that it starts itself has a token unless told otherwise.
    """
    mode = environ.get("RAY_AUTH_MODE", "").lower()
    path = _find_token_file(environ, home)
    if mode not in ("", "token", "disabled"):
        return fault("RAY_AUTH_MODE", repr(mode), "token or disabled", "export RAY_AUTH_MODE=token")
    if mode == "disabled" or (not mode and is_cluster):
        state = "off" if mode else "RAY_AUTH_MODE is not set"
        return warn(
            "RAY_AUTH_MODE",
            f"token authentication: {state}",
            "RAY_AUTH_MODE=token; without it whoever reaches a cluster's ports runs code there, and one that wants a "
            "token refuses this machine",
            f"export RAY_AUTH_MODE=token; {_GENERATE}",
        )
    if not mode:
        return ok("RAY_AUTH_MODE", "not set; the cluster that a run starts here makes a token of its own")
    if environ.get("RAY_AUTH_TOKEN"):
        return ok("RAY_AUTH_MODE", "token authentication is on; the token is in RAY_AUTH_TOKEN")
    try:
        is_empty, access = not path.read_text().strip(), path.stat().st_mode
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no text"
        return fault(
            "RAY_AUTH_TOKEN_PATH", f"{path} can't be read: {reason}", "the token, as RAY_AUTH_MODE=token", _GENERATE
        )
    if is_empty:
        return fault("RAY_AUTH_TOKEN_PATH", f"{path} is empty", "the cluster's token", _GENERATE)
    if access & 0o077:
        return warn(
            "RAY_AUTH_TOKEN_PATH", f"{path} is open to other users", "a file for its owner alone", f"chmod 600 {path}"
        )
    return ok("RAY_AUTH_MODE", f"token authentication is on; {path} can be read")


def read_token(environ: Mapping[str, str], home: Path) -> str | None:
    """Return the token that this machine has; None: none that can be read."""
    if token := environ.get("RAY_AUTH_TOKEN"):
        return token
    try:
        return _find_token_file(environ, home).read_text().strip() or None
    except (OSError, UnicodeDecodeError):
        return None


def check_port_free(what: str, port: int, option: str) -> Finding:
    """Return whether nothing listens on a port of this machine."""
    subject = f"port {port} ({what})"
    if _connect("127.0.0.1", port):
        return ok(subject, "free")
    return warn(
        subject,
        "something listens there",
        "a free port, for `ray start --head`; what a run starts itself takes others",
        f"ray stop, or end what listens (ss -ltnp 'sport = :{port}'), or give `ray start` another {option}",
    )


def check_port_open(setting: str, host: str, port: int) -> Finding:
    """Return whether a cluster listens where it is looked for."""
    if problem := _connect(host, port):
        return fault(
            setting,
            f"{host}:{port} can't be reached: {problem}",
            "the head node of a running cluster",
            "start it (docs/cluster.md), open the port or a tunnel to it, or unset RAY_ADDRESS",
        )
    return ok(setting, f"{host}:{port} is open")


def check_version(server: str, own: str, token: str | None) -> Finding:
    """Return whether the cluster runs the Ray that is installed here.

    Args:
        server: The dashboard's address, which is the job server's.
        own: The version here.
        token: The cluster's token.
    """
    subject = "Ray's version"
    reply = fetch(f"{server.rstrip('/')}/api/version", token)
    if reply.status in (401, 403):
        return fault(
            "RAY_AUTH_TOKEN_PATH",
            f"the cluster at {reply.url} refuses this machine's token (HTTP {reply.status})",
            "the token that the cluster was started with",
            "copy the head node's ~/.ray/auth_token to this machine; export RAY_AUTH_MODE=token",
        )
    version = reply.json.get("ray_version") if isinstance(reply.json, dict) else None
    if version is None:
        return warn(
            subject,
            f"{own} here; the cluster's is not known: {reply.describe()} from {reply.url}",
            "one version on driver and cluster",
            "open a tunnel (ray dashboard cluster.yaml) and set RAY_API_SERVER_ADDRESS=http://127.0.0.1:8265",
        )
    if version == own:
        return ok(subject, f"{own} here and on the cluster")
    return fault(
        subject,
        f"{own} here, {version} on the cluster",
        "one version on driver and cluster",
        f"pip install 'ray=={version}' here, or ray=={own} on every node and start the cluster again",
    )


def _find_token_file(environ: Mapping[str, str], home: Path) -> Path:
    return Path(environ.get("RAY_AUTH_TOKEN_PATH") or home / ".ray" / "auth_token").expanduser()


def _connect(host: str, port: int) -> str:
    """Return why no connection can be made; empty: one was made."""
    try:
        socket.create_connection((host, port), timeout=CONNECT_TIMEOUT_S).close()
    except OSError as error:
        return error.strerror or str(error)
    return ""
