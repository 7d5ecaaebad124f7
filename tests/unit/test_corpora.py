import csv
import gzip
import hashlib
import io
import json
import subprocess
import sys
import tracemalloc

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from pipeline.config import Config, validate
from pipeline.errors import ConfigError, SourceError
from pipeline.launch import CONF
from pipeline.sources import streams
from pipeline.sources.corpora import identify_lists, list_files, read_documents
from pipeline.sources.corpus_kinds import AnyCorpusConfig, get_parts
from pipeline.sources.streams import Broken, RawDocument
from pipeline.sources.tables import file_digest

NAMES = sorted(path.stem for path in (CONF / "corpus").glob("*.yaml") if path.stem != "base")


class Holder(Config):
    corpus: AnyCorpusConfig


def make_corpus(name, /, **changes):
    """Return the corpus of a file of `conf/corpus/`, with some values changed."""
    with initialize_config_dir(str(CONF), version_base=None):
        composed = compose(f"corpus/{name}").corpus
    OmegaConf.set_struct(composed, False)
    if name == "hub":
        composed.name = "some/set"
    elif OmegaConf.is_missing(composed, "paths"):
        composed.paths = ["*"]
    values = OmegaConf.to_container(OmegaConf.merge(composed, OmegaConf.create(changes)), resolve=True)
    return validate(Holder, {"corpus": values}).corpus


def write(path, content):
    content = content if isinstance(content, bytes) else content.encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content) if path.name.endswith(".gz") else content)
    return str(path)


def read(config, location):
    return list(read_documents(config, str(location)))


def get_texts(found):
    return [item.text if isinstance(item, RawDocument) else item for item in found]


def get_broken(found):
    return [(item.line, item.reason) for item in found if isinstance(item, Broken)]


def to_csv(*rows):
    with io.StringIO() as file:
        csv.writer(file).writerows(rows)
        return file.getvalue()


@pytest.mark.parametrize("name", NAMES)
def test_every_file_of_the_group_composes_and_validates(name):
    config = make_corpus(name)
    written = yaml.safe_load((CONF / "corpus" / f"{name}.yaml").read_text())
    assert config.kind == written.get("kind", config.kind)
    assert {part.cutting.max_tokens for part in get_parts(config).values()} == {400}


def test_all_kinds_have_a_file():
    kinds = {make_corpus(name).kind for name in NAMES}
    union = AnyCorpusConfig.__args__[0].__args__
    assert kinds == {member.model_fields["kind"].annotation.__args__[0] for member in union}
    assert len(NAMES) == 22


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"limit": 5}, "parts.bbc_news: the whole has limit and near_duplicates"),
        ({"near_duplicates": 0.8}, "parts.bbc_news: the whole has limit and near_duplicates"),
        ({"ids": "own", "columns": {"id": "id"}}, "parts.bbc_news.ids is 'own', of the whole 'content'"),
        ({"kind": "combined"}, "corpus.parts.bbc_news"),
    ],
)
def test_what_is_decided_for_a_whole_is_not_said_of_its_parts(part, message):
    with pytest.raises(ConfigError, match=message):
        make_corpus("ag_bbc", parts={"bbc_news": part})


def test_a_share_is_by_one_of_the_extras():
    share = {"column": "asin", "low": 0, "high": 0.5, "seed": 1}
    assert make_corpus("jsonl", columns={"extras": {"asin": "id"}}, share=share).share.column == "asin"
    with pytest.raises(ConfigError, match=r"'asin' must be one of columns\.extras, which has title"):
        make_corpus("jsonl", columns={"extras": {"title": "title"}}, share=share)


# Tables and text


TABLES = {
    "jsonl": '{"i": 7, "t": "One", "b": "Two.", "x": null}\n\n{"i": "8", "t": "", "b": "Three.", "x": ["a", 1]}\n',
    "tsv": 'i\tx\tt\tb\n7\t\tOne\tTwo.\n\n8\t["a", 1]\t\tThree.\n',
    "csv": 'i,x,t,b\r\n7,,One,Two.\r\n\r\n8,"[""a"", 1]",,Three.\r\n',
}
COLUMNS = {"text": ["t", "b"], "separator": " | ", "id": "i", "extras": {"more": "x"}}
EXPECTED = [("7", "One | Two.", {"more": ""}), ("8", "Three.", {"more": '["a", 1]'})]


