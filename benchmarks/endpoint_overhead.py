"""What asking an endpoint through the pool costs, beside a bare client that asks the same.

Both ask an endpoint on this machine that answers after a fixed time, with as many requests in flight: once without
faults, and once with those of a bad day, where both ask again by the same rules. `python -m
benchmarks.endpoint_overhead` runs them in turn; the times of requests and answers are those that the endpoint noted.
"""

import argparse
import asyncio
import json
import random
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import psutil
import yaml

from benchmarks.harness import (
    Contestant,
    ContestantError,
    Figures,
    Ratio,
    report,
    run_alone,
    run_rounds,
    write_topics,
)
from pipeline.config import validate
from pipeline.prompts.replies import read_reply
from pipeline.prompts.requests import make_request
from pipeline.prompts.schemas import record, text
from pipeline.records import Completion, Message, Outcome, Request, Seed
from pipeline.teachers.openai import OpenAITeacher, write_body
from pipeline.teachers.openai_config import OpenAIConfig
from pipeline.teachers.pace import compute_wait
from pipeline.teachers.plan import Limits
from pipeline.teachers.teacher import Teacher

MODULE = "benchmarks.endpoint_overhead"
PROJECT = Path(__file__).parent.parent
ENDPOINT = "tests.endpoint"
FAULTS = {"rate_limited": 0.05, "broken": 0.02, "malformed": 0.03, "truncated": 0.01}
"""Shares of the requests that meet each."""
RETRY_AFTER_S = 0.2
LOGICAL_CPUS = 4
LIMITS = Limits(max_attempts=3, max_tries=3)
SAMPLE_S = 0.1


@dataclass(frozen=True)
class Work:
    """What one contestant has to do."""

    config: OpenAIConfig
    requests: Sequence[Request]
    in_flight: int


def write_requests(rows: int) -> list[Request]:
    """Return seeded requests for one short text each, as JSON."""
    requests = []
    for topic in write_topics(rows):
        messages = (
            Message("system", "You write realistic search queries. Reply with one JSON object and nothing else."),
            Message("user", f"Topic: {topic}\n\nWrite one query that can be answered as it stands."),
        )
        requests.append(
            make_request(
                *(Seed(topic, topic, topic), (), messages, record(query=text(200))),
                temperature=1.0,
                top_p=1.0,
                teacher={},
                run_seed=0,
            )
        )
    return requests


def judge(request: Request, completion: Completion) -> Outcome:
    """Judge a reply as tasks do, up to what they make of its value."""
    return read_reply(request, completion).outcome


def ask_barely(work: Work) -> None:
    """Ask through aiohttp alone, and ask again where ours does."""
    asyncio.run(_ask_barely(work))


async def _ask_barely(work: Work) -> None:
    import aiohttp

    places = asyncio.Semaphore(work.in_flight)
    url = f"{work.config.base_url}/chat/completions"

    async def post(request: Request, attempt: int) -> tuple[str, str]:
        body, jitter = write_body(work.config, request, attempt), random.Random(request.request_id)
        for n_retries in range(work.config.max_retries + 1):
            async with session.post(url, json=body) as response:
                content = await response.read()
            if response.status == 200:
                choice = json.loads(content)["choices"][0]
                return choice["message"]["content"], choice["finish_reason"]
            await asyncio.sleep(compute_wait(response.headers.get("Retry-After", ""), n_retries, jitter))
        raise ContestantError(f"no answer after {work.config.max_retries + 1} calls")

    async def settle(request: Request) -> None:
        async with places:
            for attempt in range(1, LIMITS.max_attempts + 1):
                content, finish_reason = await post(request, attempt)
                if finish_reason == "stop" and _is_json(content):
                    return

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        await asyncio.gather(*(settle(request) for request in work.requests))


def make_teacher(config: OpenAIConfig) -> Teacher:
    """Return the teacher; called inside the actor."""
    return OpenAITeacher(config, share=1.0)


def teach_through_ray(work: Work) -> Figures:
    """Teach, with a ledger on disk and with progress, as an experiment does."""
    import ray

    from pipeline.cluster import Report
    from pipeline.progress import Tally
    from pipeline.storage import Folder
    from pipeline.teachers.ledger import Ledger
    from pipeline.teachers.pool import PoolConfig, teach

    started_at = time.time()
    ray.init(
        address="local", num_cpus=LOGICAL_CPUS, include_dashboard=False, log_to_driver=False, logging_level="error"
    )
    tally = ray.remote(num_cpus=0)(Tally).remote()
    ray.get(tally.totals.remote())
    called_at = time.time()
    with tempfile.TemporaryDirectory() as root:
        teach(
            work.requests,
            Ledger.of(Folder.at(root), work.config.label),
            work.config,
            partial(make_teacher, work.config),
            judge,
            LIMITS,
            PoolConfig(actors=1),
            report=Report(tally),
        )
    return {"cluster_s": called_at - started_at, "called_at": called_at}


CONTESTANTS: dict[str, Callable[[Work], Figures | None]] = {"raw": ask_barely, "ours": teach_through_ray}


