"""Annotation: answers of several arms drawn into blind sheets, and the labels of their annotators read back.

Neither needs a cluster. What needs no labels (texts beside each other, claims held against passages) is measured with
the sheets, on all answers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, TypeAdapter, model_validator

from pipeline.config import Config
from pipeline.encoder import Encoder, EncoderConfig, load_encoder
from pipeline.errors import ConfigError, SourceError
from pipeline.evaluation.annotation import (
    CLAIM,
    Annotation,
    Fault,
    KeyEntry,
    Label,
    LabelFile,
    Rate,
    Writer,
    check_labels,
    compare_judge,
    count_faults,
    draw_sample,
    find_disagreements,
    measure_agreements,
    measure_rates,
    order_items,
)
from pipeline.evaluation.comparison import COMPARISON
from pipeline.evaluation.correlation import correlate
from pipeline.evaluation.label_files import read_label_file, write_csv
from pipeline.quality.support import SupportConfig
from pipeline.records import Example, from_table
from pipeline.report.annotation import AnnotationInput, Point, SheetInput, render_annotation, render_sheet
from pipeline.stages.answers import collect_answers, correlate_texts, describe_answers, split_passages
from pipeline.stages.dataset import EXAMPLES
from pipeline.storage import Folder
from pipeline.tasks.cqa import QUESTION_ID
from pipeline.weights import pin_model

SHEETS, KEY, ITEMS, TEXTS = "sheets", "key.json", "items.json", "texts.json"
"""What an export leaves; the first alone is for annotators."""
PAGE, RESULT = "annotation.html", "annotation.json"
GROUPINGS = {"arm": ("arm",), "model": ("model",), "prompt": ("prompt",), "model and prompt": ("model", "prompt")}
"""What rates are given by."""
_Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]


class ArmAnswersConfig(Config):
    """One arm's answers, and who wrote them."""

    path: str = Field(min_length=1)
    """Folder of its data-set step (`<root>/steps/dataset/<fingerprint>`)."""
    model: str = Field(min_length=1)
    prompt: str = Field(min_length=1)


class ExportConfig(Config):
    """Which answers are labelled, by whom."""

    annotate: Literal["export"]
    output: str = Field(min_length=1)
    """Folder or URL."""
    arms: dict[_Name, ArmAnswersConfig] = Field(min_length=1)
    n_items: int = Field(gt=0)
    """Of a sheet; a multiple of the number of arms."""
    annotators: list[_Name] = Field(min_length=2)
    """Names for files, not people's own."""
    seed: int = Field(ge=0)
    support: SupportConfig
    encoder: EncoderConfig | None
    """Of the cosine of claims and passages; null leaves it out."""

    @model_validator(mode="after")
    def _check_annotators(self) -> "ExportConfig":
        if len(set(self.annotators)) < len(self.annotators):
            raise ValueError(f"annotators: each once, given {', '.join(self.annotators)}")
        return self


class ComparisonConfig(Config):
    """Where each arm's quality as training data stands."""

    path: str | None
    """Folder of a comparison step; null: rates are set against nothing."""
    measure: str
    benchmark: str | None
    """Null: the only one."""
    student: str | None
    """Null: the only one."""


class ImportConfig(Config):
    """Whose labels are read."""

    annotate: Literal["import"]
    output: str = Field(min_length=1)
    """Folder or URL."""
    exported: str = Field(min_length=1)
    """What the export ended with."""
    labels: list[str] = Field(min_length=2)
    """Files of people, JSON or CSV, one an annotator."""
    judge_labels: str | None
    """Such a file of an LLM."""
    comparison: ComparisonConfig
    fixture: bool
    """Whether the labels are made up; then all that is made of them says so."""


