"""A search over a student's settings, and over which rows it learns from.

Trials are judged on held-out rows or on a benchmark's own train and dev items, never on what a table reports. The best
becomes a file of the group `student`, for experiments to train and judge like any other.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from itertools import product
from typing import Any

import yaml

from pipeline.cluster import Cluster
from pipeline.config import validate
from pipeline.errors import ConfigError
from pipeline.experiment import ArmConfig, ExperimentConfig
from pipeline.identity import digest
from pipeline.records import Example
from pipeline.report.html import read_templates
from pipeline.report.search import TrialRow, render_search
from pipeline.sources.data import MixConfig
from pipeline.stages.dataset import ROWS
from pipeline.stages.embed import embed, read_vectors
from pipeline.stages.generate import build_datasets
from pipeline.stages.inputs import Inputs
from pipeline.stages.trials import TUNE_STATE, choose_best, forget_trials, read_trials, run_trials, tell_trials
from pipeline.steps import Outputs, Plan, Step, Steps, versions
from pipeline.storage import Folder
from pipeline.students.config import FineTunedConfig, FrozenConfig
from pipeline.students.search import AnyObjectiveConfig, DevConfig, HeldOutConfig, StudentSearchConfig
from pipeline.students.space import ChoiceConfig, Value, check_point, list_grid
from pipeline.students.trial import TrialWork, configure, make_splits, name_data

SEARCH, REPORT = "search.json", "report.html"
_CODE = (
    *(f"pipeline.students.{name}" for name in ("fits", "fine_tuning", "search", "space", "train", "trial")),
    "pipeline.stages.trials",
    __name__,
)
_REPORT_CODE = (*(f"pipeline.report.{name}" for name in ("search", "html", "plots", "table")), __name__)


class SearchExperimentConfig(ExperimentConfig):
    """An experiment in which one student's settings are searched."""

    search: StudentSearchConfig
    objective: AnyObjectiveConfig
    """What trials are judged on."""
    resume: bool
    """Go on with what a crash interrupted; otherwise an unfinished search's trials are forgotten."""


def choose_pair(experiment: SearchExperimentConfig) -> tuple[str, str]:
    """Return the keys of the arm and the student that are searched.

    Raises:
        ConfigError: They are not there, or the search doesn't say which of several.
    """
    chosen = []
    for kind, key, known in (
        ("arm", experiment.search.arm, experiment.arms),
        ("student", experiment.search.student, experiment.students),
    ):
        if key is None and len(known) > 1:
            raise ConfigError(f"search.{kind} is null, but there are {list(known)}; name one of them")
        if key is not None and key not in known:
            raise ConfigError(f"search.{kind} is {key}, but there are {list(known)}; name one of them")
        chosen.append(key or next(iter(known)))
    return chosen[0], chosen[1]


def check_search(experiment: SearchExperimentConfig) -> None:
    """Check all that can be wrong with a search before anything is read.

    Raises:
        ConfigError: The space doesn't fit the arm or the student, or the default lies outside.
    """
    arm, student = choose_pair(experiment)
    space, config = experiment.search.space, experiment.students[student]
    if unknown := [name for name in space.student if name not in type(config).model_fields]:
        raise ConfigError(f"search.space.student: a student of kind {config.kind} has no {', '.join(unknown)}")
    if fixed := [name for name in space.student if name in ("kind", "label", "model", "revision", "folds", "seeds")]:
        raise ConfigError(f"search.space.student: {', '.join(fixed)} is what the student is, and can't be searched")
    filters = experiment.arms[arm].filters
    if unknown := [name for name in space.filters if name not in type(filters).model_fields]:
        raise ConfigError(f"search.space.filters: there is no filter {', '.join(unknown)}")
    if space.arm and (missing := [key for key in space.arm.values if key not in experiment.arms]):
        raise ConfigError(f"search.space.arm: no arm {', '.join(map(str, missing))}; have {list(experiment.arms)}")
    check_point(find_default(experiment), space)
    for name, dimension in space.student.items():
        for value in dimension.values if isinstance(dimension, ChoiceConfig) else (dimension.low, dimension.high):
            configure(config, {f"student.{name}": value})
    for name, choice in space.filters.items():
        for value in choice.values:
            validate(type(filters), {**filters.model_dump(), name: value})
    is_population = experiment.search.sampler == "population"
    if is_population and isinstance(experiment.objective, HeldOutConfig) and experiment.objective.measured != 1:
        raise ConfigError("objective.measured: a population trains once, on one part; set it to 1")
    if experiment.search.sampler == "grid":
        list_grid(space, find_default(experiment))


def find_default(experiment: SearchExperimentConfig) -> dict[str, Value]:
    """Return the point of the space that the experiment itself is."""
    arm, student = choose_pair(experiment)
    places: dict[str, Any] = {"student": experiment.students[student], "filters": experiment.arms[arm].filters}
    point: dict[str, Value] = {}
    for name in experiment.search.space.dimensions():
        place, _, setting = name.partition(".")
        point[name] = arm if place == "arm" else getattr(places[place], setting)
    return point


