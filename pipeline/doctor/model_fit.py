"""Whether a vLLM teacher's model fits: its weights and its KV cache against the memory that the engine may take.

Parameters and layers come from the model's `config.json` and the index of its weights, which are small files; weights
are never loaded. What activations and CUDA graphs take is not counted.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.doctor.finding import Finding, fault, ok, warn
from pipeline.doctor.machine import GIB
from pipeline.errors import ConfigError
from pipeline.teachers.vllm import VllmConfig
from pipeline.weights import locate_model

HUB_TIMEOUT_S = 5.0
BYTES_OF_DTYPE = {"float32": 4, "float": 4, "float16": 2, "half": 2, "bfloat16": 2}
BYTES_OF_QUANTIZATION = {"fp8": 1.0, "bitsandbytes": 0.5}
"""Bytes of a parameter where vLLM itself quantizes what was saved in full. bitsandbytes: 4 bits, vLLM's default."""


@dataclass(frozen=True)
class Architecture:
    """What decides how large a model and its cache are."""

    n_parameters: int
    weight_bytes: int
    """As saved."""
    dtype: str
    """Of the computation, as the checkpoint says."""
    is_quantized: bool
    """Whether it was saved quantized."""
    n_layers: int
    n_kv_heads: int
    head_size: int
    n_positions: int | None
    """Tokens that it takes at most; None: it doesn't say."""
    has_window: bool
    """Whether some layers keep only the last tokens, so that the cache is smaller than computed."""
    source: str
    """Where the weights' size is from."""


@dataclass(frozen=True)
class Need:
    """Bytes that an engine takes, on all its devices together."""

    weight_bytes: int
    bytes_per_token: int
    """Of the KV cache."""
    max_model_len: int
    max_num_seqs: int | None
    """Sequences at once; None: vLLM decides."""
    arithmetic: str

    @property
    def sequence_bytes(self) -> int:
        """The cache of one sequence of full length. With less vLLM doesn't start."""
        return self.bytes_per_token * self.max_model_len


def check_fit(setting: str, config: VllmConfig, gpu_memory: Sequence[int]) -> Finding:
    """Return whether a teacher's model fits this machine's GPUs.

    Args:
        setting: Where the teacher's configuration stands, as in `arms.llama.teacher`.
        config: The teacher.
        gpu_memory: Bytes of each GPU; none: the need is stated and compared with nothing.
    """
    try:
        need = compute_need(read_architecture(config.model, config.revision), config)
    except ConfigError as error:
        return warn(
            f"{setting}.model",
            f"not known whether {config.model} fits: {error}",
            "its config.json and the index of its weights",
            "let this machine reach the model hub, or name a local folder as model",
        )
    return judge_fit(setting, config, need, gpu_memory)


