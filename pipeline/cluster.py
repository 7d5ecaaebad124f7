"""The Ray cluster that a run works on.

It is joined only when the first step needs it: a run that finds everything finished starts nothing.
"""

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pydantic import Field

from pipeline.config import Config
from pipeline.errors import ConfigError, WorkerError
from pipeline.progress import DONE, Tally, show_progress
from pipeline.retrieval.scale import IndexingConfig, SearchConfig
from pipeline.steps import Plan, Step, Steps
from pipeline.storage import Folder
from pipeline.students.search import TrialsConfig
from pipeline.students.train import TrainingConfig
from pipeline.teachers.pool import PoolConfig

T = TypeVar("T")
LOG = logging.getLogger(__name__)


class ScaleConfig(Config):
    """Where and how wide everything runs."""

    address: str | None
    """Ray cluster; null starts one on this machine. Inside `ray job submit` the job's cluster is taken."""
    num_cpus: int | None = Field(gt=0)
    """Logical CPUs of a cluster started here; null: all. Not used with an address."""
    pool: PoolConfig
    training: TrainingConfig
    trials: TrialsConfig
    indexing: IndexingConfig
    search: SearchConfig


@dataclass(frozen=True)
class Report:
    """Adds counts to a tally that lives in the cluster; picklable, so that workers can call it."""

    tally: Any

    def __call__(self, counts: Mapping[str, int]) -> None:
        """Send some counts and don't wait."""
        self.tally.add.remote(counts)

    def show(self, worker: str, state: Mapping[str, int]) -> None:
        """Send how things stand at a worker, as `Tally.show` has it, and don't wait."""
        self.tally.show.remote(worker, state)

    def stop(self, reason: str) -> None:
        """Ask all who report to the tally to end."""
        self.tally.stop.remote(reason)

    def find_stop(self) -> str:
        """Return why whoever reports should end; empty: go on."""
        import ray

        reason: str = ray.get(self.tally.find_stop.remote())
        return reason


