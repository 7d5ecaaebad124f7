"""When to send: evenly below a cap, and not too soon again after a failure."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from email.utils import parsedate_to_datetime

FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 60.0
LONGEST_ASKED_WAIT_S = 600.0
"""However long a server asks to be left alone."""


class Pace:
    """Lets amounts through at a rate, one after the other and never in a burst.

    Every amount takes its time on one line: 10 at 60 a minute take 10 seconds of it, and what comes next starts after
    them. Time that passed without any request is not made up for.

    Args:
        per_minute: The rate; infinity never waits.
        clock: Seconds on a clock that never goes back.
        sleep: Waits for some seconds of that clock.
    """

    def __init__(
        self,
        per_minute: float,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._seconds_each = 60 / per_minute
        self._clock = clock
        self._sleep = sleep
        self._free_at = clock()

    async def reserve(self, amount: float) -> None:
        """Wait until `amount` may be spent."""
        now = self._clock()
        start = max(now, self._free_at)
        self._free_at = start + amount * self._seconds_each
        if start > now:
            await self._sleep(start - now)

    def settle(self, reserved: float, used: float) -> None:
        """Correct a reservation by what was used of it: those who come later start earlier, or later."""
        self._free_at += (used - reserved) * self._seconds_each


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
