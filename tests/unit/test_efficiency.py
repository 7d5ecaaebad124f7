"""Where time and tokens went, worked by hand."""

from dataclasses import replace

import pytest

from pipeline.records import Completion, Outcome
from pipeline.teachers.efficiency import CAUSES, Occupancy, Session, describe_efficiency, summarize
from pipeline.teachers.teacher import PriceConfig

NO_PRICE = PriceConfig(per_million_prompt_tokens=None, per_million_completion_tokens=None, per_device_hour=None)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def follow(capacity, *events) -> dict[str, float]:
    """Return seconds by cause after a start of 10 s and some events: seconds to wait, `+` and `-` for requests."""
    clock = Clock()
    occupancy = Occupancy(capacity, started_at=90.0, clock=clock)
    requests = []
    for event in events:
        if event == "+":
            requests.append(occupancy.request())
            requests[-1].__enter__()
        elif event == "-":
            requests.pop().__exit__(None, None, None)
        else:
            clock.now += event
    return {cause: s for cause, s in occupancy.seconds().items() if s}


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        ([], {}),
        ([2], {"tail": 2}),
        (["+", 3], {"tail": 3}),
        (["+", "+", 3], {"running": 3}),
        ([1, "+", 1, "+", 3], {"starved": 2, "running": 3}),
        (["+", "+", 3, "-", 4], {"running": 3, "tail": 4}),
        (["+", "+", 3, "-", 4, "+", 5], {"running": 8, "starved": 4}),
        (["+", "+", 3, "-", "-", 1, "+", "+", 2, "-", 6], {"running": 5, "starved": 1, "tail": 6}),
    ],
    ids=str,
)
def test_time_is_divided_by_what_is_in_flight(events, expected):
    assert follow(2, *events) == {"start": 10, **expected}


def test_a_replacement_counts_as_a_start_whatever_is_in_flight():
    clock = Clock()
    occupancy = Occupancy(1, started_at=100.0, clock=clock)
    with occupancy.request():
        clock.now += 2
        with occupancy.start():
            clock.now += 7
        clock.now += 1
    assert occupancy.seconds() == {"start": 7, "starved": 0, "running": 3, "tail": 0}


def test_a_session_accounts_for_every_second_of_every_actor():
    totals = {
        "seconds/start": 20.0, "seconds/running": 60.0, "seconds/starved": 6.0, "seconds/tail": 4.0, "outcome/ok": 8.0,
        "outcome/truncated": 2.0, "busy/all": 100.0, "busy/accepted": 75.0, "tokens/prompt": 500.0,
        "tokens/completion": 900.0, "tokens/cached": 300.0,
    }  # fmt: skip
    session = summarize(totals, requests=9, span_s=50.0, actors=2, devices_per_actor=4, memory_bytes=7)
    assert sum(session.seconds.values()) == pytest.approx(2 * 50)
    assert tuple(session.seconds) == CAUSES
    # 10 s in which an actor had nothing to do are the tail's; a quarter of all but the start went to what was not kept.
    assert session.seconds == pytest.approx({"start": 20, "starved": 4.5, "running": 45, "tail": 10.5, "retry": 20})
    assert session.outcomes == {"ok": 8, "truncated": 2}
    assert (session.devices, session.memory_bytes) == (8, 7)
    assert (session.prompt_tokens, session.cached_tokens, session.completion_tokens) == (500, 300, 900)


def answer(n_prompt, n_completion, outcome=Outcome.OK) -> Completion:
    return Completion("r", 1, outcome, "", "stop", n_prompt, n_completion, 0.0, 1.0, n_cached_tokens=n_prompt // 2)


def session(requests=3, span_s=20.0, start_s=10.0, devices=2.0, completion_tokens=600) -> Session:
    seconds = {"start": start_s, "starved": 0.0, "running": 2 * span_s - start_s, "tail": 0.0, "retry": 0.0}
    return Session({"ok": 3}, requests, 100, 0, completion_tokens, span_s, 2, devices, seconds, None)


def test_tokens_and_money_count_every_completion_accepted_or_not():
    completions = [answer(100, 50), answer(100, 50, Outcome.TRUNCATED), answer(200, 100)]
    price = PriceConfig(per_million_prompt_tokens=2.0, per_million_completion_tokens=8.0, per_device_hour=None)
    found = describe_efficiency(completions, 4, 2, [], price)
    assert (found["prompt_tokens"], found["completion_tokens"], found["cached_tokens"]) == (400, 200, 200)
    assert found["tokens_per_row"] == 150
    assert found["usd"] == pytest.approx((400 * 2 + 200 * 8) / 1e6)
    assert found["usd_per_row"] == pytest.approx(found["usd"] / 4)
    for name in ("tokens_per_s", "device_s_per_row", "time_shares"):
        assert found[name] is None, f"{name} was not measured"


def test_each_answer_costs_the_share_of_the_price_that_it_came_at():
    completions = [answer(100, 50), replace(answer(300, 150), price_factor=0.5)]
    price = PriceConfig(per_million_prompt_tokens=2.0, per_million_completion_tokens=8.0, per_device_hour=None)
    found = describe_efficiency(completions, 4, 2, [], price)
    assert found["usd"] == pytest.approx((250 * 2 + 125 * 8) / 1e6)
    assert found["prompt_tokens"] == 400, "tokens are counted as they are"


def test_times_are_of_the_sessions_and_said_of_their_share():
    price = PriceConfig(per_million_prompt_tokens=None, per_million_completion_tokens=None, per_device_hour=3.6)
    found = describe_efficiency([answer(1, 1)] * 6, 12, 6, [session()], price)
    assert found["measured_share"] == 0.5
    assert found["tokens_per_s"] == pytest.approx(600 / 15), "while the actors had their engines"
    assert found["device_s_per_row"] == pytest.approx(2 * 20 / 0.5 / 12)
    assert found["usd"] == pytest.approx(80 * 3.6 / 3600)
    assert found["time_shares"]["start"] == pytest.approx(0.25)
    assert sum(found["time_shares"].values()) == pytest.approx(1)


def test_without_rows_or_prices_nothing_is_made_up():
    found = describe_efficiency([], 0, 5, [session(devices=0.0)], NO_PRICE)
    assert found["tokens_per_row"] is None
    assert found["usd"] is None
    assert found["device_s_per_row"] is None, "the teacher computes elsewhere"


def test_a_session_that_found_everything_answered_measures_nothing_and_breaks_nothing():
    """As when another job answers between the plan and the asking."""
    empty = summarize({}, requests=0, span_s=0.0, actors=2, devices_per_actor=1.0)
    found = describe_efficiency([answer(1, 1)], 2, 1, [empty], NO_PRICE)
    assert found["tokens_per_s"] is None
    assert found["time_shares"] is None
    assert describe_efficiency([answer(1, 1)] * 6, 12, 6, [empty, session()], NO_PRICE)["tokens_per_s"] == 40