@pytest.mark.parametrize("kind", TABLES)
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_the_same_documents_come_from_every_table(tmp_path, kind, suffix):
    location = write(tmp_path / f"t.{kind}{suffix}", TABLES[kind])
    found = read(make_corpus(kind, columns=COLUMNS), location)
    assert [(item.own_id, item.text, item.extras) for item in found] == EXPECTED
    assert [item.line for item in found] == ([1, 3] if kind == "jsonl" else [2, 4])


def test_parquet_gives_them_too(tmp_path):
    table = pa.table({"i": [7, 8], "t": ["One", None], "b": ["Two.", "Three."], "x": [None, '["a", 1]']})
    pq.write_table(table, tmp_path / "t.parquet")
    found = read(make_corpus("parquet", columns=COLUMNS), tmp_path / "t.parquet")
    assert [(item.own_id, item.text, item.extras) for item in found] == EXPECTED
    assert [item.line for item in found] == [1, 2]


def test_a_table_without_a_header_is_read_by_the_names_given(tmp_path):
    names = ["i", "x", "t", "b"]
    for kind in ("tsv", "csv"):
        content = TABLES[kind].split("\n", 1)[1]
        found = read(make_corpus(kind, columns=COLUMNS, names=names), write(tmp_path / f"t.{kind}", content))
        assert [item.own_id for item in found] == ["7", "8"]


@pytest.mark.parametrize(
    ("unit", "expected"),
    [
        ("file", [("One\ntwo.\n \n\nThree.\n", 1)]),
        ("line", [("One", 1), ("two.", 2), ("Three.", 5)]),
        ("paragraph", [("One two.", 1), ("Three.", 5)]),
    ],
)
def test_plain_text_is_cut_as_asked(tmp_path, unit, expected):
    location = write(tmp_path / "t.txt.gz", "\ufeffOne\r\ntwo.\r\n \r\n\r\nThree.\r\n")
    assert [(item.text, item.line) for item in read(make_corpus("text", unit=unit), location)] == expected


def test_only_line_feeds_end_a_line(tmp_path):
    location = write(tmp_path / "t.txt", "one\u2028still\x0cone\x85\n")
    assert get_texts(read(make_corpus("text", unit="line"), location)) == ["one\u2028still\x0cone\x85"]


# What is broken


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"t": "half', "no JSON"),
        ('["a"]', "no JSON object but a list"),
        ("[" * 100_000, "no JSON"),
        ('{"T": "x"}', "no column 't'; found: T"),
        ('{"t": null}', "no text"),
        ('{"t": " \\n"}', "no text"),
        ('{"t": "\\ud83d"}', "surrogate"),
        (b'{"t": "caf\xe9"}', "not utf-8: invalid continuation byte at byte 10"),
        (b"\xff\xfe{\x00", "not utf-8"),
    ],
)
def test_a_broken_line_is_named_and_costs_no_other(tmp_path, line, reason):
    line = line if isinstance(line, bytes) else line.encode()
    location = write(tmp_path / "t.jsonl.gz", b'{"t": "a"}\n' + line + b'\n{"t": "b"}')
    config = make_corpus("jsonl", columns={"text": ["t"]})
    first, (broken, last) = read(config, location)[0], read(config, location)[1:]
    assert (first.text, last.text, last.line) == ("a", "b", 3)
    assert broken.line == 2
    assert reason in broken.reason


def test_a_table_s_broken_rows_are_named_and_cost_no_other(tmp_path):
    columns = {"text": ["b"], "id": "a", "extras": {}}
    tsv = write(tmp_path / "t.tsv", b'a\tb\n1\t"x\n2\n3\ty\tz\n4\tcaf\xe9\n5\t\n6\tz"\n')
    found = read(make_corpus("tsv", columns=columns), tsv)
    assert get_texts(found)[::5] == ['"x', 'z"']
    assert [line for line, _ in get_broken(found)] == [3, 4, 5, 6]
    assert get_broken(found)[0][1] == "1 fields, expected 2: a, b"


