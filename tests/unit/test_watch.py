"""Watching answers while they come: what a look says, when it stops a teacher, and that nothing is looked at twice."""

import os
import threading
import time

import pytest

from pipeline.config import validate
from pipeline.errors import ConfigError, RepetitionError, TeacherError
from pipeline.quality.watch import NO_WATCH, WatchConfig, describe_look, find_breach, look
from pipeline.records import Completion, Outcome, Request, Seed
from pipeline.stages.watch import Watch, read_looks, tabulate_looks, trace_looks, watching
from pipeline.storage import Folder
from pipeline.teachers.ledger import Ledger, LedgerWriter

OK, INVALID, TIMEOUT = Outcome.OK, Outcome.INVALID_JSON, Outcome.TIMEOUT
REQUESTS = [Request(f"r{n}", Seed("s", "t", "g"), (), (), "{}", 10, 0.0, 1.0, 7) for n in range(500)]
RULES = WatchConfig(interval_s=0.02, sample=20, max_reject_rate=0.5, min_distinct=0.5, resample_topics=False)


def complete(number: int, outcome: Outcome = OK, text: str = "") -> Completion:
    return Completion(f"r{number}", 1, outcome, text or f"tree {number} bird {number}", "", 0, 0, float(number), 0.0)


def judge(request: Request, completion: Completion) -> Outcome:
    return completion.outcome


@pytest.fixture
def ledger(tmp_path):
    return Ledger.of(Folder.at(tmp_path), "sample")


def see(rejected: int, accepted: int, first=()):
    answers = [(INVALID, "not {")] * rejected + [(OK, f"tree {n} bird {n}") for n in range(accepted)]
    return look(answers, first, at=1.0, done=rejected + accepted)[0], answers


def test_the_interval_is_wilsons():
    """10 of 100, by hand: centre .1 + 1.96² / 200 over 1 + 1.96² / 100, and its half width."""
    found, _ = see(10, 90)
    assert (found.judged, found.rejected, found.reject_rate) == (100, 10, 0.1)
    assert (found.low, found.high) == pytest.approx((0.0552, 0.1744), abs=1e-4)


@pytest.mark.parametrize(
    ("rejected", "accepted", "stops"), [(11, 9, False), (15, 5, True), (110, 90, False), (120, 80, True)]
)
def test_a_rate_stops_only_where_its_whole_interval_is_above(rejected, accepted, stops):
    found, answers = see(rejected, accepted)
    assert (found.low > 0.5) == stops
    breach = find_breach(found, RULES, answers)
    assert bool(breach) == stops
    if breach:
        assert not breach.is_repetition
        for part in ("max_reject_rate=0.5", f"invalid_json {rejected}", f"newest {rejected + accepted} ", "'not {'"):
            assert part in breach.reason
        assert breach.reason.count("'not {'") == 3
    assert find_breach(found, NO_WATCH, answers) is None


def test_answers_that_repeat_each_other_are_held_against_as_many_first_ones():
    first = [f"tree {n} bird {n}" for n in range(100)]
    answers = [(OK, "tree 1 bird 1")] * 40
    found, texts = look(answers, first, at=1.0, done=140)
    assert texts == ["tree 1 bird 1"] * 40
    assert found.distinct_2 == pytest.approx(3 / 120)
    assert found.relative_distinct_2 == pytest.approx(3 / 120)
    breach = find_breach(found, RULES, answers)
    assert breach.is_repetition
    assert "min_distinct=0.5" in breach.reason
    varied, answers = see(0, 30, first)
    assert varied.relative_distinct_2 == 1.0
    assert find_breach(varied, RULES, answers) is None


def test_where_nothing_is_accepted_there_is_no_variety_to_speak_of():
    found, _ = see(20, 0, ["tree 1"])
    assert found.distinct_2 is None
    assert found.relative_distinct_2 is None
    assert describe_look(found) == "of 20 new completions 100.0% rejected (83.9% to 100.0%; invalid_json 20)"


def test_only_what_came_since_the_last_look_counts_and_only_once_there_is_enough(ledger):
    ledger.store([complete(n, INVALID) for n in range(100)], "before")
    watch = Watch("arm", REQUESTS, ledger, judge, RULES)
    assert watch.look() is None
    writer = LedgerWriter(ledger)
    for n in range(100, 119):
        writer.write(complete(n))
    assert watch.look() is None
    writer.roll()
    ledger.store([complete(n, INVALID) for n in range(1000, 1050)], "of another")
    assert watch.look() is None
    assert watch.looks == []
    writer.write(complete(119, TIMEOUT))
    writer.roll()
    assert watch.look() is None
    assert [(found.done, found.judged, found.outcomes) for found in watch.looks] == [(120, 20, "timeout 1")]
    ledger.store([complete(n, INVALID) for n in range(120, 160)], "y")
    assert "100.0% of the newest 20 completions" in watch.look().reason
    assert watch.looks[-1].done == 160


