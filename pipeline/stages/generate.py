"""From seeds to a data set: prompts, a teacher's completions, parsed, filtered and described.

Requests and data set are steps; between them the ledger remembers the completions. The data set's identity includes
a digest of the completions that it was made of, so it is made anew when, and only when, those have changed.
"""

import logging
from collections import Counter
from dataclasses import asdict, replace
from functools import partial
from typing import Any

from pipeline.cluster import Cluster
from pipeline.errors import RepetitionError
from pipeline.experiment import ArmConfig, DerivedConfig, ExperimentConfig
from pipeline.identity import digest
from pipeline.prompts.requests import make_request
from pipeline.prompts.templates import digest_templates
from pipeline.records import Completion, Example, Outcome, Reject, Request
from pipeline.stages.ask import Ask, plan_ask, prepare_asks
from pipeline.stages.dataset import LOOKS, REJECTS, Answers, digest_examples, run_dataset
from pipeline.stages.derive import build_derived
from pipeline.stages.inputs import Inputs
from pipeline.stages.passages import find_passages
from pipeline.stages.retrieve import read_retrieved
from pipeline.stages.watch import tabulate_looks, trace_looks
from pipeline.steps import Step, Steps
from pipeline.tasks.task import MethodConfig, Task
from pipeline.teachers.efficiency import describe_efficiency
from pipeline.teachers.histories import Histories, digest_answers
from pipeline.teachers.kinds import pin_teacher
from pipeline.teachers.spending import divide_spending

LOG = logging.getLogger(__name__)


def build_datasets(experiment: ExperimentConfig, inputs: Inputs, steps: Steps, cluster: Cluster) -> dict[str, Step]:
    """Return the data-set step of each arm, having asked its teacher whatever the ledger did not know.

    Raises:
        ConfigError: A teacher that has to be asked lacks its key or its engine.
        TeacherError: A teacher left requests without an end, or a rule of the watch stopped it.
        LeakageError: Too many rows repeat test items.
        SourceError: No rows were left.
    """
    asks = plan_arms(experiment, inputs, steps, cluster)
    prepare_asks(list(asks.values()), experiment.replay, is_local=experiment.scale.address is None)
    datasets: dict[str, Step] = {}
    for key in experiment.order_arms():
        arm = experiment.arms[key]
        if key in asks:
            datasets[key] = _build_from_answers(asks[key], arm, experiment, inputs, steps, cluster)
        elif isinstance(arm.data, DerivedConfig):
            datasets[key] = build_derived(key, arm, datasets, experiment, inputs, steps, cluster)
        else:
            datasets[key] = _build_from_rows(key, arm, experiment, inputs, steps)
    return {key: datasets[key] for key in experiment.arms}


def plan_arms(experiment: ExperimentConfig, inputs: Inputs, steps: Steps, cluster: Cluster) -> dict[str, Ask]:
    """Return what the teacher of each arm that has one is asked; nothing is asked yet."""
    return {
        key: _plan(key, arm, experiment, inputs, steps, cluster) for key, arm in experiment.arms.items() if arm.teacher
    }


def _build_from_rows(key: str, arm: ArmConfig, experiment: ExperimentConfig, inputs: Inputs, steps: Steps) -> Step:
    examples = inputs.examples[key]
    counts = {f"left_out_{why}": n for why, n in inputs.left_out.get(key, {}).items()}
    made_of = {"rows": digest_examples(examples), "left out": digest(counts)}
    return run_dataset(key, arm, experiment, inputs, steps, made_of, lambda: Answers(examples, counts=counts))


def _build_from_answers(
    ask: Ask, arm: ArmConfig, experiment: ExperimentConfig, inputs: Inputs, steps: Steps, cluster: Cluster
) -> Step:
    ask, histories = _complete(ask, arm, experiment, inputs, steps, cluster)
    assert arm.method is not None
    answers = _parse(inputs.task, ask, histories, arm.method)
    if n_failed := answers.counts["requests_failed"]:
        LOG.warning(
            "%s: %d of %d requests have no usable answer; what was answered is in %s, and replay=[reason,…] asks those "
            "again",
            ask.key,
            n_failed,
            len(ask.requests),
            REJECTS,
        )
    made_of = {
        "requests": ask.step.fingerprint,
        "completions": digest_answers(histories),
        "price": digest(ask.teacher.price),
    }
    return run_dataset(ask.key, arm, experiment, inputs, steps, made_of, lambda: answers)


def _complete(
    ask: Ask, arm: ArmConfig, experiment: ExperimentConfig, inputs: Inputs, steps: Steps, cluster: Cluster
) -> tuple[Ask, Histories]:
    """Return what was asked in the end, with its completions: other topics may have taken the place of some."""
    is_local, spare = experiment.scale.address is None, inputs.spare_topics.get(ask.key)
    if spare is not None:  # an arm before this one may ask the same, and have drawn other topics since the plan
        ask = _plan(ask.key, arm, experiment, inputs, steps, cluster)
    while True:
        try:
            return ask, ask.complete(cluster, experiment.watch)
        except RepetitionError as error:
            if not (n_drawn := ask.redraw(spare or (), experiment.seed)):
                raise
            LOG.warning("%s\nit goes on with %d other topics", error, n_drawn)
        ask = _plan(ask.key, arm, experiment, inputs, steps, cluster)
        prepare_asks([ask], (), is_local)


