"""Judges: teachers that say the label of every benchmark item themselves, and stand beside the students.

A judge is asked like the teacher of an arm, through the ledger, so that no item is paid for twice. Its evaluation is
made of its answers, and also holds what they cost.
"""

import logging
from dataclasses import asdict, dataclass, replace
from math import exp
from typing import Any

from pipeline.cluster import Cluster
from pipeline.evaluation.cost import describe_latency
from pipeline.evaluation.decisions import STANDARD, to_predictions
from pipeline.experiment import ExperimentConfig
from pipeline.identity import digest
from pipeline.prompts.replies import read_choice
from pipeline.prompts.requests import make_request
from pipeline.prompts.templates import digest_templates
from pipeline.records import Completion, Outcome, Prediction, Request, Seed
from pipeline.stages.ask import Ask, plan_ask, prepare_asks
from pipeline.stages.dataset import EFFICIENCY
from pipeline.stages.evaluate import COST, judge, run_evaluation
from pipeline.stages.inputs import Gold, Inputs
from pipeline.steps import Outputs, Step, Steps
from pipeline.storage import Folder
from pipeline.tasks.task import Judging, Task
from pipeline.teachers.efficiency import describe_efficiency
from pipeline.teachers.histories import Histories, digest_answers
from pipeline.teachers.kinds import AnyTeacherConfig, pin_teacher
from pipeline.teachers.spending import divide_spending

LOG = logging.getLogger(__name__)
_CODE = ("pipeline.prompts.replies", __name__)


@dataclass(frozen=True, slots=True)
class Judgement:
    """What a judge says of one text."""

    label: str
    """The task's `fallback` where no usable word was said."""
    score: float
    """Probability of the positive word, or else the one said, among the words asked for; 1 or 0 where the engine gave
    none."""
    is_decided: bool
    """Whether a usable word was said."""


def evaluate_judges(experiment: ExperimentConfig, inputs: Inputs, steps: Steps, cluster: Cluster) -> list[Step]:
    """Return the evaluation step of each judge, having asked whatever the ledger did not know.

    Raises:
        ConfigError: A teacher that has to be asked lacks its key or its engine.
        TeacherError: A teacher left requests without an end.
    """
    asks = [plan_questions(key, experiment, inputs, steps) for key in experiment.judges]
    prepare_asks(asks, experiment.replay, is_local=experiment.scale.address is None)
    return [_evaluate(ask, ask.complete(cluster), experiment, inputs, steps) for ask in asks]


def plan_questions(key: str, experiment: ExperimentConfig, inputs: Inputs, steps: Steps) -> Ask:
    """Return what a judge is asked: each text of the benchmarks once.

    Raises:
        ConfigError: There is no such model.
    """
    config, task, judging = experiment.judges[key], inputs.task, _get_judging(inputs.task)
    teacher, identity = pin_teacher(config.teacher, offline_code=())
    texts = sorted({item.text for gold in inputs.gold.values() for item in gold.items})

    def write_requests() -> list[Request]:
        return [
            make_request(
                Seed(digest(text), text, group=digest(text)),
                (),
                judging.write(text, config.prompt),
                schema=None,
                choices=tuple(judging.choices.values()),
                temperature=config.sampling.temperature,
                top_p=config.sampling.top_p,
                teacher=identity,
                run_seed=experiment.seed,
            )
            for text in texts
        ]

    return plan_ask(
        key,
        teacher,
        write_requests,
        config={"choices": judging.choices, "sampling": config.sampling, "seed": experiment.seed},
        made_of={
            "texts": digest(texts),
            "template": digest_templates([judging.templates[config.prompt]]),
            "teacher": digest(identity),
        },
        code=[__name__],
        judge=judge_completion,
        max_attempts=config.max_attempts,
        task=task,
        steps=steps,
    )


def judge_completion(request: Request, completion: Completion) -> Outcome:
    """Return whether one of the words asked for is said."""
    return read_choice(request, completion).outcome


def read_judgement(request: Request, completion: Completion, task: Task) -> Judgement:
    """Return what a judge's last completion for an item says."""
    judging = _get_judging(task)
    labels = {word: label for label, word in judging.choices.items()}
    reply = read_choice(request, completion)
    is_decided = reply.outcome is Outcome.OK
    label = labels[reply.value] if is_decided else judging.fallback
    ranked = label if task.positive is None else task.positive
    logprobs = completion.choice_logprobs
    if not logprobs:
        return Judgement(label, float(label == ranked), is_decided)
    # Shifted by the largest: endpoints give -9999 for what is all but impossible, and exp(-9999) is 0.
    weights = {word: exp(logprob - max(logprobs.values())) for word, logprob in logprobs.items()}
    return Judgement(label, weights[judging.choices[ranked]] / sum(weights.values()), is_decided)


