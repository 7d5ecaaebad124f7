import pytest

from pipeline.errors import SourceError
from pipeline.sources.data import TopicsConfig, read_seeds, read_spare_topics
from pipeline.sources.topics import read_topics


def make_topics(path, limit):
    return TopicsConfig(kind="topics", root=None, path=str(path), column="topic", limit=limit)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.tsv", "id\ttopic\n1\tTea\n2\tHome loans\n3\t tea \n4\thome  LOANS\n5\tChess\n"),
        ("t.csv", "topic\nTea\nHome loans\ntea\nhome  LOANS\nChess\n"),
        ("t.jsonl", "".join(f'{{"topic": "{t}"}}\n' for t in ("Tea", "Home loans", "tea", "home  LOANS", "Chess"))),
        ("t.txt", "Tea\nHome loans\ntea\nhome  LOANS\nChess\n"),
    ],
)
def test_topics_that_differ_in_case_or_spacing_are_one(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    seeds = read_topics(tmp_path / name, "topic")
    assert [seed.text for seed in seeds] == ["Tea", "Home loans", "Chess"]
    assert len({seed.seed_id for seed in seeds}) == 3
    assert all(seed.group == seed.seed_id and seed.label == "" for seed in seeds)


def test_a_topic_keeps_its_id_wherever_it_stands(tmp_path):
    (tmp_path / "a.txt").write_text("Tea\nChess\n")
    (tmp_path / "b.tsv").write_text("name\nCoffee\nchess\n")
    (tmp_path / "b.txt").write_text("Tea")
    chess = read_topics(tmp_path / "a.txt", "")[1]
    assert read_topics(tmp_path / "b.tsv", "name")[1].seed_id == chess.seed_id
    assert read_topics(tmp_path / "b.txt", "")[0].seed_id != chess.seed_id


@pytest.mark.parametrize(("limit", "spare"), [(None, []), (9, []), (3, []), (2, ["Rowing"]), (1, ["Chess", "Rowing"])])
def test_a_limit_counts_distinct_topics_from_the_top_and_spares_the_others(tmp_path, limit, spare):
    (tmp_path / "t.txt").write_text("Tea\ntea\nChess\nRowing\n")
    config = make_topics(tmp_path / "t.txt", limit)
    taken = [seed.text for seed in read_seeds(config, None)]
    assert [seed.text for seed in read_spare_topics(config, None)] == spare
    assert [*taken, *spare] == ["Tea", "Chess", "Rowing"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.txt", "", "file is empty"),
        ("t.tsv", "topic\n", "file is empty"),
        ("t.txt", "Tea\n \nChess\n", "line 2: a blank topic"),
        ("t.tsv", "topic\tn\nTea\t1\n\t2\n", "line 3: a blank topic"),
        ("t.tsv", "topic\tn\nTea\t1\nChess\n", "line 3: 1 fields"),
        ("t.tsv", "subject\nTea\n", "no column 'topic'; found: subject"),
    ],
)
def test_a_bad_topic_file_is_refused_even_beyond_the_limit(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(SourceError, match=message):
        read_seeds(make_topics(tmp_path / name, limit=1), None)
