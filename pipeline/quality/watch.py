"""Answers judged while more of them come: how many are rejected and how varied they are, and when that is too bad.

Each look is at a sample of what came since the one before. How varied they are is compared with the first answers, over
as many: prompts and formats have their own share of repeated words, which only a change tells from the teacher's.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
from pydantic import Field, model_validator

from pipeline.config import Config
from pipeline.quality.diversity import distinct_n
from pipeline.quality.tokens import tokenise
from pipeline.records import Outcome

N_CITED, CITED_CHARACTERS = 3, 200
"""Rejected answers that a message quotes, and how much of each."""


class WatchConfig(Config):
    """How a teacher's answers are watched, and what it is stopped for. Those that came are kept in any case."""

    interval_s: float | None = Field(gt=0)
    """Seconds between looks; null: nothing is looked at."""
    sample: int = Field(ge=20)
    """Completions that one look takes in at most; it waits until there are so many new ones."""
    max_reject_rate: float | None = Field(ge=0, lt=1)
    """Largest share of completions that are not accepted, timeouts and errors included. It stops the teacher where the
    whole 95 % interval lies above. Null: none."""
    min_distinct: float | None = Field(gt=0, le=1)
    """Smallest distinct-2 of the accepted answers, as a share of the first ones'. It stops the teacher. Null: none."""
    resample_topics: bool
    """Whether it then goes on with others of the file's topics in place of those not asked yet, while there are any."""

    @model_validator(mode="after")
    def _check_rules(self) -> "WatchConfig":
        if self.interval_s is None and (self.max_reject_rate is not None or self.min_distinct is not None):
            raise ValueError("a rule needs looks to go by; give an interval_s, or leave out the rules")
        if self.resample_topics and self.min_distinct is None:
            raise ValueError("topics are resampled where answers get too alike; say how alike with min_distinct")
        return self


NO_WATCH = WatchConfig(interval_s=None, sample=20, max_reject_rate=None, min_distinct=None, resample_topics=False)
"""Nothing is looked at."""


@dataclass(frozen=True)
class Look:
    """What one look found."""

    at: float
    """Unix time in seconds."""
    done: int
    """Completions that had come by then."""
    judged: int
    rejected: int
    reject_rate: float
    low: float
    high: float
    """Wilson's 95 % interval of the rate."""
    distinct_2: float | None
    """Of the accepted answers; None where they have no two words, which no accepted one may have."""
    relative_distinct_2: float | None
    """Over that of the first ones, as many of both."""
    outcomes: str
    """Those of the rejected, the most frequent first."""


@dataclass(frozen=True)
class Breach:
    """A rule that a look breaks."""

    reason: str
    """With the numbers and, for rejects, some of them."""
    is_repetition: bool
    """Whether it is that answers are too much alike."""


LOOKS = pa.schema(
    [
        ("at", pa.float64()),
        *((name, pa.int64()) for name in ("done", "judged", "rejected")),
        *((name, pa.float64()) for name in ("reject_rate", "low", "high", "distinct_2", "relative_distinct_2")),
        ("outcomes", pa.string()),
    ]
)


def look(
    answers: Sequence[tuple[Outcome, str]], first: Sequence[str], *, at: float, done: int
) -> tuple[Look, list[str]]:
    """Return what a sample of completions shows, and the texts of its accepted ones.

    Args:
        answers: What parsing made of each, and its text.
        first: The texts of the accepted ones among the first; empty where these are the first.
        at: Unix time in seconds.
        done: Completions that have come so far.

    Raises:
        ValueError: There is nothing to look at.
    """
    from scipy.stats import binomtest

    rejects = Counter(outcome.value for outcome, _ in answers if outcome is not Outcome.OK)
    accepted = [text for outcome, text in answers if outcome is Outcome.OK]
    interval = binomtest(rejects.total(), len(answers)).proportion_ci(0.95, method="wilson")
    n = min(len(accepted), len(first))
    now, before = _distinct_2(accepted[:n]), _distinct_2(first[:n])
    found = Look(
        at=at,
        done=done,
        judged=len(answers),
        rejected=rejects.total(),
        reject_rate=rejects.total() / len(answers),
        low=float(interval.low),
        high=float(interval.high),
        distinct_2=_distinct_2(accepted),
        relative_distinct_2=now / before if now is not None and before else None,
        outcomes=", ".join(f"{outcome} {count:,}" for outcome, count in rejects.most_common()),
    )
    return found, accepted


def find_breach(found: Look, config: WatchConfig, answers: Sequence[tuple[Outcome, str]]) -> Breach | None:
    """Return the first rule that a look breaks, if any."""
    if config.max_reject_rate is not None and found.low > config.max_reject_rate:
        rejects = [(outcome.value, text) for outcome, text in answers if outcome is not Outcome.OK]
        cited = [f"\n  {outcome}: {text[:CITED_CHARACTERS]!r}" for outcome, text in rejects[:N_CITED]]
        return Breach(
            f"{found.reject_rate:.1%} of the newest {found.judged:,} completions are rejected (95 % interval from "
            f"{found.low:.1%} to {found.high:.1%}; {found.outcomes}), more than watch.max_reject_rate="
            f"{config.max_reject_rate:g}; mend the prompt, the schema or the teacher, or allow more. Some of them:"
            + "".join(cited),
            is_repetition=False,
        )
    relative = found.relative_distinct_2
    if config.min_distinct is not None and relative is not None and relative < config.min_distinct:
        return Breach(
            f"distinct-2 of the newest {found.judged - found.rejected:,} accepted answers is {found.distinct_2:.3f}, "
            f"{relative:.1%} of the first ones' and below watch.min_distinct={config.min_distinct:g}; give other "
            "topics or a higher temperature, or allow less",
            is_repetition=True,
        )
    return None


def describe_look(found: Look) -> str:
    """Return a line such as `of 200 new completions 12.5% rejected (8.6% to 17.8%; truncated 25), distinct-2 0.412`."""
    rejects = f"; {found.outcomes}" if found.outcomes else ""
    line = (
        f"of {found.judged:,} new completions {found.reject_rate:.1%} rejected "
        f"({found.low:.1%} to {found.high:.1%}{rejects})"
    )
    if found.distinct_2 is not None:
        line += f", distinct-2 {found.distinct_2:.3f}"
    if found.relative_distinct_2 is not None:
        line += f", {found.relative_distinct_2:.0%} of the first ones'"
    return line


def _distinct_2(texts: Sequence[str]) -> float | None:
    return distinct_n(tokenise(texts, "words"), 2)[1]
