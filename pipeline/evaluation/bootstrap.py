"""Values with intervals, from the predictions of one arm and student on one benchmark.

The flow calls `estimate` once for every (benchmark, setting) that an arm and student was judged on. An interval
covers two sources of chance at once, which items the benchmark holds and which seeds the student was trained with:
an interval over items alone calls three seeds that disagree as sure as one.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.evaluation.measures import Floats, Integers, compute_measures
from pipeline.records import Prediction

_PERCENTILES = (2.5, 97.5)
_CHUNK_CELLS = 250_000
"""Item weights held at once (2 MB). How replicates are cut into chunks does not change what is drawn."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A measure's mean over seeds, its 95 % interval, and the number of items it was taken on.

    The value is no part of the interval's making, so on few items it may lie just outside.
    """

    measure: str
    value: float
    low: float
    high: float
    n: int
    seed_sd: float | None = None
    """Standard deviation over seeds (n - 1); None with one seed."""


def estimate(
    predictions: Sequence[Prediction], labels: Sequence[str], positive: str | None, n_replicates: int, seed: int
) -> list[Estimate]:
    """Return every measure of one benchmark and setting, in the order of tables.

    Value: mean of the measure over seeds. Interval: the percentile interval (Efron & Tibshirani 1993, An
    Introduction to the Bootstrap, chapter 13) of replicates that draw items and seeds, both with replacement, and
    average the measure over the drawn seeds. Items and seeds are crossed, so a replicate uses the same items for all
    its seeds (Owen 2007, The pigeonhole bootstrap, doi:10.1214/07-AOAS122). A replicate in which a ranking measure
    is undefined, because only one class was drawn, does not count for that measure.

    The order of `predictions` changes nothing, and neither does the number of seeds change which items are drawn:
    all arms judged on the same items share their replicates.

    Args:
        predictions: One per item and seed.
        labels: The task's classes.
        positive: The class that the scores rank; None leaves out AUROC and PR-AUC.
        n_replicates: Number of bootstrap replicates.
        seed: Of the draws.

    Raises:
        ValueError: The predictions are of several benchmarks or settings; a seed lacks an item or has it twice; an
            item has a label that is not of the task or a score that is not finite; or the items are all of one class.
    """
    truth, predicted, scores = _align(predictions, labels)
    n_seeds, n_items = predicted.shape
    present = {labels[index] for index in set(truth)}
    if len(present) == 1 or (positive is not None and positive not in present):
        raise ValueError(
            f"{predictions[0].benchmark}: all {n_items} items are of {sorted(present)}, which leaves measures "
            f"undefined; items of two of {tuple(labels)} are needed, {positive or 'whichever'} among them"
        )

    def measure(weights: Floats) -> dict[str, Floats]:
        runs = [compute_measures(truth, predicted[s], scores[s], weights, labels, positive) for s in range(n_seeds)]
        return {name: np.stack([run[name] for run in runs]) for name in runs[0]}

    return _replicate(measure, n_items, n_seeds, n_replicates, seed)


def estimate_means(values: Mapping[str, Floats], n_replicates: int, seed: int) -> list[Estimate]:
    """Return the means of values that each item has by itself, such as a query's nDCG; intervals are as in `estimate`.

    Args:
        values: By measure, shape (seeds, items).
        n_replicates: Number of bootstrap replicates.
        seed: Of the draws.

    Raises:
        ValueError: There are no items.
    """
    n_seeds, n_items = next(iter(values.values())).shape
    if not n_items:
        raise ValueError(f"no items to take the mean of {', '.join(values)} over")

    def measure(weights: Floats) -> dict[str, Floats]:
        return {name: of_items @ weights.T / n_items for name, of_items in values.items()}

    return _replicate(measure, n_items, n_seeds, n_replicates, seed)


def _replicate(
    measure: Callable[[Floats], dict[str, Floats]], n_items: int, n_seeds: int, n_replicates: int, seed: int
) -> list[Estimate]:
    """Return estimates of measures, each given item weights (replicates, items) as (seeds, replicates)."""
    values = measure(np.ones((1, n_items)))
    item_stream, seed_stream = np.random.default_rng(seed).spawn(2)
    replicates: dict[str, list[Floats]] = {name: [] for name in values}
    for size in _split(n_replicates, n_items):
        item_counts = _draw_counts(item_stream, size, n_items)
        seed_counts = _draw_counts(seed_stream, size, n_seeds)
        for name, by_seed in measure(item_counts).items():
            replicates[name].append((by_seed * seed_counts.T).sum(axis=0) / n_seeds)

    estimates = []
    for name, value in values.items():
        low, high = np.nanpercentile(np.concatenate(replicates[name]), _PERCENTILES)
        seed_sd = float(value.std(ddof=1)) if n_seeds > 1 else None
        estimates.append(Estimate(name, float(value.mean()), float(low), float(high), n_items, seed_sd))
    return estimates


def _align(predictions: Sequence[Prediction], labels: Sequence[str]) -> tuple[Integers, Integers, Floats]:
    """Return truth (n_items,), decisions and scores (n_seeds, n_items), by ascending seed and item id."""
    places = {(prediction.benchmark, prediction.setting) for prediction in predictions}
    if len(places) != 1:
        raise ValueError(f"predictions of one benchmark and setting are needed, got {sorted(places) or 'none'}")
    benchmark = predictions[0].benchmark

    runs: dict[int, dict[str, Prediction]] = {}
    truth: dict[str, str] = {}
    for prediction in predictions:
        item_id, seed, run = prediction.item_id, prediction.seed, runs.setdefault(prediction.seed, {})
        where = f"{benchmark}: item {item_id!r}, seed {seed}"
        if item_id in run:
            raise ValueError(f"{where}: predicted twice; each seed needs each item once")
        if truth.setdefault(item_id, prediction.label) != prediction.label:
            raise ValueError(f"{where}: labelled {prediction.label!r} here and {truth[item_id]!r} elsewhere")
        for label in (prediction.label, prediction.predicted):
            if label not in labels:
                raise ValueError(f"{where}: label {label!r} is none of the task's {tuple(labels)}")
        if not np.isfinite(prediction.score):
            raise ValueError(f"{where}: score {prediction.score} can't be ranked")
        run[item_id] = prediction
    for seed, run in runs.items():
        if missing := truth.keys() - run.keys():
            raise ValueError(
                f"{benchmark}: item {min(missing)!r}, seed {seed}: no prediction, though another seed has one "
                f"({len(missing)} of {len(truth)} items missing)"
            )

    index = {label: position for position, label in enumerate(labels)}
    item_ids = sorted(truth)
    rows = [[runs[seed][item_id] for item_id in item_ids] for seed in sorted(runs)]
    return (
        np.array([index[truth[item_id]] for item_id in item_ids]),
        np.array([[index[prediction.predicted] for prediction in row] for row in rows]),
        np.array([[prediction.score for prediction in row] for row in rows], dtype=np.float64),
    )


def _split(n_replicates: int, n_items: int) -> Iterator[int]:
    """Yield sizes of chunks that sum to the number of replicates."""
    largest = max(1, _CHUNK_CELLS // n_items)
    for done in range(0, n_replicates, largest):
        yield min(largest, n_replicates - done)


def _draw_counts(stream: np.random.Generator, n_replicates: int, n: int) -> Floats:
    """Return how often each of n things is drawn in n draws with replacement, (n_replicates, n)."""
    drawn = stream.integers(n, size=(n_replicates, n)) + n * np.arange(n_replicates)[:, np.newaxis]
    return np.bincount(drawn.ravel(), minlength=n_replicates * n).reshape(n_replicates, n).astype(np.float64)
