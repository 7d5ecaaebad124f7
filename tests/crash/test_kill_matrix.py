"""`kill -9` of every kind of process while a teacher is asked: nothing is lost, nothing doubled, nothing paid twice.

What was paid is counted where no reader of the ledger can hide it: at the endpoint's own log, and for the engine in
the ledger's files as they lie there, which the tests keep from being merged.
"""

import fcntl
import json
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
    find_processes,
    is_alive,
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


def read_entries(ledger: Path, pids: Collection[int] | None = None) -> Entries:
    """Return what stands in a ledger's files.

    Args:
        ledger: Its folder.
        pids: Writers of the logs to read; None reads all logs, and the segments.
    """
    logs = [log for log in ledger.glob("open/*.log") if pids is None or int(log.name.split("-")[1]) in pids]
    found = [read_log_lines(log) for log in sorted(logs)]
    completions = [completion for entries in found for completion in entries.completions]
    in_flight = {key for entries in found for key in entries.in_flight}
    if pids is None:
        completions += [row for path in ledger.glob("segments/*.parquet") for row in pq.read_table(path).to_pylist()]
    return Entries(completions, in_flight - Entries(completions, set()).answered)


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

    @property
    def ledger(self) -> Path:
        return self.root / "ledger" / ("openai" if self.kind == "openai" else "vllm_tiny")

    def start(self, **environment: str) -> psutil.Process:
        """Start the command; return the driver's process."""
        self.job = start_job(*self.command, script="generate", **environment)
        return psutil.Process(self.job.pid)

    def wait_for(self, share: float) -> None:
        """Wait until so much of the requests is answered, well or badly."""
        ledger = Ledger(Folder.at(self.ledger))

        def is_there() -> bool:
            if self.job.poll() is not None:
                pytest.fail(f"the run ended too early: {self.job.communicate()[1][-3000:]}")
            return len(ledger.read()[0]) >= share * self.n_requests

        wait_until(is_there, f"{share:.0%} of the requests are answered")

    def check_moment(self, entries: Entries) -> None:
        """Check that a kill came in the middle of the work."""
        share = len(entries.answered) / self.n_requests
        assert EARLY <= share <= LATE, f"killed when {share:.0%} were answered, which proves little"

    def kill_driver(self) -> Entries:
        """Kill the driver alone and wait for those that ask to follow it; return what stands on disk then."""
        driver = psutil.Process(self.job.pid)
        processes = find_processes(driver)
        asking = [*find_processes(driver, "TeacherActor"), *find_processes(driver, "EngineCore")]
        assert asking
        self.job.kill()
        self.job.communicate()
        wait_until_gone(asking)
        kill(processes)  # Ray's agents, which take a minute to miss their driver
        return self._look()

    def kill_everything(self) -> Entries:
        """Kill the driver and all that it had started at once, as a machine does that goes down."""
        driver = psutil.Process(self.job.pid)
        processes = [driver, *find_processes(driver)]
        kill(processes)
        self.job.communicate()
        wait_until_gone(processes)
        return self._look()

    def kill_actor(self) -> Entries:
        """Kill the process that holds the teacher; return what stood on disk before another could touch it."""
        (actor,) = find_processes(psutil.Process(self.job.pid), "TeacherActor")
        engines = find_processes(actor, "EngineCore")
        assert len(engines) == (self.kind == "vllm")
        kill([actor])
        wait_until_gone([actor])
        entries = self._look()
        wait_until_gone(engines)
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

    def check_died(self, in_flight: Collection[Key]) -> None:
        """Check that what was in flight when an actor or its engine died is known, and is no more than that."""
        died = [c for c in read_entries(self.ledger).completions if c["finish_reason"] == DIED]
        assert {(c["request_id"], c["attempt"]) for c in died} == set(in_flight)


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
        "task=ambiguity", "data.limit=60", "method.n_intents=1", "teacher=vllm_tiny", "teacher.max_in_flight=8",
        "tracking=none", f"root={root}",
    ]  # fmt: skip
    return Teaching("vllm", command, root, n_requests=60, max_in_flight=8)


@pytest.fixture(scope="module")
def undisturbed_rows(topics, tmp_path_factory) -> list[str]:
    """The row ids of a run that nothing disturbs; the endpoint's words depend on a request alone."""
    with serve() as served:
        teaching = ask_openai(topics, tmp_path_factory.mktemp("undisturbed"), served)
        dataset = read_result(run_job(*teaching.command, script="generate"))
    return Folder.at(dataset).read_table("examples.parquet")["row_id"].to_pylist()


