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
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline.errors import StorageError
from pipeline.records import Completion, Outcome, to_table
from pipeline.storage import Folder
from pipeline.teachers import ledger as ledger_module
from pipeline.teachers.completions import group_by_request
from pipeline.teachers.ledger import Ledger, LedgerWriter
from pipeline.teachers.logs import try_lock
from pipeline.teachers.plan import DIED

WRITER = """
import os, sys, time
from pipeline.records import Completion, Outcome
from pipeline.storage import Folder
from pipeline.teachers import ledger as ledger_module
from pipeline.teachers.ledger import Ledger, LedgerWriter

def complete(number):
    text = f"answer {number} " + "é" * 500
    return Completion(f"{name}-{number}", 1, Outcome.OK, text, "stop", 1, 1, 1000.0 + number, 0.1)

root, name = sys.argv[1:3]
ledger = Ledger.of(Folder.at(root), "sample")
writer = LedgerWriter(ledger, session="job")
"""
"""The start of a process that writes; what it prints has been written."""


def complete(request_id: str, attempt: int = 1, outcome: Outcome = Outcome.OK, at: float = 0.0, text: str = "{}"):
    return Completion(request_id, attempt, outcome, text, "stop", 10, 20, at, 0.5)


@pytest.fixture
def ledger(tmp_path):
    return Ledger.of(Folder.at(tmp_path), "sample")


@pytest.fixture(params=["path", "url"])
def any_ledger(request, tmp_path):
    """A ledger on disk, and one behind a URL (fsspec's in-memory store), whose logs are on this machine's disk."""
    root = tmp_path if request.param == "path" else f"fsspec+memory://bucket{tmp_path}"
    return Ledger.of(Folder.at(root), "sample")


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


def leave_log(ledger, *entries: object, name: str = "1-1-x", end: bytes = b"") -> Path:
    """Put down the log of a writer that is dead: a line for each entry, raw bytes as they are."""
    ledger.open_logs.mkdir(parents=True, exist_ok=True)
    log = ledger.open_logs / f"{name}.log"
    lines = [entry if isinstance(entry, bytes) else json.dumps(to_json(entry)).encode() for entry in entries]
    log.write_bytes(b"".join(line + b"\n" for line in lines) + end)
    return log


def to_json(entry: object) -> object:
    return asdict(entry) if isinstance(entry, Completion) else entry


def sent(request_id: str, at: float, attempt: int = 1) -> dict[str, object]:
    return {"in_flight": [request_id, attempt], "at": at}


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
        assert entries[-2] == sent(f"r{number}", at=entries[-2]["at"])
        assert entries[-1]["request_id"] == f"r{number}"
        assert ids(ledger.read()[0]) == [f"r{n}" for n in range(number + 1)]


def test_what_is_in_flight_is_no_completion(ledger):
    LedgerWriter(ledger).start("r0", 1)
    assert ledger.read()[0] == []


def test_a_torn_last_line_does_not_count_and_is_no_damage(ledger, start_writer, caplog):
    start_writer(
        "writer.write(complete(0))\n"
        "(log,) = ledger.open_logs.glob('*.log')\n"
        'log.open(\'ab\').write(b\'{"request_id": "w-1", "atte\')\n'
        "print(0, flush=True); os._exit(1)",
        lines=1,
    )[0].wait()
    assert ids(ledger.read()[0]) == ["w-0"]
    assert ledger.recover() == 1
    assert ids(ledger.read()[0]) == ["w-0"]
    assert caplog.text == ""
    assert not ledger.set_aside.exists()


def test_the_rest_of_a_line_is_read_once_it_is_there(ledger):
    second = json.dumps(asdict(complete("b"))).encode()
    leave_log(ledger, complete("a"), end=second[:20])
    found, snapshot = ledger.read()
    assert ids(found) == ["a"]
    leave_log(ledger, complete("a"), second)
    assert ids(ledger.read(snapshot)[0]) == ["b"]


def test_a_dead_writers_log_is_recovered_once(ledger, start_writer):
    process, _ = start_writer(
        "for n in range(3): writer.write(complete(n))\nprint('written', flush=True); os._exit(1)", lines=1
    )
    process.wait()
    assert len(logs(ledger)) == 1
    assert ledger.recover() == 3
    assert logs(ledger) == []
    assert ids(ledger.read()[0]) == ["w-0", "w-1", "w-2"]
    assert ledger.recover() == 0
    assert len(ledger.segments.names(".parquet")) == 1


