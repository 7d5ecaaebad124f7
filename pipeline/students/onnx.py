"""A trained classifier as ONNX: written from its torch model, quantised to 8 bits, and run without torch."""

import logging
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import ConfigError
from pipeline.students.scoring import Scorer, score_in_batches

ONNX, ONNX_INT8 = "onnx/model.onnx", "onnx/model_int8.onnx"
"""Where they are in an exported folder: as on the model hub, where other tools look for them."""
TOKENIZER = "tokenizer.json"
_EXAMPLES = ["one text", "and another one that is longer"]
"""Traced: more than one row and more than one token, because a size of 1 would be taken for a constant."""


def save_for_export(trained: Path, target: Path) -> None:
    """Write a trained classifier as a folder that stands by itself: configuration, weights, tokenizer, ONNX twice.

    `tokenizer.json` also says how to cut and pad, so that the `tokenizers` library alone makes the same tokens.

    Args:
        trained: A final fit's folder, as `fit_classifier` saves it.
        target: An existing folder.

    Raises:
        ConfigError: The tokenizer has no `tokenizer.json`.
    """
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(trained)
    if not tokenizer.is_fast:
        raise ConfigError(f"{trained}: {type(tokenizer).__name__} can't be saved as {TOKENIZER}, which ONNX needs")
    backend = tokenizer.backend_tokenizer
    backend.enable_truncation(tokenizer.model_max_length)
    backend.enable_padding(
        direction=tokenizer.padding_side,
        pad_id=tokenizer.pad_token_id,
        pad_token=tokenizer.pad_token,
        pad_type_id=tokenizer.pad_token_type_id,
    )
    tokenizer.save_pretrained(target)
    model = AutoModelForSequenceClassification.from_pretrained(trained, dtype=torch.float32).eval()
    model.save_pretrained(target)
    (target / ONNX).parent.mkdir(exist_ok=True)
    encoded = dict(tokenizer(_EXAMPLES, padding=True, return_tensors="pt"))
    _export(model, encoded, target / ONNX)
    _quantise(target / ONNX, target / ONNX_INT8)


def load_onnx_scorer(folder: Path, file: str, threads: int) -> Scorer:
    """Return a function from texts and a batch size to logits, computed by onnxruntime on the CPU.

    Args:
        folder: An exported folder.
        file: `ONNX` or `ONNX_INT8`.
        threads: Of onnxruntime.

    Raises:
        ConfigError: The folder lacks the file or its tokenizer.
    """
    import onnxruntime
    from tokenizers import Tokenizer

    for name in (file, TOKENIZER):
        if not (folder / name).is_file():
            raise ConfigError(f"{folder} holds no {name}; give a folder that ray_jobs/export.py wrote, or engine torch")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(folder / file), options, providers=["CPUExecutionProvider"])
    tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))
    names = [node.name for node in session.get_inputs()]

    def score_batch(texts: list[str]) -> np.ndarray:
        encoded = tokenizer.encode_batch(texts)
        columns = {
            "input_ids": [one.ids for one in encoded],
            "attention_mask": [one.attention_mask for one in encoded],
            "token_type_ids": [one.type_ids for one in encoded],
        }
        logits: np.ndarray = session.run(["logits"], {name: np.array(columns[name], np.int64) for name in names})[0]
        return logits

    return partial(score_in_batches, score_batch)


def _export(model: Any, encoded: dict[str, Any], target: Path) -> None:
    import torch

    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns that torchvision is not there
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of deprecations within torch and onnxscript
        torch.onnx.export(
            model,
            (),
            str(target),
            kwargs=encoded,
            dynamo=True,
            verbose=False,
            external_data=False,  # one file; ONNX holds up to 2 GB in one, 500M parameters
            dynamic_shapes={name: {0: "batch", 1: "sequence"} for name in encoded},
            output_names=["logits"],
        )


def _quantise(source: Path, target: Path) -> None:
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    model = onnx.load(source)
    # The exporter also notes weights' shapes there, which onnxruntime transposes on its way and then takes for a clash.
    del model.graph.value_info[:]
    logging.getLogger().addFilter(_is_not_advice)
    try:
        quantize_dynamic(model, str(target), weight_type=QuantType.QInt8, per_channel=True)
    finally:
        logging.getLogger().removeFilter(_is_not_advice)


def _is_not_advice(record: logging.LogRecord) -> bool:
    """Tell whether a line says more than that a model should be prepared first, which changes nothing in ours."""
    return "pre-processing" not in record.getMessage()
