import re
import shlex
from collections import Counter

import pytest

from tests.composing import (
    compose_annotation,
    compose_curves,
    compose_doctor,
    compose_experiment,
    compose_generation,
    compose_index,
    compose_search,
)
from tests.conftest import PROJECT


def find_commands(scripts):
    """Every command of the README and docs that runs one of these scripts, its lines joined."""
    for page in (PROJECT / "README.md", *(PROJECT / "docs").glob("*.md")):
        text = page.read_text().replace("\\\n", " ")
        yield from re.findall(rf"python ray_jobs/(?:{scripts})\.py (.*?)(?:`|  +#|\n)", text)


COMPOSERS = {
    "run|train|evaluate|export|compare": compose_experiment,
    "generate": compose_generation,
    "curves": compose_curves,
    "index": compose_index,
    "tune": compose_search,
    "annotate": compose_annotation,
    "doctor": compose_doctor,
}
"""Who reads the command line of which scripts."""
COMMANDS = [(scripts, command) for scripts in COMPOSERS for command in find_commands(scripts)]


def test_there_are_commands():
    counts = Counter(scripts for scripts, _ in COMMANDS)
    assert set(counts) == set(COMPOSERS)
    assert min(counts.values()) >= 3


@pytest.mark.parametrize(("scripts", "command"), COMMANDS)
def test_a_documented_command_composes(scripts, command, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    arguments = [argument for argument in shlex.split(command) if argument not in ("--cfg", "job")]
    assert COMPOSERS[scripts](arguments)


def test_make_targets_of_the_readme_exist():
    targets = set(re.findall(r"(?m)^([a-z-]+):", (PROJECT / "Makefile").read_text()))
    named = set(re.findall(r"(?m)^make ([a-z-]+)", (PROJECT / "README.md").read_text()))
    assert named
    assert named <= targets
