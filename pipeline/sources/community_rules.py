"""From posts to queries, candidates and training threads: which answer counts, who is judged, when the past ends."""

import random
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

from pipeline.errors import SourceError
from pipeline.records import Candidate, Document, Query
from pipeline.sources.community import Communities, CommunitiesConfig, DatesConfig, Ranking, SiteConfig, Thread
from pipeline.sources.community_posts import Answer, Posts, Question

Split = Literal["validation", "test"]
ACCEPTED_GRADE, OTHER_GRADE = 2.0, 1.0
"""Of relevant answers in the setting `base`; in `personalized` the accepted one alone is relevant, with grade 1."""


def apply_rules(config: CommunitiesConfig, posts: Posts) -> Communities:
    """Return what a configuration makes of posts.

    Raises:
        SourceError: A site that `sites` names has no posts, or a split has no question.
    """
    found = {question.site for question in posts.questions.values()}
    if absent := sorted(config.sites.keys() - found):
        raise SourceError(f"task.communities.sites: no questions of {', '.join(absent)}; there are {sorted(found)}")
    histories = Histories(posts.questions.values())
    parts = [_split_site(site, config, posts, histories) for site in sorted(found)]
    expertise = find_expertise(posts)
    candidates = {part.site: _to_candidates(part.site, posts, expertise) for part in parts}
    if config.pooled is None:
        rankings = [Ranking(part.site, part.queries, candidates[part.site]) for part in parts]
    else:
        queries = tuple(query for part in parts for query in part.queries)
        rankings = [Ranking(config.pooled, queries, tuple(one for of in candidates.values() for one in of))]
    for ranking in rankings:
        _check_splits(ranking, posts)
    training = [thread for part in parts for thread in part.training]
    random.Random(config.seed).shuffle(training)
    counts = {**posts.counts, **_count(parts, training)}
    grounding = tuple(document for part in parts for document in part.grounding)
    return Communities(
        {one.name: one for one in rankings},
        training[: config.max_training],
        grounding,
        question_ids=frozenset(posts.questions),
        training_ids=frozenset(thread.question_id for thread in training),
        counts=counts,
    )


class Histories:
    """What each user had asked, over all sites, in the order of time."""

    def __init__(self, questions: Iterable[Question]) -> None:
        """Sort questions by who asked them; those of nobody known are no history."""
        self._asked: dict[str, list[Question]] = {}
        for question in sorted(questions, key=lambda one: (one.date, one.question_id)):
            if question.asker:
                self._asked.setdefault(question.asker, []).append(question)

    def find_earlier(self, question: Question, limit: str | None = None) -> list[Question]:
        """Return what the asker had asked before this question, and before a moment where one is given."""
        asked = self._asked.get(question.asker, [])
        return asked[: bisect_left(asked, min(question.date, limit or question.date), key=lambda one: one.date)]


@dataclass(frozen=True)
class _Part:
    """What one site comes to."""

    site: str
    queries: tuple[Query, ...]
    training: list[Thread]
    grounding: list[Document]
    n_eligible: int


def _split_site(site: str, config: CommunitiesConfig, posts: Posts, histories: Histories) -> _Part:
    rules = config.sites.get(site, config.site)
    questions = sorted(
        (one for one in posts.questions.values() if one.site == site), key=lambda one: (one.date, one.question_id)
    )
    accepted = {
        one.question_id: answer
        for one in questions
        if (answer := _find_accepted(one, posts.answers.get(one.question_id, []), rules))
    }
    # SE-PQA counts earlier questions up to where its test split begins; interests go on to the query itself.
    limit = config.split.test_from if isinstance(config.split, DatesConfig) else None
    eligible = [
        one
        for one in questions
        if (one.question_id in accepted if config.setting == "personalized" else one.question_id in posts.answers)
        and len(histories.find_earlier(one, limit)) >= config.min_earlier_questions
    ]
    validation, test, cut = _split(site, eligible, config, rules)
    splits: tuple[tuple[Split, list[Question]], ...] = (("validation", validation), ("test", test))
    queries = [
        _to_query(one, split, config, posts, accepted.get(one.question_id), histories)
        for split, of in splits
        for one in of
    ]
    is_judged = {query.query_id for query in queries}
    training = [
        _to_thread(one, accepted[one.question_id], config, posts, histories)
        for one in questions
        if one.date < cut
        and one.question_id not in is_judged
        and one.question_id in accepted
        and accepted[one.question_id].date < cut
        and len(histories.find_earlier(one, limit)) >= config.min_earlier_questions_training
    ]
    grounding = [
        Document(answer.answer_id, answer.text, site)
        for one in questions
        if one.question_id not in is_judged  # of merged posts an answer may be older than its question
        for answer in posts.answers.get(one.question_id, [])
        if answer.date < cut
    ]
    return _Part(site, tuple(queries), training, grounding, len(eligible))


def _find_accepted(question: Question, answers: Sequence[Answer], rules: SiteConfig) -> Answer | None:
    """Return the answer that counts as accepted; one that is older than its question never does."""
    later = [answer for answer in answers if answer.date >= question.date]
    if rules.accepted == "accepted":
        return next((one for one in later if one.is_accepted or one.answer_id == question.accepted), None)
    best = max(later, key=lambda one: one.score, default=None)  # of equal ones the first, and they are in order of time
    return best if best is not None and len(answers) > 1 and best.score > 0 else None


