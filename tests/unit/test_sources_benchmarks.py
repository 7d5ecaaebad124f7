import dataclasses
import json
from collections import Counter

import pytest
from sklearn.metrics import roc_auc_score

from pipeline.errors import ConfigError, SourceError
from pipeline.sources.ambignq import TRAIN, read_ambignq_dev, read_ambignq_train
from pipeline.sources.benchmarks import BENCHMARKS, BenchmarkConfig, find_benchmark, read_handwritten, site_benchmark
from pipeline.sources.clariq import read_clariq
from pipeline.sources.tables import file_digest
from tests.rows import make_rows

SINGLE, MULTIPLE = {"type": "singleAnswer", "answer": ["x"]}, {"type": "multipleQAs", "qaPairs": []}


def write_clariq(root, header="topic_id\tinitial_request\tclarification_need\tquestion", train="1\t a tea \t2\twhat?"):
    (root / "clariq").mkdir(exist_ok=True)
    rows = {
        "train": [train, "1\ta tea\t2\twhich?", "2\tchess rules\t1\t"],
        "dev": ["3\tgo\t4\tx"],
        "test_with_labels": ["9\tone wording\t3\tx", "9\tother wording\t3\tx", "9\tone wording\t3\ty"],
    }
    for name, lines in rows.items():
        (root / "clariq" / f"{name}.tsv").write_text("\n".join([header, *lines]) + "\n")


def write_ambignq(root, items, name="dev_light.json"):
    (root / "ambignq").mkdir(exist_ok=True)
    (root / "ambignq" / name).write_text(items if isinstance(items, str) else json.dumps(items))


def question(number, *annotations):
    return {"id": f"q{number}", "question": f"who {number}?", "annotations": list(annotations)}


def with_real_checksums(benchmark, root, counts):
    files = tuple(dataclasses.replace(file, sha256=file_digest(root / file.path)) for file in benchmark.files)
    return dataclasses.replace(benchmark, files=files, counts=counts)


def test_clariq_has_one_item_per_wording_and_its_splits(tmp_path):
    write_clariq(tmp_path)
    found = [(item.item_id, item.text, item.label, item.split) for item in read_clariq(tmp_path)]
    assert found == [
        ("1-1", "a tea", "ambiguous", "train"),
        ("2-1", "chess rules", "clear", "train"),
        ("3-1", "go", "ambiguous", "dev"),
        ("9-1", "one wording", "ambiguous", "test"),
        ("9-2", "other wording", "ambiguous", "test"),
    ]


def test_clariq_need_outside_one_to_four_is_refused(tmp_path):
    write_clariq(tmp_path, train="1\ta tea\t5\twhat?")
    with pytest.raises(SourceError, match=r"train\.tsv, line 2: clarification_need '5', expected 1, 2, 3 or 4"):
        read_clariq(tmp_path)


