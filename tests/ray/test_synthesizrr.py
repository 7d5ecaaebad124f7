"""Classification data end to end: a task that nobody knew, and the six of SynthesizRR on files in official formats."""

import json
import re
from collections import Counter
from itertools import cycle

import numpy as np
import pytest
import yaml

from pipeline.config import validate
from pipeline.experiment import ExperimentConfig
from pipeline.flow import run
from pipeline.records import Example, Request, RowDynamics, from_table
from pipeline.storage import Folder
from pipeline.teachers.ledger import Ledger
from tests.composing import compose_experiment, compose_option
from tests.conftest import PROJECT
from tests.models import build_tiny

pytestmark = pytest.mark.ray
FIXTURES = PROJECT / "tests/fixtures/classification"
WORDS = {
    "bike": ["wheel", "chain", "saddle", "pedal", "brake", "tyre", "gear", "frame", "spoke", "pump"],
    "garden": ["rose", "soil", "seed", "hedge", "lawn", "tulip", "spade", "compost", "fern", "bulb"],
    "kitchen": ["pan", "oven", "knife", "dough", "spice", "whisk", "kettle", "plate", "recipe", "stove"],
}
"""Of a made-up task: each label's texts are of words of its own."""


def write_made_up(folder):
    """Write seeds, test items, documents and the file of a task with three labels."""

    def text(label, n):
        words = WORDS[label]
        return (
            f"The {words[n % 10]} and the {words[(n // 10 + 3 * n) % 10]} of number {n} are near. It is {words[n % 7]}."
        )

    rows = {"seeds": range(4), "test": range(50, 62), "documents": range(100, 130)}
    for name, numbers in rows.items():
        lines = [{"text": text(label, n), "label": label} for label in WORDS for n in numbers]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    labels = {
        label: {"verbalised": f"about the {label}", "prototype": f"A text on the {label}.", "subtopics": []}
        for label in WORDS
    }
    base = compose_option("rows", "base") | {"path": str(folder / "test.jsonl"), "labels": {n: n for n in WORDS}}
    task = {
        "defaults": ["classification", "_self_"],
        "name": "made_up",
        "labels": labels,
        "instruction": "Write a sentence {{ label }}{% if has_document %} after the note{% endif %}.",
        "document_header": "Note:",
        "cue": "Sentence:",
        "max_new_tokens": 50,
        "rows_per_label": 30,
        "rows": 60,
        "lead_sentences": 1,
        "own_benchmarks": {"test": {**base, "name": "Made-up", "sha256": None}},
    }
    (folder / "runs/conf/task").mkdir(parents=True)
    (folder / "runs/conf/task/made_up.yaml").write_text(yaml.safe_dump(task))


@pytest.fixture(scope="module")
def folder(tmp_path_factory, ray_cluster):
    folder = tmp_path_factory.mktemp("synthesizrr")
    write_made_up(folder)
    build_tiny("distilbert", folder / "model")
    return folder


def compose(folder, *overrides):
    labels = "{" + ", ".join(f"{label}: {label}" for label in WORDS) + "}"
    seeds = ["data=seeds", f"data.path={folder}/seeds.jsonl", f"data.labels={labels}"]
    tiny = [f"{place}.model={folder}/model" for place in ("student", "retriever.encoder", "quality.encoder")]
    of_evaluation = [f"evaluation.{name}.encoder.model={folder}/model" for name in ("prototype", "frozen")]
    return compose_experiment(
        [
            f"hydra.searchpath=[file://{folder}/runs/conf]",
            "task=made_up",
            *seeds,
            "method=retricl",
            "method.shots=0",
            "method.synthesis_ranks={first: 1, last: 20}",
            "method.demonstration_ranks={first: 21, last: 22}",
            "method.synthesis_window={kind: percentile, low: 0, high: 100}",
            "corpus=jsonl",
            f"corpus.paths=[{folder}/documents.jsonl]",
            "corpus.cutting.min_tokens=0",
            "quality=default",
            "quality.sample_size=10",
            "student=frozen_minilm",
            "student.folds=0",
            *tiny,
            *of_evaluation,
            "filters.leak_similarity=1",
            "evaluation.n_replicates=100",
            "evaluation.cost.n_single=3",
            "tracking=none",
            f"root={folder}/runs",
            *overrides,
        ]
    )


