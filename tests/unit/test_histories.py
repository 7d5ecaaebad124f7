"""Histories by request, and which requests still need a teacher: the same from memory, from a file, over any parts."""

import pickle
from dataclasses import replace
from itertools import chain

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import stored
from pipeline.errors import StorageError
from pipeline.records import Completion, Message, Outcome, Request, Seed
from pipeline.storage import Folder
from pipeline.stored import StoredRecords, write_records
from pipeline.teachers import histories as histories_module
from pipeline.teachers import ledger as ledger_module
from pipeline.teachers.completions import group_by_request
from pipeline.teachers.histories import Histories, digest_answers, find_unsettled, read_positions, sort_by_prefix
from pipeline.teachers.ledger import Ledger, LedgerWriter
from pipeline.teachers.plan import Limits, Position, locate

LIMITS = Limits(max_attempts=3, max_tries=2)
OK, INVALID, REFUSED, TIMEOUT, ERROR = (Outcome(name) for name in ("ok", "invalid_json", "refused", "timeout", "error"))


def ask(request_id: str) -> Request:
    return Request(request_id, Seed("s", "t", "g"), (), (), "{}", 10, 0.0, 1.0, 7)


def complete(request_id: str, attempt: int, outcome: Outcome, at: float = 0.0) -> Completion:
    return Completion(request_id, attempt, outcome, "", "", 0, 0, at, 0.0)


def judge(request: Request, completion: Completion) -> Outcome:
    """Take a completion's own outcome for what parsing makes of it."""
    return completion.outcome


REQUESTS = [ask(f"r{n}") for n in range(11)]


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    """Parts of four requests, of which a file has row groups of its own size."""
    monkeypatch.setattr(stored, "PART_ROWS", 3)
    monkeypatch.setattr(histories_module, "PART_ROWS", 4)


@pytest.fixture
def ledger(tmp_path):
    return Ledger.of(Folder.at(tmp_path), "sample")


@pytest.fixture(params=["memory", "path", "url"])
def requests(request, tmp_path):
    """Requests in memory, in a file, and in one behind a URL (fsspec's in-memory store)."""
    if request.param == "memory":
        return REQUESTS
    folder = Folder.at(tmp_path if request.param == "path" else f"fsspec+memory://bucket{tmp_path}")
    write_records(Request, iter(REQUESTS), folder, "requests.parquet")
    return StoredRecords(Request, folder, "requests.parquet")


def plan(requests, ledger, replays=None):
    return list(find_unsettled(requests, Histories(requests, ledger), judge, LIMITS, replays or {}))


def test_nothing_was_asked_yet(requests, ledger):
    assert plan(requests, ledger) == [(request, Position()) for request in REQUESTS]
    assert dict(Histories(requests, ledger)) == {request.request_id: () for request in REQUESTS}


def test_only_what_is_not_settled_is_planned_with_its_position(requests, ledger):
    ledger.store([complete("r0", 1, OK), complete("r5", 1, INVALID), complete("foreign", 1, INVALID)], "x")
    ledger.store([complete("r5", 2, TIMEOUT), complete("r10", 1, ERROR, 1.0), complete("r10", 1, ERROR, 2.0)], "y")
    LedgerWriter(ledger).write(complete("r2", 1, REFUSED))
    planned = {request.request_id: position for request, position in plan(requests, ledger)}
    fresh = dict.fromkeys(("r1", "r3", "r4", "r6", "r7", "r8", "r9"), Position())
    assert planned == {**fresh, "r5": Position(attempt=2, tries=1)}


def test_a_replay_is_planned_from_where_the_request_had_ended(requests, ledger):
    ledger.store([complete(request.request_id, 1, REFUSED) for request in REQUESTS], "x")
    assert plan(requests, ledger) == []
    assert plan(requests, ledger, {"r7": 1, "another": 1}) == [(REQUESTS[7], Position(attempt=2, first=2))]


def test_each_history_is_found_in_any_order_each_completion_once(requests, ledger):
    rows = [complete("r9", 2, OK, 5.0), complete("r9", 1, INVALID, 4.0), complete("r1", 1, TIMEOUT, 1.0)]
    ledger.store(rows, "x")
    ledger.store(rows[:2], "again")
    histories = Histories(requests, ledger)
    assert len(histories) == len(REQUESTS)
    assert histories["r9"] == [rows[1], rows[0]]
    assert histories["r1"] == [rows[2]]
    assert histories["r9"] == [rows[1], rows[0]]
    assert list(histories) == [request.request_id for request in REQUESTS]
    with pytest.raises(KeyError):
        histories["foreign"]


def test_what_does_not_count_is_cut_off(requests, ledger):
    ledger.store([complete(f"r{n}", attempt, INVALID) for n in (3, 8) for attempt in (1, 2, 3)], "x")
    cut = lambda request, history: history[: 1 + (request.request_id == "r8")]  # noqa: E731
    assert {i: len(h) for i, h in Histories(requests, ledger, cut).items() if h} == {"r3": 1, "r8": 2}


def test_what_is_written_later_is_no_part_of_it_and_is_younger_than_its_snapshot(requests, ledger):
    ledger.store([complete("r0", 1, OK)], "x")
    histories = Histories(requests, ledger)
    ledger.store([complete("r1", 1, OK)], "y")
    assert histories["r1"] == ()
    assert [c.request_id for c in ledger.read(histories.snapshot)[0]] == ["r1"]


