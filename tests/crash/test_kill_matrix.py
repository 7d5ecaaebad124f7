"""`kill -9` of every kind of process while a teacher is asked: nothing is lost, nothing doubled, nothing paid twice.

What was paid is counted where no reader of the ledger can hide it: at the endpoint's own log, and for the engine in
the ledger's files as they lie there, which the tests keep from being merged.
"""

import fcntl
import json
import time
import warnings
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from subprocess import Popen
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest

from pipeline.records import Outcome
from pipeline.storage import Folder
from pipeline.teachers.ledger import ROLL_ROWS, Ledger
from pipeline.teachers.plan import DIED
from tests.endpoint import Served, serve
from tests.jobs import (
    choose,
    kill,
    read_prompts,
    read_result,
    run_job,
    start_job,
    wait_until,
    wait_until_gone,
)

pytestmark = [pytest.mark.crash, pytest.mark.timeout(600)]

EARLY, LATE = 0.25, 0.75
"""Shares of answered requests between which a kill counts as one in the middle."""
ANSWERS = {outcome.value for outcome in Outcome if outcome.is_answer}
Key = tuple[str, int]
"""Request id and attempt."""


@dataclass(frozen=True)
class Entries:
    """What logs and segments say, without a reader's de-duplication."""

    completions: list[dict]
    in_flight: set[Key]
    """Sent, and not known to have come back."""

    @property
    def answers(self) -> set[tuple[str, int, float]]:
        """Request id, attempt and time of asking."""
        return {(c["request_id"], c["attempt"], c["started_at"]) for c in self.completions if c["outcome"] in ANSWERS}

    @property
    def answered(self) -> set[Key]:
        return {(request_id, attempt) for request_id, attempt, _ in self.answers}

    @property
    def died(self) -> set[Key]:
        """What was in flight when an actor or its engine died."""
        return {(c["request_id"], c["attempt"]) for c in self.completions if c["finish_reason"] == DIED}


def read_log_lines(path: Path) -> Entries:
    completions, in_flight = [], set()
    for line in path.read_bytes().split(b"\n")[:-1]:
        match json.loads(line):
            case {"in_flight": [request_id, attempt]}:
                in_flight.add((request_id, attempt))
            case {"request_id": request_id, "attempt": attempt} as completion:
                completions.append(completion)
                in_flight.discard((request_id, attempt))
    return Entries(completions, in_flight)


def read_logs(ledger: Path, pids: Collection[int] | None = None) -> Entries:
    """Return what stands in a ledger's open logs: in all, or in those of some writers."""
    logs = [log for log in ledger.glob("open/*.log") if pids is None or int(log.name.split("-")[1]) in pids]
    found = [read_log_lines(log) for log in sorted(logs)]
    completions = [completion for entries in found for completion in entries.completions]
    in_flight = {key for entries in found for key in entries.in_flight}
    return Entries(completions, in_flight - Entries(completions, set()).answered)


def read_entries(ledger: Path) -> Entries:
    """Return what stands in a ledger's open logs and segments."""
    logs = read_logs(ledger)
    rolled = [row for path in ledger.glob("segments/*.parquet") for row in pq.read_table(path).to_pylist()]
    return Entries(logs.completions + rolled, logs.in_flight - Entries(rolled, set()).answered)


def has_open_answers(ledger: Path, pids: Collection[int] | None = None, quiet_s: float = 0.0) -> bool:
    """Return whether open logs hold answers that are in no segment yet, and that for some seconds."""
    with suppress(FileNotFoundError):  # rolled meanwhile
        ends = [c["started_at"] + c["latency_s"] for c in read_logs(ledger, pids).completions]
        return bool(ends) and time.time() - max(ends) >= quiet_s
    return False


