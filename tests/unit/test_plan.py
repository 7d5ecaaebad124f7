"""Which attempt comes next: the same answer for a plan, a replay and an actor at work."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.records import Completion, Outcome, Request, Seed
from pipeline.teachers.plan import DIED, Limits, Position, advance, locate

LIMITS = Limits(max_attempts=3, max_tries=2)
REQUEST = Request("r", Seed("s", "t", "g"), (), (), "{}", 10, 0.0, 1.0, 7)
OK, INVALID, MISMATCH, TRUNCATED, REFUSED, TIMEOUT, ERROR = (
    Outcome(name) for name in ("ok", "invalid_json", "schema_mismatch", "truncated", "refused", "timeout", "error")
)
OUTCOMES = st.sampled_from(Outcome)
LIMIT_PAIRS = st.builds(Limits, max_attempts=st.integers(1, 4), max_tries=st.integers(1, 4))


def complete(attempt: int, outcome: Outcome, at: float = 0.0, finish_reason: str = "") -> Completion:
    return Completion("r", attempt, outcome, "", finish_reason, 0, 0, at, 0.0)


def judge(request: Request, completion: Completion) -> Outcome:
    """Take a completion's own outcome for what parsing makes of it."""
    return completion.outcome


def follow(outcomes, limits=LIMITS) -> list[Completion]:
    """Return what an undisturbed run would have logged, given what the teacher says in turn."""
    position, history = Position(), []
    for outcome in outcomes:
        if position.settled:
            break
        history.append(complete(position.attempt, outcome, float(len(history))))
        position = advance(position, history[-1], outcome, limits)
    return history


@pytest.mark.parametrize(
    ("outcomes", "expected"),
    [
        ([], Position(1, tries=0, settled=False)),
        ([OK], Position(1, tries=0, settled=True)),
        ([REFUSED], Position(1, tries=0, settled=True)),
        ([INVALID], Position(2, tries=0, settled=False)),
        ([MISMATCH], Position(2, tries=0, settled=False)),
        ([TRUNCATED], Position(2, tries=0, settled=False)),
        ([INVALID, OK], Position(2, tries=0, settled=True)),
        ([INVALID, MISMATCH], Position(3, tries=0, settled=False)),
        ([INVALID, MISMATCH, TRUNCATED], Position(3, tries=0, settled=True)),
        ([INVALID, MISMATCH, OK], Position(3, tries=0, settled=True)),
        ([TIMEOUT], Position(1, tries=1, settled=False)),
        ([TIMEOUT, ERROR], Position(1, tries=2, settled=True)),
        ([ERROR, OK], Position(1, tries=1, settled=True)),
        ([ERROR, INVALID], Position(2, tries=0, settled=False)),
        ([ERROR, INVALID, TIMEOUT], Position(2, tries=1, settled=False)),
        ([ERROR, INVALID, TIMEOUT, TIMEOUT], Position(2, tries=2, settled=True)),
    ],
    ids=lambda value: " ".join(value) or "nothing" if isinstance(value, list) else "",
)
def test_positions_worked_by_hand(outcomes, expected):
    """At most 3 attempts, at most 2 tries at each."""
    history, attempt = [], 1
    for outcome in outcomes:
        history.append(complete(attempt, outcome, float(len(history))))
        attempt += outcome in (INVALID, MISMATCH, TRUNCATED)
    assert locate(REQUEST, history, judge, LIMITS) == expected


@pytest.mark.parametrize(
    ("limits", "outcomes", "settled"),
    [
        (Limits(1, 1), [INVALID], True),
        (Limits(1, 1), [TIMEOUT], True),
        (Limits(1, 3), [TIMEOUT, TIMEOUT], False),
        (Limits(1, 3), [TIMEOUT, TIMEOUT, TIMEOUT], True),
        (Limits(5, 1), [INVALID] * 4, False),
        (Limits(5, 1), [INVALID] * 5, True),
    ],
)
def test_limits_are_the_numbers_of_attempts_and_tries(limits, outcomes, settled):
    position = Position()
    for outcome in outcomes:
        assert not position.settled
        position = advance(position, complete(position.attempt, outcome), outcome, limits)
    assert position.settled == settled