def search(experiment: SearchExperimentConfig, inputs: Inputs, steps: Steps, cluster: Cluster) -> Step:
    """Return the step of a search's report, after that of its trials.

    Raises:
        ConfigError: The objective would see what is reported, or trials don't fit the cluster.
        TrainingError: No trial ended with a value.
        RaystillError: See `build_datasets`.
    """
    objective = experiment.objective
    dev = read_dev_items(objective, inputs) if isinstance(objective, DevConfig) else ()
    variants = build_variants(experiment, inputs, steps, cluster)
    return _report(experiment, _search(experiment, variants, dev, inputs, steps, cluster), steps)


def _search(
    experiment: SearchExperimentConfig,
    variants: Mapping[str, Step],
    dev: tuple[Example, ...],
    inputs: Inputs,
    steps: Steps,
    cluster: Cluster,
) -> Step:
    """Return the step that holds the trials, each told of as it ends or is found."""
    (arm, student), config, seed = choose_pair(experiment), experiment.search, experiment.seed
    pinned, trials, runnable = inputs.models[student], experiment.scale.trials, experiment.students[student]
    default = find_default(experiment)
    if isinstance(runnable, FineTunedConfig):
        runnable = runnable.model_copy(update={"model": pinned.location, "revision": pinned.revision})
    work = TrialWork(
        student=runnable,
        labels=inputs.task.labels,
        rows={name: step.folder for name, step in variants.items()},
        objective=experiment.objective,
        base=name_data(default),
        dev=dev,
        read_vectors=None,
        seed=seed,
        threads=experiment.scale.training.threads,
        use_gpu=trials.gpus_per_trial > 0,
        is_population=config.sampler == "population",
    )
    made_of = {f"{ROWS} {name}": step.manifest["digests"][ROWS] for name, step in variants.items()}
    # Here, whatever the student: rows with too few groups for the folds are told before the first trial.
    splits = [split for name in work.rows for split in make_splits(work, name)]
    if isinstance(runnable, FrozenConfig):
        texts = [row.text for split in splits for rows in split for row in rows]
        vectors = embed(arm, texts, pinned, runnable.encoder, steps, cluster)
        work = replace(work, read_vectors=partial(read_vectors, vectors.folder))
        made_of["vectors"] = vectors.fingerprint

    def produce(folder: Folder) -> Outputs:
        if not experiment.resume:
            forget_trials(folder)
        cluster.check_room("scale.trials.{}s_per_trial", cpus=trials.cpus_per_trial, gpus=trials.gpus_per_trial)
        run_trials(folder, f"{arm}/{student}", work, config, trials, default, steps.on_finished)
        found = read_trials(folder)
        best = choose_best(found)["score"]
        folder.delete_folder(TUNE_STATE)
        states = Counter(f"trials_{row['state'].replace(' ', '_')}" for row in found)
        return Outputs(counts={"trials": len(found), **states}, metrics={} if best is None else {"best/score": best})

    plan = Plan(
        "search",
        produce,
        {
            "search": config.model_copy(update={"arm": arm, "student": student}),
            "student": experiment.students[student],
            "objective": experiment.objective,
            "default": default,
            "labels": inputs.task.labels,
            "seed": seed,
            "variants": list(variants),
            "mixed_precision": trials.gpus_per_trial > 0,
        },
        {**made_of, "dev": digest([asdict(item) for item in dev]), "model": pinned.identity},
        (*_CODE, f"pipeline.students.{runnable.kind}"),
    )
    step = steps.fulfil(plan, f"{arm}/{student}")
    if step.kept:
        tell_trials(step.folder, f"{arm}/{student}", steps.on_finished)
    steps.on_finished(step)
    return step


def _report(experiment: SearchExperimentConfig, searched: Step, steps: Steps) -> Step:
    """Return the step of the report, which is drawn anew without a trial being run anew."""
    _, student = choose_pair(experiment)

    def produce(folder: Folder) -> Outputs:
        trials = read_trials(searched.folder)
        described = describe_search(experiment, trials)
        folder.write_json(SEARCH, described)
        config = _dump(experiment.model_dump(mode="json"))
        folder.write_text(REPORT, render_search(experiment.name, described, trials, config, versions()))
        scores = {"best/score": described["best"], "default/score": described["default"]}
        return Outputs(metrics={name: row["score"] for name, row in scores.items() if row and row["score"] is not None})

    return steps.run(
        "search_report",
        produce,
        arm=searched.arm,
        config={
            "name": experiment.name,
            "save_as": name_tuned(experiment),
            "search": experiment.search,
            "objective": experiment.objective,
            "student": experiment.students[student],
            "templates": digest(read_templates()),
        },
        inputs={"search": searched.fingerprint},
        code=_REPORT_CODE,
    )


