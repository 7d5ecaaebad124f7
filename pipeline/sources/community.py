"""Communities that ask and answer: what students are judged on, what they learn from, and what grounds an answer.

After SE-PQA (Kasela et al., 2024, arXiv 2306.16261; `combine_data.py`, `create_best_answer_data.py` of its code) and
Sy-SE-PQA (arXiv 2410.22182). Whatever tells of somebody's past ends before the moment that it is used for.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from pipeline.config import Config
from pipeline.identity import digest
from pipeline.records import Candidate, Document, Query
from pipeline.sources.community_posts import AnyPostsConfig


class SiteConfig(Config):
    """What is particular to one site."""

    accepted: Literal["accepted", "best_score"]
    """Which answer counts as the accepted one. `best_score`, for sites that don't say: of two answers or more that with
    the most votes, if it has any; of equal ones the earlier."""
    max_test: int | None = Field(gt=0)
    """Test queries, drawn by seed; null: all."""


class DatesConfig(Config):
    """Splits by when a question was asked."""

    kind: Literal["dates"]
    validation_from: str
    """ISO 8601, as 2019-12-31T23:59:59. Questions asked before are for training."""
    test_from: str

    @field_validator("validation_from", "test_from")
    @classmethod
    def _read_date(cls, text: str) -> str:
        date = datetime.fromisoformat(text)  # dates of posts are compared with it as texts
        if date.tzinfo is not None:
            raise ValueError("posts have dates without a time zone; leave it out")
        return date.isoformat()

    @model_validator(mode="after")
    def _check_order(self) -> "DatesConfig":
        if self.validation_from >= self.test_from:
            raise ValueError(f"validation_from {self.validation_from} must lie before test_from {self.test_from}")
        return self


class SharesConfig(Config):
    """Splits of each site by shares of those of its questions that can be judged, in the order of time."""

    kind: Literal["shares"]
    test: float = Field(gt=0, lt=1)
    """Of all, the last."""
    validation: float = Field(gt=0, lt=1)
    """Of the others, the last."""


class CommunitiesConfig(Config):
    """Communities, and the rules by which their posts are used."""

    posts: AnyPostsConfig
    """Questions and answers; all of them, whatever their votes."""
    setting: Literal["personalized", "base"]
    """`personalized`: only the accepted answer is relevant, and only askers with a past are judged. `base`: all answers
    voted zero or above are, the accepted one more so."""
    min_earlier_questions: int = Field(ge=0)
    """That an asker must have had, on any site, for a question to be judged; in the setting `base` it is 0."""
    min_earlier_questions_training: int = Field(ge=0)
    """The same for a question to be trained on; `retrieval_files` say themselves which these are."""
    site: SiteConfig
    """Of the sites that `sites` doesn't name."""
    sites: dict[str, SiteConfig]
    split: Annotated[DatesConfig | SharesConfig, Field(discriminator="kind")]
    retrieval_files: str | None
    """Folder with SE-PQA's `answer_retrieval`, which then says what is asked, what is relevant and what BM25 found,
    in place of the rules here; posts still say what users had asked and answered before. Null: there is none."""
    pooled: str | None
    """Name of the one benchmark of all sites; null: a benchmark for each site, by its name."""
    query_tokens: int = Field(gt=0)
    """White-space tokens of title and body that make a query."""
    top_interests: int = Field(gt=0)
    """Of an asker's tags that a prompt names."""
    max_training: int | None = Field(gt=0)
    """Training questions, drawn by seed from all sites; null: all."""
    seed: int

    @model_validator(mode="after")
    def _check_setting(self) -> "CommunitiesConfig":
        if self.posts.posts != "all" or self.posts.min_score is not None:
            raise ValueError("posts: all of them are needed; set posts.posts to all and posts.min_score to null")
        if self.retrieval_files is not None and (self.pooled is None or not isinstance(self.split, DatesConfig)):
            raise ValueError("retrieval_files are one benchmark with splits by dates; name it by `pooled`")
        if self.setting == "base" and self.min_earlier_questions:
            raise ValueError("min_earlier_questions: the setting base asks for no past; set it to 0")
        return self


@dataclass(frozen=True)
class Ranking:
    """A benchmark whose queries are to find the answers that people accepted."""

    name: str
    queries: tuple[Query, ...]
    candidates: tuple[Candidate, ...]
    """All answers, of all periods."""
    first_stage: Mapping[str, Mapping[str, float]] | None = None
    """What the benchmark itself found for each query, with scores; None: that is to be searched for."""

    def find_test_answers(self) -> list[Candidate]:
        """Return what answers the test queries."""
        relevant = {document for query in self.queries if query.split == "test" for document in query.relevant}
        return [candidate for candidate in self.candidates if candidate.document_id in relevant]

    @property
    def digest(self) -> str:
        """What identifies the benchmark."""
        records = [[asdict(record) for record in records] for records in (self.queries, self.candidates)]
        return digest([records, self.first_stage])


@dataclass(frozen=True, slots=True)
class Thread:
    """A training question and the answer that its asker accepted."""

    question_id: str
    title: str
    body: str
    query: str
    """What it is searched by."""
    community: str
    asker: str
    """A user, or the question's id where nobody knows who asked."""
    interests: tuple[str, ...]
    """The tags that the asker had used most, before."""
    answer: str
    answer_id: str
    answer_ids: tuple[str, ...]
    """Of all answers to it."""


@dataclass(frozen=True)
class Communities:
    """What posts come to."""

    rankings: Mapping[str, Ranking]
    """By name."""
    training: Sequence[Thread]
    """In an order drawn by seed, so that the first ones are a sample."""
    grounding: Sequence[Document]
    """Answers from before each site's first validation question, which generated ones may rest on."""
    question_ids: frozenset[str]
    """Of all questions, whenever they were asked."""
    training_ids: frozenset[str]
    """Of all questions for training, also of those beyond `max_training`."""
    counts: Mapping[str, int]
    """What was read, left out or odd."""


NO_COMMUNITIES = Communities({}, (), (), frozenset(), frozenset(), {})
