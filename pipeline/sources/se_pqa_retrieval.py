"""SE-PQA's `answer_retrieval`: questions with what is relevant to them, the collection of answers, and BM25's run.

Kasela et al., 2024 (arXiv 2306.16261); written by `create_best_answer_data.py` of its code.
"""

import json
import random
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from pipeline.errors import SourceError
from pipeline.records import Candidate, Document, Query
from pipeline.sources.community import Communities, CommunitiesConfig, DatesConfig, Ranking, Thread
from pipeline.sources.community_posts import Posts, Question
from pipeline.sources.community_rules import ACCEPTED_GRADE, OTHER_GRADE, Histories, find_expertise, rank_tags
from pipeline.sources.corpus_formats import stream_objects
from pipeline.sources.streams import Broken, open_stream
from pipeline.sources.tables import locate, to_text

FILES = {"personalized": "data_pers.jsonl", "base": "data.jsonl"}
"""By setting."""
_SPLITS: tuple[tuple[str, Literal["validation", "test"]], ...] = (("val", "validation"), ("test", "test"))
Values = Mapping[str, Any]


def read_retrieval_files(config: CommunitiesConfig, root: str, posts: Posts) -> Communities:
    """Return what the files say, with users' histories from posts.

    Training questions are left out, and counted, that have no accepted answer in the collection (nothing was accepted,
    or it was voted below zero), and those whose answer is not from before the validation split: one that posts lack
    can't be dated, and counts among them. A query without an accepted answer stays as a miss, as in SE-PQA's code.

    Args:
        config: `retrieval_files` is the folder that holds `answer_retrieval`.
        root: What it counts from.
        posts: All posts, for tags. Of a question that they lack the files say what its asker had asked, up to where the
            test split begins; an answer that they lack has no history.

    Raises:
        SourceError: A file is missing or broken.
    """
    assert config.retrieval_files is not None
    assert config.pooled is not None
    assert isinstance(config.split, DatesConfig)
    folder = locate(root, f"{config.retrieval_files}/answer_retrieval")
    collected: dict[str, Any] = _read_json(f"{folder}/answer_collection.json")
    collection = {own_id: text for own_id in collected if (text := _get_text(collected, own_id))}
    name = FILES[config.setting]
    train = list(_read(f"{folder}/train/{name}"))
    histories = Histories(posts.questions.values())
    queries, first_stage = [], {}
    for place, split in _SPLITS:
        found: dict[str, dict[str, float]] = _read_json(f"{folder}/{place}/bm25_run.json")
        for record in _read(f"{folder}/{place}/{name}"):
            query = _to_query(record, split, config, posts, histories)
            queries.append(query)
            scores = found.get(query.query_id, {})
            first_stage[query.query_id] = {one: float(score) for one, score in scores.items() if one in collection}
    expertise = find_expertise(posts)
    candidates = tuple(Candidate(one, text, expertise.get(one, ())) for one, text in collection.items())
    is_judged = {query.query_id for query in queries}
    grounding = tuple(
        Document(one.answer_id, one.text, _name_site(one.answer_id))
        for question_id, answers in posts.answers.items()
        if question_id not in is_judged  # of merged posts an answer may be older than its question
        for one in answers
        if one.date < config.split.validation_from
    )
    early = {document.document_id for document in grounding}
    answered = [record for record in train if _get_text(record, "best_answer") in collection]
    threads = [
        _to_thread(record, collection, config, posts, histories)
        for record in answered
        if _get_text(record, "best_answer") in early
    ]
    random.Random(config.seed).shuffle(threads)
    counts = {
        **posts.counts,
        "validation_queries": sum(query.split == "validation" for query in queries),
        "test_queries": sum(query.split == "test" for query in queries),
        "queries_without_interests": sum(not query.interests for query in queries),
        "queries_without_candidates": sum(not scores for scores in first_stage.values()),
        "collection_without_text": len(collected) - len(collection),
        "training_without_answer": len(train) - len(answered),
        "training_answered_later": len(answered) - len(threads),
        "training_threads": len(threads),
        "training_without_interests": sum(not thread.interests for thread in threads),
    }
    ranking = Ranking(config.pooled, tuple(queries), candidates, first_stage)
    known = {query.query_id for query in queries} | {record["id"] for record in train}
    return Communities(
        {config.pooled: ranking},
        threads[: config.max_training],
        grounding,
        question_ids=frozenset(known | posts.questions.keys()),
        training_ids=frozenset(thread.question_id for thread in threads),
        counts=counts,
    )


def _to_query(
    record: Values, split: Literal["validation", "test"], config: CommunitiesConfig, posts: Posts, histories: Histories
) -> Query:
    best, own_id = _get_text(record, "best_answer"), record["id"]
    if config.setting == "personalized":
        relevant = {best: 1.0}
    else:
        relevant = {one: ACCEPTED_GRADE if one == best else OTHER_GRADE for one in record["rel_ids"]}
    tags = {*record["tags"], *(tag for question in _find_earlier(record, posts, histories) for tag in question.tags)}
    return Query(own_id, _to_text(record, config), _name_site(own_id), split, relevant, tuple(sorted(tags)))


def _to_thread(
    record: Values, collection: Mapping[str, str], config: CommunitiesConfig, posts: Posts, histories: Histories
) -> Thread:
    own_id, title, best = record["id"], _get_text(record, "title"), _get_text(record, "best_answer")
    asker = to_text(record.get("user_id")).removesuffix(".0")
    return Thread(
        own_id,
        title,
        _get_text(record, "text").removeprefix(title).strip(),
        _to_text(record, config),
        _name_site(own_id),
        own_id if asker in ("", "-1") else asker,
        rank_tags(_find_earlier(record, posts, histories), config.top_interests),
        collection[best],
        best,
        # The files' personalized records name the accepted answer alone.
        tuple(dict.fromkeys([*record["rel_ids"], *(one.answer_id for one in posts.answers.get(own_id, ()))])),
    )


def _find_earlier(record: Values, posts: Posts, histories: Histories) -> list[Question]:
    """Return what the asker had asked before; of a question that posts lack, what its record says."""
    own = posts.questions.get(record["id"])
    if own is not None:
        return histories.find_earlier(own)
    return [posts.questions[one] for one in record["user_questions"] if one in posts.questions]


def _to_text(record: Values, config: CommunitiesConfig) -> str:
    title, text = _get_text(record, "title"), _get_text(record, "text")
    whole = text if text.startswith(title) else f"{title} {text}"
    return " ".join(whole.split()[: config.query_tokens])


def _get_text(values: Values, name: str) -> str:
    """Return a value that is text; empty for a NaN, which pandas has written for what was not there."""
    value = values.get(name)
    return value.strip() if isinstance(value, str) else ""


def _name_site(own_id: str) -> str:
    return own_id.rpartition("_")[0]


def _read(location: str) -> Iterator[Values]:
    needed = ("id", "title", "text", "tags", "rel_ids", "user_questions")
    for record in stream_objects(location, None):
        if isinstance(record, Broken):
            raise SourceError(f"{location}, line {record.line}: {record.reason}; mend the file")
        if missing := [name for name in needed if name not in record.values]:
            raise SourceError(f"{location}, line {record.line}: {', '.join(missing)} missing; mend the file")
        yield record.values


def _read_json(location: str) -> Any:
    with open_stream(location) as stream:
        try:
            return json.load(stream)
        except ValueError as error:
            raise SourceError(f"{location} is no JSON: {error}; mend the file") from None
