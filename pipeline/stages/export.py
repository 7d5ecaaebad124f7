"""From a trained classifier to a folder that stands by itself: Hugging Face's form, ONNX beside it, and a model card.

What is exported is the final fit of the first seed.
"""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.cluster import Cluster, Report
from pipeline.errors import ConfigError, ExportError
from pipeline.evaluation.bootstrap import estimate
from pipeline.evaluation.comparison import to_entries
from pipeline.evaluation.cost import CostConfig
from pipeline.evaluation.measures import compute_measures
from pipeline.experiment import ExperimentConfig
from pipeline.records import GoldItem, Prediction, from_table
from pipeline.report.model_card import CardInput, write_model_card
from pipeline.sources.data import SeedData
from pipeline.stages.dataset import ROWS
from pipeline.stages.engine_costs import EngineCost, measure_engine
from pipeline.stages.evaluate import COST, COST_TEXTS, ENTRIES, PREDICTIONS
from pipeline.stages.inputs import Inputs
from pipeline.steps import Outputs, Step, Steps
from pipeline.storage import Folder
from pipeline.students.config import ClassifierConfig
from pipeline.students.engines import ENGINES, FILES, Engine
from pipeline.students.onnx import save_for_export
from pipeline.students.train import FITS
from pipeline.tasks.task import Task

MODEL_CARD, EXPORT = "README.md", "export.json"
MAX_LOGIT_DIFFERENCE = 1e-3
"""Between torch and ONNX in 32-bit floats; sums in another order differ by 1e-7 to 1e-5."""
_CODE = (
    "pipeline.students.onnx",
    "pipeline.students.scoring",
    "pipeline.students.engines",
    "pipeline.stages.engine_costs",
    "pipeline.report.model_card",
    "pipeline.report.table",
    "pipeline.evaluation.bootstrap",
    "pipeline.evaluation.measures",
    "pipeline.evaluation.cost",
    __name__,
)


def check_exports(experiment: ExperimentConfig) -> None:
    """Check that all students to export are of a kind that export knows.

    Raises:
        ConfigError: One is not.
    """
    for arm, student in experiment.exports():
        if not isinstance(config := experiment.students[student], ClassifierConfig):
            raise ConfigError(
                f"students.{student} is of kind {config.kind}, but export knows classifiers; name pairs of those, as "
                f"in export=[{arm}/<student>]"
            )


def export_students(
    students: Mapping[tuple[str, str], Step],
    datasets: Mapping[str, Step],
    evaluations: Sequence[Step],
    experiment: ExperimentConfig,
    inputs: Inputs,
    steps: Steps,
    cluster: Cluster,
) -> list[Step]:
    """Return the step of each exported student.

    Args:
        students: By (arm, student).
        datasets: By arm.
        evaluations: Of students, baselines and judges.
        experiment: Says which students to export.
        inputs: The benchmarks.
        steps: Where steps run or are found.
        cluster: Where engines are measured.

    Raises:
        ExportError: An ONNX model doesn't run, or its logits are not the student's.
    """
    by_arm = {step.arm: step for step in evaluations}
    others = {arm: step for arm, step in by_arm.items() if "/" not in arm or arm.split("/")[0] in experiment.judges}
    return [
        _export(
            pair, students[pair], datasets[pair[0]], by_arm["/".join(pair)], others, experiment, inputs, steps, cluster
        )
        for pair in experiment.exports()
    ]


def _export(
    pair: tuple[str, str],
    trained: Step,
    dataset: Step,
    evaluation: Step,
    others: Mapping[str, Step],
    experiment: ExperimentConfig,
    inputs: Inputs,
    steps: Steps,
    cluster: Cluster,
) -> Step:
    arm, student = pair
    config, task = experiment.students[student], inputs.task
    assert isinstance(config, ClassifierConfig)
    cost, threads, bootstrap = experiment.evaluation.cost, experiment.scale.training.threads, experiment.evaluation
    seed, writer = config.seeds[0], experiment.arms[arm].teacher
    teacher = None if writer is None else writer.label

    def produce(folder: Folder) -> Outputs:
        gold = {name: gold.items for name, gold in inputs.gold.items()}
        with cluster.progress(f"export {student}@{arm}", "engines", len(ENGINES)) as report:
            measured = cluster.call(
                _export_and_measure, trained.folder, seed, folder, gold, task, cost, threads, report, gpus=0
            )
        judges = [step.folder.read_json(COST) for step in others.values() if step.folder.exists(COST)]
        folder.write_json(EXPORT, {"arm": arm, "student": student, "seed": seed, **measured, "judges": judges})
        baselines = [e for step in others.values() if "/" not in step.arm for e in step.folder.read_json(ENTRIES)]
        entries = _judge_fit(evaluation, seed, pair, bootstrap.n_replicates, bootstrap.seed, task)
        model = inputs.models[student]
        card = CardInput(
            arm=arm,
            student=student,
            seed=seed,
            other_seeds=config.seeds[1:],
            base_model=config.model,
            is_on_hub=model.revision is not None,
            task=task.name,
            labels=task.labels,
            data=_describe_data(experiment, arm),
            teacher=teacher,
            n_rows=dataset.manifest["counts"]["rows"],
            n_epochs=(trained.folder / FITS).read_json(f"final-{seed}.json")["best_epoch"],
            settings=config.model_dump(mode="json", exclude={"label", "model", "seeds", "eval_batch_size"})
            | {"seed": seed},
            entries=entries + baselines,
            engines=measured["engines"],
            judges=judges,
            cpu=measured["cpu"],
            threads=threads,
            export_fingerprint=trained.fingerprint,
        )
        folder.write_text(MODEL_CARD, write_model_card(card))
        return Outputs(counts={"items": sum(map(len, gold.values()))}, metrics=_summarise(measured["engines"]))

    return steps.run(
        "export",
        produce,
        arm=f"{arm}/{student}",
        config={
            # Names, yet part of the card.
            "arm": arm,
            "student": student,
            "data": _describe_data(experiment, arm),
            "teacher": teacher,
            "model": config.model,
            "revision": inputs.models[student].revision,
            "labels": task.labels,
            "positive": task.positive,
            "settings": experiment.task.settings,
            "cost": cost,
            "threads": threads,
            "bootstrap": {"replicates": bootstrap.n_replicates, "seed": bootstrap.seed},
        },
        inputs={
            ROWS: dataset.manifest["digests"][ROWS],
            "student": trained.fingerprint,
            "evaluation": evaluation.fingerprint,
            **{f"evaluation {name}": step.fingerprint for name, step in others.items()},
        },
        code=_CODE,
    )


