"""Files scored by actors, and scored again only where that is needed."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.launch import read_scale
from pipeline.prediction.score import Predicted, PredictionConfig, predict
from pipeline.students.onnx import save_for_export
from tests.unit.test_export import save_tiny, score_with_torch
from tests.unit.test_students import LABELS

pytestmark = pytest.mark.ray


def test_files_are_scored_once_and_again_where_they_changed(ray_cluster, tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    save_for_export(save_tiny("distilbert", tmp_path), model)
    texts = {"a.parquet": ["what about it", None, "best one near me"], "more/b.parquet": ["Is that allowed?"] * 40}
    for name, column in texts.items():
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({"id": range(len(column)), "text": column}), tmp_path / "in" / name)
    config = PredictionConfig(
        model=str(model), inputs=(str(tmp_path / "in"),), output=str(tmp_path / "out"), column="text", engine=None,
        batch_size=8, actors=2, cpus_per_actor=1, gpus_per_actor=0, is_shared=False,
    )  # fmt: skip
    scale = read_scale("local")
    assert predict(config, scale) == Predicted(n_kept=0, n_scored=2, rows=43, nulls=1)
    written = {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in texts}
    expected = [LABELS[i] for i in score_with_torch(model, ["what about it", "best one near me"]).argmax(axis=1)]
    found = pq.read_table(tmp_path / "out/a.parquet")
    assert found["predicted_label"].to_pylist() == [expected[0], None, expected[1]]
    assert pq.read_table(tmp_path / "out/more/b.parquet")["id"].to_pylist() == list(range(40))

    assert predict(config, scale) == Predicted(n_kept=2, n_scored=0, rows=0, nulls=0)
    assert {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in texts} == written

    pq.write_table(pa.table({"id": [7], "text": ["which one"]}), tmp_path / "in/a.parquet")
    assert predict(config, scale) == Predicted(n_kept=1, n_scored=1, rows=1, nulls=0)
    assert pq.read_table(tmp_path / "out/a.parquet")["id"].to_pylist() == [7]
    assert (tmp_path / "out/more/b.parquet").stat().st_mtime_ns == written["more/b.parquet"]
