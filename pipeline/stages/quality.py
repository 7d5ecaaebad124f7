"""What arms' data sets look like by themselves: measures of each, and one page that shows them side by side."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml

from pipeline.cluster import Cluster
from pipeline.experiment import CartographyConfig, ExperimentConfig
from pipeline.identity import digest
from pipeline.quality.cartography import find_bounds
from pipeline.quality.intrinsic import QualityConfig, label_preservation, measure_intrinsic, pin_tools
from pipeline.records import Example, RowDynamics, from_table
from pipeline.report.html import read_templates
from pipeline.report.quality import DataMap, QualityInput, render_quality
from pipeline.stages.compare import count_lengths, describe_step
from pipeline.stages.dataset import EXAMPLES, ROWS
from pipeline.stages.dynamics import ROW_DYNAMICS
from pipeline.stages.embed import embed, embed_items, read_vectors
from pipeline.stages.inputs import Inputs
from pipeline.steps import Outputs, Step, Steps, versions
from pipeline.storage import Folder
from pipeline.students.train import FITS

QUALITY, PAGE = "quality.json", "quality.html"
MAP_TEXTS = 400
"""Rows of an arm, and gold items, that are drawn on the map."""
_MEASURES = ("cartography", "diversity", "intrinsic", "mauve", "optional", "overlap", "self_bleu", "tokens")
_CODE = (__name__, *(f"pipeline.quality.{name}" for name in _MEASURES))
_PAGE_CODE = (__name__, "pipeline.report.quality", "pipeline.report.quality_plots", "pipeline.report.plots")
Vectors = npt.NDArray[np.float32]


@dataclass(frozen=True)
class _Oracle:
    """A student that is trained on gold rows, and says whether others' rows have the label that was intended."""

    arm: str
    trained: Step
    seed: int
    eval_batch_size: int


def measure_quality(
    datasets: Mapping[str, Step],
    students: Mapping[tuple[str, str], Step],
    experiment: ExperimentConfig,
    inputs: Inputs,
    steps: Steps,
    cluster: Cluster,
) -> Step | None:
    """Return the step of the page on all arms' data sets, having measured each; None where it isn't asked for."""
    config = experiment.quality
    if config is None:
        return None
    oracle = _find_oracle(students, experiment)
    gold = next(iter(inputs.gold.values()))
    vectors, of_gold = {}, None
    if config.encoder is not None:
        model = inputs.baseline_models["quality"]
        of_gold = embed_items({gold.benchmark.name: gold}, model, config.encoder, steps, cluster)[gold.benchmark.name]
        vectors = {
            key: embed(key, [example.text for example in _read(step)], model, config.encoder, steps, cluster)
            for key, step in datasets.items()
        }
    measured = {
        key: _measure(key, step, vectors.get(key), of_gold, oracle, experiment, inputs, steps, cluster)
        for key, step in datasets.items()
    }
    return _show(measured, datasets, vectors, of_gold, experiment, inputs, steps)


def _find_oracle(students: Mapping[tuple[str, str], Step], experiment: ExperimentConfig) -> _Oracle | None:
    if experiment.oracle is None:
        return None
    arm, _, student = experiment.oracle.partition("/")
    config = experiment.students[student]
    return _Oracle(arm, students[arm, student], config.seeds[0], config.eval_batch_size)


def _read(dataset: Step) -> list[Example]:
    return list(from_table(Example, dataset.folder.read_table(EXAMPLES)))


def _measure(
    key: str,
    dataset: Step,
    vectors: Step | None,
    of_gold: Step | None,
    oracle: _Oracle | None,
    experiment: ExperimentConfig,
    inputs: Inputs,
    steps: Steps,
    cluster: Cluster,
) -> Step:
    config = experiment.quality
    assert config is not None
    gold = next(iter(inputs.gold.values()))
    judged_by = oracle if oracle is not None and oracle.arm != key else None

    def produce(folder: Folder) -> Outputs:
        examples = _read(dataset)
        texts = _group(examples, [example.text for example in examples])
        known = {label: read_vectors(vectors.folder, of) for label, of in texts.items()} if vectors else None
        gold_texts = _group(gold.items, [item.text for item in gold.items])
        of_items = {label: read_vectors(of_gold.folder, of) for label, of in gold_texts.items()} if of_gold else None
        measured = cluster.call(_measure_texts, texts, config, known, of_items, gpus=0)
        if judged_by is not None:
            with cluster.progress(f"oracle on {key}", "rows", len(examples)) as report:
                predicted = cluster.call(
                    _predict,
                    judged_by.trained.folder,
                    judged_by.seed,
                    [example.text for example in examples],
                    judged_by.eval_batch_size,
                    inputs.task.labels,
                    experiment.scale.training.threads,
                    report,
                    gpus=0,
                )
            _add_preservation(measured, predicted, examples)
        folder.write_json(QUALITY, measured)
        found = {name: one["value"] for name, one in measured["overall"]["measures"].items()}
        return Outputs(
            counts={"rows": len(examples)}, metrics={f"quality/{n}": v for n, v in found.items() if v is not None}
        )

    return steps.run(
        "quality",
        produce,
        arm=key,
        config={"quality": config, "tools": pin_tools(config), "labels": inputs.task.labels},
        inputs={
            ROWS: dataset.manifest["digests"][ROWS],
            **({"vectors": vectors.fingerprint} if vectors else {}),
            **({"gold": gold.digest, "gold vectors": of_gold.fingerprint} if of_gold else {}),
            **({"oracle": judged_by.trained.fingerprint} if judged_by else {}),
        },
        code=_CODE,
    )


