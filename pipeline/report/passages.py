"""What a search found, for the terminal."""

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pipeline.records import Passage

MAX_CHARACTERS = 240


def print_passages(query: str, passages: Sequence[Passage], console: Console | None = None) -> None:
    """Print a ranking with the beginning of each text."""
    table = Table(title=escape(query), title_justify="left")
    for heading, justify in (("rank", "right"), ("score", "right"), ("id", "left"), ("text", "left")):
        table.add_column(heading, justify=justify)  # type: ignore[arg-type]
    for passage in passages:
        text = " ".join(passage.text.split())
        shown = text if len(text) <= MAX_CHARACTERS else f"{text[:MAX_CHARACTERS]}…"
        table.add_row(str(passage.rank), f"{passage.score:.4f}", passage.passage_id, escape(shown))
    (console or Console()).print(table if passages else f"{escape(query)}: nothing found")
