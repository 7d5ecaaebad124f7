"""What the rest will take: intervals against populations whose totals are known, and cases worked by hand."""

import random
from dataclasses import asdict, replace

import pytest
from pydantic import TypeAdapter

from pipeline.records import Completion, Outcome
from pipeline.teachers.efficiency import Session
from pipeline.teachers.kinds import AnyTeacherConfig, make_pace
from pipeline.teachers.plan import Limits
from pipeline.teachers.projection import (
    Estimate,
    Pace,
    Probed,
    add,
    add_up,
    allot,
    estimate_bad_replies,
    estimate_share,
    project,
)
from pipeline.teachers.teacher import PriceConfig
from tests.composing import compose_teacher

NO_PRICE = PriceConfig(per_million_prompt_tokens=None, per_million_completion_tokens=None, per_device_hour=None)
LIMITS = Limits(max_attempts=3, max_tries=2)


def make_bounds(slots=64, devices=0.0, span_s=12.0, start_s=2.0, **caps) -> Pace:
    seconds = {"start": start_s, "starved": span_s - start_s, "running": 0.0, "tail": 0.0, "retry": 0.0}
    session = Session({}, 20, 0, 0, 0, span_s, 1, devices, seconds, None)
    return Pace(session, slots, **({"requests_per_minute": None, "tokens_per_minute": None} | caps))


def make_probed(size, prompt_tokens, *completion_tokens, latency_s=1.0) -> Probed:
    """Return a request whose last completion alone was accepted."""
    outcomes = [Outcome.INVALID_JSON] * (len(completion_tokens) - 1) + [Outcome.OK]
    completions = [
        Completion("r", attempt, outcome, "", "stop", prompt_tokens, n, 0.0, latency_s)
        for attempt, (n, outcome) in enumerate(zip(completion_tokens, outcomes, strict=True), start=1)
    ]
    return Probed(size, completions, outcomes)


def draw_population(draws: random.Random, n: int) -> list[Probed]:
    """Return requests of very different lengths, a tenth of whose replies are bad."""
    population = []
    for _ in range(n):
        size = draws.randint(200, 2000)
        n_calls = 1
        while n_calls < LIMITS.max_attempts and draws.random() < 0.1:
            n_calls += 1
        tokens = [round(draws.lognormvariate(5, 0.4)) for _ in range(n_calls)]
        population.append(make_probed(size, round(size / 4 + draws.uniform(-5, 5)), *tokens))
    return population


def total(requests, field) -> float:
    return sum(getattr(completion, field) for one in requests for completion in one.completions)


def test_an_interval_holds_the_truth_about_as_often_as_it_says():
    price = PriceConfig(per_million_prompt_tokens=1.0, per_million_completion_tokens=4.0, per_device_hour=None)
    draws = random.Random(7)
    held, errors, n_trials = dict.fromkeys(("calls", "prompt_tokens", "completion_tokens", "usd"), 0), [], 400
    for _ in range(n_trials):
        population = draw_population(draws, 120)
        probed, rest = population[:20], population[20:]
        found = project(probed, [one.size for one in rest], LIMITS, price, make_bounds())
        truth = {
            "calls": sum(len(one.completions) for one in rest),
            "prompt_tokens": total(rest, "n_prompt_tokens"),
            "completion_tokens": total(rest, "n_completion_tokens"),
            "usd": price.charge_all(c for one in rest for c in one.completions),
        }
        for name, value in truth.items():
            estimate = getattr(found, name)
            held[name] += estimate.low <= value <= estimate.high
        errors.append(found.completion_tokens.value / truth["completion_tokens"] - 1)
    assert {name: n / n_trials for name, n in held.items()} == pytest.approx(dict.fromkeys(held, 0.95), abs=0.04)
    assert sum(errors) / n_trials == pytest.approx(0, abs=0.02), "it is right on average"


def test_prompts_of_known_length_are_summed_and_not_guessed():
    probed = [make_probed(size, size, 50) for size in (100, 900, 400)]
    found = project(probed, [10.0, 2000.0], LIMITS, NO_PRICE, make_bounds())
    assert found.prompt_tokens.value == found.prompt_tokens.low == pytest.approx(2010)
    assert found.calls.value == found.calls.low == 2
    assert found.prompt_tokens.high / 2010 == pytest.approx(found.calls.high / 2), "for what may be asked again"


def test_what_is_asked_again_is_in_it():
    probed = [
        make_probed(100, 30, 50),
        make_probed(100, 30, 25, 25, 50),
        make_probed(100, 30, 50),
        make_probed(100, 30, 50),
    ]
    found = project(probed, [100.0] * 40, LIMITS, NO_PRICE, make_bounds())
    assert found.calls.value == pytest.approx(60)
    assert found.prompt_tokens.value == pytest.approx(60 * 30)
    assert found.completion_tokens.value == pytest.approx(40 * 250 / 4)
    assert found.calls.low >= 40
    assert found.calls.high <= 40 * LIMITS.max_attempts * LIMITS.max_tries


def test_a_probe_without_a_bad_reply_allows_for_some():
    probed = [make_probed(100, 30, 50)] * 20
    few, many = (project(probed, [100.0] * n, LIMITS, NO_PRICE, make_bounds()).calls for n in (20, 10_000))
    assert (many.value, many.low) == (10_000, 10_000)
    assert many.high / 10_000 == pytest.approx(1 / (1 - 0.161), abs=0.002)
    assert few.high / 20 > many.high / 10_000, "the fewer are to come, the less they are held to the mean"


