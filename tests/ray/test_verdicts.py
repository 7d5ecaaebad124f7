"""An LLM labels a sheet through a real endpoint; its labels are read beside people's."""

import json
from pathlib import Path

import pytest

from pipeline.errors import ConfigError, SourceError
from pipeline.evaluation.annotation import Annotation, Fault, Label, LabelFile
from pipeline.evaluation.label_files import read_label_file, write_labels
from pipeline.stages.annotate import ITEMS, KEY, RESULT, export_sheets, import_labels
from pipeline.stages.verdicts import judge_items
from tests.annotations import HOSTILE, compose_export, write_arm
from tests.composing import compose_annotation
from tests.endpoint import serve

pytestmark = pytest.mark.ray


@pytest.fixture
def exported(tmp_path):
    write_arm(tmp_path, "basic")
    write_arm(tmp_path, "grounded", passage_text="It is so, say all.\n\nOther words.")
    export_sheets(compose_export(tmp_path))
    return tmp_path / "out"


def compose_judge(exported, base_url, *overrides):
    return compose_annotation(
        [
            "annotate=judge", f"exported={exported}", f"output={exported}/judged", f"root={exported}/runs",
            "teacher=openai", "teacher.model=sample", f"teacher.base_url={base_url}", "teacher.max_in_flight=4",
            *overrides,
        ]
    )  # fmt: skip


def write_person(folder, annotator, sheet, items, label):
    fault = Fault.FALSE if label is Label.YES else None
    file = LabelFile("", sheet, annotator, tuple(Annotation(item, label, fault) for item in items))
    (folder / f"{annotator}.json").write_text(write_labels(file))
    return folder / f"{annotator}.json"


def test_a_judge_labels_every_item_once_and_is_read_beside_people(ray_cluster, exported, tmp_path):
    with serve() as served:
        path = judge_items(compose_judge(exported, served.base_url))
        n_asked = len(served.log())
        assert judge_items(compose_judge(exported, served.base_url)) == path
        assert len(served.log()) == n_asked, "an item was paid twice"
    key = json.loads((exported / KEY).read_text())
    labels = read_label_file(path.rpartition("/")[2], Path(path).read_bytes())
    assert labels.sheet == key["sheet"]
    assert {one.item_id for one in labels.annotations} == {entry["item_id"] for entry in key["items"]}
    items = [entry["item_id"] for entry in key["items"]]
    people = [write_person(tmp_path, name, key["sheet"], items, Label.NO) for name in ("first", "second")]
    output = tmp_path / "result"
    given = [f"labels=[{people[0]},{people[1]}]", f"judge_labels={path}"]
    import_labels(compose_annotation(["annotate=import", f"exported={exported}", f"output={output}", *given]))
    found = json.loads((output / RESULT).read_text())
    n_agree = sum(one.label is Label.NO for one in labels.annotations)
    assert found["judge"]["n"] == 6
    assert found["judge"]["observed"] == pytest.approx(n_agree / 6)
    assert all(rate["value"] == 0 for rate in found["rates"]["arm"]), "the judge's labels were counted in a rate"


def test_the_items_of_a_judge_have_their_passages_and_say_no_arm(exported):
    content = json.loads((exported / ITEMS).read_text())
    passages = {item["answer"]: item["passages"] for item in content["items"]}
    assert passages[HOSTILE] == []
    assert passages["grounded answers 1. It is so."] == ["It is so, say all.", "Other words."]
    assert {key for item in content["items"] for key in item} == {"item_id", "question", "answer", "passages"}


def test_mistakes_are_told_before_anything_is_asked(exported, tmp_path, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(ConfigError, match="the offline teacher is rules that write, and can't judge"):
        compose_annotation(["annotate=judge", f"exported={exported}", "output=o", "teacher=offline"])
    with pytest.raises(SourceError, match=r"holds no items\.json; give the folder that annotate=export ended with"):
        judge_items(compose_judge(tmp_path, "http://127.0.0.1:9/v1"))
    with pytest.raises(ConfigError, match="OPENAI_API_KEY"):
        judge_items(compose_judge(exported, "http://127.0.0.1:9/v1", "teacher.api_key_env=OPENAI_API_KEY"))
