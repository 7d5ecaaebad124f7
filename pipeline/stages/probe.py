"""The probe of a plan: a few requests, drawn from those without an answer and asked like any others.

Its answers are in the ledger and are never paid for again. Which requests it had is a step that is made of the
ledger's state after it, so that the same command again finds it and asks nothing.
"""

import hashlib
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pydantic import Field, model_validator

from pipeline.cluster import Cluster
from pipeline.experiment import ExperimentConfig
from pipeline.identity import derive_seed
from pipeline.records import Request
from pipeline.stages.ask import Ask
from pipeline.steps import Outputs, Plan, Step, Steps
from pipeline.storage import Folder
from pipeline.teachers.efficiency import Session, summarize
from pipeline.teachers.histories import Histories
from pipeline.teachers.projection import allot

_PROBE = "probe.json"


class GenerateExperimentConfig(ExperimentConfig):
    """An experiment whose data sets are built, or planned."""

    plan: bool
    """Whether a probe alone is asked, and what the rest will take is projected."""
    probe_rows: int = Field(gt=1)
    """Requests of the probe, in turn from every arm and judge; of each at least two."""

    @model_validator(mode="after")
    def _check_plan(self) -> "GenerateExperimentConfig":
        if not self.plan:
            return self
        if self.replay:
            raise ValueError("plan: it shows what is unanswered, and `replay` has answered requests asked again")
        if not self.judges and not any(arm.teacher for arm in self.arms.values()):
            raise ValueError(f"plan: no teacher is asked, since no arm of {', '.join(self.arms)} has one")
        if deferred := [key for key, arm in self.arms.items() if arm.teacher and arm.teacher.is_deferred]:
            raise ValueError(
                f"plan: a probe by batch may take a day, and {', '.join(deferred)} would be asked so; plan with "
                "teacher=openai and the same label and model: its answers count for both. They cost the full price, "
                "and what it projects is at that price too: a batch takes teacher.batch.price_factor of it"
            )
        return self


@dataclass(frozen=True)
class Part:
    """What an arm or a judge asks that no part before it asks too."""

    stage: str
    """`teaching` or `judging`."""
    ask: Ask
    requests: Sequence[Request]

    @property
    def key(self) -> str:
        """The arm or judge."""
        return self.ask.key


@dataclass(frozen=True)
class Probe:
    """The probe of one part."""

    held: Mapping[str, int]
    """How many completions each of its requests had before, by request id."""
    session: Session


def part_asks(asks: Sequence[tuple[str, Ask]]) -> list[Part]:
    """Return what is asked by whom, each request with the first that asks it."""
    parts, seen = [], set()
    for stage, ask in asks:
        own = [request for request in ask.requests if (ask.teacher.label, request.request_id) not in seen]
        seen |= {(ask.teacher.label, request.request_id) for request in own}
        parts.append(Part(stage, ask, own))
    return parts


def run_probe(parts: Sequence[Part], experiment: GenerateExperimentConfig, steps: Steps, cluster: Cluster) -> Step:
    """Return the step that holds the probe, asked now unless the ledger is as a probe left it.

    Raises:
        TeacherError: A teacher left requests of the probe without an end.
    """
    histories = {part.key: part.ask.read() for part in parts}
    probes: dict[str, Probe] = {}

    def describe() -> dict[str, Any]:
        return {
            "config": {
                "rows": experiment.probe_rows,
                "seed": experiment.seed,
                "limits": {part.key: asdict(part.ask.limits) for part in parts},
            },
            "inputs": {
                **{f"requests {part.key}": part.ask.step.fingerprint for part in parts},
                **{f"completions {key}": _digest_tries(found) for key, found in histories.items()},
            },
            "code": (__name__,),
        }

    def produce(folder: Folder) -> Outputs:
        folder.write_json(_PROBE, {key: asdict(probe) for key, probe in probes.items()})
        return Outputs(counts={f"probed_{key}": len(probe.held) for key, probe in probes.items()})

    if steps.find(Plan("probe", produce, **describe())) is None:
        drawn = _draw(parts, experiment)
        for part in parts:
            held = {request.request_id: len(histories[part.key][request.request_id]) for request in drawn[part.key]}
            probes[part.key] = Probe(held, _ask(drawn[part.key], part, experiment, cluster))
        histories = {part.key: part.ask.read() for part in parts}
    return steps.run("probe", produce, arm="", **describe())


def read_probe(step: Step) -> dict[str, Probe]:
    """Return the probe by arm and judge."""
    found = step.folder.read_json(_PROBE)
    return {key: Probe(one["held"], Session(**one["session"])) for key, one in found.items()}


def _draw(parts: Sequence[Part], experiment: GenerateExperimentConfig) -> dict[str, list[Request]]:
    """Return the requests to probe by part: a simple random sample of those without an end."""
    missing = {}
    for part in parts:
        own = {request.request_id for request in part.requests}
        missing[part.key] = [request for request, _ in part.ask.find_missing() if request.request_id in own]
    counts = allot(experiment.probe_rows, [len(found) for found in missing.values()])
    return {
        key: random.Random(derive_seed(experiment.seed, "probe", key)).sample(found, count)
        for (key, found), count in zip(missing.items(), counts, strict=True)
    }


def _ask(requests: Sequence[Request], part: Part, experiment: GenerateExperimentConfig, cluster: Cluster) -> Session:
    if requests:
        return part.ask.teach(requests, len(requests), cluster)
    devices = part.ask.teacher.devices
    return summarize({}, requests=0, span_s=0.0, actors=experiment.scale.pool.actors, devices_per_actor=devices)


def _digest_tries(histories: Histories) -> str:
    said = hashlib.sha256()
    for request_id, history in sorted(histories.items()):
        said.update(repr((request_id, [(c.attempt, c.started_at) for c in history])).encode())
    return said.hexdigest()[:16]
