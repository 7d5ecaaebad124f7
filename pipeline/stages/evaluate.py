"""From students and baselines to predictions and measures on the benchmarks: the one stage that opens test items.

A student's scores are computed once for all items of a benchmark, dev splits included. The setting `standard` reports
them all; `dev-selected` chooses the decision threshold on the dev splits and reports the test split alone.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any

from pipeline.cluster import Cluster
from pipeline.evaluation import baselines
from pipeline.evaluation.bootstrap import estimate
from pipeline.evaluation.comparison import Entry, to_entries
from pipeline.evaluation.cost import CostConfig, measure_cost
from pipeline.evaluation.decisions import DEV_SELECTED, STANDARD, select_on_dev, to_predictions
from pipeline.experiment import ExperimentConfig
from pipeline.records import Example, GoldItem, Prediction, from_table, to_table
from pipeline.sources.data import AmbigNQTrainConfig, LabelledConfig
from pipeline.stages.generate import EXAMPLES
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
_CODE = tuple(f"pipeline.evaluation.{name}" for name in ("measures", "bootstrap", "decisions", "baselines"))

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
    config = experiment.students[student]

    def produce(folder: Folder) -> Outputs:
        items = {name: gold.items for name, gold in inputs.gold.items()}
        n_items = len(config.seeds) * sum(len(gold) for gold in items.values())
        with cluster.progress(f"evaluate {student}@{arm}", "items", n_items) as report:
            predictions, cost = cluster.call(
                score_items,
                trained.folder,
                config.seeds,
                config.eval_batch_size,
                items,
                inputs.task,
                experiment.evaluation.cost,
                experiment.scale.training.threads,
                report,
            )
        folder.write_json(COST, {"arm": arm, "student": student, **cost})
        by_name = lambda gold: predictions[gold.benchmark.name]  # noqa: E731
        return _judge(folder, by_name, arm, student, dataset.fingerprint, experiment, inputs)

    return _run(produce, f"{arm}/{student}", {"student": trained.fingerprint}, {}, experiment, inputs, steps)


def evaluate_baselines(
    datasets: Mapping[str, Step], experiment: ExperimentConfig, inputs: Inputs, steps: Steps, cluster: Cluster
) -> list[Step]:
    """Return the steps of all baselines: four of the experiment, and TF-IDF for each arm."""
    task, evaluation = inputs.task, experiment.evaluation
    written = {key: step for key, step in datasets.items() if not _is_human(experiment, key)} or dict(datasets)

    def rows(*keys: str) -> list[Example]:
        tables = [datasets[key].folder.read_table(EXAMPLES) for key in keys]
        return [example for table in tables for example in from_table(Example, table)]

    def majority(gold: Gold) -> list[Prediction]:
        return baselines.predict_majority(gold.items, task.labels, task.positive, **_name(gold))

    def prior(gold: Gold) -> list[Prediction]:
        seeds = range(evaluation.prior_seeds)
        return baselines.predict_prior(gold.items, task.labels, task.positive, seeds, **_name(gold))

    def length(gold: Gold) -> list[Prediction]:
        return baselines.predict_length(gold.items, rows(*written), task.labels, task.positive, **_name(gold))

    def prototype(gold: Gold) -> list[Prediction]:
        threads = experiment.scale.training.threads
        return cluster.call(_predict_prototype, gold.items, evaluation.prototype, task, _name(gold), threads)

    def tfidf(key: str, gold: Gold) -> list[Prediction]:
        return baselines.predict_tfidf(gold.items, rows(key), task.labels, task.positive, **_name(gold))

    fingerprints = {key: step.fingerprint for key, step in datasets.items()}
    plan: dict[str, tuple[Predict, Mapping[str, str], dict[str, Any]]] = {
        "majority": (majority, {}, {}),
        "prior": (prior, {}, {"seeds": evaluation.prior_seeds}),
        "length": (length, {key: fingerprints[key] for key in written}, {}),
        "prototype": (prototype, {"model": inputs.models["prototype"]}, {"sentences": evaluation.prototype.sentences}),
    }
    for key, fingerprint in fingerprints.items():
        plan[f"tfidf_{key}"] = (partial(tfidf, key), {"dataset": fingerprint}, {})
    finished = []
    for name, (predict, made_of, config) in plan.items():

        def produce(folder: Folder, name: str = name, predict: Predict = predict) -> Outputs:
            data = fingerprints.get(name.removeprefix("tfidf_"), "")
            return _judge(folder, predict, name, None, data, experiment, inputs)

        config = {"baseline": name, **config}
        finished.append(_run(produce, name, made_of, config, experiment, inputs, steps))
    return finished


def score_items(
    trained: Folder,
    seeds: Sequence[int],
    batch_size: int,
    items: Mapping[str, Sequence[GoldItem]],
    task: Task,
    cost: CostConfig,
    threads: int,
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
            predict = load_predictor(folder)
            for name, gold in items.items():
                probabilities = predict([item.text for item in gold], batch_size)
                decided = [task.labels[index] for index in probabilities.argmax(axis=1)]
                scores = probabilities[:, positive]
                predictions[name] += to_predictions(gold, decided, scores, benchmark=name, setting=STANDARD, seed=seed)
                report({"done": len(gold)})
            if not costs:
                texts = [item.text for gold in items.values() for item in gold][:_COST_TEXTS]
                speed = measure_cost(partial(_predict_batch, predict), texts, **cost.model_dump())
                costs = {**describe_model(folder), **asdict(speed), "threads": threads}
    return predictions, costs


def _predict_batch(predict: Callable[[Sequence[str], int], Any], texts: list[str]) -> object:
    return predict(texts, len(texts))


def _predict_prototype(
    items: Sequence[GoldItem],
    config: baselines.PrototypeConfig,
    task: Task,
    name: Mapping[str, str],
    threads: int,
) -> list[Prediction]:
    import torch

    from pipeline.students.embedding import load_encoder

    torch.set_num_threads(threads)
    encode = load_encoder(config.model)
    return baselines.predict_prototype(items, encode, config.sentences, task.labels, task.positive, **name)


def _judge(
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


def _run(
    produce: Callable[[Folder], Outputs],
    arm: str,
    made_of: Mapping[str, str],
    config: Mapping[str, Any],
    experiment: ExperimentConfig,
    inputs: Inputs,
    steps: Steps,
) -> Step:
    return steps.run(
        "evaluation",
        produce,
        arm=arm,
        config={
            **config,
            # A name for tables, yet part of the files that the step writes.
            "arm": arm,
            "task": inputs.task.name,
            "settings": experiment.task.settings,
            "bootstrap": {"replicates": experiment.evaluation.n_replicates, "seed": experiment.evaluation.seed},
        },
        inputs={**made_of, **{f"gold {name}": gold.digest for name, gold in inputs.gold.items()}},
        code=[*_CODE, __name__],
    )


def _name(gold: Gold) -> dict[str, str]:
    return {"benchmark": gold.benchmark.name, "setting": STANDARD}


def _is_human(experiment: ExperimentConfig, key: str) -> bool:
    data = experiment.arms[key].data
    return isinstance(data, AmbigNQTrainConfig) or (isinstance(data, LabelledConfig) and data.origin == "human")
