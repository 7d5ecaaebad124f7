"""What a request costs among 10,000, 100,000 and a million: written, planned, asked, compacted and read back.

`python -m benchmarks.growth` asks the offline teacher, which answers at once with 200 bytes, as an experiment asks: so
nearly all that is measured is ours. Each size is measured in a process of its own. Ray's start is left out of all that
is said of a request, and stands apart.
"""

import argparse
import hashlib
import json
import resource
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache, partial
from typing import Any

import psutil

from benchmarks.harness import Contestant, ContestantError, Figures, Ratio, report, run_alone, run_rounds, write_topics
from pipeline.cluster import Cluster
from pipeline.prompts.replies import read_reply
from pipeline.prompts.requests import make_request
from pipeline.prompts.schemas import record, text
from pipeline.records import Completion, Message, Outcome, Request, Seed
from pipeline.stages.ask import Ask, plan_ask, prepare_asks
from pipeline.steps import Steps
from pipeline.storage import Folder
from pipeline.teachers.ledger import Ledger
from pipeline.teachers.logs import try_lock
from tests.composing import compose_experiment, compose_task

MODULE = "benchmarks.growth"
SIZES = (10_000, 100_000, 1_000_000)
ONCE_FROM = 1_000_000
"""From this size on one round is enough: what varies from start to start is lost in it."""
TOPICS = 8_000
"""As many as there are; larger sizes number them."""
ANSWER_BYTES = 200
SAMPLE_S = 0.5
MB = 1e6


def write_requests(n: int) -> Iterator[Request]:
    """Yield requests for one short text each, as JSON."""
    topics = write_topics(TOPICS)
    for number in range(n):
        topic = f"{topics[number % TOPICS]}, no. {number}"
        messages = (
            Message("system", "You write realistic search queries. Reply with one JSON object and nothing else."),
            Message("user", f"Topic: {topic}\n\nWrite one query that can be answered as it stands."),
        )
        yield make_request(
            *(Seed(topic, topic, topic), (), messages, record(query=text(ANSWER_BYTES))),
            temperature=1.0,
            top_p=1.0,
            teacher={},
            run_seed=0,
        )


def reply(request: Request, seed: int) -> str:
    """Return 200 bytes that `judge` accepts, and that hardly compress."""
    noise = hashlib.shake_128(str(seed).encode()).hexdigest(ANSWER_BYTES)
    return f'{{"query": "{noise[: ANSWER_BYTES - 13]}"}}'


def judge(request: Request, completion: Completion) -> Outcome:
    """Judge a reply as tasks do, up to what they make of its value."""
    return read_reply(request, completion).outcome


class Stopwatch:
    """Seconds by what they went into."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def time(self, name: str) -> Iterator[None]:
        """Count the body's seconds."""
        started_at = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - started_at


