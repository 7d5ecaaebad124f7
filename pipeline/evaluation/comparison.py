"""The entries of `comparison.json`: one for each arm, student, benchmark, setting and measure.

Every number in it is finite. `estimate` refuses items on which a measure is undefined and `write_comparison` refuses
what is not finite, so the file holds neither NaN, which is no JSON, nor nulls that a reader would have to ask about.
"""

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass

from pipeline.evaluation.bootstrap import Estimate
from pipeline.storage import Folder

COMPARISON = "comparison.json"


@dataclass(frozen=True, slots=True)
class Entry:
    """One number of the comparison, with its 95 % interval over items and seeds."""

    arm: str
    """The arm's config key, or the baseline's name."""
    student: str | None
    """The student's config key; None for a baseline."""
    data: str
    """The digest of the one data set trained on; empty where there was none, or several (`length`)."""
    benchmark: str
    setting: str
    measure: str
    value: float
    """The mean over seeds."""
    low: float
    high: float
    n: int
    """Test items."""
    seed_sd: float | None = None
    """Standard deviation of the measure over seeds; None with one."""


def to_entries(
    estimates: Iterable[Estimate], *, arm: str, student: str | None, data: str, benchmark: str, setting: str
) -> list[Entry]:
    """Return estimates as entries of one arm, student, benchmark and setting."""
    return [Entry(arm, student, data, benchmark, setting, **asdict(estimate)) for estimate in estimates]


def sort_entries(entries: Iterable[Entry]) -> list[Entry]:
    """Return entries by benchmark, setting, arm, student (baselines first) and measure, each in alphabetical order."""
    return sorted(entries, key=_combination)


def write_comparison(folder: Folder, entries: Iterable[Entry]) -> None:
    """Write entries, sorted, as `comparison.json`.

    Raises:
        ValueError: A combination of arm, student, benchmark, setting and measure is there twice, or a number is not
            finite.
    """
    ordered = sort_entries(entries)
    for combination, n in Counter(_combination(entry) for entry in ordered).items():
        if n > 1:
            raise ValueError(f"{COMPARISON}: {n} entries for {' / '.join(combination)}; each may be there once")
    for entry in ordered:
        if not all(math.isfinite(number) for number in (entry.value, entry.low, entry.high)):
            raise ValueError(f"{COMPARISON}: {entry} is not finite; JSON has no such number")
    folder.write_json(COMPARISON, [asdict(entry) for entry in ordered])


def _combination(entry: Entry) -> tuple[str, str, str, str, str]:
    return entry.benchmark, entry.setting, entry.arm, entry.student or "", entry.measure
