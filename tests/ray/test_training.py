import os
import signal
import threading
import time

import numpy as np
import psutil
import pytest
from safetensors.torch import load_file

from pipeline.cluster import Cluster
from pipeline.errors import ConfigError
from pipeline.records import Example, RowDynamics, from_table, to_table
from pipeline.stages.dynamics import trace_dynamics
from pipeline.steps import Outputs, Steps
from pipeline.storage import Folder
from pipeline.students.config import ClassifierConfig, RerankerConfig
from pipeline.students.train import TrainingConfig, train_student
from pipeline.weights import pin_model
from tests.composing import compose_experiment
from tests.models import build_tiny

pytestmark = pytest.mark.ray
LABELS = ("clear", "ambiguous")
TRAINING = TrainingConfig(
    workers=1,
    min_workers=None,
    runs=1,
    cpus_per_worker=1,
    gpus_per_worker=0,
    threads=1,
    checkpoint_interval_s=0,
    max_failures=2,
)


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
        "kind": "classifier", "label": "tiny", "model": str(model), "revision": None, "selected_on": (),
        "max_length": 16, "epochs": 2, "patience": 1, "learning_rate": 1e-3, "batch_size": 8,
        "gradient_accumulation": 1, "gradient_checkpointing": False, "length_bucketing": False,
        "weight_decay": 0.0, "adam_epsilon": 1e-8, "schedule": "linear", "warmup_share": 0.1, "max_grad_norm": 1.0,
        "dropout": True,
        "label_smoothing": 0.1, "class_weights": True, "folds": 3, "seeds": (1, 2), "precision": "auto",
        "eval_batch_size": 16,
    } | changes  # fmt: skip
    return ClassifierConfig(**values)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    build_tiny("distilbert", folder)
    return folder


def find_training_workers():
    """Only our own: another run may be at work on this machine."""
    return [p for p in psutil.Process().children(recursive=True) if "RayTrainWorker" in " ".join(p.cmdline())]


@pytest.mark.crash
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


@pytest.mark.crash
def test_a_worker_killed_in_an_epoch_goes_on_after_the_last_whole_one(ray_cluster, tmp_path, tiny):
    """With as many steps, and the very weights, of a run that nobody killed."""
    rows = write_rows(Folder.at(tmp_path / "rows"), 240)
    student = make_student(tiny, folds=0, seeds=(1,), epochs=8, batch_size=4)
    undisturbed, output = Folder.at(tmp_path / "undisturbed"), Folder.at(tmp_path / "killed")
    train_student(rows, undisturbed, LABELS, student, TRAINING, 7, IGNORE)
    killed_at = []

    def kill_after_a_checkpoint():
        while not output.exists("ray_train/run-0/checkpoint_manager_snapshot.json"):
            time.sleep(0.005)
        for worker in find_training_workers():
            os.kill(worker.pid, signal.SIGKILL)
        killed_at.append(time.time())

    killer = threading.Thread(target=kill_after_a_checkpoint, daemon=True)
    killer.start()
    train_student(rows, output, LABELS, student, TRAINING, 7, IGNORE)
    killer.join()
    result, expected = (folder.read_json("fits/final-1.json") for folder in (output, undisturbed))
    assert result["n_steps"] == expected["n_steps"] == 8 * 60
    ends = [epoch["at"] for epoch in result["epochs"]]
    assert len(ends) == 8
    assert ends[0] < killed_at[0] < ends[-1], "epochs before the kill are kept, and it came before the end"
    assert output.read_bytes("fits/final-1/model.safetensors") == undisturbed.read_bytes(
        "fits/final-1/model.safetensors"
    )


@pytest.mark.crash
def test_fits_side_by_side_give_what_one_after_the_other_gives(ray_cluster, tmp_path, tiny):
    rows = write_rows(Folder.at(tmp_path / "rows"))
    weights = []
    for runs in (1, 2):
        output, training = Folder.at(tmp_path / str(runs)), TRAINING.model_copy(update={"runs": runs})
        train_student(rows, output, LABELS, make_student(tiny, folds=2), training, 7, IGNORE)
        weights.append([output.read_bytes(f"fits/final-{seed}/model.safetensors") for seed in (1, 2)])
    assert weights[0] == weights[1]


@pytest.mark.crash
def test_elastic_training_takes_whole_steps(ray_cluster, tmp_path, tiny):
    """That it goes on with fewer when a node is lost takes several nodes, which nothing here has."""
    rows, output = write_rows(Folder.at(tmp_path / "rows"), 64), Folder.at(tmp_path / "student")
    training = TRAINING.model_copy(update={"workers": 2, "min_workers": 1})
    train_student(rows, output, LABELS, make_student(tiny, folds=0, seeds=(1,)), training, 7, IGNORE)
    assert output.read_json("fits/final-1.json")["n_steps"] == 2 * 8, "two epochs of whole batches, however shared"


