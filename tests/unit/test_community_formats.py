"""The same posts in each of the forms that they come in are the same communities."""

import csv
import json
from dataclasses import asdict
from xml.sax.saxutils import quoteattr

import pytest

from pipeline.config import validate
from pipeline.errors import SourceError
from pipeline.records import Candidate
from pipeline.sources.communities import read_communities
from pipeline.sources.community import CommunitiesConfig
from tests.composing import compose_option
from tests.unit.test_community_rules import Site, read

QUESTION_COLUMNS = [
    "Id", "AcceptedAnswerId", "CreationDate", "Score", "ViewCount", "Body", "Title", "Tags", "AnswerCount",
    "CommentCount", "FavoriteCount", "AccountId", "Text", "Community",
]  # fmt: skip
ANSWER_COLUMNS = [
    "Id", "CreationDate", "Score", "Title", "Tags", "CommentCount", "ParentId", "AccountId", "Text"
]  # fmt: skip


NAN = float("nan")
"""What pandas writes for what is not there, and Python reads."""


@pytest.fixture
def sites():
    """Two sites with one asker of both, one whom nobody knows, and a few odd posts."""
    pets, birds = Site("pets"), Site("birds")
    pets.ask_many(range(20), tags=["cats", "house-cats"])
    birds.ask_many(range(20), user=1, first=500, tags=["c++"])
    pets.ask(1, 2, user=None, account=None, accepted=2)
    pets.answer(2, 1, 3, user=None, account=None)
    pets.answer(3, 100, 4, score=-1)
    return [pets, birds]


def read_with(option, root, **posts):
    values = compose_option("communities", option)
    values["posts"] |= {"root": str(root), **posts}
    shares = {"kind": "shares", "test": 0.5, "validation": 0.2}
    changes = {"split": shares, "pooled": None, "min_earlier_questions_training": 0}
    return read_communities(validate(CommunitiesConfig, values | changes), None)


def write_dump(site, folder):
    """Write `Posts.xml` and `Users.xml`; a user's number is the site's own, the account everybody's."""
    folder.mkdir(parents=True)
    rows, accounts = [], {}
    for post in site.posts:
        owner = post["user"]
        if owner is not None:
            accounts[owner + 1000] = owner
        is_question = post["type"] == "q"
        row = {
            "Id": post["id"], "PostTypeId": 1 if is_question else 2, "CreationDate": post["date"],
            "Score": post["score"], "Body": post["text"], "OwnerUserId": None if owner is None else owner + 1000,
        }  # fmt: skip
        if is_question:
            tags = "".join(f"<{tag}>" for tag in post["tags"])
            row |= {"Title": post["title"], "Tags": tags, "AcceptedAnswerId": post["accepted_answer"]}
        else:
            row["ParentId"] = post["parent"]
        rows.append(row)
    (folder / "Posts.xml").write_text(to_xml("posts", rows))
    users = [{"Id": user, "AccountId": account} for user, account in accounts.items()]
    (folder / "Users.xml").write_text(to_xml("users", [*users, {"Id": -1, "DisplayName": "Community"}]))


def to_xml(name, rows):
    lines = [
        "  <row "
        + " ".join(f"{key}={quoteattr(str(value))}" for key, value in row.items() if value is not None)
        + " />"
        for row in rows
    ]
    return "\n".join(['<?xml version="1.0" encoding="utf-8"?>', f"<{name}>", *lines, f"</{name}>", ""])


