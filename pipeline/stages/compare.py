"""From evaluations to one comparison: its numbers, costs and teachers' efficiencies as JSON, plots, `report.html`."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from pipeline.evaluation.comparison import COMPARISON, Entry, sort_entries, write_comparison
from pipeline.experiment import ExperimentConfig
from pipeline.identity import digest
from pipeline.records import Example, from_table
from pipeline.report.html import ReportInput, read_template, render_report
from pipeline.report.plots import Confusion, draw_scores, render
from pipeline.report.table import HEADLINE, tabulate_results, to_markdown
from pipeline.stages.evaluate import COST, ENTRIES, PREDICTIONS
from pipeline.stages.generate import CARD, EFFICIENCY, EXAMPLES, SAMPLES
from pipeline.steps import Outputs, Step, Steps, versions
from pipeline.storage import Folder

REPORT, RESULTS = "report.html", "results.md"
_CODE = ("pipeline.report.html", "pipeline.report.plots", "pipeline.report.table", "pipeline.evaluation.comparison")


def compare(
    datasets: Mapping[str, Step],
    students: Sequence[Step],
    evaluations: Sequence[Step],
    experiment: ExperimentConfig,
    labels: Sequence[str],
    steps: Steps,
) -> Step:
    """Return the step that lays all evaluations of an experiment side by side."""

    def produce(folder: Folder) -> Outputs:
        entries = sort_entries(Entry(**entry) for step in evaluations for entry in step.folder.read_json(ENTRIES))
        costs = [step.folder.read_json(COST) for step in evaluations if step.folder.exists(COST)]
        efficiencies = [
            {"arm": arm, **step.folder.read_json(EFFICIENCY)}
            for arm, step in datasets.items()
            if step.folder.exists(EFFICIENCY)
        ]
        write_comparison(folder, entries)
        folder.write_json(COST, costs)
        folder.write_json(EFFICIENCY, efficiencies)
        plain = folder.read_json(COMPARISON)
        for table in tabulate_results(plain):
            name = f"{table.benchmark}_{table.setting}".lower().replace(" ", "_")
            folder.write_bytes(f"{name}.png", render(draw_scores(table), "png"))
        report = ReportInput(
            experiment=experiment.name,
            entries=plain,
            config=yaml.safe_dump(experiment.model_dump(mode="json"), sort_keys=False, allow_unicode=True),
            versions=versions(),
            steps=[_describe_step(step) for step in (*datasets.values(), *students, *evaluations)],
            costs=costs,
            efficiencies=efficiencies,
            confusions=[c for step in evaluations for c in _count_confusions(step, labels)],
            cards={arm: step.folder.read_json(CARD) for arm, step in datasets.items()},
            samples={arm: step.folder.read_json(SAMPLES) for arm, step in datasets.items()},
            lengths={arm: _count_lengths(step) for arm, step in datasets.items()},
        )
        folder.write_text(RESULTS, to_markdown(plain))
        folder.write_text(REPORT, render_report(report))
        headline = {
            f"{entry.benchmark}/{entry.setting}/{entry.measure}/{entry.arm} {entry.student}": entry.value
            for entry in entries
            if entry.student and entry.measure in HEADLINE
        }
        return Outputs(counts={"entries": len(entries), "evaluations": len(evaluations)}, metrics=headline)

    return steps.run(
        "comparison",
        produce,
        arm="",
        config={"name": experiment.name, "labels": labels, "template": digest(read_template())},
        inputs={f"{step.name} {step.arm}": step.fingerprint for step in (*datasets.values(), *evaluations)},
        code=[*_CODE, __name__],
    )


def _describe_step(step: Step) -> dict[str, Any]:
    return {
        "name": step.name,
        "arm": step.arm,
        "fingerprint": step.fingerprint,
        "kept": step.kept,
        "duration_s": step.manifest["duration_s"],
        "counts": step.manifest["counts"],
    }


def _count_confusions(step: Step, labels: Sequence[str]) -> list[Confusion]:
    table = step.folder.read_table(PREDICTIONS)
    arm, _, student = step.arm.partition("/")
    rows = table.select(["benchmark", "setting", "label", "predicted", "seed"]).to_pylist()
    seeds: dict[tuple[str, str], set[int]] = {}
    for row in rows:
        seeds.setdefault((row["benchmark"], row["setting"]), set()).add(row["seed"])
    counts = Counter((row["benchmark"], row["setting"], row["label"], row["predicted"]) for row in rows)
    return [
        Confusion(
            arm=arm,
            student=student or None,
            benchmark=benchmark,
            setting=setting,
            labels=list(labels),
            counts=[[counts[benchmark, setting, gold, said] for said in labels] for gold in labels],
            n_seeds=len(of),
        )
        for (benchmark, setting), of in seeds.items()
    ]


def _count_lengths(step: Step) -> dict[str, dict[str, int]]:
    counts: dict[str, Counter[str]] = {}
    for example in from_table(Example, step.folder.read_table(EXAMPLES)):
        counts.setdefault(example.label, Counter())[str(len(example.text.split()))] += 1
    return {label: dict(by_length) for label, by_length in sorted(counts.items())}
