"""Asking a teacher: from requests to completions, for the arms' rows and for direct judgements alike."""

import logging
import random
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from typing import Any, Protocol

from pipeline.cluster import Cluster
from pipeline.identity import digest
from pipeline.quality.watch import NO_WATCH, Look, WatchConfig
from pipeline.records import Outcome, Request, Seed
from pipeline.stages.watch import read_looks, watching
from pipeline.steps import Outputs, Step, Steps
from pipeline.storage import Folder
from pipeline.stored import StoredRecords, write_records
from pipeline.teachers.efficiency import Session
from pipeline.teachers.histories import Histories, History, Unsettled, find_unsettled, read_ids
from pipeline.teachers.kinds import AnyTeacherConfig, check_teacher, make_teacher
from pipeline.teachers.ledger import Ledger
from pipeline.teachers.plan import Judge, Limits, Position, locate
from pipeline.teachers.pool import teach

LOG = logging.getLogger(__name__)
_REQUESTS = "requests.parquet"
# In the ledger, like the answers, and not with the step, which new code makes anew.
_REPLAYS, _REDRAWS, _SESSIONS, _LOOKS = "replays", "redraws", "sessions", "looks"


class Asking(Protocol):
    """Whose requests are asked; a task is one."""

    @property
    def name(self) -> str:
        """Part of the requests' identity."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """What else can change the requests."""

    @property
    def code(self) -> Sequence[str]:
        """Modules that can change them."""

    @property
    def reply_offline(self) -> Callable[[Request, int], str]:
        """The offline teacher's answer to a request, under a seed."""


@dataclass(frozen=True)
class Ask:
    """What is asked of one teacher, and how its answers are judged."""

    key: str
    """Names it in messages: an arm or a judge."""
    teacher: AnyTeacherConfig
    """Pinned."""
    requests: Sequence[Request]
    step: Step
    """That made the requests."""
    ledger: Ledger
    judge: Judge
    limits: Limits
    reply_offline: Callable[[Request, int], str]
    earlier: tuple[str, ...] = ()
    """Digests of the requests that these took the place of, where seeds were redrawn."""

    def replays(self) -> Counter[str]:
        """Return how many rounds each request was granted besides its first."""
        folder = self.ledger.folder / _REPLAYS
        return Counter(request_id for name in folder.names(".json") for request_id in folder.read_json(name))

    def sessions(self) -> list[Session]:
        """Return what asking came to, each time that something was missing; a killed run's is not among them."""
        folder = self._sessions
        return [Session(**folder.read_json(name)) for name in folder.names(".json")]

    def remember(self, session: Session) -> None:
        """Keep what asking came to."""
        self._sessions.write_json(f"{time.time_ns()}.json", asdict(session))

    def read(self) -> Histories:
        """Return what the ledger holds, each history up to the request's end.

        What lies behind that, left by another experiment with more attempts, is not this one's.
        """
        return Histories(self.requests, self.ledger, partial(self._until_settled, self.replays()))

    def find_missing(self) -> Unsettled:
        """Return the requests that still need the teacher."""
        histories = Histories(self.requests, self.ledger)
        return find_unsettled(self.requests, histories, self.judge, self.limits, self.replays())

    def grant_replays(self, reasons: Collection[Outcome]) -> int:
        """Grant another round to every request that ended for one of these reasons; return how many there are."""
        histories, missing = self.read(), {request.request_id for request, _ in self.find_missing()}
        granted = [
            request.request_id
            for request in self.requests
            if request.request_id not in missing and self.judge(request, histories[request.request_id][-1]) in reasons
        ]
        if granted:
            (self.ledger.folder / _REPLAYS).write_json(f"{time.time_ns()}.json", granted)
        return len(granted)

    def redraw(self, spare: Sequence[Seed], seed: int) -> int:
        """Draw spare seeds in place of those that nothing was asked about, and keep the draw; return how many.

        Args:
            spare: What is drawn from; what is or was asked about is left out, so that draws come to an end.
            seed: Of the draw.
        """
        seeds = {request.seed.seed_id: request.seed for request in self.requests}
        if drawn := [one for one in self.read_redraw() if one.seed_id not in seeds]:
            return len(drawn)  # by another run that asks the same
        histories = self.read()
        asked = {request.seed.seed_id for request in self.requests if histories[request.request_id]}
        unasked = [seed_id for seed_id in seeds if seed_id not in asked]
        known = {*seeds, *(one.seed_id for requests in self.earlier for one in self._read_redraw(requests))}
        others = [one for one in spare if one.seed_id not in known]
        n_drawn = min(len(unasked), len(others))
        if n_drawn:
            for seed_id in unasked[-n_drawn:]:
                del seeds[seed_id]
            drawn = random.Random(seed).sample(others, n_drawn)
            write_records(Seed, [*seeds.values(), *drawn], self._redraws, _name_redraw(self.digest))
        return n_drawn

    def read_redraw(self) -> Sequence[Seed]:
        """Return the seeds to ask about in place of these, after a `redraw`; empty: there was none."""
        return self._read_redraw(self.digest)

    def _read_redraw(self, requests: str) -> Sequence[Seed]:
        name = _name_redraw(requests)
        return StoredRecords(Seed, self._redraws, name)[:] if self._redraws.exists(name) else ()

    def complete(self, cluster: Cluster, watch: WatchConfig = NO_WATCH) -> Histories:
        """Return all completions, having asked for those that were missing.

        Args:
            cluster: Where the teacher is asked.
            watch: How its answers are watched meanwhile.

        Raises:
            TeacherError: The teacher left requests without an end, or a rule of the watch stopped it; a
                `RepetitionError` where that was the one about answers that are too much alike.
        """
        if missing := self.find_missing():
            self.teach(self.requests, len(missing), cluster, watch)
        return self.read()

    def teach(
        self, requests: Sequence[Request], n_missing: int, cluster: Cluster, watch: WatchConfig = NO_WATCH
    ) -> Session:
        """Bring some requests to their ends; return what that came to, which is also kept.

        Args:
            requests: Those with an end are left out.
            n_missing: How many have none.
            cluster: Where the teacher is asked.
            watch: How its answers are watched meanwhile.

        Raises:
            TeacherError: The teacher left requests without an end, or a rule of the watch stopped it; a
                `RepetitionError` where that was the one about answers that are too much alike.
        """
        pool = cluster.config.pool
        cluster.check_room(f"{self.teacher.label}: teacher.{{}}s", cpus=self.teacher.cpus, gpus=self.teacher.gpus)
        with (
            cluster.progress(f"teach {self.key}", "requests", n_missing) as report,
            watching(self.key, requests, self.ledger, self.judge, watch, self._looks, report.stop),
        ):
            session = teach(
                requests,
                self.ledger,
                self.teacher,
                partial(make_teacher, self.teacher, self.reply_offline, pool.actors, self.ledger),
                self.judge,
                self.limits,
                pool,
                replays=self.replays(),
                report=report,
                show_state=report.show,
                find_stop=report.find_stop,
            )
        self.remember(session)
        return session

    def looks(self) -> list[Look]:
        """Return what was seen of the answers while they came, the oldest first."""
        folders = [self.ledger.folder / _LOOKS / requests for requests in (*self.earlier, self.digest)]
        return [look for folder in folders for look in read_looks(folder)]

    @property
    def _redraws(self) -> Folder:
        return self.ledger.folder / _REDRAWS

    @property
    def _sessions(self) -> Folder:
        return self.ledger.folder / _SESSIONS / self.digest

    @property
    def _looks(self) -> Folder:
        return self.ledger.folder / _LOOKS / self.digest

    @cached_property
    def digest(self) -> str:
        """What identifies the requests."""
        return digest(read_ids(self.requests).sort().to_pylist())

    def _until_settled(self, replays: Mapping[str, int], request: Request, history: History) -> History:
        start = Position(replays=replays.get(request.request_id, 0))
        for end in range(1, len(history) + 1):
            if locate(request, history[:end], self.judge, self.limits, start).settled:
                return history[:end]
        return history


