"""How a student's score grows with its training rows, and with what the teacher takes for that many.

Of each arm's data set subsets are drawn, each a data set of its own, and students are trained on and judged with each
as with whole arms. A fit of a subset has a draw and a seed of its own, the student's seeds in turn: drawing and
training are two sources of chance, and an interval over fits that share a draw calls them surer than they are. All rows
of an arm can be drawn in one way only; there the fits are the student's own, the very steps that `run.py` has.
"""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import mean
from typing import Annotated

import yaml
from pydantic import Field, field_validator, model_validator

from pipeline.cluster import Cluster
from pipeline.config import Config
from pipeline.evaluation.bootstrap import estimate
from pipeline.evaluation.comparison import Entry
from pipeline.experiment import ArmConfig, ExperimentConfig
from pipeline.identity import derive_seed, digest
from pipeline.records import Prediction, from_table
from pipeline.report.curves import group_points, render_curves
from pipeline.report.html import read_templates
from pipeline.report.plots import CurvePoint, render
from pipeline.sources.data import MixConfig
from pipeline.stages.baselines import evaluate_baselines
from pipeline.stages.compare import REPORT, describe_step
from pipeline.stages.derive import build_mix
from pipeline.stages.evaluate import ENTRIES, PREDICTIONS, evaluate_student
from pipeline.stages.generate import build_datasets
from pipeline.stages.inputs import Inputs
from pipeline.stages.spending import measure_cost, read_costs
from pipeline.stages.train import train
from pipeline.steps import Outputs, Step, Steps, versions
from pipeline.storage import Folder
from pipeline.tasks.task import LabellingConfig

LOG = logging.getLogger(__name__)
CURVES = "curves.json"
_CODE = (
    *(f"pipeline.report.{name}" for name in ("curves", "html", "plots", "table")),
    *(f"pipeline.evaluation.{name}" for name in ("bootstrap", "measures")),
)


class CurvesConfig(Config):
    """Which parts of an arm's rows students are trained on."""

    sizes: tuple[Annotated[int, Field(gt=0)], ...] = Field(min_length=1)
    """Rows; all rows of an arm are always the last point, and sizes that it doesn't reach are left out."""
    draws: int = Field(gt=0)
    """Of each size, each from a seed of its own."""

    @field_validator("sizes")
    @classmethod
    def _check_sizes(cls, sizes: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(sizes)) != len(sizes):
            raise ValueError(f"each size once, given {list(sizes)}")
        return tuple(sorted(sizes))


class CurvesExperimentConfig(ExperimentConfig):
    """An experiment that is run for its curves."""

    curves: CurvesConfig

    @model_validator(mode="after")
    def _check_students(self) -> "CurvesExperimentConfig":
        if not isinstance(self.task, LabellingConfig):
            raise ValueError(f"task: curves are of students that label texts, and {self.task.name} ranks them")
        return self


@dataclass(frozen=True)
class Subset:
    """Rows of an arm that students are trained on."""

    name: str
    """In the place of the arm, for steps and tracking: the arm's key for all its rows."""
    dataset: Step
    draw: int | None
    """Its number, from 1; None: all rows."""


@dataclass(frozen=True)
class Fits:
    """All fits of one student on as many rows of one arm: a point of its curves."""

    arm: str
    student: str
    subsets: Sequence[Subset]
    evaluations: Sequence[Step]
    """One for each subset."""


def trace_curves(experiment: CurvesExperimentConfig, inputs: Inputs, steps: Steps, cluster: Cluster) -> Step:
    """Return the step that holds the curves of every arm and student, after all that they are made of.

    Raises:
        ConfigError: A teacher that has to be asked lacks its key or its engine, or a subset has too few groups for a
            student's folds.
        RaystillError: See `build_datasets`, `train` and `evaluate_student`.
    """
    datasets = build_datasets(experiment, inputs, steps, cluster)
    # All subsets before the first training: one that can't be drawn shows soon.
    trained = dict.fromkeys(arm for arm, _ in experiment.pairs())
    subsets = {arm: draw_subsets(arm, datasets, experiment, inputs, steps) for arm in trained}
    fits = [
        Fits(arm, student, of_size, [_fit(subset, student, experiment, inputs, steps, cluster) for subset in of_size])
        for arm, student in experiment.pairs()
        for of_size in subsets[arm]
    ]
    baselines = evaluate_baselines(datasets, experiment, inputs, steps, cluster)
    return _summarise(fits, datasets, baselines, experiment, inputs, steps)


def draw_subsets(
    arm: str, datasets: Mapping[str, Step], experiment: CurvesExperimentConfig, inputs: Inputs, steps: Steps
) -> list[list[Subset]]:
    """Return an arm's subsets by size, smallest first, and all its rows.

    Draws of one number are nested, and draw the same groups from every arm that has them, so that neither the steps of
    a curve nor the distance of two curves is a matter of which topics were drawn.
    """
    curves, n_rows = experiment.curves, datasets[arm].manifest["counts"]["rows"]
    if too_large := [size for size in curves.sizes if size > n_rows]:
        LOG.warning("%s has %d rows, so its curve has no point at %s", arm, n_rows, ", ".join(map(str, too_large)))

    def draw_one(size: int, draw: int) -> Subset:
        config, name = experiment.arms[arm], f"{arm}_rows{size}_draw{draw}"
        # Kept rows of the arm as a mix of it alone; fewer rows of a mix are the same mix with fewer rows.
        shares = config.data.shares if isinstance(config.data, MixConfig) else {arm: 1.0}
        fewer = ArmConfig(
            data=MixConfig(kind="mix", shares=shares, seed=derive_seed(experiment.seed, "curve", draw)),
            filters=config.filters.model_copy(update={"max_rows": size}),
        )
        return Subset(name, build_mix(name, fewer, datasets, experiment, inputs, steps), draw)

    draws = range(1, curves.draws + 1)
    drawn = [[draw_one(size, draw) for draw in draws] for size in curves.sizes if size < n_rows]
    return [*drawn, [Subset(arm, datasets[arm], None)]]


