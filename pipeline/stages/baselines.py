"""The trivial and cheap predictors that stand in every table, judged like students on the same items."""

from collections.abc import Mapping, Sequence
from functools import cache, partial
from typing import Any

from pipeline.cluster import Cluster
from pipeline.encoder import load_encoder
from pipeline.evaluation import baselines
from pipeline.evaluation.baselines import FrozenBaselineConfig, PrototypeConfig
from pipeline.evaluation.decisions import STANDARD
from pipeline.experiment import FROZEN, TFIDF, DerivedConfig, ExperimentConfig
from pipeline.records import Example, GoldItem, Prediction, from_table
from pipeline.sources.data import AmbigNQTrainConfig, LabelledConfig
from pipeline.stages.dataset import EXAMPLES, ROWS
from pipeline.stages.embed import embed, embed_items, read_vectors
from pipeline.stages.evaluate import Predict, decide, judge, run_evaluation
from pipeline.stages.inputs import Gold, Inputs
from pipeline.steps import Outputs, Step, Steps
from pipeline.storage import Folder
from pipeline.students.frozen import Head, check_classes, fit_head
from pipeline.tasks.task import Task
from pipeline.weights import PinnedModel

_CODE = ("pipeline.evaluation.baselines", "pipeline.encoder", "pipeline.students.frozen", __name__)


def evaluate_baselines(
    datasets: Mapping[str, Step], experiment: ExperimentConfig, inputs: Inputs, steps: Steps, cluster: Cluster
) -> list[Step]:
    """Return the steps of all baselines: those of the experiment, and two for each arm, on TF-IDF and on vectors."""
    task, evaluation = inputs.task, experiment.evaluation
    written = {key: step for key, step in datasets.items() if _is_teachers(experiment, key)} or dict(datasets)

    def rows(*keys: str) -> list[Example]:
        tables = [datasets[key].folder.read_table(EXAMPLES) for key in keys]
        return [example for table in tables for example in from_table(Example, table)]

    def majority(gold: Gold) -> list[Prediction]:
        return baselines.predict_majority(gold.items, task.labels, task.positive, **_name(gold))

    def prior(gold: Gold) -> list[Prediction]:
        seeds = range(evaluation.prior_seeds)
        return baselines.predict_prior(gold.items, task.labels, task.positive, seeds, **_name(gold))

    def length(gold: Gold) -> list[Prediction]:
        assert task.positive is not None
        return baselines.predict_length(gold.items, rows(*written), task.labels, task.positive, **_name(gold))

    def prototype(gold: Gold) -> list[Prediction]:
        threads = experiment.scale.training.threads
        model, config = inputs.baseline_models["prototype"], evaluation.prototype
        return cluster.call(_predict_prototype, gold.items, model, config, task, _name(gold), threads, gpus=0)

    def tfidf(key: str, gold: Gold) -> list[Prediction]:
        return baselines.predict_tfidf(gold.items, rows(key), task.labels, task.positive, **_name(gold))

    digests = {key: step.manifest["digests"][ROWS] for key, step in datasets.items()}
    plan: dict[str, tuple[Predict, Mapping[str, str], dict[str, Any]]] = {
        "majority": (majority, {}, {}),
        "prior": (prior, {}, {"seeds": evaluation.prior_seeds}),
        "prototype": (
            prototype,
            {"model": inputs.baseline_models["prototype"].identity},
            {"prototype": evaluation.prototype, "sentences": task.prototypes},
        ),
    }
    if task.positive is not None:  # with more classes, length says nothing of which one
        plan["length"] = (length, {key: digests[key] for key in written}, {})
    for key, digest in digests.items():
        plan[f"{TFIDF}{key}"] = (partial(tfidf, key), {ROWS: digest}, {})
    if evaluation.frozen is not None:
        settings, model = evaluation.frozen, inputs.baseline_models["frozen"]
        of_items = embed_items(inputs.gold, model, settings.encoder, steps, cluster)
        for key, digest in digests.items():
            examples = rows(key)
            check_classes(f"{FROZEN}{key}", [example.label for example in examples], task.labels)
            of_rows = embed(key, [example.text for example in examples], model, settings.encoder, steps, cluster)
            vectors = {f"vectors {name}": step.fingerprint for name, step in {ROWS: of_rows, **of_items}.items()}
            frozen = _make_frozen(examples, of_rows, of_items, settings, task)
            plan[f"{FROZEN}{key}"] = (frozen, {ROWS: digest, **vectors}, {"frozen": settings})
    finished = []
    for name, (predict, made_of, config) in plan.items():

        def produce(folder: Folder, name: str = name, predict: Predict = predict) -> Outputs:
            data = digests.get(name.removeprefix(TFIDF).removeprefix(FROZEN), "")
            return judge(folder, predict, name, None, data, experiment, inputs)

        config = {"baseline": name, **config}
        finished.append(run_evaluation(produce, name, made_of, config, experiment, inputs, steps, _CODE))
    return finished


def _make_frozen(
    examples: Sequence[Example],
    of_rows: Step,
    of_items: Mapping[str, Step],
    config: FrozenBaselineConfig,
    task: Task,
) -> Predict:
    """Return the baseline of one arm's rows, which is fitted when it is first asked."""

    @cache
    def fit() -> Head:
        return fit_head(
            read_vectors(of_rows.folder, [example.text for example in examples]),
            [example.label for example in examples],
            task.labels,
            inverse_regularisation=config.inverse_regularisation,
            class_weights=config.class_weights,
        )

    def predict(gold: Gold) -> list[Prediction]:
        name = gold.benchmark.name
        vectors = read_vectors(of_items[name].folder, [item.text for item in gold.items])
        return decide(gold.items, fit().predict(vectors), task, benchmark=name)

    return predict


def _predict_prototype(
    items: Sequence[GoldItem],
    model: PinnedModel,
    config: PrototypeConfig,
    task: Task,
    name: Mapping[str, str],
    threads: int,
) -> list[Prediction]:
    import torch

    torch.set_num_threads(threads)
    encode = load_encoder(model, config.encoder, "cpu").encode_documents
    return baselines.predict_prototype(items, encode, task.prototypes, task.labels, task.positive, **name)


def _name(gold: Gold) -> dict[str, str]:
    return {"benchmark": gold.benchmark.name, "setting": STANDARD}


def _is_teachers(experiment: ExperimentConfig, key: str) -> bool:
    """Tell whether an arm has rows that a teacher wrote, and that no other arm has."""
    data = experiment.arms[key].data
    is_human = isinstance(data, AmbigNQTrainConfig) or (isinstance(data, LabelledConfig) and data.origin == "human")
    return not is_human and not isinstance(data, DerivedConfig)
