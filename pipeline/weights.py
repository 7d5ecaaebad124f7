"""Where weights come from, and what identifies them: a hub id at a commit, a folder, or a Python package."""

import hashlib
import json
import re
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from pipeline.errors import ConfigError
from pipeline.identity import digest

PACKAGE_SCHEME = "pkg://"
_HUB_TIMEOUT_S = 5.0


def locate_model(model: str) -> str:
    """Return what `from_pretrained` takes: a path, or the hub id as it is.

    Raises:
        ConfigError: The named Python package is not installed.
    """
    if not model.startswith(PACKAGE_SCHEME):
        return model
    package, _, folder = model.removeprefix(PACKAGE_SCHEME).partition("/")
    try:
        return str(Path(str(files(package))) / folder)
    except ModuleNotFoundError:
        raise ConfigError(
            f"the weights {model} are in the Python package {package!r}, which is not installed; "
            "install the extra `offline`, or name a hub id or a folder as `model`"
        ) from None


@dataclass(frozen=True)
class PinnedModel:
    """Weights that can't change under a run."""

    location: str
    """A hub id, an absolute folder, or `pkg://…`, which each machine finds in its own packages."""
    revision: str | None
    """The hub's commit; None where the location is no hub id."""
    identity: str
    """A digest of the files, or the hub's commit."""


def pin_model(model: str, revision: str | None, marker: str = "config.json") -> PinnedModel:
    """Return a model as it is now, so that every worker loads just that.

    Args:
        model: Hub id, folder or `pkg://…`.
        revision: The hub's branch, tag or commit; None: its default.
        marker: A file that such a model has.

    Raises:
        ConfigError: There is no such model, or the hub can't be reached and has nothing in its cache.
    """
    folder = Path(locate_model(model)).expanduser()
    if folder.is_dir():
        if not (folder / marker).is_file():
            raise ConfigError(f"the model folder {folder} holds no {marker}; save a model there first")
        # Folders too: sentence-transformers keeps pooling and further layers in some.
        found = [path for path in sorted(folder.rglob("*")) if path.is_file() and not _is_hidden(path, folder)]
        identity = digest({str(path.relative_to(folder)): _digest_file(path) for path in found})
        # Absolute, because workers run in folders of their own.
        return PinnedModel(model if model.startswith(PACKAGE_SCHEME) else str(folder.absolute()), None, identity)
    if model.startswith((PACKAGE_SCHEME, "/", ".", "~")):
        raise ConfigError(f"the model {model} is no folder on this machine")
    commit = _find_commit(model, revision, marker)
    return PinnedModel(model, commit, commit)


def count_positions(model: PinnedModel) -> int | None:
    """Return how many tokens a model takes at most, by its `config.json`.

    None: it doesn't say, or a hub has it and this machine not yet; whoever loads it will see.
    """
    from huggingface_hub import try_to_load_from_cache

    if model.revision is None:
        path = Path(locate_model(model.location)) / "config.json"
    elif isinstance(cached := try_to_load_from_cache(model.location, "config.json", revision=model.revision), str):
        path = Path(cached)
    else:
        return None
    n_positions: int | None = json.loads(path.read_text()).get("max_position_embeddings")
    return n_positions


def _find_commit(model: str, revision: str | None, marker: str) -> str:
    import httpx
    from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        # Not `hf_hub_download`, which retries a hub that can't be reached for half a minute and more.
        url = hf_hub_url(model, marker, revision=revision)
        return str(get_hf_file_metadata(url, timeout=_HUB_TIMEOUT_S).commit_hash)
    except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError) as error:
        raise ConfigError(
            f"the model hub knows no model {model!r} at revision {revision or 'default'}; correct "
            f"`model` or `revision`, or log in if it is gated ({type(error).__name__})"
        ) from None
    except (OSError, httpx.TransportError) as error:
        cached = try_to_load_from_cache(model, marker, revision=revision)
        if isinstance(cached, str):
            return Path(cached).parent.name
        if revision and re.fullmatch(r"[0-9a-f]{40}", revision):  # a commit already; whoever loads it will see
            return revision
        raise ConfigError(
            f"the model {model!r} is neither a folder here, nor in the hub's cache, nor could the hub be "
            f"reached; correct its name, or name a local folder ({type(error).__name__})"
        ) from None


def _is_hidden(path: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(folder).parts)


def _digest_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
