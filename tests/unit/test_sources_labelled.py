from collections import Counter

import pytest
from pydantic import TypeAdapter, ValidationError

from pipeline.errors import SourceError
from pipeline.records import Example
from pipeline.sources.data import AnyDataConfig, LabelledConfig, TopicsConfig, read_examples, read_seeds
from pipeline.sources.labelled import Columns, draw, read_labelled

LABELS = {"0": "clear", "0.0": "clear", "1": "ambiguous", "1.0": "ambiguous"}
COLUMNS = Columns(text="query", label="y", group="topic", extras={"need": "why", "text": "id"})
UNGROUPED = Columns(text="query", label="y", group=None, extras={})
HEADER = "id\ttopic\tquery\ty\twhy\n"


def write(folder, *lines):
    path = folder / "rows.tsv"
    path.write_text(HEADER + "".join(line + "\n" for line in lines))
    return path


def make_examples(n):
    return [Example(f"row{i}", "", f"g{i}", f"text {i}", "clear") for i in range(n)]


def test_columns_and_labels_are_mapped(tmp_path):
    path = write(tmp_path, '7\ttea\t best "tea" \t0.0\tbuying', "8\ttea\ttea shop\t1\twhere")
    first, second = read_labelled(path, COLUMNS, LABELS)
    assert (first.text, first.label, first.group, first.request_id) == ('best "tea"', "clear", "tea", "")
    assert first.extras == {"need": "buying", "text": "7"}
    assert (second.text, second.label) == ("tea shop", "ambiguous")


def test_ids_are_distinct_for_duplicates_and_stay_when_rows_are_added(tmp_path):
    lines = ["1\ttea\ta\t1\tx", "2\ttea\ta\t1\tx", "3\ttea\ta\t0\tx", "4\tchess\ta\t1\tx"]
    ids = [row.row_id for row in read_labelled(write(tmp_path, *lines), COLUMNS, LABELS)]
    assert len(set(ids)) == 4
    more = [row.row_id for row in read_labelled(write(tmp_path, "0\ttea\tnew\t1\tx", *lines), COLUMNS, LABELS)]
    assert more[1:] == ids


def test_without_a_group_column_equal_texts_stay_together(tmp_path):
    path = write(tmp_path, "1\ttea\ta\t1\tx", "2\tchess\tb\t1\tx", "3\tgo\ta\t0\tx")
    first, second, third = read_labelled(path, UNGROUPED, LABELS)
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
        read_labelled(path, COLUMNS, LABELS)


def test_a_missing_column_is_named(tmp_path):
    columns = Columns(text="query", label="y", group="subject", extras={"need": "reason"})
    with pytest.raises(SourceError, match="no column 'subject', 'reason'; found: id, topic, query, y, why"):
        read_labelled(write(tmp_path, "1\ttea\ta\t1\tx"), columns, LABELS)


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
    write(tmp_path, *(f"{i}\ttea\tquery {i}\t{i % 2}\tx" for i in range(10)))
    values = {"kind": "labelled", "root": str(tmp_path), "path": "rows.tsv", "labels": LABELS, "limit": 4, "seed": 3}
    values["origin"] = "human"
    config = TypeAdapter(AnyDataConfig).validate_python(values | {"columns": COLUMNS.model_dump()})
    assert isinstance(config, LabelledConfig)
    everything = read_labelled(tmp_path / "rows.tsv", COLUMNS, LABELS)
    assert read_examples(config, None) == draw(everything, 4, 3)
    rootless = config.model_copy(update={"root": None})
    assert read_examples(rootless, str(tmp_path)) == draw(everything, 4, 3)


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
