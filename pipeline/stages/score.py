"""From candidates to scores: the cosine between each query and what was found for it, by one re-ranker."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from pipeline.cluster import Cluster
from pipeline.evaluation.fusion import Run
from pipeline.experiment import RELEASED, ExperimentConfig
from pipeline.stages.candidates import Candidates
from pipeline.stages.inputs import Inputs
from pipeline.steps import Outputs, Step, Steps
from pipeline.storage import Folder
from pipeline.students.config import RerankerConfig
from pipeline.students.train import FITS

if TYPE_CHECKING:
    from pipeline.students.reranker import Reranker

SCORES = "scores.parquet"
_SCHEMA = pa.schema(
    [("seed", pa.int64()), ("query_id", pa.string()), ("document_id", pa.string()), ("score", pa.float32())]
)
_TEXTS_PER_REPORT = 512
"""Many batches, because texts of about one length are batched together."""


@dataclass(frozen=True)
class Trained:
    """A student's final fits."""

    folder: Folder

    @contextmanager
    def open(self, seed: int, use_gpu: bool) -> Iterator["Reranker"]:
        """Give the fit of a seed, loaded."""
        from pipeline.students.reranker import load_reranker

        with (self.folder / FITS).as_local(f"final-{seed}") as folder:
            yield load_reranker(folder, use_gpu)


@dataclass(frozen=True)
class Released:
    """A student's encoder as it was published; there is one, whatever the seed."""

    config: RerankerConfig

    @contextmanager
    def open(self, seed: int, use_gpu: bool) -> Iterator["Reranker"]:
        """Give the encoder, loaded."""
        from pipeline.students.reranker import build_reranker

        yield build_reranker(self.config, use_gpu)


def score_released(
    key: str, found: Candidates, experiment: ExperimentConfig, inputs: Inputs, steps: Steps, cluster: Cluster
) -> Step:
    """Return the scores of a student's encoder that no row of ours has trained."""
    config, pinned = experiment.students[key], inputs.models[key]
    assert isinstance(config, RerankerConfig)
    released = Released(config.model_copy(update={"model": pinned.location, "revision": pinned.revision}))
    # Of the student only what decides how its encoder is run; all else is about training it.
    made_of = {"model": pinned.identity, "max_length": str(config.max_length)}
    return _score(f"{RELEASED}/{key}", released, (0,), made_of, config, found, steps, cluster)


def score_student(
    arm: str, key: str, trained: Step, found: Candidates, experiment: ExperimentConfig, steps: Steps, cluster: Cluster
) -> Step:
    """Return the scores of a student's final fits."""
    config = experiment.students[key]
    assert isinstance(config, RerankerConfig)
    made_of = {"student": trained.fingerprint}
    return _score(f"{arm}/{key}", Trained(trained.folder), config.seeds, made_of, config, found, steps, cluster)


def read_runs(step: Step) -> dict[int, Run]:
    """Return what each seed scored."""
    runs: dict[int, dict[str, dict[str, float]]] = {}
    for row in step.folder.read_table(SCORES).to_pylist():
        runs.setdefault(row["seed"], {}).setdefault(row["query_id"], {})[row["document_id"]] = row["score"]
    return dict(runs)


def _score(
    of: str,
    reranker: Trained | Released,
    seeds: Sequence[int],
    made_of: Mapping[str, str],
    config: RerankerConfig,
    found: Candidates,
    steps: Steps,
    cluster: Cluster,
) -> Step:
    training = cluster.config.training
    queries, documents = found.texts()
    n_texts = len({*queries.values(), *documents.values()})

    def produce(folder: Folder) -> Outputs:
        with cluster.progress(f"score {of} on {found.ranking.name}", "texts", n_texts * len(seeds)) as report:
            table = cluster.call(
                _score_pairs,
                reranker,
                seeds,
                found.bm25,
                queries,
                documents,
                config.eval_batch_size,
                training.threads,
                training.gpus_per_worker > 0,
                report,
            )
        folder.write_table(SCORES, table)
        return Outputs(counts={"queries": len(queries), "texts": n_texts, "pairs": table.num_rows})

    return steps.run(
        "scores",
        produce,
        arm=f"{of} {found.ranking.name}",
        config={"seeds": list(seeds)},
        inputs={**made_of, "candidates": found.fingerprint},
        code=("pipeline.students.reranker", __name__),
    )


def _score_pairs(
    reranker: Trained | Released,
    seeds: Sequence[int],
    found: Run,
    queries: Mapping[str, str],
    documents: Mapping[str, str],
    batch_size: int,
    threads: int,
    use_gpu: bool,
    report: Callable[[Mapping[str, int]], None],
) -> pa.Table:
    """Encode every text once for each seed, and compare; runs in a task."""
    import torch

    torch.set_num_threads(threads)
    texts = sorted({*queries.values(), *documents.values()}, key=lambda text: (len(text), text))
    places = {text: place for place, text in enumerate(texts)}
    columns = []
    for seed in seeds:
        with reranker.open(seed, use_gpu) as model:
            parts = []
            for start in range(0, len(texts), _TEXTS_PER_REPORT):
                parts.append(model.encode(texts[start : start + _TEXTS_PER_REPORT], batch_size))
                report({"done": len(parts[-1])})
        vectors = np.concatenate(parts)
        for query_id, scores in found.items():
            ids = list(scores)
            of_documents = vectors[[places[documents[one]] for one in ids]]
            cosines = of_documents @ vectors[places[queries[query_id]]]
            columns.append(pa.table([[seed] * len(ids), [query_id] * len(ids), ids, cosines], schema=_SCHEMA))
    return pa.concat_tables(columns) if columns else _SCHEMA.empty_table()
