"""The flow, stated once: sources, prompt, teach, parse, filter, dataset, train, evaluate, compare or export.

Every job is this function up to one of its stages. Each stage finds what came before it by fingerprint, so whichever
job runs first does the work and the others keep it.
"""

import logging
from dataclasses import dataclass
from typing import Literal

from pipeline.cluster import Cluster
from pipeline.experiment import ExperimentConfig
from pipeline.identity import digest
from pipeline.stages.answers import measure_answers
from pipeline.stages.baselines import evaluate_baselines
from pipeline.stages.compare import Rankings, compare
from pipeline.stages.curves import CurvesExperimentConfig, trace_curves
from pipeline.stages.evaluate import evaluate_student
from pipeline.stages.export import check_exports, export_students
from pipeline.stages.generate import build_datasets
from pipeline.stages.inputs import Inputs, read_inputs
from pipeline.stages.judge import evaluate_judges
from pipeline.stages.negatives import add_negatives
from pipeline.stages.probe import GenerateExperimentConfig
from pipeline.stages.project import plan_spending
from pipeline.stages.quality import measure_quality
from pipeline.stages.rank import evaluate_rankings, measure_differences
from pipeline.stages.train import train
from pipeline.stages.tune import SearchExperimentConfig, check_search, search
from pipeline.steps import Step, Steps
from pipeline.storage import Folder
from pipeline.tracking import Tracker

LOG = logging.getLogger(__name__)
Stage = Literal["plan", "generate", "train", "evaluate", "export", "compare"]
"""A plan asks a probe in place of all; the last two both follow `evaluate`, and neither needs the other."""


@dataclass(frozen=True)
class Finished:
    """What a run came to."""

    steps: list[Step]
    """In order; the last is the result."""
    tracking_page: str
    """Where MLflow shows it, or how to see it there; empty without tracking."""


def run(experiment: ExperimentConfig, until: Stage = "compare") -> Finished:
    """Run an experiment up to a stage, or to its curves or its search, and return the steps it is made of.

    Raises:
        RaystillError: The configuration, an input or the storage is wrong, or a teacher or a training failed.
    """
    if isinstance(experiment, SearchExperimentConfig):
        check_search(experiment)
    if until == "export":
        check_exports(experiment)
    inputs = read_inputs(experiment)
    root = Folder.at(experiment.root)
    tracker = Tracker.open(
        experiment.tracking,
        root,
        experiment_name=experiment.task.name,
        run_name=experiment.name,
        run_fingerprint=digest({"experiment": experiment, "inputs": inputs.digests}),
        params={"name": experiment.name, "task": experiment.task.name, "seed": experiment.seed},
    )
    finished = Finished([], tracker.describe_page())

    def on_finished(step: Step) -> None:
        finished.steps.append(step)
        LOG.info(describe(step))
        tracker.publish(step)

    try:
        with Cluster(experiment.scale, root, experiment.root_is_shared) as cluster:
            _run_stages(experiment, until, inputs, Steps(root, on_finished), cluster)
    except BaseException as error:
        tracker.finish({}, "FAILED" if isinstance(error, Exception) else "KILLED")
        raise
    tracker.finish(finished.steps[-1].manifest["metrics"] if until == "compare" else {})
    return finished


def _run_stages(experiment: ExperimentConfig, until: Stage, inputs: Inputs, steps: Steps, cluster: Cluster) -> None:
    if isinstance(experiment, CurvesExperimentConfig):
        trace_curves(experiment, inputs, steps, cluster)
        return
    if isinstance(experiment, SearchExperimentConfig):
        search(experiment, inputs, steps, cluster)
        return
    if until == "plan":
        assert isinstance(experiment, GenerateExperimentConfig)
        plan_spending(experiment, inputs, steps, cluster)
        return
    datasets = build_datasets(experiment, inputs, steps, cluster)
    if until == "generate":
        return
    # Before hours of training, so that a key that is refused shows soon.
    judged = [] if until == "train" else evaluate_judges(experiment, inputs, steps, cluster)
    students = {
        (arm, student): train(
            arm,
            student,
            add_negatives(arm, student, datasets[arm], experiment, inputs, steps, cluster),
            experiment,
            inputs,
            steps,
            cluster,
        )
        for arm, student in experiment.pairs()
    }
    if until == "train":
        return
    measure_quality(datasets, students, experiment, inputs, steps, cluster)
    if inputs.communities.rankings:
        evaluations = evaluate_rankings(datasets, students, experiment, inputs, steps, cluster)
    else:
        evaluations = judged + evaluate_baselines(datasets, experiment, inputs, steps, cluster)
        evaluations += [
            evaluate_student(arm, student, trained, datasets[arm], experiment, inputs, steps, cluster)
            for (arm, student), trained in students.items()
        ]
    if until == "evaluate":
        return
    if until == "export":
        export_students(students, datasets, evaluations, experiment, inputs, steps, cluster)
        return
    rankings = None
    if inputs.communities.rankings:
        differences = measure_differences(evaluations, experiment, inputs, steps)
        rankings = Rankings(differences, measure_answers(datasets, experiment, steps))
    compare(datasets, list(students.values()), evaluations, rankings, experiment, inputs.task, steps)


def describe(step: Step) -> str:
    """Return one line on a step: what it is, whether it was kept, and what is in it."""
    name = f"{step.name} {step.arm}".strip()
    how = "kept" if step.kept else f"took {step.manifest['duration_s']:,.1f} s"
    counts = ", ".join(f"{key} {value:,}" for key, value in step.manifest["counts"].items())
    return f"{name} [{step.fingerprint}] {how}: {counts}"
