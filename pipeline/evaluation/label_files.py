"""The files that annotators hand in: what a sheet saves (JSON), and tables that a spreadsheet saves (CSV)."""

import csv
import json
from collections.abc import Mapping, Sequence
from io import StringIO
from typing import Any

from pipeline.errors import SourceError
from pipeline.evaluation.annotation import Annotation, Fault, Item, Label, LabelFile

COLUMNS = ("sheet", "annotator", "item", "question", "answer", "label", "type", "note")
"""Of a CSV file."""
_NEEDED = tuple(name for name in COLUMNS if name not in ("question", "answer"))
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""What a spreadsheet takes for a formula's start."""


def write_csv(items: Sequence[Item], sheet: str, annotator: str) -> str:
    """Return items as CSV whose label columns are empty.

    A text that a spreadsheet would run as a formula gets an apostrophe in front; nothing reads texts back.
    """
    stream = StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(COLUMNS)
    for item in items:
        writer.writerow([sheet, annotator, item.item_id, _disarm(item.question), _disarm(item.answer), "", "", ""])
    return stream.getvalue()


def read_label_file(name: str, content: bytes) -> LabelFile:
    """Return the labels in a file whose name ends in `.json` or `.csv`. Items without a label are left out.

    Raises:
        SourceError: It is no file of labels, or an item's label is none; every mistake is named.
    """
    readers = {"json": _read_json, "csv": _read_csv}
    reader = readers.get(name.rpartition(".")[2].lower())
    if reader is None:
        raise SourceError(f"{name}: a file of labels ends in .json (as a sheet saves it) or .csv")
    try:
        text = content.decode("utf-8-sig")  # spreadsheets put a mark in front
    except UnicodeDecodeError as error:
        raise SourceError(f"{name}: is not UTF-8 ({error.reason}); save it as UTF-8") from None
    sheet, annotator, rows = reader(name, text)
    annotations, mistakes = [], []
    for row in rows:
        try:
            annotation = _read_row(row)
        except ValueError as error:
            mistakes.append(f"{name}: item {row['item']}: {error}")
            continue
        if annotation is not None:
            annotations.append(annotation)
    if mistakes:
        raise SourceError("\n".join(mistakes))
    return LabelFile(name, sheet, annotator, tuple(annotations))


def write_labels(file: LabelFile) -> str:
    """Return labels as the JSON that a sheet saves."""
    labels = [
        {"item": one.item_id, "label": one.label, "type": one.fault or "", "note": one.note} for one in file.annotations
    ]
    value = {"sheet": file.sheet, "annotator": file.annotator, "labels": labels}
    return json.dumps(value, indent=1, ensure_ascii=False) + "\n"


def _read_json(name: str, text: str) -> tuple[str, str, list[dict[str, str]]]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise SourceError(f"{name}: is no JSON ({error}); give the file as the sheet saved it") from None
    match value:
        case {"sheet": str(sheet), "annotator": str(annotator), "labels": list(rows)}:
            pass
        case _:
            raise SourceError(f"{name}: has not the keys sheet, annotator and labels; give the file as it was saved")
    for place, row in enumerate(rows):
        if not isinstance(row, Mapping) or not all(isinstance(row.get(key), str) for key in ("item", "label")):
            raise SourceError(
                f"{name}: label {place + 1} has no item or no label as text; give the file as it was saved"
            )
    return sheet, annotator, [_fill(row) for row in rows]


def _read_csv(name: str, text: str) -> tuple[str, str, list[dict[str, str]]]:
    reader = csv.DictReader(StringIO(text, newline=""))
    if missing := [column for column in _NEEDED if column not in (reader.fieldnames or ())]:
        raise SourceError(
            f"{name}: lacks the columns {', '.join(missing)}; keep the first row as written, and save with commas"
        )
    rows = list(reader)
    places = {(row["sheet"], row["annotator"]) for row in rows}
    if len(places) != 1:
        raise SourceError(f"{name}: needs rows of one sheet and one annotator, and has {sorted(places, key=str)}")
    sheet, annotator = places.pop()
    return sheet, annotator, [_fill(row) for row in rows]


def _fill(row: Mapping[str, Any]) -> dict[str, str]:
    return {key: str(row.get(key) or "").strip() for key in ("item", "label", "type", "note")}


def _read_row(row: Mapping[str, str]) -> Annotation | None:
    # A spreadsheet may curl the apostrophe of "can't tell".
    said, fault = row["label"].lower().replace("\u2019", "'"), row["type"].lower()
    if not said:
        if fault:
            raise ValueError(f"has the type {row['type']!r} and no label; give one")
        return None
    if said not in set(Label):
        raise ValueError(f"the label {row['label']!r} is none of {', '.join(Label)}")
    label = Label(said)
    if label is not Label.YES:
        if fault:
            raise ValueError(
                f"has the type {row['type']!r} though its label is {label}; a type stands beside yes alone"
            )
        return Annotation(row["item"], label, note=row["note"])
    if fault not in set(Fault):
        raise ValueError(f"the label is yes and the type {row['type']!r}; give one of {', '.join(Fault)}")
    return Annotation(row["item"], label, Fault(fault), row["note"])


def _disarm(text: str) -> str:
    return f"'{text}" if text.startswith(_FORMULA) else text
