import json
import os
import shutil
import signal
import threading
import time

import psutil
import pytest
from safetensors.torch import load_file

from pipeline.records import Example, to_table
from pipeline.storage import Folder
from pipeline.students.config import StudentConfig
from pipeline.students.train import TrainingConfig, train_student
from tests.models import build_tiny

pytestmark = pytest.mark.ray
LABELS = ("clear", "ambiguous")
TRAINING = TrainingConfig(workers=1, cpus_per_worker=1, gpus_per_worker=0, threads=1, max_failures=2)


IGNORE = dict
"""Takes counts and does nothing; workers can import it, which they can't a function of this file."""


def write_rows(folder, n=60):
    examples = [
        Example(f"r{i}", "", f"g{i % 10}", f"{'what about' if i % 2 else 'how much is a'} topic {i}", LABELS[i % 2])
        for i in range(n)
    ]
    folder.write_table("examples.parquet", to_table(Example, examples))
    return folder


def make_student(model, **changes):
    values = {
        "kind": "classifier", "label": "tiny", "model": str(model), "revision": None, "frozen_encoder": False,
        "max_length": 16, "epochs": 2, "patience": 1, "learning_rate": 1e-3, "batch_size": 8,
        "gradient_accumulation": 1, "weight_decay": 0.0, "warmup_share": 0.1, "max_grad_norm": 1.0,
        "label_smoothing": 0.1, "class_weights": True, "folds": 3, "seeds": (1, 2), "precision": "auto",
        "eval_batch_size": 16,
    } | changes  # fmt: skip
    return StudentConfig(**values)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    build_tiny("distilbert", folder)
    return folder


def find_training_workers():
    """Only our own: another run may be at work on this machine."""
    return [p for p in psutil.Process().children(recursive=True) if "RayTrainWorker" in " ".join(p.cmdline())]


def test_a_killed_worker_goes_on_at_the_fit_it_was_in(ray_cluster, tmp_path, tiny):
    rows, output = write_rows(Folder.at(tmp_path / "rows")), Folder.at(tmp_path / "student")
    fits = output / "fits"
    kept = {}

    def kill_after_two_fits():
        while len(names := fits.names(".json")) < 2:
            time.sleep(0.02)
        kept.update({name: (fits.path / name).stat().st_mtime_ns for name in names})
        for worker in find_training_workers():
            os.kill(worker.pid, signal.SIGKILL)

    killer = threading.Thread(target=kill_after_two_fits, daemon=True)
    killer.start()
    train_student(rows, output, LABELS, make_student(tiny, epochs=6, patience=6), TRAINING, 7, IGNORE)
    killer.join()
    assert fits.names(".json") == [
        "final-1.json",
        "final-2.json",
        "fold-0.json",
        "fold-1.json",
        "fold-2.json",
    ]
    assert len(kept) >= 2
    assert {name: (fits.path / name).stat().st_mtime_ns for name in kept} == kept, "a finished fit was run again"
    best = sorted(fits.read_json(f"fold-{i}.json")["best_epoch"] for i in range(3))[1]
    assert [len(fits.read_json(f"final-{seed}.json")["epochs"]) for seed in (1, 2)] == [best, best]
    assert fits.exists("final-1/model.safetensors")
    assert not output.exists("ray_train")


def test_the_same_seeds_train_the_same_weights(ray_cluster, tmp_path, tiny):
    rows = write_rows(Folder.at(tmp_path / "rows"))
    weights = []
    for run in ("a", "b"):
        output = Folder.at(tmp_path / run)
        train_student(rows, output, LABELS, make_student(tiny, folds=0), TRAINING, 7, IGNORE)
        weights.append([output.read_bytes(f"fits/final-{seed}/model.safetensors") for seed in (1, 2)])
    assert weights[0] == weights[1]
    assert weights[0][0] != weights[0][1]


def test_two_workers_share_each_batch_of_one(ray_cluster, tmp_path, tiny):
    """Without dropout, half a batch each gives the weights that whole batches give; twice the batch would not."""
    model = shutil.copytree(tiny, tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    config |= {"dropout": 0.0, "attention_dropout": 0.0, "seq_classif_dropout": 0.0}
    (model / "config.json").write_text(json.dumps(config))
    rows = write_rows(Folder.at(tmp_path / "rows"), 64)  # whole batches only: accelerate fills the last one up
    weights = []
    for workers in (1, 2):
        output, training = Folder.at(tmp_path / str(workers)), TRAINING.model_copy(update={"workers": workers})
        train_student(rows, output, LABELS, make_student(model, folds=0, seeds=(1,)), training, 7, IGNORE)
        weights.append(load_file(output.path / "fits/final-1/model.safetensors"))
    for name, tensor in weights[0].items():
        assert weights[1][name].numpy() == pytest.approx(tensor.numpy(), abs=1e-5), name
