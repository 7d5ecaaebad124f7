"""The trials of a search, run by Ray Tune.

Every trial leaves a record in the search's folder once it ends; MLflow, the report and the choice of the best read
those alone. Tune's own state lies beside them until the search has ended, and is what a crashed search goes on from.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from pipeline.errors import TrainingError
from pipeline.identity import digest
from pipeline.progress import DONE, Tally, show_progress
from pipeline.report.search import TrialRow
from pipeline.steps import MANIFEST, Step, versions
from pipeline.storage import Folder
from pipeline.students.search import StopEarlyConfig, StudentSearchConfig, TrialsConfig
from pipeline.students.space import ChoiceConfig, SpaceConfig, list_grid
from pipeline.students.trial import COURSE, FAILURE, SCORE, TIME, WHOLE, Point, TrialWork, run_trial

TRIALS, TUNE_STATE, NUMBERS = "trials", "tune", "numbers.json"
_LISTENERS: dict[str, "_Listener"] = {}
"""By the URL of a search's folder. Tune pickles its callbacks, so they look up here who listens in this process."""


def run_trials(
    folder: Folder,
    arm: str,
    work: TrialWork,
    config: StudentSearchConfig,
    trials: TrialsConfig,
    default: Point,
    on_finished: Callable[[Step], None],
) -> None:
    """Run all trials that have not ended yet.

    Args:
        folder: The search's; records go to `trials/`, Tune's own state to `tune/`.
        arm: What the trials belong to.
        work: What they share.
        config: The search.
        trials: Where and how wide they run.
        default: The point that is trial 0.
        on_finished: Told of each trial once it has ended.
    """
    # A crash loses what was decided since the last snapshot; Tune's own interval grows to minutes.
    os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "1")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # its other output prints a banner, whatever `verbose` is
    from ray import tune

    resources = {"cpu": trials.cpus_per_trial, "gpu": trials.gpus_per_trial}
    trainable = tune.with_resources(tune.with_parameters(run_trial, work=work), resources)
    points = list_grid(config.space, default) if config.sampler == "grid" else [dict(default)]
    n_trials = len(points) if config.sampler == "grid" else config.trials
    listener = _Listener(folder, arm, on_finished)
    tell_trials(folder, arm, on_finished)  # a crash may have come between a trial's end and its run in MLflow
    _LISTENERS[folder.url] = listener
    state = folder / TUNE_STATE
    try:
        with show_progress("search", "trials", n_trials, listener.tally.totals):
            if tune.Tuner.can_restore(state.url):
                # Under their own ids: a searcher knows trials by them, and restarted ones would get others.
                tuner = tune.Tuner.restore(state.url, trainable, resume_unfinished=True, resume_errored=True)
            else:
                tuner = _make_tuner(trainable, folder, config, trials, points, n_trials, work.seed)
            # Those that ended just before a crash, between Tune's own record and ours.
            for result in tuner.fit():
                if result.metrics and "trial_id" in result.metrics:
                    listener.hear_end(result.metrics["trial_id"], result.config, result.metrics, result.error)
    finally:
        del _LISTENERS[folder.url]


class _Listener:
    """Keeps a record of each trial that ends, under the number that it got when it began."""

    def __init__(self, folder: Folder, arm: str, on_finished: Callable[[Step], None]) -> None:
        self.tally = Tally()
        self._folder, self._arm, self._on_finished = folder, arm, on_finished
        # Tune puts restored trials in another order, so numbers go by its ids, which stay.
        self._numbers: dict[str, int] = folder.read_json(NUMBERS) if folder.exists(NUMBERS) else {}
        self._told = {row["number"] for row in read_trials(folder) if row["state"] != "failed"}
        self.tally.add({DONE: len(self._told)})

    def number(self, trial_ids: Sequence[str]) -> None:
        """Give new trials their numbers, from 0 on in the order in which they were thought of."""
        if new := [trial_id for trial_id in trial_ids if trial_id not in self._numbers]:
            first = len(self._numbers)
            self._numbers |= {trial_id: first + place for place, trial_id in enumerate(new)}
            self._folder.write_json(NUMBERS, self._numbers)

    def hear_end(self, trial_id: str, point: Point, result: Mapping[str, Any], error: Any) -> None:
        """Keep and tell what became of a trial; once, unless it failed before."""
        self.number([trial_id])
        number = self._numbers[trial_id]
        if number in self._told:
            return
        self._told.add(number)
        self._on_finished(_write_trial(self._folder, self._arm, number, point, result, error))
        self.tally.add({DONE: 1})


