"""Bi-encoder re-rankers: one fit with sentence-transformers' own trainer, and scores.

Query and passage go through the same encoder; the vectors of their tokens are averaged and scaled to length 1, so a dot
product is a cosine. After Sy-SE-PQA (arXiv 2410.22182), whose published code decided what the paper leaves open.
"""

import json
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pipeline.errors import ConfigError
from pipeline.records import Example
from pipeline.students.config import RerankerConfig
from pipeline.students.fine_tuning import FitResult, Hooks, list_dropouts, make_arguments, run_trainer
from pipeline.weights import locate_model

if TYPE_CHECKING:
    import torch
    from sentence_transformers import SentenceTransformer

MEASURE, _CUT = "MRR@10", 10
QUERY, HARD_NEGATIVES = "query", "hard_negatives"
_QUERIES_AT_ONCE = 256
"""Held-out queries whose scores of all passages are in memory together."""


@dataclass(frozen=True)
class Pair:
    """A query, the passage that answers it, and passages that are near it and don't."""

    query: str
    passage: str
    hard_negatives: tuple[str, ...] = ()


def to_pairs(examples: Iterable[Example], n_hard_negatives: int) -> list[Pair]:
    """Return rows of a data set as pairs.

    Args:
        examples: Rows whose text is the passage. `extras["query"]` is its query and, where they are asked for,
            `extras["hard_negatives"]` a JSON list of texts, the best first.
        n_hard_negatives: How many of them to take.

    Raises:
        ConfigError: A row lacks its query, its passage or some of its hard negatives.
    """
    return [
        Pair(
            _need_text(example, f"the query, extras[{QUERY!r}],", example.extras.get(QUERY, "")),
            _need_text(example, "the passage, its text,", example.text),
            _read_hard_negatives(example, n_hard_negatives) if n_hard_negatives else (),
        )
        for example in examples
    ]


def _need_text(example: Example, name: str, text: str) -> str:
    if not text.strip():
        raise ConfigError(f"row {example.row_id}: {name} is missing or empty; a re-ranker learns from pairs of both")
    return text


def _read_hard_negatives(example: Example, n: int) -> tuple[str, ...]:
    given = example.extras.get(HARD_NEGATIVES, "[]")
    try:
        texts = json.loads(given)
    except json.JSONDecodeError:
        texts = None
    if not isinstance(texts, list) or not all(isinstance(text, str) and text.strip() for text in texts):
        raise ConfigError(
            f"row {example.row_id}: extras[{HARD_NEGATIVES!r}] is not a JSON list of texts, but {given[:80]!r}"
        )
    if len(texts) < n:
        raise ConfigError(
            f"row {example.row_id}: {n} hard negatives are asked for, it has {len(texts)}; set the student's "
            f"`hard_negatives` lower, or give each row enough in extras[{HARD_NEGATIVES!r}]"
        )
    return tuple(texts[:n])


