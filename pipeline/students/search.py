"""What a search over a student's settings is: the space, how it is walked, and what decides (the objective)."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipeline.config import Config
from pipeline.students.space import SpaceConfig

PERTURBED = ("learning_rate", "weight_decay", "max_grad_norm", "label_smoothing", "margin")
"""Settings that may change between two epochs of one training, which is what a population does."""


class HeldOutConfig(Config):
    """Trials are judged on synthetic rows that they were not trained on: whole groups of the searched arm's."""

    kind: Literal["held_out"]
    folds: int = Field(ge=2)
    """Parts that the rows are cut into."""
    measured: int = Field(gt=0)
    """Parts that each trial is measured on, one after the other, trained on the rest each time."""

    @model_validator(mode="after")
    def _check(self) -> "HeldOutConfig":
        if self.measured > self.folds:
            raise ValueError(f"measured is {self.measured}, but there are {self.folds} folds")
        return self


class DevConfig(Config):
    """Trials are judged on a benchmark's own train and dev items; its test items are never seen."""

    kind: Literal["dev"]
    benchmark: str
    splits: tuple[str, ...] | None
    """Of the benchmark; null: all that it lets select."""


AnyObjectiveConfig = Annotated[HeldOutConfig | DevConfig, Field(discriminator="kind")]


class StopEarlyConfig(Config):
    """Asynchronous successive halving (ASHA, Li et al. 2020, arXiv 1810.05934): the worst trials end early."""

    grace_epochs: int = Field(gt=0)
    """Epochs that every trial may train."""
    reduction_factor: int = Field(ge=2)
    """Of the trials that reach a rung one in so many goes on; each rung has as many times the epochs."""


class StudentSearchConfig(Config):
    """One search."""

    arm: str | None
    """Key of the arm that is searched on; null where the experiment has one."""
    student: str | None
    """Key of the student whose settings are searched; null where the experiment has one."""
    sampler: Literal["tpe", "random", "grid", "population"]
    """`tpe` learns from the trials before (Bergstra et al. 2011), `grid` tries all, `population` trains all at once and
    lets the worse copy the better and change (population-based training, Jaderberg et al. 2017, arXiv 1711.09846)."""
    trials: int = Field(gt=0)
    """In all, the default configuration included, which is trial 0. A grid has as many as it has points."""
    stop_early: StopEarlyConfig | None
    """Null: every trial trains to its end."""
    space: SpaceConfig
    save_as: str | None = Field(pattern=r"^[a-z][a-z0-9_]*$")
    """What `student=` calls the best configuration; null: tuned_<student>_<arm>."""

    @model_validator(mode="after")
    def _check(self) -> "StudentSearchConfig":
        if self.sampler != "population":
            return self
        if fixed := [name for name in self.space.dimensions() if name.removeprefix("student.") not in PERTURBED]:
            raise ValueError(
                f"space: a population changes settings between epochs, which {', '.join(fixed)} can't bear; it can "
                f"search {', '.join(PERTURBED)}"
            )
        if self.stop_early is not None:
            raise ValueError("stop_early: a population ends nobody early, the worse copy the better; set it to null")
        return self


class TrialsConfig(Config):
    """Where and how wide trials run."""

    at_once: int = Field(gt=0)
    """Trials; a population has as many at once as the cluster has room for."""
    cpus_per_trial: float = Field(gt=0)
    gpus_per_trial: float = Field(ge=0, le=1)
    """May be a share of one GPU: small students leave most of it idle."""
    max_failures: int = Field(ge=0)
    """Times that a trial whose worker dies is started again."""
