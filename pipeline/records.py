"""The records that flow from seeds to rows, one frozen dataclass and one Arrow schema each.

The schemas are explicit because Ray moves Arrow blocks: a block that loses all its rows otherwise turns the
data set's schema into nulls, and a column without values changes its type between blocks.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal, TypeVar

import pyarrow as pa
from pydantic import TypeAdapter

from pipeline.columns import read_records, write_column

R = TypeVar("R")


class Outcome(StrEnum):
    """What became of one attempt at a request.

    The first group are answers: the same (request, attempt) is never asked again. A teacher reports `ok`,
    `truncated`, `refused`, `timeout` and `error`; parsing turns an `ok` into `invalid_json` or
    `schema_mismatch` where the text deserves it.
    """

    OK = "ok"
    INVALID_JSON = "invalid_json"
    SCHEMA_MISMATCH = "schema_mismatch"
    TRUNCATED = "truncated"
    REFUSED = "refused"
    TIMEOUT = "timeout"
    ERROR = "error"

    @property
    def is_answer(self) -> bool:
        """Whether the teacher answered, well or badly."""
        return self not in (Outcome.TIMEOUT, Outcome.ERROR)

    @property
    def is_worth_another_attempt(self) -> bool:
        """Whether the same request under another seed may do better."""
        return self in (Outcome.INVALID_JSON, Outcome.SCHEMA_MISMATCH, Outcome.TRUNCATED)


@dataclass(frozen=True, slots=True)
class Seed:
    """What one or more requests start from: a topic, a labelled example, a question."""

    seed_id: str
    text: str
    group: str
    """Rows of one group never stand on both sides of a fold."""
    label: str = ""
    extras: dict[str, str] = field(default_factory=dict)
    """What else a prompt may say of it, such as a question's title and its asker's interests."""


@dataclass(frozen=True, slots=True)
class Document:
    """One text of a corpus, as it is indexed, retrieved and shown to a teacher."""

    document_id: str
    text: str
    source: str
    """File and line that it came from."""
    extras: dict[str, str] = field(default_factory=dict)
    """What else the source says of it, such as a title, a category or a date."""


@dataclass(frozen=True, slots=True)
class Passage:
    """A retrieved document; `rank` starts at 1."""

    passage_id: str
    text: str
    score: float
    rank: int


@dataclass(frozen=True, slots=True)
class Message:
    """One chat turn."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Request:
    """One question to a teacher. `request_id` is made of all that can change the answer."""

    request_id: str
    seed: Seed
    passages: tuple[Passage, ...]
    messages: tuple[Message, ...]
    response_schema: str
    """JSON schema as JSON text: Arrow would add the keys of other rows to a nested dict. Empty: free text."""
    max_new_tokens: int
    temperature: float
    top_p: float
    row_seed: int
    choices: tuple[str, ...] = ()
    """The only replies that are wanted, with their log-probabilities where the engine gives them. Empty: any reply."""
    stop: tuple[str, ...] = ()
    """A reply ends before the first of these."""


@dataclass(frozen=True, slots=True)
class Completion:
    """What a teacher gave for one attempt at a request; the unit of the ledger."""

    request_id: str
    attempt: int
    outcome: Outcome
    text: str
    finish_reason: str
    n_prompt_tokens: int
    n_completion_tokens: int
    started_at: float
    """Unix time in seconds."""
    latency_s: float
    error: str = ""
    n_cached_tokens: int = 0
    """Prompt tokens that the engine had in its prefix cache."""
    choice_logprobs: dict[str, float] = field(default_factory=dict)
    """Natural log-probability of each of the request's choices; empty where the engine gave none."""
    price_factor: float = 1.0
    """What its tokens cost, as a share of the teacher's price: below 1 for an answer that came by a batch."""


@dataclass(frozen=True, slots=True)
class Example:
    """One labelled row. `extras` holds the task's own columns, all of them text."""

    row_id: str
    request_id: str
    group: str
    text: str
    label: str
    extras: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Reject:
    """Something that did not become an example, with the reason and all that was known of it."""

    row_id: str
    request_id: str
    group: str
    stage: str
    reason: str
    text: str
    label: str
    detail: str = ""
    """What it collided with, or what the parser missed."""


@dataclass(frozen=True, slots=True)
class GoldItem:
    """One item of a benchmark. `split` is the benchmark's own (train, dev, test)."""

    item_id: str
    text: str
    label: str
    split: str


@dataclass(frozen=True, slots=True)
class Query:
    """One question of a ranking benchmark, and what answers it."""

    query_id: str
    text: str
    community: str
    """What results are also broken down by."""
    split: Literal["validation", "test"]
    relevant: dict[str, float]
    """The grade of each candidate that answers it, above 0, by the candidate's id."""
    interests: tuple[str, ...]
    """Tags of the asker's questions up to and including this one."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One answer that a ranking benchmark's queries are to find or to leave."""

    document_id: str
    text: str
    expertise: tuple[str, ...]
    """Tags of the questions that its author had answered before the question that this one answers was asked."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """What one student or baseline said of one benchmark item.

    `score` ranks the items, higher meaning more of the positive label; `predicted` is the decision.
    """

    benchmark: str
    setting: str
    item_id: str
    text: str
    label: str
    predicted: str
    score: float
    seed: int


@dataclass(frozen=True, slots=True)
class EpochPrediction:
    """What a classifier in training said of one of its own rows after an epoch, which counts from 1."""

    row_id: str
    epoch: int
    probability: float
    """Of the row's own label."""
    is_correct: bool
    """Whether that label was the likeliest."""


