"""What a student is and how it is trained."""

from typing import Literal

from pydantic import Field, model_validator

from pipeline.config import Config


class StudentConfig(Config):
    """A Hugging Face encoder with a classification head."""

    kind: Literal["classifier"]
    label: str
    """The name in messages."""
    model: str
    """A hub id, a local folder, or `pkg://<package>/<folder>` for weights inside an installed Python package."""
    revision: str | None
    """Commit, tag or branch of a hub id; null takes the hub's default, and records which commit that was."""
    frozen_encoder: bool
    """Train the head alone."""
    max_length: int = Field(gt=0)
    """Tokens; longer texts are cut."""
    epochs: int = Field(gt=0)
    """At most; with folds, the final fits train for the median of the folds' best epochs."""
    patience: int = Field(gt=0)
    """Epochs without a better macro-F1 on the held-out fold until a fold stops."""
    learning_rate: float = Field(gt=0)
    batch_size: int = Field(gt=0)
    gradient_accumulation: int = Field(gt=0)
    weight_decay: float = Field(ge=0)
    warmup_share: float = Field(ge=0, lt=1)
    """Share of the steps over which the learning rate rises."""
    max_grad_norm: float = Field(gt=0)
    label_smoothing: float = Field(ge=0, lt=1)
    class_weights: bool
    """Weigh each class by the inverse of its share."""
    folds: int = Field(ge=0)
    """Folds of the cross-validation on the training rows; 0 leaves it out."""
    seeds: tuple[int, ...] = Field(min_length=1)
    """One final fit each: the seed draws the head, the dropout and the order of rows."""
    precision: Literal["auto", "fp32"]
    """`auto`: bf16, else fp16, on a GPU; fp32 on a CPU."""
    eval_batch_size: int = Field(gt=0)

    @model_validator(mode="after")
    def _check(self) -> "StudentConfig":
        if self.folds == 1:
            raise ValueError("folds: 1 leaves nothing to train on; use 0 for none, or at least 2")
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds: each seed once, given {list(self.seeds)}")
        return self
