"""The ledger: what `write` has returned for is never lost, whoever dies, rolls or compacts meanwhile."""

import json
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import asdict, replace

import pytest

from pipeline.errors import StorageError
from pipeline.records import Completion, Outcome
from pipeline.storage import Folder
from pipeline.teachers import ledger as ledger_module
from pipeline.teachers.ledger import Ledger, LedgerWriter, group_by_request

WRITER = """
import sys
from pipeline.records import Completion, Outcome
from pipeline.storage import Folder
from pipeline.teachers import ledger as ledger_module
from pipeline.teachers.ledger import Ledger, LedgerWriter

def complete(number):
    text = f"answer {number} " + "é" * 500
    return Completion(f"{name}-{number}", 1, Outcome.OK, text, "stop", 1, 1, 1000.0 + number, 0.1)

root, name = sys.argv[1:3]
writer = LedgerWriter(Ledger.of(Folder.at(root), "sample"))
"""
"""The start of a process that writes; what it prints has been written."""


def complete(request_id: str, attempt: int = 1, outcome: Outcome = Outcome.OK, at: float = 0.0, text: str = "{}"):
    return Completion(request_id, attempt, outcome, text, "stop", 10, 20, at, 0.5)


@pytest.fixture
def ledger(tmp_path):
    return Ledger.of(Folder.at(tmp_path), "sample")


@pytest.fixture
def start_writer(tmp_path):
    """Start a process of its own that runs a script after `WRITER`, and wait until it has printed `lines` lines."""
    processes = []

    def start(script: str, lines: int = 0, name: str = "w"):
        command = [sys.executable, "-c", WRITER + script, str(tmp_path), name]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        processes.append(process)
        return process, [process.stdout.readline().strip() for _ in range(lines)]

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def ids(completions) -> list[str]:
    return [completion.request_id for completion in completions]


def logs(ledger) -> list[str]:
    return sorted(path.name for path in ledger.open_logs.iterdir())


def test_completions_are_read_back_as_they_were_written(ledger):
    written = [
        complete("a", 1, Outcome.TRUNCATED, 1.0, 'line\nbreak, "quote", é, \u2028, \x00, 😀'),
        replace(complete("b", 2, Outcome.ERROR, 2.0), error="no route"),
        complete("a", 2, Outcome.OK, 3.0),
    ]
    writer = LedgerWriter(ledger)
    for completion in written:
        writer.write(completion)
    assert ledger.read()[0] == written
    writer.close()
    assert ledger.read()[0] == written
    assert logs(ledger) == []
    assert len(ledger.segments.names(".parquet")) == 1


def test_an_empty_ledger_has_no_completions(ledger):
    assert ledger.read() == ([], {})
    assert ledger.recover() == 0
    ledger.compact()
    LedgerWriter(ledger).close()
    assert ledger.segments.names() == []


def test_a_completion_is_on_disk_as_soon_as_write_returns(ledger):
    writer = LedgerWriter(ledger)
    for number in range(3):
        writer.start(f"r{number}", 1)
        writer.write(complete(f"r{number}", at=number))
        (log,) = ledger.open_logs.glob("*.log")
        entries = [json.loads(line) for line in log.read_bytes().splitlines()]
        assert len(entries) == 2 * (number + 1)
        assert entries[-2] == {"in_flight": [f"r{number}", 1]}
        assert entries[-1]["request_id"] == f"r{number}"
        assert ids(ledger.read()[0]) == [f"r{n}" for n in range(number + 1)]


def test_what_is_in_flight_is_no_completion(ledger):
    LedgerWriter(ledger).start("r0", 1)
    assert ledger.read()[0] == []


def test_a_torn_last_line_does_not_count(ledger, start_writer):
    start_writer(
        "import os\n"
        'writer.write(complete(0)); os.write(writer._descriptor, b\'{"request_id": "w-1", "atte\')\n'
        "print(0, flush=True); os._exit(1)",
        lines=1,
    )[0].wait()
    assert ids(ledger.read()[0]) == ["w-0"]
    assert ledger.recover() == 1
    assert ids(ledger.read()[0]) == ["w-0"]


def test_the_rest_of_a_line_is_read_once_it_is_there(ledger):
    ledger.open_logs.mkdir(parents=True)
    first, second = (json.dumps(asdict(complete(name))) for name in "ab")
    log = ledger.open_logs / "1-1-x.log"
    log.write_text(f"{first}\n{second[:20]}")
    found, snapshot = ledger.read()
    assert ids(found) == ["a"]
    log.write_text(f"{first}\n{second}\n")
    assert ids(ledger.read(snapshot)[0]) == ["b"]


def test_a_dead_writers_log_is_recovered_once(ledger, start_writer):
    process, _ = start_writer(
        "import os\nfor n in range(3): writer.write(complete(n))\nprint('written', flush=True); os._exit(1)", lines=1
    )
    process.wait()
    assert len(logs(ledger)) == 1
    assert ledger.recover() == 3
    assert logs(ledger) == []
    assert ids(ledger.read()[0]) == ["w-0", "w-1", "w-2"]
    assert ledger.recover() == 0
    assert len(ledger.segments.names(".parquet")) == 1


