"""vLLM's configuration, without vLLM: what is refused early, and what an answer's identity hangs on."""

import sys

import pytest

from pipeline.config import validate
from pipeline.errors import ConfigError
from pipeline.teachers import vllm
from pipeline.teachers.vllm import VllmConfig
from tests.composing import compose_teacher
from tests.models import build_llm


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(build_llm(tmp_path_factory.mktemp("llm"), layers=1, width=32))


def configure(folder="some/model", **changes) -> VllmConfig:
    return validate(VllmConfig, {**compose_teacher("vllm_tiny"), "model": folder, **changes})


def test_tensor_parallel_engines_need_as_many_gpus():
    engine = {"tensor_parallel_size": 4}
    assert configure(engine=engine, gpus=4).devices == 4
    with pytest.raises(ConfigError, match="spreads over 4 GPUs, the actor gets 1"):
        configure(engine=engine, gpus=1)


@pytest.mark.parametrize("name", ["model", "revision", "enable_lora"])
def test_what_the_teacher_sets_itself_is_refused_among_the_arguments(name):
    with pytest.raises(ConfigError, match=f"{name} are set by the teacher's own fields"):
        configure(engine={name: "x"})


@pytest.mark.parametrize("name", ["HF_TOKEN", "VLLM_API_KEY", "PATH"])
def test_no_other_variable_and_no_key_goes_through_the_configuration(name):
    with pytest.raises(ConfigError, match=name):
        configure(environment={name: "x"})


def test_an_engine_on_cpus_is_one_device():
    assert configure(gpus=0).devices == 1


def identify(config) -> dict[str, str]:
    return vllm.pin(config)[1]


def test_answers_are_told_apart_by_weights_and_numerics_not_by_speed(folder, tmp_path):
    first = identify(configure(folder))
    tiny = compose_teacher("vllm_tiny")["engine"]
    for faster in ({"max_num_seqs": 64}, {"gpu_memory_utilization": 0.5}, {"enforce_eager": False}, {"seed": None}):
        assert identify(configure(folder, engine={**tiny, **faster})) == first
    assert identify(configure(folder, max_in_flight=3, timeout_s=1.0, cpus=2.0)) == first
    for other in ({"dtype": "bfloat16"}, {"quantization": "fp8"}, {"load_format": "dummy"}, {"seed": 3}):
        assert identify(configure(folder, engine={**tiny, **other})) != first
    assert identify(configure(folder, prompt_format="plain")) != first
    assert identify(configure(str(build_llm(tmp_path, layers=1, width=32, seed=1)))) != first


def test_a_model_that_is_nowhere_is_told_before_any_engine_starts(tmp_path):
    with pytest.raises(ConfigError, match=r"holds no config\.json"):
        vllm.pin(configure(str(tmp_path)))


def test_without_vllm_the_way_to_get_it_is_told(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm.engine.arg_utils", None)
    with pytest.raises(ConfigError, match="make install-vllm"):
        vllm.build_engine_args(configure(folder))
