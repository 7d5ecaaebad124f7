"""How wide corpora are indexed and searched."""

from pydantic import Field

from pipeline.config import Config


class IndexingConfig(Config):
    """What one shard takes of the cluster while it is encoded; all other work on it takes one CPU."""

    cpus_per_task: float = Field(gt=0)
    gpus_per_task: float = Field(ge=0)
    """0: it is encoded on CPUs."""


class SearchConfig(Config):
    """The actors that hold an index."""

    actors: int = Field(gt=0)
    """That share an index's shards among them."""
    cpus_per_actor: float = Field(gt=0)
    gpus_per_actor: float = Field(ge=0)
    """0: vectors are compared on CPUs."""
    batch_queries: int = Field(gt=0)
    """Texts that are encoded and searched at once."""