def write_tables(sites, folder):
    """Write SE-PQA's `questions.csv` and `answers.csv`."""
    folder.mkdir(parents=True)
    posts = [(site.name, post) for site in sites for post in site.posts]

    def common(site, post):
        account = -1 if post["account"] is None else post["account"]
        return {
            "Id": f"{site}_{post['id']}", "CreationDate": f"{post['date']} 00:00:00", "Score": post["score"],
            "AccountId": f"{account}.0", "Community": site,
        }  # fmt: skip

    questions = [
        common(site, post)
        | {
            "Title": post["title"], "Text": f"{post['title']} {post['text']}", "Tags": str(post["tags"]),
            "AcceptedAnswerId": post["accepted_answer"] and f"{site}_{post['accepted_answer']}", "Body": post["text"],
        }
        for site, post in posts
        if post["type"] == "q"
    ]  # fmt: skip
    answers = [
        common(site, post) | {"Text": post["text"], "ParentId": f"{site}_{post['parent']}"}
        for site, post in posts
        if post["type"] == "a"
    ]
    for name, columns, rows in (
        ("questions", QUESTION_COLUMNS, questions),
        ("answers", ANSWER_COLUMNS, answers),
    ):
        with (folder / f"{name}.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, columns, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(rows)


def summarise(communities):
    """Return all that was made of posts, whatever their dates' form."""
    rankings = {
        name: ([asdict(one) for one in ranking.queries], sorted(map(asdict, ranking.candidates), key=str))
        for name, ranking in communities.rankings.items()
    }
    training = {thread.question_id: thread for thread in communities.training}
    return rankings, training, {one.document_id for one in communities.grounding}, communities.counts


def test_raw_dumps_are_the_same_communities(tmp_path, sites):
    (tmp_path / "lines").mkdir()
    expected = read(tmp_path / "lines", *sites)
    for site in sites:
        write_dump(site, tmp_path / f"dump/{site.name}.stackexchange.com")
    found = read_with("stackexchange_dump", tmp_path / "dump", paths=["*/Posts.xml"])
    assert summarise(found) == summarise(expected)
    assert len(found.training) > 15


def test_tables_of_se_pqa_are_the_same_communities(tmp_path, sites):
    (tmp_path / "lines").mkdir()
    expected = read(tmp_path / "lines", *sites)
    write_tables(sites, tmp_path / "se_pqa")
    found = read_with("se_pqa", tmp_path)
    assert summarise(found) == summarise(expected)


def test_a_dump_without_its_users_joins_none_over_sites(tmp_path, sites):
    for site in sites:
        folder = tmp_path / f"{site.name}.stackexchange.com"
        write_dump(site, folder)
        (folder / "Users.xml").unlink()
    found = read_with("stackexchange_dump", tmp_path, paths=["*/Posts.xml"])
    assert {thread.asker.partition(":")[0] for thread in found.training if ":" in thread.asker} == {"pets", "birds"}


def write_retrieval_files(communities, folder, setting="personalized", training=(), answers=()):
    """Write SE-PQA's `answer_retrieval` from communities that were read otherwise.

    Args:
        communities: What is written.
        folder: Where.
        setting: In `personalized` the files name the accepted answer alone.
        training: Further records.
        answers: Further pairs of an id and a text for the collection.
    """
    (ranking,) = communities.rankings.values()
    records = {"train": [*training], "val": [], "test": []}
    for thread in communities.training:
        named = [thread.answer_id] if setting == "personalized" else thread.answer_ids
        records["train"].append(
            make_record(thread.question_id, thread.title, thread.query, thread.answer_id, named)
            | {"user_id": float(thread.asker)}
        )
    for query in ranking.queries:
        is_best = {answer: setting == "personalized" or grade == 2 for answer, grade in query.relevant.items()}
        best = next((answer for answer in is_best if is_best[answer]), NAN)
        records[{"validation": "val", "test": "test"}[query.split]].append(
            make_record(query.query_id, query.text.partition("?")[0] + "?", query.text, best, query.relevant)
        )
    collection = {**dict(answers), **{candidate.document_id: candidate.text for candidate in ranking.candidates}}
    name = {"personalized": "data_pers.jsonl", "base": "data.jsonl"}[setting]
    for split, of_split in records.items():
        (folder / "answer_retrieval" / split).mkdir(parents=True)
        lines = "".join(json.dumps(record) + "\n" for record in of_split)
        (folder / "answer_retrieval" / split / name).write_text(lines)
        run = {
            record["id"]: {one: 9.5 - place for place, one in enumerate([*collection][:5])} for record in of_split[1:]
        }
        (folder / "answer_retrieval" / split / "bm25_run.json").write_text(json.dumps(run))
    (folder / "answer_retrieval/answer_collection.json").write_text(json.dumps(collection))


def make_record(own_id, title, text, best, answers):
    return {
        "id": own_id, "title": title, "text": text, "timestamp": "2020-01-01", "score": 1, "views": 1, "favorite": 0,
        "user_id": -1, "user_questions": ["pets_100", "pets_110", "pets_290"], "user_answers": [], "tags": ["own"],
        "rel_ids": list(answers), "rel_scores": [1] * len(answers), "rel_timestamps": [], "best_answer": best,
    }  # fmt: skip


def test_retrieval_files_of_se_pqa(tmp_path):
    site = Site("pets")
    site.ask_many(range(20), tags=["cats"])
    site.posts[-2]["tags"] = ["planted"]  # the last question, which the files name as a past of everybody's
    site.answer(5, 100, 2)  # not accepted, so that the files don't name it
    write_tables([site], tmp_path / "se_pqa")
    values = compose_option("communities", "se_pqa")
    values["posts"] |= {"root": str(tmp_path)}
    values["split"] |= {"validation_from": "2020-01-09", "test_from": "2020-01-14"}
    by_rules = read_communities(validate(CommunitiesConfig, values), None)
    later = make_record("pets_170", "Title 170?", "Title 170? Body 170.", "pets_171", ["pets_171"])
    # That one was answered as validation begins; of this one posts have neither question nor answer.
    undated = make_record("pets_1", "Title 1?", "Title 1? Body 1.", "pets_2", ["pets_2"])
    write_retrieval_files(by_rules, tmp_path / "se_pqa", training=[later, undated], answers=[("pets_2", "Answer 2.")])
    found = read_communities(validate(CommunitiesConfig, values | {"retrieval_files": "se_pqa"}), None)
    (expected,), (ranking,) = by_rules.rankings.values(), found.rankings.values()
    assert [(q.query_id, q.text, q.community, q.split, q.relevant) for q in ranking.queries] == [
        (q.query_id, q.text, q.community, q.split, q.relevant) for q in expected.queries
    ]
    assert {query.interests for query in ranking.queries} == {("cats", "own")}  # `planted` is never of the past
    assert "planted" not in {tag for thread in found.training for tag in thread.interests}
    assert ranking.candidates == (Candidate("pets_2", "Answer 2.", ()), *expected.candidates)
    assert len(ranking.first_stage) == len(ranking.queries)
    n_found = [len(scores) for scores in ranking.first_stage.values()]
    assert sorted(set(n_found)) == [0, 5]  # of the first of each split nothing was found, and it counts
    assert found.counts["queries_without_candidates"] == 2
    assert {t.question_id: (t.title, t.body, t.asker, t.answer) for t in found.training} == {
        t.question_id: (t.title, t.body, t.asker, t.answer) for t in by_rules.training
    }
    assert {t.question_id: {*t.answer_ids} for t in found.training} == {
        t.question_id: {*t.answer_ids} for t in by_rules.training
    }
    assert found.counts["training_answered_later"] == 2
    assert found.grounding == by_rules.grounding


@pytest.mark.parametrize(("setting", "n_earlier", "n_without"), [("personalized", 5, 1), ("base", 0, 2)])
def test_retrieval_files_hold_what_pandas_wrote_for_nothing(tmp_path, setting, n_earlier, n_without):
    site = Site("pets")
    site.ask_many(range(20))
    site.ask(1, 3, accepted=2)
    site.answer(2, 1, 4, score=-1)  # accepted, and not in the collection
    site.answer(3, 1, 4)
    for question, day in ((4, 4), (6, 16)):  # nothing was accepted
        site.ask(question, day)
        site.answer(question + 1, question, day)
    site.answer(8, 6, 2)  # of a post that was merged into a later one
    write_tables([site], tmp_path / "se_pqa")
    values = compose_option("communities", "se_pqa")
    values["posts"] |= {"root": str(tmp_path)}
    values["split"] |= {"validation_from": "2020-01-09", "test_from": "2020-01-14"}
    values |= {"setting": setting, "min_earlier_questions": n_earlier, "min_earlier_questions_training": n_earlier}
    by_rules = read_communities(validate(CommunitiesConfig, values), None)
    named = {"personalized": ["pets_2"], "base": ["pets_3"]}[setting]
    training = [make_record("pets_1", "Title 1?", "Title 1? Body 1.", "pets_2", named)]
    if setting == "base":
        training.append(make_record("pets_4", "Title 4?", "Title 4? Body 4.", NAN, ["pets_5"]))
    write_retrieval_files(by_rules, tmp_path / "se_pqa", setting, training, answers=[("pets_9", NAN), ("pets_99", "")])
    found = read_communities(validate(CommunitiesConfig, values | {"retrieval_files": "se_pqa"}), None)
    (expected,), (ranking,) = by_rules.rankings.values(), found.rankings.values()
    assert {t.question_id for t in found.training} == {t.question_id for t in by_rules.training}
    assert found.counts["training_without_answer"] == n_without
    assert [(q.query_id, q.relevant) for q in ranking.queries] == [(q.query_id, q.relevant) for q in expected.queries]
    assert ("pets_6" in {query.query_id for query in ranking.queries}) == (setting == "base")
    assert ranking.candidates == expected.candidates
    assert ("pets_8" in {document.document_id for document in found.grounding}) == (setting != "base")
    assert found.counts["collection_without_text"] == 2
    assert {one for scores in ranking.first_stage.values() for one in scores} == {
        candidate.document_id for candidate in ranking.candidates[:3]
    }  # of the five first in the files' collection


def test_interests_of_the_files_queries_go_on_through_the_test_split(tmp_path):
    site = Site("pets")
    site.ask_many(range(14), tags=["early"])
    for number, day in enumerate(range(14, 17)):
        site.ask_many([day], first=1000 + 10 * number, tags=[f"late-{number}"])
    write_tables([site], tmp_path / "se_pqa")
    values = compose_option("communities", "se_pqa")
    values["posts"] |= {"root": str(tmp_path)}
    values["split"] |= {"validation_from": "2020-01-09", "test_from": "2020-01-14"}
    write_retrieval_files(read_communities(validate(CommunitiesConfig, values), None), tmp_path / "se_pqa")
    unknown = make_record("pets_5", "Title 5?", "Title 5? Body 5.", "pets_101", ["pets_101"])
    with (tmp_path / "se_pqa/answer_retrieval/test/data_pers.jsonl").open("a") as file:
        file.write(json.dumps(unknown | {"user_questions": ["pets_100", "pets_1000"]}) + "\n")
    found = read_communities(validate(CommunitiesConfig, values | {"retrieval_files": "se_pqa"}), None)
    queries = {query.query_id: query for query in found.rankings["SE-PQA"].queries}
    assert queries["pets_1020"].interests == ("early", "late-0", "late-1", "own")  # its own tags stand in its record
    assert queries["pets_5"].interests == ("early", "late-0", "own")  # posts don't know it, so that its record says


def test_a_retrieval_file_without_a_field_is_told_with_its_line(tmp_path):
    site = Site("pets")
    site.ask_many(range(3))
    write_tables([site], tmp_path / "se_pqa")
    (tmp_path / "se_pqa/answer_retrieval/train").mkdir(parents=True)
    (tmp_path / "se_pqa/answer_retrieval/answer_collection.json").write_text("{}")
    (tmp_path / "se_pqa/answer_retrieval/train/data_pers.jsonl").write_text('{"id": "pets_1", "title": "T"}\n')
    values = compose_option("communities", "se_pqa") | {"retrieval_files": "se_pqa"}
    values["posts"] |= {"root": str(tmp_path)}
    with pytest.raises(SourceError, match=r"train/data_pers.jsonl, line 1: text, tags"):
        read_communities(validate(CommunitiesConfig, values), None)
