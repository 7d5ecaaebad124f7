"""MLflow as a projection of finished steps: one run per experiment, one child run per arm and step.

The driver alone publishes, and only what a manifest says. Nothing is logged while a step works, so that recording a
step now, catching up after an outage and surviving a restart are the same function, and a tracking server that is
down costs a warning instead of a run.
"""

import json
import logging
import os
import re
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.config import Config
from pipeline.errors import ConfigError
from pipeline.steps import MANIFEST, Step
from pipeline.storage import Folder

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

LOG = logging.getLogger(__name__)

ARTIFACTS = (MANIFEST, "card.json", "comparison.json", "cost.json", "export.json", "report.html", "README.md")
"""Files of a step worth a look in MLflow, besides its plots. Rows and weights stay where they are."""
PLOTS = (".png", ".svg")
MAX_ARTIFACT_BYTES = 5_000_000

MAX_PARAM_CHARS = 500
"""What every MLflow server takes, old ones included; the whole value is in the manifest, an artifact."""
MAX_PARAMS, MAX_METRICS, MAX_RUNS = 100, 1_000, 50_000
"""MLflow's ceilings: parameters and metrics of one call, runs of one page of search results."""

_ENVIRONMENT = {
    # MLflow's own 7 retries and 120 s let a run wait minutes for a server that is down; these give up after 30 s.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    # A run on a closed network calls nobody.
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
"""Set before MLflow is imported, unless the user has set them."""

_UNDER_MLFLOW = {"mlflow", "sqlalchemy", "alembic", "boto3", "botocore", "azure", "google"}
_PLACE_TAGS = ("raystill.step", "raystill.arm", "raystill.student")
_FINGERPRINT = "raystill.fingerprint"
_CREDENTIALS = re.compile(r"""(?<=://)(?:[^\s"'/:]*:[^\s"']*|[^\s"'/]+)@|(?<=password=)[^\s"'&]+""", re.IGNORECASE)


class TrackingConfig(Config):
    """Where runs are recorded."""

    enabled: bool
    uri: str | None
    """A tracking server's URL or a database URI; null is a SQLite file under the root."""
    experiment: str | None
    """MLflow's name for the group of runs; null is the task's name."""


def tracking_uri(config: TrackingConfig, root: Folder) -> str:
    """Return the MLflow URI that a run under this root records to.

    Raises:
        ConfigError: The root is a URL, where no SQLite file can be, and no server is named; or the URI is none.
    """
    if config.uri is None:
        if root.is_local:
            return f"sqlite:///{root.path / 'mlflow.db'}"
        raise ConfigError(
            f"tracking.uri is null, which means a SQLite file under the root, but the root is {root}; "
            "set tracking.uri to a tracking server (http://…), or tracking.enabled=false"
        )
    if "://" not in config.uri:
        raise ConfigError(
            f"tracking.uri is {config.uri!r}, which has no scheme; give http://host:port of a tracking server, "
            "or sqlite:////absolute/path/mlflow.db"
        )
    return config.uri


def redact(text: str) -> str:
    """Return a text without the credentials in its URLs."""
    return _CREDENTIALS.sub(lambda match: "***@" if match[0].endswith("@") else "***", text)


@dataclass
class Tracker:
    """Publishes finished steps; one that is switched off, or has lost its server, does nothing."""

    uri: str = ""
    _tree: "_Tree | None" = None

    @classmethod
    def open(
        cls,
        config: TrackingConfig,
        root: Folder,
        *,
        experiment_name: str,
        run_name: str,
        run_fingerprint: str,
        params: Mapping[str, Any],
    ) -> "Tracker":
        """Return a tracker on the one parent run of this fingerprint, created if it isn't there.

        Args:
            config: Where runs are recorded.
            root: Holds the steps, and the SQLite file where no server is named.
            experiment_name: MLflow's experiment where the configuration names none: the task.
            run_name: The parent's name: the experiment's.
            run_fingerprint: What the parent run is found by when the same command runs again.
            params: The parent's parameters, nested or flat.

        Raises:
            ConfigError: See `tracking_uri`. A server that is down raises nothing.
        """
        if not config.enabled:
            return cls()
        tracker = cls(tracking_uri(config, root))
        with tracker._tolerating_outage():
            tracker._tree = _Tree.open(
                tracker.uri, root, config.experiment or experiment_name, run_name, run_fingerprint, params
            )
        return tracker

    def publish(self, step: Step) -> None:
        """Make sure that a step has its finished child run; one that a dead process left half-way is completed."""
        if self._tree is None or self._tree.is_finished(step):
            return
        with _collect_artifacts(step.folder) as artifacts, self._tolerating_outage():
            self._tree.publish(step, artifacts)

    def finish(self, metrics: Mapping[str, float], status: str = "FINISHED") -> None:
        """End the parent run with its headline metrics and a status: FINISHED, FAILED or KILLED."""
        if self._tree is not None:
            with self._tolerating_outage():
                self._tree.finish(metrics, status)

    def describe_page(self) -> str:
        """Return where to see the runs: an address, after a command where no server runs; empty without runs."""
        if self._tree is None:
            return ""
        # The experiment's own address opens MLflow's page of traces, of which there are none.
        path = f"/#/experiments/{self._tree.parent.info.experiment_id}/runs"
        if self.uri.startswith("http"):
            return redact(self.uri.rstrip("/") + path)
        return redact(f"mlflow ui --backend-store-uri {self.uri}, then http://127.0.0.1:5000{path}")

    @contextmanager
    def _tolerating_outage(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if not _is_outage(error):
                raise
            self._tree = None
            reason = redact(str(error)).strip().split("\n")[0][:300] or type(error).__name__
            LOG.warning(
                "MLflow at %s failed, so this run goes on without it (%s); the same command publishes what is "
                "missing when it runs again",
                redact(self.uri),
                reason,
            )


@dataclass
class _Tree:
    """A parent run and its children, read once; every method may raise what `_is_outage` tells."""

    client: "MlflowClient"
    root: Folder
    parent: "Run"
    children: dict[tuple[str, ...], "Run"]
    """By step, arm and student: one run each."""

    @classmethod
    def open(
        cls, uri: str, root: Folder, experiment: str, run_name: str, fingerprint: str, params: Mapping[str, Any]
    ) -> "_Tree":
        client = _connect(uri)
        found = client.get_experiment_by_name(experiment)
        # A server puts artifacts in its own store; without one they lie beside the steps, not in the working directory.
        location = None if uri.startswith("http") else f"{root}/mlartifacts"
        experiment_id = found.experiment_id if found else client.create_experiment(experiment, location)
        runs = client.search_runs([experiment_id], f"tags.`raystill.run` = '{fingerprint}'", max_results=1)
        parent = runs[0] if runs else client.create_run(experiment_id, None, {"raystill.run": fingerprint}, run_name)
        if parent.info.status in ("FAILED", "KILLED"):
            client.update_run(parent.info.run_id, "RUNNING")
            parent = client.get_run(parent.info.run_id)
        tree = cls(client, root, parent, {})
        query = f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'"
        for run in client.search_runs([experiment_id], query, max_results=MAX_RUNS) if runs else []:
            tree.children[tuple(run.data.tags.get(tag, "") for tag in _PLACE_TAGS)] = run
        tree._log(parent, flatten_params(params), [])
        return tree

    def is_finished(self, step: Step) -> bool:
        run = self.children.get(_place(step))
        return run is not None and run.info.status == "FINISHED" and run.data.tags[_FINGERPRINT] == step.fingerprint

    def publish(self, step: Step, artifacts: Path) -> None:
        manifest = step.manifest
        ended_at = manifest["started_at"] + manifest["duration_s"]
        run = self.children.get(_place(step))
        if run is not None and run.data.tags[_FINGERPRINT] != step.fingerprint:
            self.client.delete_run(run.info.run_id)  # the same step from other code or rows: its successor stands here
            run = None
        if run is None:
            run = self._create_child(step)
        counts = {f"count/{name}": value for name, value in manifest["counts"].items()}
        points = [(name, 0, value, ended_at) for name, value in {**manifest["metrics"], **counts}.items()]
        # MLflow's compare page shows parameters, not tags.
        _, arm, student = _place(step)
        names = {"arm": arm, "student": student}
        self._log(run, {**flatten_params(manifest["ingredients"]["config"]), **names}, points + manifest["series"])
        self._log_dataset(run, step)
        self.client.log_artifacts(run.info.run_id, str(artifacts))
        # Last, as the manifest is in a step: a run that is FINISHED is whole.
        self.client.set_terminated(run.info.run_id, "FINISHED", _to_ms(ended_at))
        self.children[_place(step)] = self.client.get_run(run.info.run_id)

    def finish(self, metrics: Mapping[str, float], status: str) -> None:
        info, data = self.parent.info, self.parent.data
        if (status, {name_metric(name): value for name, value in metrics.items()}) == (info.status, data.metrics):
            return
        now = time.time()
        self._log(self.parent, {}, [(name, 0, value, now) for name, value in metrics.items()])
        self.client.set_terminated(info.run_id, status, _to_ms(now))

    def _create_child(self, step: Step) -> "Run":
        name, arm, student = _place(step)
        tags = {tag: value for tag, value in zip(_PLACE_TAGS, _place(step), strict=True) if value}
        return self.client.create_run(
            self.parent.info.experiment_id,
            _to_ms(step.manifest["started_at"]),
            {**tags, _FINGERPRINT: step.fingerprint, "mlflow.parentRunId": self.parent.info.run_id},
            f"{name} {student}@{arm}" if student else f"{name} {arm}".strip(),
        )

    def _log(self, run: "Run", params: Mapping[str, str], points: Sequence[Sequence[Any]]) -> None:
        """Log those parameters that a run lacks, and (metric, step, value, Unix time) points; twice is as once."""
        from mlflow.entities import Metric, Param

        run_id, known = run.info.run_id, run.data.params
        new_params = [Param(name, value) for name, value in params.items() if name not in known]
        metrics = [Metric(name_metric(name), float(value), _to_ms(at), step) for name, step, value, at in points]
        for start in range(0, len(new_params), MAX_PARAMS):
            self.client.log_batch(run_id, params=new_params[start : start + MAX_PARAMS])
        for start in range(0, len(metrics), MAX_METRICS):
            self.client.log_batch(run_id, metrics=metrics[start : start + MAX_METRICS])

    def _log_dataset(self, run: "Run", step: Step) -> None:
        """Record the rows that a step wrote or read, under the digest of their content."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        manifest = step.manifest
        written, read = manifest["digests"].get("rows"), manifest["ingredients"]["inputs"].get("rows")
        if not (written or read):
            return
        folder = self.root / "steps" / "dataset"
        dataset = Dataset(
            name=_place(step)[1],
            digest=written or read,
            source_type="local" if folder.is_local else folder.url.split("://")[0],
            source=json.dumps({"uri": folder.url}),
        )
        context = InputTag("mlflow.data.context", "written" if written else "read")
        self.client.log_inputs(run.info.run_id, [DatasetInput(dataset, [context])])


def flatten_params(values: Any, path: str = "") -> dict[str, str]:
    """Return nested settings as MLflow parameters: dotted names, text values without credentials, cut to length."""
    if isinstance(values, Mapping) and (values or not path):
        nested = (flatten_params(value, f"{path}.{key}" if path else str(key)) for key, value in values.items())
        return {key: value for part in nested for key, value in part.items()}
    text = redact(values if isinstance(values, str) else json.dumps(values, ensure_ascii=False))
    is_long = len(text) > MAX_PARAM_CHARS
    return {name_metric(path or "config"): text[: MAX_PARAM_CHARS - 1] + "…" if is_long else text}


def name_metric(name: str) -> str:
    """Return a name in the characters that MLflow takes: `precision@clear` is `precision_at_clear`."""
    return re.sub(r"[^\w.\- :/]", "_", name.replace("@", "_at_"))


def _place(step: Step) -> tuple[str, str, str]:
    arm, _, student = step.arm.partition("/")
    return (step.name, arm, student)


def _to_ms(unix_time: float) -> int:
    return int(unix_time * 1000)


@contextmanager
def _collect_artifacts(folder: Folder) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as copy:
        for name in folder.names():
            if name in ARTIFACTS or name.endswith(PLOTS):
                content = folder.read_bytes(name)
                if len(content) <= MAX_ARTIFACT_BYTES:
                    (Path(copy) / name).write_bytes(content)
        yield Path(copy)


def _connect(uri: str) -> "MlflowClient":
    for key, value in _ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    # MLflow prints the server's URL, credentials included, whenever a run ends.
    os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"
    from mlflow import MlflowClient

    for noisy in ("alembic", "mlflow.store.db.utils"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)  # a line per retry; ours says it once
    return MlflowClient(uri)


def _is_outage(error: Exception) -> bool:
    """Tell what MLflow or a library under it raised, for want of a store that works, from a mistake of ours.

    The errors of files and of requests are `OSError`; a missing database driver or object-store client is
    `ImportError`.
    """
    return isinstance(error, OSError | ImportError) or type(error).__module__.split(".")[0] in _UNDER_MLFLOW
