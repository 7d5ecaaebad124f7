import asyncio
import os
import signal
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import psutil
import pytest
import ray

from pipeline.cluster import Report
from pipeline.errors import TeacherError
from pipeline.progress import Tally
from pipeline.prompts.requests import make_request
from pipeline.quality.watch import WatchConfig
from pipeline.records import Completion, Outcome, Request, Seed
from pipeline.stages.generate import judge_completion
from pipeline.stages.watch import read_looks, watching
from pipeline.storage import Folder
from pipeline.stored import StoredRecords, write_records
from pipeline.tasks.ambiguity import PairedConfig
from pipeline.teachers.histories import Histories, find_unsettled
from pipeline.teachers.kinds import make_teacher
from pipeline.teachers.ledger import Ledger, LedgerWriter
from pipeline.teachers.offline import OfflineConfig, OfflineTeacher
from pipeline.teachers.plan import DIED, Limits
from pipeline.teachers.pool import PoolConfig, teach
from pipeline.teachers.teacher import PriceConfig, SamplingConfig
from tests.composing import compose_task

pytestmark = pytest.mark.ray

TASK = compose_task("ambiguity")
METHOD = PairedConfig(name="paired", n_intents=5, similar_lengths=False, max_attempts=3)
LIMITS = Limits(max_attempts=3, max_tries=2)
JUDGE = partial(judge_completion, TASK, METHOD)


NO_PRICE = PriceConfig(per_million_prompt_tokens=None, per_million_completion_tokens=None, per_device_hour=None)


def make_requests(n):
    requests = []
    for i in range(n):
        seed = Seed(f"s{i}", f"Topic number {i}", f"s{i}")
        (prompt,) = TASK.write_prompts([seed], {}, METHOD, 1)
        requests.append(
            make_request(
                seed, (), prompt.messages, prompt.schema,
                temperature=0.0, top_p=1.0, teacher={"kind": "offline"}, run_seed=1,
            )
        )  # fmt: skip
    return requests


def teach_offline(requests, ledger, actors=1, timeout_s=30.0, make=None, find_stop=lambda: "", **changes):
    values = {
        "kind": "offline", "label": "offline", "sampling": SamplingConfig(temperature=0, top_p=1), "max_in_flight": 8,
        "timeout_s": timeout_s, "max_tries": LIMITS.max_tries, "latency_s": 0.0, "faults": {}, "cpus": 1, "gpus": 0,
        "price": NO_PRICE,
    } | changes  # fmt: skip
    config = OfflineConfig(**values)
    make = partial(make, config) if make else partial(make_teacher, config, TASK.reply_offline, actors, ledger)
    return teach(requests, ledger, config, make, JUDGE, LIMITS, PoolConfig(actors=actors), find_stop=find_stop)


def test_every_request_ends_whatever_the_teacher_does(ray_cluster, tmp_path):
    ledger = Ledger.of(Folder.at(tmp_path), "offline")
    requests = make_requests(60)
    faults = {
        Outcome.INVALID_JSON: 0.2,
        Outcome.SCHEMA_MISMATCH: 0.2,
        Outcome.TRUNCATED: 0.1,
        Outcome.REFUSED: 0.1,
        Outcome.ERROR: 0.1,
    }
    counts = teach_offline(requests, ledger, actors=2, faults=faults).outcomes
    histories = Histories(requests, ledger)
    assert len(find_unsettled(requests, histories, JUDGE, LIMITS, {})) == 0
    judged = Counter(JUDGE(r, c).value for r in requests for c in histories[r.request_id])
    assert counts == dict(judged)
    assert set(counts) == {"ok", *faults}
    for request in requests:
        history = histories[request.request_id]
        answered = [c.attempt for c in history if c.outcome.is_answer]
        assert answered == sorted(set(answered)), "the same (request, attempt) was answered twice"
        assert max(c.attempt for c in history) <= LIMITS.max_attempts


def test_a_second_run_asks_nothing(ray_cluster, tmp_path):
    ledger = Ledger.of(Folder.at(tmp_path), "offline")
    requests = make_requests(12)
    session = teach_offline(requests, ledger)
    assert session.outcomes == {"ok": 12}
    assert sum(session.seconds.values()) == pytest.approx(session.span_s)
    assert teach_offline(requests, ledger).outcomes == {}
    assert len(ledger.read()[0]) == 12


def test_a_slow_answer_is_a_timeout_and_is_tried_again(ray_cluster, tmp_path):
    ledger = Ledger.of(Folder.at(tmp_path), "offline")
    counts = teach_offline(make_requests(2), ledger, timeout_s=0.05, latency_s=5.0).outcomes
    assert counts == {"timeout": 2 * LIMITS.max_tries}


def test_an_actor_that_is_killed_loses_no_answer_and_repeats_none(ray_cluster, tmp_path):
    ledger = Ledger.of(Folder.at(tmp_path), "offline")
    requests = make_requests(80)
    answered_before = []

    def kill_when_busy():
        while len(completions := ledger.read()[0]) < 20:
            time.sleep(0.05)
        # Only our own: another run may be at work on this machine.
        pids = [p.pid for p in psutil.Process().children(recursive=True) if "TeacherActor" in " ".join(p.cmdline())]
        answered_before.extend((c.request_id, c.started_at) for c in completions)
        for pid in pids:
            os.kill(pid, signal.SIGKILL)

    killer = threading.Thread(target=kill_when_busy, daemon=True)
    killer.start()
    teach_offline(requests, ledger, latency_s=0.3)
    killer.join()
    assert len(answered_before) >= 20
    completions, _ = ledger.read()
    answers = [c for c in completions if c.outcome.is_answer]
    assert sorted(c.request_id for c in answers) == sorted(r.request_id for r in requests)
    in_flight = [c for c in completions if not c.outcome.is_answer]
    assert {c.finish_reason for c in in_flight} == {DIED}
    assert len(in_flight) <= 8
    assert set(answered_before) <= {(c.request_id, c.started_at) for c in completions}


