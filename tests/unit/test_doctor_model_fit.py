"""Sizes of models against published numbers and arithmetic by hand, on GPUs that are made up."""

import json

import pytest
from pydantic import TypeAdapter

from pipeline.doctor.finding import Level
from pipeline.doctor.machine import GIB
from pipeline.doctor.model_fit import check_fit, compute_need, count_parameters, read_architecture
from pipeline.teachers.kinds import AnyTeacherConfig
from tests.composing import compose_teacher

LLAMA_8B = {
    "hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32, "num_hidden_layers": 32,
    "num_key_value_heads": 8, "vocab_size": 128256, "max_position_embeddings": 131072, "torch_dtype": "bfloat16",
    "tie_word_embeddings": False,
}  # fmt: skip
LLAMA_70B = LLAMA_8B | {
    "hidden_size": 8192, "intermediate_size": 28672, "num_attention_heads": 64, "num_hidden_layers": 80,
}  # fmt: skip
MIXTRAL_8X7B = LLAMA_8B | {"vocab_size": 32000, "num_local_experts": 8}
PARAMETERS_8B, PARAMETERS_70B, PARAMETERS_MIXTRAL = 8_030_261_248, 70_553_706_496, 46_702_792_704
"""As the hub counts the tensors of Llama-3.1-8B, Llama-3.1-70B and Mixtral-8x7B-v0.1."""