def _split(
    site: str, eligible: Sequence[Question], config: CommunitiesConfig, rules: SiteConfig
) -> tuple[list[Question], list[Question], str]:
    """Return validation and test questions, and when the past of training ends."""
    split = config.split
    if isinstance(split, DatesConfig):
        validation = [one for one in eligible if split.validation_from <= one.date < split.test_from]
        test = [one for one in eligible if one.date >= split.test_from]
        cut = split.validation_from
    else:
        n_earlier = round(len(eligible) * (1 - split.test) - 1e-9)
        n_validation = round(n_earlier * split.validation)
        earlier, test = list(eligible[:n_earlier]), list(eligible[n_earlier:])
        validation = earlier[len(earlier) - n_validation :]
        if not validation or not test:
            raise SourceError(
                f"{site}: {len(eligible)} of its questions can be judged, which leaves {len(validation)} to validate "
                f"and {len(test)} to test on; lower task.communities.min_earlier_questions, or leave the site out"
            )
        cut = validation[0].date
    if rules.max_test is not None and len(test) > rules.max_test:
        drawn = set(random.Random(f"{config.seed} {site}").sample(range(len(test)), rules.max_test))
        test = [one for place, one in enumerate(test) if place in drawn]
    return validation, test, cut


def _to_query(
    question: Question,
    split: Split,
    config: CommunitiesConfig,
    posts: Posts,
    accepted: Answer | None,
    histories: Histories,
) -> Query:
    if config.setting == "personalized":
        assert accepted is not None
        relevant = {accepted.answer_id: 1.0}
    else:
        relevant = {
            one.answer_id: ACCEPTED_GRADE if one is accepted else OTHER_GRADE
            for one in posts.answers[question.question_id]
        }
    tags = {*question.tags, *(tag for one in histories.find_earlier(question) for tag in one.tags)}
    return Query(question.question_id, _to_text(question, config), question.site, split, relevant, tuple(sorted(tags)))


def _to_thread(
    question: Question, accepted: Answer, config: CommunitiesConfig, posts: Posts, histories: Histories
) -> Thread:
    return Thread(
        question.question_id,
        question.title,
        question.body,
        _to_text(question, config),
        question.site,
        question.asker or question.question_id,
        rank_tags(histories.find_earlier(question), config.top_interests),
        accepted.text,
        accepted.answer_id,
        tuple(answer.answer_id for answer in posts.answers[question.question_id]),
    )


def rank_tags(asked: Iterable[Question], n: int) -> tuple[str, ...]:
    """Return the tags that stand on most questions, of equal ones the first in the alphabet."""
    used = Counter(tag for one in asked for tag in one.tags)
    return tuple(sorted(used, key=lambda tag: (-used[tag], tag))[:n])


def _to_text(question: Question, config: CommunitiesConfig) -> str:
    return " ".join(f"{question.title} {question.body}".split()[: config.query_tokens])


def _to_candidates(site: str, posts: Posts, expertise: Mapping[str, tuple[str, ...]]) -> tuple[Candidate, ...]:
    return tuple(
        Candidate(answer.answer_id, answer.text, expertise[answer.answer_id])
        for question_id, answers in posts.answers.items()
        if posts.questions[question_id].site == site
        for answer in answers
    )


def find_expertise(posts: Posts) -> dict[str, tuple[str, ...]]:
    """Return for each answer the tags of what its author had answered before the answer's own question was asked.

    SE-PQA, `testing_pers_tag.py`: the time is that of the candidate's own question, not of the query.
    """
    answers = sorted((one for of in posts.answers.values() for one in of), key=lambda one: (one.author, one.date))
    found: dict[str, tuple[str, ...]] = {}
    for author, group in groupby(answers, key=lambda one: one.author):
        given = list(group)
        if not author:
            found |= dict.fromkeys((one.answer_id for one in given), ())
            continue
        past, known = iter(given), set[str]()
        tags: tuple[str, ...] = ()
        earlier = next(past, None)
        for answer in sorted(given, key=lambda one: posts.questions[one.question_id].date):
            asked = posts.questions[answer.question_id].date
            while earlier is not None and earlier.date < asked:
                known |= {*posts.questions[earlier.question_id].tags}
                earlier = next(past, None)
            if len(known) != len(tags):  # answers of one expertise share it
                tags = tuple(sorted(known))
            found[answer.answer_id] = tags
    return found


def _check_splits(ranking: Ranking, posts: Posts) -> None:
    for split in ("validation", "test"):
        if not any(query.split == split for query in ranking.queries):
            raise SourceError(
                f"{ranking.name}: none of its {len(posts.questions):,} questions is in the split {split}; change "
                "task.communities.split, or lower task.communities.min_earlier_questions"
            )


def _count(parts: Sequence[_Part], training: Sequence[Thread]) -> dict[str, int]:
    queries = [query for part in parts for query in part.queries]
    return {
        "eligible": sum(part.n_eligible for part in parts),
        "validation_queries": sum(query.split == "validation" for query in queries),
        "test_queries": sum(query.split == "test" for query in queries),
        "queries_without_interests": sum(not query.interests for query in queries),
        "training_threads": len(training),
        "training_without_interests": sum(not thread.interests for thread in training),
    }
