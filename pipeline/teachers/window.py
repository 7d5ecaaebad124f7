"""How many calls an endpoint gets at once: found by trying, kept by what it brings.

A refusal (429) says little by itself. Where calls are refused at random, fewer calls are only fewer answers; where a
limit is reached, fewer calls bring as many answers. So refusals only say that something may be gained: what decides is
answers per second, the goodput, at the larger and at the smaller of two windows.
"""

from dataclasses import dataclass

FIRST_LIMIT = 32
"""A round trip below what most endpoints take, and no flood for one that takes little."""
CLEAN_SHARE = 0.1
"""Calls that may fail without a doubt about the window; fewer can't be told from chance in one round."""
HOPELESS_SHARE = 0.5
"""Failed calls from which on only a smaller window is tried."""
MIN_ANSWERS = 20
"""Of a round: with fewer, chance moves the goodput by as much as a step does."""
SMALLEST_STEP, LARGEST_STEP = 1.4, 2.0
DEEPEST_CUT = 4.0
FIRST_HOLD, LONGEST_HOLD = 2, 16
"""Rounds without a trial after one that failed; doubled each time."""
LATENCY_WEIGHT = 0.1


@dataclass(frozen=True, slots=True)
class Round:
    """What came of the calls while one window held."""

    limit: int
    goodput: float
    """Answers per second."""
    failed_share: float
    latency_s: float
    """Of an answer, on average."""


def does_larger_pay(small: Round, large: Round) -> bool:
    """Return whether the larger window brought at least half of what it asked more."""
    return small.goodput < (1 + small.limit / large.limit) / 2 * large.goodput


class Window:
    """A limit on open calls that follows what comes of them.

    Until the first failure every answer raises the limit by one. From then on each round measures one limit, after the
    time that an answer takes. While hardly anything fails, the limit grows. Where calls fail, every change is a trial:
    a larger limit stays if it brought more, a smaller one if it lost nothing, and otherwise the limit goes back and
    holds for some rounds.

    Args:
        ceiling: What the limit never passes.
        is_adaptive: Whether the limit moves; otherwise it is the ceiling.
    """

    def __init__(self, ceiling: int, *, is_adaptive: bool = True) -> None:
        self.limit = min(FIRST_LIMIT, ceiling) if is_adaptive else ceiling
        self._ceiling = ceiling
        self._is_adaptive = is_adaptive
        self.latency_s = 0.0
        """Of an answer, on average; 0 before the first."""
        self._is_starting = True
        self._home: Round | None = None
        self._goes_up = True
        self._step = LARGEST_STEP
        self._hold = 0
        self._next_hold = FIRST_HOLD
        self._began_at = self._first_at = 0.0
        self._n_answers = self._n_failed = 0
        self._is_filled = False

    def start(self, n_open: int) -> None:
        """Note a call that was sent, as one of so many that are open."""
        self._is_filled |= n_open >= self.limit

    def finish(self, now: float, sent_at: float, *, succeeded: bool) -> None:
        """Note what came of a call.

        Args:
            now: Seconds on a clock that never goes back.
            sent_at: When it was sent, by that clock.
            succeeded: Whether it got an answer.
        """
        if not self._is_adaptive:
            return
        if succeeded:
            latency_s = now - sent_at
            self.latency_s += (latency_s - self.latency_s) * (LATENCY_WEIGHT if self.latency_s else 1.0)
        if self._is_starting:
            self._grow(now, succeeded=succeeded)
        elif now >= self._began_at + self.latency_s:
            self._measure(now, succeeded=succeeded)

    def restart(self, now: float) -> None:
        """Begin anew after an outage, with half of what was open before: it may be that which was too much."""
        if self._is_adaptive:
            self.limit = max(1, (self._home.limit if self._home else self.limit) // 2)
            self._home, self._hold, self._next_hold = None, 0, FIRST_HOLD
            self._is_starting, self._goes_up, self._step = True, True, LARGEST_STEP
            self._begin(now)

    def _grow(self, now: float, *, succeeded: bool) -> None:
        if not succeeded:
            self._is_starting = False
            self._begin(now)
        elif self._is_filled:
            self.limit = min(self._ceiling, self.limit + 1)

    def _measure(self, now: float, *, succeeded: bool) -> None:
        self._first_at = self._first_at or now
        self._n_answers += succeeded
        self._n_failed += not succeeded
        span_s = now - self._first_at
        n_calls = self._n_answers + self._n_failed
        if self._n_answers >= MIN_ANSWERS and n_calls >= self.limit and span_s >= self.latency_s:
            share = self._n_failed / n_calls
            self._decide(Round(self.limit, self._n_answers / span_s, share, self.latency_s))
            self._begin(now)

    def _begin(self, now: float) -> None:
        self._began_at = now
        self._first_at = 0.0
        self._n_answers = 0
        self._n_failed = 0
        self._is_filled = False

    def _decide(self, this: Round) -> None:
        home, self._home = self._home, None
        if home is None:
            self._try(this)
        elif self._is_kept(home, this):
            self._step, self._next_hold = min(self._step * SMALLEST_STEP, LARGEST_STEP), FIRST_HOLD
            self._try(this)
        else:
            self.limit, self._goes_up, self._step = home.limit, not self._goes_up, SMALLEST_STEP
            self._hold, self._next_hold = self._next_hold, min(2 * self._next_hold, LONGEST_HOLD)

    def _is_kept(self, home: Round, this: Round) -> bool:
        if this.limit > home.limit:
            return this.failed_share <= CLEAN_SHARE or does_larger_pay(home, this)
        return not does_larger_pay(this, home)

    def _try(self, this: Round) -> None:
        """Go from a limit that stays to the next one to be tried."""
        is_clean = this.failed_share <= CLEAN_SHARE
        if self._hold:
            self._hold -= 1
            return
        may_go_up = self._goes_up and self.limit < self._ceiling and this.failed_share < HOPELESS_SHARE
        if is_clean or may_go_up:
            self._goes_up = True
            if self._is_filled:
                self.limit = min(self._ceiling, max(self.limit + 1, round(self.limit * self._step)))
        else:
            self._goes_up = False
            enough = this.goodput * this.latency_s  # calls that were open and got an answer, by Little's law
            smaller = min(self.limit / SMALLEST_STEP, max(enough, self.limit / DEEPEST_CUT))
            self.limit = max(1, min(self.limit - 1, round(smaller)))
        if self.limit != this.limit:
            self._home = this