def _make_tuner(
    trainable: Any,
    folder: Folder,
    config: StudentSearchConfig,
    trials: TrialsConfig,
    points: Sequence[Point],
    n_trials: int,
    seed: int,
) -> Any:
    from ray import tune

    is_population = config.sampler == "population"
    return tune.Tuner(
        trainable,
        param_space=to_domains(config.space) if is_population else None,
        tune_config=tune.TuneConfig(
            metric=SCORE,
            mode="max",
            num_samples=n_trials,
            max_concurrent_trials=trials.at_once,
            search_alg=_make_searcher(config, points, seed),
            scheduler=_make_scheduler(config),
        ),
        run_config=tune.RunConfig(
            name=TUNE_STATE,
            storage_path=folder.url,
            failure_config=tune.FailureConfig(max_failures=trials.max_failures),
            checkpoint_config=tune.CheckpointConfig(num_to_keep=2),
            callbacks=[_make_callback(folder)],
            verbose=0,
        ),
    )


def _make_searcher(config: StudentSearchConfig, points: Sequence[Point], seed: int) -> Any:
    if config.sampler == "population":
        from ray.tune.search import BasicVariantGenerator

        return BasicVariantGenerator(points_to_evaluate=[dict(point) for point in points], random_state=seed)
    import optuna
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    samplers = optuna.samplers
    return OptunaSearch(
        space={name: dimension.to_distribution() for name, dimension in config.space.dimensions().items()},
        metric=SCORE,
        mode="max",
        points_to_evaluate=[dict(point) for point in points],
        sampler=samplers.TPESampler(seed=seed) if config.sampler == "tpe" else samplers.RandomSampler(seed=seed),
    )


def _make_scheduler(config: StudentSearchConfig) -> Any:
    from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, PopulationBasedTraining

    if config.sampler == "population":
        return PopulationBasedTraining(
            time_attr=TIME,
            perturbation_interval=1,
            hyperparam_mutations=to_domains(config.space),
            custom_explore_fn=partial(clip_point, config.space),
        )
    if not isinstance(config.stop_early, StopEarlyConfig):
        return FIFOScheduler()
    return ASHAScheduler(
        time_attr=TIME,
        max_t=10_000,  # beyond every trial's last epoch: a trial that gets there ends by itself
        grace_period=config.stop_early.grace_epochs,
        reduction_factor=config.stop_early.reduction_factor,
    )


def clip_point(space: SpaceConfig, point: dict[str, Any]) -> dict[str, Any]:
    """Return a point with each number inside its dimension, which a population's changes by a fifth may leave."""
    ranges = {name: d for name, d in space.dimensions().items() if not isinstance(d, ChoiceConfig)}
    return {**point, **{name: min(max(point[name], d.low), d.high) for name, d in ranges.items()}}


def to_domains(space: SpaceConfig) -> dict[str, Any]:
    """Return a space's dimensions as Ray Tune's."""
    from ray import tune

    found: dict[str, Any] = {}
    for name, dimension in space.dimensions().items():
        match dimension.kind:
            case "log_uniform":
                found[name] = tune.loguniform(dimension.low, dimension.high)
            case "uniform":
                found[name] = tune.uniform(dimension.low, dimension.high)
            case "integer":
                found[name] = tune.randint(dimension.low, dimension.high + 1)
            case "choice":
                found[name] = tune.choice(list(dimension.values))
    return found


def _make_callback(folder: Folder) -> Any:
    from ray.tune import Callback

    class _Told(Callback):  # type: ignore[misc]
        """Pickled by value, with copies of the globals that it names; so it imports what must be this process's own."""

        def __init__(self, url: str) -> None:
            self.url = url

        def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            from pipeline.stages.trials import get_listener

            get_listener(self.url).number([each.trial_id for each in trials])

        def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            from pipeline.stages.trials import get_listener

            get_listener(self.url).hear_end(trial.trial_id, trial.config, trial.last_result or {}, None)

        def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            from pipeline.stages.trials import get_listener

            error = trial.get_error() or "its worker died"
            get_listener(self.url).hear_end(trial.trial_id, trial.config, trial.last_result or {}, error)

    return _Told(folder.url)


