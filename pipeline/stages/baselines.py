"""The trivial and cheap predictors that stand in every table, judged like students on the same items."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from pipeline.cluster import Cluster
from pipeline.evaluation import baselines
from pipeline.evaluation.decisions import STANDARD
from pipeline.experiment import ExperimentConfig
from pipeline.records import Example, GoldItem, Prediction, from_table
from pipeline.sources.data import AmbigNQTrainConfig, LabelledConfig
from pipeline.stages.evaluate import Predict, judge, run_evaluation
from pipeline.stages.generate import EXAMPLES, ROWS
from pipeline.stages.inputs import Gold, Inputs
from pipeline.steps import Outputs, Step, Steps
from pipeline.storage import Folder
from pipeline.tasks.task import Task
from pipeline.weights import PinnedModel

_CODE = ("pipeline.evaluation.baselines", "pipeline.students.embedding", __name__)


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
        model, sentences = inputs.models["prototype"], evaluation.prototype.sentences
        return cluster.call(_predict_prototype, gold.items, model, sentences, task, _name(gold), threads, gpus=0)

    def tfidf(key: str, gold: Gold) -> list[Prediction]:
        return baselines.predict_tfidf(gold.items, rows(key), task.labels, task.positive, **_name(gold))

    digests = {key: step.manifest["digests"][ROWS] for key, step in datasets.items()}
    plan: dict[str, tuple[Predict, Mapping[str, str], dict[str, Any]]] = {
        "majority": (majority, {}, {}),
        "prior": (prior, {}, {"seeds": evaluation.prior_seeds}),
        "length": (length, {key: digests[key] for key in written}, {}),
        "prototype": (
            prototype,
            {"model": inputs.models["prototype"].identity},
            {"sentences": evaluation.prototype.sentences},
        ),
    }
    for key, digest in digests.items():
        plan[f"tfidf_{key}"] = (partial(tfidf, key), {ROWS: digest}, {})
    finished = []
    for name, (predict, made_of, config) in plan.items():

        def produce(folder: Folder, name: str = name, predict: Predict = predict) -> Outputs:
            data = digests.get(name.removeprefix("tfidf_"), "")
            return judge(folder, predict, name, None, data, experiment, inputs)

        config = {"baseline": name, **config}
        finished.append(run_evaluation(produce, name, made_of, config, experiment, inputs, steps, _CODE))
    return finished


def _predict_prototype(
    items: Sequence[GoldItem],
    model: PinnedModel,
    sentences: Mapping[str, str],
    task: Task,
    name: Mapping[str, str],
    threads: int,
) -> list[Prediction]:
    import torch

    from pipeline.students.embedding import load_encoder

    torch.set_num_threads(threads)
    encode = load_encoder(model)
    return baselines.predict_prototype(items, encode, sentences, task.labels, task.positive, **name)


def _name(gold: Gold) -> dict[str, str]:
    return {"benchmark": gold.benchmark.name, "setting": STANDARD}


def _is_human(experiment: ExperimentConfig, key: str) -> bool:
    data = experiment.arms[key].data
    return isinstance(data, AmbigNQTrainConfig) or (isinstance(data, LabelledConfig) and data.origin == "human")
