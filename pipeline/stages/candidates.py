"""From a ranking benchmark's questions to the candidates that students put in order: what BM25 finds."""

from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.cluster import Cluster
from pipeline.evaluation.fusion import Run
from pipeline.evaluation.interests import score_interests
from pipeline.experiment import ExperimentConfig
from pipeline.records import Document, Query
from pipeline.retrieval.bm25 import Bm25Config
from pipeline.sources.community import Ranking
from pipeline.stages.collection import collect
from pipeline.stages.index import build_index
from pipeline.stages.index_words import tune_words
from pipeline.stages.retrieve import read_retrieved, retrieve
from pipeline.steps import Step, Steps
from pipeline.tasks.cqa import CqaConfig


@dataclass(frozen=True)
class Candidates:
    """What was found for each query of a benchmark, and what is known of it without a student."""

    ranking: Ranking
    bm25: Run
    tag: Run
    """The same documents, by what their authors and the askers have in common."""
    first_stage: Mapping[str, float]
    """BM25's k1 and b; empty where the benchmark itself says what BM25 found."""
    fingerprint: str
    """Of what was found."""

    def select(self, split: str) -> list[Query]:
        """Return the queries of a split."""
        return [query for query in self.ranking.queries if query.split == split]

    def texts(self) -> tuple[dict[str, str], dict[str, str]]:
        """Return the texts of the queries, and of all documents that any of them found, by id."""
        found = {document for scores in self.bm25.values() for document in scores}
        queries = {query.query_id: query.text for query in self.ranking.queries if query.query_id in self.bm25}
        return queries, {one.document_id: one.text for one in self.ranking.candidates if one.document_id in found}


def find_candidates(
    rankings: Mapping[str, Ranking], experiment: ExperimentConfig, steps: Steps, cluster: Cluster
) -> dict[str, Candidates]:
    """Return the best documents for the queries of each benchmark, by BM25 or as the benchmark itself names them.

    Raises:
        SourceError: A benchmark has no documents, or a validation query no answer.
        ConfigError: A value of BM25's grid is out of bounds, or the search's actors don't fit the cluster.
    """
    return {name: _find(ranking, experiment, steps, cluster) for name, ranking in rankings.items()}


def _find(ranking: Ranking, experiment: ExperimentConfig, steps: Steps, cluster: Cluster) -> Candidates:
    if ranking.first_stage is not None:
        bm25, fingerprint = ranking.first_stage, ranking.digest
        first_stage = {}
    else:
        step, config = _retrieve(ranking, experiment, steps, cluster)
        passages = read_retrieved(step)
        bm25 = {query: {one.passage_id: one.score for one in best} for query, best in passages.items()}
        fingerprint = step.fingerprint
        first_stage = {"k1": config.k1, "b": config.b}
    tag = score_interests(bm25, ranking.queries, ranking.candidates)
    return Candidates(ranking, bm25, tag, first_stage, fingerprint)


def _retrieve(
    ranking: Ranking, experiment: ExperimentConfig, steps: Steps, cluster: Cluster
) -> tuple[Step, Bm25Config]:
    """Return what was found, and by which k1 and b."""
    assert isinstance(experiment.task, CqaConfig)
    config, scale = experiment.task.first_stage, experiment.scale
    documents = [Document(one.document_id, one.text, source=ranking.name) for one in ranking.candidates]
    corpus = collect(documents, steps, cluster)
    bm25 = config.bm25
    if config.grid is not None:
        validation = [query for query in ranking.queries if query.split == "validation"]
        bm25 = tune_words(
            bm25,
            config.grid,
            {query.query_id: query.text for query in validation},
            {query.query_id: query.relevant.keys() for query in validation},
            corpus,
            steps,
            cluster,
            ranking.name,
        )
    index = build_index(bm25, corpus, scale.indexing, experiment.seed, steps, cluster)
    texts = {query.query_id: query.text for query in ranking.queries}
    return retrieve(texts, index, config.depth, scale.search, steps, cluster, ranking.name), bm25
