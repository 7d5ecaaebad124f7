"""An experiment on two labelled files, as two teachers would write them on the same topics, and a mix of both."""

from pathlib import Path

HEADER = "topic\tinitial_request\tbinary_label\tuser_information_need\n"
TOPICS, REPEATED = 12, 3
"""Topics of each file, two rows each; of that many the ambiguous queries stand in both files."""


def write_files(folder: Path) -> Path:
    for name in ("first", "second"):
        lines = []
        for topic in range(TOPICS):
            clear = f"how much does subject {topic} cost in the year of the {name} teacher"
            vague = f"about thing {topic}" if topic < REPEATED else f"{name} thing number {topic}"
            lines += [f"topic {topic}\t{clear}\t0\tthe cost\n", f"topic {topic}\t{vague}\t1\tunclear\n"]
        (folder / f"{name}.tsv").write_text(HEADER + "".join(lines))
    return folder


def list_overrides(folder: Path, *overrides: str) -> list[str]:
    """Return the command line of the experiment on the files of a folder; the mix stands before its arms."""
    kinds = {"mixed": "mix", "first": "wiser", "second": "wiser"}
    return [
        "name=mixing",
        f"root={folder}/runs",
        "tracking=none",
        "+student@students.minilm=minilm",
        *(f"+data@arms.{name}.data={kind}" for name, kind in kinds.items()),
        *(f"+filters@arms.{name}.filters=default" for name in kinds),
        *(f"arms.{name}.data.path={folder}/{name}.tsv" for name in ("first", "second")),
        "arms.mixed.data.shares={first: 0.5, second: 0.5}",
        # Rows of these files differ by a word.
        *(f"arms.{name}.filters.near_duplicate_similarity=null" for name in kinds),
        *overrides,
    ]