def judge_fit(setting: str, config: VllmConfig, need: Need, gpu_memory: Sequence[int]) -> Finding:
    """Return whether what an engine takes is there. The smallest GPU counts; see `check_fit`."""
    subject = f"{setting}.model"
    if not config.gpus:
        return ok(subject, f"{need.arithmetic}; on CPUs, not measured")
    if not gpu_memory:
        return ok(subject, f"{need.arithmetic}; no GPU here, so not measured against one")
    engine = config.engine_arguments
    share = engine.get("gpu_memory_utilization", 0.9)  # vLLM's default
    n_gpus = engine.get("tensor_parallel_size", 1) * engine.get("pipeline_parallel_size", 1)
    budget = int(share * min(gpu_memory) * n_gpus)
    budget_text = f"{_gib(budget)} = gpu_memory_utilization {share:g} x {_gib(min(gpu_memory))} x {n_gpus} GPUs"
    room = budget - need.weight_bytes
    found = f"{need.arithmetic}; there are {budget_text}"
    if room < need.sequence_bytes:
        n_tokens = max(0, room // need.bytes_per_token)
        shorter = f"{setting}.engine.max_model_len of at most {n_tokens}, or " if n_tokens else ""
        return fault(
            subject,
            found,
            f"{_gib(need.weight_bytes + need.sequence_bytes)} for the weights and one sequence of full length",
            f"set {shorter}a larger {setting}.engine.tensor_parallel_size (and {setting}.gpus), "
            f"{setting}.engine.quantization=fp8, a smaller model, or larger GPUs",
        )
    n_fitting = room // need.sequence_bytes
    found += f", so {n_fitting} sequences of full length at once"
    if need.max_num_seqs is not None and n_fitting < need.max_num_seqs:
        return warn(
            subject,
            found,
            f"{_gib(need.weight_bytes + need.max_num_seqs * need.sequence_bytes)} for {need.max_num_seqs} sequences "
            "(max_num_seqs) of full length; with less, vLLM has some wait or start again",
            f"set {setting}.engine.max_num_seqs={n_fitting}, or a shorter {setting}.engine.max_model_len; or leave it "
            "where texts are much shorter than that",
        )
    return ok(subject, found)


def compute_need(model: Architecture, config: VllmConfig) -> Need:
    """Return what an engine takes.

    A KV cache holds, of each token, a key and a value in each layer and KV head: 2 x layers x KV heads x head size x
    bytes. Where there are more GPUs than KV heads, each GPU keeps a copy of one.

    Raises:
        ConfigError: Neither the configuration nor the model says how long a sequence may be.
    """
    engine = config.engine_arguments
    dtype = engine.get("dtype", "auto")
    if dtype == "auto":
        # vLLM computes in half precision what was saved in single.
        dtype = "float16" if model.dtype in ("float32", "float") else model.dtype
    dtype_bytes = BYTES_OF_DTYPE.get(dtype, 2)
    quantization = str(engine.get("quantization"))
    if model.is_quantized:
        weight_bytes, how = model.weight_bytes, f"saved quantized, {model.source}"
    else:
        per_parameter = BYTES_OF_QUANTIZATION.get(quantization, float(dtype_bytes))
        weight_bytes = int(model.n_parameters * per_parameter)
        how = f"{model.n_parameters / 1e9:.2f}B parameters x {per_parameter:g} bytes, {model.source}"
    cache_dtype = str(engine.get("kv_cache_dtype", "auto"))
    cache_bytes = 1 if cache_dtype.startswith("fp8") else BYTES_OF_DTYPE.get(cache_dtype, dtype_bytes)
    n_heads = max(model.n_kv_heads, engine.get("tensor_parallel_size", 1))
    per_token = 2 * model.n_layers * n_heads * model.head_size * cache_bytes
    length = engine.get("max_model_len") or model.n_positions
    if length is None:
        raise ConfigError("neither engine.max_model_len nor its config.json says how long a sequence may be")
    n_sequences = engine.get("max_num_seqs")
    text = (
        f"{config.model}: weights {_gib(weight_bytes)} ({how}) + KV cache {_gib(per_token * length)} a sequence "
        f"(2 x {model.n_layers} layers x {n_heads} KV heads x {model.head_size} x {cache_bytes} bytes = "
        f"{per_token:,} bytes a token x {length} tokens)"
    )
    if n_sequences is not None:
        text += f" x {n_sequences} sequences = {_gib(weight_bytes + per_token * length * n_sequences)} at most"
    if model.has_window:
        text += "; less where layers keep a window of the last tokens only"
    return Need(weight_bytes, per_token, length, n_sequences, text)


def read_architecture(model: str, revision: str | None) -> Architecture:
    """Return what a model's `config.json` and the index of its weights say.

    Args:
        model: Hub id, folder or `pkg://…`.
        revision: The hub's branch, tag or commit; None: its default.

    Raises:
        ConfigError: Its package is not installed.
        ConfigError: The files can't be had, or describe no model with a KV cache of the usual form.
    """
    location = locate_model(model)
    values = _read_json(location, revision, "config.json")
    if values is None:
        raise ConfigError("its config.json is in no folder here, nor in the hub's cache, nor could be fetched")
    # Models that also see have the language model's values in a part of their own.
    text = {**values, **(values.get("text_config") or {})}
    if "kv_lora_rank" in text:
        raise ConfigError("its KV cache is compressed (kv_lora_rank), and has another size than is computed here")
    try:
        n_heads = int(text["num_attention_heads"])
        n_parameters = count_parameters(text)
        head_size = int(text.get("head_dim") or text["hidden_size"] // n_heads)
        n_layers = int(text["num_hidden_layers"])
    except KeyError as error:
        raise ConfigError(f"its config.json has no {error.args[0]}") from None
    dtype = str(text.get("dtype") or text.get("torch_dtype") or "float32")
    is_quantized = bool(text.get("quantization_config"))
    saved, source = _read_weight_bytes(location, revision), "from its files"
    if saved is not None and not is_quantized:
        n_parameters = saved // BYTES_OF_DTYPE.get(dtype, 2)
    if saved is None:
        if is_quantized:
            raise ConfigError("it is saved quantized, and the index of its weights could not be had")
        saved, source = n_parameters * BYTES_OF_DTYPE.get(dtype, 2), "computed from its config.json"
    return Architecture(
        n_parameters,
        saved,
        dtype,
        is_quantized,
        n_layers,
        int(text.get("num_key_value_heads") or n_heads),
        head_size,
        text.get("max_position_embeddings"),
        bool(text.get("sliding_window")) and text.get("use_sliding_window", True),
        source,
    )


def count_parameters(values: Mapping[str, Any]) -> int:
    """Return the parameters of a decoder with gated MLPs, as Llama, Mistral, Phi-3, Qwen and Mixtral are.

    Attention's biases, and further norms that some have, are left out: they are less than a thousandth.

    Args:
        values: Of its `config.json`.

    Raises:
        KeyError: A value is missing.
    """
    hidden, n_heads, n_layers = values["hidden_size"], values["num_attention_heads"], values["num_hidden_layers"]
    head_size = values.get("head_dim") or hidden // n_heads
    n_kv_heads = values.get("num_key_value_heads") or n_heads
    attention = 2 * hidden * head_size * (n_heads + n_kv_heads)
    n_experts = values.get("num_local_experts") or values.get("num_experts") or 0
    size = (values.get("moe_intermediate_size") if n_experts else None) or values["intermediate_size"]
    mlp = 3 * hidden * size * (n_experts or 1) + hidden * n_experts
    embeddings = values["vocab_size"] * hidden * (1 if values.get("tie_word_embeddings") else 2)
    return int(embeddings + n_layers * (attention + mlp + 2 * hidden) + hidden)


def _read_weight_bytes(location: str, revision: str | None) -> int | None:
    index = _read_json(location, revision, "model.safetensors.index.json")
    if index is not None and "total_size" in index.get("metadata", {}):
        return int(index["metadata"]["total_size"])
    files = list(Path(location).expanduser().glob("*.safetensors")) if Path(location).expanduser().is_dir() else []
    return sum(file.stat().st_size for file in files) or None


def _read_json(location: str, revision: str | None, name: str) -> dict[str, Any] | None:
    """Return a file of a model; None where it can't be had."""
    import httpx
    from huggingface_hub import constants, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import build_hf_headers

    folder = Path(location).expanduser()
    try:
        if folder.is_dir():
            content = (folder / name).read_text()
        elif location.startswith(("/", ".", "~")):
            return None
        elif isinstance(cached := try_to_load_from_cache(location, name, revision=revision), str):
            content = Path(cached).read_text()
        elif constants.HF_HUB_OFFLINE:
            return None
        else:
            # Not `hf_hub_download`, which retries a hub that can't be reached for half a minute and more.
            url = hf_hub_url(location, name, revision=revision)
            reply = httpx.get(url, headers=build_hf_headers(), timeout=HUB_TIMEOUT_S, follow_redirects=True)
            reply.raise_for_status()
            content = reply.text
        values = json.loads(content)
    except (OSError, HFValidationError, httpx.HTTPError, json.JSONDecodeError):
        return None
    return values if isinstance(values, dict) else None


def _gib(n_bytes: int) -> str:
    return f"{n_bytes / GIB:.2f} GiB"