def test_ambignq_rules_differ_on_disagreement_only(tmp_path):
    items = [
        question(1, SINGLE),
        question(2, MULTIPLE),
        question(3, SINGLE, MULTIPLE),
        question(4, SINGLE, MULTIPLE, MULTIPLE),
        question(5, MULTIPLE, MULTIPLE),
        question(6, SINGLE, SINGLE, MULTIPLE),
    ]
    write_ambignq(tmp_path, items)
    write_ambignq(tmp_path, items, "train_light.json")

    def ambiguous(rule):
        return [item.item_id for item in read_ambignq_dev(tmp_path, rule) if item.label == "ambiguous"]

    assert ambiguous("any") == ["q2", "q3", "q4", "q5", "q6"]
    assert ambiguous("majority") == ["q2", "q4", "q5"]
    assert ambiguous("all") == ["q2", "q5"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[{", r"dev_light\.json: not AmbigNQ: Invalid JSON"),
        ("{}", r"dev_light\.json: not AmbigNQ: Input should be a valid (list|array)"),
        ("[]", r"dev_light\.json: not AmbigNQ: List should have at least 1 item"),
        ([question(1, SINGLE), {"id": "q2", "annotations": [SINGLE]}], r"item 2: question: Field required"),
        ([question(1)], r"item 1: annotations: List should have at least 1 item"),
        ([question(1, {"type": "manyQAs"})], r"item 1: annotations.0.type: Input should be 'singleAnswer' or"),
    ],
)
def test_a_broken_ambignq_file_is_refused_with_the_item(tmp_path, content, message):
    write_ambignq(tmp_path, content)
    with pytest.raises(SourceError, match=message):
        read_ambignq_dev(tmp_path, "any")


def test_missing_files_are_listed_with_place_origin_and_command(tmp_path):
    write_clariq(tmp_path)
    (tmp_path / "clariq" / "dev.tsv").unlink()
    with pytest.raises(SourceError) as caught:
        find_benchmark("ClariQ").load(tmp_path)
    message = str(caught.value)
    assert str(tmp_path / "clariq" / "dev.tsv") in message
    assert "https://raw.githubusercontent.com/aliannejadi/ClariQ/" in message
    assert "train.tsv" not in message
    assert f"python ray_jobs/fetch.py {tmp_path}" in message
    assert not find_benchmark("ClariQ").is_present(tmp_path)
    with pytest.raises(SourceError, match=r"dev_light\.json in https://nlp\.cs\.washington\.edu/ambigqa/data/"):
        find_benchmark("AmbigNQ").load(tmp_path)
    with pytest.raises(SourceError, match=r"ambignq/train_light\.json"):
        read_ambignq_train(tmp_path, "any")


def test_a_wrong_checksum_names_path_expected_and_found(tmp_path):
    write_clariq(tmp_path)
    assert find_benchmark("ClariQ").is_present(tmp_path)
    with pytest.raises(SourceError) as caught:
        find_benchmark("ClariQ").load(tmp_path)
    first = str(caught.value).splitlines()[0]
    path = tmp_path / "clariq" / "train.tsv"
    expected = find_benchmark("ClariQ").files[0].sha256
    assert first.startswith(f"{path}: wrong checksum, expected sha256 {expected}, found {file_digest(path)}")
    write_ambignq(tmp_path, [question(1, SINGLE)], "train_light.json")
    with pytest.raises(SourceError, match=f"wrong checksum, expected sha256 {TRAIN.sha256}"):
        read_ambignq_train(tmp_path, "any")


def test_a_missing_column_is_said_before_the_checksum(tmp_path):
    write_clariq(tmp_path, header="topic_id\tinitial_request\tneed\tquestion")
    with pytest.raises(SourceError) as caught:
        find_benchmark("ClariQ").load(tmp_path)
    column, *checksums = str(caught.value).splitlines()
    assert "line 1: no column 'clarification_need'; found: topic_id, initial_request, need, question" in column
    assert len(checksums) == 3


def test_right_files_load_and_other_counts_are_refused(tmp_path):
    write_clariq(tmp_path)
    benchmark = with_real_checksums(find_benchmark("ClariQ"), tmp_path, {"ambiguous": 4, "clear": 1})
    assert len(benchmark.load(tmp_path)) == 5
    other = dataclasses.replace(benchmark, counts={"ambiguous": 262, "clear": 37})
    with pytest.raises(SourceError, match=r"ClariQ: expected .*262.* found .*4"):
        other.load(tmp_path)


def test_a_site_brings_its_own_benchmark(tmp_path):
    (tmp_path / "ours.csv").write_text("question,vague\nopening hours,yes\npi to ten digits,no\nopening hours,yes\n")
    values = {
        "name": "Helpdesk",
        "root": str(tmp_path),
        "path": "ours.csv",
        "columns": {"text": "question", "label": "vague"},
        "labels": {"yes": "ambiguous", "no": "clear"},
        "sha256": file_digest(tmp_path / "ours.csv"),
    }
    config = make_rows(BenchmarkConfig, **values)
    benchmark = site_benchmark(config)
    items = benchmark.load(config.root)
    assert [(item.text, item.label) for item in items][:2] == [
        ("opening hours", "ambiguous"),
        ("pi to ten digits", "clear"),
    ]
    assert len({item.item_id for item in items}) == 3
    assert {item.split for item in items} == set(benchmark.test_splits)

    wrong = site_benchmark(make_rows(BenchmarkConfig, **(values | {"sha256": "0" * 64})))
    with pytest.raises(SourceError, match=r"ours\.csv: wrong checksum") as caught:
        wrong.load(tmp_path)
    assert "fetch" not in str(caught.value)
    absent = site_benchmark(make_rows(BenchmarkConfig, **(values | {"path": "absent.csv", "sha256": None})))
    with pytest.raises(SourceError, match=r"absent\.csv") as caught:
        absent.load(tmp_path)
    assert "fetch" not in str(caught.value)
    with pytest.raises(ConfigError, match="'ClariQ' is taken"):
        site_benchmark(make_rows(BenchmarkConfig, **(values | {"name": "ClariQ"})))
    with pytest.raises(ConfigError, match="sha256 is of one file"):
        make_rows(BenchmarkConfig, **(values | {"path": "*.csv"}))


def test_a_benchmark_may_be_several_files_and_a_share_of_them(tmp_path):
    for name in "ab":
        lines = (f"{name}{n},{'yes' if n % 2 else 'no'}\n" for n in range(50))
        (tmp_path / f"{name}.csv").write_text("text,label\n" + "".join(lines))
    labels = {"yes": "ambiguous", "no": "clear"}
    values = {"name": "Ours", "root": None, "path": "*.csv", "labels": labels, "sha256": None}
    whole = site_benchmark(make_rows(BenchmarkConfig, **values))
    assert len(whole.load(tmp_path)) == 100
    parts = []
    for low in (0, 0.5):
        share = {"column": "text", "low": low, "high": low + 0.5, "seed": 1}
        part = site_benchmark(make_rows(BenchmarkConfig, **values, share=share))
        parts.append({item.text for item in part.load(tmp_path)})
    first, second = parts
    assert len(first) + len(second) == len(first | second) == 100
    with pytest.raises(SourceError, match=r"c\*\.csv: no such file"):
        site_benchmark(make_rows(BenchmarkConfig, **(values | {"path": "c*.csv"}))).load(tmp_path)


def test_an_unknown_benchmark_is_refused_with_the_known_names():
    with pytest.raises(ConfigError, match=r"'Clariq'.*ClariQ, AmbigNQ, AmbigNQ-majority, AmbigNQ-all, Handwritten-60"):
        find_benchmark("Clariq")


def test_names_and_splits_of_the_benchmarks():
    assert all(name == benchmark.name for name, benchmark in BENCHMARKS.items())
    assert find_benchmark("ClariQ").dev_splits == ("train", "dev")
    assert find_benchmark("ClariQ").test_splits == ("test",)
    assert find_benchmark("AmbigNQ").dev_splits == ()


def test_handwritten_sample_is_balanced_also_in_length(tmp_path):
    items = find_benchmark("Handwritten-60").load(tmp_path / "nowhere")
    assert find_benchmark("Handwritten-60").is_present(tmp_path / "nowhere")
    assert Counter(item.label for item in items) == {"clear": 30, "ambiguous": 30}
    assert [item.item_id for item in items] == [f"h{number:02d}" for number in range(1, 61)]
    assert len({item.text.casefold() for item in items}) == 60
    is_ambiguous = [item.label == "ambiguous" for item in items]
    assert 0.45 <= roc_auc_score(is_ambiguous, [-len(item.text.split()) for item in items]) <= 0.55
    assert 0.4 <= roc_auc_score(is_ambiguous, [-len(item.text) for item in items]) <= 0.6
    assert read_handwritten(tmp_path) == items