class Poisoned(OfflineTeacher):
    """Ends its process when it is asked the one request."""

    async def complete(self, request, attempt):
        if request.seed.seed_id == "s13":
            os._exit(1)
        return await super().complete(request, attempt)


def test_a_request_that_kills_its_actor_each_time_is_found_and_harms_no_other(ray_cluster, tmp_path):
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    ledger = Ledger.of(Folder.at(tmp_path), "offline")
    requests = make_requests(30)
    session = teach_offline(requests, ledger, make=lambda config: Poisoned(config, TASK.reply_offline), latency_s=0.05)
    completions, _ = ledger.read()
    accepted = {c.request_id for c in completions if c.outcome is Outcome.OK}
    assert accepted == {r.request_id for r in requests if r.seed.seed_id != "s13"}
    poison = [c for c in completions if c.request_id == requests[13].request_id]
    assert [c.finish_reason for c in poison] == [DIED] * LIMITS.max_tries
    assert session.requests == 30


def test_what_a_teacher_can_not_get_past_ends_the_job_with_its_own_words(ray_cluster, tmp_path):
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])

    def refuse(config):
        raise TeacherError("no such model; name another")

    with pytest.raises(TeacherError, match=r"^no such model; name another\nanswered requests are kept$"):
        teach_offline(make_requests(3), Ledger.of(Folder.at(tmp_path), "offline"), make=refuse)


@dataclass(frozen=True)
class Slow(OfflineTeacher):
    """Notes what it is asked, and answers after very different times."""

    folder: Path = Path()

    async def complete(self, request, attempt):
        (self.folder / request.request_id).touch()
        await asyncio.sleep(request.row_seed % 100 / 100)
        return await super().complete(request, attempt)


def test_a_stop_waits_for_what_is_in_flight_in_all_actors(ray_cluster, tmp_path):
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    root, asked = Folder.at(tmp_path / "root"), tmp_path / "asked"
    asked.mkdir()
    make = lambda config: Slow(config, TASK.reply_offline, folder=asked)  # noqa: E731
    with pytest.raises(TeacherError, match=r"^enough\nanswered requests are kept$"):
        teach_offline(
            make_requests(400), Ledger.of(root, "offline"), actors=2, make=make, find_stop=lambda: "enough",
            max_in_flight=20,
        )  # fmt: skip
    names = {path.name for path in asked.iterdir()}
    assert 20 <= len(names) < 400
    assert names == {c.request_id for c in Ledger.of(root, "offline").read()[0]}


def test_what_a_killed_run_left_beside_a_remote_root_is_not_asked_again(ray_cluster, tmp_path):
    """Remote is any URL; the logs then lie on each node's own disk, where the plan has them rolled before any actor."""
    ledger = Ledger.of(Folder(f"file://{tmp_path}"), "offline")
    (tmp_path / "ledger" / "offline" / "segments").mkdir(parents=True)  # object storage has no folders to make
    requests = make_requests(20)
    dead = LedgerWriter(ledger)
    for request in requests:
        text = TASK.reply_offline(request, 1)
        dead.write(Completion(request.request_id, 1, Outcome.OK, text, "stop", 1, 1, time.time(), 0.1))
    os.close(dead._log._descriptor)  # and with it the lock
    assert not ledger.segments.names()
    assert teach_offline(requests, ledger).requests == 0
    assert list(ledger.open_logs.glob("*.log")) == []
    assert len(ledger.read()[0]) == 20


def test_a_teacher_whose_answers_are_no_good_is_stopped_and_goes_on_where_it_was(ray_cluster, tmp_path):
    root = Folder.at(tmp_path)
    ledger = Ledger.of(root, "offline")
    write_records(Request, make_requests(1200), root, "requests.parquet")
    requests = StoredRecords(Request, root, "requests.parquet")
    report = Report(ray.remote(num_cpus=0)(Tally).remote())
    rules = WatchConfig(interval_s=0.2, sample=100, max_reject_rate=0.5, min_distinct=None, resample_topics=False)

    def teach_watched():
        with watching("main", requests, ledger, JUDGE, rules, root / "looks", report.stop):
            teach_offline(requests, ledger, find_stop=report.find_stop, latency_s=0.1, faults={Outcome.REFUSED: 0.9})

    with pytest.raises(TeacherError, match=r"(?s)refused.*max_reject_rate=0.5.*answered requests are kept"):
        teach_watched()
    kept = ledger.read()[0]
    assert 100 <= len(kept) < 1200
    assert read_looks(root / "looks")[-1].low > 0.5
    session = teach_offline(requests, ledger)
    assert session.requests == 1200 - len(kept)
    answers = ledger.read()[0]
    assert sorted(c.request_id for c in answers) == sorted(r.request_id for r in requests)
    assert all(completion in answers for completion in kept)
