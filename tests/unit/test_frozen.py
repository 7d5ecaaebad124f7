"""Frozen encoders: the head is the optimum that it should be, and is the same after saving and again."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score, log_loss

from pipeline.config import validate
from pipeline.encoder import load_encoder
from pipeline.errors import ConfigError, TrainingError
from pipeline.records import Example
from pipeline.stages.inputs import read_inputs
from pipeline.storage import Folder
from pipeline.students import frozen
from pipeline.students.config import FrozenConfig
from pipeline.students.fits import plan_fits
from pipeline.students.frozen import Head, fit_head, load_head, save_head, train_frozen
from pipeline.students.predictor import describe_model, load_predictor
from pipeline.weights import count_positions, pin_model
from tests.composing import compose_experiment
from tests.models import SENTENCES, build_tiny

LABELS = ("clear", "ambiguous", "empty")
SETTINGS = {"inverse_regularisation": 3.0, "class_weights": True}


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return build_tiny("distilbert", tmp_path_factory.mktemp("tiny"))


def configure(model: Path | str, **changes) -> FrozenConfig:
    values = {
        "kind": "frozen", "label": "tiny", "model": str(model), "revision": None, "selected_on": (),
        "max_length": 16, "pooling": "auto",
        "inverse_regularisation": 1.0, "class_weights": True, "folds": 3, "seeds": (42,), "eval_batch_size": 4,
    }  # fmt: skip
    return validate(FrozenConfig, values | changes)


def draw_rows(labels, n=60, n_dimensions=5, seed=0):
    """Return vectors and classes: the first label twice as often as any other, and all told apart somewhat."""
    classes = np.array([0, *range(len(labels))] * n)[:n]
    noise = np.random.default_rng(seed).normal(size=(n, n_dimensions))
    vectors = (noise + np.eye(len(labels), n_dimensions)[classes]).astype(np.float32)
    return vectors, [labels[index] for index in classes]


ROWS = {"two classes": draw_rows(LABELS[:2]), "three classes": draw_rows(LABELS)}


def minimise_by_hand(vectors, labels_of_rows, labels, inverse_regularisation, class_weights):
    """Minimise |w|²/2 + C · Σ weight · cross-entropy with scipy, whose gradient is numerical; return probabilities.

    For two classes |w|² is that of the difference of their coefficients, as scikit-learn has it.
    """
    classes = np.array([labels.index(label) for label in labels_of_rows])
    counts = np.bincount(classes)
    weights = (len(classes) / (len(labels) * counts) if class_weights else np.ones(len(labels)))[classes]
    x = np.column_stack([vectors.astype(float), np.ones(len(vectors))])
    n_free = 1 if len(labels) == 2 else len(labels)

    def predict(flat):
        logits = x @ flat.reshape(n_free, -1).T
        logits = np.column_stack([np.zeros(len(x)), logits]) if len(labels) == 2 else logits
        return np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)

    def objective(flat):
        losses = -np.log(predict(flat)[np.arange(len(x)), classes])
        penalty = (flat.reshape(n_free, -1)[:, :-1] ** 2).sum() / 2
        return penalty + inverse_regularisation * (weights * losses).sum()

    found = minimize(objective, np.zeros(n_free * x.shape[1]), method="BFGS", options={"gtol": 1e-4})
    return predict(found.x)


@pytest.mark.parametrize("class_weights", [True, False], ids=["weighted", "plain"])
@pytest.mark.parametrize("rows", list(ROWS))
def test_a_head_is_the_optimum_found_by_hand_and_scikit_learns_own(rows, class_weights):
    vectors, labels_of_rows = ROWS[rows]
    labels = LABELS[: len(set(labels_of_rows))]
    head = fit_head(vectors, labels_of_rows, labels, inverse_regularisation=3.0, class_weights=class_weights)
    probabilities = head.predict(vectors)
    assert probabilities.dtype == np.float64
    assert head.coefficients.shape == (len(labels), 5)
    by_hand = minimise_by_hand(vectors, labels_of_rows, labels, 3.0, class_weights)
    assert probabilities == pytest.approx(by_hand, abs=1e-4)

    model = LogisticRegression(C=3.0, class_weight="balanced" if class_weights else None, tol=1e-8, max_iter=1000)
    model.fit(vectors.astype(float), labels_of_rows)
    columns = [list(model.classes_).index(label) for label in labels]
    assert probabilities == pytest.approx(model.predict_proba(vectors.astype(float))[:, columns], abs=1e-6)


def test_class_weights_and_regularisation_each_change_the_head():
    vectors, labels_of_rows = ROWS["two classes"]
    first = fit_head(vectors, labels_of_rows, LABELS[:2], **SETTINGS)
    for change in ({"class_weights": False}, {"inverse_regularisation": 0.1}):
        other = fit_head(vectors, labels_of_rows, LABELS[:2], **SETTINGS | change)
        assert np.abs(other.predict(vectors) - first.predict(vectors)).max() > 0.01


def test_the_same_rows_in_another_order_give_the_same_head():
    vectors, labels_of_rows = ROWS["three classes"]
    order = np.random.default_rng(1).permutation(len(vectors))
    first = fit_head(vectors, labels_of_rows, LABELS, **SETTINGS)
    other = fit_head(vectors[order], [labels_of_rows[row] for row in order], LABELS, **SETTINGS)
    assert other.predict(vectors) == pytest.approx(first.predict(vectors), abs=1e-6)


def test_rows_of_one_class_alone_are_refused_with_what_there_is():
    vectors, labels_of_rows = ROWS["two classes"]
    with pytest.raises(ConfigError, match=r"needs rows of every class.*'clear': 60, 'ambiguous': 0"):
        fit_head(vectors, ["clear"] * 60, LABELS[:2], **SETTINGS)
    with pytest.raises(ConfigError, match="'empty': 0"):
        fit_head(vectors, labels_of_rows, LABELS, **SETTINGS)


def test_a_fit_that_does_not_arrive_is_told(monkeypatch):
    monkeypatch.setattr(frozen, "_MAX_ITERATIONS", 2)
    vectors, labels_of_rows = ROWS["two classes"]
    with pytest.raises(TrainingError, match="not converged after 2 iterations; set inverse_regularisation, which is 3"):
        fit_head(vectors, labels_of_rows, LABELS[:2], **SETTINGS)


# --- a student's folder


def make_examples(n=48):
    return [
        Example(f"r{i}", "", f"g{i % 8}", f"{SENTENCES[i % 6]} {i // 3}", LABELS[int(i % 6 in (1, 3))])
        for i in range(n)
    ]


@pytest.fixture(scope="module")
def trained(tiny, tmp_path_factory):
    """The examples, their vectors, the student, and the folder of its fits."""
    examples, config = make_examples(), configure(tiny, seeds=(1, 2))
    model = pin_model(str(tiny), None)
    vectors = load_encoder(model, config.encoder, "cpu").encode_documents([example.text for example in examples])
    output = Folder.at(tmp_path_factory.mktemp("student"))
    train_frozen(examples, vectors, output, LABELS[:2], config, model, seed=7)
    return examples, vectors, config, output


def test_folds_hold_out_whole_groups_and_are_scored_as_by_scikit_learn(trained):
    examples, vectors, config, output = trained
    folds = [fit for fit in plan_fits(examples, config, 7) if fit.is_fold]
    assert output.names(".json") == ["final-1.json", "final-2.json", "fold-0.json", "fold-1.json", "fold-2.json"]
    labels_of_rows = np.array([example.label for example in examples])
    for fit in folds:
        groups = [{examples[row].group for row in rows} for rows in (fit.train, fit.held_out)]
        assert not groups[0] & groups[1]
        train, held_out = list(fit.train), list(fit.held_out)
        model = LogisticRegression(class_weight="balanced", tol=1e-8, max_iter=1000)
        model.fit(vectors[train].astype(float), labels_of_rows[train])
        result = output.read_json(f"{fit.name}.json")
        assert result["measure"] == "macro-F1"
        decided = model.predict(vectors[held_out].astype(float))
        assert result["held_out_score"] == pytest.approx(f1_score(labels_of_rows[held_out], decided, average="macro"))
        loss = log_loss(labels_of_rows[held_out], model.predict_proba(vectors[held_out].astype(float)))
        assert result["held_out_loss"] == pytest.approx(loss, abs=1e-6)
    assert Counter(row for fit in folds for row in fit.held_out) == Counter(range(len(examples)))


def test_seeds_of_final_fits_make_no_difference(trained):
    *_, output = trained
    heads = [output.read_bytes(f"final-{seed}/head.json") for seed in (1, 2)]
    assert heads[0] == heads[1]


def test_a_student_predicts_from_texts_what_its_head_does_from_vectors(trained):
    examples, vectors, _, output = trained
    folder = output.path / "final-1"
    texts = [example.text for example in examples]
    expected = load_head(folder).predict(vectors)
    predict = load_predictor(folder, use_gpu=False)
    for batch_size in (1, 48):
        probabilities = predict(texts, batch_size)
        assert probabilities.dtype == np.float64
        assert probabilities == pytest.approx(expected, abs=1e-6)
    assert len(np.unique(expected.round(6), axis=0)) > 20, "rows differ, so their order is looked at"


def test_a_saved_head_predicts_to_the_last_digit_as_before(tiny, tmp_path):
    vectors, labels_of_rows = ROWS["three classes"]
    head = fit_head(vectors, labels_of_rows, LABELS, **SETTINGS)
    save_head(head, Folder.at(tmp_path), pin_model(str(tiny), None), configure(tiny).encoder)
    loaded = load_head(tmp_path)
    assert loaded.labels == LABELS
    assert (loaded.predict(vectors) == head.predict(vectors)).all()


def test_a_head_is_not_put_on_weights_that_have_changed(tmp_path):
    model = build_tiny("distilbert", tmp_path / "model")
    head = Head(LABELS[:2], np.zeros((2, 32)), np.zeros(2))
    save_head(head, Folder.at(tmp_path / "head"), pin_model(str(model), None), configure(model).encoder)
    assert load_predictor(tmp_path / "head", use_gpu=False)(["a"], 1) == pytest.approx(np.full((1, 2), 0.5))
    build_tiny("distilbert", model, seed=1)
    with pytest.raises(ConfigError, match="put those weights back, or train the student again"):
        load_predictor(tmp_path / "head", use_gpu=False)


def test_a_students_description_counts_encoder_and_head(trained, tiny):
    from safetensors.torch import load_file

    *_, output = trained
    n_encoder = sum(tensor.numel() for tensor in load_file(tiny / "model.safetensors").values())
    described = describe_model(output.path / "final-1", use_gpu=False)
    assert described["n_parameters"] == n_encoder + 2 * 32 + 2
    assert described["memory_mb"] == pytest.approx((4 * n_encoder + 8 * 66) / 1e6, abs=0.1)
    assert described["device"] == "CPU"


# --- before any work


@pytest.mark.parametrize(
    ("override", "setting"),
    [
        ("student.max_length", "students.frozen_minilm.max_length"),
        ("evaluation.frozen.encoder.max_tokens", "evaluation.frozen.encoder.max_tokens"),
        ("evaluation.prototype.encoder.max_tokens", "evaluation.prototype.encoder.max_tokens"),
    ],
)
def test_more_tokens_than_a_model_takes_are_refused_before_any_work(tmp_path, override, setting):
    experiment = compose_experiment(["student=frozen_minilm", f"{override}=513", f"root={tmp_path}"])
    with pytest.raises(ConfigError, match=rf"{setting} is 513, but pkg://\S+ takes 512 tokens at most; set it lower"):
        read_inputs(experiment)


def test_a_model_that_does_not_say_its_positions_or_is_still_on_the_hub_is_let_pass(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    assert count_positions(pin_model(str(tmp_path), None)) is None
    assert count_positions(pin_model("some/model-of-the-hub", "c" * 40)) is None


def test_a_student_named_like_a_baseline_keeps_its_own_model(tmp_path, tiny):
    overrides = ["experiment=quickstart", "+student@students.frozen=frozen_minilm", f"students.frozen.model={tiny}"]
    inputs = read_inputs(compose_experiment([*overrides, f"root={tmp_path}"]))
    assert inputs.models["frozen"].location == str(tiny)
    assert inputs.baseline_models["frozen"].location.startswith("pkg://")


def test_without_the_baseline_its_model_is_not_needed(tmp_path):
    overrides = ["experiment=quickstart", "evaluation.frozen=null", f"root={tmp_path}"]
    assert list(read_inputs(compose_experiment(overrides)).baseline_models) == ["prototype"]