def save(folder, values, total_size=None):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(values))
    if total_size is not None:
        index = {"metadata": {"total_size": total_size}, "weight_map": {}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def make_teacher(model, *, gpus=1, **engine):
    values = compose_teacher("vllm") | {"model": str(model), "gpus": gpus}
    values["engine"] = values["engine"] | {"tensor_parallel_size": gpus or 1} | engine
    return TypeAdapter(AnyTeacherConfig).validate_python(values)


def need_of(model, **changes):
    config = make_teacher(model, **changes)
    return compute_need(read_architecture(config.model, None), config)


@pytest.mark.parametrize(
    ("values", "n"), [(LLAMA_8B, PARAMETERS_8B), (LLAMA_70B, PARAMETERS_70B), (MIXTRAL_8X7B, PARAMETERS_MIXTRAL)]
)
def test_parameters_are_those_that_the_hub_counts(values, n):
    assert count_parameters(values) == n


def test_parameters_are_those_of_a_model_that_transformers_builds():
    from transformers import LlamaConfig, LlamaForCausalLM

    values = LLAMA_8B | {
        "hidden_size": 24, "intermediate_size": 40, "vocab_size": 50, "num_hidden_layers": 3, "head_dim": 10,
        "num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True,
    }  # fmt: skip
    model = LlamaForCausalLM(LlamaConfig(**values))
    assert count_parameters(values) == sum(parameter.numel() for parameter in model.parameters())


def test_a_model_of_70b_does_not_fit_one_gpu_and_the_arithmetic_is_told(tmp_path):
    model = save(tmp_path, LLAMA_70B)
    finding = check_fit("arms.a.teacher", make_teacher(model), [80 * GIB])
    assert finding.level is Level.FAULT
    # 70.55e9 x 2 bytes = 131.42 GiB; 2 x 80 x 8 x 128 x 2 = 327,680 bytes a token x 8192 = 2.5 GiB; 0.9 x 80 = 72.
    for words in ("70.55B parameters x 2 bytes", "131.42 GiB", "327,680 bytes a token x 8192", "2.50 GiB", "72.00 GiB"):
        assert words in finding.found
    assert "133.92 GiB" in finding.needed
    assert "arms.a.teacher.engine.tensor_parallel_size" in finding.fix
    assert "quantization=fp8" in finding.fix


def test_it_fits_two_such_gpus_and_the_smallest_counts(tmp_path):
    teacher = make_teacher(save(tmp_path, LLAMA_70B), gpus=2)
    finding = check_fit("t", teacher, [80 * GIB] * 2)
    assert finding.level is Level.OK
    assert "so 5 sequences" in finding.found  # (144 - 131.42) / 2.5
    assert check_fit("t", teacher, [80 * GIB, 40 * GIB]).level is Level.FAULT


def test_quantization_and_a_cache_of_bytes_halve_the_need(tmp_path):
    model = save(tmp_path, LLAMA_70B)
    full, halved = need_of(model), need_of(model, quantization="fp8", kv_cache_dtype="fp8")
    assert full.weight_bytes == 2 * PARAMETERS_70B == 2 * halved.weight_bytes
    assert full.bytes_per_token == 327_680 == 2 * halved.bytes_per_token
    assert need_of(model, dtype="float32").weight_bytes == 4 * PARAMETERS_70B


def test_the_index_of_the_weights_wins_over_the_count(tmp_path):
    assert need_of(save(tmp_path, LLAMA_8B, total_size=10_000)).weight_bytes == 10_000
    quantized = LLAMA_8B | {"quantization_config": {"quant_method": "awq"}}
    assert need_of(save(tmp_path, quantized, total_size=5_000)).weight_bytes == 5_000


def test_single_precision_is_computed_in_half(tmp_path):
    need = need_of(save(tmp_path, LLAMA_8B | {"torch_dtype": "float32"}, total_size=4_000))
    assert need.weight_bytes == 2_000
    assert need.bytes_per_token == 2 * 32 * 8 * 128 * 2


def test_more_gpus_than_kv_heads_keep_copies(tmp_path):
    model = save(tmp_path, LLAMA_8B)
    assert need_of(model, gpus=16).bytes_per_token == 2 * need_of(model, gpus=8).bytes_per_token


def test_too_long_a_sequence_is_told_with_the_length_that_fits(tmp_path):
    # 0.9 x 24 = 21.6 GiB less 14.957 of weights leave 6.643 GiB; at 131,072 bytes a token that is 54,417 tokens.
    model = save(tmp_path, LLAMA_8B)
    finding = check_fit("t", make_teacher(model, max_model_len=None), [24 * GIB])
    assert finding.level is Level.FAULT
    assert "131072 tokens" in finding.found
    n_tokens = (int(0.9 * 24 * GIB) - 2 * PARAMETERS_8B) // 131_072
    assert f"max_model_len of at most {n_tokens}" in finding.fix
    assert check_fit("t", make_teacher(model, max_model_len=n_tokens), [24 * GIB]).level is Level.OK
    assert check_fit("t", make_teacher(model, max_model_len=n_tokens + 1), [24 * GIB]).level is Level.FAULT


def test_too_many_sequences_at_once_are_a_warning(tmp_path):
    finding = check_fit("t", make_teacher(save(tmp_path, LLAMA_8B), max_num_seqs=256), [24 * GIB])
    assert finding.level is Level.WARNING
    assert "t.engine.max_num_seqs=6" in finding.fix  # 6.643 GiB / 1 GiB


def test_without_a_gpu_the_need_is_stated_and_compared_with_nothing(tmp_path):
    finding = check_fit("t", make_teacher(save(tmp_path, LLAMA_70B)), [])
    assert finding.level is Level.OK
    assert "131.42 GiB" in finding.found
    assert "not measured" in finding.found


def test_the_language_model_of_one_that_also_sees_is_found(tmp_path):
    assert need_of(save(tmp_path, {"text_config": LLAMA_8B})).weight_bytes == 2 * PARAMETERS_8B


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (LLAMA_8B | {"kv_lora_rank": 512}, "kv_lora_rank"),
        ({"model_type": "gpt2", "n_embd": 8}, "no num_attention_heads"),
        (LLAMA_8B | {"quantization_config": {"quant_method": "awq"}}, "quantized"),
    ],
)
def test_a_model_of_unknown_size_is_told(tmp_path, values, words):
    finding = check_fit("t", make_teacher(save(tmp_path, values)), [80 * GIB])
    assert finding.level is Level.WARNING
    assert words in finding.found
    assert finding.fix


def test_a_model_that_is_nowhere_is_told(tmp_path):
    for model in (tmp_path / "absent", "nobody/knows-this"):
        finding = check_fit("t", make_teacher(model), [80 * GIB])
        assert finding.level is Level.WARNING
        assert "config.json" in finding.found
