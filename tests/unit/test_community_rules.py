"""Which answers count, who is judged, and when the past ends; with leaks planted that must not get through."""

import json
from datetime import date, timedelta

import pytest

from pipeline.config import validate
from pipeline.errors import ConfigError, SourceError
from pipeline.sources.communities import read_communities
from pipeline.sources.community import CommunitiesConfig
from tests.communities import write_communities
from tests.composing import compose_option

DAY = date(2020, 1, 1)


class Site:
    """Posts to write: times are days from the first."""

    def __init__(self, name="pets"):
        self.name, self.posts = name, []

    def ask(self, number, day, user=1, tags=("cats",), accepted=None, **changes):
        post = {
            "site": self.name, "id": number, "type": "q", "user": user, "account": user, "score": 1,
            "date": str(DAY + timedelta(days=day)), "title": f"Title {number}?", "tags": list(tags),
            "accepted_answer": accepted, "views": 1, "text": f"Body {number}.",
        }  # fmt: skip
        self.posts.append(post | changes)

    def answer(self, number, parent, day, user=9, score=1, **changes):
        post = {
            "site": self.name, "id": number, "type": "a", "user": user, "account": user, "score": score,
            "date": str(DAY + timedelta(days=day)), "parent": parent, "accepted": None, "text": f"Answer {number}.",
        }  # fmt: skip
        self.posts.append(post | changes)

    def ask_many(self, days, user=1, first=100, **changes):
        """Ask a question on each day, and answer it the next one."""
        for place, day in enumerate(days):
            number = first + 10 * place
            self.ask(number, day, user=user, accepted=number + 1, **changes)
            self.answer(number + 1, number, day + 1)


def read(tmp_path, *sites, **changes):
    for site in sites:
        lines = "".join(json.dumps(post) + "\n" for post in site.posts)
        (tmp_path / f"{site.name}.posts.jsonl").write_text(lines)
    values = compose_option("communities", "stackexchange")
    values["posts"] |= {"paths": [str(tmp_path / "*.posts.jsonl")]}
    return read_communities(validate(CommunitiesConfig, values | changes), None)


def make_site(n=20):
    """One asker with a question a day: from the sixth on they are judged, so 7 of 15 are for training or validation."""
    site = Site()
    site.ask_many(range(n))
    return site


def test_split_by_shares_of_those_with_five_earlier_questions(tmp_path):
    ranking = read(tmp_path, make_site()).rankings["pets"]
    splits = {split: [q.query_id for q in ranking.queries if q.split == split] for split in ("validation", "test")}
    assert splits["test"] == [f"pets_{100 + 10 * day}" for day in range(12, 20)]  # the later half of days 5 to 19
    assert splits["validation"] == ["pets_210"]  # the last fifth of days 5 to 11
    assert all(query.relevant == {f"{query.query_id[:-1]}1": 1.0} for query in ranking.queries)


def test_training_ends_before_the_first_validation_question_and_so_do_its_answers(tmp_path):
    communities = read(tmp_path, make_site())
    trained = {thread.question_id for thread in communities.training}
    # That of day 10 was answered on day 11, the day of the first validation question.
    assert trained == {f"pets_{100 + 10 * day}" for day in range(10)}
    assert {document.document_id for document in communities.grounding} == {f"pets_{101 + 10 * d}" for d in range(10)}
    assert all(thread.answer_id == f"{thread.question_id[:-1]}1" for thread in communities.training)


