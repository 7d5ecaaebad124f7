"""Encoders: from texts to vectors of length 1, whose inner product is the texts' cosine similarity."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from pipeline.config import Config
from pipeline.errors import ConfigError
from pipeline.weights import PinnedModel, locate_model

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


class EncoderConfig(Config):
    """A model of sentence-transformers, or any Hugging Face encoder."""

    model: str
    """A hub id, a local folder, or `pkg://<package>/<folder>` for weights inside an installed Python package."""
    revision: str | None
    """Commit, tag or branch of a hub id; null takes the hub's default."""
    pooling: Literal["auto", "mean", "cls"]
    """How the vectors of tokens become one. `auto`: as the model's own sentence-transformers files say, by the mean
    where it has none."""
    max_tokens: int = Field(gt=0)
    """Of the longest text with its prefix; longer ones are cut."""
    query_prefix: str
    """Stands before every query, as the model was trained with."""
    document_prefix: str
    precision: Literal["fp32", "fp16"]
    """Of the model's arithmetic. `fp16` is for GPUs; a CPU gives the same, within 5e-4 of a similarity, at a quarter of
    its speed."""
    batch_size: int = Field(gt=0)


@dataclass(frozen=True)
class Encoder:
    """A loaded model."""

    config: EncoderConfig
    model: "SentenceTransformer"

    def encode_queries(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Return a vector of length 1 for each query; shape (texts, dimensions).

        Raises:
            ConfigError: A vector has no direction, as when half precision overflows.
        """
        return self._encode(texts, self.config.query_prefix)

    def encode_documents(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Return a vector of length 1 for each document; shape (texts, dimensions).

        Raises:
            ConfigError: A vector has no direction, as when half precision overflows.
        """
        return self._encode(texts, self.config.document_prefix)

    def _encode(self, texts: Sequence[str], prefix: str) -> npt.NDArray[np.float32]:
        if not texts:
            return np.empty((0, self.model.get_embedding_dimension() or 0), dtype=np.float32)
        # An empty prefix is given too: without any, some models put their default prompt in its place.
        encoded = self.model.encode(
            list(texts), prompt=prefix, batch_size=self.config.batch_size, show_progress_bar=False
        )
        vectors = np.asarray(encoded, dtype=np.float32)
        # Scaled here rather than by the model, whose half precision would leave the lengths off by up to 5e-4.
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        if not (np.isfinite(lengths) & (lengths > 0)).all():
            raise ConfigError(
                f"the encoder {self.config.model} gives vectors without a direction in {self.config.precision}; "
                "check its weights, or set its precision to fp32"
            )
        unit: npt.NDArray[np.float32] = vectors / lengths
        return unit


def load_encoder(pinned: PinnedModel, config: EncoderConfig, device: str) -> Encoder:
    """Return the encoder, ready on a device of torch (`cpu`, `cuda`).

    Raises:
        ConfigError: The model takes fewer tokens than `max_tokens`.
    """
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling
    from transformers import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    # Given for fp32 too: weights saved in half precision would otherwise be computed in it.
    dtype = torch.float16 if config.precision == "fp16" else torch.float32
    model = SentenceTransformer(
        locate_model(pinned.location), revision=pinned.revision, device=device, model_kwargs={"dtype": dtype}
    )
    if config.pooling != "auto":
        transformer: Any = model[0]
        pooling = Pooling(transformer.get_embedding_dimension(), config.pooling)
        model = SentenceTransformer(modules=[transformer, pooling], device=device)
    n_positions = getattr(model.config, "max_position_embeddings", None)
    if n_positions is not None and config.max_tokens > n_positions:
        raise ConfigError(
            f"the encoder {config.model} takes {n_positions} tokens at most, given max_tokens={config.max_tokens}"
        )
    model.max_seq_length = config.max_tokens
    return Encoder(config, model)


def describe_encoder(pinned: PinnedModel, config: EncoderConfig) -> dict[str, Any]:
    """Return what of an encoder changes its vectors, and under `model` its name, which doesn't.

    Without the name it belongs to the identity of steps; whole, to an index, for `check_encoder`.
    """
    settings = config.model_dump(exclude={"model", "revision", "batch_size"})
    return {"model": pinned.location, "weights": pinned.identity, **settings}


def check_encoder(index: str, built_with: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Refuse to search an index with another encoder than it was built with.

    Args:
        index: Where it is.
        built_with: What `describe_encoder` said of the encoder of its documents.
        given: What it says of the encoder of the queries.

    Raises:
        ConfigError: Vectors of the two are not comparable.
    """
    names = sorted((built_with.keys() | given.keys()) - {"model"})
    different = [
        f"{name} ({built_with.get(name)!r} there, {given.get(name)!r} here)"
        for name in names
        if built_with.get(name) != given.get(name)
    ]
    if different:
        raise ConfigError(
            f"the index {index} was built with the encoder {built_with['model']}, and can't be searched with "
            f"{given['model']}, which differs in {', '.join(different)}; search it with the encoder that it was built "
            "with, or build another index"
        )