def _measure_texts(
    texts: Mapping[str, Sequence[str]],
    config: QualityConfig,
    vectors: Mapping[str, Vectors] | None,
    gold: Mapping[str, Vectors] | None,
) -> dict[str, Any]:
    """Return all measures; runs in a task."""
    return measure_intrinsic(texts, config, vectors=vectors, gold=gold)


def _group(rows: Sequence[Any], values: Sequence[str]) -> dict[str, list[str]]:
    """Return values by their rows' labels."""
    grouped: dict[str, list[str]] = {}
    for row, value in zip(rows, values, strict=True):
        grouped.setdefault(row.label, []).append(value)
    return grouped


def _predict(
    trained: Folder,
    seed: int,
    texts: Sequence[str],
    batch_size: int,
    labels: Sequence[str],
    threads: int,
    report: Callable[[Mapping[str, int]], None],
) -> list[str]:
    """Return the label that a student's fit says for each text; runs in a task."""
    import torch

    from pipeline.students.predictor import load_predictor

    torch.set_num_threads(threads)
    with (trained / FITS).as_local(f"final-{seed}") as folder:
        decided = load_predictor(folder, False)(texts, batch_size).argmax(axis=1)
    report({"done": len(texts)})
    return [labels[index] for index in decided]


def _add_preservation(measured: dict[str, Any], predicted: Sequence[str], examples: Sequence[Example]) -> None:
    intended = [example.label for example in examples]
    measured["overall"]["measures"]["label_preservation"] = {
        "value": label_preservation(predicted, intended),
        "n": len(intended),
    }
    for label, scope in measured["labels"].items():
        own = [position for position, one in enumerate(intended) if one == label]
        scope["measures"]["label_preservation"] = {
            "value": label_preservation([predicted[p] for p in own], [label] * len(own)),
            "n": len(own),
        }


def _show(
    measured: Mapping[str, Step],
    datasets: Mapping[str, Step],
    vectors: Mapping[str, Step],
    of_gold: Step | None,
    experiment: ExperimentConfig,
    inputs: Inputs,
    steps: Steps,
) -> Step:
    config = experiment.quality
    assert config is not None

    def produce(folder: Folder) -> Outputs:
        points, gold_points = _project(datasets, vectors, of_gold, inputs, config)
        page = render_quality(
            QualityInput(
                experiment=experiment.name,
                measured={key: step.folder.read_json(QUALITY) for key, step in measured.items()},
                lengths={key: count_lengths(step) for key, step in datasets.items()},
                points=points,
                gold_points=gold_points,
                maps=_read_maps(datasets, experiment),
                benchmark=next(iter(inputs.gold)),
                oracle=experiment.oracle,
                config=yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False),
                versions=versions(),
                steps=[describe_step(step) for step in (*datasets.values(), *measured.values())],
            )
        )
        folder.write_text(PAGE, page)
        return Outputs(counts={"arms": len(measured)})

    return steps.run(
        "quality_page",
        produce,
        arm="",
        config={"name": experiment.name, "template": digest(read_templates()), "oracle": experiment.oracle},
        inputs={
            **{f"quality {key}": step.fingerprint for key, step in measured.items()},
            **{f"dataset {key}": step.fingerprint for key, step in datasets.items()},
        },
        code=_PAGE_CODE,
    )


def _read_maps(datasets: Mapping[str, Step], experiment: ExperimentConfig) -> dict[str, DataMap]:
    """Return how a student learned the rows that arms were picked from."""
    maps = {}
    for key, arm in experiment.arms.items():
        if isinstance(arm.data, CartographyConfig):
            dynamics = list(from_table(RowDynamics, datasets[key].folder.read_table(ROW_DYNAMICS)))
            selection = arm.data.selection
            maps[key] = DataMap(arm.data.arm, dynamics, selection.statistic, find_bounds(dynamics, selection))
    return maps


def _project(
    datasets: Mapping[str, Step],
    vectors: Mapping[str, Step],
    of_gold: Step | None,
    inputs: Inputs,
    config: QualityConfig,
) -> tuple[dict[str, Vectors], Vectors | None]:
    """Return rows of each arm, and gold items, on the two first principal components of all their vectors."""
    if of_gold is None or not vectors:
        return {}, None
    from sklearn.decomposition import PCA

    gold = [item.text for item in next(iter(inputs.gold.values())).items]
    texts = {key: [example.text for example in _read(step)] for key, step in datasets.items()}
    found = {key: read_vectors(vectors[key].folder, _draw(texts[key], config.seed)) for key in datasets}
    gold_vectors = read_vectors(of_gold.folder, _draw(gold, config.seed))
    projection = PCA(n_components=2, random_state=config.seed).fit(np.concatenate([gold_vectors, *found.values()]))
    return {key: projection.transform(of) for key, of in found.items()}, projection.transform(gold_vectors)


def _draw(texts: Sequence[str], seed: int) -> list[str]:
    return sorted(set(texts), key=lambda text: digest([seed, text]))[:MAP_TEXTS]
