import datetime
import gzip
import hashlib

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import SourceError
from pipeline.sources.tables import Row, exists, file_digest, locate, read_rows

WANTED = {"query": "q", "answer": "a"}


def write(folder, name, content):
    path = folder / name
    content = content if isinstance(content, bytes) else content.encode()
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    return path


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.tsv", "a\tmore\tq\n1\tx\t wide  café \n\ty\tno\n"),
        ("t.tsv", "\ufeffa\tmore\tq\r\n1\tx\twide  café\r\n\ty\tno\r\n\r\n\n"),
        ("t.TSV.gz", "a\tmore\tq\n1\tx\twide  café\n\ty\tno"),
        ("t.csv", 'a,q,more\n1,"wide  café",x\n"",no,y\n'),
        ("t.csv.gz", "a,q,more\r\n1,wide  café,x\r\n,no,y\r\n"),
        ("t.jsonl", '{"q": "wide  café", "a": 1, "z": {}}\n{"a": null, "q": "no"}\n'),
        ("t.jsonl.gz", '{"q": "wide  caf\\u00e9", "a": "1 "}\n{"a": "", "q": "no"}'),
    ],
)
def test_same_rows_from_every_format(tmp_path, name, content):
    rows = read_rows(write(tmp_path, name, content), WANTED)
    assert [row.values for row in rows] == [{"query": "wide  café", "answer": "1"}, {"query": "no", "answer": ""}]


def test_parquet_values_become_text(tmp_path):
    day = datetime.date(2020, 2, 29)
    columns = {"q": [" a", None], "a": [1, 2], "f": [1.0, 0.5], "b": [True, False], "d": [day, day], "l": [["x"], []]}
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    rows = read_rows(tmp_path / "t.parquet", {name: name for name in columns})
    assert rows == [
        Row(1, {"q": "a", "a": "1", "f": "1.0", "b": "true", "d": "2020-02-29", "l": '["x"]'}),
        Row(2, {"q": "", "a": "2", "f": "0.5", "b": "false", "d": "2020-02-29", "l": "[]"}),
    ]


def test_quotes_in_a_tsv_are_characters(tmp_path):
    path = write(tmp_path, "t.tsv", 'q\ta\n"open\tx\n5" disk\t""y""\n')
    assert [row.values["query"] for row in read_rows(path, WANTED)] == ['"open', '5" disk']
    assert read_rows(path, WANTED)[1].values["answer"] == '""y""'


def test_only_line_feeds_end_a_line(tmp_path):
    path = write(tmp_path, "t.tsv", "q\ta\none\u2028line\x0cstill\t1\ntwo\t2\n")
    assert read_rows(path, WANTED) == [
        Row(2, {"query": "one\u2028line\x0cstill", "answer": "1"}),
        Row(3, {"query": "two", "answer": "2"}),
    ]


