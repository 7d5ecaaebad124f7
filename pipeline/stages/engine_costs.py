"""What each engine says and costs, each measured in a process of its own.

A process that holds another engine too would have its memory, and its threads would be in the way.
"""

import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import ExportError
from pipeline.evaluation.cost import CostConfig, measure_cost
from pipeline.students.engines import Engine, load_engine


@dataclass(frozen=True)
class EngineCost:
    """What one engine said and took."""

    logits: np.ndarray
    """(n_texts, n_classes)."""
    speed: dict[str, Any]
    """The fields of `evaluation.cost.Cost`."""
    peak_memory_mb: float | None
    """Of the whole process, Python and libraries included; None where the system doesn't tell."""
    cpu: str


def measure_engine(
    folder: Path, engine: Engine, texts: Sequence[str], n_timed: int, cost: CostConfig, threads: int
) -> EngineCost:
    """Return an engine's logits of some texts, and what it takes on the first `n_timed` of them.

    Raises:
        ExportError: The process failed.
    """
    with tempfile.TemporaryDirectory() as scratch:
        answer = Path(scratch) / "answer.json"
        question = {
            "folder": str(folder),
            "engine": engine,
            "texts": list(texts),
            "n_timed": n_timed,
            "cost": cost.model_dump(),
            "threads": threads,
            "answer": str(answer),
        }
        # Workers of a submitted job find this package by a path of theirs; tokenizers count their threads by the last.
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "RAYON_NUM_THREADS": str(threads)}
        command = [sys.executable, "-c", f"from {__name__} import _answer; _answer()"]
        done = subprocess.run(
            command, input=json.dumps(question), text=True, capture_output=True, env=environment, check=False
        )
        if done.returncode:
            raise ExportError(f"engine {engine} can't run {folder}: {done.stderr.strip()[-1000:]}")
        found = json.loads(answer.read_text())
    return EngineCost(np.array(found["logits"], np.float32), found["speed"], found["peak_memory_mb"], found["cpu"])


def _answer() -> None:
    """Measure what stands on stdin, in this process."""
    question = json.load(sys.stdin)
    texts, threads = question["texts"], question["threads"]
    score = load_engine(Path(question["folder"]), question["engine"], threads)
    cost = CostConfig.model_validate(question["cost"])
    speed = measure_cost(partial(_score_batch, score), texts[: question["n_timed"]], **cost.model_dump())
    logits = score(texts, cost.batch_size)
    found = {
        "logits": logits.tolist(),
        "speed": asdict(speed),
        "peak_memory_mb": read_peak_memory_mb(),
        "cpu": describe_cpu(),
    }
    Path(question["answer"]).write_text(json.dumps(found))


def _score_batch(score: Any, texts: list[str]) -> object:
    return score(texts, len(texts))


def read_peak_memory_mb() -> float | None:
    """Return the most memory that this process ever held, in MB; None where the system doesn't tell.

    Not `ru_maxrss`, in which a process also has what its parent held when it was started.
    """
    text = _find_in("/proc/self/status", "VmHWM")
    return None if text is None else int(text.split()[0]) * 1024 / 1e6


def describe_cpu() -> str:
    """Return this machine's processor and number of logical cores."""
    name = _find_in("/proc/cpuinfo", "model name") or platform.processor() or platform.machine()
    return f"{name}, {os.cpu_count()} logical cores"


def _find_in(path: str, key: str) -> str | None:
    """Return what a `key: value` line of a file of the kernel says; None where there is no such line or file."""
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return None
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(key)), None)
