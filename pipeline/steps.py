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
            name: The step's folder name.
            produce: Writes the output into the folder it is given.
            arm: What the step belongs to in tables and tracking; no part of its identity, so that arms and
                experiments that ask the same thing share the answer.
            config: All settings that can change the output.
            inputs: Names and fingerprints (or content digests) of what it reads.
            code: The modules whose source can change the output.

        Raises:
            TypeError: The config holds something that has no canonical form.
        """
        ingredients = {
            "scheme": SCHEME,
            "step": name,
            "config": config,
            "inputs": inputs,
            "code": source_digest(code),
        }
        fingerprint = digest(ingredients)
        folder = self.root / "steps" / name / fingerprint
        kept = folder.exists(MANIFEST)
        if not kept:
            started_at = time.time()
            outputs = produce(folder)
            folder.write_json(
                MANIFEST,
                {
                    "step": name,
                    "fingerprint": fingerprint,
                    "ingredients": json.loads(canonical_json(ingredients)),
                    "counts": dict(outputs.counts),
                    "metrics": dict(outputs.metrics),
                    "digests": dict(outputs.digests),
                    "series": [list(point) for point in outputs.series],
                    "started_at": started_at,
                    "duration_s": round(time.time() - started_at, 3),
                    "versions": versions(),
                },
            )
        step = Step(name, arm, fingerprint, folder, folder.read_json(MANIFEST), kept)
        self.on_finished(step)
        return step


def versions() -> dict[str, str]:
    """Return the versions of what can change a result."""
    found = {"raystill": __version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