def test_many_that_recover_at_once_take_each_log_once(ledger):
    for n in range(60):
        leave_log(ledger, complete(f"r{n:02}", at=float(n)), name=f"{n}-1-x")
    start, counts = threading.Barrier(4), []

    def recover():
        start.wait()
        counts.append(ledger.recover())

    threads = [threading.Thread(target=recover) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(counts) == 4
    assert sum(counts) == 60
    assert ids(ledger.read()[0]) == [f"r{n:02}" for n in range(60)]
    assert len(ledger.segments.names()) == 60


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
    (merged,) = ledger.segments.names()
    assert ledger.segments.read_table(merged).num_rows == 40
    assert ledger.read()[0] == rows
    ledger.compact()
    assert ledger.read()[0] == rows


def test_whoever_asks_for_what_is_new_gets_no_row_again_with_what_it_was_merged_into(ledger):
    ledger.store([complete("r1")], "a")
    ledger.store([complete("r2")], "b")
    _, seen = ledger.read_tables(None, len, with_logs=False)
    ledger.compact()
    ledger.store([complete("r3")], "c")
    tables, seen = ledger.read_tables(seen, lambda table: table, with_logs=False, with_merged=False)
    assert pa.concat_tables(tables)["request_id"].to_pylist() == ["r3"]
    assert ledger.read_tables(seen, len, with_logs=False, with_merged=False)[0] == [0]


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
    lock = ledger.folder.path / "compact.lock"
    lock.touch()
    with try_lock(lock) as is_ours:
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
        writer = LedgerWriter(ledger)
        while len(written) < 100:
            for _ in range(random.randrange(1, 4)):
                number = len(written)
                writer.write(complete(f"r{number}", at=float(number)))
                written.append(f"r{number}")
            writer.roll()
            if random.random() < 0.4:
                ledger.compact()
                n_reads_before = n_reads  # a reader that is interrupted gives up after some tries; let one through
                while n_reads == n_reads_before:
                    time.sleep(0.001)
        writer.close()
        finished.set()

    thread = threading.Thread(target=write, daemon=True)
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
    assert n_reads > 3
    assert set(ids(ledger.read()[0])) == set(written)
    assert not ledger.set_aside.exists(), "what was merged meanwhile is not broken"


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
        "os._exit(0)\n",
    )
    *written, failures = process.communicate()[0].split()
    assert int(failures) == 30 - len(written)
    assert 10 < len(written) < 20
    assert ids(ledger.read()[0]) == written


def test_a_roll_that_fails_leaves_the_writer_with_its_old_log(ledger):
    writer = LedgerWriter(ledger)
    writer.write(complete("a", at=1.0))
    for name in ("segments", "open"):
        place, elsewhere = ledger.folder.path / name, ledger.folder.path / f"{name}-elsewhere"
        place.mkdir(exist_ok=True)
        place.rename(elsewhere)
        place.write_text("no folder")
        with pytest.raises(StorageError, match="give a root you may write to"):
            writer.roll()
        place.unlink()
        elsewhere.rename(place)
        writer.write(complete(f"after {name}", at=2.0))
        assert len(logs(ledger)) == 1
    assert ids(ledger.read()[0]) == ["a", "after open", "after segments"]
    writer.roll()
    writer.close()
    assert ids(ledger.read()[0]) == ["a", "after open", "after segments"]


