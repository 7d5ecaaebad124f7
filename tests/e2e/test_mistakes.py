"""What a user gets wrong ends in one clear message, before any cluster work and without a traceback."""

import os
import shutil
import subprocess
import sys

import pytest

from tests.conftest import PROJECT


def run_job(*arguments, **environment):
    command = [sys.executable, "ray_jobs/run.py", *arguments]
    env = {**os.environ, "HF_HUB_OFFLINE": "1", **environment}
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=60, env=env)
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert "done:" not in done.stdout
    return done.stderr


@pytest.fixture
def root(tmp_path):
    return f"root={tmp_path}/runs"


def test_misspelt_key_on_the_command_line(root):
    assert "epoch" in run_job("experiment=quickstart", root, "students.minilm.epoch=3")


def test_misspelt_key_in_a_file(root, tmp_path):
    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    quickstart = (PROJECT / "conf/experiment/quickstart.yaml").read_text()
    (tmp_path / "conf/experiment/mine.yaml").write_text(quickstart.replace("epochs: 2", "epoch: 2\n    batchsize: 4"))
    error = run_job("--config-dir", f"{tmp_path}/conf", "experiment=mine", root)
    assert "students.minilm.epoch: unknown key" in error
    assert "students.minilm.batchsize: unknown key" in error


def test_student_beside_an_experiment_is_refused_with_a_hint(root):
    error = run_job("experiment=quickstart", "student=distilbert", root)
    assert "student=… has no effect beside experiment=quickstart" in error
    assert "students.<key>" in error


def test_empty_topic_file(root, tmp_path):
    topics = tmp_path / "topics.tsv"
    topics.write_text("topic\n")
    assert str(topics) in run_job("data=topics", f"data.path={topics}", root)


def test_topic_file_with_one_broken_line(root, tmp_path):
    topics = tmp_path / "topics.tsv"
    topics.write_text("topic\tnote\nBees\ta\nHoney\nWax\tb\n")
    error = run_job("data=topics", f"data.path={topics}", root)
    assert str(topics) in error
    assert "line 3" in error


def test_a_student_that_does_not_exist(root):
    error = run_job("experiment=quickstart", "students.minilm.model=nobody/no-such-model", root)
    assert "nobody/no-such-model" in error


def test_a_root_that_cannot_be_written(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    assert f"{file}/runs" in run_job("experiment=quickstart", f"root={file}/runs")


@pytest.mark.parametrize("value", ["root=runs", "data.root=data"])
def test_a_relative_path_in_a_submitted_job(root, value):
    error = run_job("experiment=quickstart", root, value, RAY_JOB_CONFIG_JSON_ENV_VAR="{}")
    assert value in error
    assert "absolute path" in error


def spoil_clariq(data_root, folder, old, new):
    """Copy the benchmarks and replace a text in one file; return the file."""
    wanted = {"clariq", "ambignq", "train.tsv", "dev.tsv", "test_with_labels.tsv"}
    shutil.copytree(data_root, folder, ignore=lambda _, names: set(names) - wanted)
    dev = folder / "clariq" / "dev.tsv"
    dev.chmod(0o644)
    content = dev.read_text()
    assert old in content
    dev.write_text(content.replace(old, new, 1))
    return dev


@pytest.mark.data
@pytest.mark.parametrize(
    ("old", "new", "told"),
    [("Ritz", "Rits", "wrong checksum, expected sha256"), ("clarification_need", "need", "no column")],
)
def test_a_benchmark_with_another_content_or_without_a_column(root, tmp_path, data_root, old, new, told):
    dev = spoil_clariq(data_root, tmp_path / "data", old, new)
    error = run_job("experiment=quickstart", root, f"data.root={tmp_path}/data")
    assert str(dev) in error
    assert told in error
