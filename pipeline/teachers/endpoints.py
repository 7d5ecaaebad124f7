"""Several endpoints, or keys, of one model, shared by all calls of a teacher: which one is free, and when.

`Endpoint` keeps the state of one and knows no clock; `Endpoints` lets calls through, first come, first served. An
endpoint that gives no answer any more is closed: single calls probe it, the others go elsewhere or wait, and with the
first answer it is open again.
"""

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from pipeline.teachers.pace import Pace
from pipeline.teachers.window import Window

MIN_FAILURES = 8
"""In a row, and as many as have a place: then it is no chance that none got an answer."""
FIRST_PROBE_S, LONGEST_PROBE_S = 0.5, 5.0
"""Between probes where a server doesn't say how long to wait: one small request is no burden."""


@dataclass(frozen=True, slots=True)
class Call:
    """One call that was let through."""

    endpoint: "Endpoint"
    sent_at: float
    """By the clock of those that let it through."""
    tokens: float
    """That it is expected to take."""
    is_probe: bool


class Endpoint:
    """What is known of one address and its key.

    Args:
        window: How many calls may be open.
        requests_per_minute: Cap on calls; infinity: none.
        tokens_per_minute: Cap on tokens; infinity: none.
    """

    def __init__(self, window: Window, requests_per_minute: float, tokens_per_minute: float) -> None:
        self._window = window
        self._requests = Pace(requests_per_minute)
        self._tokens = Pace(tokens_per_minute)
        self._n_open = 0
        self._resting: list[float] = []
        self._spacing_s = self._spaced_until = 0.0
        self._n_failures = self._n_probes = 0
        self._probe_at = 0.0
        self._is_probed = False
        self.last_sent_at = -math.inf
        self.closed_at: float | None = None
        """When it stopped answering; None while it answers."""

    @property
    def limit(self) -> int:
        """How many calls may be open now."""
        return self._window.limit

    @property
    def load(self) -> float:
        """Open calls over those that may be."""
        return self._n_open / self._window.limit

    def free_at(self, now: float) -> float:
        """Return from when on it takes another call; infinity where that depends on what comes of open ones."""
        paced_at = max(self._requests.free_at, self._tokens.free_at, self._spaced_until)
        if self.closed_at is not None:
            return math.inf if self._is_probed else max(self._probe_at, paced_at)
        self._let_rest(now)
        n_places = self._window.limit - self._n_open
        if n_places <= 0:
            return math.inf
        n_too_many = len(self._resting) - n_places
        return max(paced_at, sorted(self._resting)[n_too_many]) if n_too_many >= 0 else paced_at

    def start(self, now: float, tokens: float) -> Call:
        """Note a call that is sent now."""
        is_probe = self.closed_at is not None
        self._is_probed |= is_probe
        self._n_open += 1
        self.last_sent_at = now
        self._window.start(self._n_open + len(self._resting))
        self._requests.spend(now, 1)
        self._tokens.spend(now, tokens)
        self._spaced_until = now + self._spacing_s
        return Call(self, now, tokens, is_probe)

    def finish(
        self,
        now: float,
        call: Call,
        *,
        succeeded: bool,
        tokens: float,
        asked_wait_s: float | None = None,
        spacing_s: float = 0.0,
    ) -> None:
        """Note what came of a call.

        Args:
            now: By the clock of `start`.
            call: The call.
            succeeded: Whether it was answered; not when it was refused, or nothing came.
            tokens: What it took.
            asked_wait_s: How long the server asks to be left alone; None where it doesn't say.
            spacing_s: Seconds to leave until the next call, by what the server says of its limits.
        """
        self.drop(call, tokens)
        self._spacing_s = spacing_s
        self._spaced_until = now + spacing_s
        if succeeded:
            self._n_failures = 0
            if self.closed_at is None:
                self._window.finish(now, call.sent_at, succeeded=True)
            else:
                self.closed_at, self._n_probes = None, 0
                self._window.restart(now)
            return
        self._n_failures += 1
        if self.closed_at is None:
            self._window.finish(now, call.sent_at, succeeded=False)
            # It keeps its place for as long as an answer takes: at once, the next would be refused as well.
            self._resting.append(call.sent_at + self._window.latency_s)
            self._let_rest(now)
            if self._n_failures >= max(MIN_FAILURES, self._n_open + len(self._resting)):
                self.closed_at, self._resting = now, []
                self._schedule_probe(now, asked_wait_s)
        elif call.is_probe:
            self._schedule_probe(now, asked_wait_s)

    def drop(self, call: Call, tokens: float = 0.0) -> None:
        """Note a call that ended in whatever way."""
        self._n_open -= 1
        self._is_probed &= not call.is_probe
        self._tokens.settle(call.tokens, tokens)

    def _let_rest(self, now: float) -> None:
        self._resting = [until for until in self._resting if until > now]

    def _schedule_probe(self, now: float, asked_wait_s: float | None) -> None:
        own_s = min(FIRST_PROBE_S * 2.0 ** min(self._n_probes, 8), LONGEST_PROBE_S)
        self._probe_at = now + (own_s if asked_wait_s is None else max(own_s, asked_wait_s))
        self._n_probes += 1


