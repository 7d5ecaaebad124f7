"""The benchmarks of the ambiguity task, and any that a site brings, as values.

Only `evaluate` opens a benchmark's test items, besides the leakage check and MAUVE's reference. Another rule for the
labels is another benchmark with another name, so that no table mixes two.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from importlib import resources

from pydantic import Field, model_validator

from pipeline.errors import ConfigError, SourceError
from pipeline.records import GoldItem
from pipeline.sources import ambignq, clariq
from pipeline.sources.data import DataConfig
from pipeline.sources.downloads import SourceFile, check_present, find_missing, find_wrong
from pipeline.sources.labelled import RowsConfig, read_labelled
from pipeline.sources.streams import is_pattern
from pipeline.sources.tables import Location, read_rows


@dataclass(frozen=True)
class Benchmark:
    """A test set: its files, how they are read, and what must come out."""

    name: str
    """As in every table."""
    files: tuple[SourceFile, ...]
    read: Callable[[Location], list[GoldItem]]
    """Gives the items under a root whose files are known to be there."""
    test_splits: tuple[str, ...]
    dev_splits: tuple[str, ...] = ()
    """What the setting `dev-selected` may select on; under `standard` these are test items like the others."""
    counts: Mapping[str, int] = field(default_factory=dict)
    """Items per label that the whole benchmark must have; empty: unknown."""

    def is_present(self, root: Location) -> bool:
        """Return whether all its files are under the root, right or wrong."""
        return not find_missing(self.files, root)

    def load(self, root: Location) -> list[GoldItem]:
        """Return all items of all splits.

        Raises:
            SourceError: A file is missing (says what to put where), broken, or not the one expected.
        """
        check_present(self.files, root)
        wrong = find_wrong(self.files, root)
        try:
            items = self.read(root)
        except SourceError as error:
            # A wrong file may be wrong in a way that says more than a checksum, such as a missing column.
            raise SourceError("\n".join([str(error), *wrong])) from error
        if wrong:
            raise SourceError("\n".join(wrong))
        found = Counter(item.label for item in items)
        if self.counts and found != Counter(self.counts):
            raise SourceError(f"{self.name}: expected {dict(self.counts)} items, found {dict(found)}")
        return items


class BenchmarkConfig(DataConfig, RowsConfig):
    """A site's own benchmark: labelled rows, all of them test."""

    name: str = Field(min_length=1)
    sha256: str | None = Field(pattern="^[0-9a-f]{64}$")
    """Of the file; null: not checked."""

    @model_validator(mode="after")
    def _check_sha256(self) -> "BenchmarkConfig":
        if self.sha256 is not None and len(self.files) != 1:
            raise ValueError("sha256 is of one file, and `path` names none, several or a pattern; set sha256 to null")
        return self

    @property
    def files(self) -> list[str]:
        """The files that are named one by one; empty: they are known once they are looked for."""
        return [] if any(map(is_pattern, self.paths)) else self.paths


def site_benchmark(config: BenchmarkConfig) -> Benchmark:
    """Return a site's own file as a benchmark, to be loaded with the config's root.

    Raises:
        ConfigError: The name is one of the benchmarks known here.
    """
    if config.name in BENCHMARKS:
        raise ConfigError(f"benchmark name {config.name!r} is taken; give that of {', '.join(config.path)} another one")

    def read(root: Location) -> list[GoldItem]:
        return [GoldItem(row.row_id, row.text, row.label, "test") for row in read_labelled(config, root)]

    files = tuple(SourceFile(path, config.sha256 or "") for path in config.files)
    return Benchmark(config.name, files, read, test_splits=("test",))


def read_handwritten(root: Location) -> list[GoldItem]:
    """Return our own 60 search queries, which come with the package; the root does not matter."""
    columns = {name: name for name in ("item_id", "query", "label")}
    sample = resources.files("pipeline.sources") / "samples" / "handwritten_60.tsv"
    with resources.as_file(sample) as path:
        rows = read_rows(path, columns)
    return [GoldItem(row["item_id"], row["query"], row["label"], "test") for _, row in rows]


def find_benchmark(name: str) -> Benchmark:
    """Return the benchmark of that name.

    Raises:
        ConfigError: There is none; the message lists the names.
    """
    if name not in BENCHMARKS:
        raise ConfigError(f"no benchmark {name!r}; known: {', '.join(BENCHMARKS)}; a site's own needs path and columns")
    return BENCHMARKS[name]


def _ambignq(name: str, rule: ambignq.Rule, n_ambiguous: int) -> Benchmark:
    read = partial(ambignq.read_ambignq_dev, rule=rule)
    counts = {"ambiguous": n_ambiguous, "clear": 2002 - n_ambiguous}
    return Benchmark(name, (ambignq.DEV,), read, test_splits=("dev",), counts=counts)


BENCHMARKS: dict[str, Benchmark] = {
    benchmark.name: benchmark
    for benchmark in (
        Benchmark(
            "ClariQ",
            clariq.FILES,
            clariq.read_clariq,
            test_splits=("test",),
            dev_splits=("train", "dev"),
            counts={"ambiguous": 262, "clear": 37},
        ),
        _ambignq("AmbigNQ", "any", 1172),
        _ambignq("AmbigNQ-majority", "majority", 1002),
        _ambignq("AmbigNQ-all", "all", 1002),
        Benchmark(
            "Handwritten-60",
            (),
            read_handwritten,
            test_splits=("test",),
            counts={"ambiguous": 30, "clear": 30},
        ),
    )
}
OFFICIAL_FILES = (*clariq.FILES, ambignq.DEV, ambignq.TRAIN)
"""What `ray_jobs/fetch.py` gets."""
