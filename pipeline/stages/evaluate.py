"""From students to predictions and measures on the benchmarks.

With the baselines and the judges, which are judged by the same functions, this is the one stage that opens test items.

A student's scores are computed once for all items of a benchmark, dev splits included. The setting `standard` reports
them all; `dev-selected` chooses the decision threshold on the dev splits and reports the test split alone.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any

from pipeline.cluster import Cluster
from pipeline.evaluation.bootstrap import estimate
from pipeline.evaluation.comparison import Entry, to_entries
from pipeline.evaluation.cost import CostConfig, measure_cost
from pipeline.evaluation.decisions import DEV_SELECTED, STANDARD, select_on_dev, to_predictions
from pipeline.experiment import ExperimentConfig
from pipeline.records import GoldItem, Prediction, to_table
from pipeline.stages.generate import ROWS
from pipeline.stages.inputs import Gold, Inputs
from pipeline.steps import Outputs, Step, Steps
from pipeline.storage import Folder
from pipeline.students.train import FITS
from pipeline.tasks.task import Task

PREDICTIONS, ENTRIES, COST = "predictions.parquet", "entries.json", "cost.json"
_UNSELECTED = ("majority", "prior")
"""Baselines whose scores say nothing of an item: a threshold chosen on them would be noise."""
_COST_TEXTS = 512
"""Items that throughput is measured on, at most."""
_CODE = tuple(f"pipeline.evaluation.{name}" for name in ("measures", "bootstrap", "decisions", "cost"))

Predict = Callable[[Gold], list[Prediction]]
"""A benchmark to predictions on all its items, setting `standard`."""


def evaluate_student(
    arm: str,
    student: str,
    trained: Step,
    dataset: Step,
    experiment: ExperimentConfig,
    inputs: Inputs,
    steps: Steps,
    cluster: Cluster,
) -> Step:
    """Return the step that judges a student's final fits."""
    config, cost, training = experiment.students[student], experiment.evaluation.cost, experiment.scale.training
    use_gpu, rows = training.gpus_per_worker > 0, dataset.manifest["digests"][ROWS]

    def produce(folder: Folder) -> Outputs:
        items = {name: gold.items for name, gold in inputs.gold.items()}
        n_items = len(config.seeds) * sum(len(gold) for gold in items.values())
        with cluster.progress(f"evaluate {student}@{arm}", "items", n_items) as report:
            predictions, measured = cluster.call(
                score_items,
                trained.folder,
                config.seeds,
                config.eval_batch_size,
                items,
                inputs.task,
                cost,
                training.threads,
                use_gpu,
                report,
            )
        folder.write_json(COST, {"arm": arm, "student": student, **measured})

        def predict(gold: Gold) -> list[Prediction]:
            return predictions[gold.benchmark.name]

        return judge(folder, predict, arm, student, rows, experiment, inputs)

    made_of = {"student": trained.fingerprint, ROWS: rows}
    # The step also holds what its predictions cost, which depends on where and how that is measured.
    measured_with = {"cost": cost, "threads": training.threads, "gpu": use_gpu}
    return run_evaluation(produce, f"{arm}/{student}", made_of, measured_with, experiment, inputs, steps)


def score_items(
    trained: Folder,
    seeds: Sequence[int],
    batch_size: int,
    items: Mapping[str, Sequence[GoldItem]],
    task: Task,
    cost: CostConfig,
    threads: int,
    use_gpu: bool,
    report: Callable[[Mapping[str, int]], None],
) -> tuple[dict[str, list[Prediction]], dict[str, Any]]:
    """Return predictions of all final fits by benchmark, and what the first fit costs to run; runs in a task."""
    import torch

    from pipeline.students.classifier import describe_model, load_predictor

    torch.set_num_threads(threads)
    positive = task.labels.index(task.positive)
    predictions: dict[str, list[Prediction]] = {name: [] for name in items}
    costs: dict[str, Any] = {}
    for seed in seeds:
        with (trained / FITS).as_local(f"final-{seed}") as folder:
            predict = load_predictor(folder, use_gpu)
            for name, gold in items.items():
                probabilities = predict([item.text for item in gold], batch_size)
                decided = [task.labels[index] for index in probabilities.argmax(axis=1)]
                scores = probabilities[:, positive]
                predictions[name] += to_predictions(gold, decided, scores, benchmark=name, setting=STANDARD, seed=seed)
                report({"done": len(gold)})
            if not costs:
                texts = [item.text for gold in items.values() for item in gold][:_COST_TEXTS]
                speed = measure_cost(partial(_predict_batch, predict), texts, **cost.model_dump())
                costs = {**describe_model(folder, use_gpu), **asdict(speed), "n_in_flight": 1, "threads": threads}
    return predictions, costs


