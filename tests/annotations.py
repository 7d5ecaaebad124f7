"""Two arms of answers, and the export of a sheet of them."""

from pathlib import Path

from pipeline.records import Example, to_table
from pipeline.stages.annotate import ExportConfig
from pipeline.stages.dataset import EXAMPLES
from pipeline.storage import Folder
from tests.composing import compose_annotation

HOSTILE = '</script><script>document.title = "owned"</script><img src="x" onerror="document.title = \'owned\'">&amp;'


def write_arm(folder: Path, arm: str, n: int = 3, **extras: str) -> None:
    """Write what a data-set step leaves of an arm."""
    rows = [
        Example(
            f"{arm}-{i}",
            "",
            "asker",
            HOSTILE if (arm, i) == ("basic", 0) else f"{arm} answers {i}. It is so.",
            "",
            {"query": f"Question {i} <b>?</b>", "question_id": f"beer_{i}", "community": "beer"} | extras,
        )
        for i in range(n)
    ]
    Folder.at(folder / arm).write_table(EXAMPLES, to_table(Example, rows))


def compose_export(folder: Path, *overrides: str) -> ExportConfig:
    """Return the export of two such arms into `out`."""
    arms = {arm: f"{{path: {folder / arm}, model: mini, prompt: {arm}}}" for arm in ("basic", "grounded")}
    given = ", ".join(f"{arm}: {values}" for arm, values in arms.items())
    return compose_annotation(
        ["annotate=export", f"arms={{{given}}}", f"output={folder / 'out'}", "n_items=6", *overrides]
    )
