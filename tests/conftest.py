"""Shared fixtures. Not covered by any tier, because nothing here can run it: GPUs, tensor parallelism, an LLM of any
use, more than one machine, `ray up`, object stores, the model hub, and fetching from the benchmarks' own sites.

Tiers: the default one needs nothing; `data` needs the real benchmarks under RAYSTILL_TEST_DATA; `vllm` needs the real
engine and the tiny model; `crash` kills real processes, some of them engines. A tier that was asked for and can't run
fails.
"""

import os
from importlib.util import find_spec
from pathlib import Path

import pytest

PROJECT = Path(__file__).parent.parent
# No test may depend on a hub; what they load is in a package or built here.
os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="session")
def data_root():
    root = os.environ.get("RAYSTILL_TEST_DATA")
    if not root or not Path(root, "clariq", "train.tsv").is_file():
        pytest.fail(f"the tier `data` needs RAYSTILL_TEST_DATA to hold clariq/train.tsv and more; it is {root!r}")
    return root


@pytest.fixture(scope="session")
def tiny_teacher() -> Path:
    """The folder of the tiny model, where the real engine is installed beside it."""
    if find_spec("vllm") is None:
        pytest.fail("the tier `vllm` needs the engine: run `make install-vllm`")
    folder = Path(os.environ.get("RAYSTILL_TINY_TEACHER", Path.home() / ".cache/raystill/tiny-teacher"))
    if not (folder / "config.json").is_file():
        pytest.fail(f"the tier `vllm` needs the tiny model in {folder}: run `make tiny-teacher`")
    return folder


@pytest.fixture(scope="session")
def ray_cluster():
    """The one cluster of a test session."""
    import ray

    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="warning")
    yield
    ray.shutdown()
