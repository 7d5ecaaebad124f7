"""`kill -9` while OpenAI's Batch API is asked, at each stage of a batch: nothing is lost, and nothing is asked twice.

What was asked is counted at the server's own log. It holds the first call that comes to a stage, so each kill finds the
run just there.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from subprocess import Popen

import psutil
import pytest

from pipeline.records import Outcome
from pipeline.storage import Folder
from pipeline.teachers.ledger import Ledger
from tests.batch_endpoint import STAGES, serve_batches
from tests.endpoint import Served
from tests.jobs import choose, kill, read_prompts, read_result, run_job, start_job, wait_until, wait_until_gone

pytestmark = [pytest.mark.crash, pytest.mark.timeout(600)]

N_REQUESTS = 40
EXPIRED = 0.2
"""Share of rows that never end, so that what follows an expired batch is killed and restarted as well."""


@dataclass
class Batching:
    """A command that asks by batches, and what of it can be seen from outside."""

    command: list[str]
    root: Path
    served: Served
    job: Popen | None = None

    def start(self) -> None:
        self.job = start_job(*self.command, script="generate")

    def wait_for(self, stage: str, n: int = 1) -> list[psutil.Process]:
        """Wait until so many calls came to a stage; return the driver and its processes."""

        def is_there() -> bool:
            if self.job.poll() is not None:
                pytest.fail(f"the run ended too early: {self.job.communicate()[1][-3000:]}")
            return self.count_calls()[stage] >= n

        wait_until(is_there, f"a call comes to the stage {stage}")
        driver = psutil.Process(self.job.pid)
        return [driver, *driver.children(recursive=True)]

    def count_calls(self) -> Counter[str]:
        return Counter(line["call"] for line in self.served.log() if "call" in line)

    def kill_everything(self, stage: str) -> None:
        processes = self.wait_for(stage)
        kill(processes)
        self.job.communicate()
        wait_until_gone(processes)

    def kill_driver(self, stage: str) -> None:
        """Kill the driver alone, and do not wait for those that asked for it."""
        driver, *self.orphans = self.wait_for(stage)
        kill([driver])
        self.job.communicate()

    def kill_actor(self, stage: str) -> None:
        (actor,) = choose(self.wait_for(stage), "TeacherActor")
        kill([actor])
        wait_until_gone([actor])

    def go_on(self) -> Folder:
        stdout, stderr = self.job.communicate(timeout=400)
        assert self.job.returncode == 0, stderr[-4000:]
        return Folder.at(read_result(stdout))

    def run_again(self) -> Folder:
        return Folder.at(read_result(run_job(*self.command, script="generate")))

    def check(self, dataset: Folder) -> None:
        """Check that every request has its end, once, and that none was asked again after it was answered."""
        row_ids = dataset.read_table("examples.parquet")["row_id"].to_pylist()
        assert len(row_ids) == len(set(row_ids)), "rows stand there twice"
        accepted = {*dataset.read_table("examples.parquet")["request_id"].to_pylist()}
        assert accepted == set(read_prompts(self.root).values())
        rows = [line for line in self.served.log() if "prompt" in line]
        answered = Counter(line["prompt"] for line in rows if line["finished"])
        assert answered == dict.fromkeys(read_prompts(self.root), 1), "what was answered was asked again"
        completions, _ = Ledger.of(Folder.at(self.root), "openai_batch").read()
        assert Counter(c.outcome for c in completions if c.outcome.is_answer) == {Outcome.OK: N_REQUESTS}
        # Each row that expired was told once, and asked again once for it.
        n_expired = sum(not line["finished"] for line in rows)
        assert n_expired > 0
        assert Counter(c.outcome for c in completions if not c.outcome.is_answer) == {Outcome.TIMEOUT: n_expired}
        assert {c.price_factor for c in completions} == {0.5}
        spent = dataset.read_json("efficiency.json")
        assert spent["usd"] == pytest.approx(0.5 * (2 * spent["prompt_tokens"] + 8 * spent["completion_tokens"]) / 1e6)

    def check_ids(self) -> None:
        """Check that the records know each file and batch that the server has, and that there are no others."""
        folder = Folder.at(self.root) / "ledger" / "openai_batch" / "batches"
        records = [folder.read_json(name) for name in folder.names(".json")]
        log = self.served.log()
        for stage, name in (("uploaded", "file_id"), ("created", "batch_id")):
            assert [r[name] for r in records] == [line["id"] for line in log if line.get("call") == stage]


@pytest.fixture
def batching(request, tmp_path) -> Iterator[Batching]:
    topics = tmp_path / "topics.txt"
    topics.write_text("".join(f"Topic number {i}\n" for i in range(N_REQUESTS)))
    root = tmp_path / "runs"
    with serve_batches(hold=request.param, batch_s=2.0, stall=EXPIRED, seed=3) as served:
        command = [
            "task=ambiguity", "data=topics", f"data.path={topics}", "teacher=openai_batch", "teacher.model=sample",
            f"teacher.base_url={served.base_url}", "teacher.api_key_env=null", "teacher.response_format=json_schema",
            "teacher.batch.gather_s=1", "teacher.batch.poll_s=0.5", "teacher.max_tries=8", "tracking=none",
            "teacher.price.per_million_prompt_tokens=2", "teacher.price.per_million_completion_tokens=8",
            f"root={root}",
        ]  # fmt: skip
        batching = Batching(command, root, served)
        yield batching
        if batching.job is not None and batching.job.poll() is None:  # the test has failed
            driver = psutil.Process(batching.job.pid)
            kill([driver, *driver.children(recursive=True)])
            batching.job.communicate()


@pytest.mark.parametrize("batching", STAGES, indirect=True)
def test_a_machine_that_goes_down(request, batching):
    batching.start()
    batching.kill_everything(request.node.callspec.params["batching"])
    batching.check(batching.run_again())
    batching.check_ids()


@pytest.mark.parametrize("batching", ["uploaded", "download"], indirect=True)
def test_a_killed_actor(request, batching):
    batching.start()
    batching.kill_actor(request.node.callspec.params["batching"])
    batching.check(batching.go_on())
    batching.check_ids()


@pytest.mark.parametrize("batching", ["created"], indirect=True)
def test_a_killed_driver_whose_actor_still_lives(request, batching):
    batching.start()
    batching.kill_driver(request.node.callspec.params["batching"])
    batching.check(batching.run_again())
    kill(batching.orphans)
    batching.check_ids()


@pytest.mark.parametrize("batching", [""], indirect=True)
def test_two_kills_in_a_row(batching):
    batching.start()
    batching.kill_everything("poll")
    batching.start()
    n_before = batching.count_calls()["download"]
    (actor,) = choose(batching.wait_for("download", n_before + 1), "TeacherActor")
    kill([actor])
    batching.check(batching.go_on())
    batching.check_ids()