def test_interests_of_a_query_end_with_it_and_those_of_a_prompt_before_it(tmp_path):
    site = Site()
    tags = ["cats", "dogs", "fish", "birds", "mice", "frogs", "newts"]
    for day in range(20):
        site.ask(100 + 10 * day, day, tags=[tags[min(day, 5)]] if day < 19 else ["planted"], accepted=101 + 10 * day)
        site.answer(101 + 10 * day, 100 + 10 * day, day + 1)
    communities = read(tmp_path, site)
    queries = {query.query_id: query for query in communities.rankings["pets"].queries}
    assert queries["pets_210"].interests == ("birds", "cats", "dogs", "fish", "frogs", "mice")
    assert [q.query_id for q in queries.values() if "planted" in q.interests] == ["pets_290"]
    threads = {thread.question_id: thread for thread in communities.training}
    assert threads["pets_100"].interests == ()
    assert threads["pets_130"].interests == ("cats", "dogs", "fish")  # ties in alphabetical order
    assert threads["pets_180"].interests == (
        "frogs",
        "birds",
        "cats",
        "dogs",
        "fish",
    )  # the most used first, five of six


def test_expertise_ends_before_the_candidates_own_question(tmp_path):
    site = make_site()
    site.ask(1, 2, user=5, tags=["old"])
    site.answer(2, 1, 3, user=7)
    site.ask(3, 6, user=5, tags=["new"])
    site.answer(4, 3, 6, user=7)
    site.ask(5, 8, user=5, tags=["late"])
    site.answer(6, 5, 6, user=7)  # older than its question: counts for none
    site.ask(7, 3, user=5, tags=["same day"])
    site.answer(8, 7, 9, user=7)
    candidates = {one.document_id: one.expertise for one in read(tmp_path, site).rankings["pets"].candidates}
    assert candidates["pets_2"] == ()
    assert candidates["pets_8"] == ()  # asked on day 3, when the first answer was given: not before
    assert candidates["pets_4"] == ("old",)
    assert candidates["pets_6"] == ("late", "new", "old")


def test_answers_below_zero_are_nowhere(tmp_path):
    site = make_site()
    site.answer(999, 300 - 10, 3, score=-1)
    site.ask(1, 0, user=3, accepted=2)
    site.answer(2, 1, 1, score=-2)
    communities = read(tmp_path, site)
    ids = {one.document_id for one in communities.rankings["pets"].candidates}
    assert ids & {"pets_999", "pets_2"} == set()
    assert "pets_1" not in {thread.question_id for thread in communities.training}
    assert communities.counts["answers_below_zero"] == 2


def test_best_score_needs_two_answers_and_a_vote_and_takes_the_earlier_of_equals(tmp_path):
    site = Site()
    for day in range(20):
        number = 100 + 10 * day
        site.ask(number, day)
        site.answer(number + 1, number, day + 2, score=5)
        site.answer(number + 2, number, day + 1, score=5)
        site.answer(number + 3, number, day + 1, score=4)
    site.ask(1, 15)
    site.answer(2, 1, 15, score=9)
    site.ask(3, 15)
    for number in (4, 5):
        site.answer(number, 3, 15, score=0)
    rule = {"site": {"accepted": "best_score", "max_test": None}}
    queries = {q.query_id: q for q in read(tmp_path, site, **rule).rankings["pets"].queries}
    assert queries["pets_290"].relevant == {"pets_292": 1.0}
    assert queries.keys() & {"pets_1", "pets_3"} == set()


def test_the_base_setting_takes_every_answer_and_the_accepted_one_twice(tmp_path):
    site = make_site()
    site.answer(5, 290, 20)
    ranking = read(tmp_path, site, setting="base", min_earlier_questions=0).rankings["pets"]
    (query,) = [query for query in ranking.queries if query.query_id == "pets_290"]
    assert query.relevant == {"pets_291": 2.0, "pets_5": 1.0}
    assert len(ranking.queries) == 10 + 2


def test_an_answer_to_a_judged_question_grounds_nothing_though_it_is_older_than_training(tmp_path):
    site = make_site()
    site.answer(5, 290, 2)  # of a post that was merged into a later one
    communities = read(tmp_path, site, setting="base", min_earlier_questions=0)
    assert "pets_5" in {one.document_id for one in communities.rankings["pets"].find_test_answers()}
    grounding = {document.document_id for document in communities.grounding}
    assert grounding
    assert "pets_5" not in grounding


