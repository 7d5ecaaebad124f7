"""Tracking against a real SQLite store."""

import json
import logging
import os
import sqlite3
import time
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.errors import ConfigError
from pipeline.steps import Outputs, Step, Steps
from pipeline.storage import Folder
from pipeline.tracking import (
    MAX_PARAM_CHARS,
    Tracker,
    TrackingConfig,
    flatten_params,
    name_metric,
    redact,
    tracking_uri,
)

LOCAL = TrackingConfig(enabled=True, uri=None, experiment=None)
DOWN = LOCAL.model_copy(update={"uri": "http://someone:s3cret@127.0.0.1:9"})  # the discard port: closed


@pytest.fixture(scope="module")
def empty_database(tmp_path_factory):
    """Creating MLflow's tables takes a second; copying them takes none."""
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("mlflow") / "empty.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def root(tmp_path, empty_database):
    folder = Folder.at(tmp_path / "runs")
    folder.write_bytes("mlflow.db", empty_database.read_bytes())
    return folder


def open_tracker(root: Folder, config: TrackingConfig = LOCAL, **changes) -> Tracker:
    names = {"experiment_name": "ambiguity", "run_name": "teachers", "run_fingerprint": "f00d", "params": {"seeds": 3}}
    return Tracker.open(config, root, **{**names, **changes})


def make_step(root: Folder, name: str, arm: str, metrics=None, inputs=None, files=None, config=None) -> Step:
    def produce(folder: Folder) -> Outputs:
        for file, content in (files or {}).items():
            folder.write_bytes(file, content)
        series = (("loss", 0, 0.7, 1_700_000_001.0), ("loss", 1, 0.5, 1_700_000_002.0)) if name == "train" else ()
        digests = {"rows": "cafe"} if name == "dataset" else {}
        return Outputs(counts={"rows": 7}, metrics=metrics or {}, digests=digests, series=series)

    settings = config or {"lr": 5e-5}
    return Steps(root).run(name, produce, arm=arm, config=settings, inputs=inputs or {}, code=["pipeline.errors"])


def read_runs(root: Folder):
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri(LOCAL, root))
    experiment = client.get_experiment_by_name("ambiguity")
    return client, [] if experiment is None else list(client.search_runs([experiment.experiment_id]))


def read_child(root: Folder, run_name: str):
    return next(run for run in read_runs(root)[1] if run.info.run_name == run_name)


def test_tree_holds_one_parent_and_a_named_child_per_step(root):
    tracker = open_tracker(root)
    for name, arm in (("dataset", "offline"), ("train", "offline/minilm"), ("comparison", "")):
        tracker.publish(make_step(root, name, arm))
    tracker.finish({"ClariQ/standard/macro-F1": 0.5})
    client, runs = read_runs(root)
    by_name = {run.info.run_name: run for run in runs}
    assert set(by_name) == {"teachers", "dataset offline", "train minilm@offline", "comparison"}
    parent = by_name.pop("teachers")
    assert parent.data.tags["raystill.run"] == "f00d"
    assert parent.data.params == {"seeds": "3"}
    assert parent.data.metrics == {"ClariQ/standard/macro-F1": 0.5}
    assert {run.data.tags["mlflow.parentRunId"] for run in by_name.values()} == {parent.info.run_id}
    assert {run.info.status for run in runs} == {"FINISHED"}
    tags = by_name["train minilm@offline"].data.tags
    assert (tags["raystill.step"], tags["raystill.arm"], tags["raystill.student"]) == ("train", "offline", "minilm")
    losses = client.get_metric_history(by_name["train minilm@offline"].info.run_id, "loss")
    assert [(point.step, point.value, point.timestamp) for point in losses] == [
        (0, 0.7, 1_700_000_001_000),
        (1, 0.5, 1_700_000_002_000),
    ]


def test_times_are_those_of_the_step_not_of_publishing(root):
    step = make_step(root, "dataset", "offline")
    late = replace(step, manifest={**step.manifest, "started_at": 1_700_000_000.0, "duration_s": 2.5})
    open_tracker(root).publish(late)
    info = read_child(root, "dataset offline").info
    assert (info.start_time, info.end_time) == (1_700_000_000_000, 1_700_000_002_500)