def test_after_a_restart_the_oldest_answers_are_still_what_later_ones_are_held_to(ledger):
    ledger.store([complete(n, text="tree 1 bird 1") for n in range(300, 400)], "newer, written first")
    ledger.store([complete(n) for n in range(100)], "older")
    watch = Watch("arm", REQUESTS, ledger, judge, RULES)
    ledger.store([complete(n, text=f"tree {n % 5} bird {n % 5}") for n in range(400, 420)], "new")
    assert watch.look().is_repetition
    assert watch.looks[0].relative_distinct_2 == pytest.approx((3 * 5 / 60) / (3 * 20 / 60))


def test_a_thread_looks_stops_once_and_keeps_what_it_saw(ledger, tmp_path):
    stops, stopped = [], threading.Event()

    def stop(reason):
        stops.append(reason)
        stopped.set()

    folder = Folder.at(tmp_path) / "looks"
    with watching("arm", REQUESTS, ledger, judge, RULES, folder, stop):
        ledger.store([complete(n) for n in range(30)], "x")
        while not ledger.segments.names():
            time.sleep(0.01)
        time.sleep(0.2)
        ledger.store([complete(n, INVALID) for n in range(30, 90)], "y")
        assert stopped.wait(10)
    assert len(stops) == 1
    assert stops[0].startswith("arm: ")
    looks = read_looks(folder)
    assert [found.rejected for found in looks] == [0, 20]
    assert tabulate_looks(looks)["done"].to_pylist() == [found.done for found in looks]
    assert ("watch/reject_rate", looks[1].done, 1.0, looks[1].at) in trace_looks(looks)


def test_what_a_dead_writer_left_and_what_is_merged_is_nothing_new(ledger):
    dead = LedgerWriter(ledger)
    for n in range(50):
        dead.write(complete(n, INVALID))
    os.close(dead._log._descriptor)  # and with it the lock
    watch = Watch("arm", REQUESTS, ledger, judge, RULES)
    ledger.recover()
    assert watch.look() is None
    ledger.store([complete(n) for n in range(50, 70)], "new")
    assert watch.look() is None
    ledger.compact()
    assert watch.look() is None
    assert [(found.done, found.rejected) for found in watch.looks] == [(70, 0)]


@pytest.mark.parametrize(
    ("text", "outcome", "error"), [("tree 1 bird 1", OK, RepetitionError), ("not {", INVALID, TeacherError)]
)
def test_a_teacher_that_stops_as_it_is_told_to_says_whether_it_repeats_itself(ledger, tmp_path, text, outcome, error):
    ledger.store([complete(n) for n in range(20)], "first")
    told = []

    def teach():
        with watching("arm", REQUESTS, ledger, judge, RULES, Folder.at(tmp_path) / "looks", told.append):
            ledger.store([complete(n, outcome, text) for n in range(20, 60)], "more")
            until = time.monotonic() + 10
            while not told and time.monotonic() < until:
                time.sleep(0.01)
            raise TeacherError(told[0])

    with pytest.raises(TeacherError) as raised:
        teach()
    assert raised.type is error
    assert str(raised.value) == told[0]
    assert len(read_looks(Folder.at(tmp_path) / "looks")) == 1


def test_a_watch_that_fails_stops_the_teacher_and_is_told(ledger, tmp_path):
    def fail(request, completion):
        raise KeyError("a bug of the parser")

    stops = []

    def teach():
        with watching("arm", REQUESTS, ledger, fail, RULES, Folder.at(tmp_path) / "looks", stops.append):
            ledger.store([complete(n) for n in range(30)], "x")
            until = time.monotonic() + 10
            while not stops and time.monotonic() < until:
                time.sleep(0.01)

    with pytest.raises(KeyError, match="a bug of the parser"):
        teach()
    assert "a bug of the parser" in stops[0]


def test_without_an_interval_nothing_is_read(tmp_path):
    nowhere = Ledger(Folder.at(tmp_path / "nowhere"))
    with watching("arm", REQUESTS, nowhere, judge, NO_WATCH, Folder.at(tmp_path) / "looks", lambda reason: None):
        pass
    assert read_looks(Folder.at(tmp_path) / "looks") == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"interval_s": None, "max_reject_rate": 0.5}, "give an interval_s"),
        ({"resample_topics": True}, "say how alike with min_distinct"),
    ],
)
def test_a_rule_without_what_it_goes_by_is_a_mistake(changes, message):
    values = {"interval_s": 30, "sample": 200, "max_reject_rate": None, "min_distinct": None, "resample_topics": False}
    with pytest.raises(ConfigError, match=message):
        validate(WatchConfig, values | changes)
