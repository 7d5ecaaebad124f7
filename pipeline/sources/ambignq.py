"""AmbigNQ, light version (Min et al., EMNLP 2020): questions with one to three annotators' readings.

Its test set is hidden, so the 2,002 dev questions are what everybody reports on; the train questions become the
human-labelled arm.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from pipeline.errors import SourceError
from pipeline.records import Example, GoldItem
from pipeline.sources.downloads import SourceFile, check_files
from pipeline.sources.tables import Location, locate, read_content

Rule = Literal["any", "majority", "all"]
"""How many annotators must have seen several readings (`multipleQAs`) for a question to count as ambiguous: one or
more, more than half, or every one. On dev, the last two give the same labels."""

_URL = "https://nlp.cs.washington.edu/ambigqa/data/ambignq_light.zip"
DEV = SourceFile(
    "ambignq/dev_light.json", "6e8b69a556843bac9836444ab247adceda5168e5118aec3afefe93936533a493", _URL, "dev_light.json"
)
TRAIN = SourceFile(
    "ambignq/train_light.json",
    "c9c34bea8d41cc97bf66e9161fa5fcc771eff91bb7e031894ece3ea7964da1b0",
    _URL,
    "train_light.json",
)


class _Annotation(BaseModel):
    type: Literal["singleAnswer", "multipleQAs"]


class _Question(BaseModel):
    id: str = Field(min_length=1)
    question: str = Field(min_length=1)
    annotations: list[_Annotation] = Field(min_length=1)


_QUESTIONS = TypeAdapter(Annotated[list[_Question], Field(min_length=1)])


def read_ambignq_dev(root: Location, rule: Rule) -> list[GoldItem]:
    """Return the dev questions as items of split `dev`.

    Raises:
        SourceError: The file is missing or broken; the message names the line or the item.
    """
    return [
        GoldItem(item.id, item.question, _label(item, rule), "dev") for item in _read_questions(locate(root, DEV.path))
    ]


def read_ambignq_train(root: Location, rule: Rule) -> list[Example]:
    """Return the train questions as examples, each a group of its own.

    Raises:
        SourceError: The file is missing (says what to put where), broken, or not the official one.
    """
    check_files([TRAIN], root)
    questions = _read_questions(locate(root, TRAIN.path))
    return [Example(item.id, "", item.id, item.question, _label(item, rule)) for item in questions]


def _read_questions(location: str) -> list[_Question]:
    try:
        return _QUESTIONS.validate_json(read_content(location))
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        item = f", item {int(problem['loc'][0]) + 1}" if problem["loc"] else ""
        field = ".".join(str(part) for part in problem["loc"][1:])
        raise SourceError(f"{location}{item}: {field or 'not AmbigNQ'}: {problem['msg']}") from None


def _label(item: _Question, rule: Rule) -> str:
    n_several = sum(annotation.type == "multipleQAs" for annotation in item.annotations)
    is_ambiguous = {
        "any": n_several > 0,
        "majority": 2 * n_several > len(item.annotations),
        "all": n_several == len(item.annotations),
    }[rule]
    return "ambiguous" if is_ambiguous else "clear"