class CpuWatch(threading.Thread):
    """Notes what CPU time this process and those below it have used, from when requests come until the block ends.

    `client` is whoever asks: this process, and the actor that holds the teacher. `cluster` is the rest of Ray.
    """

    def __init__(self, log: Path) -> None:
        super().__init__(daemon=True)
        self._log = log
        self._ended = threading.Event()
        self._times: list[float] = []
        self._used_s: dict[str, list[float]] = {"client": [], "cluster": [], "endpoint": []}

    def __enter__(self) -> "CpuWatch":
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self.join()

    def run(self) -> None:
        """Note CPU times until the block ends."""
        while not self._log.exists() or not self._log.stat().st_size:
            if self._ended.wait(SAMPLE_S / 10):
                return
        # Listed once, now that all are there: to list processes costs more than to read their times.
        own = psutil.Process()
        processes = [(process, _name_role(process)) for process in [own, *own.children(recursive=True)]]
        used_s = {process.pid: 0.0 for process, _ in processes}
        while not self._ended.wait(SAMPLE_S):
            for process, _ in processes:
                try:
                    times = process.cpu_times()
                except psutil.NoSuchProcess:  # it keeps what it had used
                    continue
                used_s[process.pid] = times.user + times.system
            self._times.append(time.time())
            for role, noted in self._used_s.items():
                noted.append(sum(used_s[process.pid] for process, its_role in processes if its_role == role))

    def measure(self, start: float, end: float) -> dict[str, float]:
        """Return the CPU seconds of each role between two moments."""
        used_s = {role: np.interp([start, end], self._times, noted) for role, noted in self._used_s.items()}
        return {role: float(after - before) for role, (before, after) in used_s.items()}


def _name_role(process: psutil.Process) -> str:
    command = " ".join(process.cmdline())
    if process.pid == psutil.Process().pid or "TeacherActor" in command:
        return "client"
    return "endpoint" if ENDPOINT in command else "cluster"


def measure(name: str, rows: int, in_flight: int, latency_s: float, faults: bool) -> Figures:
    """Return what one contestant took, by the times that the endpoint noted."""
    from tests.endpoint import serve

    base: dict[str, Any] = yaml.safe_load((PROJECT / "conf" / "teacher" / "openai.yaml").read_text())
    options: dict[str, Any] = {"latency_s": latency_s, **(FAULTS | {"retry_after_s": RETRY_AFTER_S} if faults else {})}
    with serve(**options) as served:
        changes = {"base_url": served.base_url, "model": "sample", "max_in_flight": in_flight}
        work = Work(validate(OpenAIConfig, {**base, **changes}), write_requests(rows), in_flight)
        with CpuWatch(served.path) as watch:
            told = dict(CONTESTANTS[name](work) or {})
        lines = served.log()
    prompts = {line["prompt"] for line in lines}
    if len(prompts) != rows:
        raise ContestantError(f"{len(prompts)} of {rows} rows were asked")
    first, last = lines[0]["at"], max(line["at"] for line in lines if line["finished"])
    answers = sum(line["finished"] for line in lines)
    used_s = watch.measure(first, last)
    if "called_at" in told:
        told["first_request_s"] = first - told.pop("called_at")
    return {
        **told,
        "span_s": last - first,
        "requests_per_s": answers / (last - first),
        "ideal_share": answers / (last - first) / (in_flight / latency_s),
        **{f"{role}_cpu_ms_per_row": 1000 * seconds / rows for role, seconds in used_s.items()},
    }


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def read_arguments() -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--latency-ms", type=float, default=100, help="that every answer takes")
    parser.add_argument("--in-flight", type=int, default=64)
    parser.add_argument("--only", choices=CONTESTANTS, help="measure this one in this process")
    parser.add_argument("--faults", action="store_true", help="with --only: on the endpoint of a bad day")
    return parser.parse_args()


def main() -> None:
    """Measure both, with and without faults, or the one that `--only` names."""
    arguments = read_arguments()
    if arguments.only:
        latency_s = arguments.latency_ms / 1000
        figures = measure(arguments.only, arguments.rows, arguments.in_flight, latency_s, arguments.faults)
        sys.stdout.write(json.dumps(figures) + "\n")
        return
    shared = [f"--{name}={getattr(arguments, name.replace('-', '_'))}" for name in ("rows", "latency-ms", "in-flight")]
    contestants = [
        Contestant(f"{name}@{endpoint}", partial(run_alone, MODULE, [f"--only={name}", *flags, *shared]))
        for endpoint, flags in (("endpoint", []), ("endpoint-faults", ["--faults"]))
        for name in CONTESTANTS
    ]
    ratios = [
        Ratio("ours/raw@endpoint", "requests_per_s", "ours@endpoint", "raw@endpoint"),
        Ratio("ours/raw@endpoint-faults", "span_s", "ours@endpoint-faults", "raw@endpoint-faults"),
    ]
    report("endpoint_overhead", run_rounds(contestants, arguments.rounds), ratios)


if __name__ == "__main__":
    main()