def test_publishing_again_adds_nothing(root):
    step = make_step(root, "evaluation", "offline/minilm", {"ClariQ/standard/MCC": 0.2})
    for _ in range(2):
        tracker = open_tracker(root)
        tracker.publish(step)
        tracker.publish(step)
        tracker.finish({"MCC": 0.2})
    client, runs = read_runs(root)
    assert len(runs) == 2
    for run in runs:
        for metric in run.data.metrics:
            assert len(client.get_metric_history(run.info.run_id, metric)) == 1


def test_child_left_by_a_dead_process_is_completed_in_place(root, monkeypatch):
    from mlflow import MlflowClient

    step = make_step(root, "train", "offline/minilm", {"f1": 0.4}, files={"card.json": b"{}"})

    def die(*_, **__):
        raise KeyboardInterrupt

    tracker = open_tracker(root)
    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "log_artifacts", die)
        with pytest.raises(KeyboardInterrupt):
            tracker.publish(step)
    left = read_child(root, "train minilm@offline")
    assert left.info.status == "RUNNING"

    open_tracker(root).publish(step)
    client, runs = read_runs(root)
    assert len(runs) == 2
    done = read_child(root, "train minilm@offline")
    assert (done.info.run_id, done.info.status) == (left.info.run_id, "FINISHED")
    assert done.data.metrics["f1"] == 0.4
    assert len(client.get_metric_history(done.info.run_id, "loss")) == 2
    assert {file.path for file in client.list_artifacts(done.info.run_id)} == {"card.json", "manifest.json"}


def test_arms_share_metric_and_parameter_names(root):
    tracker = open_tracker(root)
    for arm in ("llama", "gpt"):
        metrics = {"ClariQ/standard/macro-F1": 0.5, "ClariQ/standard/precision@ambiguous": 0.9}
        tracker.publish(make_step(root, "evaluation", f"{arm}/minilm", metrics))
    one, other = (read_child(root, f"evaluation minilm@{arm}") for arm in ("llama", "gpt"))
    assert set(one.data.metrics) == set(other.data.metrics)
    assert set(one.data.metrics) == {
        "ClariQ/standard/macro-F1",
        "ClariQ/standard/precision_at_ambiguous",
        "count/rows",
    }
    assert one.data.params == {"arm": "llama", "student": "minilm", "lr": "5e-05"}
    assert other.data.params == {"arm": "gpt", "student": "minilm", "lr": "5e-05"}


def test_arms_that_share_a_step_have_a_child_each(root):
    step = make_step(root, "dataset", "a")
    tracker = open_tracker(root)
    tracker.publish(step)
    tracker.publish(replace(step, arm="b"))
    assert {run.info.run_name for run in read_runs(root)[1]} == {"teachers", "dataset a", "dataset b"}


def test_parent_that_fails_again_is_failed(root):
    for _ in range(2):
        open_tracker(root).finish({}, "FAILED")
    assert [run.info.status for run in read_runs(root)[1]] == ["FAILED"]


def test_setting_outside_the_fingerprint_may_change_between_runs(root, caplog):
    open_tracker(root, params={"workers": 1})
    open_tracker(root, params={"workers": 2, "new": 3})
    assert caplog.messages == []
    assert read_runs(root)[1][0].data.params == {"workers": "1", "new": "3"}


def test_other_fingerprint_is_another_parent(root):
    step = make_step(root, "dataset", "a")
    open_tracker(root).publish(step)
    open_tracker(root, run_fingerprint="beef").publish(step)
    assert sorted(run.info.run_name for run in read_runs(root)[1]) == ["dataset a", "dataset a", "teachers", "teachers"]


def test_dataset_is_an_input_of_the_step_that_wrote_it_and_of_those_that_read_it(root):
    dataset = make_step(root, "dataset", "offline")
    train = make_step(root, "train", "offline/minilm", inputs={"rows": "cafe"})
    tracker = open_tracker(root)
    tracker.publish(dataset)
    tracker.publish(train)
    for name, context in (("dataset offline", "written"), ("train minilm@offline", "read")):
        (used,) = read_child(root, name).inputs.dataset_inputs
        assert (used.dataset.name, used.dataset.digest) == ("offline", "cafe")
        assert json.loads(used.dataset.source)["uri"] == f"{root}/steps/dataset"
        assert [tag.value for tag in used.tags] == [context]


