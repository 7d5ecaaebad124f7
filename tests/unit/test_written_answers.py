"""Answers that were written elsewhere, as an arm's texts."""

import json
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config import validate
from pipeline.errors import SourceError
from pipeline.quality.support import SupportConfig
from pipeline.sources.answers import WrittenAnswer, read_answers
from pipeline.sources.communities import read_communities
from pipeline.sources.community import CommunitiesConfig
from pipeline.sources.data import AnswersConfig
from pipeline.stages.answers import describe_answers
from pipeline.stages.generate import build_datasets
from pipeline.stages.inputs import read_inputs
from pipeline.steps import Steps
from pipeline.storage import Folder
from pipeline.tasks.cqa import to_written_examples
from tests.communities import write_communities
from tests.composing import compose_experiment, compose_option

ROWS = [
    {"model": "one", "id": "beer_1", "Title": "Why?", "Body": "It is flat.", "answer": "Because of the yeast."},
    {"model": "two", "id": "beer_1", "Title": "Why?", "Body": "It is flat.", "other": "lacks the column"},
    {"model": "one", "id": "beer_2", "Title": "How?", "Body": "", "answer": ""},
    {"model": "one", "id": "beer_3", "Title": "When?", "Body": None, "answer": [{"generated_text": " Soon.\n"}]},
]


def write(folder, rows=ROWS):
    path = folder / "answers.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(path, left_out=None, **changes):
    values = compose_option("data", "answers") | {"path": str(path), "where": {"model": "one"}} | changes
    return read_answers(validate(AnswersConfig, values), None, Counter() if left_out is None else left_out)


def test_the_rows_that_are_wanted_are_read_and_those_without_an_answer_left_out(tmp_path):
    assert read(write(tmp_path)) == [
        WrittenAnswer("beer_1", "", "Because of the yeast."),
        WrittenAnswer("beer_3", "", "Soon."),
    ]
    assert [one.question for one in read(write(tmp_path), question=["Title", "Body"])] == ["Why? It is flat.", "When?"]
    assert len(read(write(tmp_path), limit=1)) == 1


def test_rows_that_are_left_out_are_counted(tmp_path):
    for changes, expected in (({}, {"empty": 1}), ({"limit": 1}, {"empty": 1, "beyond_limit": 1})):
        left_out = Counter()
        read(write(tmp_path), left_out, **changes)
        assert left_out == expected


@pytest.mark.parametrize("name", ["answers.tsv", "answers.csv", "answers.parquet"])
def test_every_kind_of_table_can_be_cut_down(tmp_path, name):
    columns = {"id": ["a_1", "a_2"], "model": ["one", "two"], "answer": ["left", "right"]}
    mark = "," if name.endswith("csv") else "\t"
    if name.endswith("parquet"):
        pq.write_table(pa.table(columns), tmp_path / name)
    else:
        lines = [mark.join(columns), *(mark.join(row) for row in zip(*columns.values(), strict=True))]
        (tmp_path / name).write_text("\n".join(lines))
    assert [one.text for one in read(tmp_path / name, where={"model": "two"})] == ["right"]
    with pytest.raises(SourceError, match="no column 'nation'; found: id, model, answer"):
        read(tmp_path / name, where={"nation": "two"})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"where": {"model": "three"}}, "no row whose model is 'three'; at least one is needed"),
        ({"answer": "other"}, "line 1: no column 'other'"),
        ({"answer": "Body", "where": {"id": "beer_2"}}, "the column Body is empty in all 1 rows"),
    ],
)
def test_a_file_without_answers_is_refused_with_what_was_looked_for(tmp_path, changes, message):
    with pytest.raises(SourceError, match=message):
        read(write(tmp_path), **changes)


def test_a_broken_list_of_generated_texts_is_named(tmp_path):
    rows = [{"id": "beer_1", "answer": [{"generated_text": "a"}, {"generated_text": "b"}]}]
    with pytest.raises(SourceError, match="row 1: answer: expected a list of one generated_text"):
        read(write(tmp_path, rows), where={})


@pytest.fixture(scope="module")
def communities(tmp_path_factory):
    return read_made_up(write_communities(tmp_path_factory.mktemp("communities")))


def read_made_up(folder, **changes):
    values = compose_option("communities", "stackexchange")
    values["posts"] |= {"paths": ["*.posts.jsonl"], "root": str(folder)}
    return read_communities(validate(CommunitiesConfig, values | changes), None)


def test_answers_to_training_questions_stand_with_what_the_communities_know_of_these(communities):
    thread = communities.training[0]
    answers = [WrittenAnswer(thread.question_id, "ignored", "Mine."), WrittenAnswer(thread.question_id, "", "Mine.")]
    counts = Counter()
    (example,) = to_written_examples(answers, communities, counts)
    assert (example.text, example.group) == ("Mine.", thread.asker)
    assert example.extras["query"] == thread.query
    assert example.extras["own_answers"] == " ".join(thread.answer_ids)
    assert counts == {"repeated": 1}


