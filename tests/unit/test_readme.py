import re
import shlex

import pytest

from tests.composing import compose_curves, compose_experiment, compose_generation, compose_index
from tests.conftest import PROJECT


def find_commands(scripts):
    """Every command of the README and docs that runs one of these scripts, its lines joined."""
    for page in (PROJECT / "README.md", *(PROJECT / "docs").glob("*.md")):
        text = page.read_text().replace("\\\n", " ")
        yield from re.findall(rf"python ray_jobs/(?:{scripts})\.py (.*?)(?:`|  +#|\n)", text)


COMMANDS = list(find_commands("run|train|evaluate|export|compare"))
GENERATION_COMMANDS = list(find_commands("generate"))
CURVE_COMMANDS = list(find_commands("curves"))
INDEX_COMMANDS = list(find_commands("index"))


def test_there_are_commands():
    assert len(COMMANDS) >= 7
    assert len(GENERATION_COMMANDS) >= 7
    assert len(INDEX_COMMANDS) >= 3
    assert len(CURVE_COMMANDS) >= 3


@pytest.mark.parametrize("command", CURVE_COMMANDS)
def test_documented_curves_compose(command):
    assert compose_curves(shlex.split(command)).curves


@pytest.mark.parametrize("command", GENERATION_COMMANDS)
def test_a_documented_generation_composes(command, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    assert compose_generation(shlex.split(command)).arms


@pytest.mark.parametrize("command", INDEX_COMMANDS)
def test_a_documented_index_composes(command, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    assert compose_index(shlex.split(command)).corpus


@pytest.mark.parametrize("command", COMMANDS)
def test_a_documented_command_composes(command, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    arguments = [argument for argument in shlex.split(command) if argument not in ("--cfg", "job")]
    assert compose_experiment(arguments).arms


def test_make_targets_of_the_readme_exist():
    targets = set(re.findall(r"(?m)^([a-z-]+):", (PROJECT / "Makefile").read_text()))
    named = set(re.findall(r"(?m)^make ([a-z-]+)", (PROJECT / "README.md").read_text()))
    assert named
    assert named <= targets