def with_derived(experiment, folder):
    """Return the experiment with an arm that picks of its rows, and one that joins those with the seeds."""
    values = experiment.model_dump()
    arm = values["arms"]["offline"]
    bare = dict.fromkeys(("teacher", "method", "index", "students"))
    rows = {key: value for key, value in arm["data"].items() if key != "cutting"}
    student = compose_option("student", "cartographer_minilm") | {"model": f"{folder}/model", "epochs": 2}
    picked = {
        "kind": "cartography", "arm": "offline", "student": student,
        "selection": compose_option("selection", "top_confidence"),
    }  # fmt: skip
    values["arms"] |= {
        "seeds": {**arm, **bare, "data": {**rows, "kind": "labelled", "origin": "human"}},
        "picked": {**arm, **bare, "data": picked},
        "joined": {**arm, **bare, "data": {"kind": "join", "arms": ["seeds", "picked"]}},
    }
    values["oracle"] = "seeds/frozen_minilm"
    return validate(ExperimentConfig, values)


@pytest.fixture(scope="module")
def finished(folder):
    return run(with_derived(compose(folder), folder))


def find(finished, name, arm=""):
    return next(step for step in finished.steps if (step.name, step.arm) == (name, arm))


def read(step, kind=Example, name="examples.parquet"):
    return list(from_table(kind, step.folder.read_table(name)))


def test_a_task_is_one_file_and_its_rows_are_copies_of_documents_under_the_label_of_the_nearest_seed(finished):
    rows = read(find(finished, "dataset", "offline"))
    assert len(rows) > 30
    assert set(Counter(row.label for row in rows)) <= set(WORDS)
    for row in rows:
        assert row.text == row.extras["passage_text"].split(". ")[0] + "."
    requests = read(find(finished, "requests", "offline"), Request, "requests.parquet")
    assert len({request.passages[0].passage_id for request in requests}) == len(requests), "one seed a document"


def test_cartography_keeps_the_share_of_each_label_that_was_learned_best(finished):
    rows, picked = read(find(finished, "dataset", "offline")), find(finished, "dataset", "picked")
    kept = read(picked)
    dynamics = {one.row_id: one for one in read(picked, RowDynamics, "dynamics.parquet")}
    assert set(dynamics) == {row.row_id for row in rows}
    for label in {row.label for row in rows}:
        of_label = {row.row_id: dynamics[row.row_id].confidence for row in rows if row.label == label}
        bound = np.quantile(list(of_label.values()), 0.17)
        assert {row.row_id for row in kept if row.label == label} == {i for i, c in of_label.items() if c >= bound}
    rejected = picked.folder.read_json("card.json")["rejects"]["filter"]["cartography"]
    assert rejected + len(kept) == len(rows)


def test_a_join_has_all_rows_of_both(finished):
    counts = find(finished, "dataset", "joined").manifest["counts"]
    kept = [find(finished, "dataset", arm).manifest["counts"]["rows"] for arm in ("seeds", "picked")]
    assert [counts["drawn_seeds"], counts["drawn_picked"]] == kept
    assert counts["rows_in"] == sum(kept)