def test_a_quote_that_nobody_closed_swallows_no_good_row(tmp_path):
    rows = ['1,"open', "2,good", '3,"multi', 'line, ""so"""', '4,"bad"x', '5,"', "6,good", "7,good"]
    location = write(tmp_path / "t.csv", "a,b\n" + "\n".join(rows))
    found = read(make_corpus("csv", columns={"text": ["b"], "id": "a", "extras": {}}), location)
    documents = [item for item in found if isinstance(item, RawDocument)]
    assert [(item.own_id, item.text, item.line) for item in documents] == [
        ("2", "good", 3),
        ("3", 'multi\nline, "so"', 4),
        ("6", "good", 8),
        ("7", "good", 9),
    ]
    assert [line for line, _ in get_broken(found)] == [2, 6, 7]
    assert all(reason.startswith("broken CSV") for _, reason in get_broken(found))


def test_a_line_that_is_not_utf_8_breaks_the_quoted_row_around_it(tmp_path):
    location = write(tmp_path / "t.csv", b'a,b\n1,"one\ncaf\xe9\nend"\n2,good\n')
    found = read(make_corpus("csv", columns={"text": ["b"], "id": "a", "extras": {}}), location)
    assert get_texts(found)[-1] == "good"
    assert {2, 3} <= {line for line, _ in get_broken(found)}


def test_a_paragraph_with_a_broken_line_is_broken(tmp_path):
    location = write(tmp_path / "t.txt", b"one\ncaf\xe9\ntwo\n\nthree\n")
    found = read(make_corpus("text", unit="paragraph"), location)
    assert [line for line, _ in get_broken(found)] == [2]
    assert found[1].text == "three"


def test_mixed_encodings_are_read_where_a_second_one_is_named(tmp_path):
    location = write(tmp_path / "t.txt", "caf\u00e9\n".encode() + "caf\u00e9 \u2013\n".encode("cp1252") + b"a\x81\n")
    found = read(make_corpus("text", unit="line", fallback_encoding="cp1252"), location)
    assert get_texts(found)[:2] == ["caf\u00e9", "caf\u00e9 \u2013"]
    assert get_broken(found) == [(3, "not cp1252: character maps to <undefined> at byte 1")]


@pytest.mark.parametrize("unit", ["line", "paragraph", "file"])
def test_a_line_without_end_is_broken_and_fills_no_memory(tmp_path, monkeypatch, unit):
    monkeypatch.setattr(streams, "MAX_BYTES", 2**20)
    location = write(tmp_path / "t.txt.gz", b"x" * 50_000_000 + b"\n\nlast\n")
    config = make_corpus("text", unit=unit)
    tracemalloc.start()
    found = read(config, location)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "more than 1048576 bytes" in found[0].reason
    assert get_texts(found)[1:] == ([] if unit == "file" else ["last"])
    assert peak < 12_000_000


def test_a_large_file_is_never_in_memory_as_a_whole(tmp_path):
    line = json.dumps({"text": "word " * 200}) + "\n"
    location = write(tmp_path / "t.jsonl.gz", line * 30_000)
    config = make_corpus("jsonl")
    tracemalloc.start()
    n_documents = sum(1 for _ in read_documents(config, location))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert n_documents == 30_000
    assert peak < 5_000_000


@pytest.mark.parametrize(("kind", "name"), [("jsonl", "t.jsonl.gz"), ("text", "t.txt.gz"), ("csv", "t.csv.gz")])
def test_a_file_that_was_cut_is_an_error_that_says_how_far_it_was_read(tmp_path, kind, name):
    line = {"jsonl": '{"text": "x"}\n', "text": "x\n", "csv": "text\n"}[kind]
    content = gzip.compress((line * 2000).encode())
    (tmp_path / name).write_bytes(content[:-12])
    config = make_corpus(kind, **({"unit": "line"} if kind == "text" else {}))
    with pytest.raises(SourceError, match=rf"{name}: cannot be read beyond line \d+"):
        read(config, tmp_path / name)


