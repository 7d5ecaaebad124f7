"""Which attempt at a request comes next.

One pure function, folded over the ledger, decides the same for a plan, for a replay and for an actor at work. So a
run that was killed goes on exactly where an undisturbed one would have gone.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from math import inf

from pipeline.records import Completion, Outcome, Request

Judge = Callable[[Request, Completion], Outcome]
"""What parsing makes of a completion."""

DIED = "died"
"""The `finish_reason` of an attempt whose engine, or whose actor, died with it in flight."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How often a request may be asked."""

    max_attempts: int
    """Attempts, each with a seed of its own, while answers can't be used."""
    max_tries: int
    """Tries at one attempt while no answer comes (`timeout`, `error`)."""


@dataclass(frozen=True, slots=True)
class Position:
    """How far a request has come."""

    attempt: int = 1
    """The next one to ask, or the last one where the request is settled."""
    first: int = 1
    """The attempt that this round began with."""
    tries: int = 0
    """Tries at this attempt that got no answer."""
    deaths: int = 0
    """Those of them that an engine died in."""
    replays: int = 0
    """Rounds of attempts that may still follow this one, should it end without an accepted answer."""
    settled: bool = False
    tried_at: float = field(default=-inf, compare=False)
    """When the last try began that got no answer, in Unix seconds: what tells it from others at the same attempt."""


def advance(position: Position, completion: Completion, outcome: Outcome, limits: Limits) -> Position:
    """Return the position after one more completion with that judged outcome."""
    if outcome is Outcome.OK:
        return replace(position, settled=True)
    if not outcome.is_answer:
        position = replace(
            position,
            tries=position.tries + 1,
            deaths=position.deaths + int(completion.finish_reason == DIED),
            tried_at=completion.started_at,
        )
        if position.tries < limits.max_tries:
            return position
    elif outcome.is_worth_another_attempt and position.attempt - position.first + 1 < limits.max_attempts:
        return Position(position.attempt + 1, position.first, replays=position.replays)
    if position.replays:
        return Position(position.attempt + 1, position.attempt + 1, replays=position.replays - 1)
    return replace(position, settled=True)


def locate(
    request: Request, history: Sequence[Completion], judge: Judge, limits: Limits, start: Position | None = None
) -> Position:
    """Return where a request stands after some more of its completions, ordered by attempt and time.

    Those that the start has counted are not counted again: a log that a plan has read may come back as a segment.
    """
    position = start or Position()
    for completion in history:
        if position.settled or completion.attempt != position.attempt:
            continue
        outcome = judge(request, completion)
        if outcome.is_answer or completion.started_at > position.tried_at:
            position = advance(position, completion, outcome, limits)
    return position
