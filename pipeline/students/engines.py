"""What can run an exported classifier."""

from pathlib import Path
from typing import Literal, get_args

from pipeline.students.onnx import ONNX, ONNX_INT8, load_onnx_scorer
from pipeline.students.scoring import Scorer

Engine = Literal["torch", "onnx", "onnx-int8"]
"""`torch`: transformers on a CPU or GPU. The others: onnxruntime on the CPU, in 32-bit floats or 8-bit integers."""
ENGINES: tuple[Engine, ...] = get_args(Engine)
FILES: dict[Engine, str] = {"torch": "model.safetensors", "onnx": ONNX, "onnx-int8": ONNX_INT8}
"""Each one's weights in an exported folder."""


def choose_engine(folder: Path, gpus: float) -> Engine:
    """Return what runs a folder unless one says otherwise: ONNX in floats on the CPU where it has that, else torch."""
    return "onnx" if not gpus and (folder / ONNX).is_file() else "torch"


def load_engine(folder: Path, engine: Engine, threads: int, use_gpu: bool = False) -> Scorer:
    """Return a function from texts and a batch size to logits.

    Args:
        folder: An exported folder; for torch, any that transformers saved with its tokenizer.
        engine: What computes.
        threads: Of it on the CPU.
        use_gpu: For torch alone.

    Raises:
        ConfigError: The folder lacks what the engine needs.
    """
    if engine != "torch":
        return load_onnx_scorer(folder, FILES[engine], threads)
    import torch

    from pipeline.students.classifier import load_scorer

    torch.set_num_threads(threads)
    return load_scorer(folder, use_gpu)