def table_of(*completions: Completion) -> pa.Table:
    return to_table(Completion, completions)


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[: len(content) // 2],
        lambda content: content[:-1],
        lambda content: b"no Parquet at all",
        lambda content: bytes(len(content)),
    ],
    ids=["empty", "half", "all but one byte", "other bytes", "zeros"],
)
def test_a_broken_segment_is_set_aside_as_it_is_and_told_once(any_ledger, damage, caplog):
    any_ledger.store([complete("good", at=1.0)], "w1")
    any_ledger.store([complete("bad", at=2.0)], "w2")
    _, name = any_ledger.segments.names()
    content = damage(any_ledger.segments.read_bytes(name))
    any_ledger.segments.write_bytes(name, content)
    assert ids(any_ledger.read()[0]) == ["good"]
    assert any_ledger.set_aside.names() == [name]
    assert any_ledger.set_aside.read_bytes(name) == content
    (record,) = caplog.records
    assert f"{any_ledger.segments}/{name} can't be read" in record.getMessage()
    assert "its rows are asked again" in record.getMessage()
    assert ids(any_ledger.read()[0]) == ["good"]
    assert len(caplog.records) == 1


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        (pa.table({"request_id": ["a"], "prediction": [1]}), "has the columns request_id, prediction, not those"),
        (table_of(complete("a")).rename_columns({"n_cached_tokens": "n_cached_tokenz"}), "n_cached_tokenz"),
        (table_of(complete("a")).drop_columns(["text"]), "not those of a completion"),
        (table_of(complete("a")).set_column(1, "attempt", [["1"]]), "its column attempt is no int64"),
        (table_of().append_column("request_id", pa.array([], pa.string())), "request_id"),
    ],
    ids=["another", "a column's name", "no text", "a column's type", "a column twice"],
)
def test_a_table_of_something_else_is_set_aside(ledger, table, reason, caplog):
    ledger.store([complete("good")], "w")
    ledger.segments.write_table("other.parquet", table)
    content = ledger.segments.read_bytes("other.parquet")
    assert ids(ledger.read(wanted=["good", "a"])[0]) == ["good"]
    assert ledger.set_aside.read_bytes("other.parquet") == content
    assert reason in caplog.text


def test_a_bit_that_flips_in_a_segment_never_changes_a_completion(ledger):
    rows = [replace(complete(f"r{n}", at=float(n)), choice_logprobs={"yes": -n / 7}) for n in range(20)]
    ledger.store(rows, "w")
    (name,) = ledger.segments.names()
    content = ledger.segments.read_bytes(name)
    found = []
    for place in range(0, len(content), 13):
        flipped = bytearray(content)
        flipped[place] ^= 1 << random.randrange(8)
        ledger.segments.write_bytes(name, bytes(flipped))
        found.append(ledger.read()[0])
    assert [rows_read for rows_read in found if rows_read not in ([], rows)] == []
    assert found.count([]) > len(found) / 2, "nothing was flipped that counts"


def test_many_readers_of_one_broken_segment_all_get_the_rest_and_one_tells_of_it(ledger, caplog):
    ledger.store([complete("good")], "w")
    for round_number in range(10):
        ledger.segments.write_bytes(f"{round_number}.parquet", b"broken")
        start = threading.Barrier(4)
        found = []

        def read(start=start, found=found):
            start.wait()
            found.append(ids(ledger.read()[0]))

        readers = [threading.Thread(target=read) for _ in range(4)]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join()
        assert found == [["good"]] * 4
    assert len(caplog.records) == 10
    assert len(ledger.set_aside.names()) == 10


def test_compaction_merges_what_it_can_read_and_deletes_nothing_else(ledger):
    for n in range(3):
        ledger.store([complete(f"r{n}", at=float(n))], f"w{n}")
    name = ledger.segments.names()[1]
    broken = ledger.segments.read_bytes(name)[:-9]
    ledger.segments.write_bytes(name, broken)
    ledger.compact()
    assert len(ledger.segments.names()) == 1
    assert ids(ledger.read()[0]) == ["r0", "r2"]
    assert ledger.set_aside.read_bytes(name) == broken


def test_segments_of_an_older_version_are_read_and_merged_with_todays(ledger):
    new = replace(complete("new", at=2.0), n_cached_tokens=7, choice_logprobs={"yes": -0.5, "no": float("-inf")})
    new = replace(new, price_factor=0.5)
    ledger.segments.write_table(
        "1-old.parquet",
        table_of(complete("old", at=1.0)).drop_columns(["n_cached_tokens", "choice_logprobs", "price_factor"]),
    )
    ledger.segments.write_table("2-newer.parquet", table_of(complete("newer", at=3.0)).append_column("more", [["x"]]))
    ledger.store([new], "w")
    expected = [complete("old", at=1.0), new, complete("newer", at=3.0)]
    assert ledger.read()[0] == expected
    ledger.compact()
    assert len(ledger.segments.names()) == 1
    assert ledger.read()[0] == expected


def test_log_probabilities_come_back_from_log_and_segment(ledger):
    writer = LedgerWriter(ledger)
    row = replace(complete("a"), n_cached_tokens=7, choice_logprobs={"yes": -0.1, "no": float("-inf")})
    writer.write(row)
    assert ledger.read()[0] == [row]
    writer.roll()
    assert ledger.read()[0] == [row]