def test_artifacts_are_what_one_looks_at_never_rows_or_weights(root):
    files = {
        "report.html": b"<p>",
        "scores.png": b"png",
        "examples.parquet": b"rows",
        "model.safetensors": b"weights",
        "comparison.json": b" " * 5_000_001,
    }
    open_tracker(root).publish(make_step(root, "comparison", "", files=files))
    client, _ = read_runs(root)
    found = client.list_artifacts(read_child(root, "comparison").info.run_id)
    assert {file.path for file in found} == {"report.html", "scores.png", "manifest.json"}
    assert list((root.path / "mlartifacts").rglob("report.html"))


def test_more_parameters_and_metrics_than_one_call_takes_all_arrive(root):
    config = {f"p{i}": i for i in range(230)}
    metrics = {f"m{i}": float(i) for i in range(1100)}
    open_tracker(root).publish(make_step(root, "train", "a/b", metrics, config=config))
    data = read_child(root, "train b@a").data
    assert len(data.params) == 230 + len(("arm", "student"))
    assert data.metrics["m1099"] == 1099.0


@pytest.mark.parametrize("status", ["FAILED", "KILLED"])
def test_parent_that_failed_runs_again_and_then_finishes(root, status):
    open_tracker(root).finish({}, status)
    assert read_runs(root)[1][0].info.status == status
    tracker = open_tracker(root)
    assert read_runs(root)[1][0].info.status == "RUNNING"
    tracker.finish({})
    assert [run.info.status for run in read_runs(root)[1]] == ["FINISHED"]


def test_server_that_is_down_costs_one_quick_warning(root, caplog, capfd):
    step = make_step(root, "dataset", "offline")
    started = time.monotonic()
    tracker = open_tracker(root, DOWN)
    tracker.publish(step)
    tracker.finish({"f1": 1.0})
    assert time.monotonic() - started < 15
    (warning,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert "runs again" in warning.getMessage()
    printed = capfd.readouterr()
    assert "s3cret" not in warning.getMessage() + printed.out + printed.err


def test_run_after_an_outage_catches_up(root, caplog):
    steps = [make_step(root, "dataset", "a"), make_step(root, "train", "a/b"), make_step(root, "comparison", "")]
    tracker = open_tracker(root)
    tracker.publish(steps[0])
    with sqlite3.connect(root.path / "mlflow.db") as database:
        database.execute("ALTER TABLE runs RENAME TO gone")
    tracker.publish(steps[1])
    tracker.publish(steps[2])
    tracker.finish({"f1": 1.0})
    assert len([record for record in caplog.records if record.name == "pipeline.tracking"]) == 1
    with sqlite3.connect(root.path / "mlflow.db") as database:
        database.execute("ALTER TABLE gone RENAME TO runs")

    tracker = open_tracker(root)
    for step in steps:
        tracker.publish(step)
    tracker.finish({"f1": 1.0})
    runs = read_runs(root)[1]
    assert sorted(run.info.run_name for run in runs) == ["comparison", "dataset a", "teachers", "train b@a"]
    assert {run.info.status for run in runs} == {"FINISHED"}


def test_database_that_is_none_is_an_outage(root, caplog):
    root.write_bytes("mlflow.db", b"not a database" * 100)
    open_tracker(root).publish(make_step(root, "dataset", "a"))
    assert [record.name for record in caplog.records if record.levelno >= logging.WARNING] == ["pipeline.tracking"]


def test_mistake_of_ours_is_no_outage(root):
    step = make_step(root, "dataset", "a")
    tracker = open_tracker(root)
    with pytest.raises(KeyError):
        tracker.publish(replace(step, manifest={}))


def test_creating_the_database_says_nothing(tmp_path, capfd, caplog):
    open_tracker(Folder.at(tmp_path / "fresh"))
    printed = capfd.readouterr()
    assert printed.out + printed.err == ""
    assert caplog.messages == []
    assert (tmp_path / "fresh" / "mlflow.db").exists()


def test_tracking_switched_off_touches_nothing(tmp_path):
    root = Folder.at(tmp_path / "fresh")
    tracker = open_tracker(root, LOCAL.model_copy(update={"enabled": False}))
    tracker.publish(make_step(root, "dataset", "a"))
    tracker.finish({})
    assert not root.exists("mlflow.db")


def test_configured_experiment_replaces_the_task(root):
    open_tracker(root, LOCAL.model_copy(update={"experiment": "ours"}))
    client, _ = read_runs(root)
    assert client.get_experiment_by_name("ours") is not None
    assert client.get_experiment_by_name("ambiguity") is None


def test_url_root_wants_a_server():
    with pytest.raises(ConfigError, match=r"tracking\.uri.*s3://bucket/runs"):
        tracking_uri(LOCAL, Folder.at("s3://bucket/runs"))
    server = LOCAL.model_copy(update={"uri": "http://tracking:5000"})
    assert tracking_uri(server, Folder.at("s3://bucket/runs")) == "http://tracking:5000"


def test_uri_without_a_scheme_is_refused(root):
    with pytest.raises(ConfigError, match=r"scheme.*http://host:port"):
        tracking_uri(LOCAL.model_copy(update={"uri": "localhost:5000"}), root)


def test_users_own_timeouts_are_kept(root, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "77")
    open_tracker(root)
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "77"


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        ("http://user:pw@host:5000/x", "http://***@host:5000/x"),
        ("http://token@host/x", "http://***@host/x"),
        ("postgresql://u:p/w@h/db and more", "postgresql://***@h/db and more"),
        ("postgresql://u:p@ss@h/db", "postgresql://***@h/db"),
        ("postgresql://h/db?password=pw&x=1", "postgresql://h/db?password=***&x=1"),
        ("http://host:5000/path", "http://host:5000/path"),
        ("precision@clear of someone@example.org", "precision@clear of someone@example.org"),
    ],
)
def test_redacted_text_holds_no_credentials(text, safe):
    assert redact(text) == safe


