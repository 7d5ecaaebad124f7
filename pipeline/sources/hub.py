"""Data sets of the Hugging Face hub, streamed: a data set never has to fit on this machine.

A location is `hub://<data set>@<commit>/<split>/<shard>-of-<shards>`. It names the commit, so that the same location
always gives the same rows. A folder in the hub's layout (a clone) does in place of a hub's name; the digest of its
files stands for the commit.
"""

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.errors import SourceError
from pipeline.identity import digest
from pipeline.sources.corpus_formats import CorpusColumns, make_document
from pipeline.sources.streams import Broken, RawDocument, Record, cut_short

_LOCATION = re.compile(r"hub://(?P<name>.+)@(?P<commit>[0-9a-f]+)/(?P<split>.+)/(?P<index>\d+)-of-(?P<shards>\d+)")
_HUB_TIMEOUT_S = 10.0


def list_shards(name: str, config_name: str | None, split: str, revision: str | None) -> list[str]:
    """Return one location for each file that a split consists of.

    Raises:
        SourceError: There is no such data set, configuration, split or revision, or the hub can't be reached.
    """
    commit = _find_commit(name, revision)
    n_shards = _open(name, config_name, split, commit).num_shards
    return [f"hub://{name}@{commit}/{split}/{index:05d}-of-{n_shards:05d}" for index in range(n_shards)]


def read_hub(location: str, config_name: str | None, columns: CorpusColumns) -> Iterator[RawDocument | Broken]:
    """Yield a document for each row of one location of `list_shards`.

    Raises:
        SourceError: The data set can't be opened, or not read to its end.
    """
    return (make_document(record, columns) for record in stream_hub(location, config_name))


def stream_hub(location: str, config_name: str | None) -> Iterator[Record]:
    """Yield every row of one location of `list_shards`.

    Raises:
        SourceError: The data set can't be opened, or not read to its end.
    """
    import httpx
    from datasets.exceptions import DatasetsError

    found = _LOCATION.fullmatch(location)
    if found is None:
        raise SourceError(f"{location}: no location of a data set on the hub")
    dataset = _open(found["name"], config_name, found["split"], found["commit"])
    rows = dataset.shard(num_shards=int(found["shards"]), index=int(found["index"]))
    number = 0
    try:
        for number, values in enumerate(rows, start=1):
            yield Record(number, values)
    except (OSError, ValueError, DatasetsError, httpx.TransportError) as error:
        raise cut_short(location, f"row {number}", error) from error


def _open(name: str, config_name: str | None, split: str, commit: str) -> Any:
    import httpx
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    revision = None if Path(name).is_dir() else commit
    try:
        return load_dataset(name, config_name, split=split, revision=revision, streaming=True)
    except (OSError, ValueError, DatasetsError, httpx.TransportError) as error:
        raise SourceError(f"the data set {name!r}, configuration {config_name}, split {split!r}: {error}") from error


def _find_commit(name: str, revision: str | None) -> str:
    import httpx
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

    if Path(name).is_dir():
        if revision is not None:
            raise SourceError(f"the data set {name} is a folder, which has no revision; set `revision` to null")
        files = sorted(path for path in Path(name).rglob("*") if path.is_file())
        return digest({str(path.relative_to(name)): _digest_file(path) for path in files})
    if revision and re.fullmatch(r"[0-9a-f]{40}", revision):
        return revision
    try:
        return str(HfApi().dataset_info(name, revision=revision, timeout=_HUB_TIMEOUT_S).sha)
    except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError) as error:
        raise SourceError(
            f"the hub knows no data set {name!r} at revision {revision or 'default'}; correct `name` or `revision`, "
            f"or log in if it is gated ({type(error).__name__})"
        ) from None
    except (OSError, httpx.TransportError) as error:
        raise SourceError(
            f"the hub could not be asked for the data set {name!r} ({type(error).__name__}); try again, or name a "
            "commit as `revision`, or a folder as `name`"
        ) from None


def _digest_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