@pytest.mark.parametrize(
    ("text", "kept"),
    [("a\ud83d", "a\ufffd"), ("\ude00b", "\ufffdb"), ("\ud83d\ude00", "😀"), ("é\x00\u2028", "é\x00\u2028")],
    ids=["first half", "second half", "both halves", "all well"],
)
def test_half_a_character_is_replaced_once_for_all(ledger, text, kept):
    writer = LedgerWriter(ledger)
    written = writer.write(replace(complete("a", text=text), finish_reason=text, error=text))
    assert (written.text, written.finish_reason, written.error) == (kept, kept, kept)
    assert ledger.read()[0] == [written]
    writer.roll()
    assert ledger.read()[0] == [written]


def test_only_what_is_wanted_is_read(ledger):
    ledger.store([complete("a", at=1.0), complete("b", at=2.0), complete("a", 2, at=3.0)], "w")
    writer = LedgerWriter(ledger)
    for n, request_id in enumerate("cda"):
        writer.write(complete(request_id, 3, at=4.0 + n))
    found, snapshot = ledger.read(wanted=["a", "c", "elsewhere"])
    assert [(c.request_id, c.attempt) for c in found] == [("a", 1), ("a", 2), ("c", 3), ("a", 3)]
    assert ledger.read(wanted=[])[0] == []
    writer.write(complete("d", 4))
    writer.write(complete("a", 4))
    assert [(c.request_id, c.attempt) for c in ledger.read(snapshot, wanted={"a"})[0]] == [("a", 4)]


@pytest.mark.parametrize(
    "line",
    [b"no JSON", b'{"some": "thing else"}', b"[]", b"7", b"", b"\xff\x00", b'{"in_flight": "r0"}', b"{}\r{}"],
    ids=repr,
)
def test_a_broken_line_is_told_once_and_its_log_is_kept(any_ledger, line, caplog):
    log = leave_log(any_ledger, complete("a", at=1.0), line, complete("b", at=2.0), end=b'{"torn')
    content = log.read_bytes()
    for _ in range(2):
        assert ids(any_ledger.read()[0]) == ["a", "b"]
    assert any_ledger.recover() == 2
    assert ids(any_ledger.read()[0]) == ["a", "b"]
    assert [record.getMessage().split(" is no completion")[0] for record in caplog.records] == [f"line 2 of {log}"]
    assert not log.exists()
    assert any_ledger.set_aside.read_bytes(log.name) == content


def test_a_broken_line_behind_what_was_seen_has_its_number_in_the_log(ledger, caplog):
    seen = [complete(f"r{n}", at=float(n)) for n in range(3)]
    leave_log(ledger, *seen)
    _, snapshot = ledger.read()
    leave_log(ledger, *seen, complete("r3"), b"broken", complete("r4"))
    assert ids(ledger.read(snapshot)[0]) == ["r3", "r4"]
    assert "line 5 of" in caplog.text


def test_what_was_in_flight_when_a_writer_of_this_session_died_is_a_failed_try(ledger):
    answered = complete("a", 1, at=1.0)
    leave_log(
        ledger,
        {"session": "job"},
        *[sent("a", 1.0), sent("b", 2.0), sent("c", 3.0)],
        *[answered, complete("c", 1, Outcome.TIMEOUT, 3.0), sent("a", 5.0, attempt=2), sent("c", 6.0)],
        end=b'{"request_id": "b", "attempt": 1, "outc',
    )
    assert ids(ledger.read()[0]) == ["a", "c"]
    assert ledger.recover("job") == 5
    found = ledger.read()[0]
    died = [c for c in found if c.finish_reason == DIED]
    assert [(c.request_id, c.attempt, c.started_at) for c in died] == [("b", 1, 2.0), ("a", 2, 5.0), ("c", 1, 6.0)]
    assert {c.outcome for c in died} == {Outcome.ERROR}
    assert {c.error for c in died} == {"its actor died with this request in flight"}
    assert {c.latency_s for c in died} == {0.0}
    assert len(found) == 5
    assert answered in found


@pytest.mark.parametrize(("log_session", "session"), [("killed", "job"), ("killed", ""), ("", "job"), ("", "")])
def test_what_was_in_flight_in_another_session_is_just_asked_again(ledger, log_session, session):
    head = [{"session": log_session}] if log_session else []
    leave_log(ledger, *head, sent("a", 1.0), complete("a", at=1.0), sent("b", 2.0))
    assert ledger.recover(session) == 1
    assert ids(ledger.read()[0]) == ["a"]
    assert not list(ledger.open_logs.glob("*.log"))