def test_page_is_an_address_after_a_command_where_there_is_no_server(root):
    tracker = open_tracker(root)
    assert tracker.describe_page() == (
        f"mlflow ui --backend-store-uri sqlite:///{root}/mlflow.db, then http://127.0.0.1:5000/#/experiments/1/runs"
    )
    tracker.uri = "http://someone:s3cret@tracking:5000/"
    assert tracker.describe_page() == "http://***@tracking:5000/#/experiments/1/runs"
    assert Tracker().describe_page() == ""


def test_parameters_are_flat_short_and_without_credentials():
    params = flatten_params(
        {"student": {"lr": 5e-5, "layers": [1, 2], "empty": {}}, "uri": "http://u:p@h", "prompt": "x" * 9000, "n": None}
    )
    assert params.pop("prompt") == "x" * (MAX_PARAM_CHARS - 1) + "…"
    assert params == {
        "student.lr": "5e-05",
        "student.layers": "[1, 2]",
        "student.empty": "{}",
        "uri": "http://***@h",
        "n": "null",
    }


def test_metric_names_keep_to_the_characters_mlflow_takes():
    assert name_metric("AG News/standard/nDCG@10") == "AG News/standard/nDCG_at_10"
    assert name_metric("a(b)%") == "a_b__"


def test_importing_tracking_does_not_import_mlflow():
    import subprocess
    import sys

    code = "import sys, pipeline.tracking; sys.exit('mlflow' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


def test_a_step_made_anew_takes_the_place_of_its_predecessor(root):
    tracker = open_tracker(root)
    tracker.publish(make_step(root, "dataset", "offline", config={"filters": "old"}))
    tracker.publish(make_step(root, "dataset", "offline", config={"filters": "new"}))
    open_tracker(root).publish(make_step(root, "dataset", "offline", config={"filters": "new"}))
    children = [run for run in read_runs(root)[1] if run.data.tags.get("raystill.step") == "dataset"]
    assert [run.data.params["filters"] for run in children] == ["new"]
