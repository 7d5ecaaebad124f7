"""Where a teacher's time and tokens went."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from pipeline.records import Completion
from pipeline.teachers.teacher import PriceConfig

START, STARVED, RUNNING, TAIL, RETRY = "start", "starved", "running", "tail", "retry"
CAUSES = (START, STARVED, RUNNING, TAIL, RETRY)
"""What an actor's time goes into: `start`, until its engine is there, and again when it had to be replaced;
`running`, with as many requests in flight as it can use; `starved`, with fewer although more were to come; `tail`,
with fewer because none were left; `retry`, the share of the last three spent on answers that were not accepted."""


class Occupancy:
    """Divides one actor's time by how many requests it has in flight."""

    def __init__(self, capacity: int, started_at: float, clock: Callable[[], float] = time.time) -> None:
        """Begin with the engine's start.

        Args:
            capacity: Requests in flight that keep the engine full.
            started_at: When the wait for the engine began, by the clock.
            clock: Seconds since some moment.
        """
        self._capacity = capacity
        self._clock = clock
        self._seconds = dict.fromkeys((START, STARVED, RUNNING, TAIL), 0.0)
        self._in_flight = 0
        self._starts = 0
        self._since = started_at
        self._pass_time(START)

    @contextmanager
    def request(self) -> Iterator[None]:
        """Count a request as in flight during the body."""
        self._pass_time()
        self._in_flight += 1
        try:
            yield
        finally:
            self._pass_time()
            self._in_flight -= 1

    @contextmanager
    def start(self) -> Iterator[None]:
        """Count the body as the engine's start."""
        self._pass_time()
        self._starts += 1
        try:
            yield
        finally:
            self._pass_time()
            self._starts -= 1

    def seconds(self) -> dict[str, float]:
        """Return seconds by cause so far. What looks like the tail becomes `starved` when the engine is full again."""
        self._pass_time()
        return dict(self._seconds)

    def _pass_time(self, cause: str = "") -> None:
        now = self._clock()
        passed, self._since = now - self._since, now
        if not cause:
            cause = START if self._starts else RUNNING if self._in_flight >= self._capacity else TAIL
        if cause == RUNNING:
            self._seconds[STARVED] += self._seconds[TAIL]
            self._seconds[TAIL] = 0.0
        self._seconds[cause] += passed


@dataclass(frozen=True)
class Session:
    """What one call of `teach` came to. Answers that the ledger had already are no part of it."""

    outcomes: Mapping[str, int]
    """Completions by what parsing made of them."""
    requests: int
    """Requests brought to their end."""
    prompt_tokens: int
    cached_tokens: int
    """Of the prompt tokens, those found in the prefix cache."""
    completion_tokens: int
    span_s: float
    actors: int
    devices: float
    """Of all actors together; 0 where the teacher computes elsewhere."""
    seconds: Mapping[str, float]
    """Actor-seconds by cause; together `actors * span_s`."""
    memory_bytes: int | None
    """Of the model in one actor; None where it is elsewhere."""

    @property
    def asking_s(self) -> float:
        """The span without what an actor, on average, waited for its engine."""
        return self.span_s - self.seconds[START] / self.actors


def summarize(
    totals: Mapping[str, float],
    *,
    requests: int,
    span_s: float,
    actors: int,
    devices_per_actor: float,
    memory_bytes: int | None = None,
) -> Session:
    """Return a session from what its actors counted.

    Args:
        totals: Sums over actors: `outcome/<outcome>`, `seconds/<cause>`, `tokens/<kind>`, and `busy/all` and
            `busy/accepted`, the request-seconds of all and of accepted completions.
        requests: How many requests were brought to their end.
        span_s: From the call to the last answer.
        actors: Size of the pool.
        devices_per_actor: GPUs of each actor, or 1 for an engine on CPUs; 0 where the teacher computes elsewhere.
        memory_bytes: Of the model in one actor.
    """
    seconds = {cause: totals.get(f"seconds/{cause}", 0.0) for cause in (START, STARVED, RUNNING, TAIL)}
    # An actor that has no more to do while others work is idle in the tail; so is one that never got any.
    seconds[TAIL] += max(0.0, actors * span_s - sum(seconds.values()))
    busy = totals.get("busy/all", 0.0)
    wasted = 1 - totals.get("busy/accepted", 0.0) / busy if busy else 0.0
    retry = 0.0
    for cause in (STARVED, RUNNING, TAIL):
        share = seconds[cause] * wasted
        seconds[cause] -= share
        retry += share
    return Session(
        outcomes={
            name.removeprefix("outcome/"): int(n) for name, n in sorted(totals.items()) if name.startswith("outcome/")
        },
        requests=requests,
        prompt_tokens=int(totals.get("tokens/prompt", 0)),
        cached_tokens=int(totals.get("tokens/cached", 0)),
        completion_tokens=int(totals.get("tokens/completion", 0)),
        span_s=span_s,
        actors=actors,
        devices=actors * devices_per_actor,
        seconds={**seconds, RETRY: retry},
        memory_bytes=memory_bytes,
    )


def describe_efficiency(
    completions: Iterable[Completion], n_rows: int, n_requests: int, sessions: Sequence[Session], price: PriceConfig
) -> dict[str, Any]:
    """Return what the answers behind a data set took; None is what was not measured.

    Tokens and money count every completion, accepted or not, whoever paid for it. Times are known of the sessions that
    ended, not of those that were killed, so what is said per row is said of the share of requests that they settled.

    Args:
        completions: All that the data set was made of.
        n_rows: Accepted rows.
        n_requests: Requests behind them.
        sessions: What asking came to.
        price: What tokens and devices cost.
    """
    completions = list(completions)
    prompt_tokens = sum(c.n_prompt_tokens for c in completions)
    completion_tokens = sum(c.n_completion_tokens for c in completions)
    seconds = {cause: sum(session.seconds[cause] for session in sessions) for cause in CAUSES}
    actor_s = sum(seconds.values())
    asking_s = sum(session.asking_s for session in sessions)
    device_s = sum(session.devices * session.span_s for session in sessions)
    covered = min(1.0, sum(session.requests for session in sessions) / n_requests) if n_requests else 0.0

    def per_row(amount: float | None) -> float | None:
        return amount / n_rows if n_rows and amount is not None else None

    tokens_usd = price.charge_all(completions)
    device_s_in_all = device_s / covered if device_s and covered else None
    devices_usd = None if device_s_in_all is None else price.charge_devices(device_s_in_all)
    usd = None if tokens_usd is None and devices_usd is None else (tokens_usd or 0.0) + (devices_usd or 0.0)
    return {
        "completions": len(completions),
        "rows": n_rows,
        "prompt_tokens": prompt_tokens,
        "cached_tokens": sum(c.n_cached_tokens for c in completions),
        "completion_tokens": completion_tokens,
        "tokens_per_row": per_row(prompt_tokens + completion_tokens),
        "measured_share": covered,
        "device_s": device_s_in_all,
        "tokens_per_s": sum(session.completion_tokens for session in sessions) / asking_s if asking_s else None,
        "device_s_per_row": per_row(device_s_in_all),
        "usd": usd,
        "usd_per_row": per_row(usd),
        "time_shares": {cause: s / actor_s for cause, s in seconds.items()} if actor_s else None,
    }