def test_a_post_without_a_date_is_left_out_and_counted(tmp_path):
    site = make_site()
    expected = read(tmp_path, site)
    site.ask(1, 3, accepted=2)
    site.answer(2, 1, 4)
    site.answer(3, 290, 4)
    for post in site.posts[-3:]:
        post["date"] = "" if post["id"] != 3 else "some day"
    found = read(tmp_path, site)
    assert found.counts["posts_without_date"] == 3
    assert (found.rankings, found.training, found.grounding) == (
        expected.rankings, expected.training, expected.grounding
    )  # fmt: skip


@pytest.mark.parametrize("form", ["2020-01-09 00:00:00", "2020-01-09T00:00:00", "2020-01-09"])
def test_dates_of_splits_are_read_whatever_their_form(tmp_path, form):
    split = {"kind": "dates", "validation_from": form, "test_from": "2020-01-14 00:00:00"}
    communities = read(tmp_path, make_site(), split=split, pooled="All")
    assert (
        min(query.query_id for query in communities.rankings["All"].queries if query.split == "validation")
        == "pets_180"
    )
    assert "pets_180" not in communities.training_ids


def test_training_may_ask_for_a_past_as_judging_does(tmp_path):
    site = make_site()
    everybody = read(tmp_path, site).training_ids
    with_past = read(tmp_path, site, min_earlier_questions_training=5).training_ids
    assert with_past < everybody
    assert everybody - with_past == set(sorted(everybody)[:5]), "the first five of the one who asks them all"


def test_users_are_joined_over_sites_by_their_account(tmp_path):
    first, second = make_site(), Site("birds")
    second.ask_many(range(5), user=1, first=500)
    second.ask_many(range(10, 30), user=2, first=1000)
    for post in second.posts:
        post["user"] = 70 + (post["user"] or 0)  # a number of the site's own; the account says who it is
    # With five more in the first days, the asker is judged from day 3 on: 17 days, of which 9 test and 2 of 8 validate.
    assert len(read(tmp_path, first, second).rankings["pets"].queries) == 11


def test_splits_by_dates_count_earlier_questions_up_to_the_test_split_and_interests_up_to_the_query(tmp_path):
    site = Site()
    site.ask_many(range(20), tags=["early"])
    for number, day in enumerate(range(20, 24)):
        site.ask_many([day], first=1000 + 10 * number, tags=[f"late-{number}"])
    site.ask_many([0, 1, 2, 3, 20, 21, 22], user=2, first=2000)  # four before the split: not judged
    split = {
        "kind": "dates",
        "validation_from": str(DAY + timedelta(days=8)),
        "test_from": str(DAY + timedelta(days=20)),
    }
    communities = read(tmp_path, site, split=split, pooled="All")
    queries = {query.query_id: query for query in communities.rankings["All"].queries}
    assert [q for q, query in queries.items() if query.split == "test"] == [f"pets_{1000 + 10 * n}" for n in range(4)]
    assert queries["pets_1000"].interests == ("early", "late-0")
    assert queries["pets_1030"].interests == ("early", "late-0", "late-1", "late-2", "late-3")
    trained = [f"pets_{100 + 10 * day}" for day in range(7)] + [f"pets_{2000 + 10 * day}" for day in range(4)]
    assert {thread.question_id for thread in communities.training} == {*trained}


def test_odd_posts_are_counted_and_lose_nothing(tmp_path):
    site = make_site()
    site.ask(1, 3, user=None, account=None, accepted=2)
    site.answer(2, 1, 4, user=None, account=None)
    site.ask(3, 4, tags=[])
    site.answer(4, 3, 2)  # before its question
    site.answer(6, 777, 4)  # of no question
    site.ask(8, 5)
    site.posts.append(dict(site.posts[0], title="Again"))
    communities = read(tmp_path, site)
    expected = {
        "askers_unknown": 1,
        "authors_unknown": 1,
        "questions_without_tags": 1,
        "answers_before_their_question": 1,
        "answers_without_question": 1,
        "questions_without_answers": 1,
        "ids_repeated": 1,
    }
    assert {name: communities.counts[name] for name in expected} == expected
    (unknown,) = [thread for thread in communities.training if thread.question_id == "pets_1"]
    assert (unknown.asker, unknown.interests) == ("pets_1", ())
    assert "pets_3" not in {thread.question_id for thread in communities.training}