def _plan(
    key: str, arm: ArmConfig, experiment: ExperimentConfig, inputs: Inputs, steps: Steps, cluster: Cluster
) -> Ask:
    ask = _ask(key, arm, experiment, inputs, steps, cluster)
    while experiment.watch.resample_topics and (seeds := ask.read_redraw()):
        earlier = (*ask.earlier, ask.digest)
        inputs = replace(inputs, seeds={**inputs.seeds, key: seeds})
        ask = replace(_ask(key, arm, experiment, inputs, steps, cluster), earlier=earlier)
    return ask


def _ask(key: str, arm: ArmConfig, experiment: ExperimentConfig, inputs: Inputs, steps: Steps, cluster: Cluster) -> Ask:
    assert arm.teacher is not None
    assert arm.method is not None
    task, seeds = inputs.task, inputs.seeds[key]
    teacher, identity = pin_teacher(arm.teacher, [*task.code, *task.offline_code])
    passages = find_passages(key, arm, experiment, inputs, steps, cluster) if arm.index else None

    def write_requests() -> list[Request]:
        retrieved = read_retrieved(passages) if passages else {}
        return [
            make_request(
                prompt.seed,
                prompt.passages,
                prompt.messages,
                prompt.schema,
                max_new_tokens=prompt.max_new_tokens,
                stop=prompt.stop,
                temperature=teacher.sampling.temperature,
                top_p=teacher.sampling.top_p,
                teacher=identity,
                run_seed=experiment.seed,
            )
            for prompt in task.write_prompts(seeds, retrieved, arm.method, experiment.seed)
        ]

    return plan_ask(
        key,
        teacher,
        write_requests,
        config={"method": arm.method, "sampling": teacher.sampling, "seed": experiment.seed},
        made_of={
            "seeds": digest([asdict(seed) for seed in seeds]),
            "templates": digest_templates(task.templates),
            "teacher": digest(identity),
            **({"passages": passages.fingerprint} if passages else {}),
        },
        code=[__name__],
        judge=partial(judge_completion, task, arm.method),
        max_attempts=arm.method.max_attempts,
        task=task,
        steps=steps,
    )


def judge_completion(task: Task, method: MethodConfig, request: Request, completion: Completion) -> Outcome:
    """Return what a task makes of a completion."""
    return task.parse(request, completion, method).outcome


def _parse(task: Task, ask: Ask, histories: Histories, method: MethodConfig) -> Answers:
    examples: list[Example] = []
    rejects: list[Reject] = []
    outcomes: Counter[str] = Counter()
    tokens: Counter[str] = Counter()
    accepted = 0
    ends: list[tuple[Completion, Outcome]] = []
    for request in ask.requests:
        for completion in histories[request.request_id]:
            parsed = task.parse(request, completion, method)
            ends.append((completion, parsed.outcome))
            outcomes[parsed.outcome.value] += 1
            tokens["prompt_tokens"] += completion.n_prompt_tokens
            tokens["completion_tokens"] += completion.n_completion_tokens
            if parsed.outcome is Outcome.OK:
                accepted += 1
                examples += parsed.examples
            else:
                rejects.append(
                    Reject(
                        row_id=f"{request.request_id}-{completion.attempt}",
                        request_id=request.request_id,
                        group=request.seed.group,
                        stage="parse",
                        reason=parsed.outcome.value,
                        text=completion.text,
                        label="",
                        detail=parsed.detail,
                    )
                )
    counts = {
        "requests": len(ask.requests),
        "requests_accepted": accepted,
        "requests_failed": len(ask.requests) - accepted,
        "completions": outcomes.total(),
        "prompt_tokens": tokens["prompt_tokens"],
        "completion_tokens": tokens["completion_tokens"],
    } | {f"completions_{outcome}": n for outcome, n in outcomes.items()}

    def describe(n_rows: int) -> dict[str, Any]:
        price, sessions = ask.teacher.price, ask.sessions()
        completions = (completion for completion, _ in ends)
        spent = describe_efficiency(completions, n_rows, len(ask.requests), sessions, price)
        kept_share = n_rows / len(examples) if examples else 0.0
        return {
            "teacher": ask.teacher.label,
            **spent,
            "spent_on": divide_spending(ends, kept_share, spent["device_s"], price),
        }

    looks = ask.looks()
    tables = {LOOKS: tabulate_looks(looks)} if looks else {}
    return Answers(examples, rejects, counts, tables, describe, tuple(trace_looks(looks)))