def test_no_answer_to_a_question_that_is_not_for_training_gets_in(communities):
    later = communities.question_ids - {thread.question_id for thread in communities.training}
    tested = {query.query_id for ranking in communities.rankings.values() for query in ranking.queries}
    assert tested <= later
    counts = Counter()
    answers = [WrittenAnswer(one, "a question of the file's own", "An answer.") for one in sorted(later)]
    assert to_written_examples(answers, communities, counts) == []
    assert counts == {"of_questions_not_for_training": len(later)}


def test_answers_to_training_questions_beyond_their_limit_are_counted_as_such(communities, tmp_path):
    few = read_made_up(write_communities(tmp_path), max_training=3)
    counts = Counter()
    answers = [WrittenAnswer(thread.question_id, "", "An answer.") for thread in communities.training]
    assert len(to_written_examples(answers, few, counts)) == 3
    assert counts == {"of_questions_beyond_max_training": len(answers) - 3}


def test_questions_that_communities_lack_come_from_the_file_or_not_at_all(communities):
    counts = Counter()
    answers = [WrittenAnswer("beer_pong_1", "Why is it flat?", "Yeast."), WrittenAnswer("beer_2", "", "Hops.")]
    (example,) = to_written_examples(answers, communities, counts)
    assert example.extras == {
        "query": "Why is it flat?", "question_id": "beer_pong_1", "community": "beer_pong", "own_answers": "",
    }  # fmt: skip
    assert counts == {"of_unknown_questions": 1}


def compose_arm(tmp_path, posts, **data):
    """Return an experiment with one arm, whose answers are a file's."""
    options = [f"++data.{name}={value}" for name, value in data.items()]
    return compose_experiment(
        [
            "task=cqa", f"task.communities.posts.paths=[{posts}]", "data=answers", "student=reranker_minilm", *options,
            f"root={tmp_path}/runs", "tracking=none",
        ]
    )  # fmt: skip


def test_what_is_left_out_is_counted_with_the_data_set(tmp_path):
    folder = write_communities(tmp_path / "posts")
    trained = [{"id": thread.question_id, "answer": f"Use {thread.answer}"} for thread in read_made_up(folder).training]
    rows = [*trained, trained[0], {"id": "bikes_790", "answer": "Of a test question."}, {"id": "bikes_0", "answer": ""}]
    experiment = compose_arm(tmp_path, f"{folder}/*.posts.jsonl", path=write(tmp_path, rows))
    datasets = build_datasets(experiment, read_inputs(experiment), Steps(Folder.at(experiment.root)), cluster=None)
    counts = datasets["answers"].manifest["counts"]
    assert {name: n for name, n in counts.items() if name.startswith("left_out")} == {
        "left_out_repeated": 1, "left_out_of_questions_not_for_training": 1, "left_out_empty": 1,
    }  # fmt: skip
    assert counts["rows_in"] == len(trained)


def test_a_file_none_of_whose_answers_counts_is_refused_with_the_counts(tmp_path):
    posts = f"{write_communities(tmp_path / 'posts')}/*.posts.jsonl"
    with pytest.raises(SourceError, match="to a training question; left out: 1 empty, 2 of unknown questions"):
        read_inputs(compose_arm(tmp_path, posts, path=write(tmp_path), where="{model: one}"))


@pytest.mark.data
@pytest.mark.parametrize(
    ("model", "variants", "pairs", "overlaps"),
    [
        ("GPT", ("", ""), ["18.8 / 46.3", "18.8 / 47.2", "18.2 / 47.4"], ["0.43", "0.47", "0.45"]),
        ("Phi-medium", ("base", "pers"), ["33.2 / 58.8", "35.0 / 57.3", "28.0 / 52.2"], ["0.50", "0.50", "0.52"]),
        ("Phi-mini", ("base", "pers"), ["26.1 / 54.6", "31.1 / 55.2", "24.4 / 50.2"], ["0.52", "0.51", "0.53"]),
    ],
)
def test_the_authors_answers_are_arms_whose_texts_measure_as_computed_from_the_release(
    data_root, tmp_path, model, variants, pairs, overlaps
):
    sample = f"{data_root}/sy_se_pqa_sample/sy_se_pqa_sample.jsonl.gz"
    rows = {}
    for name, variant in zip(("base", "pers", "context"), (variants[0], variants[1], variants[0]), strict=True):
        experiment = compose_arm(
            tmp_path,
            f"{data_root}/stackexchange/beer.posts.jsonl.gz",
            path=sample,
            where=f"{{model: {model}, variant: '{variant}'}}",
            answer=f"answer_with_body_{name}",
            question="[Title, Body]",
        )
        (rows[name],) = read_inputs(experiment).examples.values()
    texts = describe_answers(rows, SupportConfig(recall=0.6, cosine=1))["texts"]
    assert texts["n"] == 100
    assert [f"{pair['bleu']:.1f} / {pair['chrf']:.1f}" for pair in texts["pairs"]] == pairs
    assert [f"{one['overlap']:.2f}" for one in texts["arms"].values()] == overlaps
