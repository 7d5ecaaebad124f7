"""Questions and answers of communities, with who wrote them, read from any of the forms in which posts come."""

import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import PurePosixPath
from typing import Annotated

from pydantic import Field

from pipeline.errors import SourceError
from pipeline.sources.cleaning import CleaningConfig, clean
from pipeline.sources.corpora import list_files, read_documents
from pipeline.sources.corpus_kinds import SePqaConfig, StackExchangeJsonlConfig, StackExchangePostsConfig
from pipeline.sources.stackexchange import read_accounts
from pipeline.sources.streams import Broken, RawDocument

LOG = logging.getLogger(__name__)
AnyPostsConfig = Annotated[
    StackExchangeJsonlConfig | StackExchangePostsConfig | SePqaConfig, Field(discriminator="kind")
]
N_BROKEN_SHOWN = 5
_UNKNOWN = ("", "-1")
"""Users who are gone, in the dumps and in SE-PQA."""


@dataclass(frozen=True, slots=True)
class Question:
    """A question as it was asked."""

    question_id: str
    site: str
    title: str
    body: str
    asker: str
    """The same on all sites where their accounts are known; empty: nobody knows."""
    date: str
    """ISO 8601, a day or a time; compared as text."""
    tags: tuple[str, ...]
    accepted: str
    """Id of the answer that the asker accepted; empty: none, or nobody knows."""


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer, voted zero or above."""

    answer_id: str
    question_id: str
    text: str
    author: str
    """As a question's asker."""
    date: str
    score: int
    is_accepted: bool


@dataclass
class Posts:
    """All posts of all sites."""

    questions: dict[str, Question] = field(default_factory=dict)
    answers: dict[str, list[Answer]] = field(default_factory=dict)
    """By question, in the order of date and id; those of no question that is there are left out."""
    counts: Counter[str] = field(default_factory=Counter)
    """What was left out, or is odd, by what it is."""


def read_posts(config: AnyPostsConfig, data_root: str | None) -> Posts:
    """Return the posts in all of a config's files; answers voted below zero are left out before anything else.

    Raises:
        SourceError: There are no files or no questions, or more of the lines are broken than may be.
    """
    posts = Posts()
    answers: dict[str, Answer] = {}
    for raw in _read_raw(config, data_root, posts.counts):
        post_id = raw.own_id
        if post_id in posts.questions or post_id in answers:
            posts.counts["ids_repeated"] += 1
        elif not _read_date(raw):
            posts.counts["posts_without_date"] += 1  # whatever ends before some moment would have room for them
        elif raw.extras["type"] == "question":
            posts.questions[post_id] = _to_question(raw, config.cleaning)
        elif int(raw.extras["score"]) < 0:
            posts.counts["answers_below_zero"] += 1
        elif not raw.text:
            posts.counts["answers_without_text"] += 1
        else:
            answers[post_id] = _to_answer(raw)
    if not posts.questions:
        raise SourceError(f"no questions in {', '.join(config.paths)}; check task.communities.posts and data.root")
    for answer in sorted(answers.values(), key=lambda one: (one.date, one.answer_id)):
        if answer.question_id in posts.questions:
            posts.answers.setdefault(answer.question_id, []).append(answer)
    _count(posts, len(answers))
    return posts


def _read_raw(config: AnyPostsConfig, data_root: str | None, counts: Counter[str]) -> Iterator[RawDocument]:
    broken: list[str] = []
    n_lines = 0
    for location in list_files(config, data_root):
        accounts = read_accounts(location) if isinstance(config, StackExchangePostsConfig) else {}
        for found in read_documents(config, location):
            n_lines += 1
            if isinstance(found, Broken):
                broken.append(f"{PurePosixPath(location).name}, line {found.line}: {found.reason}")
                continue
            account = found.extras["account"] or accounts.get(found.extras["owner"], "")
            extras = {**found.extras, "account": account}
            yield replace(found, text=clean(found.text, config.cleaning), extras=extras)
    counts["lines_broken"] += len(broken)
    if broken:
        shown = "\n".join(f"  {one}" for one in broken[:N_BROKEN_SHOWN])
        told = f"{len(broken):,} of {n_lines:,} lines are no posts:\n{shown}"
        if len(broken) > config.max_broken_share * n_lines:
            raise SourceError(
                f"{told}\nat most a share of {config.max_broken_share:g} may be so "
                "(task.communities.posts.max_broken_share); mend the files, or raise it"
            )
        LOG.warning("%s\nthey are left out", told)


def _to_question(raw: RawDocument, cleaning: CleaningConfig) -> Question:
    title = clean(raw.extras["title"], cleaning)
    return Question(
        raw.own_id,
        raw.extras["site"],
        title,
        raw.text.removeprefix(title).strip(),  # a question's text begins with its title
        _name_user(raw),
        _read_date(raw),
        tuple(raw.extras["tags"].split()),
        raw.extras["accepted"],
    )


def _to_answer(raw: RawDocument) -> Answer:
    return Answer(
        raw.own_id,
        raw.extras["parent"],
        raw.text,
        _name_user(raw),
        _read_date(raw),
        int(raw.extras["score"]),
        raw.extras["accepted"].casefold() == "true",
    )


def _name_user(raw: RawDocument) -> str:
    account, owner = raw.extras["account"].removesuffix(".0"), raw.extras["owner"]
    if account not in _UNKNOWN:
        return account
    return "" if owner in _UNKNOWN else f"{raw.extras['site']}:{owner}"


def _read_date(raw: RawDocument) -> str:
    """Return a post's date in the one form that can be compared as text: ISO 8601 in UTC, or nothing."""
    try:
        date = datetime.fromisoformat(raw.extras["date"])
    except ValueError:
        return ""
    return (date.astimezone(UTC).replace(tzinfo=None) if date.tzinfo else date).isoformat()


def _count(posts: Posts, n_answers: int) -> None:
    answers = [answer for of in posts.answers.values() for answer in of]
    posts.counts.update(
        {
            "questions": len(posts.questions),
            "answers": len(answers),
            "questions_without_answers": len(posts.questions) - len(posts.answers),
            "questions_without_tags": sum(not one.tags for one in posts.questions.values()),
            "answers_without_question": n_answers - len(answers),
            "answers_before_their_question": sum(
                answer.date < posts.questions[answer.question_id].date for answer in answers
            ),
            "askers_unknown": sum(not one.asker for one in posts.questions.values()),
            "authors_unknown": sum(not answer.author for answer in answers),
        }
    )