@pytest.mark.crash
def test_the_same_seeds_train_the_same_weights(ray_cluster, tmp_path, tiny):
    rows = write_rows(Folder.at(tmp_path / "rows"))
    weights = []
    for run in ("a", "b"):
        output = Folder.at(tmp_path / run)
        train_student(rows, output, LABELS, make_student(tiny, folds=0), TRAINING, 7, IGNORE)
        weights.append([output.read_bytes(f"fits/final-{seed}/model.safetensors") for seed in (1, 2)])
    assert weights[0] == weights[1]
    assert weights[0][0] != weights[0][1]


@pytest.mark.crash
def test_two_workers_share_each_batch_of_one(ray_cluster, tmp_path, tiny):
    """Without dropout, half a batch each gives the weights that whole batches give; twice the batch would not."""
    student = make_student(tiny, folds=0, seeds=(1,), dropout=False)
    rows = write_rows(Folder.at(tmp_path / "rows"), 64)  # whole batches only: accelerate fills the last one up
    weights = []
    for workers in (1, 2):
        output, training = Folder.at(tmp_path / str(workers)), TRAINING.model_copy(update={"workers": workers})
        train_student(rows, output, LABELS, student, training, 7, IGNORE)
        weights.append(load_file(output.path / "fits/final-1/model.safetensors"))
    for name, tensor in weights[0].items():
        assert weights[1][name].numpy() == pytest.approx(tensor.numpy(), abs=1e-5), name


def trace(root, student, training=TRAINING, n_rows=60):
    """Return the dynamics' step of a data set of its own, in a root of its own."""
    steps = Steps(Folder.at(root))

    def produce(folder):
        write_rows(folder, n_rows)
        return Outputs(digests={"rows": f"{n_rows} rows"})

    dataset = steps.run("dataset", produce, arm="copy", config={}, inputs={}, code=[])
    pinned = pin_model(student.model, None)
    cluster = Cluster(compose_experiment(["tracking=none"]).scale, steps.root, root_is_shared=False)
    return trace_dynamics("copy", dataset, student, pinned, LABELS, training, steps, cluster)


def read_dynamics(step):
    return list(from_table(RowDynamics, step.folder.read_table("dynamics.parquet")))


@pytest.mark.crash
def test_dynamics_are_traced_over_one_fit_and_no_model_is_kept(ray_cluster, tmp_path, tiny):
    student = make_student(tiny, folds=0, seeds=(3,), epochs=4)
    step = trace(tmp_path, student)
    rows = read_dynamics(step)
    assert [row.row_id for row in rows] == [f"r{i}" for i in range(60)]
    epochs = [step.folder.read_table(f"dynamics/epoch-{n}.parquet")["probability"].to_numpy() for n in (1, 2, 3, 4)]
    assert [row.confidence for row in rows] == pytest.approx(np.mean(epochs, axis=0))
    assert [row.variability for row in rows] == pytest.approx(np.std(epochs, axis=0))
    metrics = step.manifest["metrics"]
    assert metrics["confidence"] == pytest.approx(np.mean(epochs))
    assert metrics["confidence/clear"] == pytest.approx(np.mean(epochs, axis=0)[::2].mean())
    assert metrics["correctness"] > 0.6, "it has learned"
    course = {(name, epoch): value for name, epoch, value, _ in step.manifest["series"]}
    assert len(course) == 3 * 4
    assert course["probability", 4] == pytest.approx(epochs[3].mean())
    assert course["train_loss", 4] < course["train_loss", 1]
    names = sorted(path.name for path in step.folder.path.rglob("*") if path.is_file())
    assert names == ["dynamics.parquet", *(f"epoch-{n}.parquet" for n in (1, 2, 3, 4)), "final-3.json", "manifest.json"]
    assert trace(tmp_path, student).kept


def test_a_student_that_is_trained_more_than_once_is_refused_before_any_worker_starts(tmp_path, tiny):
    with pytest.raises(ConfigError, match="tiny has 3 folds and 2 seeds"):
        trace(tmp_path, make_student(tiny))


