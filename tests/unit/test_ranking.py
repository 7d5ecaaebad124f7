"""Measures of rankings, against hand-worked values and an independent library."""

import math
import random

import ir_measures
import pytest

from pipeline.config import validate
from pipeline.evaluation.fusion import choose_weights, fuse_weighted, scale_runs
from pipeline.evaluation.interests import score_interests
from pipeline.evaluation.ranking import MEASURES, estimate_ranking, measure_queries, order
from pipeline.records import Candidate, Query
from pipeline.sources.communities import read_communities
from pipeline.sources.community import CommunitiesConfig
from tests.composing import compose_option

LIBRARY_NAMES = {
    "P@1": "P@1", "nDCG@3": "nDCG@3", "nDCG@10": "nDCG@10", "MAP@100": "AP@100", "MRR": "RR", "R@100": "R@100",
}  # fmt: skip
"""Of our measures in ir_measures."""


def make_query(query_id: str, relevant: dict[str, float], interests=()) -> Query:
    return Query(query_id, "text", "site", "test", relevant, tuple(interests))


def measure(scores: dict[str, float], relevant: dict[str, float]) -> dict[str, float]:
    values = measure_queries({"q": scores}, [make_query("q", relevant)])
    return {name: of_queries["q"] for name, of_queries in values.items()}


def test_hand_worked_values():
    values = measure({"a": 4, "b": 3, "c": 2, "d": 1}, {"b": 1.0, "d": 1.0, "missing": 1.0})
    ideal = 1 + 1 / math.log2(3) + 1 / 2
    assert values == {
        "P@1": 0.0,
        "nDCG@3": pytest.approx((1 / math.log2(3)) / ideal),
        "nDCG@10": pytest.approx((1 / math.log2(3) + 1 / math.log2(5)) / ideal),
        "MAP@100": pytest.approx((1 / 2 + 2 / 4) / 3),
        "MRR": 0.5,
        "R@100": pytest.approx(2 / 3),
    }


def test_an_accepted_answer_outside_the_candidates_is_a_miss():
    assert set(measure({"a": 1.0}, {"elsewhere": 1.0}).values()) == {0.0}


def test_a_query_for_which_nothing_was_found_counts():
    values = measure_queries({"q1": {"a": 1.0}}, [make_query("q1", {"a": 1.0}), make_query("q2", {"b": 1.0})])
    assert {name: sorted(of.values()) for name, of in values.items()} == {name: [0.0, 1.0] for name in MEASURES}


def test_equal_scores_stand_in_the_order_of_ids():
    assert measure({"b": 1.0, "a": 1.0}, {"a": 1.0})["P@1"] == 1.0
    assert measure({"b": 1.0, "a": 1.0}, {"b": 1.0})["MRR"] == 0.5


def test_a_query_without_an_answer_is_refused():
    with pytest.raises(ValueError, match="q: nothing is relevant"):
        measure({"a": 1.0}, {})


@pytest.mark.parametrize("score", [math.nan, math.inf])
def test_a_score_that_can_not_be_ranked_is_refused_in_a_run_and_in_what_is_fused_from_it(score):
    dense = {"q": {"a": 1.0, "b": score, "c": 2.0}}
    with pytest.raises(ValueError, match=f"q: document b: score {score}"):
        measure(dense["q"], {"a": 1.0})
    fused = fuse_weighted({"bm25": {"q": {"a": 3.0, "b": 2.0, "c": 1.0}}, "dense": dense}, {"bm25": 1.0, "dense": 0.0})
    with pytest.raises(ValueError, match="can't be ranked"):
        measure(fused["q"], {"a": 1.0})


@pytest.mark.parametrize("n_scores", [None, 6], ids=["all scores differ", "ties"])
@pytest.mark.parametrize("grades", [[1.0], [1.0, 2.0]], ids=["accepted alone", "grades"])
def test_measures_equal_those_of_an_independent_library(grades, n_scores):
    draws = random.Random(7)
    queries, run = [], {}
    for number in range(60):
        found = draws.sample(range(400), draws.choice([0, 3, 40, 100]))
        relevant = {f"d{one}": draws.choice(grades) for one in draws.sample(range(400), draws.randint(1, 9))}
        queries.append(make_query(f"q{number}", relevant))
        run[f"q{number}"] = {f"d{one}": draws.randrange(n_scores) if n_scores else draws.random() for one in found}
    qrels = {query.query_id: {one: int(grade) for one, grade in query.relevant.items()} for query in queries}
    # trec_eval puts equal scores in an order of its own; it gets ours as scores that differ.
    ordered = {
        query: {one: -rank for rank, (one, _) in enumerate(sorted(found.items(), key=lambda pair: (-pair[1], pair[0])))}
        for query, found in run.items()
    }
    theirs = ir_measures.calc_aggregate(
        [ir_measures.parse_measure(name) for name in LIBRARY_NAMES.values()], qrels, ordered
    )
    expected = {str(name): value for name, value in theirs.items()}
    ours = measure_queries(run, queries)
    for name, theirs_name in LIBRARY_NAMES.items():
        assert sum(ours[name].values()) / len(queries) == pytest.approx(expected[theirs_name], abs=1e-12)