def build_variants(
    experiment: SearchExperimentConfig, inputs: Inputs, steps: Steps, cluster: Cluster
) -> dict[str, Step]:
    """Return the data set of each choice of rows in the space, by `name_data` of its points."""
    (own, _), space = choose_pair(experiment), experiment.search.space
    dimensions = space.data_dimensions()
    points = [
        dict(zip(dimensions, values, strict=True)) for values in product(*(d.values for d in dimensions.values()))
    ]
    arms: dict[str, ArmConfig] = {}
    keys: dict[str, str] = {}
    sources: dict[str, str] = {}
    for number, point in enumerate(points):
        source = str(point.get("arm", own))
        filters = {name.removeprefix("filters."): value for name, value in point.items() if name != "arm"}
        arm = experiment.arms[source]
        # The source's own key where nothing differs, so that it is the very step that other jobs have.
        key = f"{source}_choice{number}" if filters else source
        arms[key] = arm.model_copy(update={"filters": arm.filters.model_copy(update=filters)})
        keys[name_data(point)], sources[key] = key, source
    mixed = {name for arm in arms.values() if isinstance(arm.data, MixConfig) for name in arm.data.shares}
    needed = {name: experiment.arms[name] for name in sorted(mixed)}
    aliased = replace(
        inputs,
        seeds={**inputs.seeds, **{key: inputs.seeds[s] for key, s in sources.items() if s in inputs.seeds}},
        examples={**inputs.examples, **{key: inputs.examples[s] for key, s in sources.items() if s in inputs.examples}},
    )
    datasets = build_datasets(experiment.model_copy(update={"arms": {**needed, **arms}}), aliased, steps, cluster)
    return {name: datasets[key] for name, key in keys.items()}


def read_dev_items(objective: DevConfig, inputs: Inputs) -> tuple[Example, ...]:
    """Return the items of a benchmark that may select.

    Raises:
        ConfigError: The benchmark is not there or has none, or a split is named that is reported.
    """
    if objective.benchmark not in inputs.gold:
        raise ConfigError(
            f"objective.benchmark is {objective.benchmark}, but the experiment reads {list(inputs.gold)}; add "
            "it to task.benchmarks"
        )
    gold = inputs.gold[objective.benchmark]
    allowed = gold.benchmark.dev_splits
    splits = allowed if objective.splits is None else objective.splits
    if not splits or not set(splits) <= set(allowed):
        raise ConfigError(
            f"objective: {objective.benchmark} lets {list(allowed) or 'no split'} select, given "
            f"{list(splits) or 'none'}; a search that saw test items would report what it was fitted to. Take "
            "objective=held_out, which sees synthetic rows alone"
        )
    return tuple(
        Example(item.item_id, "", item.item_id, item.text, item.label) for item in gold.items if item.split in splits
    )


def describe_search(experiment: SearchExperimentConfig, trials: Sequence[TrialRow]) -> dict[str, Any]:
    """Return what came of a search: the best trial and the default, and the student that the best is.

    A population has no default: its trial 0 begins as that, and copies others where they are better.
    """
    (arm, student), config = choose_pair(experiment), experiment.search
    best = choose_best(trials)
    first = next((row for row in trials if row["number"] == 0), None)
    tuned = configure(experiment.students[student], best["point"])
    if isinstance(experiment.objective, DevConfig):
        tuned = tuned.model_copy(update={"selected_on": (*tuned.selected_on, experiment.objective.benchmark)})
    return {
        "arm": arm,
        "student": student,
        "save_as": name_tuned(experiment),
        "objective": experiment.objective.model_dump(mode="json"),
        "space": {name: str(d.to_distribution()) for name, d in config.space.dimensions().items()},
        "distributions": {name: d.model_dump(mode="json") for name, d in config.space.dimensions().items()},
        "default": None if config.sampler == "population" else first,
        "best": best,
        "data": {name: value for name, value in best["point"].items() if not name.startswith("student.")},
        "tuned": tuned.model_dump(mode="json"),
    }


def name_tuned(experiment: SearchExperimentConfig) -> str:
    """Return what `student=` calls the best configuration."""
    arm, student = choose_pair(experiment)
    return experiment.search.save_as or f"tuned_{student}_{arm}"


def write_tuned(step: Step, root: Folder) -> str:
    """Write a search's best student where `student=` finds it under the same root, and return its name."""
    found = step.folder.read_json(SEARCH)
    best, name = found["best"], str(found["save_as"])
    default = found["default"]["score"] if found["default"] else None
    rows = ", ".join(f"{key}={value}" for key, value in found["data"].items())
    head = [
        f"# Trial {best['number']} of the search {step.fingerprint}, judged on {found['objective']['kind']} rows: "
        f"{best['score']:.4f}; the default: {'not measured' if default is None else f'{default:.4f}'}.",
        *([f"# Its rows: {rows}."] if rows else []),
    ]
    (root / "conf" / "student").write_text(f"{name}.yaml", "\n".join(head) + "\n" + _dump(found["tuned"]))
    return name


def _dump(values: Mapping[str, Any]) -> str:
    return str(yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True))