def test_a_living_writers_log_is_left_alone(ledger, start_writer):
    process, _ = start_writer("writer.write(complete(0)); print(0, flush=True); sys.stdin.read()", lines=1)
    own = LedgerWriter(ledger)
    own.write(complete("own", at=2000.0))
    assert ledger.recover() == 0
    assert len(logs(ledger)) == 2
    assert ids(ledger.read()[0]) == ["w-0", "own"]
    process.kill()
    process.wait()
    assert ledger.recover() == 1
    assert len(logs(ledger)) == 1
    own.write(complete("own2", at=2001.0))
    assert ids(ledger.read()[0]) == ["w-0", "own", "own2"]


def test_a_row_in_a_log_and_in_segments_counts_once(ledger):
    writer = LedgerWriter(ledger)
    rows = [complete("a", 1, Outcome.OK, 1.0), complete("b", 1, Outcome.TIMEOUT, 2.0)]
    for row in rows:
        writer.write(row)
    ledger.store(rows, "first")
    ledger.store(rows[:1], "second")
    assert ledger.read()[0] == rows


def test_each_failed_try_at_one_attempt_counts(ledger):
    rows = [complete("a", 1, Outcome.TIMEOUT, 1.0), complete("a", 1, Outcome.TIMEOUT, 2.0), complete("a", 1, at=3.0)]
    ledger.store(rows, "x")
    ledger.store(rows[:2], "y")
    assert ledger.read()[0] == rows


def test_of_two_answers_to_one_attempt_the_first_counts(ledger):
    first, second = complete("a", 1, Outcome.OK, 1.0, "first"), complete("a", 1, Outcome.OK, 2.0, "second")
    ledger.store([second], "x")
    ledger.store([first], "y")
    assert ledger.read()[0] == [first]


def test_compaction_merges_and_keeps_every_row(ledger):
    rows = [complete(f"r{n}", at=float(n)) for n in range(40)]
    for start in range(0, 40, 10):
        ledger.store(rows[start : start + 10], f"w{start}")
    ledger.store(rows[5:15], "again")
    ledger.compact()
    assert len(ledger.segments.names()) == 1
    assert ledger.read()[0] == rows
    ledger.compact()
    assert ledger.read()[0] == rows


def test_compaction_leaves_large_segments_alone(ledger, monkeypatch):
    monkeypatch.setattr(ledger_module, "SEGMENT_ROWS", 5)
    ledger.store([complete(f"large{n}") for n in range(5)], "large")
    large = ledger.segments.names()
    for n in range(3):
        ledger.store([complete(f"small{n}")], f"small{n}")
    ledger.compact()
    names = ledger.segments.names()
    assert len(names) == 2
    assert large[0] in names
    assert len(ledger.read()[0]) == 8


def test_only_one_process_compacts_at_a_time(ledger):
    for n in range(3):
        ledger.store([complete(f"r{n}")], f"w{n}")
    with ledger_module._try_lock(ledger.folder.path / "compact.lock") as is_ours:
        assert is_ours
        ledger.compact()
        assert len(ledger.segments.names()) == 3
    ledger.compact()
    assert len(ledger.segments.names()) == 1


def test_reading_from_a_snapshot_gives_only_what_is_new(ledger):
    ledger.store([complete("segment", at=1.0)], "w")
    writer = LedgerWriter(ledger)
    writer.write(complete("log", at=2.0))
    found, snapshot = ledger.read()
    assert ids(found) == ["segment", "log"]
    assert ledger.read(snapshot) == ([], snapshot)
    writer.write(complete("log2", at=3.0))
    other = LedgerWriter(ledger)
    other.write(complete("other", at=4.0))
    ledger.store([complete("segment2", at=5.0)], "w")
    found, snapshot = ledger.read(snapshot)
    assert ids(found) == ["log2", "other", "segment2"]
    assert ledger.read(snapshot)[0] == []
    writer.write(complete("log3", at=6.0))
    writer.roll()
    assert "log3" in ids(ledger.read(snapshot)[0]), "new in a segment that also holds what was seen"


def test_a_log_is_due_after_enough_rows_or_seconds(ledger, monkeypatch):
    monkeypatch.setattr(ledger_module, "ROLL_ROWS", 3)
    writer = LedgerWriter(ledger)
    due = []
    for n in range(3):
        writer.write(complete(f"r{n}"))
        due.append(writer.is_due)
    assert due == [False, False, True]
    writer.roll()
    assert not writer.is_due
    monkeypatch.setattr(ledger_module, "ROLL_SECONDS", 0.0)
    assert not writer.is_due, "nothing to roll"
    writer.write(complete("late"))
    assert writer.is_due


