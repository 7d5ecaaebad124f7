"""What a check found."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from rich.console import Console
from rich.table import Table
from rich.text import Text


class Level(StrEnum):
    """How bad it is."""

    OK = "ok"
    WARNING = "warning"
    """A run works, though slower or less safely than it could, or something could not be looked at."""
    FAULT = "fault"
    """A run fails, or does what nobody meant."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at. Holds no secret."""

    level: Level
    subject: str
    """The setting, variable or part that was looked at, as in `teacher.base_url`."""
    found: str
    needed: str = ""
    fix: str = ""
    """What to do; empty where there is nothing to do."""


def ok(subject: str, found: str) -> Finding:
    """Return that a thing is as it should be."""
    return Finding(Level.OK, subject, found)


def warn(subject: str, found: str, needed: str, fix: str) -> Finding:
    """Return that a thing could be better, or is not known."""
    return Finding(Level.WARNING, subject, found, needed, fix)


def fault(subject: str, found: str, needed: str, fix: str) -> Finding:
    """Return that a thing is broken."""
    return Finding(Level.FAULT, subject, found, needed, fix)


_STYLES = {Level.OK: "green", Level.WARNING: "yellow", Level.FAULT: "bold red"}


def print_findings(findings: Sequence[Finding], console: Console) -> None:
    """Print a table of findings, in their order, and how many there are of each level."""
    table = Table("", "what", "found", "needed, and the fix", show_lines=True)
    for finding in findings:
        needed = "\n".join(part for part in (finding.needed and f"needed: {finding.needed}", finding.fix) if part)
        cells = (finding.subject, finding.found, needed)
        table.add_row(Text(finding.level, _STYLES[finding.level]), *(Text(cell, overflow="fold") for cell in cells))
    console.print(table)
    counts = {level: sum(finding.level is level for finding in findings) for level in reversed(Level)}
    console.print(", ".join(f"{n} {level}" for level, n in counts.items()), highlight=False)