def test_a_log_with_a_broken_line_tells_of_no_death(ledger):
    """The line may have been the answer."""
    leave_log(ledger, {"session": "job"}, sent("a", 1.0), sent("b", 2.0), b"broken", complete("a", at=1.0))
    assert ledger.recover("job") == 1
    assert ids(ledger.read()[0]) == ["a"]


def test_one_death_that_is_found_twice_counts_once_and_two_count_twice(ledger):
    """A process that dies while it rolls leaves two logs that both say what was in flight."""
    head = [{"session": "job"}, sent("a", 1.0)]
    leave_log(ledger, *head, complete("b", at=0.5), name="1-1-old")
    leave_log(ledger, *head, name="2-1-new")
    ledger.recover("job")
    leave_log(ledger, *head, name="1-1-old")
    ledger.recover("job")
    assert [(c.request_id, c.started_at) for c in ledger.read()[0]] == [("b", 0.5), ("a", 1.0)]
    leave_log(ledger, {"session": "job"}, sent("a", 3.0), name="3-1-next")
    ledger.recover("job")
    ledger.compact()
    assert [(c.request_id, c.started_at) for c in ledger.read()[0]] == [("b", 0.5), ("a", 1.0), ("a", 3.0)]


def test_a_roll_keeps_what_is_in_flight_and_the_session(ledger, start_writer):
    process, _ = start_writer(
        "writer.start('slow', 2); writer.start('w-0', 1); writer.write(complete(0)); writer.roll()\n"
        "writer.start('w-1', 1); writer.roll(); writer.write(complete(1)); writer.roll()\n"
        "print('rolled', flush=True); os._exit(1)",
        lines=1,
    )
    process.wait()
    (log,) = ledger.open_logs.glob("*.log")
    entries = [json.loads(line) for line in log.read_bytes().splitlines()]
    assert entries == [{"session": "job"}, sent("slow", entries[1]["at"], attempt=2)]
    ledger.recover("job")
    found = ledger.read()[0]
    assert ids(found) == ["w-0", "w-1", "slow"]
    assert found[2].started_at == entries[1]["at"]
    assert found[2].finish_reason == DIED


def test_processes_that_write_read_recover_and_merge_at_once_lose_and_double_nothing(ledger, start_writer, tmp_path):
    write = (
        "ledger_module.ROLL_ROWS = 5\n"
        "for n in range(100):\n"
        "    time.sleep(0.005); writer.start(f'{name}-{n}', 1)\n"
        "    writer.write(complete(n)); print(f'{name}-{n}', flush=True)\n"
        "    if writer.is_due: writer.roll()\n"
        "    if n == 49 and name == 'victim': writer.start('victim-deadly', 1); os.kill(os.getpid(), 9)\n"
        "writer.close()\n"
    )
    tidy = (
        "known, snapshot, rounds = set(), {}, 0\n"
        "print('ready', flush=True)\n"
        "while not os.path.exists(os.path.join(root, 'stop')):\n"
        "    time.sleep(0.02); ledger.recover('job'); ledger.compact()\n"
        "    new, snapshot = ledger.read(snapshot)\n"
        "    known |= {c.request_id for c in new}; rounds += bool(new)\n"
        "    rows = [c.request_id for c in ledger.read()[0]]\n"
        "    assert len(rows) == len(set(rows)), 'doubled'\n"
        "    assert known <= set(rows), 'lost'\n"
        "print(rounds, flush=True)\n"
        "writer.close()\n"
    )
    tidiers = [start_writer(tidy, lines=1, name=f"tidier{n}")[0] for n in range(2)]
    writers = [start_writer(write, name=name)[0] for name in ("one", "two", "victim")]
    written = {line for writer in writers for line in writer.communicate(timeout=120)[0].split()}
    (tmp_path / "stop").touch()
    rounds = [int(tidier.communicate(timeout=120)[0]) for tidier in tidiers]
    assert [process.returncode for process in (*writers, *tidiers)] == [0, 0, -signal.SIGKILL, 0, 0]
    assert len(written) == 250
    assert min(rounds) >= 3, "nobody tidied while they wrote"
    ledger.recover("job")
    ledger.compact()
    found = ledger.read()[0]
    assert Counter(ids(found)) == Counter([*written, "victim-deadly"])
    assert [c.request_id for c in found if c.finish_reason == DIED] == ["victim-deadly"]
    assert len(ledger.segments.names()) == 1
    assert logs(ledger) == []
    assert not ledger.set_aside.exists(), "what was merged meanwhile is not broken"


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