@dataclass
class Teaching:
    """A command that asks a teacher, and what of it can be seen from outside."""

    kind: str
    command: list[str]
    root: Path
    n_requests: int
    max_in_flight: int
    served: Served | None = None
    expected_rows: list[str] | None = None
    """Those of a run that nobody disturbed, where the teacher's words depend on the request alone."""
    job: Popen | None = None
    n_before: int = 0
    """Answers that the ledger held when the last run began."""

    @property
    def ledger(self) -> Path:
        return self.root / "ledger" / ("openai" if self.kind == "openai" else "vllm_tiny")

    def start(self, **environment: str) -> None:
        self.n_before = len(read_entries(self.ledger).answered)
        self.job = start_job(*self.command, script="generate", **environment)

    def wait_for(self, share: float, quiet_s: float = 0.0) -> None:
        """Wait until so much of the requests is answered, and some answers are in a log alone.

        Args:
            share: Of all requests, whatever run answered them.
            quiet_s: Seconds since the last answer, so that no roll is under way.
        """
        ledger = Ledger(Folder.at(self.ledger))

        def is_there() -> bool:
            if self.job.poll() is not None:
                pytest.fail(f"the run ended too early: {self.job.communicate()[1][-3000:]}")
            n = sum(completion.outcome.is_answer for completion in ledger.read()[0])
            return n > self.n_before and n >= share * self.n_requests and has_open_answers(self.ledger, quiet_s=quiet_s)

        wait_until(is_there, "enough requests are answered")

    def find_asking(self) -> tuple[list[psutil.Process], psutil.Process, list[psutil.Process]]:
        """Return the driver and all below it, and of these the one actor and its engine.

        Waits for them: an engine that died of itself is replaced, and the blow is to fall on one that lives.
        """
        driver = psutil.Process(self.job.pid)
        found: tuple[list[psutil.Process], list[psutil.Process], list[psutil.Process]] = ([], [], [])

        def all_live() -> bool:
            nonlocal found
            processes = [driver, *driver.children(recursive=True)]
            found = processes, choose(processes, "TeacherActor"), choose(processes, "EngineCore")
            return len(found[1]) == 1 and len(found[2]) == (self.kind == "vllm")

        if not all_live():
            died = [c["error"] for c in read_entries(self.ledger).completions if c["finish_reason"] == DIED]
            warnings.warn(f"of {found} the actor or its engine is missing; deaths so far: {died}", stacklevel=2)
            wait_until(all_live, "the actor has its engine")
        processes, (actor,), engines = found
        return processes, actor, engines

    def check_moment(self, entries: Entries) -> None:
        """Check that a kill came in the middle of the work."""
        share = len(entries.answered) / self.n_requests
        assert EARLY <= share <= LATE, f"killed when {share:.0%} were answered, which proves little"

    def kill_driver(self, share: float) -> Entries:
        """Kill the driver alone and wait for those that ask to follow it; return what stands on disk then."""
        self.wait_for(share)
        (driver, *others), actor, engines = self.find_asking()
        kill([driver])
        self.job.communicate()
        wait_until_gone([actor, *engines])
        kill(others)  # Ray's agents, which take a minute to miss their driver
        return self._look()

    def kill_everything(self, share: float) -> Entries:
        """Kill the driver and all that it had started at once, as a machine does that goes down."""
        self.wait_for(share, quiet_s=0.1)
        processes, _, _ = self.find_asking()
        kill(processes)
        self.job.communicate()
        wait_until_gone(processes)
        return self._look()

    def kill_actor(self, share: float) -> Entries:
        """Kill the process that holds the teacher; return what stood on disk before another could touch it."""
        self.wait_for(share)
        _, actor, engines = self.find_asking()
        kill([actor])
        wait_until_gone([actor])
        entries = self._look()
        wait_until_gone(engines)
        return entries

    def kill_engine(self, share: float) -> Entries:
        """Kill the engine below the actor, and wait until the actor has another; return what stood on disk before."""
        self.wait_for(share)
        _, actor, (engine,) = self.find_asking()
        kill([engine])
        entries = self._look()
        wait_until(
            lambda: {*choose(actor.children(recursive=True), "EngineCore")} - {engine}, "the actor has another engine"
        )
        return entries

    def _look(self) -> Entries:
        entries = read_entries(self.ledger)
        self.check_moment(entries)
        assert len(entries.in_flight) <= self.max_in_flight
        return entries

    def go_on(self) -> None:
        """Wait for the end of the run that is at work, and check what it leaves."""
        stdout, stderr = self.job.communicate(timeout=400)
        assert self.job.returncode == 0, stderr[-4000:]
        self._check_rows(Folder.at(read_result(stdout)))

    def run_again(self) -> None:
        """Run the command of a killed run to its end, and check what that leaves."""
        self._check_rows(Folder.at(read_result(run_job(*self.command, script="generate"))))

    def _check_rows(self, dataset: Folder) -> None:
        row_ids = dataset.read_table("examples.parquet")["row_id"].to_pylist()
        assert len(row_ids) == len(set(row_ids)), "rows stand there twice"
        counts = dataset.read_json("manifest.json")["counts"]
        assert counts["requests"] == self.n_requests
        accepted = {*dataset.read_table("examples.parquet")["request_id"].to_pylist()}
        ended = accepted | {*dataset.read_table("rejects.parquet")["request_id"].to_pylist()}
        assert ended == set(read_prompts(self.root).values()), "requests without an end"
        if self.expected_rows is not None:
            assert row_ids == self.expected_rows

    def check_paid_once(self, *killed: Entries, lost: Collection[Key] = ()) -> None:
        """Check that only what was in flight at a kill was paid again.

        Args:
            killed: What stood on disk after each kill.
            lost: What was answered, and is known to have been lost with its disk or in the last write.
        """
        final = read_entries(self.ledger)
        tries = Counter(key[:2] for key in final.answers)
        assert set(tries.values()) == {1}, "the same attempt was answered twice"
        for entries in killed:
            kept = {answer for answer in entries.answers if answer[:2] not in lost}
            assert kept <= final.answers, "answers are gone, or others stand in their place"
        if self.served is not None:
            may_repeat = {request_id for request_id, _ in {*lost}.union(*(entries.in_flight for entries in killed))}
            prompts = read_prompts(self.root)
            sent = Counter(prompts[line["prompt"]] for line in self.served.log() if not line["finished"])
            assert set(sent) == set(prompts.values())
            repeated = {request_id for request_id, n in sent.items() if n > 1}
            assert repeated <= may_repeat, "what was answered was sent again"
            assert sent.total() - self.n_requests <= sum(len(e.in_flight) for e in killed) + len(lost)

    def check_died(self, killed: Entries, in_flight: Collection[Key]) -> None:
        """Check that the ledger knows what was in flight when an actor died, each once, and nothing more.

        Args:
            killed: What stood on disk after the blow.
            in_flight: What the blow cut off.
        """
        final = read_entries(self.ledger)
        died = [c for c in final.completions if c["finish_reason"] == DIED]
        assert len(died) == len({(c["request_id"], c["attempt"], c["started_at"]) for c in died})
        assert final.died == killed.died | set(in_flight)


