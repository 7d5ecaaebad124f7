"""The data set of an arm: its rows filtered, described and written, whatever they come from."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from pipeline.experiment import ArmConfig, ExperimentConfig
from pipeline.identity import derive_seed, digest
from pipeline.quality.card import describe, sample_rows
from pipeline.quality.draws import BEYOND_MAX_ROWS
from pipeline.quality.filters import apply_filters
from pipeline.records import Example, Reject, to_table
from pipeline.stages.inputs import Inputs
from pipeline.steps import Outputs, Step, Steps
from pipeline.storage import Folder

EXAMPLES, REJECTS, CARD, EFFICIENCY, SAMPLES, LOOKS, TSV = (
    "examples.parquet",
    "rejects.parquet",
    "card.json",
    "efficiency.json",
    "samples.json",
    "looks.parquet",
    "dataset.tsv",
)
ROWS = "rows"
"""Name of the digest of a data set's rows, which is what students and evaluations are made of: a new card or another
benchmark to check against makes the data set anew, and trains nothing anew while the rows are the same."""
CARD_FOLDS = 5
_FILTERS = ("text", "rejects", "similarity", "duplicates", "copying", "lengths", "leakage", "draws", "filters")
_FILTER_CODE = tuple(f"pipeline.quality.{name}" for name in _FILTERS)
_CARD_CODE = ("pipeline.quality.card", "pipeline.quality.shortcuts")
_READING_CODE = ("pipeline.stages.generate", "pipeline.stages.derive", "pipeline.quality.cartography")
"""What makes rows of answers, or of other arms' rows."""


@dataclass(frozen=True)
class Answers:
    """Rows before filters, and what came before them."""

    examples: Sequence[Example]
    rejects: Sequence[Reject] = ()
    """One for each completion that was not accepted."""
    counts: Mapping[str, int] = field(default_factory=dict)
    tables: Mapping[str, pa.Table] = field(default_factory=dict)
    """Further files of the data set."""
    describe_efficiency: Callable[[int], dict[str, Any]] | None = None
    """Number of rows kept to what they took; None where no teacher was asked."""
    series: tuple[tuple[str, int, float, float], ...] = ()
    """As of `Outputs`: what was measured while they came."""


def run_dataset(
    key: str,
    arm: ArmConfig,
    experiment: ExperimentConfig,
    inputs: Inputs,
    steps: Steps,
    made_of: Mapping[str, str],
    read: Callable[[], Answers],
) -> Step:
    """Return the data-set step of an arm.

    Args:
        key: The arm's.
        arm: Its filters.
        experiment: The seed.
        inputs: The task, the benchmarks that no row may repeat, and the arm's seeds, which no row may copy.
        steps: Where the step runs or is found.
        made_of: Digests of what the rows are made of.
        read: Called where the step is not there yet.

    Raises:
        LeakageError: Too many rows repeat test items.
        SourceError: No rows were left.
    """
    task = inputs.task
    gold_items = inputs.list_gold()
    seeds: dict[str, list[str]] = {}
    for seed in inputs.seeds.get(key, ()) if arm.filters.copying else ():
        seeds.setdefault(seed.label, []).append(seed.text)

    def produce(folder: Folder) -> Outputs:
        answers = read()
        filtered = apply_filters(
            answers.examples,
            arm.filters,
            gold_items,
            derive_seed(experiment.seed, "filters"),
            seeds,
            min_labels=2 if task.labels else 1,
        )
        rejects = [*answers.rejects, *filtered.rejects]
        n_in, n_kept = len(answers.examples), len(filtered.kept)
        if n_in != n_kept + len(filtered.rejects):
            raise AssertionError(f"{key}: {n_in} rows in, {n_kept} + {len(filtered.rejects)} out")
        card = describe(
            filtered.kept,
            rejects,
            filtered.leaked,
            positive=task.positive,
            seed=experiment.seed,
            n_folds=CARD_FOLDS,
        )
        folder.write_table(EXAMPLES, to_table(Example, filtered.kept))
        folder.write_table(REJECTS, to_table(Reject, rejects))
        for name, table in answers.tables.items():
            folder.write_table(name, table)
        folder.write_text(TSV, _to_tsv(task.export(filtered.kept)))
        folder.write_json(CARD, card)
        folder.write_json(SAMPLES, sample_rows(filtered.kept, rejects, 5, experiment.seed))
        metrics = _headline(card)
        reasons = Counter(f"rejected_{reject.reason}" for reject in filtered.rejects)
        if answers.describe_efficiency is not None:
            # What a limit leaves out is good: fewer rows asked for would have cost as much a row.
            efficiency = answers.describe_efficiency(n_kept + reasons[f"rejected_{BEYOND_MAX_ROWS}"])
            folder.write_json(EFFICIENCY, efficiency)
            metrics |= _headline_efficiency(efficiency)
        return Outputs(
            counts={**answers.counts, "rows_in": n_in, "rows": n_kept, **reasons},
            metrics=metrics,
            digests={ROWS: digest_examples(filtered.kept)},
            series=answers.series,
        )

    return steps.run(
        "dataset",
        produce,
        arm=key,
        config={"filters": arm.filters, "seed": experiment.seed, "positive": task.positive},
        inputs={**made_of, **inputs.gold_digests},
        code=[*task.code, *_FILTER_CODE, *_CARD_CODE, *_READING_CODE, __name__],
    )


def _headline(card: Mapping[str, Any]) -> dict[str, float]:
    """Return the card's numbers that are worth comparing across arms."""
    found = {"rows": card["rows"], "unique_fraction": card["unique_fraction"], "length_AUROC": card["length_auroc"]}
    found |= {f"tfidf_cv_{name}": value for name, value in card["tfidf_cross_validation"].items()}
    return {f"card/{name}": float(value) for name, value in found.items() if value is not None}


def _headline_efficiency(efficiency: Mapping[str, Any]) -> dict[str, float]:
    """Return what was measured of the numbers that are worth comparing across arms."""
    names = ("tokens_per_s", "tokens_per_row", "device_s_per_row", "usd", "usd_per_row")
    found = {f"teacher/{name}": efficiency[name] for name in names}
    found |= {f"teacher/time_{cause}": share for cause, share in (efficiency["time_shares"] or {}).items()}
    return {name: value for name, value in found.items() if value is not None}


def _to_tsv(columns: Mapping[str, Sequence[str]]) -> str:
    """Return columns as a TSV without quoting, like the source system's; white space in a value becomes one space."""
    rows = zip(*columns.values(), strict=True)
    lines = ["\t".join(" ".join(value.split()) for value in row) for row in rows]
    return "\n".join(["\t".join(columns), *lines]) + "\n"


def digest_examples(examples: Sequence[Example]) -> str:
    """Return what tells these rows from others, whatever request they came from."""
    return digest([[e.row_id, e.group, e.text, e.label, e.extras] for e in examples])
