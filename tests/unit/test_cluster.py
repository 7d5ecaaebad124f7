"""`cluster.yaml` is one that Ray accepts, with a head without work, a token everywhere, and no secret inside."""

import copy
import os
import re
import subprocess
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "cluster.yaml").read_text()
CLUSTER = yaml.safe_load(TEXT)
WORKER_TYPES = sorted(set(CLUSTER["available_node_types"]) - {CLUSTER["head_node_type"]})


@pytest.fixture(scope="module")
def prepared():
    """Return the configuration as the autoscaler sees it."""
    from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig

    return AutoscalingConfig(copy.deepcopy(CLUSTER), skip_content_hash=True)


@pytest.fixture
def commands(prepared):
    """Return all commands of each node type, in the order in which Ray runs them."""
    head = CLUSTER["head_node_type"]
    found = {
        head: [
            *prepared.get_initialization_commands(head),
            *prepared.get_head_setup_commands(),
            *prepared.get_head_start_ray_commands(),
        ]
    }
    for name in WORKER_TYPES:
        found[name] = [
            *prepared.get_initialization_commands(name),
            *prepared.get_worker_setup_commands(name),
            *prepared.get_worker_start_ray_commands(),
        ]
    return found


def test_ray_accepts_the_file():
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(copy.deepcopy(CLUSTER)))


def test_rays_validation_would_notice_a_mistake():
    from jsonschema import ValidationError
    from ray.autoscaler._private.util import prepare_config, validate_config

    with pytest.raises(ValidationError, match="head_nodes_type"):
        validate_config(prepare_config({**copy.deepcopy(CLUSTER), "head_nodes_type": "head"}))


def test_head_offers_nothing_and_pools_start_empty():
    types = CLUSTER["available_node_types"]
    assert types[CLUSTER["head_node_type"]]["resources"] == {"CPU": 0}
    assert {name: "GPU" in types[name]["resources"] for name in WORKER_TYPES} == {"cpu": False, "gpu": True}
    assert all(types[name]["min_workers"] == 0 and types[name]["max_workers"] > 0 for name in WORKER_TYPES)
    assert all(types[name]["resources"]["CPU"] > 0 for name in WORKER_TYPES)


def test_every_node_starts_ray_with_the_token_from_a_copied_file(commands):
    assert CLUSTER["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    for name, lines in commands.items():
        (start,) = (line for line in lines if "ray start" in line)
        before = start.split("ray start")[0]
        assert "export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$HOME/.ray/auth_token" in before, name


def test_ray_gets_the_secrets_but_not_one_thread_and_not_the_database_password(commands, tmp_path):
    """Run what stands before `ray start`, in the environment that `ray up` gives, and look at what is exported."""
    (tmp_path / ".raystill").mkdir()
    (tmp_path / ".raystill/secrets.env").write_text("MLFLOW_BACKEND_STORE_URI='postgresql://x'\nHF_TOKEN='a b&c'\n")
    given = {"HOME": str(tmp_path), "PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1", "RAY_HEAD_IP": "10.0.0.1"}
    for lines in commands.values():
        (start,) = (line for line in lines if "ray start" in line)
        script = start.split("ulimit")[0] + "env"
        shown = subprocess.run(["bash", "-c", script], env=given, capture_output=True, text=True, check=True).stdout
        exported = dict(line.split("=", 1) for line in shown.splitlines())
        assert exported["HF_TOKEN"] == "a b&c"
        assert exported["RAY_AUTH_TOKEN_PATH"] == f"{tmp_path}/.ray/auth_token"
        assert exported["MLFLOW_TRACKING_URI"] in {"http://127.0.0.1:5000", "http://10.0.0.1:5000"}
        assert not {"OMP_NUM_THREADS", "MLFLOW_BACKEND_STORE_URI"} & set(exported)


def test_mlflow_server_takes_its_database_from_the_environment_and_knows_each_host_twice(commands):
    (server,) = (line for line in commands[CLUSTER["head_node_type"]] if "mlflow server" in line)
    assert "--backend-store-uri" not in server
    assert "MLFLOW_BACKEND_STORE_URI" in server
    assert "--artifacts-destination" in server
    assert "s3://" in server
    assert "--disable-security-middleware" not in server
    hosts = re.search(r'--allowed-hosts "([^"]+)"', server)[1].split(",")
    names = {host for host in hosts if not host.endswith(":*")}
    assert set(hosts) == names | {f"{name}:*" for name in names}
    assert {"localhost", "127.0.0.1"} < names
    assert "*" not in names


def test_no_secret_stands_in_the_file():
    secrets = r"AKIA\w{16}|hf_\w{10}|sk-\w{10}|[0-9a-f]{32}|://[^/\s$]+:[^/\s$]+@|BEGIN [A-Z ]*PRIVATE"
    assert re.search(secrets, "postgresql://me:pass@host/db")  # the pattern finds what it looks for
    assert not re.search(secrets, TEXT)
    assert not re.search(r"(?i)(password|secret_access_key|_token)\s*[=:]\s*['\"]?\w{8}", TEXT)


def test_commands_are_valid_bash(commands):
    for lines in commands.values():
        for line in lines:
            assert subprocess.run(["bash", "-n", "-c", line], capture_output=True, check=False).stderr == b"", line


def test_nodes_install_what_the_project_asks_for(commands):
    """The setup commands name extras, pins and files that exist, and GPU nodes take the GPU's extra."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    taken = {}
    for name, lines in commands.items():
        (install,) = (line for line in lines if "uv pip install" in line)
        taken[name] = re.findall(r"--extra (\w+)", install)
        assert set(taken[name]) <= set(extras)
        assert "-r pyproject.toml" in install
    assert taken == {name: [name.replace("head", "cpu"), "offline"] for name in ("head", "cpu", "gpu")}
    mounts = CLUSTER["file_mounts"]
    assert [mounts[f"~/raystill/{name}"] for name in ("pyproject.toml", "constraints.txt")] == [
        "pyproject.toml",
        "constraints.txt",
    ]


def test_job_package_is_small_and_holds_all_code_and_configuration(tmp_path, monkeypatch):
    from ray._private.ray_constants import get_runtime_env_default_excludes
    from ray._private.runtime_env.packaging import create_package

    package = tmp_path / "package.zip"
    monkeypatch.chdir(ROOT)
    create_package(".", package, include_gitignore=True, excludes=get_runtime_env_default_excludes())
    assert package.stat().st_size < 2 * 2**20
    packed = {name for name in zipfile.ZipFile(package).namelist() if not name.endswith("/")}
    needed = {
        str(path.relative_to(ROOT))
        for folder in ("pipeline", "conf", "ray_jobs")
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert len(needed) > 20
    assert needed <= packed
    assert not {name for name in packed if name.split("/")[0] in {"tests", "runs", "data", ".git", ".venv"}}