@pytest.mark.crash
def test_dynamics_of_a_killed_worker_are_those_of_one_that_lived(ray_cluster, tmp_path, tiny):
    student = make_student(tiny, folds=0, seeds=(1,), epochs=8, batch_size=4)
    undisturbed = trace(tmp_path / "undisturbed", student, n_rows=240)
    before = {}

    def kill_after_the_second_epoch():
        while not (found := list(tmp_path.glob("killed/steps/dynamics/*/dynamics/epoch-2.parquet"))):
            time.sleep(0.005)
        folder = found[0].parents[1]
        while not (folder / "ray_train/run-0/checkpoint_manager_snapshot.json").exists():
            time.sleep(0.005)
        before.update({path.name: path.stat().st_mtime_ns for path in (folder / "dynamics").glob("*.parquet")})
        for worker in find_training_workers():
            os.kill(worker.pid, signal.SIGKILL)

    killer = threading.Thread(target=kill_after_the_second_epoch, daemon=True)
    killer.start()
    killed = trace(tmp_path / "killed", student, n_rows=240)
    killer.join()
    assert 2 <= len(before) < 8, "it came before the end"
    after = {path.name: path.stat().st_mtime_ns for path in (killed.folder.path / "dynamics").iterdir()}
    assert after["epoch-1.parquet"] == before["epoch-1.parquet"], "an epoch with a checkpoint is not trained again"
    assert killed.folder.read_bytes("dynamics.parquet") == undisturbed.folder.read_bytes("dynamics.parquet")
    assert sorted(after) == [f"epoch-{n}.parquet" for n in range(1, 9)], "and no file is left half-written"


@pytest.mark.crash
def test_two_workers_trace_what_one_does(ray_cluster, tmp_path, tiny):
    student = make_student(tiny, folds=0, seeds=(1,), dropout=False)
    one, two = (
        read_dynamics(trace(tmp_path / str(n), student, TRAINING.model_copy(update={"workers": n}), n_rows=64))
        for n in (1, 2)
    )
    assert [row.row_id for row in two] == [row.row_id for row in one]
    assert [row.confidence for row in two] == pytest.approx([row.confidence for row in one], abs=1e-5)


def write_pairs(folder, n=20, **extras):
    letters = "abcdefghijklmnopqrst"[:n]
    examples = [
        Example(f"r{i}", "", f"g{i % 6}", f"{letter} is it", "", {"query": f"about {letter}"} | extras)
        for i, letter in enumerate(letters)
    ]
    folder.write_table("examples.parquet", to_table(Example, examples))
    return folder


def make_reranker(model, **changes):
    values = make_student(model).model_dump(exclude={"kind", "label_smoothing", "class_weights", "length_bucketing"})
    own = {"kind": "reranker", "margin": 0.5, "hard_negatives": 0, "dropout": False, "seeds": (1,), "folds": 2}
    return RerankerConfig(**values | own | {"patience": 2} | changes)


@pytest.mark.crash
def test_a_reranker_is_trained_in_its_folds_and_on_all_rows(ray_cluster, tmp_path, tiny):
    from sentence_transformers import SentenceTransformer

    rows, output = write_pairs(Folder.at(tmp_path / "rows")), Folder.at(tmp_path / "student")
    train_student(rows, output, LABELS, make_reranker(tiny), TRAINING, 7, IGNORE)
    fits = output / "fits"
    assert fits.names(".json") == ["final-1.json", "fold-0.json", "fold-1.json"]
    fold, final = fits.read_json("fold-0.json"), fits.read_json("final-1.json")
    assert fold["measure"] == "MRR@10"
    assert all(0 < epoch["held_out_score"] <= 1 and epoch["held_out_loss"] > 0 for epoch in fold["epochs"])
    assert final["n_steps"] == 3 * len(final["epochs"]), "20 rows in batches of 8: a lone worker leaves none out"
    vectors = SentenceTransformer(str(fits.path / "final-1"), device="cpu").encode(["about a", "a is it"])
    assert np.linalg.norm(vectors, axis=1) == pytest.approx([1, 1], abs=1e-5)


def test_rows_that_a_reranker_cannot_learn_from_are_told_before_any_worker_starts(tmp_path, tiny):
    output = Folder.at(tmp_path / "student")
    with pytest.raises(ConfigError, match=r"row r0: the query"):
        train_student(
            write_pairs(Folder.at(tmp_path / "a"), query=""), output, LABELS, make_reranker(tiny), TRAINING, 7, IGNORE
        )
    two = TRAINING.model_copy(update={"workers": 2})
    with pytest.raises(ConfigError, match=r"a fit of tiny has 4 rows, less than one of 8"):
        train_student(write_pairs(Folder.at(tmp_path / "b"), 8), output, LABELS, make_reranker(tiny), two, 7, IGNORE)


@pytest.mark.crash
def test_two_workers_train_a_reranker_as_one_does(ray_cluster, tmp_path, tiny):
    """The negatives of both workers' batches are everybody's; those of half a batch would give other weights."""
    rows = write_pairs(Folder.at(tmp_path / "rows"), 16)
    weights = []
    for workers in (1, 2):
        output, training = Folder.at(tmp_path / str(workers)), TRAINING.model_copy(update={"workers": workers})
        train_student(rows, output, LABELS, make_reranker(tiny, folds=0), training, 7, IGNORE)
        weights.append(load_file(output.path / "fits/final-1/model.safetensors"))
    assert max(abs(tensor.numpy()).max() for tensor in weights[0].values()) > 0.1
    for name, tensor in weights[0].items():
        assert weights[1][name].numpy() == pytest.approx(tensor.numpy(), abs=1e-5), name