@pytest.fixture(params=["openai", pytest.param("vllm", marks=pytest.mark.vllm)])
def teaching(request, tmp_path) -> Iterator[Teaching]:
    root = tmp_path / "runs"
    if request.param == "openai":
        expected = request.getfixturevalue("undisturbed_rows")
        with serve(latency_s=0.6) as served:
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
    if teaching.job is not None and teaching.job.poll() is None:
        driver = psutil.Process(teaching.job.pid)
        kill([driver, *find_processes(driver)])
        teaching.job.communicate()


def test_a_killed_driver(teaching):
    teaching.start()
    teaching.wait_for(0.3)
    killed = teaching.kill_driver()
    teaching.run_again()
    teaching.check_paid_once(killed)
    teaching.check_died(())


def test_a_killed_actor(teaching):
    teaching.start()
    teaching.wait_for(0.3)
    killed = teaching.kill_actor()
    teaching.go_on()
    teaching.check_paid_once(killed)
    teaching.check_died(killed.in_flight)


@pytest.mark.parametrize("teaching", [pytest.param("vllm", marks=pytest.mark.vllm)], indirect=True)
def test_a_killed_engine_is_replaced_in_its_actor(teaching):
    driver = teaching.start()
    teaching.wait_for(0.3)
    (actor,) = find_processes(driver, "TeacherActor")
    (engine,) = find_processes(actor, "EngineCore")
    kill([engine])
    killed = read_entries(teaching.ledger)
    teaching.check_moment(killed)
    teaching.wait_for(0.9)
    assert is_alive(actor)
    assert [other for other in find_processes(actor, "EngineCore") if other != engine]
    teaching.go_on()
    teaching.check_paid_once(killed)
    died = [c for c in read_entries(teaching.ledger).completions if c["finish_reason"] == DIED]
    assert 0 < len(died) <= teaching.max_in_flight


def test_two_kills_in_a_row(teaching):
    teaching.start()
    teaching.wait_for(0.27)
    first = teaching.kill_driver()
    teaching.start()
    teaching.wait_for(max(0.5, len(first.answered) / teaching.n_requests + 0.05))
    second = teaching.kill_actor()
    teaching.go_on()
    teaching.check_paid_once(first, second)
    teaching.check_died(second.in_flight)


def test_a_machine_that_goes_down_in_the_middle_of_a_write(teaching):
    teaching.start()
    teaching.wait_for(0.3)
    teaching.kill_everything()
    torn = tear_last_answer(teaching.ledger)
    killed = read_entries(teaching.ledger)
    assert torn not in killed.answered
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


@dataclass
class Nodes:
    """A cluster of a head without CPUs and two workers, each with room for both actors."""

    cluster: Any

    def find_host(self) -> tuple[Any, list[psutil.Process]]:
        """Return a node that hosts an actor, and its processes."""
        for node in self.cluster.worker_nodes:
            raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
            if find_processes(raylet, "TeacherActor"):
                return node, [raylet, *find_processes(raylet)]
        pytest.fail("no node hosts an actor")


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        for _ in range(2):
            cluster.add_node(num_cpus=2)
        yield Nodes(cluster)
    finally:
        cluster.shutdown()


def has_answers(ledger: Path, pids: Collection[int]) -> bool:
    with suppress(FileNotFoundError):  # rolled meanwhile
        return bool(read_entries(ledger, pids).completions)
    return False


@pytest.mark.parametrize("disk", ["kept", "lost"])
def test_a_killed_node(teaching, nodes, disk):
    teaching.max_in_flight //= 2  # each of two actors
    teaching.command += [
        "root_is_shared=true",
        "scale.pool.actors=2",
        f"teacher.max_in_flight={teaching.max_in_flight}",
    ]
    teaching.start(RAY_ADDRESS=nodes.cluster.address)
    teaching.wait_for(0.3)
    node, processes = nodes.find_host()
    pids = {process.pid for process in processes}
    wait_until(lambda: has_answers(teaching.ledger, pids), "the log of an actor has answers that are in no segment")
    kill(processes)
    wait_until_gone(processes)
    nodes.cluster.remove_node(node, allow_graceful=False)
    killed, gone = read_entries(teaching.ledger), read_entries(teaching.ledger, pids)
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
        teaching.check_died(gone.in_flight)
    else:
        assert len(gone.answered) <= ROLL_ROWS
        teaching.check_paid_once(killed, lost=gone.answered)
        teaching.check_died(())
