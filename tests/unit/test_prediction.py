"""What is scored, what is refused, and what the written files hold."""

import json
from itertools import chain, repeat
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import ConfigError, SourceError
from pipeline.launch import read_scale
from pipeline.prediction.files import extend_schema, find_sources
from pipeline.prediction.model import Model, read_model
from pipeline.prediction.score import PredictionConfig, predict, score_file
from pipeline.stages.inputs import JOB_VARIABLE
from pipeline.storage import Folder
from ray_jobs.predict import make_parser
from tests.conftest import PROJECT

LABELS = ("clear", "ambiguous")


def score_by_length(texts, batch_size):
    """A logit of 0 for clear, and of what a text's length is above 10 for ambiguous."""
    return np.array([[0.0, len(text) - 10.0] for text in texts], np.float32)


def write(path, **columns):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return str(path)


@pytest.fixture
def model(tmp_path):
    return Model(Folder.at(tmp_path / "model"), "onnx", LABELS, "0123")


@pytest.fixture
def find(tmp_path, model):
    def find(*inputs, column="text", output="out", of=model):
        found = find_sources(inputs, column, of, Folder.at(tmp_path / output))
        return {source.name: source for source in found}

    return find


def test_the_schema_is_the_inputs_and_what_is_added():
    schema = pa.schema([("id", pa.int32()), ("text", pa.large_string())], {b"kept": b"yes"})
    extended = extend_schema(schema, "text", LABELS, "a.parquet")
    assert extended.names == ["id", "text", "predicted_label", "probability_clear", "probability_ambiguous"]
    assert extended.types == [pa.int32(), pa.large_string(), pa.string(), pa.float32(), pa.float32()]
    assert extended.metadata == {b"kept": b"yes"}


@pytest.mark.parametrize("taken", ["predicted_label", "probability_clear"])
def test_a_column_that_would_be_added_twice_is_refused(taken):
    schema = pa.schema([("text", pa.string()), (taken, pa.string())])
    with pytest.raises(SourceError, match=rf"/in/a\.parquet has columns \['{taken}'\] already"):
        extend_schema(schema, "text", LABELS, "/in/a.parquet")


@pytest.mark.parametrize("kind", [pa.int64(), pa.list_(pa.string()), pa.binary()])
def test_a_column_without_text_is_refused(kind):
    with pytest.raises(SourceError, match=r"/in/a\.parquet: column 'text' holds .*, and text is needed"):
        extend_schema(pa.schema([("text", kind)]), "text", LABELS, "/in/a.parquet")


def test_a_column_that_is_not_there_is_told_with_those_that_are():
    with pytest.raises(SourceError, match=r"a\.parquet: one column 'text' is needed, there are \['query'\]"):
        extend_schema(pa.schema([("query", pa.string())]), "text", LABELS, "a.parquet")


def test_rows_are_kept_in_order_and_nulls_stay_nulls(tmp_path, find):
    texts = ["long enough to be ambiguous", None, "short", None, "ten chars."]
    write(tmp_path / "in/a.parquet", id=list(range(5)), text=texts)
    (source,) = find(str(tmp_path / "in")).values()
    counts = []
    output = Folder.at(tmp_path / "out")
    assert score_file(source, "text", LABELS, score_by_length, 2, output, counts.append) == 2
    table = pq.read_table(tmp_path / "out/a.parquet")
    assert table["id"].to_pylist() == list(range(5))
    assert table["text"].to_pylist() == texts
    assert table["predicted_label"].to_pylist() == ["ambiguous", None, "clear", None, "clear"]
    expected = [1 / (1 + np.exp(10 - len(text))) if text is not None else None for text in texts]
    for found, wanted in zip(table["probability_ambiguous"].to_pylist(), expected, strict=True):
        assert found == (wanted if wanted is None else pytest.approx(wanted, abs=1e-6))
    sums = [
        a + b for a, b in zip(*(table[f"probability_{one}"].drop_null().to_pylist() for one in LABELS), strict=True)
    ]
    assert sums == pytest.approx([1, 1, 1])
    assert counts == [{"done": 5, "without text": 2}]


@pytest.mark.parametrize("texts", [[], [None, None]])
def test_files_without_a_text_keep_their_schema(tmp_path, find, texts):
    write(tmp_path / "in/a.parquet", text=pa.array(texts, pa.string()))
    (source,) = find(str(tmp_path / "in/a.parquet")).values()
    score_file(source, "text", LABELS, score_by_length, 2, Folder.at(tmp_path / "out"))
    table = pq.read_table(tmp_path / "out/a.parquet")
    assert table.schema.types == [pa.string(), pa.string(), pa.float32(), pa.float32()]
    assert table["predicted_label"].null_count == len(texts)


