"""Progress of long work: rows done, rate, time left and whatever else is counted, on stderr.

A terminal gets one line that rewrites itself; a log file or a job's output gets a line every few seconds.
"""

import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import SimpleNamespace

DONE = "done"
"""The count that progress is measured by; all others but the next are shown as they are."""
TOKENS = "tokens"
"""The count that is shown as a rate."""

STATE_LIFETIME_S = 15.0
"""A state that was not told again for so long is that of a worker which ended, or died."""

_LOG_INTERVAL_S = 5.0
_UNCHANGED_INTERVAL_S = 60.0
_TERMINAL_INTERVAL_S = 0.5


class Tally:
    """Counts that many workers add to, and a word to stop them. Becomes a Ray actor on a cluster, or works as it is."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._states: dict[str, tuple[float, Mapping[str, int]]] = {}
        self._stop = ""

    def add(self, counts: Mapping[str, int]) -> None:
        """Add some counts."""
        self._counts.update(counts)

    def show(self, worker: str, state: Mapping[str, int]) -> None:
        """Note how things stand at a worker, instead of what it told before; to be told again while it lasts."""
        self._states[worker] = (time.monotonic(), state)

    def totals(self) -> dict[str, int]:
        """Return all counts so far, and the sum of the states that hold now."""
        totals, now = self._counts.copy(), time.monotonic()
        for told_at, state in self._states.values():
            if now - told_at < STATE_LIFETIME_S:
                totals.update(state)
        return dict(totals)

    def stop(self, reason: str) -> None:
        """Say why all workers should end."""
        self._stop = reason

    def find_stop(self) -> str:
        """Return why workers should end; empty: they should go on."""
        return self._stop


def describe_progress(stage: str, unit: str, counts: Mapping[str, int], total: int, elapsed_s: float) -> str:
    """Return one line such as `teach: 60/120 requests, 12.0/s, 5 s left, schema_mismatch 2`."""
    done = counts.get(DONE, 0)
    rate = done / elapsed_s if elapsed_s > 0 else 0.0
    parts = [f"{done:,}/{total:,} {unit}", f"{rate:,.1f}/s" if rate >= 1 or not rate else f"{60 * rate:,.1f}/min"]
    if done >= total:
        parts.append(f"took {_duration(elapsed_s)}")
    elif rate > 0:
        parts.append(f"{_duration((total - done) / rate)} left")
    if counts.get(TOKENS) and elapsed_s > 0:
        parts.append(f"{counts[TOKENS] / elapsed_s:,.0f} tokens/s")
    parts += [f"{name} {count:,}" for name, count in sorted(counts.items()) if name not in (DONE, TOKENS) and count]
    return f"{stage}: " + ", ".join(parts)


@contextmanager
def show_progress(stage: str, unit: str, total: int, totals: Callable[[], Mapping[str, int]]) -> Iterator[None]:
    """Show progress while the body runs, asking `totals` for the counts from a thread of its own."""
    stream = sys.stderr
    rewrites = stream.isatty()
    started, finished = time.monotonic(), threading.Event()

    last = SimpleNamespace(at=started, counts={})

    def show(end: str) -> None:
        counts, now = totals(), time.monotonic()
        is_told = bool(end) and counts.get(DONE, 0) >= total
        is_fresh = is_told or (not end and now - last.at < _UNCHANGED_INTERVAL_S)
        if not rewrites and counts == last.counts and is_fresh:
            return
        last.counts, last.at = counts, now
        line = describe_progress(stage, unit, counts, total, now - started)
        stream.write(f"\r\x1b[K{line}{end}" if rewrites else f"{line}\n")
        stream.flush()

    def watch() -> None:
        while not finished.wait(_TERMINAL_INTERVAL_S if rewrites else _LOG_INTERVAL_S):
            show("")

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        finished.set()
        watcher.join()
        show("\n")


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