def export_sheets(config: ExportConfig) -> Folder:
    """Write each annotator's sheet (HTML and CSV), the key, and what the texts say without labels; return the folder.

    Raises:
        ConfigError: The items can't be drawn, or the folder holds another sheet.
        SourceError: An arm's rows are no answers to questions, or two arms ask different questions under one id.
        StorageError: A folder can't be read or written.
    """
    output = Folder.at(config.output)
    rows = {arm: _read_rows(arm, one.path) for arm, one in config.arms.items()}
    measured = describe_answers(rows, config.support, _load_encoder(config))
    answers = {arm: collect_answers(arm, of_arm) for arm, of_arm in rows.items()}
    writers = {arm: Writer(one.model, one.prompt) for arm, one in config.arms.items()}
    sample = draw_sample(answers, writers, config.n_items, config.seed)
    if output.exists(KEY) and (other := output.read_json(KEY)["sheet"]) != sample.sheet:
        raise ConfigError(
            f"{output} holds the key of the sheet {other}, whose labels would be lost without it; give another output"
        )
    output.write_json(
        KEY,
        {
            "sheet": sample.sheet,
            "seed": config.seed,
            "annotators": config.annotators,
            "n_incomplete": sample.n_incomplete,
            "n_repeated": {arm: len(of_arm) - len(answers[arm]) for arm, of_arm in rows.items()},
            "items": [asdict(entry) for entry in sample.key],
        },
    )
    arms = {entry.item_id: (entry.arm, entry.question_id) for entry in sample.key}
    passages = {arm: _collect_passages(of_arm) for arm, of_arm in rows.items()}
    items_with_passages = [
        {**asdict(item), "passages": passages[arm].get(question_id, [])}
        for item in sample.items
        for arm, question_id in [arms[item.item_id]]
    ]
    output.write_json(ITEMS, {"sheet": sample.sheet, "items": items_with_passages})
    output.write_json(TEXTS, measured)
    for annotator in config.annotators:
        items = order_items(sample.items, annotator, config.seed)
        page = SheetInput(
            sheet=sample.sheet,
            annotator=annotator,
            items=[asdict(item) for item in items],
            labels=list(Label),
            types=list(Fault),
            file=f"labels_{sample.sheet}_{annotator}.json",
        )
        (output / SHEETS).write_text(f"sheet_{annotator}.html", render_sheet(page, CLAIM))
        (output / SHEETS).write_text(f"sheet_{annotator}.csv", write_csv(items, sample.sheet, annotator))
    return output


def import_labels(config: ImportConfig) -> Folder:
    """Write the page and the figures that labels give; return their folder.

    Raises:
        ConfigError: The comparison has not just one figure of each arm.
        SourceError: A file is no file of labels, or not of this sheet.
        StorageError: A file can't be read or written.
    """
    exported, output = Folder.at(config.exported), Folder.at(config.output)
    whole_key, measured = exported.read_json(KEY), exported.read_json(TEXTS)
    sheet, key = whole_key["sheet"], TypeAdapter(list[KeyEntry]).validate_python(whole_key["items"])
    files = [_read_label_file(path) for path in config.labels]
    judge = _read_label_file(config.judge_labels) if config.judge_labels else None
    n_missing = check_labels([*files, judge] if judge else files, sheet, key)
    n_missing_of_judge = n_missing.pop(judge.annotator) if judge else 0

    rates = {name: measure_rates(files, key, by) for name, by in GROUPINGS.items()}
    quality = _read_quality(config.comparison, sorted({entry.arm for entry in key}))
    points = _to_points(rates["arm"], key, quality)
    page = AnnotationInput(
        sheet=sheet,
        n_items=len(key),
        rates={name: [asdict(rate) for rate in found] for name, found in rates.items()},
        faults=count_faults(files, key),
        agreements=[asdict(found) for found in measure_agreements(files)],
        n_missing=n_missing,
        disagreements=_describe_disagreements(find_disagreements(files), key),
        judge=asdict(compare_judge(judge, files)) if judge else None,
        n_missing_of_judge=n_missing_of_judge,
        points=points,
        measure=config.comparison.measure,
        correlations=_correlate(points, measured["texts"], quality) if points else {},
        texts=measured["texts"],
        support=measured["support"],
        is_fixture=config.fixture,
    )
    output.write_json(RESULT, asdict(page))
    output.write_text(PAGE, render_annotation(page, CLAIM))
    return output


