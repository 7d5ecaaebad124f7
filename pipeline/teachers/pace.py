"""When to send: evenly below a cap, not too soon again after a failure, and as a server's headers say."""

import random
import re
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime

FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 60.0
LONGEST_ASKED_WAIT_S = 600.0
"""However long a server asks to be left alone."""
_UNITS_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_SPAN = re.compile(r"(?:\d+(?:\.\d+)?(?:ms|[smhd]))+")
_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|[smhd])")


class Pace:
    """Lets amounts through at a rate, one after the other and never in a burst.

    Every amount takes its time on one line: 10 at 60 a minute take 10 seconds of it, and what comes next starts after
    them. Time that passed without any request is not made up for.

    Args:
        per_minute: The rate; infinity never waits.
    """

    def __init__(self, per_minute: float) -> None:
        self._seconds_each = 60 / per_minute
        self.free_at = 0.0
        """When the next amount may be spent, in seconds on the caller's clock."""

    def spend(self, now: float, amount: float) -> None:
        """Spend an amount at a moment that is not before `free_at`."""
        self.free_at = max(now, self.free_at) + amount * self._seconds_each

    def settle(self, reserved: float, used: float) -> None:
        """Correct what was spent by what was used of it: those who come later start earlier, or later."""
        self.free_at += (used - reserved) * self._seconds_each


def compute_wait(retry_after: str, n_retries: int, jitter: random.Random) -> float:
    """Return the seconds to wait before a call is sent again.

    Args:
        retry_after: The header of that name: seconds or an HTTP date; another text counts as none.
        n_retries: Calls that were already sent again.
        jitter: Spreads requests that failed together.
    """
    try:
        asked_s = float(retry_after)
    except ValueError:
        try:
            asked_s = parsedate_to_datetime(retry_after).timestamp() - time.time()
        except (ValueError, OverflowError):  # OverflowError: a year of twenty digits
            doublings = min(n_retries, 7)  # more would pass the longest wait anyway
            return min(FIRST_WAIT_S * 2.0**doublings * (1 + jitter.random()), LONGEST_WAIT_S)
    return max(0.0, min(asked_s, LONGEST_ASKED_WAIT_S))


def compute_spacing(headers: Mapping[str, str], tokens: float, few: int) -> float:
    """Return the seconds to leave between calls where a server says that few more may come.

    What remains is spread over the time until it is renewed. That suits both of the limits in use: one that is renewed
    all at once is used evenly, and one that fills up all the time settles where it is half full.

    Args:
        headers: Of an answer; `x-ratelimit-remaining-*` and `x-ratelimit-reset-*` count, for requests and for tokens.
        tokens: What one call takes.
        few: Calls of which more must remain for this not to matter.
    """
    spacing_s = 0.0
    for kind, each in (("requests", 1.0), ("tokens", tokens)):
        try:
            calls = max(0.0, float(headers[f"x-ratelimit-remaining-{kind}"])) / each
        except (KeyError, ValueError, ZeroDivisionError):
            continue
        if calls < few:
            spacing_s = max(spacing_s, _read_span(headers.get(f"x-ratelimit-reset-{kind}", "")) / (1 + calls))
    return min(spacing_s, LONGEST_ASKED_WAIT_S)


def _read_span(text: str) -> float:
    """Return the seconds of `59.5`, `12ms` or `6m0s`; 0 for what is none of these."""
    if _SPAN.fullmatch(text):
        return sum(float(number) * _UNITS_S[unit] for number, unit in _PART.findall(text))
    return float(text) if re.fullmatch(r"\d{1,7}(?:\.\d+)?", text) else 0.0  # more digits are a date, not a span
