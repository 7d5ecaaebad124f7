"""Training dynamics: what they say is what the model would say, and the training never knows that it was watched."""

import shutil

import numpy as np
import pytest
import torch

from pipeline.config import validate
from pipeline.errors import ConfigError, StorageError
from pipeline.records import EpochPrediction, Example, from_table
from pipeline.storage import Folder
from pipeline.students.classifier import fit_classifier, load_predictor
from pipeline.students.config import ClassifierConfig
from pipeline.students.dynamics import DYNAMICS, check_cartographer, make_observer, read_epochs, write_epoch
from pipeline.students.fine_tuning import Hooks
from tests.composing import compose_part
from tests.models import SENTENCES, build_tiny

LABELS = ("clear", "ambiguous")
TEXTS = [f"{SENTENCES[i % 6]} {i}" for i in range(36)]
CLASSES = [int(i % 6 in (1, 3, 5)) for i in range(36)]
EPOCHS = 3


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return build_tiny("distilbert", tmp_path_factory.mktemp("tiny"))


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def fit(model, save_to=None, hooks=Hooks()):  # noqa: B008  frozen
    """Train with dropout, and with a last step of half as many rows, so that any random number drawn would show."""
    own = {"model": str(model), "max_length": 16, "learning_rate": 5e-3, "dropout": True}
    own |= {"batch_size": 8, "gradient_accumulation": 2}
    config = validate(ClassifierConfig, compose_part("student", "cartographer_distilbert") | own)
    fit_classifier(
        TEXTS, CLASSES, (), (), LABELS, config,
        seed=1, epochs=EPOCHS, use_gpu=False, save_to=save_to, hooks=hooks,
    )  # fmt: skip


def watch(model, save_to=None, resume_from=None, on_checkpoint=None) -> dict[int, np.ndarray]:
    """Return the probabilities of all rows after each epoch."""
    told: dict[int, np.ndarray] = {}
    fit(model, save_to, Hooks(on_predictions=told.__setitem__, resume_from=resume_from, on_checkpoint=on_checkpoint))
    return told


def read_weights(folder) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def test_a_watched_training_learns_the_very_weights_of_one_that_is_not(tiny, tmp_path):
    fit(tiny, tmp_path / "plain")
    told = watch(tiny, tmp_path / "watched")
    assert list(told) == [1, 2, 3]
    assert read_weights(tmp_path / "watched") == read_weights(tmp_path / "plain")
    fit(tiny, tmp_path / "drawing", Hooks(on_predictions=lambda *_: torch.rand(1)))
    assert read_weights(tmp_path / "drawing") != read_weights(tmp_path / "plain"), "one random number would have shown"


def test_the_last_epochs_probabilities_are_those_of_the_saved_model_in_the_order_of_the_rows(tiny, tmp_path):
    told = watch(tiny, tmp_path)
    expected = load_predictor(tmp_path, use_gpu=False)(TEXTS, 5)
    assert told[3].shape == (36, 2)
    assert told[3] == pytest.approx(expected, abs=1e-6)
    assert len(np.unique(told[3].round(6), axis=0)) > 20, "rows differ, so their order is looked at"
    assert abs(told[1] - told[3]).max() > 1e-3, "and so do epochs"


def test_a_resumed_fit_says_of_the_epochs_that_are_left_what_an_undisturbed_one_does(tiny, tmp_path):
    told: dict[int, np.ndarray] = {}

    def keep(folder, epoch):
        assert epoch.epoch in told, "a checkpoint comes after its epoch was watched, or a crash would lose it"
        shutil.copytree(folder, tmp_path / str(epoch.epoch))

    fit(tiny, hooks=Hooks(on_predictions=told.__setitem__, on_checkpoint=keep))
    resumed = watch(tiny, resume_from=tmp_path / "1", on_checkpoint=lambda *_: None)
    assert list(resumed) == [2, 3]
    for epoch, probabilities in resumed.items():
        assert (probabilities == told[epoch]).all()


class Model(torch.nn.Module):
    """Says of a row of tokens its length and its sum, doubled in training; knows in which mode it was asked."""

    device = "cpu"

    def __init__(self):
        super().__init__()
        self.modes = []

    def forward(self, input_ids):
        self.modes.append((self.training, torch.is_grad_enabled()))
        logits = torch.stack([(input_ids >= 0).sum(1), input_ids.clamp(min=0).sum(1)], 1).float()
        return type("Output", (), {"logits": logits * (2 if self.training else 1)})


class Batch(dict):
    def to(self, device):
        return self


def pad(rows):
    width = max(len(row["input_ids"]) for row in rows)
    return Batch(input_ids=torch.tensor([row["input_ids"] + [-1] * (width - len(row["input_ids"])) for row in rows]))


@pytest.mark.parametrize("is_training", [True, False])
def test_a_model_is_asked_without_dropout_and_left_in_its_mode(is_training):
    model, told = Model().train(is_training), {}
    observer = make_observer([[3, 1, 1], [2], [0, 1]], pad, 2, told.__setitem__)
    observer.on_epoch_end(None, type("State", (), {"epoch": 4.0}), None, model)
    assert model.training == is_training
    assert model.modes == [(False, False)] * 2, "three rows, two at once"
    odds = np.exp([[3, 5], [1, 2], [2, 1]])
    assert told[4] == pytest.approx(odds / odds.sum(axis=1, keepdims=True))


def test_a_model_that_fails_is_left_in_its_mode():
    model = Model().train()
    model.forward = None
    with pytest.raises(TypeError):
        make_observer([[1]], pad, 2, print).on_epoch_end(None, type("State", (), {"epoch": 1.0}), None, model)
    assert model.training


# --- files


EXAMPLES = [Example("r0", "", "g", "one", "clear"), Example("r1", "", "g", "two", "ambiguous")]


def test_an_epochs_file_says_the_probability_of_each_rows_own_label(tmp_path):
    folder = Folder.at(tmp_path)
    write_epoch(folder, EXAMPLES, LABELS, 2, np.array([[0.75, 0.25], [0.625, 0.375]]))
    assert (folder / DYNAMICS).names() == ["epoch-2.parquet"]
    found = list(from_table(EpochPrediction, (folder / DYNAMICS).read_table("epoch-2.parquet")))
    assert found == [EpochPrediction("r0", 2, 0.75, True), EpochPrediction("r1", 2, 0.375, False)]


def test_an_epoch_that_is_trained_again_replaces_its_file(tmp_path):
    folder = Folder.at(tmp_path)
    for epoch, p in ((1, 0.9), (2, 0.8), (1, 0.6)):
        write_epoch(folder, EXAMPLES, LABELS, epoch, np.array([[p, 1 - p], [p, 1 - p]]))
    found = list(from_table(EpochPrediction, read_epochs(folder, 2)))
    assert [(p.epoch, p.row_id, round(p.probability, 9)) for p in found] == [
        (1, "r0", 0.6),
        (1, "r1", 0.4),
        (2, "r0", 0.8),
        (2, "r1", 0.2),
    ]
    with pytest.raises(StorageError, match=r"epoch-3\.parquet"):
        read_epochs(folder, 3)


@pytest.mark.parametrize("change", [{"folds": 5}, {"seeds": (1, 2)}], ids=str)
def test_a_cartographer_is_trained_once_on_all_rows(change):
    values = compose_part("student", "cartographer_minilm")
    check_cartographer(validate(ClassifierConfig, values))
    with pytest.raises(ConfigError, match=r"MiniLM, cartographer has . folds and . seeds; set its folds to 0, and"):
        check_cartographer(validate(ClassifierConfig, values | change))
