"""Answers to questions that were written elsewhere: by people, by another system, by the authors of a paper."""

import json
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

from pipeline.errors import SourceError
from pipeline.sources.data import AnswersConfig
from pipeline.sources.tables import locate, read_rows


class WrittenAnswer(NamedTuple):
    """An answer, and the question as its file has it."""

    question_id: str
    question: str
    """Empty where the file has none."""
    text: str


def read_answers(config: AnswersConfig, data_root: str | None, left_out: Counter[str]) -> list[WrittenAnswer]:
    """Return the answers of a file; rows without one are left out.

    Args:
        config: Which file, and which of its columns is what.
        data_root: The experiment's, for a config without one.
        left_out: Rows that are, by why; added to.

    Raises:
        SourceError: The file is missing or broken, lacks a column, or no row is left.
    """
    root = config.root or data_root
    path = config.path if root is None else locate(root, config.path)
    asked = {f"question {number}": column for number, column in enumerate(config.question or ())}
    rows = read_rows(path, {"id": config.question_id, "answer": config.answer, **asked}, config.where)
    found = [
        WrittenAnswer(row.values["id"], " ".join(filter(None, (row.values[name] for name in asked))), text)
        for row in rows
        for text in _read_texts(row.values["answer"], f"{path}, row {row.line}: {config.answer}")
    ]
    if not found:
        raise SourceError(f"{path}: the column {config.answer} is empty in all {len(rows)} rows")
    taken = found[: config.limit]
    left_out += Counter(empty=len(rows) - len(found), beyond_limit=len(found) - len(taken))
    return taken


def _read_texts(cell: str, place: str) -> Iterator[str]:
    """Yield a cell's text, if there is any; of a list that Hugging Face's text generation left, what was generated."""
    if cell.startswith('[{"generated_text"'):
        try:
            (generated,) = json.loads(cell)
            cell = generated["generated_text"].strip()
        except (ValueError, TypeError, AttributeError) as error:
            raise SourceError(f"{place}: expected a list of one generated_text: {error}") from None
    if cell:
        yield cell
