"""Progress: what a line says, and when one is shown."""

import io
import sys
import time

import pytest

from pipeline import progress
from pipeline.progress import Tally, describe_progress, show_progress


@pytest.mark.parametrize(
    ("counts", "total", "elapsed_s", "expected"),
    [
        ({"done": 60, "schema_mismatch": 2}, 120, 5.0, "60/120 requests, 12.0/s, 5 s left, schema_mismatch 2"),
        ({}, 120, 5.0, "0/120 requests, 0.0/s"),
        ({"done": 0, "timeout": 3}, 120, 5.0, "0/120 requests, 0.0/s, timeout 3"),
        ({"done": 5}, 10, 0.0, "5/10 requests, 0.0/s"),
        ({"done": 1}, 5, 60.0, "1/5 requests, 1.0/min, 4 min 00 s left"),
        ({"done": 1}, 61, 62.0, "1/61 requests, 1.0/min, 1 h 02 min left"),
        ({"done": 12_000}, 12_000, 125.4, "12,000/12,000 requests, 95.7/s, took 2 min 05 s"),
        ({"done": 0}, 0, 0.4, "0/0 requests, 0.0/s, took 0 s"),
        ({"done": 2, "b": 1, "a": 2_000, "c": 0}, 2, 1.0, "2/2 requests, 2.0/s, took 1 s, a 2,000, b 1"),
    ],
)
def test_a_line_says_rows_rate_time_and_other_counts(counts, total, elapsed_s, expected):
    assert describe_progress("teach", "requests", counts, total, elapsed_s) == f"teach: {expected}"


def test_a_tally_sums_what_it_is_given():
    tally = Tally()
    assert tally.totals() == {}
    tally.add({"done": 2, "timeout": 1})
    tally.add({"done": 3})
    assert tally.totals() == {"done": 5, "timeout": 1}


def test_a_tally_adds_the_states_of_its_workers_to_the_counts_while_they_are_told(monkeypatch):
    tally = Tally()
    tally.add({"done": 2})
    tally.show("a", {"down": 1, "waiting": 5})
    tally.show("b", {"down": 1})
    assert tally.totals() == {"done": 2, "down": 2, "waiting": 5}
    tally.show("a", {"waiting": 7})
    assert tally.totals() == {"done": 2, "down": 1, "waiting": 7}
    monkeypatch.setattr(progress, "STATE_LIFETIME_S", 0.0)
    assert tally.totals() == {"done": 2}, "as where both have died"


def test_the_last_line_is_shown_even_where_the_body_fails(capsys):
    with pytest.raises(RuntimeError), show_progress("train", "epochs", 4, lambda: {"done": 1}):
        raise RuntimeError
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("train: 1/4 epochs")


def wait_for(stream: io.StringIO, text: str) -> None:
    give_up_at = time.monotonic() + 20
    while text not in stream.getvalue():
        assert time.monotonic() < give_up_at, f"{text!r} never came; shown: {stream.getvalue()!r}"
        time.sleep(0.01)


def test_a_log_gets_a_line_when_something_changed(monkeypatch):
    monkeypatch.setattr(progress, "_LOG_INTERVAL_S", 0.01)
    monkeypatch.setattr(sys, "stderr", log := io.StringIO())
    tally = Tally()
    with show_progress("teach", "requests", 3, tally.totals):
        for n_done in (1, 2, 3):
            tally.add({"done": 1})
            wait_for(log, f"{n_done}/3")
            time.sleep(0.05)
    assert [line.split()[1] for line in log.getvalue().splitlines()] == ["1/3", "2/3", "3/3"]
    assert "\r" not in log.getvalue()


def test_a_terminal_gets_one_line_that_rewrites_itself(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(progress, "_TERMINAL_INTERVAL_S", 0.01)
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    with show_progress("teach", "requests", 2, lambda: {"done": 1}):
        wait_for(terminal, "1/2")
    shown = terminal.getvalue()
    assert shown.count("\n") == 1
    assert shown.endswith("\n")
    assert shown.count("\r") >= 2
