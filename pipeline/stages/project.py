"""From what would be asked to what it will take: requests are counted, a few are asked, the rest is projected."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any

import yaml

from pipeline.cluster import Cluster
from pipeline.identity import digest
from pipeline.records import Completion, Outcome, Request
from pipeline.report.html import read_templates
from pipeline.report.plan import render_plan
from pipeline.stages.ask import Ask, prepare_asks
from pipeline.stages.generate import plan_arms
from pipeline.stages.inputs import Inputs
from pipeline.stages.judge import plan_questions
from pipeline.stages.probe import GenerateExperimentConfig, Part, Probe, part_asks, read_probe, run_probe
from pipeline.steps import Outputs, Step, Steps, versions
from pipeline.storage import Folder
from pipeline.teachers.efficiency import describe_efficiency
from pipeline.teachers.kinds import make_pace, size_prompts
from pipeline.teachers.projection import (
    CONFIDENCE,
    Estimate,
    Pace,
    Probed,
    Projection,
    add,
    add_up,
    estimate_bad_replies,
    project,
)

PLAN, PLAN_PAGE = "plan.json", "plan.html"
TEACHING, JUDGING = "teaching", "judging"
_CODE = ("pipeline.teachers.projection", "pipeline.teachers.kinds", "pipeline.report.plan", "pipeline.report.html")


def plan_spending(experiment: GenerateExperimentConfig, inputs: Inputs, steps: Steps, cluster: Cluster) -> Step:
    """Return the step that says what the experiment's teachers and judges will take, having asked a probe of them.

    Raises:
        ConfigError: A teacher that has to be asked lacks its key or its engine.
        TeacherError: A teacher left requests of the probe without an end.
    """
    asks = [(TEACHING, ask) for ask in plan_arms(experiment, inputs, steps, cluster).values()]
    asks += [(JUDGING, plan_questions(key, experiment, inputs, steps)) for key in experiment.judges]
    prepare_asks([ask for _, ask in asks], experiment.replay, is_local=experiment.scale.address is None)
    parts = part_asks(asks)
    probe = run_probe(parts, experiment, steps, cluster)
    probed = read_probe(probe)
    actors = experiment.scale.pool.actors
    paces = {part.key: make_pace(part.ask.teacher, actors, probed[part.key].session) for part in parts}

    def produce(folder: Folder) -> Outputs:
        described = [_describe(part, probed[part.key], paces[part.key]) for part in parts]
        found = {
            "experiment": experiment.name,
            "confidence": CONFIDENCE,
            "parts": [_to_plain(part) for part in described],
            "total": _to_plain(_sum_up(described)),
        }
        folder.write_json(PLAN, found)
        config = yaml.safe_dump(experiment.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
        folder.write_text(PLAN_PAGE, render_plan(found, config, versions()))
        n_to_come = sum(part["to_come"]["requests"] for part in described)
        return Outputs(counts={"requests": sum(len(part.requests) for part in parts), "to_come": n_to_come})

    return steps.run(
        "plan",
        produce,
        arm="",
        config={
            "name": experiment.name,
            "prices": {part.key: part.ask.teacher.price for part in parts},
            "paces": {key: [one.slots, one.requests_per_minute, one.tokens_per_minute] for key, one in paces.items()},
            "templates": digest(read_templates()),
        },
        inputs={"probe": probe.fingerprint},
        code=[*_CODE, __name__],
    )


def _describe(part: Part, probe: Probe, pace: Pace) -> dict[str, Any]:
    """Return what a part holds, what its probe came to and what is to come."""
    ask, teacher = part.ask, part.ask.teacher
    histories = ask.read()
    missing = {request.request_id for request, _ in ask.find_missing()}
    to_come = [request for request in part.requests if request.request_id in missing]
    by_id = {request.request_id: request for request in part.requests}
    asked = [by_id[request_id] for request_id in probe.held]
    sizes = size_prompts(teacher, [*asked, *to_come])
    probed = [
        _read_probed(ask, request, size, histories[request.request_id][probe.held[request.request_id] :])
        for request, size in zip(asked, sizes, strict=False)
    ]
    projection = project(probed, sizes[len(asked) :], ask.limits, teacher.price, pace)
    completions = [c for request in part.requests for c in histories[request.request_id]]
    outcomes = [outcome for one in probed for outcome in one.outcomes]
    n_held = len(part.requests) - len(to_come)
    held = {
        "requests": n_held,
        "calls": len(completions),
        "prompt_tokens": sum(c.n_prompt_tokens for c in completions),
        "completion_tokens": sum(c.n_completion_tokens for c in completions),
        "usd": describe_efficiency(completions, 0, n_held, ask.sessions(), teacher.price)["usd"],
    }
    return {
        "stage": part.stage,
        "key": part.key,
        "teacher": teacher.label,
        "requests": len(part.requests),
        "asked_elsewhere": len(ask.requests) - len(part.requests),
        "probe": {
            "requests": len(probed),
            "accepted": sum(one.outcomes[-1] is Outcome.OK for one in probed),
            "calls": len(outcomes),
        },
        "bad_replies": estimate_bad_replies(outcomes),
        "held": held,
        "to_come": {"requests": len(to_come), **_to_dict(projection)},
        "in_all": {
            name: _raise(getattr(projection, name), held[name])
            for name in ("calls", "prompt_tokens", "completion_tokens")
        },
        "prompts": _show_prompts(part.requests),
    }


def _read_probed(ask: Ask, request: Request, size: float, completions: Sequence[Completion]) -> Probed:
    return Probed(size, completions, [ask.judge(request, completion) for completion in completions])


def _sum_up(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return sums over parts; of money those that have prices, and who has none."""
    names = tuple(field.name for field in fields(Projection))
    known = {name: [p["to_come"][name] for p in parts if p["to_come"][name] is not None] for name in names}
    # The ends of times are all of one kind, so they don't make up for each other.
    sums = {name: add_up if name in ("time_s", "device_s") else add for name in names}
    return {
        "requests": sum(part["requests"] for part in parts),
        "held": {
            name: sum(found) if (found := [p["held"][name] for p in parts if p["held"][name] is not None]) else None
            for name in parts[0]["held"]
        },
        "to_come": {
            "requests": sum(part["to_come"]["requests"] for part in parts),
            **{name: sums[name](found) if found else None for name, found in known.items()},
        },
        "in_all": {name: add(part["in_all"][name] for part in parts) for name in names[:3]},
        "unpriced": [part["key"] for part in parts if part["to_come"]["usd"] is None],
    }


def _show_prompts(requests: Sequence[Request]) -> list[dict[str, Any]]:
    """Return the first request of each kind: of each label, where seeds have labels."""
    first: dict[str, Request] = {}
    for request in requests:
        first.setdefault(request.seed.label, request)
    return [
        {
            "label": label,
            "messages": [asdict(message) for message in request.messages],
            "response_schema": request.response_schema,
            "max_new_tokens": request.max_new_tokens,
        }
        for label, request in first.items()
    ]


def _to_dict(projection: Projection) -> dict[str, Estimate | None]:
    return {field.name: getattr(projection, field.name) for field in fields(projection)}


def _raise(estimate: Estimate, amount: float) -> Estimate:
    return Estimate(estimate.value + amount, estimate.low + amount, estimate.high + amount)


def _to_plain(value: Any) -> Any:
    match value:
        case Estimate():
            return asdict(value)
        case dict():
            return {key: _to_plain(item) for key, item in value.items()}
        case list():
            return [_to_plain(item) for item in value]
    return value
