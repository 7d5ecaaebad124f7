"""The sheet, from a data set's folder through a browser back to the figures."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from pipeline.errors import ConfigError, SourceError
from pipeline.evaluation.label_files import read_label_file
from pipeline.records import Example, to_table
from pipeline.stages.annotate import KEY, PAGE, RESULT, SHEETS, TEXTS, export_sheets, import_labels
from pipeline.stages.dataset import EXAMPLES
from pipeline.storage import Folder
from tests.annotations import HOSTILE, compose_export, write_arm
from tests.composing import compose_annotation

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = """<script>
const blobs = [];
URL.createObjectURL = (blob) => { blobs.push(blob); return "#saved"; };
const press = (key, target = document) => target.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
const shown = [];
for (const keys of KEYS) {
  shown.push(document.getElementById("answer").textContent);
  for (const key of keys) press(key);
  press("ArrowRight");
}
press("ArrowLeft");
const note = document.getElementById("note");
note.value = "the last's note";
note.dispatchEvent(new Event("input"));
press("n", note);
press("s");
blobs[0].text().then((saved) => {
  const kept = localStorage.getItem(place);
  const result = { saved, shown, kept, title: document.title, done: document.getElementById("progress").value };
  document.body.textContent = "RESULT" + JSON.stringify(result) + "END";
});
</script>"""
"""Presses keys as a person would. The download is caught on its way; the last note holds a key's letter."""


@pytest.fixture
def exported(tmp_path):
    write_arm(tmp_path, "basic")
    write_arm(tmp_path, "grounded", n=4, passage_text="It is so, say all.\n\nOther words.")
    export_sheets(compose_export(tmp_path))
    return tmp_path / "out"


def read_items(sheet: str) -> dict:
    return json.loads(re.search(r'<script id="data" type="application/json">(.*?)</script>', sheet, re.DOTALL).group(1))


def test_an_export_is_sheets_apart_from_their_key(exported):
    assert sorted(path.name for path in (exported / SHEETS).iterdir()) == [
        f"sheet_{annotator}.{kind}" for annotator in ("first", "second") for kind in ("csv", "html")
    ]
    key = json.loads((exported / KEY).read_text())
    assert key["n_incomplete"] == 1
    for path in (exported / SHEETS).iterdir():
        content = path.read_text()
        assert key["sheet"] in content
        assert all(entry["item_id"] in content for entry in key["items"])
        # Neither what an item is of nor an address of the network.
        assert not re.search(r"beer_|mini|\"arm\"|prompt", content)
        assert not re.search(r"https?:|src=[\"']?//", content)


def test_a_sheet_holds_markup_in_answers_as_data(exported):
    sheet = (exported / SHEETS / "sheet_first.html").read_text()
    assert sheet.count("</script>") == 2  # the data's and the page's own
    assert HOSTILE in {item["answer"] for item in read_items(sheet)["items"]}


def test_an_export_measures_texts_and_what_passages_support_of_them(exported):
    found = json.loads((exported / TEXTS).read_text())
    assert found["texts"]["n"] == 3
    assert set(found["texts"]["arms"]) == {"basic", "grounded"}
    # "grounded answers 0." shares no word with a passage, "It is so." all.
    assert found["support"]["grounded"] == {
        "passages_of": "grounded", "n_answers": 4, "n_left_out": 0, "n_claims": 8, "recall": 0.5, "cosine": None,
    }  # fmt: skip
    assert found["support"]["basic"]["passages_of"] == "grounded"


def test_a_key_is_never_replaced_by_another_sheets(tmp_path, exported):
    key = (exported / KEY).read_bytes()
    export_sheets(compose_export(tmp_path))
    with pytest.raises(ConfigError, match="give another output"):
        export_sheets(compose_export(tmp_path, "seed=43"))
    assert (exported / KEY).read_bytes() == key


def test_folders_that_hold_no_answers_are_refused(tmp_path):
    write_arm(tmp_path, "basic")
    with pytest.raises(SourceError, match=r"arms\.grounded\.path: .*grounded holds no examples\.parquet"):
        export_sheets(compose_export(tmp_path))
    write_arm(tmp_path, "grounded", query="Another question?")
    with pytest.raises(SourceError, match="question beer_0 reads otherwise"):
        export_sheets(compose_export(tmp_path))
    row = Example("r1", "", "g", "text", "", {"query": "Why?"})
    Folder.at(tmp_path / "grounded").write_table(EXAMPLES, to_table(Example, [row]))
    with pytest.raises(SourceError, match="row r1 has no question_id, community"):
        export_sheets(compose_export(tmp_path))


def label_in_browser(sheet: Path, keys: list[str], profile: Path) -> dict:
    """Return what the sheet says and saves once each of its items was answered by some keys."""
    driven = profile / sheet.name
    profile.mkdir()
    driven.write_text(sheet.read_text().replace("</body>", DRIVER.replace("KEYS", json.dumps(keys)) + "</body>"))
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile / 'profile'}"]
    done = subprocess.run(
        [*command, "--virtual-time-budget=2000", "--dump-dom", driven.as_uri()],
        capture_output=True,
        text=True,
        timeout=60,
    )
    found = re.search("RESULT(.*)END", done.stdout, re.DOTALL)
    assert found, done.stdout[-500:] + done.stderr[-2000:]
    return json.loads(html.unescape(found.group(1)))


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH")
def test_two_annotators_label_five_items_each_in_a_browser_save_and_are_read(tmp_path, exported):
    keys = {"first": ["y1", "y2", "n", "n", "y3"], "second": ["y1", "n", "n", "c", "y4"]}
    paths, said = [], {}
    for annotator, pressed in keys.items():
        sheet = exported / SHEETS / f"sheet_{annotator}.html"
        result = label_in_browser(sheet, pressed, tmp_path / annotator)
        items = read_items(sheet.read_text())["items"]
        assert result["shown"] == [item["answer"] for item in items[:5]]
        assert result["title"] == f"Annotation sheet {json.loads((exported / KEY).read_text())['sheet']} · {annotator}"
        assert result["done"] == 5
        assert len(json.loads(result["kept"])) == 6  # what is kept between visits includes the item just looked at
        path = tmp_path / f"{annotator}.json"
        path.write_text(result["saved"])
        paths.append(path)
        file = read_label_file(path.name, path.read_bytes())
        assert [annotation.item_id for annotation in file.annotations] == [item["item_id"] for item in items[:5]]
        assert file.annotations[-1].note == "the last's note"
        said[annotator] = {annotation.item_id: annotation.label[0] for annotation in file.annotations}
        assert list(said[annotator].values()) == [key[0] for key in pressed]

    labels = ",".join(map(str, paths))
    output = tmp_path / "result"
    import_labels(
        compose_annotation(["annotate=import", f"exported={exported}", f"labels=[{labels}]", f"output={output}"])
    )
    found = json.loads((output / RESULT).read_text())
    assert found["n_missing"] == {"first": 1, "second": 1}
    pairs = [(said["first"][item], said["second"][item]) for item in said["first"].keys() & said["second"].keys()]
    decided = [pair for pair in pairs if "c" not in pair]
    (agreement,) = found["agreements"]
    assert agreement["n"] == len(decided) >= 3
    assert agreement["observed"] == pytest.approx(sum(one == other for one, other in decided) / len(decided))
    assert sum(rate["n"] + rate["n_undecided"] for rate in found["rates"]["arm"]) == 6
    assert (output / PAGE).read_text().count("<h2>") == 5
