"""The Ray cluster that a run works on.

It is joined only when the first step needs it: a run that finds everything finished starts nothing.
"""

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pipeline.errors import ConfigError
from pipeline.experiment import ScaleConfig
from pipeline.progress import Tally, show_progress
from pipeline.storage import Folder

T = TypeVar("T")


@dataclass(frozen=True)
class Report:
    """Adds counts to a tally that lives in the cluster; picklable, so that workers can call it."""

    tally: Any

    def __call__(self, counts: Mapping[str, int]) -> None:
        """Send some counts and don't wait."""
        self.tally.add.remote(counts)


@dataclass
class Cluster:
    """A cluster, joined or started on first use and left or stopped at the end of the `with` block."""

    config: ScaleConfig
    root: Folder
    root_is_shared: bool
    _is_joined: bool = field(default=False, init=False)

    def __enter__(self) -> "Cluster":
        return self

    def __exit__(self, *exception: object) -> None:
        if self._is_joined:
            import ray

            ray.shutdown()

    def join(self) -> None:
        """Join the cluster, unless that is done.

        Raises:
            ConfigError: The root is a local folder, but the cluster has several nodes and may not share it.
        """
        import ray

        if ray.is_initialized():
            return
        # Ray's own lines on each data set and its deprecations would bury ours.
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        logging.getLogger("ray.train").setLevel(logging.ERROR)
        address = os.environ.get("RAY_ADDRESS") or self.config.address
        if address:
            ray.init(address=address, log_to_driver=False, logging_level="error")
        else:
            ray.init(
                address="local",  # never a cluster that happens to run here, whose code and size nobody asked for
                num_cpus=self.config.num_cpus,
                include_dashboard=False,
                log_to_driver=False,
                logging_level="error",
            )
            self._check_size(ray.cluster_resources())
        self._is_joined = True
        n_nodes = sum(node["Alive"] for node in ray.nodes())
        if n_nodes > 1 and self.root.is_local and not self.root_is_shared:
            raise ConfigError(
                f"root={self.root} is a local folder, but the cluster has {n_nodes} nodes, which would each write to "
                "their own; use an s3://… root, or say root_is_shared=true if it is a network folder on all of them"
            )

    def _check_size(self, resources: Mapping[str, float]) -> None:
        """Check that a machine, which does not grow, can hold an actor and a worker: Ray would wait for ever."""
        pool, training = self.config.pool, self.config.training
        for what, needed, unit in (
            ("scale.pool.cpus_per_actor", pool.cpus_per_actor, "CPU"),
            ("scale.pool.gpus_per_actor", pool.gpus_per_actor, "GPU"),
            ("scale.training.cpus_per_worker", training.cpus_per_worker * training.workers, "CPU"),
            ("scale.training.gpus_per_worker", training.gpus_per_worker * training.workers, "GPU"),
        ):
            if needed > resources.get(unit, 0):
                raise ConfigError(
                    f"{what} asks for {needed:g} {unit}s in all, but this machine gives Ray "
                    f"{resources.get(unit, 0):g}; set it lower, or scale.num_cpus higher, or name a cluster as "
                    "scale.address"
                )

    def call(self, function: Callable[..., T], *arguments: Any) -> T:
        """Run a function as a task, with the resources of a training worker; what it raises is raised here."""
        self.join()
        import ray

        training = self.config.training
        remote = ray.remote(num_cpus=training.cpus_per_worker, num_gpus=training.gpus_per_worker)(function)
        try:
            result: T = ray.get(remote.remote(*arguments))
        except ray.exceptions.RayTaskError as error:
            raise error.as_instanceof_cause() from None
        return result

    @contextmanager
    def progress(self, stage: str, unit: str, total: int) -> Iterator[Report]:
        """Show progress while the body runs; workers add to it through what this gives."""
        self.join()
        import ray

        tally = ray.remote(num_cpus=0)(Tally).remote()
        with show_progress(stage, unit, total, lambda: ray.get(tally.totals.remote())):
            yield Report(tally)
