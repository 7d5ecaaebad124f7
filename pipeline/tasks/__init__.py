"""The tasks, told apart by `kind`, and the methods that each of them knows."""

from typing import Annotated

from pydantic import Field

from pipeline.tasks.ambiguity import AmbiguityConfig, PairedConfig, make_ambiguity
from pipeline.tasks.classification import ClassificationConfig, make_classification
from pipeline.tasks.classification_methods import AttributedConfig, FewGenConfig, NonRetrIclConfig, RetrIclConfig
from pipeline.tasks.cqa import AnswerConfig, CqaConfig, make_cqa
from pipeline.tasks.task import Task

AnyTaskConfig = Annotated[AmbiguityConfig | ClassificationConfig | CqaConfig, Field(discriminator="kind")]
"""The union of all tasks' configurations."""
AnyMethodConfig = Annotated[
    PairedConfig | RetrIclConfig | NonRetrIclConfig | FewGenConfig | AttributedConfig | AnswerConfig,
    Field(discriminator="name"),
]
"""The union of all methods' configurations."""


def make_task(config: AnyTaskConfig) -> Task:
    """Return the task that a configuration describes."""
    match config:
        case AmbiguityConfig():
            return make_ambiguity(config)
        case ClassificationConfig():
            return make_classification(config)
        case CqaConfig():
            return make_cqa(config)
