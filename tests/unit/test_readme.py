import re
import shlex

import pytest

from tests.composing import compose_experiment
from tests.conftest import PROJECT


def find_commands():
    """Every command of the README and docs that runs the flow, its lines joined."""
    for page in (PROJECT / "README.md", *(PROJECT / "docs").glob("*.md")):
        text = page.read_text().replace("\\\n", " ")
        yield from re.findall(r"python ray_jobs/(?:run|generate|train|evaluate|compare)\.py (.*?)(?:`|  #|\n)", text)


COMMANDS = list(find_commands())


def test_there_are_commands():
    assert len(COMMANDS) >= 7


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
