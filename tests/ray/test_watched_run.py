"""A teacher whose answers get too much alike goes on with other topics, by itself and for good."""

import random

import pytest

from pipeline.flow import run
from pipeline.launch import CONF
from pipeline.records import Example, from_table
from tests.composing import compose_generation

pytestmark = [pytest.mark.ray, pytest.mark.crash]

N_VARIED, N_ALIKE, N_SPARE = 300, 900, 900
RESAMPLING = ("watch=default", "watch.interval_s=0.2", "watch.sample=100", "watch.min_distinct=0.8",
              "watch.resample_topics=true")  # fmt: skip


def write_topics(folder):
    """Write varied topics, then those alike, then varied ones again."""
    draws = random.Random(5)
    words = (CONF / "topics" / "everyday.tsv").read_text().split()
    varied = [f"A{i} {' '.join(draws.sample(words, 30))}" for i in range(N_VARIED + N_SPARE)]
    alike = [f"Z{i}{' pets' * 30}" for i in range(N_ALIKE)]
    (folder / "topics.txt").write_text("\n".join([*varied[:N_VARIED], *alike, *varied[N_VARIED:]]))


def test_other_topics_take_the_place_of_those_alike_and_stay(ray_cluster, tmp_path, caplog):
    write_topics(tmp_path)
    command = [
        "task=ambiguity", "data=topics", f"data.path={tmp_path}/topics.txt", "method.n_intents=1", "teacher=offline",
        "teacher.latency_s=0.5", "tracking=none", f"root={tmp_path}/runs",
    ]  # fmt: skip

    def generate(limit, *watch):
        return run(compose_generation([*command, f"data.limit={limit}", *watch]), "generate").steps

    generate(N_VARIED)
    *_, dataset = generate(N_VARIED + N_ALIKE, *RESAMPLING)
    assert dataset.manifest["counts"]["requests"] == N_VARIED + N_ALIKE
    (warning,) = [r.getMessage() for r in caplog.records if "goes on with" in r.getMessage()]
    assert "below watch.min_distinct=0.8" in warning
    topics = {row.extras["topic"] for row in from_table(Example, dataset.folder.read_table("examples.parquet"))}
    assert sum(topic.startswith("A") for topic in topics) > N_VARIED
    looks = dataset.folder.read_table("looks.parquet")["relative_distinct_2"].to_pylist()
    assert looks[0] < 0.8 < looks[-1]

    finished = generate(N_VARIED + N_ALIKE, *RESAMPLING)
    assert all(step.kept for step in finished)
    assert finished[-1].fingerprint == dataset.fingerprint
