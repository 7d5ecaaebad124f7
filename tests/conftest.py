"""Shared fixtures. Not covered by any tier, because nothing here can run it: GPUs, more than one machine, `ray up`,
object stores, the model hub, and fetching from the benchmarks' own sites.

Tiers: the default one needs nothing; `data` needs the real benchmarks under RAYSTILL_TEST_DATA; `crash` kills real
processes. A tier that was asked for and can't run fails.
"""

import os
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
def ray_cluster():
    """The one cluster of a test session."""
    import ray

    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="warning")
    yield
    ray.shutdown()
