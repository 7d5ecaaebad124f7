"""How fast an endpoint with limits and faults is asked when the teacher finds its concurrency, beside fixed ones.

Each shape of endpoint is asked by the adaptive teacher and by the same teacher with fixed numbers of open calls, which
nobody would know beforehand; the best of them is what counts. The teacher is asked without Ray: as many requests are
given to it at once as the pool would give, and asked again where the pool would. `python -m benchmarks.rate` lets all
contestants of a shape run at the same time, each with an endpoint of its own: they wait nearly all the time.
"""

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from benchmarks.endpoint_overhead import LIMITS, write_requests
from benchmarks.harness import ContestantError, Figures, Ratio, report, run_alone
from pipeline.config import validate
from pipeline.records import Outcome, Request
from pipeline.teachers.openai import OpenAITeacher
from pipeline.teachers.openai_config import OpenAIConfig

MODULE = "benchmarks.rate"
PROJECT = Path(__file__).parent.parent
CEILING = 64
"""The most that any contestant has open."""
OURS, BEST = "ours", "best_fixed"


@dataclass(frozen=True)
class Shape:
    """An endpoint with a difficulty of its own."""

    rows: int
    options: Mapping[str, float]
    """Of the endpoint, as in `tests.endpoint.Options`."""
    fixed: Sequence[int]
    """Open calls of the contestants whose concurrency is fixed."""


LATENCY = {"latency_spread": 0.5}
SHAPES = {
    "random_429": Shape(1000, {**LATENCY, "latency_s": 0.8, "rate_limited": 0.05, "retry_after_s": 0.2}, (32, 64)),
    "hard_limit": Shape(400, {**LATENCY, "latency_s": 0.4, "requests_per_s": 20}, (8, 12, 16, 32, 64)),
    "slow_start": Shape(1000, {**LATENCY, "latency_s": 0.4, "requests_per_s": 100, "rise_s": 20}, (16, 32, 64)),
    "outage": Shape(800, {**LATENCY, "latency_s": 0.8, "outage_at_s": 5, "outage_s": 30}, (32, 64)),
}


async def ask_all(config: OpenAIConfig, requests: Sequence[Request]) -> int:
    """Ask as the pool does; return how many requests ended without an answer."""
    teacher = OpenAITeacher(config, share=1.0)
    places = asyncio.Semaphore(config.max_in_flight or teacher.capacity)

    async def settle(request: Request) -> bool:
        for _ in range(LIMITS.max_tries):
            async with places:
                completion = await teacher.complete(request, 1)
            if completion.outcome is Outcome.OK:
                return True
        return False

    settled = await asyncio.gather(*(settle(request) for request in requests))
    await teacher.close()
    return settled.count(False)


def measure(shape: Shape, in_flight: int, *, is_adaptive: bool) -> Figures:
    """Return what one contestant took, by the times that the endpoint noted."""
    from tests.endpoint import OK, serve

    base: dict[str, Any] = yaml.safe_load((PROJECT / "conf" / "teacher" / "openai.yaml").read_text())
    with serve(**shape.options) as served:
        changes = {
            "base_url": served.base_url,
            "model": "sample",
            "max_in_flight": in_flight,
            "adaptive": is_adaptive,
        }
        n_lost = asyncio.run(ask_all(validate(OpenAIConfig, {**base, **changes}), write_requests(shape.rows)))
        lines = served.log()
    answers = [line["at"] for line in lines if line["finished"] and line["kind"] == OK]
    if len(answers) + n_lost != shape.rows:
        raise ContestantError(f"{len(answers)} answers and {n_lost} failures for {shape.rows} rows")
    calls = sum(not line["finished"] for line in lines)
    span_s = max(answers) - lines[0]["at"]
    return {
        "span_s": span_s,
        "refused_share": 1 - len(answers) / calls,
        "rows_without_answer": n_lost,
        "client_cpu_share": time.process_time() / span_s,
    }


def run_shape(name: str) -> dict[str, Figures]:
    """Return the figures of all contestants of a shape, and the fastest of the fixed ones once more."""
    contestants = {OURS: CEILING, **{f"fixed_{n}": n for n in SHAPES[name].fixed}}
    commands = [
        [f"--only={name}", f"--in-flight={n}", *(["--adaptive"] if contestant == OURS else [])]
        for contestant, n in contestants.items()
    ]
    with ThreadPoolExecutor(len(commands)) as threads:
        measured = list(threads.map(lambda command: run_alone(MODULE, command), commands))
    figures = {f"{contestant}@{name}": found for contestant, found in zip(contestants, measured, strict=True)}
    best = min((f"fixed_{n}" for n in SHAPES[name].fixed), key=lambda fixed: figures[f"{fixed}@{name}"]["span_s"])
    return {**figures, f"{BEST}@{name}": {**figures[f"{best}@{name}"], "in_flight": contestants[best]}}


def read_arguments() -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--only", choices=SHAPES, help="measure one contestant at this shape in this process")
    parser.add_argument("--in-flight", type=int, default=CEILING, help="with --only: calls that it may have open")
    parser.add_argument("--adaptive", action="store_true", help="with --only: it finds by itself how many")
    return parser.parse_args()


def main() -> None:
    """Measure all contestants at all shapes, or the one that `--only` names."""
    arguments = read_arguments()
    if arguments.only:
        figures = measure(SHAPES[arguments.only], arguments.in_flight, is_adaptive=arguments.adaptive)
        sys.stdout.write(json.dumps(figures) + "\n")
        return
    rounds: list[dict[str, Figures]] = [{} for _ in range(arguments.rounds)]
    for measured in rounds:
        for name in arguments.shapes:
            measured |= run_shape(name)
    ratios = [Ratio(f"{OURS}/{BEST}@{name}", "span_s", f"{OURS}@{name}", f"{BEST}@{name}") for name in arguments.shapes]
    report("rate", rounds, ratios)


if __name__ == "__main__":
    main()
