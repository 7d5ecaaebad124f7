"""The Python version and the installed packages, against what the project asks for and the set that was tested."""

import platform
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from pipeline.doctor.finding import Finding, fault, ok, warn

CONSTRAINTS, PYPROJECT = "constraints.txt", "pyproject.toml"
MAX_NAMED = 8
"""Packages that one finding names; the rest is counted."""


@dataclass(frozen=True)
class Demands:
    """What the project asks for."""

    python: str
    """A version specifier."""
    packages: Sequence[Requirement]


def check_installation(folders: Sequence[Path]) -> list[Finding]:
    """Return what is wrong with Python and its packages.

    Args:
        folders: Where `constraints.txt` and `pyproject.toml` are looked for, in order.
    """
    installed: dict[str, str] = {canonicalize_name(d.name): d.version for d in metadata.distributions() if d.name}
    demands = read_demands(folders)
    findings = []
    if demands is None:
        findings.append(
            warn(
                "packages",
                f"no {PYPROJECT} in {_join(folders)}, and raystill is not installed",
                "the project's requirements, to compare with what is installed",
                "run this in the project's folder, or install it: pip install -c constraints.txt .",
            )
        )
    else:
        findings += [
            check_python(platform.python_version(), demands.python),
            check_requirements(demands.packages, installed),
        ]
    pins = next((folder / CONSTRAINTS for folder in folders if (folder / CONSTRAINTS).is_file()), None)
    if pins is None:
        findings.append(
            warn(
                CONSTRAINTS,
                f"not in {_join(folders)}",
                "the pins of the set that was tested",
                f"run this in the project's folder, which has {CONSTRAINTS}",
            )
        )
    else:
        findings.append(check_pins(pins, installed))
    return findings


def read_demands(folders: Sequence[Path]) -> Demands | None:
    """Return what the first `pyproject.toml` asks for, or else the installed package; None where there is neither."""
    for folder in folders:
        if (folder / PYPROJECT).is_file():
            project = tomllib.loads((folder / PYPROJECT).read_text()).get("project", {})
            if project.get("name") == "raystill":
                return Demands(project["requires-python"], [Requirement(text) for text in project["dependencies"]])
    try:
        own = metadata.metadata("raystill")
    except metadata.PackageNotFoundError:
        return None
    return Demands(own["Requires-Python"] or "", [Requirement(text) for text in metadata.requires("raystill") or ()])


def check_python(version: str, wanted: str) -> Finding:
    """Return whether this Python's version is one that the project takes."""
    if SpecifierSet(wanted).contains(version, prereleases=True):
        return ok("Python", version)
    return fault(
        "Python", version, f"Python {wanted}", "make an environment of another Python, as in python3.11 -m venv"
    )


def check_requirements(wanted: Iterable[Requirement], installed: Mapping[str, str]) -> Finding:
    """Return whether what the project can't do without is installed.

    Args:
        wanted: Those of extras are left out.
        installed: Versions by canonical name.
    """
    wrong, n_met = [], 0
    for requirement in wanted:
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        version = installed.get(canonicalize_name(requirement.name))
        if version is not None and requirement.specifier.contains(version, prereleases=True):
            n_met += 1
        else:
            wrong.append(f"{requirement.name}{requirement.specifier} (installed: {version or 'none'})")
    if not wrong:
        return ok("packages", f"all {n_met} requirements of {PYPROJECT} are met")
    return fault(
        "packages",
        f"{len(wrong)} of {n_met + len(wrong)} requirements are not met",
        _list(wrong),
        f"pip install -c {CONSTRAINTS} -e '.[cpu]' (or the extra gpu) in the project's folder",
    )


def check_pins(path: Path, installed: Mapping[str, str]) -> Finding:
    """Return whether what is installed has the pinned versions. A pin of what is not installed asks for nothing."""
    lines = [line.partition("#")[0].strip() for line in path.read_text().splitlines()]
    pins = [Requirement(line) for line in lines if line]
    found = [(pin, installed[name]) for pin in pins if (name := canonicalize_name(pin.name)) in installed]
    wrong = [f"{pin} (installed: {v})" for pin, v in found if not pin.specifier.contains(v, prereleases=True)]
    absent = f"; {len(pins) - len(found)} more are pinned and not installed" if len(pins) > len(found) else ""
    if not wrong:
        return ok(CONSTRAINTS, f"{len(found)} installed packages have the versions of {path}{absent}")
    return warn(
        CONSTRAINTS,
        f"{len(wrong)} of {len(found)} installed packages have other versions than in {path}{absent}",
        _list(wrong),
        f"pip install -c {path} {' '.join(item.partition('=')[0] for item in wrong[:MAX_NAMED])}, or know that "
        "this set is untested",
    )


def _join(folders: Sequence[Path]) -> str:
    return " or ".join(map(str, dict.fromkeys(folders)))


def _list(items: Sequence[str]) -> str:
    more = f" and {len(items) - MAX_NAMED} more" if len(items) > MAX_NAMED else ""
    return ", ".join(items[:MAX_NAMED]) + more
