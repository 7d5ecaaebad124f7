"""The model card of an exported student: `README.md` with the front matter that the model hub reads."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.report.table import MISSING, Entry, ResultTable, format_number, tabulate_results

WITH_TRANSFORMERS = """\
from transformers import pipeline

classify = pipeline("text-classification", "FOLDER", top_k=None, truncation=True)
print(classify("best one near me"))
"""
WITH_ONNXRUNTIME = """\
import json
from pathlib import Path

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

tokenizer = Tokenizer.from_file("FOLDER/tokenizer.json")  # cuts and pads as in training
session = onnxruntime.InferenceSession("FOLDER/onnx/model_int8.onnx")
labels = json.loads(Path("FOLDER/config.json").read_text())["id2label"]

encoded = tokenizer.encode_batch(["best one near me", "How much does it cost to repair a bike in Leeds?"])
columns = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}
inputs = {node.name: np.array([getattr(one, columns[node.name]) for one in encoded]) for node in session.get_inputs()}
(logits,) = session.run(["logits"], inputs)
print([labels[str(index)] for index in logits.argmax(axis=1)])
"""
"""How to use the folder: the same lines stand in the project's README."""


@dataclass(frozen=True)
class CardInput:
    """What a card is written from."""

    arm: str
    student: str
    seed: int
    """Of the exported fit."""
    other_seeds: Sequence[int]
    base_model: str
    is_on_hub: bool
    """Whether `base_model` is an id of the model hub."""
    task: str
    labels: Sequence[str]
    data: str
    """Where the rows came from, in words."""
    teacher: str | None
    """Who wrote them; None where nobody was asked."""
    n_rows: int
    n_epochs: int
    settings: Mapping[str, Any]
    """What the student was trained with."""
    entries: Sequence[Entry]
    """Of the exported fit, and of the baselines."""
    engines: Sequence[Mapping[str, Any]]
    """As in `export.json`."""
    judges: Sequence[Mapping[str, Any]]
    """What LLMs took that were asked about the same items, as in their `cost.json`."""
    cpu: str
    threads: int
    export_fingerprint: str
    """Of what was exported, so that a reader finds its step again."""


def write_model_card(card: CardInput) -> str:
    """Return the text of a model card."""
    tables = tabulate_results(card.entries)
    parts = [
        f"# {card.student} trained on {card.arm}",
        _describe(card),
        "## Scores",
        *_show_scores(card, tables),
        "## Speed and memory",
        _show_engines(card),
        "## Use",
        "With transformers:",
        _code(WITH_TRANSFORMERS),
        "With onnxruntime and tokenizers alone, which start faster and take less memory:",
        _code(WITH_ONNXRUNTIME),
        "## Training",
        "\n".join(["| setting | value |", "|---|---|", *(f"| {k} | {v} |" for k, v in card.settings.items())]),
        "## Limits",
        _list_limits(card, tables),
    ]
    return f"---\n{_write_front_matter(card)}---\n\n" + "\n\n".join(parts) + "\n"


def _write_front_matter(card: CardInput) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    results = [
        EvalResult(
            task_type="text-classification",
            dataset_type=_slug(entry["benchmark"]),
            dataset_name=f"{entry['benchmark']} ({entry['setting']})",
            metric_type=_slug(entry["measure"]),
            metric_name=entry["measure"],
            metric_value=round(entry["value"], 4),
        )
        for table in tabulate_results(card.entries)
        for entry in card.entries
        if entry["student"] and entry["measure"] in table.measures
        if (entry["benchmark"], entry["setting"]) == (table.benchmark, table.setting)
    ]
    data = ModelCardData(
        model_name=f"{card.arm}-{card.student}",
        base_model=card.base_model if card.is_on_hub else None,
        library_name="transformers",
        pipeline_tag="text-classification",
        tags=["raystill", "distillation", "synthetic-data", card.task, "onnx"],
        eval_results=results,
    )
    return f"{data.to_yaml()}\n"


def _describe(card: CardInput) -> str:
    teacher = f", written by the teacher {card.teacher}" if card.teacher else ""
    others = f" (the scores of seeds {', '.join(map(str, card.other_seeds))} are not in it)" if card.other_seeds else ""
    return (
        f"A text classifier for the task `{card.task}`: it says {' or '.join(f'`{label}`' for label in card.labels)}. "
        f"Fine-tuned from `{card.base_model}` on {card.n_rows:,} rows of the arm `{card.arm}` ({card.data}{teacher}) "
        f"for {card.n_epochs} epochs.\n\n"
        f"This is the final fit of seed {card.seed}, and all scores below are of this one fit{others}. Exported by "
        f"Raystill from the training step `{card.export_fingerprint}`."
    )


