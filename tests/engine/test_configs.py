"""Every vLLM teacher of `conf/teacher/`, taken by the real library."""

import pytest

from pipeline.config import validate
from pipeline.errors import ConfigError
from pipeline.launch import CONF
from pipeline.teachers.vllm import VllmConfig, build_engine_args
from tests.composing import compose_teacher

pytestmark = pytest.mark.vllm
NAMES = sorted(
    p.stem for p in (CONF / "teacher").glob("*.yaml") if compose_teacher(p.stem, missing="x")["kind"] == "vllm"
)


def test_there_are_the_teachers_of_all_three_systems():
    wanted = {"llama31_8b", "llama33_70b", "gemma3_27b", "phi3_mini", "phi3_medium", "llama2_13b_chat", "vllm_tiny"}
    assert wanted <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_vllm_takes_the_arguments(name, monkeypatch):
    from vllm.config import StructuredOutputsConfig

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)  # or it looks for the weights here
    config = validate(VllmConfig, compose_teacher(name, missing="some/model"))
    arguments = build_engine_args(config)
    assert arguments.model == config.model
    assert arguments.revision == config.revision
    assert arguments.tensor_parallel_size == max(1, config.gpus)
    grammar = StructuredOutputsConfig(**arguments.structured_outputs_config)
    assert (grammar.backend, grammar.disable_any_whitespace) == ("guidance", True)
    if config.model != "some/model" and config.gpus:
        assert len(config.revision) == 40, "a hub model is pinned to a commit"


def test_an_argument_that_vllm_does_not_know_is_told():
    engine = {"max_model_length": 100}
    with pytest.raises(ConfigError, match="max_model_length"):
        build_engine_args(validate(VllmConfig, {**compose_teacher("vllm_tiny"), "engine": engine}))
