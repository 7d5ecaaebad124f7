"""Which attempt at a request comes next.

One pure function, folded over the ledger, decides the same for a plan, for a replay and for an actor at work. So a
run that was killed goes on exactly where an undisturbed one would have gone.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from pipeline.records import Completion, Outcome, Request

Judge = Callable[[Request, Completion], Outcome]
"""What parsing makes of a completion."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How often a request may be asked."""

    max_attempts: int
    """Attempts, each with a seed of its own, while answers can't be used."""
    max_tries: int
    """Tries at one attempt while no answer comes (`timeout`, `error`)."""


@dataclass(frozen=True, slots=True)
class Position:
    """How far a request has come. `attempt` is the next one to ask, or the last one where it is settled."""

    attempt: int = 1
    tries: int = 0
    settled: bool = False


def advance(position: Position, outcome: Outcome, limits: Limits) -> Position:
    """Return the position after one more completion with that judged outcome."""
    if not outcome.is_answer:
        tries = position.tries + 1
        return replace(position, tries=tries, settled=tries >= limits.max_tries)
    if outcome.is_worth_another_attempt and position.attempt < limits.max_attempts:
        return Position(attempt=position.attempt + 1)
    return replace(position, settled=True)


def locate(
    request: Request, history: Sequence[Completion], judge: Judge, limits: Limits, start: Position | None = None
) -> Position:
    """Return where a request stands after some more of its completions, ordered by attempt and time."""
    position = start or Position()
    for completion in history:
        if not position.settled and completion.attempt == position.attempt:
            position = advance(position, judge(request, completion), limits)
    return position


def find_unsettled(
    requests: Iterable[Request], histories: Mapping[str, Sequence[Completion]], judge: Judge, limits: Limits
) -> list[tuple[Request, Position]]:
    """Return the requests that still need a teacher, and how far each has come."""
    located = ((r, locate(r, histories.get(r.request_id, ()), judge, limits)) for r in requests)
    return [(request, position) for request, position in located if not position.settled]
