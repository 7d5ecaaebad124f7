"""A teacher whose answers get too much alike goes on with other topics, by itself and for good."""

import random

import pytest

from pipeline.flow import run
from pipeline.launch import CONF
from pipeline.records import Example, from_table
from tests.composing import compose_generation

pytestmark = pytest.mark.ray

N_VARIED, N_ALIKE, N_SPARE = 1_000, 2_000, 3_000  # an actor's answers can be looked at by the thousand


def write_topics(folder):
    """Write topics of which the varied ones are asked first, prompts being sorted, then those alike; others follow."""
    draws = random.Random(5)
    words = (CONF / "topics" / "everyday.tsv").read_text().split()
    varied = [f"A{i} {' '.join(draws.sample(words, 4))}" for i in range(N_VARIED + N_SPARE)]
    alike = [f"Z pets, pets and more pets {i}" for i in range(N_ALIKE)]
    topics = [*varied[:N_VARIED], *alike, *varied[N_VARIED:]]
    (folder / "topics.txt").write_text("\n".join(topics))
    return [
        "task=ambiguity", "data=topics", f"data.path={folder}/topics.txt", f"data.limit={N_VARIED + N_ALIKE}",
        "method.n_intents=1", "teacher=offline", "teacher.latency_s=0.3", "watch=default", "watch.interval_s=0.2",
        "watch.sample=100", "watch.min_distinct=0.85", "watch.resample_topics=true", "tracking=none",
        f"root={folder}/runs",
    ]  # fmt: skip


def test_other_topics_take_the_place_of_those_alike_and_stay(ray_cluster, tmp_path, caplog):
    command = write_topics(tmp_path)
    *_, dataset = run(compose_generation(command), "generate").steps
    assert dataset.manifest["counts"]["requests"] == N_VARIED + N_ALIKE
    (warning,) = [r.getMessage() for r in caplog.records if "goes on with" in r.getMessage()]
    assert "below watch.min_distinct=0.85" in warning
    topics = {row.extras["topic"] for row in from_table(Example, dataset.folder.read_table("examples.parquet"))}
    n_alike = sum(topic.startswith("Z") for topic in topics)
    assert n_alike < N_ALIKE
    looks = dataset.folder.read_table("looks.parquet")["relative_distinct_2"].to_pylist()
    assert min(looks[1:]) < 0.85 < looks[-1]

    finished = run(compose_generation(command), "generate")
    assert all(step.kept for step in finished.steps)
    assert finished.steps[-1].fingerprint == dataset.fingerprint
