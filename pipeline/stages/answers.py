"""What the answers of several arms to the same questions look like, without any label.

Beside each other, beside their questions, and held against the passages that they were to rest on.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from statistics import mean
from typing import Any

from pipeline.encoder import Encoder
from pipeline.errors import NotMeasuredError, SourceError
from pipeline.evaluation.annotation import Answer
from pipeline.evaluation.correlation import correlate
from pipeline.experiment import ExperimentConfig
from pipeline.quality.answers import compare_texts
from pipeline.quality.copying import PASSAGE
from pipeline.quality.support import SupportConfig, measure_support
from pipeline.records import Example, from_table
from pipeline.stages.dataset import EXAMPLES, ROWS
from pipeline.steps import Outputs, Step, Steps
from pipeline.storage import Folder
from pipeline.tasks.cqa import COMMUNITY, QUERY, QUESTION_ID, CqaConfig

ANSWERS = "answers.json"


def measure_answers(datasets: Mapping[str, Step], experiment: ExperimentConfig, steps: Steps) -> Step:
    """Return the step with what the arms' answers look like."""
    assert isinstance(experiment.task, CqaConfig)
    support = SupportConfig(recall=experiment.task.support_recall, cosine=1.0)  # of which no encoder makes use here

    def produce(folder: Folder) -> Outputs:
        rows = {
            arm: list(from_table(Example, step.folder.read_table(EXAMPLES))) for arm, step in sorted(datasets.items())
        }
        measured = describe_answers(rows, support)
        folder.write_json(ANSWERS, measured)
        texts = measured["texts"]
        return Outputs(counts={"questions": texts["n"], "arms": len(texts["arms"]), "left out": texts["n_left_out"]})

    return steps.run(
        "answers",
        produce,
        arm="",
        config={"support": support},
        inputs={arm: step.manifest["digests"][ROWS] for arm, step in datasets.items()},
        code=[
            *(f"pipeline.quality.{name}" for name in ("answers", "overlap", "self_bleu", "support", "tokens")),
            __name__,
        ],
    )


def describe_answers(
    rows: Mapping[str, Sequence[Example]], support: SupportConfig, encoder: Encoder | None = None
) -> dict[str, Any]:
    """Return what answers share with each other and with their questions (`texts`), and what passages support of them.

    Args:
        rows: By arm.
        support: When a claim counts as supported.
        encoder: Of the cosine of claims and passages; None leaves it out.

    Raises:
        SourceError: A row is no answer to a question, or two arms ask different questions under one id.
    """
    answers = {arm: collect_answers(arm, of_arm) for arm, of_arm in rows.items()}
    questions = _collect_questions(answers)
    try:
        texts = asdict(
            compare_texts(
                {arm: {name: one.text for name, one in found.items()} for arm, found in answers.items()}, questions
            )
        )
    except NotMeasuredError as error:
        texts = {"n": 0, "n_left_out": len(questions), "arms": {}, "pairs": [], "note": str(error)}
    return {"texts": texts, "support": _measure_support(rows, support, encoder)}


def collect_answers(arm: str, rows: Sequence[Example]) -> dict[str, Answer]:
    """Return an arm's answers by question id, the first by row id where it gives several.

    Raises:
        SourceError: A row is no answer to a question.
    """
    found: dict[str, Answer] = {}
    for row in sorted(rows, key=lambda row: row.row_id):
        if missing := [name for name in (QUERY, QUESTION_ID, COMMUNITY) if name not in row.extras]:
            raise SourceError(
                f"arms.{arm}: row {row.row_id} has no {', '.join(missing)}; give a data set of answers to questions"
            )
        question_id = row.extras[QUESTION_ID]
        found.setdefault(question_id, Answer(question_id, row.extras[COMMUNITY], row.extras[QUERY], row.text))
    return found


def split_passages(row: Example) -> list[str]:
    """Return the passages that an answer was to rest on: a row keeps them as one text, with empty lines between."""
    return row.extras[PASSAGE].split("\n\n") if row.extras.get(PASSAGE) else []


def correlate_texts(texts: Mapping[str, Any], quality: Mapping[str, float]) -> dict[str, dict[str, Any]]:
    """Return the correlation of each figure of the arms' texts with the arms' quality as training data.

    Args:
        texts: Of `describe_answers`.
        quality: By arm.
    """
    figures = {
        name.replace("_", " "): {arm: float(one[name]) for arm, one in texts["arms"].items()}
        for name in ("overlap", "overlap_at_equal_length", "mean_words", "max_words")
    }
    figures["Self-BLEU"] = {arm: one["self_bleu"] for arm, one in texts["arms"].items() if one["self_bleu"] is not None}
    for name, title in (("bleu", "BLEU"), ("chrf", "chrF")):
        figures[f"mean {title} with the other arms"] = {
            arm: mean(pair[name] for pair in texts["pairs"] if arm in (pair["first"], pair["second"]))
            for arm in texts["arms"]
            if len(texts["arms"]) > 1
        }
    return {name: asdict(correlate(of_arms, quality)) for name, of_arms in figures.items()}


def _collect_questions(answers: Mapping[str, Mapping[str, Answer]]) -> dict[str, str]:
    questions: dict[str, str] = {}
    for arm, of_arm in answers.items():
        for question_id, answer in of_arm.items():
            if questions.setdefault(question_id, answer.question) != answer.question:
                raise SourceError(
                    f"arms.{arm}: question {question_id} reads otherwise than in another arm; give arms of one set of "
                    "questions"
                )
    return questions


def _measure_support(
    rows: Mapping[str, Sequence[Example]], config: SupportConfig, encoder: Encoder | None
) -> dict[str, dict[str, Any]]:
    """Return what passages support by arm, and whose passages (`passages_of`); nothing where no arm has any.

    An arm that was shown none is held against those that the first arm with some had for the same questions.
    """
    passages = {
        arm: {row.extras[QUESTION_ID]: found for row in of_arm if (found := split_passages(row))}
        for arm, of_arm in rows.items()
    }
    if (lender := next((arm for arm, found in passages.items() if found), None)) is None:
        return {}
    measured = {}
    for arm, of_arm in rows.items():
        owner = arm if passages[arm] else lender
        support = measure_support(
            {row.row_id: row.text for row in of_arm},
            {row.row_id: passages[owner].get(row.extras[QUESTION_ID], []) for row in of_arm},
            config,
            encoder,
        )
        measured[arm] = {"passages_of": owner, **asdict(support)}
    return measured