def test_nothing_to_come_takes_nothing():
    probed = [make_probed(100, 30, 50)] * 3
    found = asdict(project(probed, [], LIMITS, NO_PRICE, make_bounds()))
    assert found.pop("device_s") is None, "it computes elsewhere"
    assert set(map(tuple, (part.values() for part in found.values()))) == {(0.0, 0.0, 0.0)}


def test_money_is_of_tokens_and_of_devices_and_of_nothing_that_has_no_price():
    probed = [make_probed(100, 30, 50)] * 4
    price = PriceConfig(per_million_prompt_tokens=2.0, per_million_completion_tokens=8.0, per_device_hour=None)
    found = project(probed, [100.0] * 10, LIMITS, price, make_bounds(devices=2.0))
    assert found.usd.value == pytest.approx(10 * (30 * 2 + 50 * 8) / 1e6)
    hourly = NO_PRICE.model_copy(update={"per_device_hour": 3.6})
    of_devices = project(probed, [100.0] * 10, LIMITS, hourly, make_bounds(devices=2.0))
    assert of_devices.device_s.value == pytest.approx(2 * of_devices.time_s.value)
    assert of_devices.usd.value == pytest.approx(of_devices.device_s.value / 1000)
    assert project(probed, [100.0] * 10, LIMITS, hourly, make_bounds()).usd is None, "its devices are elsewhere"
    half = price.model_copy(update={"per_million_prompt_tokens": None})
    assert project(probed, [100.0] * 10, LIMITS, half, make_bounds()).usd is None


def test_time_lies_between_full_places_and_the_probes_own_pace():
    probed = [make_probed(100, 30, 50, latency_s=3.0)] * 20
    # 100 calls of 3 s: 30 s with 10 at a time. The probe took 10 s after its start for 20, so 50 s for 100.
    found = project(probed, [100.0] * 100, LIMITS, NO_PRICE, make_bounds(slots=10))
    assert (found.time_s.value, found.time_s.low) == (pytest.approx(32), pytest.approx(32))
    assert found.time_s.high >= 52
    engine = project(probed, [100.0] * 100, LIMITS, NO_PRICE, make_bounds(slots=10, devices=1.0))
    assert engine.time_s.value == pytest.approx(2 + (30 * 50) ** 0.5)


ELSEWHERE = [{"base_url": "http://elsewhere:8000/v1", "api_key_env": None}]


@pytest.mark.parametrize(
    ("name", "changes", "slots", "caps"),
    [
        ("offline", {}, 2 * 64, (None, None)),
        ("openai", {"requests_per_minute": 60.0, "max_in_flight": 8}, 2 * 8, (60.0, None)),
        ("openai", {"max_in_flight": None, "tokens_per_minute": 1000.0}, 2 * 64, (None, 1000.0)),
        (
            "openai",
            {"max_in_flight": 8, "requests_per_minute": 60.0, "further_endpoints": ELSEWHERE},
            2 * 8,
            (120.0, None),
        ),
        ("vllm_tiny", {}, 2 * 80, (None, None)),
        ("vllm", {}, 2 * 320, (None, None)),
        ("vllm", {"max_in_flight": 100}, 2 * 100, (None, None)),
    ],
)
def test_places_and_caps_are_those_of_all_actors(name, changes, slots, caps):
    values = compose_teacher(name, missing="http://localhost:8000/v1") | changes
    pace = make_pace(TypeAdapter(AnyTeacherConfig).validate_python(values), 2, make_bounds().session)
    assert (pace.slots, (pace.requests_per_minute, pace.tokens_per_minute)) == (slots, caps)


@pytest.mark.parametrize(
    ("caps", "seconds"),
    [({"requests_per_minute": 6.0}, 1000), ({"tokens_per_minute": 600.0}, 100 * 80 / 10)],
    ids=["requests", "tokens"],
)
def test_a_cap_bounds_the_time(caps, seconds):
    probed = [make_probed(100, 30, 50)] * 20
    found = project(probed, [100.0] * 100, LIMITS, NO_PRICE, make_bounds(**caps)).time_s
    assert found.value == found.low == pytest.approx(2 + seconds)


@pytest.mark.parametrize(
    ("n_hits", "n", "low", "high"),
    [(0, 20, 0.0, 0.1611), (4, 20, 0.0807, 0.4160), (20, 20, 0.8389, 1.0), (81, 263, 0.2553, 0.3662)],
)
def test_a_share_has_wilsons_interval(n_hits, n, low, high):
    """The last is the example of Newcombe 1998."""
    found = estimate_share(n_hits, n)
    assert (found.value, found.low, found.high) == pytest.approx((n_hits / n, low, high), abs=5e-5)


def test_bad_replies_are_those_that_are_asked_for_anew():
    outcomes = [Outcome.OK, Outcome.REFUSED, Outcome.ERROR, Outcome.TRUNCATED, Outcome.INVALID_JSON]
    assert estimate_bad_replies(outcomes).value == pytest.approx(0.4)
    assert estimate_bad_replies([]) is None


def test_chances_make_up_for_each_other_and_the_same_error_twice_does_not():
    one = Estimate(10.0, 7.0, 14.0)
    assert add([one, replace(one, low=6.0, high=13.0)]) == Estimate(20.0, 15.0, 25.0)
    assert add_up([one, one]) == Estimate(20.0, 14.0, 28.0)


@pytest.mark.parametrize(
    ("n_rows", "missing", "expected"),
    [
        (20, [100], [20]),
        (20, [100, 100], [10, 10]),
        (20, [100, 3, 0], [17, 3, 0]),
        (5, [9, 9, 9, 1], [2, 2, 2, 1]),
        (20, [4, 5], [4, 5]),
        (20, [], []),
    ],
)
def test_the_probe_is_spread_over_all_that_are_asked(n_rows, missing, expected):
    assert allot(n_rows, missing) == expected