def test_csv_lines_are_counted_across_line_breaks_in_quotes(tmp_path):
    path = write(tmp_path, "t.csv", 'q,a\n"two\nlines, ""so""",1\nb,2\n')
    assert read_rows(path, WANTED) == [
        Row(2, {"query": 'two\nlines, "so"', "answer": "1"}),
        Row(4, {"query": "b", "answer": "2"}),
    ]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.tsv", "", "file is empty"),
        ("t.tsv", "q\ta\n", "file is empty"),
        ("t.csv", "q,a\n\n", "file is empty"),
        ("t.jsonl", "\n\n", "file is empty"),
        ("t.tsv", "query\ta\nx\ty\n", "line 1: no column 'q'; found: query, a"),
        ("t.csv", "question,answer\nx,y\n", "line 1: no column 'q', 'a'; found: question, answer"),
        ("t.jsonl", '{"q": "x", "a": 1}\n{"q": "x"}\n', "line 2: no column 'a'; found: q"),
        ("t.tsv", "q\ta\nx\ty\nx\ty\tz\n", "line 3: 3 fields, expected the header's 2: q, a"),
        ("t.tsv", "q\ta\nx\ty\n\nx\ty\n", "line 3: 1 fields, expected the header's 2"),
        ("t.csv", "q,a\nx\n", "line 2: 1 fields, expected the header's 2"),
        ("t.csv", 'q,a\nx,y\n"x,y\n', "line 3: broken CSV"),
        ("t.csv", 'q,a\n"x"y,z\n', "line 2: broken CSV"),
        ("t.jsonl", '{"q": "x", "a": 1}\n{"q": "x",\n', "line 2: expected a JSON object"),
        ("t.jsonl", '{"q": "x", "a": 1}\n\n{"q": "x", "a": 1}\n', "line 2: expected a JSON object"),
        ("t.jsonl", '["x", 1]\n', "line 1: expected a JSON object, found a list"),
        ("t.tsv", b"q\ta\nx\ty\ncaf\xe9\ty\n", "line 3: not UTF-8"),
        ("t.jsonl", '{"q": 1}'.encode("utf-16"), "line 1: not UTF-8"),
        ("t.parquet", "no table", "not readable as Parquet"),
        ("t.xlsx", "x", "unknown type of file; needed .tsv, .csv, .jsonl"),
    ],
)
def test_a_broken_file_is_refused_with_its_path_and_line(tmp_path, name, content, message):
    path = write(tmp_path, name, content)
    with pytest.raises(SourceError) as caught:
        read_rows(path, WANTED)
    assert str(caught.value).startswith(str(path))
    assert message in str(caught.value)


def test_a_gzip_file_that_was_cut_is_refused(tmp_path):
    path = tmp_path / "t.tsv.gz"
    path.write_bytes(gzip.compress(b"q\ta\n" + b"x\ty\n" * 1000)[:-12])
    with pytest.raises(SourceError, match="not a whole gzip file"):
        read_rows(path, WANTED)


def test_a_parquet_file_without_the_column_or_without_rows_is_refused(tmp_path):
    pq.write_table(pa.table({"q": ["x"], "b": [1]}), tmp_path / "t.parquet")
    with pytest.raises(SourceError, match=r"no column 'a'; found: q, b"):
        read_rows(tmp_path / "t.parquet", WANTED)
    pq.write_table(pa.table({"q": pa.array([], pa.string()), "a": pa.array([], pa.string())}), tmp_path / "e.parquet")
    with pytest.raises(SourceError, match="file is empty"):
        read_rows(tmp_path / "e.parquet", WANTED)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(SourceError, match=r"absent\.tsv: no such file"):
        read_rows(tmp_path / "absent.tsv", WANTED)
    assert not exists(tmp_path / "absent.tsv")


def test_a_folder_in_place_of_a_file_is_refused(tmp_path):
    (tmp_path / "t.tsv").mkdir()
    with pytest.raises(SourceError, match=r"t\.tsv"):
        read_rows(tmp_path / "t.tsv", WANTED)


def test_digest_is_the_sha256_of_the_bytes(tmp_path):
    for name in ("t.tsv", "t.tsv.gz"):
        path = write(tmp_path, name, "q\r\n")
        assert file_digest(path) == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_location_may_be_a_url(tmp_path):
    url = f"file://{write(tmp_path, 't.tsv', 'q')}"
    assert exists(url)
    assert file_digest(url) == hashlib.sha256(b"q").hexdigest()
    with pytest.raises(SourceError, match=r"ftp://host/t\.tsv: no place to read from"):
        read_rows("ftp://host/t.tsv", WANTED)


def test_only_relative_paths_count_from_the_root(tmp_path):
    assert locate(tmp_path, "a/b.tsv") == str(tmp_path / "a" / "b.tsv")
    assert locate("s3://bucket/data/", "a/b.tsv") == "s3://bucket/data/a/b.tsv"
    assert locate(tmp_path, "/elsewhere/b.tsv") == "/elsewhere/b.tsv"
    assert locate(tmp_path, "s3://bucket/b.tsv") == "s3://bucket/b.tsv"
