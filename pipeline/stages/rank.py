"""From scores to measures of a ranking, beside BM25 alone and each student's encoder as it was published.

A student's scores are fused with BM25's, and once more with the interests of asker and author (TAG). Weights are chosen
on a benchmark's validation queries; test queries are measured, and nothing else.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import combinations
from statistics import mean

from pipeline.cluster import Cluster
from pipeline.evaluation.comparison import Entry, to_entries
from pipeline.evaluation.config import EvaluationConfig
from pipeline.evaluation.decisions import STANDARD
from pipeline.evaluation.fusion import Run, Scores, choose_weights, fuse_weighted
from pipeline.evaluation.ranking import estimate_ranking, measure_queries
from pipeline.evaluation.significance import adjust, compare_pairs
from pipeline.experiment import RELEASED, WITH_TAG, ExperimentConfig
from pipeline.records import Query
from pipeline.report.ranking import DifferenceRow, Ranked, name_ranker
from pipeline.stages.candidates import Candidates, find_candidates
from pipeline.stages.dataset import ROWS
from pipeline.stages.evaluate import ENTRIES
from pipeline.stages.inputs import Inputs
from pipeline.stages.score import read_runs, score_released, score_student
from pipeline.steps import Outputs, Step, Steps
from pipeline.storage import Folder
from pipeline.tasks.cqa import CqaConfig

RANKED, DIFFERENCES, COMMUNITIES = "ranked.json", "differences.json", "communities.json"
BM25, DENSE, TAG = "bm25", "dense", "tag"
"""What is fused, by name; the simplest first, which wins where weights are equally good."""
SELECTED_BY = "nDCG@10"
"""What weights are chosen by (SE-PQA, `fuse_optimizer.py`)."""
COMPARED_BY = ("nDCG@10", "P@1")
"""The measures whose differences are tested."""
_CODE = tuple(f"pipeline.evaluation.{name}" for name in ("ranking", "fusion", "interests", "bootstrap"))


def evaluate_rankings(
    datasets: Mapping[str, Step],
    students: Mapping[tuple[str, str], Step],
    experiment: ExperimentConfig,
    inputs: Inputs,
    steps: Steps,
    cluster: Cluster,
) -> list[Step]:
    """Return the steps that judge BM25, each student's encoder as released, and each student.

    Raises:
        SourceError: A benchmark has no documents, or a validation query no answer.
        ConfigError: A value of BM25's grid is out of bounds, or the search's actors don't fit the cluster.
    """
    found = find_candidates(inputs.communities.rankings, experiment, steps, cluster)
    finished = [_judge(BM25, None, "", found, {}, experiment, steps)]
    for key in experiment.students:
        scored = {name: score_released(key, one, experiment, inputs, steps, cluster) for name, one in found.items()}
        finished.append(_judge(RELEASED, key, "", found, scored, experiment, steps))
    for (arm, key), trained in students.items():
        rows = datasets[arm].manifest["digests"][ROWS]
        scored = {
            name: score_student(arm, key, trained, one, experiment, steps, cluster) for name, one in found.items()
        }
        finished.append(_judge(arm, key, rows, found, scored, experiment, steps))
    return finished


def _judge(
    arm: str,
    student: str | None,
    data: str,
    found: Mapping[str, Candidates],
    scored: Mapping[str, Step],
    experiment: ExperimentConfig,
    steps: Steps,
) -> Step:
    """Return the step with the measures of one ranker on every benchmark, without and with TAG."""
    assert isinstance(experiment.task, CqaConfig)
    evaluation, fusion_step = experiment.evaluation, experiment.task.fusion_step

    def produce(folder: Folder) -> Outputs:
        entries: list[Entry] = []
        ranked: list[Ranked] = []
        for benchmark, candidates in found.items():
            runs: Mapping[int, Run | None] = read_runs(scored[benchmark]) if benchmark in scored else {0: None}
            for name, tag in ((arm, None), (f"{arm}{WITH_TAG}", candidates.tag)):
                by_seed, weights = _measure(candidates, runs, tag, fusion_step)
                estimates = estimate_ranking(by_seed, evaluation.n_replicates, evaluation.seed)
                entries += to_entries(
                    estimates, arm=name, student=student, data=data, benchmark=benchmark, setting=STANDARD
                )
                ranked.append(
                    Ranked(
                        arm=name,
                        student=student,
                        benchmark=benchmark,
                        first_stage=dict(candidates.first_stage),
                        weights=weights,
                        values=_average(by_seed),
                    )
                )
        folder.write_json(ENTRIES, [asdict(entry) for entry in entries])
        folder.write_json(RANKED, ranked)
        metrics = {
            f"{one.benchmark}/{one.setting}/{one.measure}{one.arm.removeprefix(arm)}": one.value for one in entries
        }
        n_queries = sum(len(candidates.select("test")) for candidates in found.values())
        return Outputs(counts={"queries": n_queries}, metrics=metrics)

    return steps.run(
        "evaluation",
        produce,
        arm=f"{arm}/{student}" if student else arm,
        config={
            "arm": arm,  # a name for tables, yet part of the files that the step writes
            "student": student,
            "fusion_step": fusion_step,
            "bootstrap": {"replicates": evaluation.n_replicates, "seed": evaluation.seed},
        },
        inputs={
            **{f"candidates {name}": one.fingerprint for name, one in found.items()},
            **{f"ranking {name}": one.ranking.digest for name, one in found.items()},
            **{f"scores {name}": step.fingerprint for name, step in scored.items()},
        },
        code=[*_CODE, __name__],
    )


def _measure(
    found: Candidates, dense: Mapping[int, Run | None], tag: Run | None, fusion_step: float
) -> tuple[list[dict[str, dict[str, float]]], list[dict[str, float]]]:
    """Return the values of the test queries, and the weights that validation queries chose, for each seed."""
    by_seed, weights = [], []
    validation, test = found.select("validation"), found.select("test")
    for run in dense.values():
        runs = {BM25: found.bm25, DENSE: run, TAG: tag}
        present = {name: one for name, one in runs.items() if one is not None}
        chosen = choose_weights(
            {name: _restrict(one, validation) for name, one in present.items()},
            fusion_step,
            lambda fused: mean(measure_queries(fused, validation)[SELECTED_BY].values()),
        )
        fused = fuse_weighted({name: _restrict(one, test) for name, one in present.items()}, chosen)
        by_seed.append(measure_queries(fused, test))
        weights.append(chosen)
    return by_seed, weights


def _restrict(run: Run, queries: Sequence[Query]) -> dict[str, Scores]:
    return {query.query_id: run[query.query_id] for query in queries if query.query_id in run}


def _average(by_seed: Sequence[Mapping[str, Mapping[str, float]]]) -> dict[str, dict[str, float]]:
    """Return each query's mean over seeds, by measure."""
    return {
        measure: {query: mean(values[measure][query] for values in by_seed) for query in of_queries}
        for measure, of_queries in by_seed[0].items()
    }


