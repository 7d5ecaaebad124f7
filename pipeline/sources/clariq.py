"""ClariQ (Aliannejadi et al., EMNLP 2021): search requests with a need for clarification from 1 (none) to 4."""

from pipeline.errors import SourceError
from pipeline.records import GoldItem
from pipeline.sources.downloads import SourceFile
from pipeline.sources.tables import Location, locate, read_rows

# The repository's last commit; the raw files have not changed since September 2021.
_URL = "https://raw.githubusercontent.com/aliannejadi/ClariQ/46885a544581a0af8aff0681d29e4971807e2912/data"
_SPLITS = {
    "train": ("train.tsv", "65d3da13b2d6ea77e7eaa45290894ffc162a5bd000e7640decd1b0a272a6e9d1"),
    "dev": ("dev.tsv", "68d2a5f87eab73721979b5f45f64099a9b2f080db1d0ce4b979d9daa4249906e"),
    "test": ("test_with_labels.tsv", "792fb25a3f258e96b6957490faae13dc2ab9926a0d23345b12ab4b925eb02b58"),
}
FILES = tuple(SourceFile(f"clariq/{name}", sha256, f"{_URL}/{name}") for name, sha256 in _SPLITS.values())

_COLUMNS = {"topic_id": "topic_id", "request": "initial_request", "need": "clarification_need"}
_LABELS = {"1": "clear", "2": "ambiguous", "3": "ambiguous", "4": "ambiguous"}


def read_clariq(root: Location) -> list[GoldItem]:
    """Return one item per distinct request of a topic, in the files' order, named `<topic>-<wording>`.

    The files have a row per clarifying question. Topic 260 has two wordings, hence 62 items of 61 test topics.

    Raises:
        SourceError: A file is missing or broken, or a need is none of 1 to 4.
    """
    items: dict[tuple[str, str], GoldItem] = {}
    n_wordings: dict[str, int] = {}
    for (split, _), file in zip(_SPLITS.items(), FILES, strict=True):
        location = locate(root, file.path)
        for line, values in read_rows(location, _COLUMNS):
            topic_id, request, need = values["topic_id"], values["request"], values["need"]
            if need not in _LABELS:
                raise SourceError(f"{location}, line {line}: clarification_need {need!r}, expected 1, 2, 3 or 4")
            if (topic_id, request) not in items:
                n_wordings[topic_id] = n_wordings.get(topic_id, 0) + 1
                item_id = f"{topic_id}-{n_wordings[topic_id]}"
                items[topic_id, request] = GoldItem(item_id, request, _LABELS[need], split)
    return list(items.values())