def test_a_file_that_is_no_gzip_or_no_parquet_or_not_there_is_an_error(tmp_path):
    (tmp_path / "t.jsonl.gz").write_bytes(b'{"text": "x"}\n')
    with pytest.raises(SourceError, match=r"t\.jsonl\.gz: cannot be read beyond line 0"):
        read(make_corpus("jsonl"), tmp_path / "t.jsonl.gz")
    (tmp_path / "t.parquet").write_bytes(b"PAR1")
    with pytest.raises(SourceError, match=r"t\.parquet: cannot be read beyond row 0"):
        read(make_corpus("parquet"), tmp_path / "t.parquet")
    for kind in ("jsonl", "parquet"):
        with pytest.raises(SourceError, match="absent: no such file"):
            read(make_corpus(kind), tmp_path / "absent")


@pytest.mark.parametrize("kind", ["tsv", "csv", "parquet"])
def test_a_table_without_a_column_is_an_error_that_names_those_it_has(tmp_path, kind):
    location = write(tmp_path / f"t.{kind}", "a\nx\n")
    if kind == "parquet":
        pq.write_table(pa.table({"a": ["x"]}), location)
    with pytest.raises(SourceError, match="no column 'text'; found: a"):
        read(make_corpus(kind), location)


def test_a_header_that_cannot_be_read_is_an_error(tmp_path):
    location = write(tmp_path / "t.csv", b"text,caf\xe9\nx,y\n")
    with pytest.raises(SourceError, match="line 1: the header is not utf-8"):
        read(make_corpus("csv"), location)


def test_where_the_source_s_ids_are_wanted_a_document_without_one_is_broken(tmp_path):
    location = write(tmp_path / "t.jsonl", '{"text": "x", "i": ""}\n{"text": "y", "i": 2}')
    config = make_corpus("jsonl", columns={"id": "i"}, ids="own")
    assert get_broken(read(config, location)) == [(1, "no id")]
    with pytest.raises(ConfigError, match="names no documents"):
        make_corpus("jsonl", ids="own")
    with pytest.raises(ConfigError, match="names no documents"):
        make_corpus("text", ids="own")


@pytest.mark.parametrize("encoding", ["utf-16", "no-such", "base64", "cp037"])
def test_an_encoding_whose_lines_would_not_be_found_is_refused(encoding):
    with pytest.raises(ConfigError, match="fallback_encoding"):
        make_corpus("jsonl", fallback_encoding=encoding)
    assert make_corpus("jsonl", fallback_encoding="latin-1")


# Where files are


def test_files_are_found_by_pattern_and_in_order(tmp_path):
    for name in ("b/2.txt", "b/10.txt", "a/1.txt.gz", "a/x/3.txt", "a/.hidden.txt", ".git/4.txt", "5.csv"):
        write(tmp_path / name, "x")

    def find(*paths, root=str(tmp_path), data_root=None):
        files = list_files(make_corpus("text", paths=list(paths), root=root), data_root)
        assert files == sorted(files)
        return {file.removeprefix(f"{tmp_path}/") for file in files}

    assert find("*/*.txt") == {"b/10.txt", "b/2.txt"}
    assert find("**/*.txt*") == {"a/1.txt.gz", "a/x/3.txt", "b/10.txt", "b/2.txt"}
    assert find("a/**/*.txt*") == {"a/1.txt.gz", "a/x/3.txt"}
    assert find("b/[0-9].txt", "5.csv", "5.*") == {"b/2.txt", "5.csv"}
    assert find(f"{tmp_path}/b/?.txt", root=None) == {"b/2.txt"}
    assert find("b/?.txt", root=None, data_root=str(tmp_path)) == {"b/2.txt"}
    assert find("b/?.txt", data_root="/elsewhere") == {"b/2.txt"}
    (url,) = list_files(make_corpus("text", paths=["b/?.txt"], root=f"file://{tmp_path}"), None)
    assert get_texts(read(make_corpus("text"), url)) == ["x"]


def test_a_relative_pattern_without_a_root_counts_from_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a.txt", "x")
    assert list_files(make_corpus("text", paths=["*.txt"]), None) == [str(tmp_path / "a.txt")]


