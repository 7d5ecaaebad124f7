"""What an experiment's teachers will take, as a table in the terminal and as one HTML file that needs nothing else."""

from collections.abc import Callable, Mapping
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from pipeline.report.html import Grid, render_page
from pipeline.report.table import measure_width
from pipeline.tracking import redact

NO_PRICE = "no price set"
ELSEWHERE = "computed elsewhere"
MAX_CHARS = 700
"""Of a prompt's turn in the terminal; the page and `plan.json` have it whole."""
NOTES = (
    "In brackets are 95 % intervals: Student's t over the probe's requests for what a call takes, and Wilson's for the "
    "share of bad replies and for how many calls it takes, so that a probe without a bad reply still allows for some.",
    "Time is bracketed otherwise: from calls as quick as the probe's with all places taken, to no more calls at a time "
    "than the probe had. An engine's start is in it.",
)
"""What must be known of the numbers."""


def lay_out_plan(plan: Mapping[str, Any]) -> Grid:
    """Return a plan as a grid: a column for each arm and judge, and one for all of them where there are several."""
    parts = plan["parts"]
    columns = [*parts, plan["total"]] if len(parts) > 1 else parts

    def show(section: str, name: str, write: Callable[[Any], str], missing: str = "") -> list[str]:
        return [_write(column.get(section, {}).get(name), write, missing) for column in columns]

    rest = [
        ["requests", *show("to_come", "requests", _write_count)],
        ["calls", *show("to_come", "calls", _write_count)],
        ["prompt tokens", *show("to_come", "prompt_tokens", _write_count)],
        ["completion tokens", *show("to_come", "completion_tokens", _write_count)],
        ["time", *show("to_come", "time_s", format_duration)],
        ["device time", *show("to_come", "device_s", format_duration, ELSEWHERE)],
        ["USD", *show("to_come", "usd", format_usd, NO_PRICE)],
    ]
    asked = [
        ["stage", *(column.get("stage", "") for column in columns)],
        ["teacher", *(column.get("teacher", "") for column in columns)],
        ["requests", *(_write_count(column["requests"]) for column in columns)],
    ]
    held = [
        ["requests", *show("held", "requests", _write_count)],
        ["calls", *show("held", "calls", _write_count)],
        ["prompt tokens", *show("held", "prompt_tokens", _write_count)],
        ["completion tokens", *show("held", "completion_tokens", _write_count)],
        ["USD", *show("held", "usd", format_usd, NO_PRICE)],
    ]
    probe = [
        ["requests", *show("probe", "requests", _write_count)],
        ["accepted", *show("probe", "accepted", _write_count)],
        ["calls", *show("probe", "calls", _write_count)],
        ["bad replies", *(_write(column.get("bad_replies"), _write_share, "") for column in columns)],
    ]
    in_all = [
        [name.replace("_", " "), *show("in_all", name, _write_count)]
        for name in ("calls", "prompt_tokens", "completion_tokens")
    ]
    names = [column.get("key", "in all") for column in columns]
    sections = {"": asked, "in the ledger": held, "of that, the probe": probe, "to come": rest, "in the end": in_all}
    return Grid(["", *names], sections)


def list_warnings(plan: Mapping[str, Any]) -> list[str]:
    """Return what a reader of a plan must not overlook."""
    found = [
        f"{part['key']}: no request of the probe was accepted, so what is projected is what failing takes"
        for part in plan["parts"]
        if part["probe"]["requests"] and not part["probe"]["accepted"]
    ]
    found += [
        f"{part['key']}: {part['asked_elsewhere']:,} of its requests are asked by those before it, and counted there"
        for part in plan["parts"]
        if part["asked_elsewhere"]
    ]
    if unpriced := plan["total"]["unpriced"]:
        found.append(f"no price is set for {', '.join(unpriced)} (teacher.price), so USD are without that")
    return found


def print_plan(plan: Mapping[str, Any], console: Console) -> None:
    """Print the prompts, shortened, and the table."""
    for part in plan["parts"]:
        for prompt in part["prompts"]:
            console.print(f"{name_prompt(part, prompt)}:", style="bold", markup=False, highlight=False)
            for message in prompt["messages"]:
                text = f"[{message['role']}] {_shorten(message['content'])}"
                console.print(text, markup=False, highlight=False, soft_wrap=True)
            console.print()
    grid = lay_out_plan(plan)
    table = Table(title=plan["experiment"], title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    for number, name in enumerate(grid.header):
        table.add_column(name, justify="right" if number else "left", no_wrap=True)
    for section, rows in grid.sections.items():
        if section:
            table.add_row(f"[bold]{section}[/bold]")
        for row in rows:
            table.add_row(*row, end_section=row is rows[-1])
    table.width = measure_width(table, console)
    console.print(table, crop=False)
    for line in (*list_warnings(plan), *NOTES):
        console.print(line, soft_wrap=True, markup=False, highlight=False)


def render_plan(plan: Mapping[str, Any], config: str, versions: Mapping[str, str]) -> str:
    """Return a plan as the text of an HTML file.

    Args:
        plan: `plan.json`.
        config: The resolved configuration as YAML.
        versions: Of what can change a result.
    """
    prompts = {
        name_prompt(part, prompt): {**prompt, "teacher": part["teacher"]}
        for part in plan["parts"]
        for prompt in part["prompts"]
    }
    total = plan["total"]["to_come"]
    return render_page(
        "plan.html.jinja",
        experiment=plan["experiment"],
        summary={
            "requests": _write_count(total["requests"]),
            "tokens": " and ".join(
                f"{_write(total[f'{kind}_tokens'], _write_count, '')} {kind} tokens"
                for kind in ("prompt", "completion")
            ),
            "time": _write(total["time_s"], format_duration, ""),
            "usd": _write(total["usd"], format_usd, ""),
        },
        table=lay_out_plan(plan),
        warnings=list_warnings(plan),
        notes=NOTES,
        prompts=prompts,
        config=redact(config),
        versions=versions,
    )


def name_prompt(part: Mapping[str, Any], prompt: Mapping[str, Any]) -> str:
    """Return what tells one kind of prompt from others."""
    return f"{part['key']} / {prompt['label']}" if prompt["label"] else str(part["key"])


def format_duration(seconds: float) -> str:
    """Return seconds in the unit that one would say them in."""
    for unit, length in (("h", 3600.0), ("min", 60.0)):
        if seconds >= 1.5 * length:
            return f"{seconds / length:,.1f} {unit}"
    return f"{seconds:,.0f} s" if seconds >= 10 else f"{seconds:.1f} s"


def format_usd(amount: float) -> str:
    """Return US dollars to the cent, or to two digits below ten cents."""
    return f"{amount:,.2f}" if amount >= 0.1 or amount == 0 else f"{amount:.2g}"


def _write(value: Any, write: Callable[[Any], str], missing: str) -> str:
    match value:
        case None:
            return missing
        case {"value": middle, "low": low, "high": high}:
            texts = [write(middle), write(low), write(high)]
            return texts[0] if len(set(texts)) == 1 else f"{texts[0]} [{texts[1]}, {texts[2]}]"
    return write(value)


def _write_count(value: float) -> str:
    return f"{value:,.0f}"


def _write_share(value: float) -> str:
    return f"{100 * value:.1f} %"


def _shorten(text: str) -> str:
    return text if len(text) <= MAX_CHARS else f"{text[: MAX_CHARS - 1]}…"