def _read_rows(arm: str, path: str) -> list[Example]:
    folder = Folder.at(path)
    if not folder.exists(EXAMPLES):
        raise SourceError(
            f"arms.{arm}.path: {folder} holds no {EXAMPLES}; give the folder of a data-set step, "
            "<root>/steps/dataset/<fingerprint>"
        )
    return list(from_table(Example, folder.read_table(EXAMPLES)))


def _collect_passages(rows: Sequence[Example]) -> dict[str, list[str]]:
    """Return what an arm's answers were to rest on, by question id; of several answers to one question the first's."""
    found: dict[str, list[str]] = {}
    for row in sorted(rows, key=lambda row: row.row_id):
        found.setdefault(row.extras[QUESTION_ID], split_passages(row))
    return found


def _load_encoder(config: ExportConfig) -> Encoder | None:
    if config.encoder is None:
        return None
    return load_encoder(pin_model(config.encoder.model, config.encoder.revision), config.encoder, "cpu")


def _read_label_file(path: str) -> LabelFile:
    folder, _, name = str(Folder.at(path)).rpartition("/")
    return read_label_file(name, Folder.at(folder).read_bytes(name))


def _read_quality(config: ComparisonConfig, arms: Sequence[str]) -> dict[str, float]:
    """Return the measure of each arm that the comparison has; nothing without a comparison.

    Raises:
        ConfigError: Several benchmarks or students are left, or no arm is there.
    """
    if config.path is None:
        return {}
    entries = [
        entry
        for entry in Folder.at(config.path).read_json(COMPARISON)
        if entry["arm"] in arms
        and entry["measure"] == config.measure
        and config.benchmark in (None, entry["benchmark"])
        and config.student in (None, entry["student"])
    ]
    if not entries:
        raise ConfigError(f"comparison: {config.path} has no {config.measure} of any of the arms {', '.join(arms)}")
    for name in ("benchmark", "student", "setting"):
        if len(found := sorted({str(entry[name]) for entry in entries})) > 1:
            raise ConfigError(f"comparison.{name}: {config.path} has {', '.join(found)}; choose one")
    return {entry["arm"]: entry["value"] for entry in entries}


def _to_points(rates: Sequence[Rate], key: Sequence[KeyEntry], quality: Mapping[str, float]) -> list[Point]:
    prompts = {entry.arm: entry.prompt for entry in key}
    points = []
    for rate in rates:
        (arm,) = rate.group
        if rate.value is not None and rate.low is not None and rate.high is not None and arm in quality:
            points.append(Point(arm, prompts[arm], rate.value, rate.low, rate.high, quality[arm]))
    return points


def _correlate(
    points: Sequence[Point], texts: Mapping[str, Any], quality: Mapping[str, float]
) -> dict[str, dict[str, Any]]:
    """Return the correlation of each figure of the arms with their quality."""
    figures = {"rate of hallucination": {point.arm: point.rate for point in points}}
    for prompt in sorted({point.prompt for point in points}):
        figures[f"the same, prompt {prompt}"] = {point.arm: point.rate for point in points if point.prompt == prompt}
    of_rates = {name: asdict(correlate(of_arms, quality)) for name, of_arms in figures.items()}
    return of_rates | correlate_texts(texts, quality)


def _describe_disagreements(
    found: Mapping[str, Mapping[str, Annotation]], key: Sequence[KeyEntry]
) -> list[dict[str, str]]:
    arms = {entry.item_id: entry for entry in key}
    return [
        {
            "item": item,
            "arm": arms[item].arm,
            "question": arms[item].question_id,
            **{annotator: _describe(annotation) for annotator, annotation in said.items()},
        }
        for item, said in found.items()
    ]


def _describe(annotation: Annotation) -> str:
    fault = f" ({annotation.fault})" if annotation.fault else ""
    return f"{annotation.label}{fault}" + (f": {annotation.note}" if annotation.note else "")
