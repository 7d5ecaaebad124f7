"""What an arm's seeds retrieve: its index is built where it isn't there yet, then asked once for each seed."""

from pipeline.cluster import Cluster
from pipeline.experiment import ArmConfig, ExperimentConfig
from pipeline.stages.collection import collect
from pipeline.stages.corpus import build_corpus
from pipeline.stages.index import build_index
from pipeline.stages.inputs import Inputs
from pipeline.stages.retrieve import retrieve
from pipeline.steps import Step, Steps


def find_passages(
    key: str, arm: ArmConfig, experiment: ExperimentConfig, inputs: Inputs, steps: Steps, cluster: Cluster
) -> Step:
    """Return the step with the passages of each of an arm's seeds, by the seed's id.

    Raises:
        SourceError: The corpus is missing, empty or broken.
        ConfigError: The index's encoder has changed or is gone, or its actors don't fit the cluster.
    """
    assert arm.index is not None
    assert arm.method is not None
    config, scale = experiment.indexes[arm.index], experiment.scale
    corpus = (
        collect(inputs.communities.grounding, steps, cluster)
        if config.corpus is None
        else build_corpus(config.corpus, experiment.data.root, steps, cluster)
    )
    index = build_index(config.retriever, corpus, scale.indexing, experiment.seed, steps, cluster)
    queries = {seed.seed_id: inputs.task.write_query(seed, arm.method) for seed in inputs.seeds[key]}
    return retrieve(queries, index, arm.method.n_passages, scale.search, steps, cluster, key)
