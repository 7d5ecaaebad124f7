"""The benchmarks' harness: what it makes of times, rounds and processes of their own."""

import json
import os
import sys
import time

import pytest

from benchmarks import harness
from benchmarks.harness import (
    Contestant,
    ContestantError,
    Ratio,
    compute_ratio,
    describe_machine,
    measure_steadiness,
    report,
    run_alone,
    run_rounds,
    write_topics,
)

PRINTING = "tests.unit.test_benchmarks"
"""This module, run as a contestant: its argument says what it prints."""


def test_contestants_take_turns():
    turns = []
    contestants = [Contestant(name, lambda name=name: turns.append(name) or {"n": len(turns)}) for name in "abc"]
    rounds = run_rounds(contestants, 2)
    assert turns == list("abcabc")
    assert rounds == [{"a": {"n": 1}, "b": {"n": 2}, "c": {"n": 3}}, {"a": {"n": 4}, "b": {"n": 5}, "c": {"n": 6}}]


ROUNDS = [{"a": {"rate": 2.0}, "b": {"rate": 4.0}}, {"a": {"rate": 9.0}, "b": {"rate": 3.0}}]
RATIO = Ratio("a/b", "rate", "a", "b")


def test_a_ratio_is_computed_within_each_round():
    assert compute_ratio(RATIO, ROUNDS) == [0.5, 3.0]


def test_a_report_ends_with_one_line_of_json(capsys):
    report("sample", [*ROUNDS, {"a": {"rate": 1.0}, "b": {"rate": 1.0}}], [RATIO])
    shown = capsys.readouterr().out
    result = json.loads(shown.splitlines()[-1])
    assert result["benchmark"] == "sample"
    assert result["rounds"] == 3
    assert result["ratios"] == {"a/b": [0.5, 1.0, 3.0]}
    assert result["figures"] == {"a": {"rate": [1.0, 2.0, 9.0]}, "b": {"rate": [1.0, 3.0, 4.0]}}
    assert "2 [1, 9]" in shown, "the table has the same"


def test_a_machine_is_described_without_what_names_it():
    machine = describe_machine()
    assert machine["cores"] >= 1
    assert machine["memory_gib"] > 0
    assert machine["python"] == sys.version.split()[0]
    assert machine["versions"]["ray"]
    text = json.dumps(machine)
    assert harness.platform.node() not in text
    assert str(harness.Path.home()) not in text


def answer_in_waves(waves: int, width: int, seconds: float) -> list[tuple[float, float]]:
    """Rows that are sent nearly together and answered nearly together, one wave after the other."""
    apart = [100 + seconds * place / width / 100 for place in range(width)]
    return [(first + seconds * wave, first + seconds * (wave + 1)) for wave in range(waves) for first in apart]


@pytest.mark.parametrize("waves", [10, 11, 12, 15])
def test_the_steady_rate_is_blind_to_where_a_wave_is_cut(waves):
    figures = measure_steadiness(answer_in_waves(waves, 64, 2.0), tokens=48)
    assert figures["steady_tokens_per_s"] == pytest.approx(64 * 48 / 2, rel=0.01)


def test_the_steady_rate_leaves_ramp_and_tail_out():
    one_by_one = [(10.0 + n, 11.0 + n) for n in range(100)]
    slow = [(0.0, 10.0), *one_by_one[:-1], (109.0, 149.0)]
    figures = measure_steadiness(slow, tokens=7)
    assert figures["steady_tokens_per_s"] == pytest.approx(7)
    assert figures["span_s"] == pytest.approx(149)
    assert figures["span_tokens_per_s"] == pytest.approx(101 * 7 / 149)
    assert figures["ramp_s"] == pytest.approx(20)
    assert figures["tail_s"] == pytest.approx(149 - 100)


def test_rows_that_overlap_count_by_the_part_that_lies_in_the_steady_state():
    overlapping = [(float(n), float(n + 5)) for n in range(100)]
    assert measure_steadiness(overlapping, tokens=3)["steady_tokens_per_s"] == pytest.approx(3)


@pytest.mark.parametrize("spans", [[(0.0, 1.0 + n) for n in range(9)], [(0.0, 1.0)] * 50])
def test_what_has_no_steady_state_is_refused(spans):
    with pytest.raises(ValueError, match=f"{len(spans)} rows have no steady state"):
        measure_steadiness(spans, tokens=3)


def test_topics_are_distinct_and_the_same_each_time():
    topics = write_topics(2000)
    assert len(set(topics)) == 2000
    assert topics == write_topics(2000)


def test_the_figures_of_a_process_are_its_last_line():
    assert run_alone(PRINTING, ["figures"]) == {"span_s": 1.5, "prepared": 1.0}


@pytest.mark.parametrize("ending", ["text", "nothing", "a list", "failure"])
def test_a_process_without_figures_is_an_error_that_shows_its_last_words(ending):
    with pytest.raises(ContestantError, match=rf"{PRINTING} {ending} gave no figures(.|\n)*last words"):
        run_alone(PRINTING, [ending])


def test_a_process_that_takes_too_long_is_an_error(monkeypatch):
    monkeypatch.setattr(harness, "TIME_LIMIT_S", 0.5)
    with pytest.raises(ContestantError, match=r"took more than 0\.5 s"):
        run_alone(PRINTING, ["sleep"])


def play(part: str) -> None:
    sys.stderr.write("last words\n")
    if part == "sleep":
        time.sleep(60)
    is_prepared = all(os.environ[name] == value for name, value in harness.ENVIRONMENT.items())
    sys.stdout.write(
        {
            "figures": f'something else\n{{"span_s": 1.5, "prepared": {int(is_prepared)}}}\n',
            "text": "done\n",
            "nothing": "",
            "a list": "[1]\n",
            "failure": '{"span_s": 1.5}\n',
        }[part]
    )
    sys.exit(part == "failure")


if __name__ == "__main__":
    play(sys.argv[1])