@pytest.mark.parametrize("pattern", ["*.csv", "a.txt/b", "absent/*", "a"])
def test_a_pattern_that_finds_nothing_is_an_error_even_beside_others(tmp_path, pattern):
    write(tmp_path / "a.txt", "x")
    (tmp_path / "a").mkdir()
    with pytest.raises(SourceError) as caught:
        list_files(make_corpus("text", paths=["*.txt", pattern], root=str(tmp_path)), None)
    assert repr(pattern) in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_the_digest_of_a_file_is_that_of_its_bytes(tmp_path):
    one, other = write(tmp_path / "a.jsonl.gz", "x"), write(tmp_path / "b", (tmp_path / "a.jsonl.gz").read_bytes())
    assert file_digest(one) == file_digest(other) == hashlib.sha256((tmp_path / "b").read_bytes()).hexdigest()
    with pytest.raises(SourceError, match="absent: no such file"):
        file_digest(tmp_path / "absent")


# Corpora as they are published


def test_ag_news(tmp_path):
    rows = [
        ("3", "Oil rises", "Prices rose to  #36;50\\a barrel, Reuters #39;s man said."),
        ("4", "Chips", "&lt;p&gt;Maker &lt;MKR.O&gt; of &amp;quot;chips&amp;quot; &lt;/p&gt;"),
        ("Class Index", "Title", "Description"),
        ("1", "two columns"),
    ]
    found = read(make_corpus("ag_news"), write(tmp_path / "train.csv", to_csv(*rows)))
    first, second = found[:2]
    assert first.text == "Oil rises\nPrices rose to $50 a barrel, Reuters's man said."
    assert first.extras == {"class": "3", "title": "Oil rises"}
    assert second.text == "Chips\n<p>Maker <MKR.O> of &quot;chips&quot; </p>"
    assert get_broken(found) == [
        (3, "class 'Class Index', expected 1, 2, 3 or 4"),
        (4, "2 fields, expected 3: class, title, description"),
    ]


def test_newsgroups20(tmp_path):
    message = "From: me@here\nSubject: Re: old: cars\nLines: 4\n\nThey are\ncaf\u00e9-like: \n \nand slow.\n"
    location = write(tmp_path / "rec.autos" / "102", message.encode("latin-1"))
    (found,) = read(make_corpus("newsgroups20"), location)
    assert found == RawDocument(
        "rec.autos/102", "They are caf\u00e9-like:\nand slow.", {"group": "rec.autos", "subject": "Re: old: cars"}, 1
    )
    for content, reason in (("no header here\n\ntext", "a header is missing"), ("From: me\n\n \n", "no text")):
        (broken,) = read(make_corpus("newsgroups20"), write(tmp_path / "rec.autos" / "103", content))
        assert reason in broken.reason


def test_amazon_reviews_of_every_edition(tmp_path):
    rows = [
        {
            "reviewerID": "A1",
            "asin": "B1",
            "overall": 5.0,
            "summary": "Good",
            "reviewText": "Works.",
            "unixReviewTime": 1,
        },
        {
            "user_id": "A2",
            "parent_asin": "B0",
            "asin": "B2",
            "rating": 1.0,
            "title": "Bad",
            "text": "Not.",
            "timestamp": 2,
        },
        {"reviewerID": "A3", "asin": "B3", "overall": 3.0, "unixReviewTime": 3},
    ]
    found = read(make_corpus("amazon_reviews"), write(tmp_path / "r.json.gz", "\n".join(map(json.dumps, rows))))
    assert [(item.own_id, item.text) for item in found[:2]] == [("A1-B1", "Good\nWorks."), ("A2-B2", "Bad\nNot.")]
    assert found[1].extras == {"title": "Bad", "asin": "B2", "rating": "1.0", "time": "2"}
    assert get_broken(found) == [(3, "no text")]