def test_estimates_are_means_over_queries_and_seeds_with_intervals():
    queries = [make_query(f"q{number}", {"a": 1.0}) for number in range(20)]
    runs = [
        {query.query_id: {"a": 1.0, "b": 2.0 if number < missed else 0.0} for number, query in enumerate(queries)}
        for missed in (4, 8)
    ]
    estimates = estimate_ranking([measure_queries(run, queries) for run in runs], 500, 1)
    (first,) = [one for one in estimates if one.measure == "P@1"]
    assert first.value == pytest.approx((16 + 12) / 40)
    assert first.seed_sd == pytest.approx(math.sqrt(0.02))
    assert 0.4 < first.low < first.value < first.high < 0.95
    assert first.n == 20


def test_tag_is_the_share_of_the_askers_tags_plus_one():
    queries = [make_query("q", {"a": 1.0}, ["bread", "yeast", "ovens"]), make_query("new", {"a": 1.0}, ["bread"])]
    candidates = [Candidate("a", "", ("bread", "yeast", "cats")), Candidate("b", "", ())]
    found = {"q": {"a": 9.0, "b": 8.0}, "new": {"a": 1.0}}
    assert score_interests(found, queries, candidates) == {"q": {"a": 2 / 4, "b": 0.0}, "new": {"a": 1 / 2}}


def test_a_run_whose_scores_are_all_the_same_adds_nothing():
    assert scale_runs({"tag": {"q": {"a": 0.4, "b": 0.4}}}) == {"tag": {"q": {"a": 0.0, "b": 0.0}}}


def test_fusion_neither_finds_nor_loses_documents():
    runs = {"bm25": {"q": {"a": 3.0, "b": 1.0}}, "dense": {"q": {"a": 0.1, "b": 0.9}}}
    fused = fuse_weighted(runs, {"bm25": 0.3, "dense": 0.7})
    assert fused == {"q": {"a": pytest.approx(0.3), "b": pytest.approx(0.7)}}


def count_firsts(run) -> float:
    return sum(max(scores, key=scores.get) == "a" for scores in run.values())


def test_weights_that_are_best_on_validation_are_chosen_and_sum_to_one():
    runs = {"bm25": {"q": {"a": 1.0, "b": 2.0, "c": 0.0}}, "dense": {"q": {"a": 3.0, "b": 1.0, "c": 0.0}}}
    chosen = choose_weights(runs, 0.1, count_firsts)
    # a: w, b: (1 - w)/... : a leads once .5 (1 - d) + d > (1 - d) + d / 3, that is from d = .5 on.
    assert chosen == {"bm25": 0.5, "dense": 0.5}
    assert choose_weights({**runs, "tag": {"q": {"a": 0.0, "b": 0.0, "c": 0.0}}}, 0.1, lambda run: 0.0) == {
        "bm25": 1.0,
        "dense": 0.0,
        "tag": 0.0,
    }


def test_every_choice_of_weights_sums_to_one_and_none_is_left_out():
    tried = []
    runs = {name: {"q": {"a": 1.0, "b": 0.0}} for name in ("x", "y", "z")}
    choose_weights(runs, 0.1, lambda run: tried.append(run["q"]["a"]) or 0.0)
    assert len(tried) == 66
    assert tried == [pytest.approx(1.0)] * 66


def test_steps_that_can_not_fill_one_are_refused():
    with pytest.raises(ValueError, match=r"steps of 0\.3"):
        choose_weights({"x": {}}, 0.3, lambda run: 0.0)


@pytest.mark.data
def test_a_real_run_has_the_known_values_and_those_of_an_independent_library(data_root):
    import bm25s
    import Stemmer

    values = compose_option("communities", "stackexchange")
    values["posts"] |= {"paths": ["stackexchange/startups.posts.jsonl.gz"]}
    ranking = read_communities(validate(CommunitiesConfig, values), data_root).rankings["startups"]
    queries = [query for query in ranking.queries if query.split == "test"]
    assert len(queries) == 90

    def tokenize(texts):
        return bm25s.tokenize(texts, stopwords="en", stemmer=Stemmer.Stemmer("english"), show_progress=False)

    index = bm25s.BM25(k1=1.2, b=0.3)
    index.index(tokenize([candidate.text for candidate in ranking.candidates]), show_progress=False)
    places, scores = index.retrieve(tokenize([query.text for query in queries]), k=100, show_progress=False)
    ids = [candidate.document_id for candidate in ranking.candidates]
    run = {
        query.query_id: {ids[place]: float(score) for place, score in zip(of_places, of_scores, strict=True)}
        for query, of_places, of_scores in zip(queries, places, scores, strict=True)
    }
    ours = {name: sum(of.values()) / len(queries) for name, of in measure_queries(run, queries).items()}
    assert round(ours["P@1"], 3) == 0.300
    assert round(ours["nDCG@10"], 3) == 0.426
    qrels = {query.query_id: {one: int(grade) for one, grade in query.relevant.items()} for query in queries}
    # Their library breaks ties in another way, so each score is given a place of its own first.
    untied = {
        query: {one: -float(place) for place, one in enumerate(order(of_query))} for query, of_query in run.items()
    }
    theirs = ir_measures.calc_aggregate(list(map(ir_measures.parse_measure, LIBRARY_NAMES.values())), qrels, untied)
    expected = {str(name): value for name, value in theirs.items()}
    for name, library_name in LIBRARY_NAMES.items():
        assert ours[name] == pytest.approx(expected[library_name], abs=1e-12)