def test_texts_of_a_dictionary_are_read(tmp_path, find):
    write(tmp_path / "in/a.parquet", text=pa.array(["short", "short", "rather long text"]).dictionary_encode())
    (source,) = find(str(tmp_path / "in")).values()
    score_file(source, "text", LABELS, score_by_length, 2, Folder.at(tmp_path / "out"))
    assert pq.read_table(tmp_path / "out/a.parquet")["predicted_label"].to_pylist() == ["clear", "clear", "ambiguous"]


def test_a_file_whose_scoring_fails_is_not_there(tmp_path, find):
    write(tmp_path / "in/a.parquet", text=["x"] * 9000)  # more than one chunk
    (source,) = find(str(tmp_path / "in")).values()
    calls = []

    def fail_later(texts, batch_size):
        calls.append(len(texts))
        if len(calls) == 2:
            raise RuntimeError("out of memory")
        return score_by_length(texts, batch_size)

    with pytest.raises(RuntimeError, match="out of memory"):
        score_file(source, "text", LABELS, fail_later, 2, Folder.at(tmp_path / "out"))
    assert len(calls) == 2
    assert list((tmp_path / "out").iterdir()) == []


def test_inputs_may_be_files_folders_and_patterns(tmp_path, find):
    for name in ("a.parquet", "b.parquet", "deep/er/a.parquet"):
        write(tmp_path / "in" / name, text=["x"])
    (tmp_path / "in/notes.txt").write_text("no Parquet")
    assert find(str(tmp_path / "in")).keys() == {"a.parquet", "b.parquet", "deep/er/a.parquet"}
    assert find(f"{tmp_path}/in/").keys() == {"a.parquet", "b.parquet", "deep/er/a.parquet"}
    assert find(f"{tmp_path}/in/[b]*.parquet").keys() == {"b.parquet"}
    assert find(f"file://{tmp_path}/in/a.parquet", f"{tmp_path}/in/b.parquet").keys() == {"a.parquet", "b.parquet"}


def test_inputs_that_can_not_be_used_are_refused(tmp_path, find):
    one, other = (write(tmp_path / folder / "a.parquet", text=["x"]) for folder in ("in", "more"))
    with pytest.raises(ConfigError, match=f"{one} and {other} would both be written to a.parquet"):
        find(one, other)
    with pytest.raises(ConfigError, match=f"{one} would be overwritten"):
        find(one, output="in")
    with pytest.raises(SourceError, match=r"no Parquet file at .*missing"):
        find(f"{tmp_path}/missing/*.parquet")
    (tmp_path / "in/broken.parquet").write_text("text")
    with pytest.raises(SourceError, match=r"broken\.parquet can't be read as Parquet"):
        find(str(tmp_path / "in"))


@pytest.mark.parametrize("output", ["in", "in/scored", "in/not/there", "in/../in/scored", "link/scored"])
def test_an_output_in_an_input_folder_is_refused_before_it_is_made(tmp_path, find, output):
    write(tmp_path / "in/a.parquet", text=["x"])
    (tmp_path / "link").symlink_to(tmp_path / "in")
    with pytest.raises(ConfigError, match=rf"--output .*{output} is in the folder --input {tmp_path}/in/, where"):
        find(f"{tmp_path}/in/", output=output)
    assert [path.name for path in (tmp_path / "in").iterdir()] == ["a.parquet"]


@pytest.mark.parametrize("output", ["in_scored", "scored", "in/../scored", "."])
def test_an_output_beside_or_above_an_input_folder_is_taken(tmp_path, find, output):
    write(tmp_path / "in/a.parquet", text=["x"])
    assert find(str(tmp_path / "in"), output=output).keys() == {"a.parquet"}


def configure(**given):
    values = {
        "model": "/model", "inputs": ("/in",), "output": "/out", "column": "text", "engine": None, "batch_size": 8,
        "actors": 1, "cpus_per_actor": 1, "gpus_per_actor": 0, "is_shared": False,
    }  # fmt: skip
    return PredictionConfig(**{**values, **given})


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"model": "runs/export"}, "--model=runs/export"),
        ({"inputs": ("s3://bucket/queries", "queries/*.parquet")}, r"--input=queries/\*\.parquet"),
        ({"output": "scored"}, "--output=scored"),
        ({"output": "file://scored"}, "--output=file://scored"),
    ],
)
def test_a_submitted_job_takes_no_relative_place(monkeypatch, given, told):
    monkeypatch.setenv(JOB_VARIABLE, "{}")
    with pytest.raises(ConfigError, match=f"{told} is a relative path, but a submitted job"):
        predict(configure(**given), read_scale("local"))


@pytest.mark.parametrize("setting", ["model", "inputs", "output"])
def test_a_url_with_credentials_is_refused_and_not_told(setting):
    url = "s3://AKIA:hidden/secret@bucket/folder"
    with pytest.raises(ConfigError, match=rf"^--{setting.rstrip('s')} holds credentials") as raised:
        predict(configure(**{setting: (url,) if setting == "inputs" else url}), read_scale("local"))
    assert "AKIA" not in str(raised.value)
    assert "hidden" not in str(raised.value)


