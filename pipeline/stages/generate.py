"""From seeds to a data set: prompts, a teacher's completions, parsed, filtered and described.

Requests and data set are steps; between them the ledger remembers the completions. The data set's identity includes
a digest of the completions that it was made of, so it is made anew when, and only when, those have changed.
"""

import hashlib
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from pipeline.cluster import Cluster
from pipeline.experiment import ArmConfig, ExperimentConfig
from pipeline.identity import derive_seed, digest
from pipeline.prompts.requests import make_request
from pipeline.prompts.templates import digest_templates
from pipeline.quality.card import describe, sample_rows
from pipeline.quality.filters import apply_filters
from pipeline.records import Completion, Example, Outcome, Reject, Request, to_table
from pipeline.stages.ask import Ask, Histories, plan_ask, prepare_asks
from pipeline.stages.inputs import Inputs
from pipeline.steps import Outputs, Step, Steps
from pipeline.storage import Folder
from pipeline.tasks.task import Task
from pipeline.teachers.efficiency import describe_efficiency
from pipeline.teachers.kinds import pin_teacher

LOG = logging.getLogger(__name__)
EXAMPLES, REJECTS, CARD, EFFICIENCY, SAMPLES, TSV = (
    "examples.parquet",
    "rejects.parquet",
    "card.json",
    "efficiency.json",
    "samples.json",
    "dataset.tsv",
)
ROWS = "rows"
"""Name of the digest of a data set's rows, which is what students and evaluations are made of: a new card or another
benchmark to check against makes the data set anew, and trains nothing anew while the rows are the same."""
CARD_FOLDS = 5
_FILTERS = ("text", "rejects", "similarity", "duplicates", "lengths", "leakage", "filters")
_FILTER_CODE = tuple(f"pipeline.quality.{name}" for name in _FILTERS)
_CARD_CODE = ("pipeline.quality.card", "pipeline.quality.shortcuts")


def build_datasets(experiment: ExperimentConfig, inputs: Inputs, steps: Steps, cluster: Cluster) -> dict[str, Step]:
    """Return the data-set step of each arm, having asked its teacher whatever the ledger did not know.

    Raises:
        ConfigError: A teacher that has to be asked lacks its key or its engine.
        TeacherError: A teacher left requests without an end.
        LeakageError: Too many rows repeat test items.
        SourceError: No rows were left.
    """
    asks = {key: _ask(key, arm, experiment, inputs, steps) for key, arm in experiment.arms.items() if arm.teacher}
    prepare_asks(list(asks.values()), experiment.replay, is_local=experiment.scale.address is None)
    return {
        key: _build_from_answers(asks[key], arm, experiment, inputs, steps, cluster)
        if key in asks
        else _build_from_rows(key, arm, experiment, inputs, steps)
        for key, arm in experiment.arms.items()
    }


def _build_from_rows(key: str, arm: ArmConfig, experiment: ExperimentConfig, inputs: Inputs, steps: Steps) -> Step:
    examples = inputs.examples[key]
    return _run_dataset(key, arm, experiment, inputs, steps, {"rows": _digest_examples(examples)}, Answers(examples))


def _build_from_answers(
    ask: Ask, arm: ArmConfig, experiment: ExperimentConfig, inputs: Inputs, steps: Steps, cluster: Cluster
) -> Step:
    histories = ask.complete(cluster)
    answers = _parse(inputs.task, ask, histories)
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
        "completions": _digest_completions(histories),
        "price": digest(ask.teacher.price),
    }
    return _run_dataset(ask.key, arm, experiment, inputs, steps, made_of, answers)


def _ask(key: str, arm: ArmConfig, experiment: ExperimentConfig, inputs: Inputs, steps: Steps) -> Ask:
    assert arm.teacher is not None
    assert arm.method is not None
    task, seeds = inputs.task, inputs.seeds[key]
    teacher, identity = pin_teacher(arm.teacher, [*task.code, *task.offline_code])

    def write_requests() -> list[Request]:
        requests = []
        for seed in seeds:
            prompt = task.write_prompt(seed, (), arm.method)
            requests.append(
                make_request(
                    seed,
                    (),
                    prompt.messages,
                    prompt.schema,
                    temperature=teacher.sampling.temperature,
                    top_p=teacher.sampling.top_p,
                    teacher=identity,
                    run_seed=experiment.seed,
                )
            )
        return requests

    return plan_ask(
        key,
        teacher,
        write_requests,
        config={"method": arm.method, "sampling": teacher.sampling, "seed": experiment.seed},
        made_of={
            "seeds": digest([[seed.seed_id, seed.text, seed.group, seed.label] for seed in seeds]),
            "templates": digest_templates(task.templates),
            "teacher": digest(identity),
        },
        code=[__name__],
        judge=partial(judge_completion, task),
        max_attempts=arm.method.max_attempts,
        task=task,
        steps=steps,
    )


def judge_completion(task: Task, request: Request, completion: Completion) -> Outcome:
    """Return what a task makes of a completion."""
    return task.parse(request, completion).outcome if completion.outcome is Outcome.OK else completion.outcome


@dataclass(frozen=True)
class Answers:
    """Rows before filters, and what came before them."""

    examples: Sequence[Example]
    rejects: Sequence[Reject] = ()
    """One for each completion that was not accepted."""
    counts: Mapping[str, int] = field(default_factory=dict)
    describe_efficiency: Callable[[int], dict[str, Any]] | None = None
    """Number of rows kept to what they took; None where no teacher was asked."""


