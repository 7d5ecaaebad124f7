"""Steps: a function and what it is made of, with its output under a folder named by just that.

`<root>/steps/<step>/<fingerprint>/` holds the output, and `manifest.json`, written last, says that it is whole. The
same step again is therefore kept, not run. A step that died leaves a folder without a manifest; the next run
writes into it again, and long steps (training) find their own finished parts there.
"""

import json
import platform
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from pipeline import __version__
from pipeline.identity import SCHEME, canonical_json, digest, source_digest
from pipeline.storage import Folder

MANIFEST = "manifest.json"
_PACKAGES = ("ray", "torch", "transformers", "scikit-learn", "pyarrow", "mlflow", "vllm")


@dataclass(frozen=True)
class Outputs:
    """What a step says of its result besides the files it wrote."""

    counts: Mapping[str, int] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    digests: Mapping[str, str] = field(default_factory=dict)
    """What later steps may name as their input in place of this step: its content, however it came about."""
    series: tuple[tuple[str, int, float, float], ...] = ()
    """(metric, step, value, Unix time) of what was measured along the way, such as a loss per epoch."""


@dataclass(frozen=True)
class Step:
    """A finished step."""

    name: str
    arm: str
    """What it belongs to in the experiment at hand: an arm, or `arm/student`; empty for the comparison."""
    fingerprint: str
    folder: Folder
    manifest: Mapping[str, Any]
    kept: bool
    """Whether it was found finished, rather than run now."""


@dataclass(frozen=True)
class Plan:
    """A step to be: what makes it, and what it is made of. Picklable where `produce` is, for workers to run."""

    name: str
    """The step's folder name."""
    produce: Callable[[Folder], Outputs]
    """Writes the output into the folder it is given."""
    config: Any
    """All settings that can change the output."""
    inputs: Mapping[str, str]
    """Names and fingerprints (or content digests) of what it reads."""
    code: tuple[str, ...]
    """The modules whose source can change the output."""

    def describe(self) -> dict[str, Any]:
        """Return what the step is made of.

        Raises:
            TypeError: The config holds something that has no canonical form.
        """
        return {
            "scheme": SCHEME,
            "step": self.name,
            "config": self.config,
            "inputs": self.inputs,
            "code": source_digest(self.code),
        }


@dataclass(frozen=True)
class Steps:
    """Runs steps under a root, and tells a listener of each one as it is finished or found."""

    root: Folder
    on_finished: Callable[[Step], None] = lambda step: None

    def run(
        self,
        name: str,
        produce: Callable[[Folder], Outputs],
        *,
        arm: str,
        config: Any,
        inputs: Mapping[str, str],
        code: Iterable[str],
    ) -> Step:
        """Return the step of this name and identity, running `produce` only if it isn't there already.

        Args:
            name: As in `Plan`.
            produce: As in `Plan`.
            arm: What the step belongs to in tables and tracking; no part of its identity, so that arms and
                experiments that ask the same thing share the answer.
            config: As in `Plan`.
            inputs: As in `Plan`.
            code: As in `Plan`.

        Raises:
            TypeError: The config holds something that has no canonical form.
        """
        step = self.fulfil(Plan(name, produce, config, inputs, tuple(code)), arm)
        self.on_finished(step)
        return step

    def find(self, plan: Plan, arm: str = "") -> Step | None:
        """Return a plan's step if it is finished."""
        fingerprint = digest(plan.describe())
        folder = self.root / "steps" / plan.name / fingerprint
        if not folder.exists(MANIFEST):
            return None
        return Step(plan.name, arm, fingerprint, folder, folder.read_json(MANIFEST), kept=True)

    def fulfil(self, plan: Plan, arm: str = "") -> Step:
        """Return a plan's step, run now or found finished; the listener isn't told."""
        if found := self.find(plan, arm):
            return found
        ingredients = plan.describe()
        fingerprint = digest(ingredients)
        folder = self.root / "steps" / plan.name / fingerprint
        started_at = time.time()
        outputs = plan.produce(folder)
        manifest = {
            "step": plan.name,
            "fingerprint": fingerprint,
            "ingredients": json.loads(canonical_json(ingredients)),
            "counts": dict(outputs.counts),
            "metrics": dict(outputs.metrics),
            "digests": dict(outputs.digests),
            "series": [list(point) for point in outputs.series],
            "started_at": started_at,
            "duration_s": round(time.time() - started_at, 3),
            "versions": versions(),
        }
        folder.write_json(MANIFEST, manifest)
        return Step(plan.name, arm, fingerprint, folder, manifest, kept=False)


def versions() -> dict[str, str]:
    """Return the versions of what can change a result."""
    found = {"raystill": __version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