@contextmanager
def hold_merging(ledger: Path) -> Iterator[None]:
    """Keep a ledger's segments as they were written, by being the process that merges them."""
    ledger.mkdir(parents=True)
    with (ledger / "compact.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@pytest.fixture(scope="module")
def topics(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("topics") / "topics.txt"
    path.write_text("".join(f"Topic number {i}\n" for i in range(200)))
    return path


def ask_openai(topics: Path, root: Path, served: Served) -> Teaching:
    command = [
        "task=ambiguity", "data=topics", f"data.path={topics}", "teacher=openai", "teacher.model=sample",
        f"teacher.base_url={served.base_url}", "teacher.max_in_flight=16", "tracking=none", f"root={root}",
    ]  # fmt: skip
    return Teaching("openai", command, root, n_requests=200, max_in_flight=16, served=served)


def ask_vllm(root: Path) -> Teaching:
    command = [
        "task=ambiguity", "data.limit=120", "method.n_intents=1", "teacher=vllm_tiny", "teacher.max_in_flight=8",
        "tracking=none", f"root={root}",
    ]  # fmt: skip
    return Teaching("vllm", command, root, n_requests=120, max_in_flight=8)


@pytest.fixture(scope="module")
def undisturbed_rows(topics, tmp_path_factory) -> list[str]:
    """The row ids of a run that nothing disturbs; the endpoint's words depend on a request alone."""
    with serve() as served:
        teaching = ask_openai(topics, tmp_path_factory.mktemp("undisturbed"), served)
        dataset = read_result(run_job(*teaching.command, script="generate"))
    return Folder.at(dataset).read_table("examples.parquet")["row_id"].to_pylist()


VLLM = pytest.param("vllm", marks=pytest.mark.vllm)


@pytest.fixture(params=["openai", VLLM])
def teaching(request, tmp_path) -> Iterator[Teaching]:
    root = tmp_path / "runs"
    if request.param == "openai":
        expected = request.getfixturevalue("undisturbed_rows")
        with serve(latency_s=1.5) as served:
            teaching = ask_openai(request.getfixturevalue("topics"), root, served)
            teaching.expected_rows = expected
            yield from see_to_its_end(teaching)
    else:
        request.getfixturevalue("tiny_teacher")
        yield from see_to_its_end(ask_vllm(root))


def see_to_its_end(teaching: Teaching) -> Iterator[Teaching]:
    """Give a teaching to a test, and leave no process behind, whatever the test came to."""
    with hold_merging(teaching.ledger) if teaching.kind == "vllm" else nullcontext():
        yield teaching
    if teaching.job is not None and teaching.job.poll() is None:  # the test has failed
        driver = psutil.Process(teaching.job.pid)
        kill([driver, *driver.children(recursive=True)])
        teaching.job.communicate()


def test_a_killed_driver(teaching):
    teaching.start()
    killed = teaching.kill_driver(0.3)
    teaching.run_again()
    teaching.check_paid_once(killed)
    teaching.check_died(killed, ())


def test_a_killed_actor(teaching):
    teaching.start()
    killed = teaching.kill_actor(0.3)
    teaching.go_on()
    teaching.check_paid_once(killed)
    teaching.check_died(killed, killed.in_flight)


@pytest.mark.parametrize("teaching", [VLLM], indirect=True)
def test_a_killed_engine_is_replaced_in_its_actor(teaching):
    teaching.start()
    killed = teaching.kill_engine(0.3)
    teaching.go_on()
    teaching.check_paid_once(killed)
    died = read_entries(teaching.ledger).died
    assert died
    assert len(died) <= teaching.max_in_flight


def test_two_kills_in_a_row(teaching):
    teaching.start()
    first = teaching.kill_driver(0.27)
    teaching.start()
    second = teaching.kill_actor(max(0.5, len(first.answered) / teaching.n_requests + 0.05))
    teaching.go_on()
    teaching.check_paid_once(first, second)
    teaching.check_died(second, second.in_flight)


def test_a_machine_that_goes_down_in_the_middle_of_a_write(teaching):
    teaching.start()
    killed = teaching.kill_everything(0.3)
    torn = tear_last_answer(teaching.ledger)
    assert read_entries(teaching.ledger).answered == killed.answered - {torn}
    teaching.run_again()
    teaching.check_paid_once(killed, lost={torn})
    assert torn in read_entries(teaching.ledger).answered


def tear_last_answer(ledger: Path) -> Key:
    """Cut the newest log in the middle of its last answer; return which that was."""
    log = max(path for path in ledger.glob("open/*.log") if b'"request_id"' in path.read_bytes())
    content = log.read_bytes()
    start = content.rindex(b'{"request_id"')
    line = content[start:].split(b"\n")[0]
    log.write_bytes(content[: start + len(line) // 2])
    torn = json.loads(line)
    return torn["request_id"], torn["attempt"]


@pytest.fixture
def cluster() -> Iterator[Any]:
    """A head without CPUs and two workers, each with room for both actors."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        for _ in range(2):
            cluster.add_node(num_cpus=2)
        yield cluster
    finally:
        cluster.shutdown()


def find_host(cluster: Any) -> tuple[Any, list[psutil.Process]]:
    """Return a node that hosts an actor, and its processes."""
    for node in cluster.worker_nodes:
        raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
        processes = [raylet, *raylet.children(recursive=True)]
        if choose(processes, "TeacherActor"):
            return node, processes
    pytest.fail("no node hosts an actor")


@pytest.mark.parametrize(
    ("teaching", "disk"),
    [("openai", "kept"), ("openai", "lost"), pytest.param("vllm", "kept", marks=pytest.mark.vllm)],
    indirect=["teaching"],
)
def test_a_killed_node(teaching, cluster, disk):
    teaching.max_in_flight //= 2  # each of two actors
    teaching.command += [
        "root_is_shared=true",
        "scale.pool.actors=2",
        f"teacher.max_in_flight={teaching.max_in_flight}",
    ]
    teaching.start(RAY_ADDRESS=cluster.address)
    teaching.wait_for(0.25)
    node, processes = find_host(cluster)
    pids = {process.pid for process in processes}
    wait_until(lambda: has_open_answers(teaching.ledger, pids, quiet_s=0.1), "the node's logs hold answers")
    kill(processes)
    wait_until_gone(processes)
    cluster.remove_node(node, allow_graceful=False)
    killed, gone = read_entries(teaching.ledger), read_logs(teaching.ledger, pids)
    teaching.check_moment(killed)
    assert gone.completions, "the node had answered nothing that its disk could take along"
    assert len(gone.in_flight) <= teaching.max_in_flight
    if disk == "lost":
        for log in teaching.ledger.glob("open/*.log"):
            if int(log.name.split("-")[1]) in pids:
                log.unlink()
    teaching.go_on()
    if disk == "kept":
        teaching.check_paid_once(killed)
        teaching.check_died(killed, gone.in_flight)
    else:
        assert len(gone.answered) <= ROLL_ROWS, "more than the documents say"
        teaching.check_paid_once(killed, lost=gone.answered)
        teaching.check_died(killed, ())
