"""Students: which fits there are, what a fit minimises, and that it is what it says after saving and again."""

import os
import subprocess
import sys
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score
from sklearn.utils.class_weight import compute_class_weight

from pipeline.config import validate
from pipeline.errors import ConfigError
from pipeline.records import Example
from pipeline.students.classifier import (
    describe_model,
    fit_classifier,
    load_predictor,
    make_loss,
    weigh_classes,
)
from pipeline.students.config import ClassifierConfig
from pipeline.students.fine_tuning import Epoch, FitResult, Hooks
from pipeline.students.fits import Fit, choose_epochs, plan_fits
from pipeline.weights import locate_model, pin_model
from tests.models import build_tiny

LABELS = ("clear", "ambiguous")
SETTINGS = {
    "kind": "classifier",
    "label": "tiny",
    "model": "",
    "revision": None,
    "selected_on": (),
    "max_length": 16,
    "epochs": 2,
    "patience": 2,
    "learning_rate": 5e-3,
    "batch_size": 8,
    "gradient_accumulation": 1,
    "gradient_checkpointing": False,
    "length_bucketing": False,
    "weight_decay": 0.01,
    "adam_epsilon": 1e-8,
    "schedule": "linear",
    "warmup_share": 0.1,
    "max_grad_norm": 1.0,
    "dropout": True,
    "label_smoothing": 0.1,
    "class_weights": True,
    "folds": 0,
    "seeds": (1,),
    "precision": "fp32",
    "eval_batch_size": 16,
}
KINDS = ("distilbert", "roberta")


def configure(**changes) -> ClassifierConfig:
    return validate(ClassifierConfig, {**SETTINGS, **changes})


# --- the plan of fits


def make_rows(groups) -> list[Example]:
    """Return rows for a list of (rows of `clear`, rows of `ambiguous`), one pair a group."""
    labels = [
        (g, label) for g, counts in enumerate(groups) for label, n in zip(LABELS, counts, strict=True) for _ in range(n)
    ]
    return [Example(f"r{i}", "", f"g{group}", f"text {i}", label) for i, (group, label) in enumerate(labels)]


@given(
    st.integers(2, 5).flatmap(
        lambda n_folds: st.tuples(
            st.just(n_folds), st.lists(st.tuples(st.integers(1, 8), st.integers(1, 8)), min_size=n_folds, max_size=14)
        )
    ),
    st.integers(0, 100),
)
@settings(deadline=None, max_examples=60)
def test_folds_hold_out_every_row_once_and_never_split_a_group(folds_and_groups, seed):
    n_folds, groups = folds_and_groups
    rows = make_rows(groups)
    plan = plan_fits(rows, configure(folds=n_folds, seeds=(5, 6)), seed)
    assert [fit.name for fit in plan] == [*(f"fold-{fold}" for fold in range(n_folds)), "final-5", "final-6"]
    folds, finals = plan[:n_folds], plan[n_folds:]
    assert Counter(i for fold in folds for i in fold.held_out) == dict.fromkeys(range(len(rows)), 1)
    for fold in folds:
        assert fold.is_fold
        assert sorted(fold.train + fold.held_out) == list(range(len(rows)))
        assert not {rows[i].group for i in fold.train} & {rows[i].group for i in fold.held_out}
        assert {rows[i].label for i in fold.train} == set(LABELS)
    for fit, final_seed in zip(finals, (5, 6), strict=True):
        assert fit == Fit(f"final-{final_seed}", final_seed, tuple(range(len(rows))), ())
        assert not fit.is_fold


def test_folds_are_drawn_by_the_seed():
    rows = make_rows([(2, 2)] * 12)
    one, again, other = (plan_fits(rows, configure(folds=4), seed)[0] for seed in (1, 1, 2))
    assert one == again
    assert one.held_out != other.held_out


def test_folds_have_like_shares_of_the_labels():
    rows = make_rows([(5, 5), (1, 9), (9, 1), (5, 5)] * 5)
    for fold in plan_fits(rows, configure(folds=5), 3)[:5]:
        share = np.mean([rows[i].label == "clear" for i in fold.held_out])
        assert share == pytest.approx(0.5, abs=0.1)


def test_without_folds_there_are_only_final_fits():
    plan = plan_fits(make_rows([(2, 2)]), configure(folds=0, seeds=(3, 1)), 0)
    assert [(fit.name, fit.seed) for fit in plan] == [("final-3", 3), ("final-1", 1)]