def test_what_lies_behind_the_end_or_beside_the_attempt_does_not_count():
    settled = locate(REQUEST, [complete(1, OK)], judge, LIMITS)
    assert locate(REQUEST, [complete(1, OK), complete(2, INVALID), complete(1, TIMEOUT)], judge, LIMITS) == settled
    assert locate(REQUEST, [complete(2, OK), complete(3, OK)], judge, LIMITS) == Position()


@pytest.mark.parametrize("ending", [[INVALID] * 3, [TIMEOUT, ERROR], [REFUSED]], ids=" ".join)
def test_a_replay_is_another_round_with_new_attempts_and_one_is_enough_if_it_succeeds(ending):
    once = follow(ending)
    assert locate(REQUEST, once, judge, LIMITS).settled
    again = locate(REQUEST, once, judge, LIMITS, Position(replays=1))
    assert not again.settled
    assert again.attempt == once[-1].attempt + 1, "an answered attempt is never asked again"
    for extra in (ending, [OK]):
        replayed = [*once, *(complete(again.attempt + c.attempt - 1, c.outcome, c.started_at) for c in follow(extra))]
        assert locate(REQUEST, replayed, judge, LIMITS, Position(replays=1)).settled


def test_a_replay_adds_nothing_to_what_was_accepted():
    assert locate(REQUEST, [complete(1, OK)], judge, LIMITS, Position(replays=2)).settled
    assert locate(REQUEST, follow([REFUSED]), judge, LIMITS, Position(replays=1)) == Position(attempt=2, first=2)


def test_deaths_are_tries_that_are_known_as_such():
    died = advance(Position(), complete(1, ERROR, 1.0, DIED), ERROR, LIMITS)
    assert died == Position(tries=1, deaths=1)
    assert advance(died, complete(1, TIMEOUT, 2.0), TIMEOUT, LIMITS) == Position(tries=2, deaths=1, settled=True)
    assert advance(died, complete(1, INVALID, 2.0), INVALID, LIMITS) == Position(attempt=2), "which begins without them"


@given(st.lists(OUTCOMES, max_size=12), LIMIT_PAIRS, st.integers(0, 12), st.integers(0, 12))
@settings(deadline=None)
def test_what_a_plan_has_counted_may_come_back_and_counts_once(outcomes, limits, stop, overlap):
    """As when a log that was read is rolled: its rows come again with the segment."""
    history = follow(outcomes, limits)
    there = locate(REQUEST, history[:stop], judge, limits)
    again = history[max(0, stop - overlap) :]
    assert locate(REQUEST, again, judge, limits, there) == locate(REQUEST, history, judge, limits)


def test_the_judge_decides_not_what_the_teacher_reported():
    position = locate(REQUEST, [complete(1, OK)], lambda request, completion: MISMATCH, LIMITS)
    assert position == Position(attempt=2)


@given(st.lists(OUTCOMES, max_size=12), LIMIT_PAIRS, st.integers(0, 12))
@settings(deadline=None)
def test_a_run_that_was_stopped_goes_on_where_an_undisturbed_one_stands(outcomes, limits, stop):
    history = follow(outcomes, limits)
    whole = locate(REQUEST, history, judge, limits)
    there = locate(REQUEST, history[:stop], judge, limits)
    assert locate(REQUEST, history[stop:], judge, limits, there) == whole
    assert whole.settled or len(history) == len(outcomes)


@given(st.lists(st.builds(complete, st.integers(1, 4), OUTCOMES), max_size=10), LIMIT_PAIRS, st.integers(0, 10))
@settings(deadline=None)
def test_any_history_may_be_read_in_parts(history, limits, stop):
    there = locate(REQUEST, history[:stop], judge, limits)
    assert locate(REQUEST, history[stop:], judge, limits, there) == locate(REQUEST, history, judge, limits)


@given(st.iterables(OUTCOMES, min_size=20), LIMIT_PAIRS)
@settings(deadline=None)
def test_every_request_comes_to_an_end_within_its_limits(outcomes, limits):
    history = follow(outcomes, limits)
    assert len(history) <= limits.max_attempts * limits.max_tries
    assert locate(REQUEST, history, judge, limits).settled
    answers = [c for c in history if c.outcome.is_answer]
    assert len({c.attempt for c in answers}) == len(answers), "an answered attempt is never asked again"
