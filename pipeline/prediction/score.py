"""Scoring under Ray: a file is scored by one actor, and written whole with its decisions and probabilities."""

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.cluster import Cluster, ScaleConfig
from pipeline.errors import RaystillError, WorkerError
from pipeline.prediction.files import MADE_OF, PROBABILITY, Source, extend_schema, find_pending, find_sources
from pipeline.prediction.model import Model, read_model
from pipeline.progress import DONE
from pipeline.sources.tables import resolve
from pipeline.stages.inputs import check_place
from pipeline.storage import Folder
from pipeline.students.engines import Engine, load_engine
from pipeline.students.scoring import Scorer, to_probabilities

LOG = logging.getLogger(__name__)
_CHUNK_ROWS = 8192
"""Rows held at once; large enough that batches of similar lengths can be made."""

Report = Callable[[Mapping[str, int]], None]


@dataclass(frozen=True)
class PredictionConfig:
    """What a job scores, and how."""

    model: str
    """A folder (or URL of one) that transformers saved a sequence classifier and its tokenizer in."""
    inputs: tuple[str, ...]
    """Parquet files, folders of them, patterns, or URLs of either."""
    output: str
    column: str
    """Of the texts."""
    engine: Engine | None
    """None: see `choose_engine`."""
    batch_size: int
    actors: int
    cpus_per_actor: int
    """Also an engine's threads."""
    gpus_per_actor: float
    is_shared: bool
    """Whether local folders are the same on every node."""


@dataclass(frozen=True)
class Predicted:
    """What a job came to."""

    n_kept: int
    """Files that were there already."""
    n_scored: int
    """Files."""
    rows: int
    """Of the files scored now."""
    nulls: int
    """Of those rows, how many have no text, and so no prediction."""


def predict(config: PredictionConfig, scale: ScaleConfig) -> Predicted:
    """Score all files whose output is missing or was made of something else.

    Raises:
        ConfigError: A place, the model or the engine can't be used.
        SourceError: There is no such file, or it lacks the column, or the column holds no text.
        WorkerError: Scoring failed; finished files are kept.
    """
    check_place("--model", config.model)
    for given in config.inputs:
        check_place("--input", given)
    check_place("--output", config.output)
    output = Folder.at(config.output)
    model = read_model(config.model, config.engine, config.gpus_per_actor)
    sources = find_sources(config.inputs, config.column, model, output)
    output.check_writable()
    pending = find_pending(sources, output)
    LOG.info("%d files, %d of them scored already", len(sources), len(sources) - len(pending))
    if not pending:
        return Predicted(len(sources), 0, 0, 0)
    n_cpus = config.actors * config.cpus_per_actor
    if scale.num_cpus is not None:
        scale = scale.model_copy(update={"num_cpus": max(scale.num_cpus, n_cpus)})
    read_by_workers = (model.folder, *map(Folder.at, config.inputs))
    with Cluster(scale, output, config.is_shared, read_by_workers, "--shared") as cluster:
        cluster.check_room("--actors, --{}s", cpus=n_cpus, gpus=config.actors * config.gpus_per_actor)
        n_rows = sum(source.n_rows for source in pending)
        with cluster.progress("predict", "rows", n_rows) as report:
            nulls = sum(_score_files(pending, model, output, config, report))
    return Predicted(len(sources) - len(pending), len(pending), n_rows, nulls)


def score_file(
    source: Source,
    column: str,
    labels: Sequence[str],
    score: Scorer,
    batch_size: int,
    output: Folder,
    report: Report = lambda counts: None,
) -> int:
    """Write a file's rows with predictions, whole or not at all, and return how many have no text.

    Those get nulls: one row of millions must not end the job, and none is left out.
    """
    filesystem, path = resolve(source.location)
    n_nulls = 0
    with filesystem.open_input_file(path) as stream:
        file = pq.ParquetFile(stream)
        schema = extend_schema(file.schema_arrow, column, labels, source.location)
        made_of = {**(schema.metadata or {}), MADE_OF: source.made_of}
        with output.writing_table(source.name, schema.with_metadata(made_of)) as writer:
            for batch in file.iter_batches(_CHUNK_ROWS):
                writer.write_table(score_table(pa.Table.from_batches([batch]), schema, column, score, batch_size))
                nulls = batch.column(column).null_count
                n_nulls += nulls
                report({DONE: len(batch), "without text": nulls})
    return n_nulls


