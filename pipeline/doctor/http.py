"""One request to a server, and what its answer tells: whether it is there, whom it admits, what time it has."""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any

from pipeline.tracking import redact

TIMEOUT_S = 5.0


@dataclass(frozen=True)
class Reply:
    """What came back. Neither the body nor a header stands in `describe`: a server may repeat a key there."""

    url: str
    """Without credentials."""
    status: int | None
    """None: nothing came back."""
    json: Any = None
    """The body, where it is JSON."""
    ahead_s: float | None = None
    """Seconds by which the server's clock is ahead of this one; None: it doesn't say. Known to half a second."""
    problem: str = ""
    """Why nothing came back."""

    def describe(self) -> str:
        """Return the status, or why there is none."""
        return self.problem or f"HTTP {self.status}"


def fetch(
    url: str, token: str | None = None, *, login: tuple[str, str] | None = None, body: Mapping[str, Any] | None = None
) -> Reply:
    """Return a server's answer to one GET (with a body: POST), which is never sent again and follows no redirect.

    Args:
        url: May hold credentials.
        token: Sent as a bearer token.
        login: User and password.
        body: Sent as JSON.
    """
    import httpx

    headers = {"Authorization": f"Bearer {token}"} if token else {}
    started_at = time.time()
    try:
        response = httpx.request(
            "GET" if body is None else "POST",
            url,
            headers=headers,
            auth=login,
            json=body,
            timeout=TIMEOUT_S,
            follow_redirects=False,
        )
    except httpx.TimeoutException:
        return Reply(redact(url), None, problem=f"no answer within {TIMEOUT_S:g} s")
    except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as error:
        return Reply(redact(url), None, problem=redact(str(error)) or type(error).__name__)
    received_at = time.time()
    ahead_s = None
    try:
        # The header counts whole seconds, so on average it is half a second old.
        told = parsedate_to_datetime(response.headers["Date"]).timestamp() + 0.5
        ahead_s = told - (started_at + received_at) / 2
    except (KeyError, ValueError):
        pass
    try:
        content = response.json()
    except (json.JSONDecodeError, UnicodeDecodeError):
        content = None
    return Reply(redact(url), response.status_code, content, ahead_s)