def _evaluate(ask: Ask, histories: Histories, experiment: ExperimentConfig, inputs: Inputs, steps: Steps) -> Step:
    task, student = inputs.task, experiment.judges[ask.key].prompt.replace("_", "-")
    judgements = {
        request.seed.text: read_judgement(request, histories[request.request_id][-1], task) for request in ask.requests
    }
    n_undecided = sum(not judgement.is_decided for judgement in judgements.values())
    if n_undecided:
        LOG.warning(
            "%s: %d of %d items have no usable answer and count as %r; replay=[reason,…] asks those again",
            *(ask.key, n_undecided, len(judgements), _get_judging(task).fallback),
        )

    def predict(gold: Gold) -> list[Prediction]:
        said = [judgements[item.text] for item in gold.items]
        labels, scores = [one.label for one in said], [one.score for one in said]
        return to_predictions(gold.items, labels, scores, benchmark=gold.benchmark.name, setting=STANDARD)

    def produce(folder: Folder) -> Outputs:
        cost = {"arm": ask.key, "student": student, **describe_cost(ask, histories), "n_undecided": n_undecided}
        folder.write_json(COST, cost)
        folder.write_json(EFFICIENCY, describe_spending(ask, histories))
        outputs = judge(folder, predict, ask.key, student, "", experiment, inputs)
        return replace(outputs, counts={**outputs.counts, "undecided": n_undecided})

    made_of = {"requests": ask.step.fingerprint, "completions": digest_answers(histories)}
    config = {"choices": _get_judging(task).choices, "price": ask.teacher.price}
    return run_evaluation(produce, f"{ask.key}/{student}", made_of, config, experiment, inputs, steps, _CODE)


def describe_cost(ask: Ask, histories: Histories) -> dict[str, Any]:
    """Return what a judge's answers took, with a student's keys where they mean the same; None: not measured."""
    completions = [completion for history in histories.values() for completion in history]
    answers = [completion for completion in completions if completion.outcome.is_answer]
    sessions = ask.sessions()
    n_items = len(ask.requests)
    spent = describe_efficiency(completions, n_items, n_items, sessions, ask.teacher.price)
    latency = dict.fromkeys(("latency_p50_ms", "latency_p95_ms", "n_in_flight", "n_single"))
    if answers:
        latency = asdict(describe_latency([c.started_at for c in answers], [c.latency_s for c in answers]))
    asking_s = sum(session.asking_s for session in sessions)
    memory_bytes = [session.memory_bytes for session in sessions if session.memory_bytes is not None]
    return {
        "n_parameters": None,
        "memory_mb": max(memory_bytes) / 1e6 if memory_bytes else None,
        "device": _name_device(ask.teacher),
        **latency,
        "throughput_rows_per_s": sum(session.requests for session in sessions) / asking_s if asking_s else None,
        "n_actors": max((session.actors for session in sessions), default=None),
        "tokens_per_item": spent["tokens_per_row"],
        "usd_per_1000_items": None if spent["usd_per_row"] is None else 1000 * spent["usd_per_row"],
    }


def describe_spending(ask: Ask, histories: Histories) -> dict[str, Any]:
    """Return what a judge's answers took, as a data set has it of its rows."""
    ends = [
        (completion, judge_completion(request, completion))
        for request in ask.requests
        for completion in histories[request.request_id]
    ]
    n_items, price = len(ask.requests), ask.teacher.price
    spent = describe_efficiency([completion for completion, _ in ends], n_items, n_items, ask.sessions(), price)
    return {
        "teacher": ask.teacher.label,
        **spent,
        "spent_on": divide_spending(ends, 1.0, spent["device_s"], price),
    }


def _get_judging(task: Task) -> Judging:
    assert task.judging is not None  # an experiment with judges has such a task
    return task.judging


def _name_device(teacher: AnyTeacherConfig) -> str:
    if not teacher.devices:
        return "endpoint"
    return f"{teacher.gpus:g} GPU" if teacher.gpus else "CPU"