def measure_differences(
    evaluations: Sequence[Step], experiment: ExperimentConfig, inputs: Inputs, steps: Steps
) -> Step:
    """Return the step with the difference between any two rankers on each benchmark, and with what tells them apart."""
    assert isinstance(experiment.task, CqaConfig)
    n_permutations, evaluation = experiment.task.n_permutations, experiment.evaluation

    def produce(folder: Folder) -> Outputs:
        ranked: list[Ranked] = [one for step in evaluations for one in step.folder.read_json(RANKED)]
        rows = [
            row
            for benchmark in inputs.communities.rankings
            for measure in COMPARED_BY
            for row in _compare(
                [one for one in ranked if one["benchmark"] == benchmark], measure, n_permutations, evaluation
            )
        ]
        communities = {
            query.query_id: query.community
            for ranking in inputs.communities.rankings.values()
            for query in ranking.queries
        }
        folder.write_json(DIFFERENCES, rows)
        folder.write_json(RANKED, ranked)
        folder.write_json(COMMUNITIES, communities)
        return Outputs(counts={"rankers": len(ranked), "differences": len(rows)})

    return steps.run(
        "differences",
        produce,
        arm="",
        config={
            "permutations": n_permutations,
            "bootstrap": {"replicates": evaluation.n_replicates, "seed": evaluation.seed},
        },
        inputs={step.arm: step.fingerprint for step in evaluations},
        code=("pipeline.evaluation.significance", "pipeline.evaluation.bootstrap", __name__),
    )


def _compare(
    ranked: Sequence[Ranked], measure: str, n_permutations: int, evaluation: EvaluationConfig
) -> list[DifferenceRow]:
    """Return the differences between all pairs of rankers of one benchmark, corrected for their number."""
    pairs = list(combinations(ranked, 2))
    found = [
        compare_pairs(
            first["values"][measure],
            second["values"][measure],
            n_permutations,
            evaluation.n_replicates,
            evaluation.seed,
        )
        for second, first in pairs  # the later one is the less trivial
    ]
    corrected = adjust([one.p for one in found])
    return [
        DifferenceRow(
            benchmark=first["benchmark"],
            measure=measure,
            first=name_ranker(first),
            second=name_ranker(second),
            value=one.value,
            low=one.low,
            high=one.high,
            p=one.p,
            p_holm=p_holm,
            n=len(first["values"][measure]),
        )
        for (second, first), one, p_holm in zip(pairs, found, corrected, strict=True)
    ]
