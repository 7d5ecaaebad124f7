"""The offline teacher's rules write balanced, distinct, bounded queries whose length does not settle the label."""

from collections import Counter
from pathlib import Path

import pytest
from sklearn.metrics import roc_auc_score

from pipeline.tasks.ambiguity_rules import MAX_INTENTS, write_intents

TOPICS = (Path(__file__).parents[2] / "conf/topics/everyday.tsv").read_text().splitlines()[1:]
ODD_TOPICS = ("Activism", "3D printers", "Wi-Fi", "  spaced   out ", "C++ {braces}", "o" * 300, "many words " * 40)


def write_rows(seed, topics=TOPICS, n_intents=5):
    """Return (topic, query, is_ambiguous) for every query."""
    return [
        (topic, intent[side]["query"], side == "ambiguous")
        for topic in topics
        for intent in write_intents(topic, n_intents, seed)
        for side in ("specific", "ambiguous")
    ]


def test_topics_are_120_distinct_ones_in_alphabetical_order():
    assert len(TOPICS) == 120
    assert len({topic.casefold() for topic in TOPICS}) == 120
    assert sorted(TOPICS, key=str.casefold) == TOPICS
    assert all(1 <= len(topic.split()) <= 3 for topic in TOPICS)


@pytest.mark.parametrize("n_intents", [1, 5, MAX_INTENTS])
def test_an_intent_has_one_query_of_each_label(n_intents):
    intents = write_intents("Air fryers", n_intents, seed=0)
    assert len(intents) == n_intents
    for intent in intents:
        assert set(intent) == {"intent", "specific", "ambiguous"}
        assert set(intent["specific"]) == set(intent["ambiguous"]) == {"query", "information_need"}


@pytest.mark.parametrize("n_intents", [0, MAX_INTENTS + 1])
def test_more_intents_than_the_rules_know_are_refused(n_intents):
    with pytest.raises(ValueError, match=f"1 to {MAX_INTENTS} intents"):
        write_intents("Air fryers", n_intents, seed=0)


def test_same_arguments_give_the_same_queries():
    assert write_intents("Rain barrels", 5, seed=7) == write_intents("Rain barrels", 5, seed=7)


def test_seeds_and_topics_draw_different_queries():
    first, second = ({query for _, query, _ in write_rows(seed)} for seed in (0, 1))
    assert len(first & second) < 0.2 * len(first)
    bike, car = (write_intents(topic, 5, seed=0) for topic in ("Bike repair", "Car insurance"))
    assert [i["intent"].replace("bike repair", "") for i in bike] != [
        i["intent"].replace("car insurance", "") for i in car
    ]


@pytest.mark.parametrize("topic", [*ODD_TOPICS, *TOPICS[::20]])
def test_texts_stay_within_their_bounds_and_on_one_line(topic):
    for seed in range(40):
        for intent in write_intents(topic, MAX_INTENTS, seed):
            assert 0 < len(intent["intent"]) <= 80
            for query in (intent["specific"], intent["ambiguous"]):
                assert 0 < len(query["query"]) <= 160
                assert 0 < len(query["information_need"]) <= 240
                assert not set("\t\n") & set(query["query"] + query["information_need"])


@pytest.mark.parametrize("seed", range(5))
def test_queries_of_one_topic_differ(seed):
    for topic in TOPICS:
        queries = [query.casefold().rstrip("?.") for _, query, _ in write_rows(seed, [topic], MAX_INTENTS)]
        assert len(set(queries)) == 2 * MAX_INTENTS


@pytest.mark.parametrize("seed", range(5))
def test_few_queries_repeat_across_topics_and_none_has_both_labels(seed):
    rows = write_rows(seed)
    counts = Counter(query.casefold().rstrip("?.") for _, query, _ in rows)
    assert sum(counts.values()) == 1200
    assert sum(count - 1 for count in counts.values()) <= 20
    clear, ambiguous = ({query.casefold() for _, query, label in rows if label == side} for side in (False, True))
    assert not clear & ambiguous


@pytest.mark.parametrize("seed", range(3))
def test_specific_queries_name_the_topic_and_most_ambiguous_ones_do(seed):
    rows = write_rows(seed)
    assert all(topic.casefold() in query.casefold() for topic, query, label in rows if not label)
    named = [topic.casefold().split()[-1] in query.casefold() for topic, query, label in rows if label]
    assert 0.9 < sum(named) / len(named) < 1


def test_each_label_has_many_wordings():
    """Blank the topic out: at least 40 different wordings of each label are left."""
    rows = [row for seed in range(30) for row in write_rows(seed, ["Zorgle"], MAX_INTENTS)]
    for side in (False, True):
        wordings = {
            " ".join(query.casefold().split()[:3]).replace("zorgle", "_") for _, query, label in rows if label == side
        }
        assert len(wordings) >= 40


@pytest.mark.parametrize("seed", range(5))
def test_neither_length_nor_question_marks_settle_the_label(seed):
    """Sets written by language models have a length AUROC of .85 to .95."""
    rows = write_rows(seed)
    labels = [label for _, _, label in rows]
    assert 0.6 < roc_auc_score(labels, [-len(query.split()) for _, query, _ in rows]) < 0.85
    assert 0.4 < roc_auc_score(labels, [query.endswith("?") for _, query, _ in rows]) < 0.6


def test_an_information_need_says_what_the_query_says_or_lacks():
    for intent in write_intents("Used cars", MAX_INTENTS, seed=3):
        assert intent["specific"]["information_need"].startswith("About used cars: ")
        assert "leaves open" not in intent["specific"]["information_need"]
        assert "but the query leaves open" in intent["ambiguous"]["information_need"]
