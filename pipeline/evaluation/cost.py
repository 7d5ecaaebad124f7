"""What a prediction costs: latency of single rows, and throughput in full batches.

They are two figures because one does not follow from the other: wall time per row of a large batch, often published
as latency, says nothing of how long one request waits. A third is the latency of single requests that wait among
others, which is all that is known where many were asked at once.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from math import ceil

import numpy as np
from pydantic import Field

from pipeline.config import Config


class CostConfig(Config):
    """How speed is measured."""

    batch_size: int = Field(gt=0)
    """Rows per call when measuring throughput."""
    n_warmup: int = Field(ge=0)
    """Untimed calls before each of the two measurements."""
    n_single: int = Field(gt=0)
    """Timed calls of one row, which give the latency."""


@dataclass(frozen=True, slots=True)
class Cost:
    """Speed of one student, with what it was measured on."""

    latency_p50_ms: float
    latency_p95_ms: float
    throughput_rows_per_s: float
    batch_size: int
    n_single: int


def measure_cost(
    predict: Callable[[list[str]], object],
    texts: Sequence[str],
    batch_size: int,
    n_warmup: int,
    n_single: int,
    *,
    clock: Callable[[], float] = time.perf_counter,
) -> Cost:
    """Return the latency of `n_single` calls with one text each, and the throughput in batches of `batch_size`.

    Texts are used in turn, and again from the first where there are too few. Throughput is over all texts,
    the last batch filled up, so that every batch has the stated size.

    Args:
        predict: Takes texts to results in host memory. On a GPU that is what makes it wait for the device; a function
            that returns device tensors is timed too short.
        texts: Real inputs, since time depends on their length.
        batch_size: Texts per call when measuring throughput.
        n_warmup: Untimed calls before each of the two measurements.
        n_single: Timed calls with one text.
        clock: Seconds since some moment.

    Raises:
        ValueError: There are no texts.
    """
    if not texts:
        raise ValueError("measuring speed needs texts to predict, got none")

    def time_calls(size: int, n_calls: int) -> list[float]:
        rows = cycle(texts)
        durations_s = []
        for _ in range(n_warmup + n_calls):
            batch = list(islice(rows, size))
            started_at = clock()
            predict(batch)
            durations_s.append(clock() - started_at)
        return durations_s[n_warmup:]

    p50_s, p95_s = np.percentile(time_calls(1, n_single), (50, 95))
    n_batches = ceil(len(texts) / batch_size)
    rows_per_s = n_batches * batch_size / sum(time_calls(batch_size, n_batches))
    return Cost(1000 * float(p50_s), 1000 * float(p95_s), rows_per_s, batch_size, n_single)


@dataclass(frozen=True, slots=True)
class LoadedLatency:
    """Latency of single requests while others were in flight."""

    latency_p50_ms: float
    latency_p95_ms: float
    n_in_flight: int
    """Median over requests of how many were in flight once they had been sent, themselves included."""
    n_single: int


def describe_latency(started_at: Sequence[float], latency_s: Sequence[float]) -> LoadedLatency:
    """Return the latency of requests that were asked side by side, and how many of them there were at a time.

    Args:
        started_at: When each was sent, in seconds since some moment; at least one.
        latency_s: Seconds until its answer.
    """
    starts, latencies = np.asarray(started_at), np.asarray(latency_s)
    n_sent = np.searchsorted(np.sort(starts), starts, side="right")
    n_answered = np.searchsorted(np.sort(starts + latencies), starts, side="right")
    p50_s, p95_s = np.percentile(latencies, (50, 95))
    n_in_flight = round(float(np.median(n_sent - n_answered)))
    return LoadedLatency(1000 * float(p50_s), 1000 * float(p95_s), n_in_flight, len(latencies))
