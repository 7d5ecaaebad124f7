"""What an experiment may set of its evaluation."""

from pydantic import Field

from pipeline.config import Config
from pipeline.evaluation.baselines import FrozenBaselineConfig, PrototypeConfig
from pipeline.evaluation.cost import CostConfig


class EvaluationConfig(Config):
    """How students are judged, the same for all arms of an experiment."""

    n_replicates: int = Field(ge=100)
    """Bootstrap replicates behind each interval; its ends are a few of the outermost."""
    seed: int = Field(ge=0)
    """Of the bootstrap's draws."""
    prior_seeds: int = Field(gt=0)
    """How many seeds, from 0 on, the `prior` baseline draws with."""
    cost: CostConfig
    prototype: PrototypeConfig
    frozen: FrozenBaselineConfig | None
    """Null leaves these baselines out."""