class ActorWatch(threading.Thread):
    """Notes what CPU time the actor uses, and the most memory that it has for itself, shared pages left out."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.cpu_s = 0.0
        self.peak_bytes = 0
        self._ended = threading.Event()

    def __enter__(self) -> "ActorWatch":
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._ended.set()
        self.join()

    def run(self) -> None:
        """Look until the block ends."""
        actor: psutil.Process | None = None
        while not self._ended.wait(SAMPLE_S):
            try:
                actor = actor or find_actor()
                if actor is not None:
                    memory, times = actor.memory_info(), actor.cpu_times()
                    self.peak_bytes = max(self.peak_bytes, memory.rss - memory.shared)
                    self.cpu_s = times.user + times.system
            except psutil.NoSuchProcess:  # what it had used is noted
                actor = None


def find_actor() -> psutil.Process | None:
    """Return the process that holds the teacher, if it is there."""
    children = psutil.Process().children(recursive=True)
    return next((process for process in children if "TeacherActor" in " ".join(process.cmdline())), None)


def plan(n: int, steps: Steps) -> Ask:
    """Return what is asked, with what it is asked of found missing or there."""
    (arm,) = compose_experiment(["teacher=offline", "tracking=none"]).arms.values()
    assert arm.teacher is not None
    return plan_ask(
        "growth",
        arm.teacher,
        lambda: write_requests(n),
        config={"rows": n},
        made_of={},
        code=[],
        judge=judge,
        max_attempts=3,
        task=replace(compose_task("ambiguity"), reply_offline=reply),
        steps=steps,
    )


def describe(ledger: Ledger, n: int) -> tuple[int, float]:
    """Return how many segments a ledger has, and its bytes for each request."""
    sizes = [path.stat().st_size for path in ledger.segments.path.iterdir()]
    return len(sizes), sum(sizes) / n


def measure(n: int) -> Figures:
    """Return what so many requests took."""
    watch = Stopwatch()
    with tempfile.TemporaryDirectory() as folder:
        root = Folder.at(folder)
        scale = compose_experiment(["teacher=offline", "tracking=none"]).scale
        steps = Steps(root)
        with Cluster(scale, root, root_is_shared=False) as cluster, ActorWatch() as actor:
            with watch.time("cluster"):
                cluster.join()
            cpu_s = time.process_time()
            with watch.time("write"):
                ask = plan(n, steps)
            with watch.time("plan"):
                prepare_asks([ask], (), is_local=True)
            lock = ask.ledger.folder.path / "compact.lock"
            lock.parent.mkdir(parents=True)
            lock.touch()
            with try_lock(lock), watch.time("ask"):  # held, so that what the run leaves can be seen
                check(ask.complete(cluster), n)
            files, row_bytes = describe(ask.ledger, n)
            with watch.time("compact"):
                ask.ledger.compact()
            with watch.time("again"):
                again = plan(n, steps)
                prepare_asks([again], (), is_local=True)
                check(again.complete(cluster), n)
            files_compacted, row_bytes_compacted = describe(ask.ledger, n)
            (session,) = again.sessions()
            cpu_s = time.process_time() - cpu_s
    start_s = session.seconds["start"]
    cluster_s = watch.seconds.pop("cluster")
    watch.seconds["ask"] -= start_s
    return {
        "cluster_s": cluster_s,
        "start_s": start_s,
        **{f"{name}_ms_per_request": 1000 * seconds / n for name, seconds in watch.seconds.items()},
        "ms_per_request": 1000 * sum(watch.seconds.values()) / n,
        "driver_cpu_ms_per_request": 1000 * cpu_s / n,
        "actor_cpu_ms_per_request": 1000 * actor.cpu_s / n,
        "cpu_ms_per_request": 1000 * (cpu_s + actor.cpu_s) / n,
        "span_s": sum(watch.seconds.values()),
        "driver_peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / MB,
        "actor_peak_mb": actor.peak_bytes / MB,
        "files": files,
        "files_compacted": files_compacted,
        "bytes_per_request": row_bytes,
        "bytes_per_request_compacted": row_bytes_compacted,
    }


def check(histories: Any, n: int) -> None:
    """Check that each request has its one answer."""
    found = sum(len(history) == 1 for history in histories.values())
    if found != n:
        raise ContestantError(f"{found} of {n} requests have one answer")


def read_arguments() -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--only", type=int, help="measure this size in this process")
    return parser.parse_args()


def main() -> None:
    """Measure all sizes in turn, or the one that `--only` names."""
    arguments = read_arguments()
    if arguments.only:
        sys.stdout.write(json.dumps(measure(arguments.only)) + "\n")
        return
    names = {n: f"{n:.0e}".replace("e+0", "e") for n in arguments.sizes}
    contestants = []
    for n, name in names.items():
        measure_alone = partial(run_alone, MODULE, [f"--only={n}"])
        # What is measured once stands in every round.
        contestants.append(Contestant(name, cache(measure_alone) if n >= ONCE_FROM else measure_alone))
    rounds = run_rounds(contestants, arguments.rounds)
    first = names[arguments.sizes[0]]
    ratios = [
        Ratio(f"growth@{name}/{first}", "ms_per_request", name, first) for name in names.values() if name != first
    ]
    report("growth", rounds, ratios)


if __name__ == "__main__":
    main()