def _show_scores(card: CardInput, tables: Sequence[ResultTable]) -> list[str]:
    parts = ["Each value with its 95 % bootstrap interval over items."]
    for table in tables:
        lines = [f"| | {' | '.join(table.measures)} |", f"|---|{'---:|' * len(table.measures)}"]
        for row in [*table.rows_of("student"), *([table.bar] if table.bar else [])]:
            name = "this model" if row.student else f"best trivial baseline (*{row.arm}*)"
            lines.append(f"| {name} | {' | '.join(table.format_cell(row, measure) for measure in table.measures)} |")
        parts += [f"**{table.title}**", "\n".join(lines)]
    if any(not row.clears for table in tables for row in table.rows_of("student")):
        parts.append("† The interval reaches down to the best trivial baseline: no better than that for sure.")
    return parts


def _show_engines(card: CardInput) -> str:
    lines = [
        f"{card.threads} threads of {card.cpu}; one text at a time, then full batches. Memory is the peak of a process "
        "of its own, Python and libraries included. The largest difference from torch's logits, and decisions that "
        "differ from torch's, are over all items of the benchmarks.",
        "",
        "| | file, MB | one text, p50, ms | p95, ms | rows/s | batch | memory, MB | logits differ by "
        "| decisions differ | macro-F1 differs by |",
        f"|---|{'---:|' * 9}",
    ]
    for engine in card.engines:
        changes = ", ".join(f"{change:+.3f} ({name})" for name, change in engine["macro_f1_change"].items())
        cells = [
            f"{engine['file_mb']:,.1f}",
            f"{engine['latency_p50_ms']:,.1f}",
            f"{engine['latency_p95_ms']:,.1f}",
            f"{engine['throughput_rows_per_s']:,.0f}",
            str(engine["batch_size"]),
            _number(engine["peak_memory_mb"]),
            f"{engine['max_logit_difference']:.1e}",
            f"{100 * engine['changed_decisions']:.1f} %",
            changes,
        ]
        lines.append(f"| {engine['engine']} | {' | '.join(cells)} |")
    for judge in card.judges:
        speed = [_number(judge[name]) for name in ("latency_p50_ms", "latency_p95_ms", "throughput_rows_per_s")]
        name = f"LLM {judge['arm']}, {judge['student']}, on {judge['device']}"
        lines.append(f"| {name} | | {' | '.join(speed)} | | | | | |")
    if card.judges:
        lines += ["", "The LLM was asked about the same items, many at a time, which makes each answer wait longer."]
    elif card.teacher:
        lines += ["", f"The teacher's ({card.teacher}) own latency on these items: not measured."]
    return "\n".join(lines)


def _list_limits(card: CardInput, tables: Sequence[ResultTable]) -> str:
    limits = []
    if card.teacher:
        limits.append(
            f"The training rows are synthetic, written by {card.teacher}. What marks a class in them, such as length, "
            "need not mark it in texts that people write."
        )
    limits += [f"{table.title.replace(' · ', ', ')}: {_judge(table)}" for table in tables]
    limits.append("The benchmarks are small and English; other domains and languages were not measured.")
    limits.append(
        "The 8-bit model decides some texts otherwise (see the table). On processors without 8-bit dot products (VNNI) "
        "it may differ more and be no faster."
    )
    limits.append("The licences of the base model, of the teacher's output and of the data apply; none is stated here.")
    return "\n".join(f"- {limit}" for limit in limits)


def _judge(table: ResultTable) -> str:
    if table.bar is None:
        return "no trivial baseline to compare with."
    measure, (row,) = table.measures[0], table.rows_of("student")
    bar = f"the best trivial baseline ({table.bar.arm}, {format_number(table.bar.cells[measure].value)})"
    return (
        f"by {measure} better than {bar}." if row.clears else f"by {measure} not better than {bar} with any certainty."
    )


def _number(value: float | None) -> str:
    return MISSING if value is None else f"{value:,.0f}" if value >= 100 else f"{value:,.1f}"


def _code(text: str) -> str:
    return f"```python\n{text.replace('FOLDER', '.')}```"


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