def test_quality_is_measured_of_each_arm_and_shown_on_one_page(finished):
    measured = find(finished, "quality", "offline").folder.read_json("quality.json")
    measures = measured["overall"]["measures"]
    assert 0 < measures["Self-BLEU-2"]["value"] <= 1
    assert measures["label_preservation"]["n"] == find(finished, "dataset", "offline").manifest["counts"]["rows"]
    assert (
        "label_preservation"
        not in find(finished, "quality", "seeds").folder.read_json("quality.json")["overall"]["measures"]
    )
    page = find(finished, "quality_page").folder.read_text("quality.html")
    assert page.count("data:image/svg+xml") == 3, "the map, the lengths and the cartography"
    assert "label preservation" in page
    for arm in ("offline", "picked", "joined", "seeds"):
        assert f">{arm}<" in page


def test_three_labels_are_judged_by_accuracy_and_stand_beside_trivial_baselines(finished):
    entries = find(finished, "comparison").folder.read_json("comparison.json")
    measures = {entry["measure"] for entry in entries}
    assert {"accuracy", "macro-F1", "MCC", "F1@garden"} <= measures
    assert not measures & {"AUROC", "PR-AUC"}
    assert {entry["arm"] for entry in entries} >= {"majority", "prior", "prototype", "tfidf_offline", "joined"}
    table = find(finished, "comparison").folder.read_text("results.md")
    assert "| arm | student | accuracy | macro-F1 | MCC |" in table


def test_again_nothing_is_done_and_another_filter_asks_no_teacher(folder, finished):
    again = run(with_derived(compose(folder), folder))
    assert all(step.kept for step in again.steps)

    def count():
        return len(Ledger.of(Folder.at(folder / "runs"), "offline").read()[0])

    before = count()
    assert before > 30
    other = run(with_derived(compose(folder, "filters.near_duplicate_similarity=null"), folder), until="generate")
    assert not find(other, "dataset", "offline").kept
    assert find(other, "requests", "offline").kept
    assert count() == before


PAPER = ("", "_toi", "_hyperpartisan", "_amazon_polarity", "_amazon_category", "_amazon_humor")
"""Ends of the experiments' names."""


def write_corpora(root):
    """Write a corpus of each kind in its official format, of the fixtures' own texts."""
    texts = [
        text
        for path in sorted(FIXTURES.rglob("*"))
        if path.suffix in (".csv", ".jsonl", ".review")
        for text in re.findall(r"[A-Z][^\n\"<>|]{40,}", path.read_text(errors="replace"))
    ]
    (root / "realnews").mkdir()
    (root / "amazon_products").mkdir()
    news = [
        {
            "text": f"{text} It was so.",
            "domain": domain,
            "url": f"https://{domain}/{n}",
            "title": "A title",
        }
        for n, text in enumerate(texts)
        for domain in ("example.com", "ndtv.com")
    ]
    (root / "realnews/part.jsonl").write_text("".join(json.dumps(line) + "\n" for line in news))
    products = [
        {"asin": f"B{n}", "title": "A thing", "description": [text], "category": ["Things"]}
        for n, text in enumerate(texts)
    ]
    lines = "".join(json.dumps(line) + "\n" for line in products)
    paths = compose_option("corpus", "amazon_products")["paths"]
    (root / paths[0].replace("*", "x").removesuffix(".gz")).parent.mkdir(exist_ok=True)
    (root / paths[0].replace("*", "x").removesuffix(".gz")).write_text(lines)


@pytest.fixture(scope="module")
def official(tmp_path_factory):
    """The fixtures and corpora beside them."""
    root = tmp_path_factory.mktemp("official")
    for path in FIXTURES.iterdir():
        (root / path.name).symlink_to(path)
    write_corpora(root)
    return root