def _predict_batch(predict: Callable[[Sequence[str], int], Any], texts: list[str]) -> object:
    return predict(texts, len(texts))


def judge(
    folder: Folder,
    predict: Predict,
    arm: str,
    student: str | None,
    data: str,
    experiment: ExperimentConfig,
    inputs: Inputs,
) -> Outputs:
    """Write predictions and entries for every benchmark and setting."""
    task, evaluation = inputs.task, experiment.evaluation
    written: list[Prediction] = []
    entries: list[Entry] = []
    for name, gold in inputs.gold.items():
        for setting, predictions in _apply_settings(predict, gold, arm, experiment, task).items():
            estimates = estimate(predictions, task.labels, task.positive, evaluation.n_replicates, evaluation.seed)
            entries += to_entries(estimates, arm=arm, student=student, data=data, benchmark=name, setting=setting)
            written += predictions
    folder.write_table(PREDICTIONS, to_table(Prediction, written))
    folder.write_json(ENTRIES, [asdict(entry) for entry in entries])
    metrics = {f"{entry.benchmark}/{entry.setting}/{entry.measure}": entry.value for entry in entries}
    return Outputs(counts={"predictions": len(written)}, metrics=metrics)


def _apply_settings(
    predict: Predict, gold: Gold, arm: str, experiment: ExperimentConfig, task: Task
) -> dict[str, list[Prediction]]:
    predictions: dict[str, list[Prediction]] = {}
    standard = predict(gold)
    if STANDARD in experiment.task.settings:
        predictions[STANDARD] = standard
    if DEV_SELECTED in experiment.task.settings and (splits := gold.benchmark.dev_splits):
        if arm in _UNSELECTED:
            test = replace(gold, items=tuple(i for i in gold.items if i.split in gold.benchmark.test_splits))
            selected = [replace(prediction, setting=DEV_SELECTED) for prediction in predict(test)]
        else:
            selected = select_on_dev(standard, gold.items, task.labels, task.positive, splits)
        predictions[DEV_SELECTED] = selected
    return predictions


def run_evaluation(
    produce: Callable[[Folder], Outputs],
    arm: str,
    made_of: Mapping[str, str],
    config: Mapping[str, Any],
    experiment: ExperimentConfig,
    inputs: Inputs,
    steps: Steps,
    code: Sequence[str] = (),
) -> Step:
    """Return the evaluation step of a student, baseline or judge.

    Args:
        produce: Predicts and judges.
        arm: The arm's key and the student's, the judge's key and what it is asked, or the baseline's name.
        made_of: Fingerprints of what predicts.
        config: What else can change the predictions.
        experiment: Settings that all evaluations share.
        inputs: The benchmarks.
        steps: Where the step runs or is found.
        code: Modules besides those that all evaluations share.
    """
    return steps.run(
        "evaluation",
        produce,
        arm=arm,
        config={
            **config,
            # A name for tables, yet part of the files that the step writes.
            "arm": arm,
            "task": inputs.task.name,
            "labels": inputs.task.labels,
            "positive": inputs.task.positive,
            "settings": experiment.task.settings,
            "bootstrap": {"replicates": experiment.evaluation.n_replicates, "seed": experiment.evaluation.seed},
        },
        inputs={**made_of, **{f"gold {name}": gold.digest for name, gold in inputs.gold.items()}},
        code=[*_CODE, *code, __name__],
    )