@dataclass(frozen=True, slots=True)
class RowDynamics:
    """How a classifier learned one of its rows, over all epochs (Swayamdipta et al., 2020, arXiv 2009.10795)."""

    row_id: str
    label: str
    confidence: float
    """Mean probability of the row's label."""
    variability: float
    """Population standard deviation of that probability."""
    correctness: float
    """Share of the epochs after which the label was predicted."""


_STRING, _FLOAT, _INT, _BOOL = pa.string(), pa.float64(), pa.int64(), pa.bool_()
_EXTRAS = pa.map_(_STRING, _STRING)
_SEED = pa.struct(
    [("seed_id", _STRING), ("text", _STRING), ("group", _STRING), ("label", _STRING), ("extras", _EXTRAS)]
)
_PASSAGE = pa.struct([("passage_id", _STRING), ("text", _STRING), ("score", _FLOAT), ("rank", _INT)])
_MESSAGE = pa.struct([("role", _STRING), ("content", _STRING)])

SCHEMAS: dict[type, pa.Schema] = {
    Seed: pa.schema(list(_SEED)),
    Document: pa.schema([("document_id", _STRING), ("text", _STRING), ("source", _STRING), ("extras", _EXTRAS)]),
    Request: pa.schema(
        [
            ("request_id", _STRING),
            ("seed", _SEED),
            ("passages", pa.list_(_PASSAGE)),
            ("messages", pa.list_(_MESSAGE)),
            ("response_schema", _STRING),
            ("max_new_tokens", _INT),
            ("temperature", _FLOAT),
            ("top_p", _FLOAT),
            ("row_seed", _INT),
            ("choices", pa.list_(_STRING)),
            ("stop", pa.list_(_STRING)),
        ]
    ),
    Completion: pa.schema(
        [
            ("request_id", _STRING),
            ("attempt", _INT),
            ("outcome", _STRING),
            ("text", _STRING),
            ("finish_reason", _STRING),
            ("n_prompt_tokens", _INT),
            ("n_completion_tokens", _INT),
            ("started_at", _FLOAT),
            ("latency_s", _FLOAT),
            ("error", _STRING),
            ("n_cached_tokens", _INT),
            ("choice_logprobs", pa.map_(_STRING, _FLOAT)),
            ("price_factor", _FLOAT),
        ]
    ),
    Example: pa.schema(
        [
            ("row_id", _STRING),
            ("request_id", _STRING),
            ("group", _STRING),
            ("text", _STRING),
            ("label", _STRING),
            ("extras", _EXTRAS),
        ]
    ),
    Reject: pa.schema(
        [(name, _STRING) for name in ("row_id", "request_id", "group", "stage", "reason", "text", "label", "detail")]
    ),
    Query: pa.schema(
        [
            ("query_id", _STRING),
            ("text", _STRING),
            ("community", _STRING),
            ("split", _STRING),
            ("relevant", pa.map_(_STRING, _FLOAT)),
            ("interests", pa.list_(_STRING)),
        ]
    ),
    Candidate: pa.schema([("document_id", _STRING), ("text", _STRING), ("expertise", pa.list_(_STRING))]),
    Prediction: pa.schema(
        [
            ("benchmark", _STRING),
            ("setting", _STRING),
            ("item_id", _STRING),
            ("text", _STRING),
            ("label", _STRING),
            ("predicted", _STRING),
            ("score", _FLOAT),
            ("seed", _INT),
        ]
    ),
    EpochPrediction: pa.schema([("row_id", _STRING), ("epoch", _INT), ("probability", _FLOAT), ("is_correct", _BOOL)]),
    RowDynamics: pa.schema(
        [
            ("row_id", _STRING),
            ("label", _STRING),
            ("confidence", _FLOAT),
            ("variability", _FLOAT),
            ("correctness", _FLOAT),
        ]
    ),
}


def to_table(kind: type, records: Iterable[Any]) -> pa.Table:
    """Return records of one kind as an Arrow table with that kind's schema, also when there are none."""
    found = list(records)
    columns = [write_column(field.type, [getattr(record, field.name) for record in found]) for field in SCHEMAS[kind]]
    return pa.Table.from_arrays(columns, schema=SCHEMAS[kind])


def from_table(kind: type[R], table: pa.Table) -> Iterator[R]:
    """Yield the rows of a table as records.

    Raises:
        pydantic.ValidationError: A column is missing or has another type; the table was not written by
            `to_table`.
    """
    if table.schema.equals(SCHEMAS[kind]):
        for batch in table.to_batches():
            yield from read_records(kind, batch.to_struct_array())
        return
    adapter: TypeAdapter[R] = TypeAdapter(kind)
    for row in table.to_pylist(maps_as_pydicts="strict"):
        yield adapter.validate_python(row)