@pytest.mark.parametrize("groups", [[(3, 3)] * 4, [(3, 3)] * 4 + [(3, 0)] * 9])
def test_too_few_groups_of_a_label_are_refused_with_advice(groups):
    with pytest.raises(ConfigError, match=r"5 folds need at least 5 groups .* has 4; .*`folds` lower"):
        plan_fits(make_rows(groups), configure(folds=5), 0)


@pytest.mark.parametrize(("best", "expected"), [([], 10), ([3], 3), ([5, 1, 2], 2), ([1, 2, 4, 9], 2), ([4, 4, 1], 4)])
def test_final_fits_train_for_the_median_of_the_best_epochs(best, expected):
    assert choose_epochs(best, configure(epochs=10)) == expected


@pytest.mark.parametrize(
    ("scores", "best"),
    [([0.2, 0.5, 0.4], 2), ([0.5, 0.5, 0.1], 1), ([0.1], 1), ([None, None, None], 3), ([0.0, 0.0], 1)],
)
def test_the_best_epoch_is_the_first_of_the_best_or_the_last_without_scores(scores, best):
    epochs = tuple(Epoch(n, 0.5, None if s is None else 0.6, s, 0.0) for n, s in enumerate(scores, start=1))
    result = FitResult("macro-F1", epochs, 9, 1.5)
    assert result.best_epoch == best
    assert result.to_json()["best_epoch"] == best
    assert result.to_json()["held_out_score"] == scores[best - 1]
    assert [epoch["held_out_score"] for epoch in result.to_json()["epochs"]] == scores


@pytest.mark.parametrize(
    ("changes", "message"), [({"folds": 1}, "folds: 1 leaves nothing"), ({"seeds": (1, 1)}, "once")]
)
def test_settings_that_make_no_sense_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        configure(**changes)


# --- the loss


@given(st.lists(st.integers(0, 2), min_size=3, max_size=50).map(lambda labels: [0, 1, 2, *labels]))
@settings(deadline=None)
def test_class_weights_are_scikit_learns_balanced_ones(labels):
    expected = compute_class_weight("balanced", classes=np.arange(3), y=np.array(labels))
    assert weigh_classes(labels, 3) == pytest.approx(list(expected))
    assert np.mean([weigh_classes(labels, 3)[label] for label in labels]) == pytest.approx(1)


def test_a_class_without_rows_cannot_be_weighed():
    with pytest.raises(ValueError, match=r"\[2, 0\]"):
        weigh_classes([0, 0], 2)


def compute(logits, labels, weights, smoothing, n_items=None) -> float:
    outputs = {"logits": torch.tensor(logits, dtype=torch.float64)}
    return make_loss(weights, smoothing)(outputs, torch.tensor(labels), n_items).item()


def test_the_loss_worked_by_hand():
    """Two rows of even odds (log 2 each) with weights 1 and 3, then a sure one: log(1 + e^-2)."""
    assert compute([[0.0, 0.0], [5.0, 5.0]], [0, 1], [1.0, 3.0], 0.0) == pytest.approx((1 + 3) * np.log(2) / 2)
    assert compute([[2.0, 0.0]], [0], None, 0.0) == pytest.approx(np.log(1 + np.exp(-2)))
    # Smoothing .2 over two classes: .9 of the target's term and .1 of the other's, each with its class's weight.
    right, wrong = np.log(1 + np.exp(-2)), np.log(1 + np.exp(2))
    assert compute([[2.0, 0.0]], [0], None, 0.2) == pytest.approx(0.9 * right + 0.1 * wrong)
    assert compute([[2.0, 0.0]], [0], [2.0, 0.5], 0.2) == pytest.approx(0.9 * 2.0 * right + 0.1 * 0.5 * wrong)


LOGITS = np.random.default_rng(0).normal(size=(12, 3)).tolist()
TARGETS = [0, 1, 2, 0, 0, 1, 2, 2, 1, 0, 0, 0]
WEIGHTS = [0.5, 1.5, 2.0]


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.4])
@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["plain", "weighted"])
def test_the_loss_is_torchs_over_the_number_of_rows(weights, smoothing):
    tensor = None if weights is None else torch.tensor(weights, dtype=torch.float64)
    mean = torch.nn.functional.cross_entropy(
        torch.tensor(LOGITS, dtype=torch.float64), torch.tensor(TARGETS), tensor, label_smoothing=smoothing
    ).item()
    # torch divides by the sum of the rows' weights.
    total_weight = 12 if weights is None else sum(weights[target] for target in TARGETS)
    assert compute(LOGITS, TARGETS, weights, smoothing) == pytest.approx(mean * total_weight / 12)


