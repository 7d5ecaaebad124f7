"""Shared fixtures. Not covered by any tier, because nothing here can run it: GPUs, tensor parallelism, an LLM of any
use, more than one machine, `ray up`, object stores, the model hub, and fetching from the benchmarks' own sites.

Tiers: the default one needs nothing; `data` needs the real benchmarks under RAYSTILL_TEST_DATA; `vllm` needs the real
engine and the tiny model; `crash` kills real processes, some of them engines, and holds what else takes minutes. A tier
that was asked for and can't run fails.
"""

import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

PROJECT = Path(__file__).parent.parent
RAY = str(Path(sys.executable).parent / "ray")
# No test may depend on a hub; what they load is in a package or built here.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
KEY_NAME, KEY = "RAYSTILL_TEST_KEY", "sk-planted-4f1c9a7e2b"
"""A teacher's key, as the environment of nodes holds one."""


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


def find_free_ports(n):
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(n)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


@pytest.fixture(scope="session")
def job_cluster(tmp_path_factory):
    """The address of a head node's job server; the node's processes end with the test."""
    folder = tmp_path_factory.mktemp("cluster")
    (folder / "token").write_text(secrets.token_hex(32))
    gcs, dashboard, agent = find_free_ports(3)
    environment = {
        **os.environ,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(folder / "token"),
        # As on a cluster: workers find the packages, and nothing of this checkout, in their environment.
        "PATH": f"{Path(RAY).parent}:{os.environ['PATH']}",
        KEY_NAME: KEY,
    }
    command = [
        RAY, "start", "--head", "--block", f"--port={gcs}", f"--dashboard-port={dashboard}", "--num-cpus=4",
        f"--dashboard-agent-listen-port={agent}", "--object-store-memory=500000000",
        "--node-ip-address=127.0.0.1", "--disable-usage-stats",
    ]  # fmt: skip
    with (folder / "ray.log").open("w") as log:
        head = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True)
    address = f"http://127.0.0.1:{dashboard}"
    environment["RAY_API_SERVER_ADDRESS"] = address
    deadline = time.monotonic() + 90
    while subprocess.run([RAY, "job", "list"], env=environment, capture_output=True, check=False).returncode:
        assert time.monotonic() < deadline, (folder / "ray.log").read_text()
        time.sleep(1)
    yield environment
    head.send_signal(signal.SIGTERM)
    head.wait(60)