def test_a_digest_of_answers_is_of_what_was_said_and_not_of_when_and_how_fast():
    said = replace(complete("r1", 1, OK), text="yes", choice_logprobs={"yes": -0.1})
    digest = digest_answers({"r1": [said], "r2": []})
    later = replace(said, started_at=9.0, latency_s=3.0, n_completion_tokens=7)
    assert digest_answers({"r1": [later], "r2": []}) == digest
    others = (
        {"r1": [replace(said, text="no")], "r2": []},
        {"r1": [replace(said, choice_logprobs={"yes": -0.2})], "r2": []},
        {"r1": [replace(said, outcome=REFUSED)], "r2": []},
        {"r1": [said, replace(said, attempt=2)], "r2": []},
        {"r1": [], "r2": [said]},
        {"r1": [said]},
    )
    assert len({digest, *map(digest_answers, others)}) == 1 + len(others)


def test_a_request_that_stands_there_twice_has_one_history(ledger):
    twice = [*REQUESTS, REQUESTS[2]]
    assert len(plan(twice, ledger)) == 12
    ledger.store([complete("r2", 1, OK)], "x")
    planned = [request for request, _ in plan(twice, ledger)]
    assert REQUESTS[2] not in planned
    assert len(planned) == 10


@pytest.mark.parametrize("n_rows", [0, 1, 3, 4, 11])
def test_records_in_a_file_are_those_in_memory(tmp_path, n_rows):
    folder, rows = Folder.at(tmp_path), REQUESTS[:n_rows]
    assert write_records(Request, iter(rows), folder, "x.parquet") == n_rows
    found = pickle.loads(pickle.dumps(StoredRecords(Request, folder, "x.parquet")))
    assert list(found) == rows
    assert len(found) == n_rows
    assert found[1:9:2] == rows[1:9:2]
    assert found.take([n_rows - 1 - n for n in range(n_rows)]) == rows[::-1]
    assert found.read_column("request_id").to_pylist() == [row.request_id for row in rows]
    if rows:
        assert found[-1] == rows[-1]
    with pytest.raises(IndexError):
        found[n_rows]


def test_a_file_that_is_gone_or_not_as_it_was_written_is_told(tmp_path):
    folder = Folder.at(tmp_path)
    write_records(Request, iter(REQUESTS), folder, "x.parquet")
    found = StoredRecords(Request, folder, "x.parquet")
    assert len(found) == len(REQUESTS)
    content = bytearray(folder.read_bytes("x.parquet"))
    content[content.index(b"r3")] ^= 0xFF
    folder.write_bytes("x.parquet", bytes(content))
    with pytest.raises(StorageError, match=r"cannot read .*x\.parquet"):
        list(found)
    folder.delete("x.parquet")
    with pytest.raises(StorageError, match=r"cannot read .*x\.parquet"):
        found.take([0])


OUTCOMES = (OK, INVALID, REFUSED, TIMEOUT, ERROR)


def try_once(request_id: str, attempt: int, at: int) -> Completion:
    """Return what one try came to: the same wherever it stands."""
    return complete(request_id, attempt, OUTCOMES[(int(request_id[1:]) + 3 * attempt + at) % len(OUTCOMES)], float(at))


IDS = st.sampled_from([*(request.request_id for request in REQUESTS), "f0"])
COMPLETIONS = st.lists(st.builds(try_once, IDS, st.integers(1, 3), st.integers(0, 4)), max_size=30)


@given(st.lists(COMPLETIONS, max_size=4), st.integers(1, 8))
@settings(deadline=None, max_examples=60)
def test_a_plan_over_columns_is_the_plan_over_records(tmp_path_factory, segments, segment_rows):
    """However the completions lie in segments, before and after these are merged."""
    ledger = Ledger.of(Folder.at(tmp_path_factory.mktemp("ledger")), "sample")
    for number, rows in enumerate(segments):
        ledger.store(rows, f"w{number}")
    groups = group_by_request(chain(*segments))
    located = [(r, locate(r, groups.get(r.request_id, ()), judge, LIMITS)) for r in REQUESTS]
    expected = [(request, position) for request, position in located if not position.settled]
    whole = ledger.read()[0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ledger_module, "SEGMENT_ROWS", segment_rows)
        for _ in range(2):
            assert plan(REQUESTS, ledger) == expected
            assert ledger.read()[0] == whole
            ledger.compact()
    unsettled = find_unsettled(REQUESTS, Histories(REQUESTS, ledger), judge, LIMITS, {})
    assert read_positions(REQUESTS, unsettled.table) == expected


def test_requests_that_share_a_prefix_become_neighbours(monkeypatch, ledger):
    monkeypatch.setattr(histories_module, "SORT_ROWS", 6)
    prompts = ["b 1", "a 1", "b 2", "a 2", "b 3", "a 3", "b 4", "a 4"]
    requests = [replace(ask(f"r{n}"), messages=(Message("user", prompt),)) for n, prompt in enumerate(prompts)]
    unsettled = find_unsettled(requests, Histories(requests, ledger), judge, LIMITS, {})
    found = [request.messages[0].content for request, _ in read_positions(requests, sort_by_prefix(unsettled))]
    assert found == ["a 1", "a 2", "a 3", "b 1", "b 2", "b 3", "a 4", "b 4"]
