"""What asking the rest will take, projected from a few requests that were asked.

The probe is a simple random sample of the requests without an end, each brought to its own end, so that what is asked
again for bad replies is in it. All intervals are for 95 %, and made of three known ones:

- Student's t for what a call takes, over requests, for the sum over those to come. Prompt tokens are a ratio to the
  prompts' sizes, which are known of all (Cochran 1977, chapters 2 and 6).
- Wilson's for shares: of replies that are bad, and of calls that another one follows. Where the probe saw none, the
  upper end still allows for some.
- Products and sums have the distances of their parts' ends added in squares (MOVER, Zou and Donner 2008).

Time has no such interval: see `_project_time`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import hypot, sqrt

from pipeline.records import Completion, Outcome
from pipeline.teachers.efficiency import START, Session
from pipeline.teachers.plan import Limits
from pipeline.teachers.teacher import PriceConfig

CONFIDENCE = 0.95
MIN_PROBED = 2
"""Requests of one kind that a probe needs, where so many are left: one alone has no spread."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value and its interval."""

    value: float
    low: float
    high: float

    @staticmethod
    def exactly(value: float) -> "Estimate":
        """Return what is known."""
        return Estimate(value, value, value)

    def __mul__(self, factor: float) -> "Estimate":
        """Return this, times what is known and not negative."""
        return Estimate(self.value * factor, self.low * factor, self.high * factor)


@dataclass(frozen=True, slots=True)
class Probed:
    """One request of the probe, with what asking it to its end took."""

    size: float
    """What its prompt tokens are in proportion to."""
    completions: Sequence[Completion]
    """At least one."""
    outcomes: Sequence[Outcome]
    """What parsing made of each."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast a teacher may be asked, and how fast it was."""

    session: Session
    """The probe's."""
    slots: int
    """Requests that all actors together keep open."""
    requests_per_minute: float | None
    tokens_per_minute: float | None


@dataclass(frozen=True, slots=True)
class Projection:
    """What the requests to come will take."""

    calls: Estimate
    """Completions: one for each request, and one more each time that it is asked again."""
    prompt_tokens: Estimate
    completion_tokens: Estimate
    time_s: Estimate
    device_s: Estimate | None
    """None: the teacher computes elsewhere."""
    usd: Estimate | None
    """None: no price is set."""


NOTHING = Projection(*[Estimate.exactly(0.0)] * 6)


def allot(n_rows: int, n_missing: Sequence[int]) -> list[int]:
    """Return how many requests of each kind are probed: in turn, as long as there are any.

    Each kind gets at least two of its own, also beyond `n_rows`.

    Example:
        >>> allot(20, [100, 3, 0])
        [17, 3, 0]
    """
    counts = [min(MIN_PROBED, n) for n in n_missing]
    while sum(counts) < min(n_rows, sum(n_missing)):
        open_kinds = [kind for kind, n in enumerate(n_missing) if counts[kind] < n]
        counts[min(open_kinds, key=lambda kind: counts[kind])] += 1
    return counts


def project(
    probed: Sequence[Probed], sizes: Sequence[float], limits: Limits, price: PriceConfig, pace: Pace
) -> Projection:
    """Return what the requests to come will take.

    Args:
        probed: The probe; at least two, unless nothing is to come.
        sizes: Of each request to come, in the probe's unit.
        limits: How often one may be asked.
        price: What tokens and devices cost.
        pace: What the probe's session tells of time.
    """
    if not sizes:
        return NOTHING if pace.session.devices else replace(NOTHING, device_s=None)
    sample = _Sample(probed, sizes, _estimate_calls(probed, len(sizes), limits))
    calls = sample.calls_per_request * len(sizes)
    prompt_tokens = sample.sum_up(by_size=[_count_prompt_tokens(one) for one in probed])
    completion_tokens = sample.sum_up(
        by_call=[float(sum(c.n_completion_tokens for c in one.completions)) for one in probed]
    )
    busy_s = sample.sum_up(by_call=[sum(c.latency_s for c in one.completions) for one in probed])
    time_s = _project_time(busy_s, calls, prompt_tokens, completion_tokens, len(probed), len(sizes), pace)
    device_s = time_s * pace.session.devices if pace.session.devices else None
    tokens_usd = None
    if price.charge_all(()) is not None:
        # A prompt's charge goes with its size, the rest with the calls.
        prompts = [
            price.charge_all(replace(c, n_completion_tokens=0) for c in one.completions) or 0.0 for one in probed
        ]
        wholes = [price.charge_all(one.completions) or 0.0 for one in probed]
        tokens_usd = sample.sum_up(prompts, [whole - own for whole, own in zip(wholes, prompts, strict=True)])
    hour = price.charge_devices(3600.0)
    devices_usd = None if hour is None or device_s is None else device_s * (hour / 3600)
    charged = [usd for usd in (tokens_usd, devices_usd) if usd is not None]
    return Projection(calls, prompt_tokens, completion_tokens, time_s, device_s, add(charged) if charged else None)


def add(parts: Iterable[Estimate]) -> Estimate:
    """Return the sum of independent estimates."""
    parts = list(parts)
    total = sum(part.value for part in parts)
    below = hypot(*(part.value - part.low for part in parts))
    return Estimate(total, max(0.0, total - below), total + hypot(*(part.high - part.value for part in parts)))