class Endpoints:
    """Lets calls through to whichever endpoint is free.

    Args:
        endpoints: All of one model.
        clock: Seconds on a clock that never goes back.
    """

    def __init__(self, endpoints: Sequence[Endpoint], clock: Callable[[], float] = time.monotonic) -> None:
        self.all = tuple(endpoints)
        self._clock = clock
        self._turn = asyncio.Lock()
        self._changed = asyncio.Event()

    async def admit(self, tokens: float, avoid: Endpoint | None = None, avoid_s: float = 0.0) -> Call:
        """Wait for an endpoint that takes a call; of those that do, the one with the least share of its window used.

        Args:
            tokens: What the call is expected to take.
            avoid: Not this one for some time: until then only others that answer, and none keeps those behind waiting.
            avoid_s: How long.
        """
        if avoid is not None and (call := await self._admit_elsewhere(tokens, avoid, self._clock() + avoid_s)):
            return call
        async with self._turn:
            while True:
                now = self._clock()
                endpoint = self._choose(now, self.all)
                wait_s = endpoint.free_at(now) - now
                if wait_s <= 0:
                    return endpoint.start(now, tokens)
                await self._wait_for_change(wait_s)

    async def _admit_elsewhere(self, tokens: float, avoid: Endpoint, until: float) -> Call | None:
        """Return a call to another endpoint that answers; None where none is free before a moment.

        Without the turn while it waits: whoever is behind may have another choice.
        """
        while (left_s := until - self._clock()) > 0:
            wait_s = math.inf
            if others := [one for one in self.all if one is not avoid and one.closed_at is None]:
                async with self._turn:
                    now = self._clock()
                    other = self._choose(now, others)
                    wait_s = other.free_at(now) - now
                    if wait_s <= 0:
                        return other.start(now, tokens)
            await self._wait_for_change(min(wait_s, left_s))
        return None

    async def _wait_for_change(self, wait_s: float) -> None:
        self._changed.clear()
        with suppress(TimeoutError):
            await asyncio.wait_for(self._changed.wait(), None if math.isinf(wait_s) else wait_s)

    def has_other(self, endpoint: Endpoint) -> bool:
        """Return whether another one answers."""
        return any(other is not endpoint and other.closed_at is None for other in self.all)

    def finish(
        self, call: Call, *, succeeded: bool, tokens: float, asked_wait_s: float | None = None, spacing_s: float = 0.0
    ) -> None:
        """Note what came of a call, as `Endpoint.finish` has it."""
        call.endpoint.finish(
            self._clock(),
            call,
            succeeded=succeeded,
            tokens=tokens,
            asked_wait_s=asked_wait_s,
            spacing_s=spacing_s,
        )
        self._changed.set()

    def drop(self, call: Call) -> None:
        """Note a call of which nobody waits for the end any more."""
        call.endpoint.drop(call)
        self._changed.set()

    def measure_outage(self) -> float:
        """Return for how many seconds no endpoint has answered; 0 while one does."""
        since = [endpoint.closed_at for endpoint in self.all]
        return 0.0 if None in since else self._clock() - max(at for at in since if at is not None)

    def _choose(self, now: float, candidates: Sequence[Endpoint]) -> Endpoint:
        return min(candidates, key=lambda e: (max(e.free_at(now), now), e.load, e.last_sent_at))