def test_an_answer_older_than_its_question_is_never_the_accepted_one(tmp_path):
    site = make_site()
    site.ask(1, 6, accepted=2)
    site.answer(2, 1, 5)
    communities = read(tmp_path, site)
    assert "pets_1" not in {thread.question_id for thread in communities.training}
    assert "pets_1" not in {query.query_id for query in communities.rankings["pets"].queries}


def test_test_queries_and_training_threads_are_drawn_by_seed(tmp_path):
    site = {"accepted": "accepted", "max_test": 3}
    drawn = [read(tmp_path, make_site(40), site=site, max_training=5, seed=seed) for seed in (1, 1, 2)]
    tests = [[q.query_id for q in one.rankings["pets"].queries if q.split == "test"] for one in drawn]
    assert tests[0] == tests[1] != tests[2]
    assert len(tests[0]) == 3
    trained = [[thread.question_id for thread in one.training] for one in drawn]
    assert trained[0] == trained[1] != trained[2]
    assert len(trained[0]) == 5


def test_a_site_that_leaves_a_split_empty_is_told(tmp_path):
    with pytest.raises(SourceError, match=r"pets: 1 of its questions can be judged, which leaves 0 to validate"):
        read(tmp_path, make_site(6))


def test_a_rule_for_a_site_that_is_not_there_is_told(tmp_path):
    with pytest.raises(SourceError, match="no questions of cooking; there are"):
        read(tmp_path, make_site(), sites={"cooking": {"accepted": "accepted", "max_test": None}})


def test_too_many_broken_lines_are_told_with_file_and_line(tmp_path):
    (tmp_path / "pets.posts.jsonl").write_text('{"id": 1}\n{"id": 2}\n')
    values = compose_option("communities", "stackexchange")
    values["posts"] |= {"paths": [str(tmp_path / "*.posts.jsonl")]}
    with pytest.raises(SourceError, match=r"2 of 2 lines are no posts:\n  pets.posts.jsonl, line 1: no post"):
        read_communities(validate(CommunitiesConfig, values), None)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"setting": "base"}, "the setting base asks for no past"),
        (
            {"split": {"kind": "dates", "validation_from": "2021-01-01", "test_from": "2020-01-01"}},
            "must lie before test_from",
        ),
        ({"split": {"kind": "dates", "validation_from": "31.12.2019", "test_from": "2020-01-01"}}, "31.12.2019"),
    ],
)
def test_mistakes_in_the_configuration(changes, told):
    with pytest.raises(ConfigError, match=told):
        validate(CommunitiesConfig, compose_option("communities", "stackexchange") | changes)


@pytest.mark.data
def test_real_sites(data_root):
    values = compose_option("communities", "stackexchange")
    site = {"accepted": "accepted", "max_test": None}
    sites = {"onstartups": {"accepted": "best_score", "max_test": 200}}
    communities = read_communities(validate(CommunitiesConfig, values | {"site": site, "sites": sites}), data_root)
    assert communities.counts["questions"] == 14_206
    assert communities.counts["answers"] + communities.counts["answers_below_zero"] == 37_800  # one has no text
    n_test = {
        name: sum(query.split == "test" for query in ranking.queries) for name, ranking in communities.rankings.items()
    }
    assert n_test == {"ai": 59, "beer": 41, "onstartups": 200, "startups": 91}
    assert len(communities.training) == 1500


def test_the_made_up_communities_are_read(tmp_path):
    write_communities(tmp_path)
    assert set(read(tmp_path).rankings) == {"bikes", "gardens"}