def add_up(parts: Iterable[Estimate]) -> Estimate:
    """Return the sum of estimates that err the same way."""
    parts = list(parts)
    return Estimate(sum(p.value for p in parts), sum(p.low for p in parts), sum(p.high for p in parts))


def estimate_share(n_hits: float, n: float) -> Estimate:
    """Return a share with Wilson's interval (1927).

    Args:
        n_hits: Of `n`.
        n: How many there were, above 0; not whole where it stands for a finite population.

    Example:
        >>> estimate_share(0, 20)
        Estimate(value=0.0, low=0.0, high=0.16...)
    """
    z, share = _find_quantile(None), n_hits / n
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * sqrt(share * (1 - share) / n + (z / (2 * n)) ** 2)
    return Estimate(share, max(0.0, min(share, middle - half)), min(1.0, max(share, middle + half)))


def estimate_bad_replies(outcomes: Sequence[Outcome]) -> Estimate | None:
    """Return the share of calls whose reply can't be used and is asked for anew; None without calls."""
    if not outcomes:
        return None
    return estimate_share(sum(outcome.is_worth_another_attempt for outcome in outcomes), len(outcomes))


def _estimate_calls(probed: Sequence[Probed], n_to_come: int, limits: Limits) -> Estimate:
    """Return calls per request, from the share of calls that another one follows."""
    n_calls = sum(len(one.completions) for one in probed)
    # As large a sample as would say the same of endless others.
    n_worth = n_calls / (1 + len(probed) / n_to_come)
    share = estimate_share((n_calls - len(probed)) / n_calls * n_worth, n_worth)
    most = limits.max_attempts * limits.max_tries
    value, low = (1 / (1 - end) for end in (share.value, share.low))
    return Estimate(value, low, max(value, min(most, 1 / (1 - share.high) if share.high < 1 else most)))


@dataclass(frozen=True)
class _Sample:
    """The probe, and what is known of the requests to come."""

    probed: Sequence[Probed]
    sizes: Sequence[float]
    calls_per_request: Estimate

    def sum_up(self, by_size: Sequence[float] | None = None, by_call: Sequence[float] | None = None) -> Estimate:
        """Return the sum over the requests to come of something that each call takes.

        Args:
            by_size: What each probed request took in proportion to its size.
            by_call: What it took besides, whatever its size.
        """
        calls = [len(one.completions) for one in self.probed]
        reads = [one.size * n for one, n in zip(self.probed, calls, strict=True)]
        sized, fixed = by_size or [0.0] * len(calls), by_call or [0.0] * len(calls)
        ratio, mean = sum(sized) / sum(reads), sum(fixed) / sum(calls)
        total = self.calls_per_request.value * (ratio * sum(self.sizes) + mean * len(self.sizes))
        left = [a + b - ratio * read - mean * n for a, b, read, n in zip(sized, fixed, reads, calls, strict=True)]
        n, m = len(left), len(self.sizes)
        spread = sqrt(sum(one * one for one in left) / (n - 1))
        half = _find_quantile(n - 1) * spread * m * sqrt(1 / n + 1 / m)
        often = self.calls_per_request
        return Estimate(
            total,
            max(0.0, total - hypot(half, total * (1 - often.low / often.value))),
            total + hypot(half, total * (often.high / often.value - 1)),
        )


def _count_prompt_tokens(one: Probed) -> float:
    return float(sum(c.n_prompt_tokens for c in one.completions))


def _project_time(
    busy_s: Estimate,
    calls: Estimate,
    prompt_tokens: Estimate,
    completion_tokens: Estimate,
    n_probed: int,
    n_to_come: int,
    pace: Pace,
) -> Estimate:
    """Return the seconds from the start to the last answer.

    The lower end has calls as quick as the probe's with all places taken, the upper end no more of them at a time than
    the probe had: engines slow down as they fill, and a probe rarely fills one. An endpoint is expected at the lower
    end, within its caps, an engine of our own at the ends' geometric mean.
    """
    session = pace.session
    start_s = session.seconds[START] / session.actors
    full = busy_s * (1 / min(pace.slots, n_to_come))
    as_probed_s = session.asking_s / n_probed * n_to_come
    low, high = full.low, max(full.high, as_probed_s * calls.high / calls.value)
    value = sqrt(full.value * max(full.value, as_probed_s)) if session.devices else full.value
    caps = []
    if pace.requests_per_minute is not None:
        caps.append(calls * (60 / pace.requests_per_minute))
    if pace.tokens_per_minute is not None:
        caps.append(add([prompt_tokens, completion_tokens]) * (60 / pace.tokens_per_minute))
    for cap in caps:
        value, low, high = max(value, cap.value), max(low, cap.low), max(high, cap.high)
    return Estimate(start_s + value, start_s + low, start_s + high)


def _find_quantile(freedom: int | None) -> float:
    """Return the quantile that a two-sided interval reaches to: of Student's t, or of the normal where it is None."""
    from scipy.stats import norm, t

    level = (1 + CONFIDENCE) / 2
    return float(norm.ppf(level) if freedom is None else t.ppf(level, freedom))