def _export_and_measure(
    trained: Folder,
    seed: int,
    target: Folder,
    gold: Mapping[str, Sequence[GoldItem]],
    task: Task,
    cost: CostConfig,
    threads: int,
    report: Report,
) -> dict[str, Any]:
    """Write the model's files and return what its engines say and take; runs in a task."""
    import torch

    torch.set_num_threads(threads)
    texts = [item.text for items in gold.values() for item in items]
    measured: dict[Engine, EngineCost] = {}
    with tempfile.TemporaryDirectory() as scratch, (trained / FITS).as_local(f"final-{seed}") as fit:
        folder = Path(scratch)
        save_for_export(fit, folder)
        for engine in ENGINES:
            measured[engine] = measure_engine(folder, engine, texts, COST_TEXTS, cost, threads)
            check_parity(engine, measured["torch"].logits, measured[engine].logits)
            report({"done": 1})
        sizes = {engine: (folder / file).stat().st_size / 1e6 for engine, file in FILES.items()}
        target.upload(folder, "")
    reference = measured["torch"].logits
    expected = _macro_f1(reference, gold, task)
    described = []
    for engine, one in measured.items():
        scores = _macro_f1(one.logits, gold, task)
        described.append(
            {
                "engine": engine,
                "file": FILES[engine],
                "file_mb": round(sizes[engine], 1),
                "peak_memory_mb": one.peak_memory_mb,
                **one.speed,
                "max_logit_difference": float(np.abs(one.logits - reference).max()),
                "changed_decisions": float((one.logits.argmax(axis=1) != reference.argmax(axis=1)).mean()),
                "macro_f1": scores,
                "macro_f1_change": {name: scores[name] - expected[name] for name in scores},
            }
        )
    return {"cpu": measured["torch"].cpu, "threads": threads, "n_items": len(texts), "engines": described}


def check_parity(engine: Engine, expected: np.ndarray, logits: np.ndarray) -> None:
    """Check that an engine in 32-bit floats says what torch says; 8-bit integers may differ, which is reported.

    Args:
        engine: What computed `logits`.
        expected: Of torch, (n_texts, n_classes).
        logits: Of the same texts.

    Raises:
        ExportError: A logit differs by more than `MAX_LOGIT_DIFFERENCE`, or is no number.
    """
    largest = np.abs(logits - expected).max()
    if engine != "onnx-int8" and not largest <= MAX_LOGIT_DIFFERENCE:  # NaN is not
        raise ExportError(
            f"engine {engine}: a logit differs from torch's by {largest:g} on {len(logits):,} texts, and at most "
            f"{MAX_LOGIT_DIFFERENCE:g} is right; this architecture is not exported as it is"
        )


def _macro_f1(logits: np.ndarray, gold: Mapping[str, Sequence[GoldItem]], task: Task) -> dict[str, float]:
    """Return macro-F1 by benchmark, over all its items; logits in the order of the benchmarks' items."""
    found, start = {}, 0
    for name, items in gold.items():
        decided = logits[start : start + len(items)].argmax(axis=1)
        truth = np.array([task.labels.index(item.label) for item in items])
        unranked = np.zeros(len(items))
        measures = compute_measures(truth, decided, unranked, np.ones((1, len(items))), task.labels, None)
        found[name] = float(measures["macro-F1"][0])
        start += len(items)
    return found


def _judge_fit(
    evaluation: Step, seed: int, pair: tuple[str, str], n_replicates: int, bootstrap_seed: int, task: Task
) -> list[Any]:
    """Return the entries of one fit, plain, as in `entries.json`, where the student's are means over fits."""
    places: dict[tuple[str, str], list[Prediction]] = {}
    for prediction in from_table(Prediction, evaluation.folder.read_table(PREDICTIONS)):
        if prediction.seed == seed:
            places.setdefault((prediction.benchmark, prediction.setting), []).append(prediction)
    entries: list[Any] = []
    for (benchmark, setting), predictions in places.items():
        estimates = estimate(predictions, task.labels, task.positive, n_replicates, bootstrap_seed)
        place = {"arm": pair[0], "student": pair[1], "benchmark": benchmark, "setting": setting}
        entries += [asdict(entry) for entry in to_entries(estimates, data="", **place)]
    return entries


def _describe_data(experiment: ExperimentConfig, arm: str) -> str:
    data = experiment.arms[arm].data
    return f"from {data.kind}" if isinstance(data, SeedData) else f"of kind {data.kind}"


def _summarise(engines: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    names = ("latency_p50_ms", "throughput_rows_per_s", "file_mb", "max_logit_difference", "changed_decisions")
    return {f"{engine['engine']}/{name}": float(engine[name]) for engine in engines for name in names}