def _name_redraw(requests: str) -> str:
    return f"{requests}.parquet"


def plan_ask(
    key: str,
    teacher: AnyTeacherConfig,
    write_requests: Callable[[], Iterable[Request]],
    *,
    config: Mapping[str, Any],
    made_of: Mapping[str, str],
    code: Sequence[str],
    judge: Judge,
    max_attempts: int,
    task: Asking,
    steps: Steps,
) -> Ask:
    """Return what is asked of a teacher, its requests written by a step of their own.

    Args:
        key: The arm or judge.
        teacher: Pinned.
        write_requests: Called where the step is not there yet.
        config: All settings that can change the requests, besides the task.
        made_of: Names and digests of what they are made of.
        code: The caller's modules that can change them, besides the task's.
        judge: What parsing makes of a completion.
        max_attempts: Attempts at one request, in one round.
        task: Whose requests they are.
        steps: Where the step runs or is found.
    """

    def produce(folder: Folder) -> Outputs:
        return Outputs(counts={"requests": write_records(Request, write_requests(), folder, _REQUESTS)})

    step = steps.run(
        "requests",
        produce,
        arm=key,
        config={"task": task.name, "task_settings": task.settings, **config},
        inputs=made_of,
        code=[*task.code, *code],
    )
    return Ask(
        key=key,
        teacher=teacher,
        requests=StoredRecords(Request, step.folder, _REQUESTS),
        step=step,
        ledger=Ledger.of(steps.root, teacher.label),
        judge=judge,
        limits=Limits(max_attempts, teacher.max_tries),
        reply_offline=task.reply_offline,
    )


def prepare_asks(asks: Sequence[Ask], replay: Collection[Outcome], is_local: bool) -> None:
    """Grant replays, and find mistakes in the teachers that have to be asked before the first of them is.

    Args:
        asks: What is to be asked.
        replay: Requests that ended so are to be asked again.
        is_local: Whether actors run on this machine.

    Raises:
        ConfigError: A key, an engine or one of its arguments is missing or wrong, or a request can't be asked.
    """
    for ask in asks:
        if replay:
            n_granted = ask.grant_replays(replay)
            LOG.info("replay %s: %d of %d requests ended so and are asked again", ask.key, n_granted, len(ask.requests))
        if missing := ask.find_missing():
            check_teacher(ask.teacher, (request for request, _ in missing), is_local)
