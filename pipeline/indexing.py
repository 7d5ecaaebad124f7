"""The flow of an index: files, documents, shards, terms and vectors, one ranking over all of them."""

import logging

from pydantic import Field, model_validator

from pipeline.cluster import Cluster, ScaleConfig
from pipeline.config import Config
from pipeline.experiment import DataRootConfig
from pipeline.flow import Finished, describe
from pipeline.identity import digest
from pipeline.sources.corpus_kinds import AnyCorpusConfig
from pipeline.stages.corpus import Corpus, build_corpus
from pipeline.stages.index import AnyRetrieverConfig, HybridConfig, build_index, get_bm25
from pipeline.stages.index_words import TuningConfig, read_tuning, tune_words
from pipeline.stages.inputs import check_places, list_places
from pipeline.steps import Step, Steps
from pipeline.tracking import Tracker, TrackingConfig

LOG = logging.getLogger(__name__)


class IndexRunConfig(Config):
    """Everything that one command indexes."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    corpus: AnyCorpusConfig
    retriever: AnyRetrieverConfig
    root: str = Field(min_length=1)
    """Folder or URL that everything is kept under."""
    root_is_shared: bool
    """Whether a local root is the same folder on every node."""
    data: DataRootConfig
    tuning: TuningConfig | None
    """Null: k1 and b are as the retriever has them."""
    seed: int = Field(ge=0)
    """Of the samples that approximate indexes are trained and measured on."""
    scale: ScaleConfig
    tracking: TrackingConfig

    @model_validator(mode="after")
    def _check_tuning(self) -> "IndexRunConfig":
        if self.tuning and get_bm25(self.retriever) is None:
            raise ValueError(f"tuning chooses k1 and b, which the retriever {self.retriever.kind} has not")
        return self


def index(config: IndexRunConfig) -> Finished:
    """Build an index and return the steps it is made of.

    Raises:
        RaystillError: The configuration, an input or the storage is wrong.
    """
    places = {"root": config.root, "data.root": config.data.root}
    root = check_places(places | list_places(config.corpus, "corpus", config.data.root), config.tracking)
    tracker = Tracker.open(
        config.tracking,
        root,
        experiment_name="index",
        run_name=config.name,
        run_fingerprint=digest({"corpus": config.corpus, "retriever": config.retriever, "seed": config.seed}),
        params={"name": config.name, "corpus": config.corpus.kind, "retriever": config.retriever.kind},
    )
    finished = Finished([], tracker.describe_page())

    def on_finished(step: Step) -> None:
        finished.steps.append(step)
        LOG.info(describe(step))
        tracker.publish(step)

    steps = Steps(root, on_finished)
    try:
        with Cluster(config.scale, root, config.root_is_shared) as cluster:
            corpus = build_corpus(config.corpus, config.data.root, steps, cluster)
            retriever = config.retriever
            if config.tuning:
                retriever = _tune(retriever, config.tuning, config.data.root, corpus, steps, cluster)
            build_index(retriever, corpus, config.scale.indexing, config.seed, steps, cluster)
    except BaseException as error:
        tracker.finish({}, "FAILED" if isinstance(error, Exception) else "KILLED")
        raise
    tracker.finish(finished.steps[-1].manifest["metrics"])
    return finished


def _tune(
    retriever: AnyRetrieverConfig,
    tuning: TuningConfig,
    data_root: str | None,
    corpus: Corpus,
    steps: Steps,
    cluster: Cluster,
) -> AnyRetrieverConfig:
    """Return a retriever with the k1 and b that validation queries choose."""
    bm25 = get_bm25(retriever)
    assert bm25 is not None
    tuned = tune_words(bm25, tuning, *read_tuning(tuning, data_root), corpus, steps, cluster)
    return retriever.model_copy(update={"bm25": tuned}) if isinstance(retriever, HybridConfig) else tuned