def score_table(table: pa.Table, schema: pa.Schema, column: str, score: Scorer, batch_size: int) -> pa.Table:
    """Return a table in the schema of `extend_schema`, with predictions for all rows that have a text."""
    texts = table[column].cast(pa.string()).to_pylist()
    places = [place for place, text in enumerate(texts) if text is not None]
    labels = [name.removeprefix(PROBABILITY.format("")) for name in schema.names[table.num_columns + 1 :]]
    probabilities = np.full((len(texts), len(labels)), np.nan, np.float32)
    predicted: list[str | None] = [None] * len(texts)
    if places:
        found = to_probabilities(score([texts[place] for place in places], batch_size))
        probabilities[places] = found
        for place, index in zip(places, found.argmax(axis=1), strict=True):
            predicted[place] = labels[index]
    is_null = np.isin(np.arange(len(texts)), places, invert=True)
    added = [pa.array(predicted, pa.string())]
    added += [pa.array(np.ascontiguousarray(one), pa.float32(), mask=is_null) for one in probabilities.T]
    return pa.Table.from_arrays([*table.columns, *added], schema=schema)


class PredictionActor:
    """Holds a model on a worker and scores one file at a time."""

    def __init__(self, model: Model, output: Folder, config: PredictionConfig, report: Report) -> None:
        os.environ["RAYON_NUM_THREADS"] = str(config.cpus_per_actor)  # tokenizers would take all of the machine
        with model.folder.as_local("") as folder:
            self._score = load_engine(Path(folder), model.engine, config.cpus_per_actor, config.gpus_per_actor > 0)
        self._model, self._output, self._config, self._report = model, output, config, report

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Score the files that a table of `Source` names, and return how many of their rows have no text."""
        nulls = [
            score_file(
                Source(**row),
                self._config.column,
                self._model.labels,
                self._score,
                self._config.batch_size,
                self._output,
                self._report,
            )
            for row in batch.to_pylist()
        ]
        return pa.table({"nulls": pa.array(nulls, pa.int64())})


def _score_files(
    pending: Sequence[Source], model: Model, output: Folder, config: PredictionConfig, report: Report
) -> list[int]:
    import ray
    import ray.data

    logging.getLogger("ray.data").setLevel(logging.ERROR)  # its lines would bury ours
    context = ray.data.DataContext.get_current()
    context.execution_options.verbose_progress = False
    context.enable_progress_bars = False
    context.execution_no_progress_timeout_s = -1  # a file may take hours, and our own progress counts its rows
    largest_first = sorted(pending, key=lambda source: -source.n_rows)
    scored = ray.data.from_arrow([pa.Table.from_pylist([asdict(source)]) for source in largest_first]).map_batches(
        PredictionActor,
        batch_size=None,
        batch_format="pyarrow",
        fn_constructor_args=(model, output, config, report),
        num_cpus=config.cpus_per_actor,
        num_gpus=config.gpus_per_actor,
        # One in flight: a file that waits in the queue of a busy actor is one that a free one can't take.
        compute=ray.data.ActorPoolStrategy(size=min(config.actors, len(pending)), max_tasks_in_flight_per_actor=1),
    )
    try:
        return [int(row["nulls"]) for row in scored.iter_rows()]
    except ray.exceptions.RayError as error:
        raise WorkerError(f"scoring failed: {_find_reason(error)}; finished files are kept") from error


def _find_reason(error: BaseException) -> str:
    """Return the message of our own error at the bottom of Ray's, else of Ray's."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, RaystillError):
            return str(cause)
        cause = getattr(cause, "cause", None) or cause.__cause__
    return str(error)