def _parse(task: Task, ask: Ask, histories: Histories) -> Answers:
    examples: list[Example] = []
    rejects: list[Reject] = []
    outcomes: Counter[str] = Counter()
    accepted = 0
    for request in ask.requests:
        for completion in histories[request.request_id]:
            parsed = task.parse(request, completion)
            outcomes[parsed.outcome.value] += 1
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
    completions = [c for history in histories.values() for c in history]
    counts = {
        "requests": len(ask.requests),
        "requests_accepted": accepted,
        "requests_failed": len(ask.requests) - accepted,
        "completions": len(completions),
        "prompt_tokens": sum(c.n_prompt_tokens for c in completions),
        "completion_tokens": sum(c.n_completion_tokens for c in completions),
    } | {f"completions_{outcome}": n for outcome, n in outcomes.items()}

    def describe(n_rows: int) -> dict[str, Any]:
        sessions = ask.sessions()
        return {
            "teacher": ask.teacher.label,
            **describe_efficiency(completions, n_rows, len(ask.requests), sessions, ask.teacher.price),
        }

    return Answers(examples, rejects, counts, describe)


def _run_dataset(
    key: str,
    arm: ArmConfig,
    experiment: ExperimentConfig,
    inputs: Inputs,
    steps: Steps,
    made_of: Mapping[str, str],
    answers: Answers,
) -> Step:
    task = inputs.task
    gold_items = {name: gold.items for name, gold in inputs.gold.items()}

    def produce(folder: Folder) -> Outputs:
        filtered = apply_filters(answers.examples, arm.filters, gold_items, derive_seed(experiment.seed, "filters"))
        rejects = [*answers.rejects, *filtered.rejects]
        n_in, n_kept = len(answers.examples), len(filtered.kept)
        if n_in != n_kept + len(filtered.rejects):
            raise AssertionError(f"{key}: {n_in} rows in, {n_kept} + {len(filtered.rejects)} out")
        card = describe(
            filtered.kept,
            rejects,
            filtered.leaked,
            positive=task.positive,
            seed=experiment.seed,
            n_folds=CARD_FOLDS,
        )
        folder.write_table(EXAMPLES, to_table(Example, filtered.kept))
        folder.write_table(REJECTS, to_table(Reject, rejects))
        folder.write_text(TSV, _to_tsv(task.export(filtered.kept)))
        folder.write_json(CARD, card)
        folder.write_json(SAMPLES, sample_rows(filtered.kept, rejects, 5, experiment.seed))
        metrics = _headline(card)
        if answers.describe_efficiency is not None:
            efficiency = answers.describe_efficiency(n_kept)
            folder.write_json(EFFICIENCY, efficiency)
            metrics |= _headline_efficiency(efficiency)
        reasons = Counter(f"rejected_{reject.reason}" for reject in filtered.rejects)
        return Outputs(
            counts={**answers.counts, "rows_in": n_in, "rows": n_kept, **reasons},
            metrics=metrics,
            digests={ROWS: _digest_examples(filtered.kept)},
        )

    return steps.run(
        "dataset",
        produce,
        arm=key,
        config={"filters": arm.filters, "seed": experiment.seed, "positive": task.positive},
        inputs={**made_of, **{f"gold {name}": gold.digest for name, gold in inputs.gold.items()}},
        code=[*task.code, *_FILTER_CODE, *_CARD_CODE, __name__],
    )


def _headline(card: Mapping[str, Any]) -> dict[str, float]:
    """Return the card's numbers that are worth comparing across arms."""
    found = {"rows": card["rows"], "unique_fraction": card["unique_fraction"], "length_AUROC": card["length_auroc"]}
    found |= {f"tfidf_cv_{name}": value for name, value in card["tfidf_cross_validation"].items()}
    return {f"card/{name}": float(value) for name, value in found.items() if value is not None}


def _headline_efficiency(efficiency: Mapping[str, Any]) -> dict[str, float]:
    """Return what was measured of the numbers that are worth comparing across arms."""
    names = ("tokens_per_s", "tokens_per_row", "device_s_per_row", "usd", "usd_per_row")
    found = {f"teacher/{name}": efficiency[name] for name in names}
    found |= {f"teacher/time_{cause}": share for cause, share in (efficiency["time_shares"] or {}).items()}
    return {name: value for name, value in found.items() if value is not None}


def _to_tsv(columns: Mapping[str, Sequence[str]]) -> str:
    """Return columns as a TSV without quoting, like the source system's; white space in a value becomes one space."""
    rows = zip(*columns.values(), strict=True)
    lines = ["\t".join(" ".join(value.split()) for value in row) for row in rows]
    return "\n".join(["\t".join(columns), *lines]) + "\n"


def _digest_examples(examples: Sequence[Example]) -> str:
    return digest([[e.row_id, e.group, e.text, e.label, e.extras] for e in examples])


def _digest_completions(histories: Mapping[str, Sequence[Completion]]) -> str:
    return digest(
        {
            request_id: [[c.attempt, c.outcome, hashlib.sha256(c.text.encode()).hexdigest()] for c in history]
            for request_id, history in histories.items()
        }
    )