@dataclass
class Cluster:
    """A cluster, joined or started on first use and left or stopped at the end of the `with` block."""

    config: ScaleConfig
    root: Folder
    root_is_shared: bool
    """Whether local folders are the same on every node."""
    inputs: Sequence[Folder] = ()
    """What workers read, besides the root."""
    sharing: str = "root_is_shared=true"
    """How a user says that they are shared."""
    _is_joined: bool = field(default=False, init=False)
    _may_grow: bool = field(default=False, init=False)

    def __enter__(self) -> "Cluster":
        return self

    def __exit__(self, *exception: object) -> None:
        if self._is_joined:
            import ray

            ray.shutdown()

    def join(self) -> None:
        """Join the cluster, unless that is done.

        Raises:
            ConfigError: The root or an input is local, but the cluster has several nodes that may not share it.
        """
        import ray

        if ray.is_initialized():
            return
        logging.getLogger("ray.train").setLevel(logging.ERROR)  # its lines would bury ours
        address = os.environ.get("RAY_ADDRESS") or self.config.address
        where = (
            {"address": address}
            if address
            else {
                "address": "local",  # never a cluster that happens to run here, whose code and size nobody asked for
                "num_cpus": self.config.num_cpus,
                "include_dashboard": False,
            }
        )
        try:
            ray.init(**where, log_to_driver=False, logging_level="error")
        except ConnectionError as error:
            raise ConfigError(f"no Ray cluster answers at {address} (scale.address, RAY_ADDRESS): {error}") from None
        self._is_joined = True
        self._may_grow = bool(address)
        if address:
            self._check_reach(ray.nodes(), ray.get_runtime_context().get_node_id())
        training = self.config.training
        self.check_room(
            "scale.training.{}s_per_worker",
            cpus=training.cpus_per_worker * training.worker_counts[0],
            gpus=training.gpus_per_worker * training.worker_counts[0],
        )

    def _check_reach(self, nodes: Sequence[Mapping[str, Any]], own_id: str) -> None:
        """Check that all nodes that may work share the root and the inputs."""
        local = [folder for folder in (self.root, *self.inputs) if folder.is_local]
        if not local or self.root_is_shared:
            return
        alive = [node for node in nodes if node["Alive"]]
        own = next(node for node in alive if node["NodeID"] == own_id)
        # A head without CPUs works through nodes that may not have joined yet.
        if len(alive) > 1 or not own["Resources"].get("CPU"):
            raise ConfigError(
                f"{local[0]} is a local path, but work runs on other nodes, each of which would use its own; give an "
                f"s3://… URL, or say {self.sharing} if it is on a network folder of all of them"
            )

    def check_room(self, setting: str, *, cpus: float, gpus: float) -> None:
        """Check that what belongs together fits: Ray would wait for ever, which only a growing cluster may do.

        Args:
            setting: What asks for it, with `{}` where the kind of device stands in its name.
            cpus: Logical CPUs in all.
            gpus: GPUs in all.

        Raises:
            ConfigError: It doesn't fit a cluster that can't grow.
        """
        self.join()
        import ray

        resources = ray.cluster_resources()
        for unit, needed in (("CPU", cpus), ("GPU", gpus)):
            if needed > resources.get(unit, 0):
                what = setting.format(unit.lower())
                problem = f"{what} asks for {needed:g} {unit}s in all, but Ray has {resources.get(unit, 0):g}"
                if not self._may_grow:
                    raise ConfigError(f"{problem}; set it lower, or scale.num_cpus higher, or name a cluster")
                LOG.warning("%s now; waiting for nodes that have more", problem)

    def call(self, function: Callable[..., T], *arguments: Any, gpus: float | None = None) -> T:
        """Run a function as a task, with a training worker's resources (or `gpus`); what it raises is raised here."""
        self.join()
        import ray

        training = self.config.training
        n_gpus = training.gpus_per_worker if gpus is None else gpus
        remote = ray.remote(num_cpus=training.cpus_per_worker, num_gpus=n_gpus)(function)
        try:
            result: T = ray.get(remote.remote(*arguments))
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None
        return result

    def fulfil(
        self, stage: str, plans: Sequence[Plan], root: Folder, *, cpus: float = 1, gpus: float = 0
    ) -> list[Step]:
        """Return the steps of some plans, in order; those that are not there yet are run as parallel tasks.

        What one raises is raised here, and the others are given up; what they finished is kept. A task whose worker
        dies is run again.

        Args:
            stage: Shown with the progress.
            plans: Picklable, and in no need of each other.
            root: Where steps are.
            cpus: Logical CPUs of a task.
            gpus: GPUs of a task.

        Raises:
            ConfigError: A task doesn't fit a cluster that can't grow.
            WorkerError: The worker of a task died each time that it was tried.
        """
        steps = Steps(root)
        found = [steps.find(plan) for plan in plans]
        missing = [position for position, step in enumerate(found) if step is None]
        if missing:
            self.check_room(f"{stage}: {{}}s of one task", cpus=cpus, gpus=gpus)
            tally = Tally()
            with show_progress(stage, "parts", len(plans), tally.totals):
                tally.add({DONE: len(plans) - len(missing)})
                for position, step in self._run_tasks([plans[p] for p in missing], steps, cpus, gpus):
                    found[missing[position]] = step
                    tally.add({DONE: 1})
        return [step for step in found if step is not None]

    def _run_tasks(self, plans: Sequence[Plan], steps: Steps, cpus: float, gpus: float) -> Iterator[tuple[int, Step]]:
        import ray

        # Without the limit of one call, which Ray sets for GPUs, a worker keeps the model that it loaded.
        remote = ray.remote(num_cpus=cpus, num_gpus=gpus, max_calls=0)(Steps.fulfil)
        running = {remote.remote(steps, plan): position for position, plan in enumerate(plans)}
        try:
            while running:
                (done,), _ = ray.wait(list(running))
                yield running.pop(done), ray.get(done)
        except ray.exceptions.RayError as error:
            for task in running:
                ray.cancel(task, force=True)
            if isinstance(error, ray.exceptions.RayTaskError):
                raise error.cause from None
            raise WorkerError(
                f"a task can't be brought to its end: {error}\nif memory is the cause, make shards smaller; what is "
                "finished is kept"
            ) from None

    @contextmanager
    def progress(self, stage: str, unit: str, total: int) -> Iterator[Report]:
        """Show progress while the body runs; workers add to it through what this gives."""
        self.join()
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        # On this node, which lives as long as the run does.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        tally = ray.remote(num_cpus=0, scheduling_strategy=here)(Tally).remote()
        with show_progress(stage, unit, total, lambda: ray.get(tally.totals.remote())):
            yield Report(tally)
