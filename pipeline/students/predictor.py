"""What a trained student offers, whatever its kind: probabilities for texts, and how large it is.

The files of its folder tell the kind, so whoever predicts with a student needs nothing else.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.students import classifier, frozen


def load_predictor(folder: Path, use_gpu: bool) -> Callable[[Sequence[str], int], np.ndarray]:
    """Return a function (texts, batch size) to class probabilities of shape (n, classes), float64.

    Args:
        folder: Of a final fit.
        use_gpu: Whether the machine's GPU is ours to use.

    Raises:
        ConfigError: The encoder of a frozen student is not here, or has changed.
    """
    return frozen.load_predictor(folder, use_gpu) if _is_frozen(folder) else classifier.load_predictor(folder, use_gpu)


def describe_model(folder: Path, use_gpu: bool) -> dict[str, Any]:
    """Return a student's number of parameters, their size in MB, and the device that would run it."""
    return frozen.describe_model(folder, use_gpu) if _is_frozen(folder) else classifier.describe_model(folder, use_gpu)


def _is_frozen(folder: Path) -> bool:
    return (folder / frozen.HEAD).is_file()
