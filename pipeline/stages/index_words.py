"""The BM25 part of an index: term counts of each shard, what all shards say of a term, scores of each shard.

Counts are kept when documents are added, and whatever k1 and b are; scores depend on all shards and are computed anew.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import asdict
from functools import partial

from pipeline.cluster import Cluster
from pipeline.identity import digest
from pipeline.retrieval.bm25 import Bm25Config, Bm25Shard, score
from pipeline.retrieval.terms import Statistics, TermCounts, TermsConfig, count_terms, merge_statistics
from pipeline.retrieval.tuning import GridConfig, Tuned, tune
from pipeline.sources.tables import locate, read_rows
from pipeline.stages.corpus import Corpus, Shard, read_ids, read_texts
from pipeline.steps import Outputs, Plan, Step, Steps
from pipeline.storage import Folder

LOG = logging.getLogger(__name__)
COUNTS, STATISTICS, SCORES, TUNING = "counts", "statistics", "scores", "tuning.json"
TERMS_CODE = (__name__, "pipeline.retrieval.terms")
BM25_CODE = (*TERMS_CODE, "pipeline.retrieval.bm25")


class TuningConfig(GridConfig):
    """Queries whose relevant documents are known, by which k1 and b are chosen; never those of a test set."""

    queries: str
    """Table with the columns `query_id` and `text`; under `data.root`, unless its path is absolute or a URL."""
    relevant: str
    """Table with the columns `query_id` and `document_id`, a row for each relevant document."""


def score_words(config: Bm25Config, corpus: Corpus, steps: Steps, cluster: Cluster) -> list[Step]:
    """Return the step of each shard's scores."""
    counted = _count_words(config.terms, corpus, steps, cluster)
    made_of = {f"terms {number}": step.fingerprint for number, step in enumerate(counted)}
    folders = [step.folder for step in counted]
    plan = Plan(STATISTICS, partial(_add_up, folders), {}, made_of, TERMS_CODE)
    (statistics,) = cluster.fulfil("add up terms", [plan], steps.root)
    plans = [
        Plan(
            "bm25",
            partial(_score, step.folder, statistics.folder, config),
            config,
            {"terms": step.fingerprint, "statistics": statistics.fingerprint},
            BM25_CODE,
        )
        for step in counted
    ]
    return cluster.fulfil("score terms", plans, steps.root)


def tune_words(
    config: Bm25Config,
    grid: GridConfig,
    queries: Mapping[str, str],
    relevant: Mapping[str, AbstractSet[str]],
    corpus: Corpus,
    steps: Steps,
    cluster: Cluster,
    arm: str = "",
) -> Bm25Config:
    """Return the configuration with the k1 and b that find most of what is relevant to validation queries.

    Args:
        config: The configuration.
        grid: What is tried in place of its k1 and b.
        queries: Texts by id; never those of a test set.
        relevant: Ids of the documents that answer each.
        corpus: What is searched.
        steps: Where the step runs or is found.
        cluster: Where words are counted.
        arm: What the step belongs to.

    Raises:
        SourceError: A query has no relevant documents.
        ConfigError: There is no such measure, or a value of the grid is out of bounds.
    """
    counted = _count_words(config.terms, corpus, steps, cluster)

    def produce(folder: Folder) -> Outputs:
        shards = list(_read_counts([step.folder for step in counted]))
        ids = [read_ids(steps.root, shard) for shard in corpus.shards]
        tuned = tune(shards, ids, queries, relevant, config, grid.k1, grid.b, grid.measure, grid.tie_break)
        _warn(arm, tuned)
        folder.write_json(TUNING, asdict(tuned))
        return Outputs(
            counts={"queries": len(queries), "trials": len(tuned.trials), "equal": tuned.n_equal},
            metrics={"k1": tuned.k1, "b": tuned.b, grid.measure: tuned.value},
        )

    step = steps.run(
        "tuning",
        produce,
        arm=arm,
        config={"bm25": config, "measure": grid.measure, "tie_break": grid.tie_break, "k1": grid.k1, "b": grid.b},
        inputs={
            "queries": digest(dict(queries)),
            "relevant": digest({query: sorted(ids) for query, ids in relevant.items()}),
            "corpus": corpus.step.fingerprint,
        },
        code=[*BM25_CODE, "pipeline.retrieval.tuning"],
    )
    tuned = step.folder.read_json(TUNING)
    return config.model_copy(update={"k1": tuned["k1"], "b": tuned["b"]})


def _warn(name: str, tuned: Tuned) -> None:
    if tuned.n_equal > 1:
        LOG.warning(
            "%s: %d of %d values of k1 and b are equally good for the validation queries; k1 %g, b %g are the nearest "
            "to the configured ones",
            name,
            tuned.n_equal,
            len(tuned.trials),
            tuned.k1,
            tuned.b,
        )
    if tuned.is_at_edge:
        LOG.warning("%s: the best k1 and b, %g and %g, stand at an edge of the grid", name, tuned.k1, tuned.b)


def open_bm25(root: Folder, fingerprint: str) -> Bm25Shard:
    """Return the scores of one shard, mapped into memory.

    Args:
        root: Where steps are.
        fingerprint: Of the step of the shard's scores.
    """
    with (root / "steps" / "bm25" / fingerprint).as_local(SCORES) as path:
        return Bm25Shard.load(path)


def _count_words(config: TermsConfig, corpus: Corpus, steps: Steps, cluster: Cluster) -> list[Step]:
    plans = [
        Plan("terms", partial(_count, shard, steps.root, config), config, {"shard": shard.fingerprint}, TERMS_CODE)
        for shard in corpus.shards
    ]
    return cluster.fulfil("count terms", plans, steps.root)


def _count(shard: Shard, root: Folder, config: TermsConfig, folder: Folder) -> Outputs:
    texts = read_texts(root, shard)
    counts = count_terms(texts, config)
    with folder.filling(COUNTS) as path:
        counts.save(path)
    return Outputs(counts={"documents": len(texts), "terms": len(counts.vocabulary)})


def _add_up(counted: Sequence[Folder], folder: Folder) -> Outputs:
    statistics = merge_statistics(_read_counts(counted))
    with folder.filling(STATISTICS) as path:
        statistics.save(path)
    return Outputs(counts={"documents": statistics.n_documents, "terms": statistics.frequencies.num_rows})


def _score(counted: Folder, statistics: Folder, config: Bm25Config, folder: Folder) -> Outputs:
    with counted.as_local(COUNTS) as counts, statistics.as_local(STATISTICS) as path:
        scored = score(TermCounts.load(counts), Statistics.load(path), config)
    with folder.filling(SCORES) as path:
        scored.save(path)
    return Outputs()


def _read_counts(counted: Sequence[Folder]) -> Iterator[TermCounts]:
    for source in counted:
        with source.as_local(COUNTS) as path:
            yield TermCounts.load(path)


def read_tuning(tuning: TuningConfig, data_root: str | None) -> tuple[dict[str, str], dict[str, set[str]]]:
    """Return validation queries and what is relevant to each; see `tune_words`.

    Raises:
        SourceError: A table is missing or wrong.
    """

    def read(path: str, column: str) -> Iterator[tuple[str, str]]:
        columns = {"query_id": "query_id", "value": column}
        for row in read_rows(locate(data_root or ".", path), columns):
            yield row.values["query_id"], row.values["value"]

    relevant: dict[str, set[str]] = {}
    for query, document in read(tuning.relevant, "document_id"):
        relevant.setdefault(query, set()).add(document)
    return dict(read(tuning.queries, "text")), relevant