def make_margin_loss(model: Any, margin: float) -> "torch.nn.Module":
    """Return the triplet margin loss over all negatives of a batch, as sentence-transformers calls it.

    It is the mean of max(0, margin - q_i·p_i + q_i·n) over all pairs (i, n) of a query and a negative: every other
    query's passage, unless it is the same text as p_i, and i's own hard negatives, unless they are. Rows of one query
    have no negatives in each other. Equal texts have equal numbers in `labels`, of shape (batch, 2 + hard negatives):
    those of the query, of its passage and of its hard negatives. A batch without a negative has loss 0.

    Several workers' batches are one batch: passages are gathered with their gradients, and the sum of a worker's pairs
    is divided by the mean number of pairs of a worker, so that the mean over workers is that over all pairs.

    Source: `model/loss.py` of Sy-SE-PQA, where equal texts are not left out and there are no hard negatives. None of
    sentence-transformers' losses is this one: `MegaBatchMarginLoss` holds positives and each query's hardest negative
    against a margin of their own, `BatchAllTripletLoss` averages over the triplets above 0 alone, `TripletLoss` has no
    negatives but those it is given, and `MultipleNegativesRankingLoss` is a softmax.

    Args:
        model: Maps a column's features to a dict with `sentence_embedding`, vectors of length 1.
        margin: In cosine.
    """
    import torch
    from sentence_transformers.util.distributed import all_gather, all_gather_with_grad, get_world_size

    class _MarginLoss(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model  # by this name the trainer puts the distributed model in its place

        def forward(self, features: Iterable[dict[str, Any]], labels: torch.Tensor) -> torch.Tensor:
            # float: under mixed precision a cosine would have two or three digits.
            queries, passages, *negatives = (self.model(column)["sentence_embedding"].float() for column in features)
            n_workers = get_world_size()
            all_passages = all_gather_with_grad(passages) if n_workers > 1 else passages
            all_labels = all_gather(labels) if n_workers > 1 else labels
            scores = [queries @ all_passages.T, *((queries * negative).sum(1, keepdim=True) for negative in negatives)]
            own = (queries * passages).sum(1, keepdim=True)
            violations = torch.relu(margin - own + torch.cat(scores, dim=1))
            n_pairs = _find_negatives(all_labels, all_labels).sum() / n_workers
            return (violations * _find_negatives(labels, all_labels)).sum() / n_pairs.clamp(min=1)

    return _MarginLoss()


def _find_negatives(labels: "torch.Tensor", all_labels: "torch.Tensor") -> "torch.Tensor":
    """Return which of all passages, then of its own hard negatives, are negatives of each query."""
    import torch

    queries, passages = labels[:, :1], labels[:, 1:2]
    others = (queries != all_labels[:, 0]) & (passages != all_labels[:, 1])
    return torch.cat([others, passages != labels[:, 2:]], dim=1)


def fit_reranker(
    pairs: Sequence[Pair],
    held_out_pairs: Sequence[Pair],
    config: RerankerConfig,
    *,
    seed: int,
    epochs: int,
    use_gpu: bool,
    save_to: Path | None,
    hooks: Hooks = Hooks(),  # noqa: B008  frozen
) -> FitResult:
    """Train one re-ranker; with held-out pairs it stops early, and with `save_to` the whole model is saved.

    The held-out score is the MRR@10 of each query's own passage among all held-out passages, without others of the same
    query; the held-out loss is the training's, with all of them as one batch and without hard negatives.

    Several workers train as one with all their rows (see `make_margin_loss`). They need batches of equal size: rows
    that don't fill the last one are left out of that epoch.

    Args:
        pairs: Training pairs, each with at least `config.hard_negatives` hard negatives.
        held_out_pairs: Pairs that are scored after each epoch; may be empty.
        config: The student; its batch size is this worker's.
        seed: Draws the dropout and the order of rows.
        epochs: Epochs, at most.
        use_gpu: Whether the machine's GPU is ours to use.
        save_to: Folder for the last epoch's model.
        hooks: What happens between epochs.
    """
    from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
    from sentence_transformers.util.distributed import get_world_size
    from transformers import logging, set_seed

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    set_seed(seed)
    model = _build_model(config, use_gpu)
    score = f"eval_{MEASURE}" if held_out_pairs else None
    with tempfile.TemporaryDirectory() as scratch:
        arguments = make_arguments(
            SentenceTransformerTrainingArguments,
            config,
            hooks,
            scratch,
            seed=seed,
            epochs=epochs,
            use_gpu=use_gpu,
            score=score,
        )
        arguments.dataloader_drop_last = get_world_size() > 1  # the library would also for a single worker of Ray
        trainer = SentenceTransformerTrainer(
            model=model,
            args=arguments,
            train_dataset=_to_columns(pairs, config.hard_negatives),
            loss=make_margin_loss(model, config.margin),
            evaluator=_make_evaluator(held_out_pairs, config) if held_out_pairs else None,
        )
        result = run_trainer(trainer, config, hooks, measure=MEASURE, score=score)
        if save_to is not None and trainer.is_world_process_zero():
            model.save(str(save_to), create_model_card=False)  # the card quotes rows
    return result


def _build_model(config: RerankerConfig, use_gpu: bool) -> "SentenceTransformer":
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.model_card import SentenceTransformerModelCardData
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling

    location, device = locate_model(config.model), "cuda" if use_gpu else "cpu"
    transformer: Any = SentenceTransformer(
        location,
        revision=config.revision,
        device=device,
        model_kwargs={"dtype": torch.float32},  # weights saved in half precision would train in it
        config_kwargs=list_dropouts(location, config),
    )[0]
    transformer.max_seq_length = config.max_length
    return SentenceTransformer(
        modules=[transformer, Pooling(transformer.get_embedding_dimension(), "mean"), Normalize()],
        device=device,
        # Checkpoints get a card; without these it would ask the hub, and quote rows.
        model_card_data=SentenceTransformerModelCardData(local_files_only=True, generate_widget_examples=False),
    )


def _to_columns(pairs: Sequence[Pair], n_hard_negatives: int) -> Any:
    """Return the trainer's data set: the texts' columns in the order in which the loss gets them, and their numbers."""
    from datasets import Dataset

    passages = [(pair.passage, *pair.hard_negatives[:n_hard_negatives]) for pair in pairs]
    columns: dict[str, list[Any]] = {"query": [pair.query for pair in pairs]}
    for position, texts in enumerate(zip(*passages, strict=True)):
        columns[f"passage_{position}"] = list(texts)
    numbers: dict[str, int] = {}
    columns["label"] = [
        [numbers.setdefault(text, len(numbers)) for text in (pair.query, *texts)]
        for pair, texts in zip(pairs, passages, strict=True)
    ]
    return Dataset.from_dict(columns)


def _make_evaluator(pairs: Sequence[Pair], config: RerankerConfig) -> Any:
    from sentence_transformers.sentence_transformer.evaluation import SentenceEvaluator

    queries, passages = [pair.query for pair in pairs], list(dict.fromkeys(pair.passage for pair in pairs))
    asked, own = _number(queries), _number(pair.passage for pair in pairs)

    class _Evaluator(SentenceEvaluator):
        # The library's own evaluator of retrieval breaks ties as they come, and measures no loss.
        def __call__(self, model: Any, *_: Any, **__: Any) -> dict[str, float]:
            query_vectors, passage_vectors = (
                model.encode(texts, batch_size=config.eval_batch_size, show_progress_bar=False)
                for texts in (queries, passages)
            )
            return measure_ranking(query_vectors, passage_vectors, asked, own, config.margin)

    return _Evaluator()  # type: ignore[no-untyped-call]


def _number(texts: Iterable[str]) -> npt.NDArray[np.int64]:
    """Return each text's place among the different ones, in order of appearance."""
    places: dict[str, int] = {}
    return np.array([places.setdefault(text, len(places)) for text in texts])


def measure_ranking(
    queries: npt.NDArray[np.float32],
    passages: npt.NDArray[np.float32],
    asked: npt.NDArray[np.int64],
    own: npt.NDArray[np.int64],
    margin: float,
) -> dict[str, float]:
    """Return how well each query's own passage is ranked among all, as `MRR@10`, and the margin loss, as `loss`.

    Args:
        queries: Vectors of length 1, one for each pair of a query and a passage; shape (pairs, dimensions).
        passages: Vectors of different texts, likewise; shape (passages, dimensions).
        asked: Each query's number, shared by equal texts; shape (pairs,). Other passages of equal queries are left out.
        own: The position of each query's own passage; shape (pairs,). Others that score as high come before it.
        margin: In cosine.
    """
    reciprocal_ranks, violations, n_negatives = 0.0, 0.0, 0
    for start in range(0, len(queries), _QUERIES_AT_ONCE):
        batch = slice(start, start + _QUERIES_AT_ONCE)
        scores = queries[batch] @ passages.T
        own_scores = np.take_along_axis(scores, own[batch, None], axis=1)
        is_negative = np.ones(scores.shape, dtype=bool)
        rows, pairs = np.nonzero(asked[batch, None] == asked)
        is_negative[rows, own[pairs]] = False
        ranks = 1 + (is_negative & (scores >= own_scores)).sum(axis=1)
        reciprocal_ranks += float((1 / ranks[ranks <= _CUT]).sum())
        violation = np.maximum(0.0, margin - own_scores + scores)
        violation[~is_negative] = 0.0
        violations += float(violation.sum(dtype=np.float64))
        n_negatives += int(is_negative.sum())
    return {"loss": violations / max(n_negatives, 1), MEASURE: reciprocal_ranks / len(queries)}


@dataclass(frozen=True)
class Reranker:
    """A loaded re-ranker."""

    model: "SentenceTransformer"

    def encode(self, texts: Sequence[str], batch_size: int) -> npt.NDArray[np.float32]:
        """Return a vector of length 1 for each text, query or passage, to be kept; shape (texts, dimensions).

        Texts are batched in order of length, and come back in their own order.
        """
        encoded = self.model.encode(list(texts), batch_size=batch_size, show_progress_bar=False)
        return np.asarray(encoded, dtype=np.float32)


def build_reranker(config: RerankerConfig, use_gpu: bool) -> Reranker:
    """Return a student's encoder as it was published, under the pooling and length that training would have."""
    return Reranker(_build_model(config, use_gpu))


def load_reranker(folder: Path, use_gpu: bool) -> Reranker:
    """Return the re-ranker of a folder that `fit_reranker` saved, ready on the GPU or the CPU."""
    import torch
    from sentence_transformers import SentenceTransformer
    from transformers import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    device = "cuda" if use_gpu else "cpu"
    return Reranker(SentenceTransformer(str(folder), device=device, model_kwargs={"dtype": torch.float32}))