def test_amazon_products(tmp_path):
    rows = [
        {
            "asin": "B1",
            "title": "A pan",
            "description": ["Of <b>iron</b>.", "", "Heavy."],
            "category": ["Home", "Pans"],
        },
        {"asin": "B2", "title": "A pot", "description": "One text."},
        {"asin": "B3", "title": "var aPageStart = (new Date()).getTime();", "description": []},
        {"asin": "B4", "description": []},
    ]
    found = read(
        make_corpus("amazon_products"), write(tmp_path / "meta_Home.json.gz", "\n".join(map(json.dumps, rows)))
    )
    assert get_texts(found[:2]) == ["A pan\nOf <b>iron</b>.\nHeavy.", "A pot\nOne text."]
    assert found[0].own_id == "B1"
    assert found[0].extras == {"asin": "B1", "title": "A pan", "category": "Home > Pans"}
    assert get_broken(found) == [(3, "the title is source code of the page"), (4, "no text")]


REALNEWS = [
    {"url": "https://www.nytimes.com/a", "domain": "nytimes.com", "title": "T", "text": "American."},
    {"url": "https://timesofindia.indiatimes.com/b", "text": "Indian."},
    {"url": "", "domain": "Dawn.com", "text": "Pakistani."},
    {"url": "http://[bad", "text": "Of nobody knows where."},
]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("realnews_dominant", ["American."]),
        ("realnews_india", ["Indian."]),
        ("realnews_regional", ["Indian.", "Pakistani."]),
    ],
)
def test_realnews_by_where_the_news_site_is(tmp_path, name, expected):
    location = write(tmp_path / "r.jsonl", "\n".join(map(json.dumps, REALNEWS)))
    found = read(make_corpus(name), location)
    assert get_texts(found)[:-1] == expected
    assert get_broken(found) == [(4, "neither domain nor url, so the news site is unknown")]
    assert len(read(make_corpus(name, domains="all"), location)) == 4


def test_realnews_by_a_list_of_one_s_own(tmp_path):
    location = write(tmp_path / "r.jsonl", "\n".join(map(json.dumps, REALNEWS[:3])))
    own = write(tmp_path / "own.txt", "# mine\nNYTimes.com # in place of theirs\n\n")
    config = make_corpus("realnews_india", india_list=own)
    assert get_texts(read(config, location)) == ["American."]
    before = identify_lists(config)
    assert before != identify_lists(make_corpus("realnews_india"))
    write(tmp_path / "own.txt", "dawn.com\n")
    assert identify_lists(config) != before
    write(tmp_path / "own.txt", "# none\n")
    with pytest.raises(SourceError, match=r"own\.txt: the file is empty"):
        read(config, location)
    with pytest.raises(ConfigError, match="no absolute path"):
        make_corpus("realnews_india", india_list="own.txt")


def test_our_lists_of_news_sites_hold_domains_alone():
    (config,) = [make_corpus("realnews_india")]
    assert len(identify_lists(config)) == 1
    from pipeline.sources.published import read_domain_lists

    lists = read_domain_lists(None, None)
    assert len(lists.india) > 40
    assert len(lists.regional) > 150
    assert not lists.india & lists.regional
    assert not {"nytimes.com", "bbc.co.uk", "reuters.com", "theguardian.com"} & (lists.india | lists.regional)
    assert all(domain == domain.lower() and "." in domain for domain in lists.india | lists.regional)


POSTS_XML = """<?xml version="1.0" encoding="utf-8"?>
<posts>
  <row Id="1" PostTypeId="1" AcceptedAnswerId="3" CreationDate="2014-01-21T20:26:05" Score="18" ViewCount="9"
    Body="&lt;p&gt;Why is &amp;lt;b&amp;gt; caf\u00e9?&lt;/p&gt;" OwnerUserId="7" Title="Why?"
    Tags="&lt;c++&gt;&lt;a-b&gt;" />
  <row Id="3" PostTypeId="2" ParentId="1" CreationDate="2014-01-22" Score="-2" Body="Because." />
  <row Id="4" PostTypeId="4" CreationDate="2014-01-22" Score="0" Body="Of a tag." />
  <row Id="5" PostTypeId="2" ParentId="1" Score="1" Body="" />
  <row Id="6" PostTypeId="2" ParentId="1" Score="1" />
  <row Id="8" PostTypeId="1" Score="0" Body="Other." Title="Other?" Tags="|x|y|" />
</posts>
"""
QUESTION = {
    "site": "beer",
    "type": "question",
    "title": "Why?",
    "score": "18",
    "date": "2014-01-21T20:26:05",
    "tags": "c++ a-b",
    "accepted": "beer_3",
    "parent": "",
    "owner": "7",
    "account": "",
}


