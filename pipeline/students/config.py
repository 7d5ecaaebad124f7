"""What a student is and how it is trained: three kinds, told apart by `kind`."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipeline.config import Config
from pipeline.encoder import EncoderConfig


class StudentConfig(Config):
    """What every student has: a Hugging Face encoder that starts from given weights."""

    kind: str
    label: str
    """The name in messages."""
    model: str
    """A hub id, a local folder, or `pkg://<package>/<folder>` for weights inside an installed Python package."""
    revision: str | None
    """Commit, tag or branch of a hub id; null takes the hub's default, and records which commit that was."""
    selected_on: tuple[str, ...]
    """Benchmarks whose own train and dev items chose these settings; it is then reported on their test split alone."""
    max_length: int = Field(gt=0)
    """Tokens; longer texts are cut."""
    folds: int = Field(ge=0)
    """Folds of the cross-validation on the training rows; 0 leaves it out."""
    seeds: tuple[int, ...] = Field(min_length=1)
    """One final fit each: the seed draws the head, the dropout and the order of rows. A frozen encoder's fits draw
    nothing, so that all its seeds give one student."""
    eval_batch_size: int = Field(gt=0)

    @model_validator(mode="after")
    def _check(self) -> "StudentConfig":
        if self.folds == 1:
            raise ValueError("folds: 1 leaves nothing to train on; use 0 for none, or at least 2")
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds: each seed once, given {list(self.seeds)}")
        return self


class FineTunedConfig(StudentConfig):
    """A student whose every weight is trained, by gradients."""

    epochs: int = Field(gt=0)
    """At most; with folds, the final fits train for the median of the folds' best epochs."""
    patience: int = Field(gt=0)
    """Epochs without a better score on the held-out fold until a fold stops."""
    learning_rate: float = Field(gt=0)
    batch_size: int = Field(gt=0)
    """Rows that all workers together see before gradients are added up."""
    gradient_accumulation: int = Field(gt=0)
    """Batches whose gradients make one step."""
    gradient_checkpointing: bool
    """Compute activations again in the backward pass instead of keeping them: less memory, a third more time."""
    weight_decay: float = Field(ge=0)
    adam_epsilon: float = Field(gt=0)
    """What AdamW adds to the root of the second moment."""
    schedule: Literal["linear", "constant"]
    """The learning rate after warming up: `linear` falls to 0 at the last step, `constant` stays."""
    warmup_share: float = Field(ge=0, lt=1)
    """Share of the steps over which the learning rate rises."""
    max_grad_norm: float | None = Field(gt=0)
    """Longer gradients are cut to this length; null: none is."""
    dropout: bool
    """Whether the dropout that the model came with is on in training."""
    precision: Literal["auto", "fp32"]
    """`auto`: bf16, else fp16, on a GPU; fp32 on a CPU."""


class ClassifierConfig(FineTunedConfig):
    """An encoder with a classification head."""

    kind: Literal["classifier"]
    length_bucketing: bool
    """Make batches of rows of similar length, so that less padding is computed; changes the order of rows."""
    label_smoothing: float = Field(ge=0, lt=1)
    class_weights: bool
    """Weigh each class by the inverse of its share."""


class RerankerConfig(FineTunedConfig):
    """A bi-encoder: query and passage through the same weights, scored by the cosine of their mean token vectors.

    After Sy-SE-PQA (arXiv 2410.22182; `model/loss.py` of its code).
    """

    kind: Literal["reranker"]
    margin: float = Field(gt=0, lt=2)
    """By how much a query's own passage must score above any other of the batch."""
    hard_negatives: int = Field(ge=0)
    """Further passages for each query that are near it and not its own, such as BM25's best; 0: the batch's alone."""

    @model_validator(mode="after")
    def _check_negatives(self) -> "RerankerConfig":
        if self.batch_size == 1 and not self.hard_negatives:
            raise ValueError("batch_size: 1 leaves a query no negative; use at least 2, or hard_negatives")
        return self


class FrozenConfig(StudentConfig):
    """An encoder that is left as it is, its vectors kept, and a logistic regression on top."""

    kind: Literal["frozen"]
    pooling: Literal["auto", "mean", "cls"]
    """How the vectors of tokens become one; as in `conf/encoder/`."""
    inverse_regularisation: float = Field(gt=0)
    """`C` of the logistic regression: smaller is smoother."""
    class_weights: bool
    """Weigh each class by the inverse of its share."""

    @property
    def encoder(self) -> EncoderConfig:
        """What computes its vectors."""
        return EncoderConfig(
            model=self.model,
            revision=self.revision,
            pooling=self.pooling,
            max_tokens=self.max_length,
            query_prefix="",
            document_prefix="",
            precision="fp32",
            batch_size=self.eval_batch_size,
        )


AnyStudentConfig = Annotated[ClassifierConfig | RerankerConfig | FrozenConfig, Field(discriminator="kind")]
