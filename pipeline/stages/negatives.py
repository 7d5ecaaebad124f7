"""From a data set of questions and answers to one with hard negatives: answers to other questions that BM25 finds."""

import json
from dataclasses import replace

from pipeline.cluster import Cluster
from pipeline.experiment import ExperimentConfig
from pipeline.records import Example, from_table, to_table
from pipeline.stages.collection import collect
from pipeline.stages.dataset import EXAMPLES, ROWS, digest_examples
from pipeline.stages.index import build_index
from pipeline.stages.inputs import Inputs
from pipeline.stages.retrieve import read_retrieved, retrieve
from pipeline.steps import Outputs, Step, Steps
from pipeline.storage import Folder
from pipeline.students.config import RerankerConfig
from pipeline.students.reranker import HARD_NEGATIVES
from pipeline.tasks.cqa import OWN_ANSWERS, QUERY, QUESTION_ID, SPARE_PASSAGES, CqaConfig


def add_negatives(
    arm: str,
    student: str,
    dataset: Step,
    experiment: ExperimentConfig,
    inputs: Inputs,
    steps: Steps,
    cluster: Cluster,
) -> Step:
    """Return a data set whose rows have as many hard negatives as a student wants; the same one where it wants none.

    They are the best by BM25 among the answers from before the first validation question, without those that answer
    the question itself. A row for which too few are found is told by the training.
    """
    config, task = experiment.students[student], experiment.task
    if not isinstance(config, RerankerConfig) or not config.hard_negatives or not isinstance(task, CqaConfig):
        return dataset
    n, scale = config.hard_negatives, experiment.scale
    examples = list(from_table(Example, dataset.folder.read_table(EXAMPLES)))
    corpus = collect(inputs.communities.grounding, steps, cluster)
    index = build_index(task.first_stage.bm25, corpus, scale.indexing, experiment.seed, steps, cluster)
    queries = {example.extras[QUESTION_ID]: example.extras[QUERY] for example in examples}
    found = retrieve(queries, index, n + SPARE_PASSAGES, scale.search, steps, cluster, f"negatives {arm}")

    def produce(folder: Folder) -> Outputs:
        passages = read_retrieved(found)
        rows = []
        for example in examples:
            own = {*example.extras[OWN_ANSWERS].split()}
            texts = [
                passage.text
                for passage in passages[example.extras[QUESTION_ID]]
                if passage.passage_id not in own and passage.text != example.text
            ]
            rows.append(replace(example, extras={**example.extras, HARD_NEGATIVES: json.dumps(texts[:n])}))
        folder.write_table(EXAMPLES, to_table(Example, rows))
        return Outputs(counts={"rows": len(rows)}, digests={ROWS: digest_examples(rows)})

    return steps.run(
        "negatives",
        produce,
        arm=f"{arm}/{student}",
        config={"n": n},
        inputs={ROWS: dataset.manifest["digests"][ROWS], "retrieved": found.fingerprint},
        code=(__name__,),
    )