def get_listener(url: str) -> _Listener:
    """Return who listens to the search of a folder in this process."""
    return _LISTENERS[url]


def _write_trial(folder: Folder, arm: str, number: int, point: Point, result: Mapping[str, Any], error: Any) -> Step:
    """Keep what became of a trial, in the form of a step's manifest, which MLflow's projection reads."""
    course = result.get(COURSE, [])
    failure = result.get(FAILURE) or (str(error).strip().splitlines()[-1] if error is not None else None)
    state = "failed" if failure else "complete" if result.get(WHOLE) else "stopped early"
    duration_s = float(result.get("time_total_s", 0.0))
    ended_at = float(result.get("timestamp", course[-1]["at"] if course else 0.0))
    score = None if failure else result.get(SCORE)
    manifest = {
        "step": "trial",
        # A trial that failed and is tried again is another run in MLflow's eyes, which takes its place.
        "fingerprint": digest([folder.url.rpartition("/")[2], number, dict(point), state, score]),
        "number": number,
        "state": state,
        "error": failure,
        "score": score,
        "course": course,
        "ingredients": {"config": {**point, "number": number, "state": state}, "inputs": {}},
        "counts": {TIME: result.get(TIME, 0)},
        "metrics": {} if score is None else {SCORE: score},
        "digests": {},
        "series": [
            [f"split-{epoch['split']}/{name}", epoch["epoch"], epoch[name], epoch["at"]]
            for epoch in course
            for name in ("train_loss", "held_out_loss", "held_out_score")
            if epoch[name] is not None
        ],
        "started_at": ended_at - duration_s,
        "duration_s": round(duration_s, 3),
        "versions": versions(),
    }
    (folder / TRIALS / f"{number:04d}").write_json(MANIFEST, manifest)
    return find_trial(folder, arm, number)


def find_trial(folder: Folder, arm: str, number: int) -> Step:
    """Return a trial that has ended, as a step of its own in a search's folder."""
    own = folder / TRIALS / f"{number:04d}"
    manifest = own.read_json(MANIFEST)
    return Step("trial", f"{arm} {number:04d}", manifest["fingerprint"], own, manifest, kept=False)


def tell_trials(folder: Folder, arm: str, on_finished: Callable[[Step], None]) -> None:
    """Tell of the trials that ended in an earlier process, as of steps that were kept."""
    for row in read_trials(folder):
        on_finished(replace(find_trial(folder, arm, row["number"]), kept=True))


def forget_trials(folder: Folder) -> None:
    """Delete what an unfinished search has left."""
    for name in (TRIALS, TUNE_STATE):
        folder.delete_folder(name)
    folder.delete(NUMBERS)


def read_trials(folder: Folder) -> list[TrialRow]:
    """Return the trials that have ended, by number."""
    rows: list[TrialRow] = []
    for name in (folder / TRIALS).names():
        if not (folder / TRIALS / name).exists(MANIFEST):
            continue
        manifest = (folder / TRIALS / name).read_json(MANIFEST)
        config = manifest["ingredients"]["config"]
        rows.append(
            TrialRow(
                number=manifest["number"],
                state=manifest["state"],
                score=manifest["score"],
                n_epochs=manifest["counts"][TIME],
                n_splits=len({epoch["split"] for epoch in manifest["course"]}),
                duration_s=manifest["duration_s"],
                error=manifest["error"],
                point={key: value for key, value in config.items() if key not in ("number", "state")},
            )
        )
    return rows


def choose_best(trials: Sequence[TrialRow]) -> TrialRow:
    """Return the trial with the highest value, the first of equals, of those that reached the last split.

    Raises:
        TrainingError: None has a value.
    """
    n_splits = max((row["n_splits"] for row in trials), default=0)
    scored = [row for row in trials if row["score"] is not None and row["n_splits"] == n_splits]
    if not scored:
        errors = {row["error"] for row in trials if row["error"]}
        raise TrainingError(f"no trial of the search ended with a value: {'; '.join(sorted(errors)) or 'none was run'}")
    return max(scored, key=lambda row: (row["score"], -row["number"]))