def shrink(name, folder, official, teacher):
    """Return a paper's experiment with tiny models and few rows, all arms in it that some teacher writes."""
    composed = compose_experiment([f"experiment=synthesizrr_paper{name}", f"data.root={official}", "tracking=none"])
    values = composed.model_dump()
    model = {"model": f"{folder}/model", "revision": None}
    for arm in values["arms"].values():
        if "per_class" in arm["data"]:
            arm["data"] |= {"per_class": 1 if arm["data"]["kind"] == "seeds" or arm["data"]["per_class"] else None}
            arm["data"] |= {"limit": None, "share": None}
        if arm["method"]:
            wide = {"kind": "absolute", "low": -1.0, "high": 1.0}
            windows = {key: wide for key in arm["method"] if key.endswith("window")}
            arm["method"] |= {
                "rows_per_label": 2,
                "shots": min(arm["method"]["shots"], 1),
                "truncated": "keep",
                **windows,
            }
            if "shared_documents" in arm["method"]:
                arm["method"]["shared_documents"] = "all"  # few documents for many labels
            arm["teacher"] = arm["teacher"] if arm["teacher"]["kind"] == "offline" else teacher
        if arm["data"]["kind"] == "cartography":
            arm["data"]["student"] |= model | {"epochs": 1, "max_length": 32}
        arm["filters"] |= {"max_leaked_share": 1.0, "leak_similarity": 1.0, "copying": None}
        arm["filters"] |= {"drop_conflicting_labels": False, "near_duplicate_similarity": None}
    # Training by gradients is tested elsewhere; starting it takes most of a minute for each arm and student.
    frozen = compose_option("student", "frozen_minilm") | model | {"folds": 0, "max_length": 32}
    values |= {"students": {"frozen": frozen}, "oracle": None}
    index = values["indexes"]["paper"]
    index["corpus"]["cutting"] |= {"min_tokens": 0}
    index["retriever"]["encoder"] |= model | {"max_tokens": 32}
    for encoder in (values["evaluation"]["prototype"], values["evaluation"]["frozen"], values["quality"]):
        encoder["encoder"] |= model | {"max_tokens": 32}
    values["evaluation"] |= {"n_replicates": 100}
    values["quality"] |= {"sample_size": 2, "tokeniser": "words"}
    for benchmark in values["task"]["own_benchmarks"].values():
        benchmark |= {"sha256": None, "share": None, "per_class": None, "limit": None}
        if benchmark["path"] == values["arms"]["gold"]["data"]["path"]:  # split by shares, which so few rows don't have
            labels = values["task"]["labels"]
            items = [{"text": f"Test item {n} on {label}", "label": label} for label in labels for n in range(2)]
            path = folder / f"test{name}.jsonl"
            path.write_text("".join(json.dumps(item) + "\n" for item in items))
            benchmark |= compose_option("rows", "base") | {"path": [str(path)], "labels": {n: n for n in labels}}
    values["task"]["max_new_tokens"] = 16
    values["root"] = str(folder / f"paper{name}")
    return values


def keep_arms(values, *arms):
    values["arms"] = {key: arm for key, arm in values["arms"].items() if key in arms}
    return values


@pytest.mark.crash
@pytest.mark.parametrize("name", PAPER)
def test_the_papers_experiments_run_on_files_in_official_formats(name, folder, official):
    values = shrink(name, folder, official, teacher=None)
    experiment = validate(ExperimentConfig, keep_arms(values, "gold", "seeds", "copy"))
    finished = run(experiment)
    labels = list(experiment.task.labels)
    assert {row.label for row in read(find(finished, "dataset", "copy"))} == set(labels)
    assert find(finished, "comparison").manifest["counts"]["entries"]


@pytest.mark.vllm
@pytest.mark.parametrize(("name", "arm"), list(zip(PAPER, cycle(["fewgen_32", "retricl_3", "nonretricl_32"]))))
def test_the_papers_methods_go_through_the_real_engine(name, arm, folder, official, tiny_teacher):
    teacher = compose_experiment(["teacher=vllm_tiny"]).arms["vllm_tiny"].teacher.model_dump()
    values = keep_arms(shrink(name, folder, official, teacher), "gold", arm)
    finished = run(validate(ExperimentConfig, values), until="generate")
    counts = find(finished, "dataset", arm).manifest["counts"]
    assert counts["requests"] == 2 * len(values["task"]["labels"])
    assert counts["requests_failed"] == 0