class Joined(Exception):  # noqa: N818
    """The cluster's nodes have passed, and Ray is asked what room they have."""


@pytest.fixture
def predict_on_nodes(monkeypatch, tmp_path):
    """Predict into Arrow's mock of a remote store, with Ray's answers for a cluster of some nodes."""
    import ray

    source = write(tmp_path / "in/a.parquet", text=["x"])

    def predict_on(n_nodes, model, is_shared=False):
        nodes = [{"NodeID": str(number), "Alive": True, "Resources": {"CPU": 1}} for number in range(n_nodes)]
        answers = {"init": None, "shutdown": None, "nodes": nodes}
        for name, answer in answers.items():
            monkeypatch.setattr(ray, name, lambda *_, answer=answer, **__: answer)
        is_initialized = chain([False], repeat(True))
        monkeypatch.setattr(ray, "is_initialized", lambda: next(is_initialized))
        monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(get_node_id=lambda: "0"))

        def end():
            raise Joined

        monkeypatch.setattr(ray, "cluster_resources", end)
        monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
        monkeypatch.setattr("pipeline.prediction.score.read_model", lambda *_: model)
        predict(configure(inputs=(source,), output="mock://out", is_shared=is_shared), read_scale("cluster"))

    return predict_on


@pytest.mark.parametrize(("place", "local"), [("{}/model", "model"), ("s3://bucket/model", "in/a.parquet")])
def test_a_local_model_or_input_is_refused_where_other_nodes_work(predict_on_nodes, tmp_path, place, local):
    model = Model(Folder.at(place.format(tmp_path)), "onnx", LABELS, "0123")
    with pytest.raises(ConfigError, match=rf"^{tmp_path}/{local} is a local path, but work runs on .*say --shared"):
        predict_on_nodes(2, model)


@pytest.mark.parametrize(("n_nodes", "is_shared"), [(1, False), (2, True)])
def test_local_places_are_taken_where_all_that_work_see_them(predict_on_nodes, model, n_nodes, is_shared):
    with pytest.raises(Joined):
        predict_on_nodes(n_nodes, model, is_shared)


def test_an_output_is_named_by_all_that_it_is_made_of(tmp_path, find, model):
    path = write(tmp_path / "in/a.parquet", text=["x"], other=["y"])
    made_of = find(path)["a.parquet"].made_of
    assert find(path)["a.parquet"].made_of == made_of
    changed = [
        find(path, column="other"),
        find(path, of=Model(model.folder, "onnx-int8", LABELS, "0123")),
        find(path, of=Model(model.folder, "onnx", LABELS, "4567")),
    ]
    write(tmp_path / "in/a.parquet", text=["longer"], other=["y"])
    changed.append(find(path))
    assert len({made_of, *(one["a.parquet"].made_of for one in changed)}) == 5


def write_model(folder, **config):
    (folder / "onnx").mkdir(parents=True)
    values = {"architectures": ["BertForSequenceClassification"], "id2label": dict(enumerate(LABELS)), **config}
    (folder / "config.json").write_text(json.dumps(values))
    return str(folder)


def test_a_model_chooses_its_engine(tmp_path):
    folder = write_model(tmp_path / "model")
    assert read_model(folder, None, 0).engine == "torch"
    (tmp_path / "model/onnx/model.onnx").touch()
    assert read_model(folder, None, 0).engine == "onnx"
    assert read_model(folder, None, 1).engine == "torch"
    assert read_model(folder, None, 0).labels == LABELS
    with pytest.raises(ConfigError, match="engine onnx computes on the CPU"):
        read_model(folder, "onnx", 1)
    with pytest.raises(ConfigError, match=r"engine onnx-int8 needs onnx/model_int8\.onnx"):
        read_model(folder, "onnx-int8", 0)


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        ({"architectures": ["BertModel"]}, "a sequence classifier is needed"),
        ({"architectures": None}, "no architecture"),
        ({"id2label": {"0": "same", "1": "same"}}, "names of their own"),
        ({"id2label": {"0": "alone"}}, "two or more"),
    ],
)
def test_a_model_that_is_no_classifier_is_refused(tmp_path, config, problem):
    with pytest.raises(ConfigError, match=problem):
        read_model(write_model(tmp_path / "model", **config), None, 0)


def test_a_model_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="missing is no folder"):
        read_model(str(tmp_path / "missing"), None, 0)


def test_documented_commands_parse():
    pages = [PROJECT / "README.md", PROJECT / "docs/students.md"]
    lines = [line for page in pages for line in page.read_text().splitlines() if "ray_jobs/predict.py --" in line]
    assert len(lines) >= 2
    for line in lines:
        given = make_parser().parse_args(line.split("predict.py ")[1].split("  ")[0].split())
        assert given.model
        assert given.input
    with pytest.raises(SystemExit):
        make_parser().parse_args(["--model", "m", "--input", "i", "--output", "o", "--actors", "0"])