def test_weights_and_smoothing_each_change_the_loss():
    losses = {compute(LOGITS, TARGETS, weights, smoothing) for weights in (None, WEIGHTS) for smoothing in (0.0, 0.1)}
    assert len({round(loss, 6) for loss in losses}) == 4


@given(st.integers(1, 11), st.sampled_from([None, WEIGHTS]), st.sampled_from([0.0, 0.1]))
@settings(deadline=None)
def test_a_batch_split_over_accumulation_steps_has_the_same_loss(split, weights, smoothing):
    whole = compute(LOGITS, TARGETS, weights, smoothing)
    parts = [
        compute(LOGITS[:split], TARGETS[:split], weights, smoothing, n_items=torch.tensor(12)),
        compute(LOGITS[split:], TARGETS[split:], weights, smoothing, n_items=torch.tensor(12)),
    ]
    assert sum(parts) == pytest.approx(whole)


# --- fits of small models


TEXTS = [f"{'how much is it in' if i % 3 else 'what about'} {place}" for i, place in enumerate("abcdefghij" * 4)]
CLASSES = [0 if i % 3 else 1 for i in range(40)]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return {kind: build_tiny(kind, tmp_path_factory.mktemp(kind)) for kind in KINDS}


@pytest.fixture(autouse=True)
def _one_thread():
    """The same sums everywhere, and no quarrel over two cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def fit(model, save_to, held_out=(), seed=1, epochs=2, on_epoch=lambda _: None, **changes) -> FitResult:
    config = configure(model=str(model), **changes)
    held_out_texts, held_out_classes = zip(*held_out, strict=True) if held_out else ((), ())
    return fit_classifier(
        TEXTS, CLASSES, held_out_texts, held_out_classes, LABELS, config,
        seed=seed, epochs=epochs, use_gpu=False, save_to=save_to, hooks=Hooks(on_epoch),
    )  # fmt: skip


def predict(folder, texts=TEXTS, batch_size=7):
    return load_predictor(folder, use_gpu=False)(texts, batch_size)


@pytest.fixture(scope="module")
def fitted(tiny, tmp_path_factory):
    """One fit of each kind, shared by the tests that only look at it."""
    torch.set_num_threads(1)
    found = {}
    for kind in KINDS:
        folder = tmp_path_factory.mktemp(f"fitted_{kind}")
        found[kind] = (folder, fit(tiny[kind], folder))
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_a_fit_learns_and_reports_its_epochs(fitted, kind):
    _, result = fitted[kind]
    assert [epoch.epoch for epoch in result.epochs] == [1, 2]
    assert result.epochs[1].train_loss < result.epochs[0].train_loss
    assert result.epochs[0].held_out_score is None
    assert result.best_epoch == 2
    assert 0 < result.duration_s < 120
    assert 1.7e9 < result.epochs[0].at <= result.epochs[1].at


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_model_knows_its_labels_and_predicts_the_same_in_any_batch(fitted, kind):
    folder, _ = fitted[kind]
    probabilities = predict(folder)
    assert probabilities.shape == (40, 2)
    assert probabilities.dtype == np.float64
    assert probabilities.sum(axis=1) == pytest.approx(np.ones(40))
    for batch_size in (1, 40):
        assert predict(folder, batch_size=batch_size) == pytest.approx(probabilities, abs=1e-6)
    backwards = predict(folder, TEXTS[::-1])
    assert backwards[::-1] == pytest.approx(probabilities, abs=1e-6)
    assert len(np.unique(probabilities.round(6), axis=0)) > 10, "rows differ, so their order is looked at"
    from transformers import AutoConfig

    assert AutoConfig.from_pretrained(folder).id2label == {0: "clear", 1: "ambiguous"}


@pytest.mark.parametrize("kind", KINDS)
def test_predictions_after_reloading_are_those_at_the_end_of_the_fit(tiny, tmp_path, kind):
    """The trainer's own score of the last epoch, recomputed from the saved model."""
    held_out = list(zip(TEXTS[:15], CLASSES[:15], strict=True))
    result = fit(tiny[kind], tmp_path, held_out, label_smoothing=0.0, class_weights=False)
    probabilities = predict(tmp_path, TEXTS[:15])
    decided = probabilities.argmax(axis=1)
    last = result.epochs[-1]
    assert f1_score(CLASSES[:15], decided, average="macro") == pytest.approx(last.held_out_score)
    own = -np.log(probabilities[np.arange(15), CLASSES[:15]]).mean()
    assert own == pytest.approx(last.held_out_loss, rel=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_one_seed_is_one_model_and_another_is_another(tiny, fitted, tmp_path, kind):
    folder, result = fitted[kind]
    again = fit(tiny[kind], tmp_path / "again")
    fit(tiny[kind], tmp_path / "other", seed=2)
    assert [e.train_loss for e in again.epochs] == [e.train_loss for e in result.epochs]
    assert (predict(tmp_path / "again") == predict(folder)).all()
    assert not np.allclose(predict(tmp_path / "other"), predict(folder), atol=1e-4)


@pytest.mark.parametrize("change", [{"class_weights": False}, {"label_smoothing": 0.0}], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_class_weights_and_label_smoothing_both_change_what_is_learned(tiny, fitted, tmp_path, kind, change):
    fit(tiny[kind], tmp_path, **change)
    difference = predict(tmp_path)[:, 1].mean() - predict(fitted[kind][0])[:, 1].mean()
    assert abs(difference) > 1e-4
    if "class_weights" in change:
        assert difference < 0, "a third of the rows is ambiguous; weights speak for them"


@pytest.mark.parametrize("change", [{"dropout": False}, {"adam_epsilon": 1e-3}], ids=str)
def test_dropout_and_adams_epsilon_change_what_is_learned(tiny, fitted, tmp_path, change):
    fit(tiny["distilbert"], tmp_path, **change)
    assert abs(predict(tmp_path) - predict(fitted["distilbert"][0])).max() > 1e-4


def test_accumulated_batches_learn_what_whole_ones_do(tiny, tmp_path):
    """Without dropout a batch of 20 and two of 10 are one step, also where classes are uneven over the halves."""
    for kind in KINDS:
        fit(tiny[kind], tmp_path / "whole", batch_size=20, dropout=False)
        fit(tiny[kind], tmp_path / "halves", batch_size=10, gradient_accumulation=2, dropout=False)
        assert predict(tmp_path / "halves") == pytest.approx(predict(tmp_path / "whole"), abs=1e-4)


def test_a_fit_with_held_out_rows_stops_early_and_tells_of_each_epoch(tiny, tmp_path):
    """A rate too small to change a decision: the first epoch stays the best, and patience runs out."""
    told = []
    held_out = list(zip(TEXTS[:10], CLASSES[:10], strict=True))
    result = fit(tiny["distilbert"], None, held_out, epochs=6, patience=2, learning_rate=1e-9, on_epoch=told.append)
    assert len(result.epochs) == 3
    assert result.best_epoch == 1
    assert len(told) == 3


def test_long_texts_are_cut_alike_in_training_and_prediction(fitted):
    from transformers import AutoTokenizer

    folder, _ = fitted["roberta"]
    assert AutoTokenizer.from_pretrained(folder).model_max_length == 16
    long, longer = "how much is it in a b c d e f g h i j k", "how much is it in a b c d e f g h i j k" + " z" * 900
    assert predict(folder, [longer]) == pytest.approx(predict(folder, [long]), abs=1e-6)


def test_a_models_description_counts_its_parameters(fitted):
    folder, _ = fitted["distilbert"]
    from safetensors.torch import load_file

    n_parameters = sum(tensor.numel() for tensor in load_file(folder / "model.safetensors").values())
    described = describe_model(folder, use_gpu=False)
    assert described["n_parameters"] == n_parameters > 10_000
    assert described["memory_mb"] == pytest.approx(4 * n_parameters / 1e6, abs=0.1)


@pytest.mark.parametrize("kind", KINDS)
def test_a_seed_draws_the_head(tiny, tmp_path, kind):
    """Nothing is learned at such a rate, so what differs is what was drawn."""
    for seed in (1, 2):
        fit(tiny[kind], tmp_path / str(seed), seed=seed, epochs=1, learning_rate=1e-12)
    assert not np.allclose(predict(tmp_path / "1"), predict(tmp_path / "2"), atol=1e-4)


# --- where weights come from


def test_a_local_folder_is_identified_by_the_content_of_its_files(tiny, tmp_path):
    first = pin_model(str(tiny["distilbert"]), None)
    assert pin_model(str(build_tiny("distilbert", tmp_path / "same")), None).identity == first.identity
    assert pin_model(str(build_tiny("distilbert", tmp_path / "other", seed=1)), None).identity != first.identity


def test_a_relative_folder_becomes_absolute_since_workers_run_elsewhere(tiny, monkeypatch):
    folder = Path(tiny["distilbert"])
    monkeypatch.chdir(folder.parent)
    assert pin_model(folder.name, None).location == str(folder)


def test_a_folder_without_a_model_or_no_folder_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"holds no config\.json"):
        pin_model(str(tmp_path), None)
    with pytest.raises(ConfigError, match="is no folder on this machine"):
        pin_model(str(tmp_path / "missing"), None)
    with pytest.raises(ConfigError, match="is no folder on this machine"):
        pin_model("./missing", None)


def test_weights_in_a_package_are_found_and_a_missing_package_says_what_to_install():
    assert locate_model("pkg://pipeline/students").endswith("pipeline/students")
    assert locate_model("some/name") == "some/name"
    with pytest.raises(ConfigError, match="'no_such_package', which is not installed; install the extra `offline`"):
        pin_model("pkg://no_such_package/model", None)
    with pytest.raises(ConfigError, match="no folder"):
        pin_model("pkg://pipeline/no_such_folder", None)


def identify_elsewhere(model, cache, revision=None, **environment) -> str:
    """Return a model's commit, or the error, as a process of its own finds it: the hub's library reads its environment
    once."""
    script = (
        "import sys\n"
        "from pipeline.errors import ConfigError\n"
        "from pipeline.weights import pin_model\n"
        "try: print(pin_model(sys.argv[1], sys.argv[2] or None).identity)\n"
        "except ConfigError as error: print(error)\n"
    )
    command = [sys.executable, "-c", script, model, revision or ""]
    env = {**os.environ, "HF_HOME": str(cache), "HF_HUB_OFFLINE": "0", "HF_TOKEN": "", **environment}
    started = time.monotonic()
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
    assert time.monotonic() - started < 10
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


UNREACHABLE = [{"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}]


@pytest.mark.parametrize("environment", UNREACHABLE, ids=["offline", "nobody answers"])
def test_without_a_hub_a_model_comes_from_its_cache_or_is_told_in_seconds(tmp_path, environment):
    error = identify_elsewhere("nobody/no-such-model", tmp_path, **environment)
    assert "'nobody/no-such-model' is neither a folder here, nor in the hub's cache" in error
    assert "correct its name, or name a local folder" in error
    cached = tmp_path / "hub" / "models--some--model"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text("c0ffee")
    (cached / "snapshots" / "c0ffee").mkdir(parents=True)
    (cached / "snapshots" / "c0ffee" / "config.json").write_text("{}")
    assert identify_elsewhere("some/model", tmp_path, **environment) == "c0ffee"


@pytest.fixture
def hub():
    """A hub that knows one model, `some/model`, at two revisions."""

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self):
            known = {"/some/model/resolve/main/config.json": "aaa", "/some/model/resolve/v2/config.json": "bbb"}
            commit = known.get(self.path)
            self.send_response(200 if commit else 404)
            if commit:
                self.send_header("X-Repo-Commit", commit)
                self.send_header("ETag", '"e"')
            else:
                code = "RevisionNotFound" if self.path.startswith("/some/model/") else "RepoNotFound"
                self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", "2" if commit else "0")
            self.end_headers()

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}"}
    server.shutdown()


def test_a_hub_says_which_commit_a_model_is_and_which_it_does_not_know(tmp_path, hub):
    assert identify_elsewhere("some/model", tmp_path, **hub) == "aaa"
    assert identify_elsewhere("some/model", tmp_path, "v2", **hub) == "bbb"
    for model, revision in (("nobody/no-such-model", None), ("some/model", "v3"), ("three/part/name", None)):
        error = identify_elsewhere(model, tmp_path, revision, **hub)
        assert f"the model hub knows no model {model!r} at revision {revision or 'default'}" in error
        assert "correct `model` or `revision`" in error
