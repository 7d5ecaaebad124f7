"""Watching a teacher's answers while more of them come: what is looked at, told and kept, and when it is stopped."""

import logging
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import asdict

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import RepetitionError, TeacherError
from pipeline.quality.watch import LOOKS, Breach, Look, WatchConfig, describe_look, find_breach, look
from pipeline.records import Completion, Outcome, Request, from_table
from pipeline.storage import Folder
from pipeline.stored import take
from pipeline.teachers.histories import read_ids
from pipeline.teachers.ledger import Ledger
from pipeline.teachers.plan import Judge

LOG = logging.getLogger(__name__)


class Watch:
    """Looks at what a ledger gets of some requests, from the moment it is made."""

    def __init__(
        self, key: str, requests: Sequence[Request], ledger: Ledger, judge: Judge, config: WatchConfig
    ) -> None:
        """Begin; the oldest completions that are there already, if they make a sample, are what later ones are held to.

        Args:
            key: Names in messages who is asked.
            requests: Whose completions are looked at.
            ledger: Where they come to.
            judge: What parsing makes of a completion.
            config: How much is looked at, and the rules.

        Raises:
            StorageError: The ledger can't be read.
        """
        self.looks: list[Look] = []
        self._key, self._requests, self._ledger, self._judge, self._config = key, requests, ledger, judge, config
        self._ids = read_ids(requests)
        ledger.recover()  # or what a dead writer left would come later, and seem new
        parts, self._seen = ledger.read_tables(None, self._find_oldest, with_logs=False)
        _, first = self._find_oldest(pa.concat_tables([oldest for _, oldest in parts]))
        self._new = [first.slice(0, 0)]
        self._done = sum(n_known for n_known, _ in parts)
        self._draws = random.Random(0)
        judged = self._judge_all(first) if first.num_rows == config.sample else []
        self._first = [text for outcome, text in judged if outcome is Outcome.OK]

    def look(self) -> Breach | None:
        """Look at what is new, where that is enough for a sample; return what has to stop the teacher, if anything.

        Raises:
            StorageError: The ledger can't be read.
        """
        tables, self._seen = self._ledger.read_tables(self._seen, self._select, with_logs=False, with_merged=False)
        self._new += tables
        new = pa.concat_tables(self._new)
        if new.num_rows < self._config.sample:
            return None
        self._new = [new.slice(0, 0)]
        self._done += new.num_rows
        sample = new.take(sorted(self._draws.sample(range(new.num_rows), self._config.sample)))
        answers = self._judge_all(sample)
        found, texts = look(answers, self._first, at=time.time(), done=self._done)
        self._first = self._first or texts
        self.looks.append(found)
        LOG.info("watch %s: %s", self._key, describe_look(found))
        return find_breach(found, self._config, answers)

    def _judge_all(self, completions: pa.Table) -> list[tuple[Outcome, str]]:
        rows = pc.index_in(completions["request_id"], self._ids).to_pylist()
        return [
            (self._judge(request, completion), completion.text)
            for request, completion in zip(take(self._requests, rows), from_table(Completion, completions), strict=True)
        ]

    def _select(self, table: pa.Table) -> pa.Table:
        return table.filter(pc.is_in(table["request_id"], self._ids))

    def _find_oldest(self, table: pa.Table) -> tuple[int, pa.Table]:
        known = self._select(table)
        return known.num_rows, known.sort_by("started_at").slice(0, self._config.sample)


@contextmanager
def watching(
    key: str,
    requests: Sequence[Request],
    ledger: Ledger,
    judge: Judge,
    config: WatchConfig,
    folder: Folder,
    stop: Callable[[str], None],
) -> Iterator[None]:
    """Watch while the body runs, from a thread of its own, and keep what was seen.

    Args:
        key: As of `Watch`.
        requests: As of `Watch`.
        ledger: As of `Watch`.
        judge: As of `Watch`.
        config: As of `Watch`; with how long to wait between looks.
        folder: Where the looks are kept.
        stop: Called once, with the reason, where a rule is broken.

    Raises:
        RepetitionError: The body ended with an error of the teacher, stopped because its answers are too much alike.
    """
    if config.interval_s is None:
        yield
        return
    watch, finished, interval_s = Watch(key, requests, ledger, judge, config), threading.Event(), config.interval_s

    def run() -> Breach | None:
        while not finished.wait(interval_s):
            if breach := watch.look():
                stop(f"{key}: {breach.reason}")
                return breach
        return None

    def tell(running: Future[Breach | None]) -> None:
        if error := running.exception():
            stop(f"{key}: its answers can't be watched: {error}")

    with ThreadPoolExecutor(1) as executor:
        running = executor.submit(run)
        running.add_done_callback(tell)
        try:
            yield
        except TeacherError as error:
            finished.set()
            if (breach := running.result()) and breach.is_repetition:
                raise RepetitionError(str(error)) from error
            raise
        finally:
            finished.set()
            wait([running])
            if watch.looks:
                folder.write_json(f"{time.time_ns()}.json", [asdict(found) for found in watch.looks])
        running.result()


def read_looks(folder: Folder) -> list[Look]:
    """Return all looks that were kept in a folder, the oldest first."""
    return [Look(**values) for name in folder.names(".json") for values in folder.read_json(name)]


def tabulate_looks(looks: Sequence[Look]) -> pa.Table:
    """Return looks as a table."""
    return pa.Table.from_pylist([asdict(found) for found in looks], LOOKS)


def trace_looks(looks: Sequence[Look]) -> list[tuple[str, int, float, float]]:
    """Return looks as (metric, completions so far, value, Unix time), for tracking."""
    return [
        (f"watch/{name}", found.done, value, found.at)
        for found in looks
        for name, value in asdict(found).items()
        if name in ("reject_rate", "distinct_2", "relative_distinct_2") and value is not None
    ]
