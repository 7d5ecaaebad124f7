"""`kill -9` of an index worker and of the driver midway, then the same command."""

import json
import random

import psutil
import pytest

from pipeline.stages.search import open_here
from pipeline.storage import Folder
from tests.jobs import choose, kill, read_result, run_job, start_job, wait_until

pytestmark = pytest.mark.crash
N_SHARDS, SHARD_DOCUMENTS = 8, 120


@pytest.fixture
def command(tmp_path):
    """A hybrid index, whose encoding takes seconds a shard."""
    draws = random.Random(3)
    texts = (" ".join(f"word{draws.randrange(500)}" for _ in range(60)) for _ in range(N_SHARDS * SHARD_DOCUMENTS))
    (tmp_path / "corpus.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    return [
        "corpus=jsonl",
        f"corpus.paths=['{tmp_path}/corpus.jsonl']",
        f"corpus.shard_documents={SHARD_DOCUMENTS}",
        "retriever=hybrid",
        "tracking=none",
    ]


def find_whole(root, step):
    """Return when each finished step of a kind was finished."""
    return {path.parent.name: path.stat().st_mtime_ns for path in root.glob(f"steps/{step}/*/manifest.json")}


def search(folder):
    return open_here(Folder.at(folder), k=10).search(["word1 word2 word3", "word77"])


def test_a_killed_worker_and_a_killed_driver_leave_the_index_as_it_would_have_been(tmp_path, command):
    undisturbed = read_result(run_job(*command, f"root={tmp_path}/a", script="index"))
    root = tmp_path / "b"
    job = start_job(*command, f"root={root}", script="index")

    wait_until(lambda: len(find_whole(root, "vectors")) >= 2 or job.poll() is not None, "two shards are encoded")
    assert job.poll() is None, job.communicate()[1][-3000:]
    workers = choose(psutil.Process(job.pid).children(recursive=True), "fulfil")
    assert workers, "no worker is at work"
    kill(workers)
    n_before = len(find_whole(root, "vectors"))
    wait_until(
        lambda: len(find_whole(root, "vectors")) >= n_before + 2 or job.poll() is not None,
        "work goes on without the killed worker",
    )
    assert job.poll() is None, job.communicate()[1][-3000:]
    job.kill()
    job.communicate()

    finished = find_whole(root, "vectors")
    assert len(finished) < N_SHARDS, "the index was whole before the driver was killed"
    result = read_result(run_job(*command, f"root={root}", script="index"))
    assert result.name == undisturbed.name
    after = find_whole(root, "vectors")
    assert len(after) == N_SHARDS
    assert {name: at for name, at in after.items() if name in finished} == finished, "a finished shard was made again"
    assert search(result) == search(undisturbed)
