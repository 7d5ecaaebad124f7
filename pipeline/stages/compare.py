"""From evaluations to one comparison: its numbers, costs and teachers' efficiencies as JSON, plots, `report.html`."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from pipeline.evaluation.comparison import COMPARISON, Entry, sort_entries, write_comparison
from pipeline.experiment import ExperimentConfig
from pipeline.identity import digest
from pipeline.records import Example, from_table
from pipeline.report.html import Rankers, ReportInput, read_templates, render_report
from pipeline.report.plots import Confusion, draw_scores, render
from pipeline.report.ranking import lay_out_communities, lay_out_differences, lay_out_weights
from pipeline.report.spending import lay_out_money
from pipeline.report.table import tabulate_results, to_markdown
from pipeline.stages.answers import ANSWERS, correlate_texts
from pipeline.stages.dataset import CARD, EFFICIENCY, EXAMPLES, SAMPLES
from pipeline.stages.evaluate import COST, ENTRIES, PREDICTIONS
from pipeline.stages.rank import COMMUNITIES, DIFFERENCES, RANKED
from pipeline.stages.spending import list_arm_costs, list_spending
from pipeline.steps import Outputs, Step, Steps, versions
from pipeline.storage import Folder
from pipeline.tasks.task import Task

REPORT, RESULTS, SPENDING = "report.html", "results.md", "spending.json"
QUALITY = "nDCG@10"
"""What figures of the arms' texts are correlated with."""
_CODE = (
    "pipeline.report.html",
    "pipeline.report.plots",
    "pipeline.report.table",
    "pipeline.report.ranking",
    "pipeline.report.answers",
    "pipeline.report.spending",
    "pipeline.stages.spending",
    "pipeline.evaluation.comparison",
    "pipeline.evaluation.correlation",
    "pipeline.stages.answers",
)


@dataclass(frozen=True)
class Rankings:
    """What is known besides scores where answers are ranked."""

    differences: Step
    """Between rankers."""
    answers: Step
    """What the arms' answers look like."""


def compare(
    datasets: Mapping[str, Step],
    students: Sequence[Step],
    evaluations: Sequence[Step],
    rankings: Rankings | None,
    experiment: ExperimentConfig,
    task: Task,
    steps: Steps,
) -> Step:
    """Return the step that lays all evaluations of an experiment side by side.

    Args:
        datasets: By arm.
        students: Trained.
        evaluations: Of students, judges and baselines.
        rankings: None where the task labels texts.
        experiment: Its configuration is part of the report.
        task: Says which measures are shown.
        steps: Where the step runs or is found.
    """
    made_of = (*datasets.values(), *evaluations, *([rankings.differences, rankings.answers] if rankings else []))

    def produce(folder: Folder) -> Outputs:
        entries = sort_entries(Entry(**entry) for step in evaluations for entry in step.folder.read_json(ENTRIES))
        costs = [step.folder.read_json(COST) for step in evaluations if step.folder.exists(COST)]
        efficiencies = [
            {"arm": arm, **step.folder.read_json(EFFICIENCY)}
            for arm, step in datasets.items()
            if step.folder.exists(EFFICIENCY)
        ]
        spent = list_spending(datasets, evaluations)
        write_comparison(folder, entries)
        folder.write_json(COST, costs)
        folder.write_json(EFFICIENCY, efficiencies)
        plain = folder.read_json(COMPARISON)
        tables = tabulate_results(plain, task.measures)
        money = lay_out_money(spent, tables, list_arm_costs(datasets))
        folder.write_json(SPENDING, money.tables)
        for table in tables:
            name = f"{table.benchmark}_{table.setting}".lower().replace(" ", "_")
            folder.write_bytes(f"{name}.png", render(draw_scores(table), "png"))
        report = ReportInput(
            experiment=experiment.name,
            entries=plain,
            config=yaml.safe_dump(experiment.model_dump(mode="json"), sort_keys=False, allow_unicode=True),
            versions=versions(),
            steps=[describe_step(step) for step in (*datasets.values(), *students, *evaluations)],
            rankers=_describe_rankers(rankings, entries) if rankings else None,
            costs=costs,
            efficiencies=efficiencies,
            money=money if spent else None,
            confusions=[c for step in evaluations for c in _count_confusions(step, task.labels)],
            cards={arm: step.folder.read_json(CARD) for arm, step in datasets.items()},
            samples={arm: step.folder.read_json(SAMPLES) for arm, step in datasets.items()},
            lengths={arm: count_lengths(step) for arm, step in datasets.items()},
            measures=task.measures,
        )
        folder.write_text(RESULTS, to_markdown(plain, task.measures))
        folder.write_text(REPORT, render_report(report))
        headline = {
            f"{entry.benchmark}/{entry.setting}/{entry.measure}/{entry.arm} {entry.student}": entry.value
            for entry in entries
            if entry.student and entry.measure in task.measures
        }
        return Outputs(counts={"entries": len(entries), "evaluations": len(evaluations)}, metrics=headline)

    return steps.run(
        "comparison",
        produce,
        arm="",
        config={
            "name": experiment.name,
            "labels": task.labels,
            "measures": task.measures,
            "template": digest(read_templates()),
        },
        inputs={f"{step.name} {step.arm}": step.fingerprint for step in made_of},
        code=[*_CODE, __name__],
    )


def _describe_rankers(rankings: Rankings, entries: Sequence[Entry]) -> Rankers:
    differences, measured = rankings.differences.folder, rankings.answers.folder.read_json(ANSWERS)
    ranked = differences.read_json(RANKED)
    return Rankers(
        differences=lay_out_differences(differences.read_json(DIFFERENCES)),
        communities=lay_out_communities(ranked, differences.read_json(COMMUNITIES)),
        weights=lay_out_weights(ranked),
        answers=measured,
        correlations=_correlate_answers(measured["texts"], entries),
    )


def _correlate_answers(texts: Mapping[str, Any], entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """Return how the figures of the arms' texts go with the arms' quality, for each benchmark and student."""
    quality: dict[tuple[str, str], dict[str, float]] = {}
    for entry in entries:
        if entry.student and entry.measure == QUALITY and entry.arm in texts["arms"]:
            quality.setdefault((entry.benchmark, entry.student), {})[entry.arm] = entry.value
    return [
        {"benchmark": benchmark, "student": student, "what": name, **found}
        for (benchmark, student), of_arms in quality.items()
        for name, found in correlate_texts(texts, of_arms).items()
    ]


def describe_step(step: Step) -> dict[str, Any]:
    """Return what a report says of a step."""
    return {
        "name": step.name,
        "arm": step.arm,
        "fingerprint": step.fingerprint,
        "kept": step.kept,
        "duration_s": step.manifest["duration_s"],
        "counts": step.manifest["counts"],
    }


def _count_confusions(step: Step, labels: Sequence[str]) -> list[Confusion]:
    if not labels:
        return []
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


def count_lengths(step: Step) -> dict[str, dict[str, int]]:
    """Return how many rows of a data set have how many words, by label."""
    counts: dict[str, Counter[str]] = {}
    for example in from_table(Example, step.folder.read_table(EXAMPLES)):
        counts.setdefault(example.label, Counter())[str(len(example.text.split()))] += 1
    return {label: dict(by_length) for label, by_length in sorted(counts.items())}