def _fit(
    subset: Subset, student: str, experiment: ExperimentConfig, inputs: Inputs, steps: Steps, cluster: Cluster
) -> Step:
    """Return the evaluation of a student trained on a subset."""
    if subset.draw is not None:
        config = experiment.students[student]
        seed = config.seeds[(subset.draw - 1) % len(config.seeds)]
        students = {**experiment.students, student: config.model_copy(update={"seeds": (seed,)})}
        experiment = experiment.model_copy(update={"students": students})
    trained = train(subset.name, student, subset.dataset, experiment, inputs, steps, cluster)
    return evaluate_student(subset.name, student, trained, subset.dataset, experiment, inputs, steps, cluster)


def _summarise(
    fits: Sequence[Fits],
    datasets: Mapping[str, Step],
    baselines: Sequence[Step],
    experiment: ExperimentConfig,
    inputs: Inputs,
    steps: Steps,
) -> Step:
    made_of = [*datasets.values(), *(evaluation for part in fits for evaluation in part.evaluations), *baselines]

    def produce(folder: Folder) -> Outputs:
        per_row = {arm: read_costs(step) for arm, step in datasets.items()}
        points = [point for part in fits for point in _estimate(part, per_row, experiment, inputs)]
        known = [_of_baseline(Entry(**entry)) for step in baselines for entry in step.folder.read_json(ENTRIES)]
        folder.write_json(CURVES, [*points, *known])
        shown = inputs.task.measures
        for family in group_points([*points, *known], shown):
            name = f"{family.student}_{family.benchmark}_{family.setting}".lower().replace(" ", "_")
            for along, figure in family.draw().items():
                folder.write_bytes(f"{name}_{along}.png", render(figure, "png"))
        plain = yaml.safe_dump(experiment.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
        described = [describe_step(step) for step in made_of]
        folder.write_text(
            REPORT, render_curves(experiment.name, [*points, *known], described, plain, versions(), shown)
        )
        headline = [point for point in points if point["measure"] in shown]
        now = time.time()
        return Outputs(
            counts={"points": len(points), "evaluations": len(made_of) - len(datasets)},
            # With rows as its steps, a metric's own page is the curve.
            series=tuple((_name_metric(point), int(point["rows"] or 0), point["value"], now) for point in headline),
        )

    return steps.run(
        "curves",
        produce,
        arm="",
        config={
            "name": experiment.name,
            "points": [[part.arm, part.student, [subset.name for subset in part.subsets]] for part in fits],
            "bootstrap": {"replicates": experiment.evaluation.n_replicates, "seed": experiment.evaluation.seed},
            "templates": digest(read_templates()),
        },
        inputs={f"{step.name} {step.arm}": step.fingerprint for step in made_of},
        code=[*_CODE, "pipeline.stages.spending", __name__],
    )


def _estimate(
    part: Fits, per_row: Mapping[str, Mapping[str, float | None]], experiment: ExperimentConfig, inputs: Inputs
) -> list[CurvePoint]:
    """Return a point's measures on every benchmark and setting: each pair of a draw and a seed counts as a seed."""
    by_place: dict[tuple[str, str], list[Prediction]] = {}
    pairs: dict[tuple[int, int], int] = {}
    for draw, evaluation in enumerate(part.evaluations):
        for prediction in from_table(Prediction, evaluation.folder.read_table(PREDICTIONS)):
            pair = pairs.setdefault((draw, prediction.seed), len(pairs))
            place = (prediction.benchmark, prediction.setting)
            by_place.setdefault(place, []).append(replace(prediction, seed=pair))
    steps = [subset.dataset for subset in part.subsets]
    costs = [measure_cost(part.arm, step, per_row) for step in steps]
    task, evaluation_config = inputs.task, experiment.evaluation
    return [
        CurvePoint(
            arm=part.arm,
            student=part.student,
            benchmark=benchmark,
            setting=setting,
            rows=round(mean(step.manifest["counts"]["rows"] for step in steps)),
            fits=len(pairs),
            usd=_mean([cost["usd"] for cost in costs]),
            device_s=_mean([cost["device_s"] for cost in costs]),
            measure=one.measure,
            value=one.value,
            low=one.low,
            high=one.high,
            n=one.n,
        )
        for (benchmark, setting), predictions in by_place.items()
        for one in estimate(
            predictions, task.labels, task.positive, evaluation_config.n_replicates, evaluation_config.seed
        )
    ]


def _mean(amounts: Sequence[float | None]) -> float | None:
    measured = [amount for amount in amounts if amount is not None]
    return mean(measured) if len(measured) == len(amounts) else None


def _of_baseline(entry: Entry) -> CurvePoint:
    return CurvePoint(
        arm=entry.arm,
        student=entry.student,
        benchmark=entry.benchmark,
        setting=entry.setting,
        measure=entry.measure,
        rows=None,
        value=entry.value,
        low=entry.low,
        high=entry.high,
        n=entry.n,
        fits=None,
        usd=None,
        device_s=None,
    )


def _name_metric(point: CurvePoint) -> str:
    return f"{point['benchmark']}/{point['setting']}/{point['measure']}/{point['arm']} {point['student']}"
