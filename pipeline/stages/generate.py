"""From seeds to a data set: prompts, a teacher's completions, parsed, filtered and described.

Requests and data set are steps; between them the ledger remembers the completions. The data set's identity includes
a digest of the completions that it was made of, so it is made anew when, and only when, those have changed.
"""

import hashlib
import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from pipeline.cluster import Cluster
from pipeline.experiment import ArmConfig, ExperimentConfig
from pipeline.identity import derive_seed, digest, source_digest
from pipeline.prompts.requests import make_request
from pipeline.prompts.templates import digest_templates
from pipeline.quality.card import describe, sample_rows
from pipeline.quality.filters import apply_filters
from pipeline.records import Completion, Example, Outcome, Reject, Request, Seed, from_table, to_table
from pipeline.stages.inputs import Inputs
from pipeline.steps import Outputs, Step, Steps
from pipeline.storage import Folder
from pipeline.tasks.task import Task
from pipeline.teachers.ledger import Ledger, group_by_request
from pipeline.teachers.offline import OfflineTeacher
from pipeline.teachers.plan import Limits, find_unsettled, locate
from pipeline.teachers.pool import teach
from pipeline.teachers.teacher import AnyTeacherConfig

LOG = logging.getLogger(__name__)
EXAMPLES, REJECTS, CARD, SAMPLES, TSV = (
    "examples.parquet",
    "rejects.parquet",
    "card.json",
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


def build_dataset(key: str, experiment: ExperimentConfig, inputs: Inputs, steps: Steps, cluster: Cluster) -> Step:
    """Return the data-set step of one arm, having asked its teacher whatever the ledger did not know.

    Raises:
        TeacherError: The teacher left requests without an end.
        LeakageError: Too many rows repeat test items.
        SourceError: No rows were left.
    """
    arm, task = experiment.arms[key], inputs.task
    if arm.teacher is None:
        examples = inputs.examples[key]
        made_of = {"rows": _digest_examples(examples)}
        return _run_dataset(key, arm, experiment, inputs, steps, made_of, examples, [], {})
    requests_step = _run_requests(key, arm, experiment, inputs.seeds[key], task, steps)
    requests = list(from_table(Request, requests_step.folder.read_table("requests.parquet")))
    histories = _complete(key, arm, task, requests, steps.root, cluster)
    examples, rejects, counts = _parse(task, requests, histories)
    if counts["requests_failed"]:
        LOG.warning(
            "%s: %d of %d requests have no usable answer; what was answered is in %s, and a higher method.max_attempts "
            "or teacher.max_tries asks again",
            key,
            counts["requests_failed"],
            counts["requests"],
            REJECTS,
        )
    made_of = {"requests": requests_step.fingerprint, "completions": _digest_completions(histories)}
    return _run_dataset(key, arm, experiment, inputs, steps, made_of, examples, rejects, counts)


def _run_requests(
    key: str, arm: ArmConfig, experiment: ExperimentConfig, seeds: Sequence[Seed], task: Task, steps: Steps
) -> Step:
    assert arm.teacher is not None
    teacher = _identify_teacher(arm.teacher, task)
    sampling = arm.teacher.sampling

    def produce(folder: Folder) -> Outputs:
        requests = []
        for seed in seeds:
            prompt = task.write_prompt(seed, (), arm.method)
            requests.append(
                make_request(
                    seed,
                    (),
                    prompt.messages,
                    prompt.schema,
                    temperature=sampling.temperature,
                    top_p=sampling.top_p,
                    teacher=teacher,
                    run_seed=experiment.seed,
                )
            )
        folder.write_table("requests.parquet", to_table(Request, requests))
        return Outputs(counts={"seeds": len(seeds), "requests": len(requests)})

    return steps.run(
        "requests",
        produce,
        arm=key,
        config={"task": task.name, "method": arm.method, "sampling": sampling, "seed": experiment.seed},
        inputs={
            "seeds": digest([[seed.seed_id, seed.text, seed.group, seed.label] for seed in seeds]),
            "templates": digest_templates(task.templates),
            "teacher": digest(teacher),
        },
        code=[*task.code, __name__],
    )


def _complete(
    key: str, arm: ArmConfig, task: Task, requests: Sequence[Request], root: Folder, cluster: Cluster
) -> Mapping[str, Sequence[Completion]]:
    """Return all completions of the requests, having asked for those that were missing."""
    assert arm.teacher is not None
    assert arm.method is not None
    ledger = Ledger.of(root, arm.teacher.label)
    limits = Limits(arm.method.max_attempts, arm.teacher.max_tries)
    judge = partial(judge_completion, task)
    histories = _read_histories(ledger, requests)
    missing = find_unsettled(requests, histories, judge, limits)
    if missing:
        with cluster.progress(f"teach {key}", "requests", len(missing)) as report:
            teach(
                requests,
                ledger,
                arm.teacher,
                partial(make_teacher, arm.teacher, task),
                judge,
                limits,
                cluster.config.pool,
                report,
            )
        histories = _read_histories(ledger, requests)
    # What lies behind a request's end, left by another experiment with more attempts, is not this one's.
    return {
        request.request_id: _until_settled(request, histories.get(request.request_id, ()), judge, limits)
        for request in requests
    }


def judge_completion(task: Task, request: Request, completion: Completion) -> Outcome:
    """Return what a task makes of a completion."""
    return task.parse(request, completion).outcome if completion.outcome is Outcome.OK else completion.outcome


def make_teacher(config: AnyTeacherConfig, task: Task) -> OfflineTeacher:
    """Return the teacher of a configuration; called inside an actor."""
    return OfflineTeacher(config, task.reply_offline)


def _identify_teacher(config: AnyTeacherConfig, task: Task) -> dict[str, str]:
    """Return what tells one teacher's answers from another's: the rules are the offline teacher's weights."""
    rules = source_digest(["pipeline.teachers.offline", *task.code, *task.offline_code])
    return {"kind": config.kind, "revision": rules, "faults": digest(config.faults)}


def _read_histories(ledger: Ledger, requests: Iterable[Request]) -> dict[str, list[Completion]]:
    wanted = {request.request_id for request in requests}
    completions, _ = ledger.read()
    return group_by_request(c for c in completions if c.request_id in wanted)


def _until_settled(request: Request, history: Sequence[Completion], judge: Any, limits: Limits) -> Sequence[Completion]:
    for end in range(1, len(history) + 1):
        if locate(request, history[:end], judge, limits).settled:
            return history[:end]
    return history


def _parse(
    task: Task, requests: Sequence[Request], histories: Mapping[str, Sequence[Completion]]
) -> tuple[list[Example], list[Reject], dict[str, int]]:
    """Return the rows of accepted completions, a reject for every other completion, and counts."""
    examples: list[Example] = []
    rejects: list[Reject] = []
    outcomes: Counter[str] = Counter()
    accepted = 0
    for request in requests:
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
        "requests": len(requests),
        "requests_accepted": accepted,
        "requests_failed": len(requests) - accepted,
        "completions": len(completions),
        "prompt_tokens": sum(c.n_prompt_tokens for c in completions),
        "completion_tokens": sum(c.n_completion_tokens for c in completions),
    } | {f"completions_{outcome}": n for outcome, n in outcomes.items()}
    return examples, rejects, counts


def _run_dataset(
    key: str,
    arm: ArmConfig,
    experiment: ExperimentConfig,
    inputs: Inputs,
    steps: Steps,
    made_of: Mapping[str, str],
    examples: Sequence[Example],
    parse_rejects: Sequence[Reject],
    counts: Mapping[str, int],
) -> Step:
    task = inputs.task
    gold_items = {name: gold.items for name, gold in inputs.gold.items()}

    def produce(folder: Folder) -> Outputs:
        filtered = apply_filters(examples, arm.filters, gold_items, derive_seed(experiment.seed, "filters"))
        rejects = [*parse_rejects, *filtered.rejects]
        if len(examples) != len(filtered.kept) + len(filtered.rejects):
            raise AssertionError(f"{key}: {len(examples)} rows in, {len(filtered.kept)} + {len(filtered.rejects)} out")
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
        reasons = Counter(f"rejected_{reject.reason}" for reject in filtered.rejects)
        return Outputs(
            counts={**counts, "rows_in": len(examples), "rows": len(filtered.kept), **reasons},
            metrics=_headline(card),
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