def test_a_roll_moves_the_rows_into_a_segment_and_goes_on(ledger):
    writer = LedgerWriter(ledger)
    for n in range(3):
        writer.write(complete(f"r{n}", at=float(n)))
        writer.roll()
    assert len(ledger.segments.names()) == 3
    assert len(logs(ledger)) == 1
    writer.close()
    assert ids(ledger.read()[0]) == ["r0", "r1", "r2"]


def test_reading_while_another_rolls_and_compacts_loses_no_row(ledger):
    written, n_reads, finished = [], 0, threading.Event()

    def write():
        writer, until = LedgerWriter(ledger), time.monotonic() + 2
        while time.monotonic() < until:
            for _ in range(random.randrange(1, 4)):
                number = len(written)
                writer.write(complete(f"r{number}", at=float(number)))
                written.append(f"r{number}")
            writer.roll()
            if random.random() < 0.4:
                ledger.compact()
                n_reads_before = n_reads  # a reader that is interrupted gives up after some tries; let one through
                while n_reads == n_reads_before and time.monotonic() < until:
                    time.sleep(0.001)
        writer.close()
        finished.set()

    thread = threading.Thread(target=write)
    thread.start()
    followed, snapshot = set(), {}
    while thread.is_alive():
        expected = set(written)
        found = ids(ledger.read()[0])
        n_reads += 1
        assert expected - set(found) == set()
        assert max(Counter(found).values(), default=1) == 1
        new, snapshot = ledger.read(snapshot)
        followed.update(ids(new))
        assert expected - followed == set()
    assert finished.is_set(), "the writer died"
    assert n_reads > 5
    assert len(written) > 20
    assert set(ids(ledger.read()[0])) == set(written)


@pytest.mark.parametrize("seconds", [0.05, 0.2, 0.45])
def test_writers_killed_midway_lose_nothing_that_was_written(ledger, start_writer, seconds):
    script = (
        "ledger_module.ROLL_ROWS = 7\n"
        "for n in range(10**9):\n"
        "    writer.start(f'{name}-{n}', 1); writer.write(complete(n)); print(f'{name}-{n}', flush=True)\n"
        "    if writer.is_due: writer.roll()\n"
        "    if n % 50 == 49: writer.ledger.compact()\n"
    )
    writers = [start_writer(script, lines=1, name=name) for name in ("one", "two")]
    outputs = []

    def collect(process):
        outputs.append(process.stdout.read())

    collectors = [threading.Thread(target=collect, args=(process,)) for process, _ in writers]
    for collector in collectors:
        collector.start()
    time.sleep(seconds)
    for process, _ in writers:
        process.send_signal(signal.SIGKILL)
        process.wait()
    for collector in collectors:
        collector.join()
    returned = {line for _, lines in writers for line in lines}
    returned |= {line.strip() for output in outputs for line in output.splitlines(True) if line.endswith("\n")}
    before = set(ids(ledger.read()[0]))
    assert len(returned) > 2
    assert returned - before == set()
    ledger.recover()
    ledger.compact()
    after = ledger.read()[0]
    assert set(ids(after)) == before
    assert len(after) == len(before)
    assert not list(ledger.open_logs.glob("*.log"))
    assert all(completion.text.endswith("é" * 500) for completion in after)


def test_a_full_disk_is_told_and_what_was_written_before_and_after_it_is_kept(ledger, start_writer):
    """The process may write files of 5 kB at most, and later larger ones."""
    process, _ = start_writer(
        "import resource\n"
        "from pipeline.errors import StorageError\n"
        "def limit(size): resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))\n"
        "limit(5_000)\n"
        "failures = 0\n"
        "for n in range(30):\n"
        "    if n == 20: limit(resource.RLIM_INFINITY)\n"
        "    try: writer.write(complete(n)); print(f'{name}-{n}', flush=True)\n"
        "    except StorageError as error: failures += 'disk' in str(error)\n"
        "print(failures, flush=True)\n"
        "import os; os._exit(0)\n",
    )
    *written, failures = process.communicate()[0].split()
    assert int(failures) == 30 - len(written)
    assert 10 < len(written) < 20
    assert ids(ledger.read()[0]) == written


def test_a_log_that_is_none_is_named(ledger):
    ledger.open_logs.mkdir(parents=True)
    for content in ("no JSON\n", '{"some": "thing else"}\n', "[]\n"):
        (ledger.open_logs / "1-1-x.log").write_text(content)
        with pytest.raises(StorageError, match=r"1-1-x\.log holds a line that is no completion"):
            ledger._read({})


def test_a_ledger_where_nothing_can_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="give a root you may write to"):
        LedgerWriter(Ledger.of(Folder.at(tmp_path / "file"), "sample"))


def test_completions_are_grouped_by_request_each_once_in_the_order_of_attempts_and_tries():
    rows = [
        complete("b", 1, at=5.0),
        complete("a", 2, at=1.0),
        complete("a", 1, Outcome.TIMEOUT, 4.0),
        complete("a", 1, Outcome.TIMEOUT, 2.0),
    ]
    assert group_by_request([*rows, *rows[:3]]) == {"b": [rows[0]], "a": [rows[3], rows[2], rows[1]]}
