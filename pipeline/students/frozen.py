"""Frozen encoders: a logistic regression on vectors that are computed once.

The problem is convex: it has one solution, so there is nothing to draw, to stop early, or to go on with after a crash.
Everything here works on vectors, whoever computed them; only the predictor encodes.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.config import validate
from pipeline.encoder import Encoder, EncoderConfig, load_encoder
from pipeline.errors import ConfigError, TrainingError
from pipeline.records import Example
from pipeline.storage import Folder
from pipeline.students.config import FrozenConfig
from pipeline.students.fits import plan_fits
from pipeline.weights import PinnedModel, pin_model

Floats = npt.NDArray[np.float64]
HEAD = "head.json"
_MAX_ITERATIONS = 10_000
_TOLERANCE = 1e-8
"""Of the gradient of the mean loss. Measured on 986 rows under MiniLM with C = 100: scikit-learn's own 1e-4 stops where
probabilities are off by up to 0.1, this one by 1e-5."""


@dataclass(frozen=True, eq=False)
class Head:
    """A multinomial logistic regression."""

    labels: tuple[str, ...]
    coefficients: Floats
    """Shape (classes, dimensions)."""
    intercepts: Floats
    """Shape (classes,)."""

    def predict(self, vectors: npt.NDArray[np.floating]) -> Floats:
        """Return class probabilities of shape (n, classes) for vectors of shape (n, dimensions)."""
        logits = np.asarray(vectors, dtype=np.float64) @ self.coefficients.T + self.intercepts
        exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
        probabilities: Floats = exponentials / exponentials.sum(axis=1, keepdims=True)
        return probabilities


@dataclass(frozen=True)
class HeadResult:
    """How a fit went. Losses are mean cross-entropies in nats; held-out values are None where nothing was held out."""

    measure: str
    """Of the held-out score."""
    train_loss: float
    held_out_loss: float | None
    held_out_score: float | None
    duration_s: float

    def to_json(self) -> dict[str, Any]:
        """Return the result for a JSON file."""
        return asdict(self)


def check_classes(of: str, labels_of_rows: Sequence[str], labels: Sequence[str]) -> None:
    """Check that there is something to learn of every class.

    Args:
        of: Whose rows they are, for the message.
        labels_of_rows: The class of each row.
        labels: The classes.

    Raises:
        ConfigError: A class has no rows.
    """
    counts = {label: list(labels_of_rows).count(label) for label in labels}
    if not all(counts.values()):
        raise ConfigError(f"{of}: a logistic regression needs rows of every class; rows by class: {counts}")


def fit_head(
    vectors: npt.NDArray[np.floating],
    labels_of_rows: Sequence[str],
    labels: Sequence[str],
    *,
    inverse_regularisation: float,
    class_weights: bool,
) -> Head:
    """Return scikit-learn's logistic regression (L2 on all but the intercepts, L-BFGS, nothing drawn at random).

    Args:
        vectors: Shape (rows, dimensions).
        labels_of_rows: The class of each row.
        labels: Class names by index.
        inverse_regularisation: `C`, the weight of the rows' losses against half the squared norm of the coefficients.
        class_weights: Weigh each class by the inverse of its share.

    Raises:
        ConfigError: A class has no rows.
        TrainingError: The solver did not arrive.
    """
    import warnings

    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    check_classes("a fit", labels_of_rows, labels)
    model = LogisticRegression(
        C=inverse_regularisation,
        class_weight="balanced" if class_weights else None,
        max_iter=_MAX_ITERATIONS,
        tol=_TOLERANCE,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        try:
            model.fit(np.asarray(vectors, dtype=np.float64), [labels.index(label) for label in labels_of_rows])
        except ConvergenceWarning:
            raise TrainingError(
                f"the logistic regression has not converged after {_MAX_ITERATIONS:,} iterations; set "
                f"inverse_regularisation, which is {inverse_regularisation:g}, lower"
            ) from None
    coefficients, intercepts = model.coef_, model.intercept_
    if len(labels) == 2:  # scikit-learn keeps the second class's alone
        coefficients = np.concatenate([np.zeros_like(coefficients), coefficients])
        intercepts = np.concatenate([np.zeros_like(intercepts), intercepts])
    return Head(tuple(labels), coefficients, intercepts)


def train_frozen(
    examples: Sequence[Example],
    vectors: npt.NDArray[np.floating],
    output: Folder,
    labels: Sequence[str],
    student: FrozenConfig,
    model: PinnedModel,
    seed: int,
) -> None:
    """Run all fits of a student: a fold's leaves its result, a final one its head as well.

    Args:
        examples: The training rows.
        vectors: Their vectors by `student.encoder`, shape (rows, dimensions).
        output: The folder of the fits.
        labels: Class names by index.
        student: The student.
        model: The encoder's weights.
        seed: Draws the folds.

    Raises:
        ConfigError: The rows have too few groups for the student's folds, or lack a class.
        TrainingError: A fit did not arrive.
    """
    labels_of_rows = [example.label for example in examples]
    for fit in plan_fits(examples, student, seed):
        started = time.monotonic()
        train, held_out = (
            (vectors[list(rows)], [labels_of_rows[row] for row in rows]) for rows in (fit.train, fit.held_out)
        )
        head = fit_head(
            *train,
            labels,
            inverse_regularisation=student.inverse_regularisation,
            class_weights=student.class_weights,
        )
        train_loss, _ = measure_head(head, *train)
        held_out_loss, score = measure_head(head, *held_out) if fit.is_fold else (None, None)
        if not fit.is_fold:
            save_head(head, output / fit.name, model, student.encoder)
        result = HeadResult("macro-F1", train_loss, held_out_loss, score, time.monotonic() - started)
        output.write_json(f"{fit.name}.json", result.to_json())


def save_head(head: Head, folder: Folder, model: PinnedModel, encoder: EncoderConfig) -> None:
    """Write a head as JSON, with the encoder that its vectors come from."""
    folder.write_json(
        HEAD,
        {
            "labels": head.labels,
            "encoder": {**encoder.model_dump(), "model": model.location, "revision": model.revision},
            "weights": model.identity,
            "coefficients": head.coefficients.tolist(),
            "intercepts": head.intercepts.tolist(),
        },
    )


def load_head(folder: Path) -> Head:
    """Return a saved head, which predicts from vectors."""
    saved = Folder.at(folder).read_json(HEAD)
    return Head(tuple(saved["labels"]), np.array(saved["coefficients"]), np.array(saved["intercepts"]))


def load_predictor(folder: Path, use_gpu: bool) -> Callable[[Sequence[str], int], Floats]:
    """Return a function (texts, batch size) to class probabilities of shape (n, classes), as a classifier's.

    Raises:
        ConfigError: The encoder is not here, or has other weights than the head was trained with.
    """
    head, encoder = load_head(folder), _load_encoder(folder, use_gpu)

    def predict(texts: Sequence[str], batch_size: int) -> Floats:
        config = encoder.config.model_copy(update={"batch_size": batch_size})
        return head.predict(replace(encoder, config=config).encode_documents(texts))

    return predict


def describe_model(folder: Path, use_gpu: bool) -> dict[str, Any]:
    """Return the number of parameters, their size in MB, and the device, of an encoder with its head."""
    import torch

    head, encoder = load_head(folder), list(_load_encoder(folder, use_gpu).model.parameters())
    n_bytes = sum(p.numel() * p.element_size() for p in encoder) + head.coefficients.nbytes + head.intercepts.nbytes
    return {
        "n_parameters": sum(p.numel() for p in encoder) + head.coefficients.size + head.intercepts.size,
        "memory_mb": round(n_bytes / 1e6, 1),
        "device": torch.cuda.get_device_name() if use_gpu else "CPU",
    }


def _load_encoder(folder: Path, use_gpu: bool) -> Encoder:
    """Return the encoder of a saved head."""
    saved = Folder.at(folder).read_json(HEAD)
    config = validate(EncoderConfig, saved["encoder"])
    model = PinnedModel(config.model, config.revision, saved["weights"])
    # A commit can't change; files can.
    if model.revision is None and (found := pin_model(model.location, None).identity) != model.identity:
        raise ConfigError(
            f"{folder} holds a head for the weights {model.identity} of {model.location}, which are {found} here; "
            "put those weights back, or train the student again"
        )
    return load_encoder(model, config, "cuda" if use_gpu else "cpu")


def measure_head(head: Head, vectors: npt.NDArray[np.floating], labels_of_rows: Sequence[str]) -> tuple[float, float]:
    """Return the mean cross-entropy and macro-F1 on some rows."""
    from sklearn.metrics import f1_score

    probabilities = head.predict(vectors)
    classes = np.array([head.labels.index(label) for label in labels_of_rows])
    loss = -np.log(probabilities[np.arange(len(classes)), classes]).mean()
    return float(loss), float(f1_score(classes, probabilities.argmax(axis=1), average="macro", zero_division=0))