def test_the_posts_of_a_raw_dump(tmp_path):
    location = write(tmp_path / "beer.stackexchange.com" / "Posts.xml", POSTS_XML)
    found = read(make_corpus("stackexchange_posts"), location)
    assert found[0] == RawDocument("beer_1", "Why?\n<p>Why is &lt;b&gt; caf\u00e9?</p>", QUESTION, 1)
    assert (found[1].own_id, found[1].text) == ("beer_3", "Because.")
    assert found[1].extras["parent"] == "beer_1"
    assert get_broken(found) == [(4, "no text"), (5, "no post: Body missing")]
    assert found[-1].extras["tags"] == "x y"
    assert len(found) == 5


def test_which_posts_are_taken(tmp_path):
    location = write(tmp_path / "Posts.xml.gz", POSTS_XML)

    def read_ids(**changes):
        found = read(make_corpus("stackexchange_posts", site="s", **changes), location)
        return [item.own_id for item in found if isinstance(item, RawDocument)]

    assert read_ids(posts="questions") == ["s_1", "s_8"]
    assert read_ids(posts="answers") == ["s_3"]
    assert read_ids(min_score=0) == ["s_1", "s_8"]
    assert read_ids(min_score=18) == ["s_1"]


def test_a_dump_that_was_cut_is_an_error(tmp_path):
    location = write(tmp_path / "Posts.xml", POSTS_XML[:-60])
    with pytest.raises(SourceError, match=r"Posts\.xml: cannot be read beyond row \d+"):
        read(make_corpus("stackexchange_posts"), location)


def test_a_dump_cannot_make_the_reader_open_other_files(tmp_path):
    secret = write(tmp_path / "secret", "hidden")
    declared = f'<!DOCTYPE posts [<!ENTITY e SYSTEM "file://{secret}"><!ENTITY x "{"y" * 100}">]>'
    body = '<posts><row Id="1" PostTypeId="2" Score="0" Body="&x;">&e;</row></posts>'
    location = write(tmp_path / "Posts.xml", declared + body)
    try:
        found = read(make_corpus("stackexchange_posts"), location)
    except SourceError as error:
        found = [error]
    assert "hidden" not in str(found)


