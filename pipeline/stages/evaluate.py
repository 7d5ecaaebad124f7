"""From students to predictions and measures on the benchmarks.

With the baselines and the judges, which are judged by the same functions, this is the one stage that opens test items.

A student's scores are computed once for all items of a benchmark, dev splits included. The setting `standard` reports
them all; `dev-selected` chooses the decision threshold on the dev splits and reports the test split alone.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import numpy as np

from pipeline.cluster import Cluster
from pipeline.evaluation.bootstrap import estimate
from pipeline.evaluation.comparison import Entry, to_entries
from pipeline.evaluation.cost import CostConfig, measure_cost
from pipeline.evaluation.decisions import DEV_SELECTED, STANDARD, select_on_dev, to_predictions
from pipeline.experiment import ExperimentConfig
from pipeline.records import GoldItem, Prediction, to_table
from pipeline.stages.dataset import ROWS
from pipeline.stages.embed import embed_items, read_vectors
from pipeline.stages.inputs import Gold, Inputs
from pipeline.steps import Outputs, Step, Steps
from pipeline.storage import Folder
from pipeline.students.config import FrozenConfig
from pipeline.students.train import FITS
from pipeline.tasks.task import Task

PREDICTIONS, ENTRIES, COST = "predictions.parquet", "entries.json", "cost.json"
_UNSELECTED = ("majority", "prior")
"""Baselines whose scores say nothing of an item: a threshold chosen on them would be noise."""
COST_TEXTS = 512
"""Items that throughput is measured on, at most."""
_CODE = (
    *(f"pipeline.evaluation.{name}" for name in ("measures", "bootstrap", "decisions", "cost")),
    "pipeline.students.scoring",
)

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
    vectors = (
        embed_items(inputs.gold, inputs.models[student], config.encoder, steps, cluster)
        if isinstance(config, FrozenConfig)
        else {}
    )

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
                {name: step.folder for name, step in vectors.items()},
                inputs.task,
                cost,
                training.threads,
                use_gpu,
                report,
            )
        folder.write_json(COST, {"arm": arm, "student": student, **measured})

        def predict(gold: Gold) -> list[Prediction]:
            return predictions[gold.benchmark.name]

        return judge(folder, predict, arm, student, rows, experiment, inputs, config.selected_on)

    made_of = {
        "student": trained.fingerprint,
        ROWS: rows,
        **{f"vectors {name}": step.fingerprint for name, step in vectors.items()},
    }
    # The step also holds what its predictions cost, which depends on where and how that is measured.
    measured_with = {"cost": cost, "threads": training.threads, "gpu": use_gpu, "selected_on": config.selected_on}
    return run_evaluation(produce, f"{arm}/{student}", made_of, measured_with, experiment, inputs, steps)


def score_items(
    trained: Folder,
    seeds: Sequence[int],
    batch_size: int,
    items: Mapping[str, Sequence[GoldItem]],
    vectors: Mapping[str, Folder],
    task: Task,
    cost: CostConfig,
    threads: int,
    use_gpu: bool,
    report: Callable[[Mapping[str, int]], None],
) -> tuple[dict[str, list[Prediction]], dict[str, Any]]:
    """Return predictions of all final fits by benchmark, and what the first fit costs to run; runs in a task.

    Where there are vectors of the items, the student's head predicts from those. The cost is always that of texts.
    """
    import torch

    from pipeline.students.frozen import load_head
    from pipeline.students.predictor import describe_model, load_predictor

    torch.set_num_threads(threads)
    predictions: dict[str, list[Prediction]] = {name: [] for name in items}
    costs: dict[str, Any] = {}
    for seed in seeds:
        with (trained / FITS).as_local(f"final-{seed}") as folder:
            predict = load_predictor(folder, use_gpu)
            for name, gold in items.items():
                texts = [item.text for item in gold]
                if name in vectors:
                    probabilities = load_head(folder).predict(read_vectors(vectors[name], texts))
                else:
                    probabilities = predict(texts, batch_size)
                predictions[name] += decide(gold, probabilities, task, benchmark=name, seed=seed)
                report({"done": len(gold)})
            if not costs:
                texts = [item.text for gold in items.values() for item in gold][:COST_TEXTS]
                speed = measure_cost(partial(_predict_batch, predict), texts, **cost.model_dump())
                costs = {**describe_model(folder, use_gpu), **asdict(speed), "n_in_flight": 1, "threads": threads}
    return predictions, costs


def decide(
    items: Sequence[GoldItem], probabilities: np.ndarray, task: Task, *, benchmark: str, seed: int = 0
) -> list[Prediction]:
    """Return the most probable class of each item; its score is the positive one's probability, or else its own.

    Args:
        items: The items.
        probabilities: Shape (items, classes).
        task: Says the classes.
        benchmark: Name of the items.
        seed: Of what predicted.
    """
    decided = [task.labels[index] for index in probabilities.argmax(axis=1)]
    scores = probabilities.max(axis=1) if task.positive is None else probabilities[:, task.labels.index(task.positive)]
    return to_predictions(items, decided, scores, benchmark=benchmark, setting=STANDARD, seed=seed)


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
    selected_on: Sequence[str] = (),
) -> Outputs:
    """Write predictions and entries for every benchmark and setting.

    On benchmarks whose dev items chose the settings of what is judged (`selected_on`), `standard`, which reports those
    items too, is left out.
    """
    task, evaluation = inputs.task, experiment.evaluation
    written: list[Prediction] = []
    entries: list[Entry] = []
    for name, gold in inputs.gold.items():
        settings = [s for s in experiment.task.settings if s != STANDARD or name not in selected_on]
        for setting, predictions in _apply_settings(predict, gold, arm, settings, task).items():
            estimates = estimate(predictions, task.labels, task.positive, evaluation.n_replicates, evaluation.seed)
            entries += to_entries(estimates, arm=arm, student=student, data=data, benchmark=name, setting=setting)
            written += predictions
    folder.write_table(PREDICTIONS, to_table(Prediction, written))
    folder.write_json(ENTRIES, [asdict(entry) for entry in entries])
    metrics = {f"{entry.benchmark}/{entry.setting}/{entry.measure}": entry.value for entry in entries}
    return Outputs(counts={"predictions": len(written)}, metrics=metrics)


def _apply_settings(
    predict: Predict, gold: Gold, arm: str, settings: Sequence[str], task: Task
) -> dict[str, list[Prediction]]:
    predictions: dict[str, list[Prediction]] = {}
    standard = predict(gold)
    if STANDARD in settings:
        predictions[STANDARD] = standard
    if DEV_SELECTED in settings and (splits := gold.benchmark.dev_splits):
        if arm in _UNSELECTED:
            test = replace(gold, items=tuple(i for i in gold.items if i.split in gold.benchmark.test_splits))
            selected = [replace(prediction, setting=DEV_SELECTED) for prediction in predict(test)]
        else:
            assert task.positive is not None
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
