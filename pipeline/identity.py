"""What a thing is made of, as a short hash.

Steps and requests are named by content: the same ingredients give the same name on every machine, and any
ingredient that can change the result is in the name. A value without one obvious serial form raises, because a
permissive fallback (a `repr` with an address, a rounded float) would give two names to one thing or, worse, one
name to two.
"""

import ast
import hashlib
import importlib
import inspect
import json
import math
from collections.abc import Iterable, Mapping
from enum import Enum
from pathlib import PurePath
from typing import Any

from pydantic import BaseModel

SCHEME = 1
"""Part of every fingerprint; raise it when this module's rules change."""

EXCLUDED: dict[str, str] = {
    "CorpusConfig.max_broken_share": "when to give up; which lines are read stays as it is",
    "CorpusConfig.near_duplicates": "documents are read all the same; the step that drops them holds it",
    "CorpusConfig.paths": "the files' content is hashed, not where they lie",
    "CorpusConfig.root": "the files' content is hashed, not where they lie",
    "CuttingConfig.revision": "the commit that it stands for is held instead",
    "CuttingConfig.tokenizer": "its files are hashed (or pinned by the hub's commit), not where they lie",
    "DataConfig.root": "the file's content is hashed, not where it lies",
    "DataConfig.path": "the file's content is hashed, not where it lies",
    "EncoderConfig.batch_size": "changes speed and memory; padding moves a value by less than 1e-6",
    "EncoderConfig.model": "the weights are hashed (or pinned by the hub's commit), not where they lie",
    "EncoderConfig.revision": "the commit that it stands for is held instead",
    "ExperimentConfig.data": "what is read there is hashed, not where it lies",
    "ExperimentConfig.export": "which students are exported, not what they are",
    "ExperimentConfig.replay": "what it adds is in the ledger, whose content is hashed",
    "ExperimentConfig.root": "where results are kept, not what they are",
    "ExperimentConfig.root_is_shared": "where results are kept, not what they are",
    "ExperimentConfig.scale": "where it runs; the student's step holds the two of it that change what is learned",
    "ExperimentConfig.tracking": "where runs are recorded",
    "GenerateExperimentConfig.plan": "how much is asked; each answer stands by itself",
    "GenerateExperimentConfig.probe_rows": "how many are asked first; the probe's step holds it",
    "ExperimentConfig.watch": "when to give up; topics that it draws make requests of their own",
    "HubConfig.revision": "the commit that it stands for is held instead",
    "OpenAIBatchConfig.batch": "when answers come and what they cost; the same model gives them",
    "OpenAIConfig.adaptive": "how many requests are open at once; each answer stands by itself",
    "OpenAIConfig.api_key_env": "who pays",
    "OpenAIConfig.api_key_file": "who pays",
    "OpenAIConfig.base_url": "where the model answers, not which",
    "OpenAIConfig.further_endpoints": "where the model answers, not which",
    "OpenAIConfig.max_retries": "how often a failed call is repeated; failures are no answers",
    "OpenAIConfig.requests_per_minute": "how fast it is asked",
    "OpenAIConfig.tokens_per_minute": "how fast it is asked",
    "RealNewsConfig.india_list": "the list's content is hashed, not where it lies",
    "RealNewsConfig.regional_list": "the list's content is hashed, not where it lies",
    "SearchExperimentConfig.resume": "whether an unfinished search goes on; a finished one is finished",
    "StudentConfig.eval_batch_size": "changes speed and memory; padding moves a logit by less than 1e-6",
    "StudentConfig.label": "a name for messages",
    "StudentConfig.model": "the weights are hashed (or pinned by the hub's commit), not where they lie",
    "StudentConfig.selected_on": "which items it is reported on; evaluations hold it",
    "StudentConfig.revision": "the commit that it stands for is held instead",
    "StudentSearchConfig.save_as": "a name for the best",
    "TeacherConfig.cpus": "where it runs",
    "TeacherConfig.gpus": "where it runs",
    "TeacherConfig.label": "names the ledger's folder",
    "TeacherConfig.max_in_flight": "how many requests are open at once; each answer stands by itself",
    "TeacherConfig.max_tries": "how often a failed call is repeated; failures are no answers",
    "TeacherConfig.price": "what is known of an answer's cost, not the answer",
    "TeacherConfig.timeout_s": "an answer that came is the same answer, however long one would have waited",
    "VllmConfig.stall_timeout_s": "when an engine counts as dead; its answers stay what they are",
}
"""`Model.field` left out of every identity, with the reason it can't change a result."""


def canonical_json(value: Any) -> str:
    """Return the one JSON text of a value: sorted keys, no spaces, models without their excluded fields.

    Raises:
        TypeError: The value holds something without an obvious serial form.
        ValueError: The value holds NaN or an infinity.
    """
    return json.dumps(_plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def digest(value: Any) -> str:
    """Return 16 hexadecimal digits (64 bits) of the SHA-256 of a value's canonical JSON."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:16]


def derive_seed(*parts: str | int) -> int:
    """Return a 31-bit seed that depends on all parts, so that every row and fit has a stream of its own."""
    return int(hashlib.sha256(canonical_json(list(parts)).encode()).hexdigest()[:8], 16) & 0x7FFF_FFFF


def source_digest(modules: Iterable[str]) -> str:
    """Return a digest of the source of some modules, blind to comments, docstrings and layout."""
    sources = {}
    for name in modules:
        tree = ast.parse(inspect.getsource(importlib.import_module(name)))
        sources[name] = hashlib.sha256(ast.unparse(_DropDocstrings().visit(tree)).encode()).hexdigest()
    return digest(sources)


class _DropDocstrings(ast.NodeTransformer):
    """Drops every text that stands alone as a statement, which does nothing."""

    def visit_Expr(self, node: ast.Expr) -> ast.stmt | None:
        is_text = isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        return None if is_text else node


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, str | bool | int):
        return value.value if isinstance(value, Enum) else value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{value} has no canonical form; a fingerprint needs finite numbers")
        return value
    if isinstance(value, BaseModel):
        return {
            name: _plain(getattr(value, name)) for name in type(value).model_fields if not _is_excluded(value, name)
        }
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            raise TypeError(f"a fingerprint needs text keys, got {list(value)!r}")
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    hint = "; hash the file's content instead of its path" if isinstance(value, PurePath) else ""
    raise TypeError(f"no canonical form for {type(value).__name__}: {value!r}{hint}")


def _is_excluded(model: BaseModel, field: str) -> bool:
    return any(f"{parent.__name__}.{field}" in EXCLUDED for parent in type(model).__mro__)