def test_a_dump_is_never_in_memory_as_a_whole(tmp_path):
    row = '<row Id="1" PostTypeId="2" ParentId="1" Score="1" Body="{}" />\n'.format("word " * 400)
    location = write(tmp_path / "s" / "Posts.xml.gz", f"<posts>{row * 30_000}</posts>")
    # In a process of its own, because the parser's memory is not Python's, and this one's has room from other tests.
    script = (
        "import psutil\n"
        "from lxml import etree\n"
        "from pipeline.sources.stackexchange import Wanted, read_posts_xml\n"
        "held = [psutil.Process().memory_info().rss]\n"
        f"for n, _ in enumerate(read_posts_xml({location!r}, None, Wanted('all', None)), start=1):\n"
        "    if n % 5000 == 0: held.append(psutil.Process().memory_info().rss)\n"
        "print(n, (max(held) - held[0]) // 2**20)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    n_documents, grown_mib = map(int, done.stdout.split())
    assert n_documents == 30_000
    assert grown_mib < 20


def test_posts_a_line(tmp_path):
    rows = [
        {"site": "beer", "id": 1, "type": "q", "user": 7, "account": 70, "score": 18, "date": "2014-01-21T20:26:05",
         "title": "Why?", "tags": ["c++", "a-b"], "accepted_answer": 3, "views": 9, "text": "Why is it?"},
        {"site": "beer", "id": 3, "type": "a", "user": None, "account": None, "score": -2, "date": "2014-01-22",
         "parent": 1, "accepted": True, "text": "Because."},
        {"site": "beer", "id": 4, "type": "x", "score": 0, "text": "?"},
        {"site": "beer", "id": 5, "type": "a", "score": "many", "text": "?"},
    ]  # fmt: skip
    location = write(tmp_path / "beer.posts.jsonl.gz", "\n".join(map(json.dumps, rows)))
    found = read(make_corpus("stackexchange_jsonl"), location)
    assert found[0] == RawDocument("beer_1", "Why?\nWhy is it?", QUESTION | {"account": "70"}, 1)
    assert (found[1].own_id, found[1].text) == ("beer_3", "Because.")
    assert {name: found[1].extras[name] for name in ("type", "accepted", "parent", "owner", "tags")} == {
        "type": "answer", "accepted": "true", "parent": "beer_1", "owner": "", "tags": "",
    }  # fmt: skip
    assert [line for line, _ in get_broken(found)] == [3, 4]


def test_se_pqa(tmp_path):
    answers = to_csv(
        ["Id", "CreationDate", "Score", "Title", "Tags", "CommentCount", "ParentId", "AccountId", "Text"],
        ["beer_3", "2014-01-22", "2.0", "", "", "0", "beer_1", "70.0", "Because,\nas I said."],
        ["beer_4", "2014-01-22", "-1", "", "", "0", "beer_1", "71", "No."],
        ["beer_5", "2014-01-22", "", "", "", "0", "beer_1", "71", "No score."],
    )
    (kept, broken) = read(make_corpus("se_pqa"), write(tmp_path / "answers.csv", answers))
    assert (kept.own_id, kept.text, kept.line) == ("beer_3", "Because,\nas I said.", 2)
    assert (kept.extras["type"], kept.extras["parent"], kept.extras["site"]) == ("answer", "beer_1", "beer")
    assert broken.line == 5
    assert len(read(make_corpus("se_pqa", min_score=None), tmp_path / "answers.csv")) == 3
    names = ["Id", "AcceptedAnswerId", "CreationDate", "Score", "ViewCount", "Body", "Title", "Tags", "AnswerCount",
             "CommentCount", "FavoriteCount", "AccountId", "Text", "Community"]  # fmt: skip
    row = ["beer_1", "beer_3", "2014", "18", "9", "Why is it?", "Why?", "<c++><a-b>", "1", "0", "0", "70",
           "Why? Why is it?", "beer"]  # fmt: skip
    (question,) = read(make_corpus("se_pqa"), write(tmp_path / "questions.csv", to_csv(names, row)))
    assert question.text == "Why? Why is it?"
    expected = {"type": "question", "title": "Why?", "accepted": "beer_3", "tags": "c++ a-b", "account": "70"}
    assert {name: question.extras[name] for name in expected} == expected


# The hub's data sets


def test_a_data_set_in_the_hub_s_layout_is_streamed_by_its_files(tmp_path):
    folder = tmp_path / "sets" / "mine"
    for number in range(3):
        rows = [{"text": f"{number}-{row}", "title": None, "n": row} for row in range(4)]
        write(folder / f"train-{number}.jsonl", "\n".join(map(json.dumps, rows)))
    changes = {"name": str(folder), "columns": {"extras": {"number": "n"}}}
    config = make_corpus("hub", **changes)
    locations = list_files(config, None)
    assert len(locations) == 3
    assert locations == sorted(locations)
    found = [item for location in locations for item in read(config, location)]
    assert [item.text for item in found] == [f"{number}-{row}" for number in range(3) for row in range(4)]
    assert (found[5].extras, found[5].line) == ({"number": "1"}, 2)
    write(folder / "train-0.jsonl", '{"text": "other", "title": null, "n": 0}')
    changed = list_files(config, None)
    assert not set(changed) & set(locations)
    write(folder / "train-0.jsonl", '{"text": "a", "title": null, "n": 0}\n{"text": ')
    with pytest.raises(SourceError, match=r"00000-of-00003: cannot be read beyond row 0"):
        read(config, list_files(config, None)[0])
    with pytest.raises(SourceError, match="revision"):
        list_files(make_corpus("hub", **changes, revision="main"), None)
    with pytest.raises(SourceError, match="split 'no-such'"):
        list_files(make_corpus("hub", **changes, split="no-such"), None)
