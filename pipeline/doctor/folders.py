"""The root, the data, and the file that MLflow's runs are kept in."""

import shutil
import sqlite3
import tempfile
import time
import uuid
from contextlib import closing, suppress
from pathlib import Path

from pipeline.doctor.finding import Finding, fault, ok, warn
from pipeline.doctor.machine import GIB, check_clock
from pipeline.errors import ConfigError, RaystillError
from pipeline.stages.inputs import check_place
from pipeline.storage import Folder

TIGHT_BYTES = 10 * GIB
"""Free space below which a run may well stop: an experiment's encoders and checkpoints take some GiB."""
_CONTENT = b"raystill doctor"


def check_root(location: str) -> list[Finding]:
    """Return what is wrong with the root: a small file is written, read, renamed and deleted there.

    Args:
        location: A path or URL.
    """
    try:
        check_place("root", location)
    except ConfigError as error:
        return [fault("root", str(error), "a place that may be named and outlives the job", "see there")]
    root = Folder.at(location)
    name = f".doctor-{uuid.uuid4().hex}"
    doing = "look into"
    made = [one for one in (root.path, *root.path.parents) if not one.exists()] if root.is_local else []
    try:
        doing = "write into"
        root.write_bytes(name, _CONTENT)
        wrote_at = time.time()
        doing = "read back from"
        content, modified_at = root.read_bytes(name), root.modified_at(name)
        if content != _CONTENT:
            raise OSError(f"{len(_CONTENT)} bytes were written, {len(content)} others were read")
        doing = "rename inside"
        if not root.move(name, root / name.replace(".doctor", ".doctor-moved")):
            raise OSError("the file that was written is gone")
        doing = "delete from"
        root.delete_folder(name.replace(".doctor", ".doctor-moved"))
    except (OSError, RaystillError) as error:
        return [
            fault(
                "root",
                f"can't {doing} {root}: {error}",
                "a folder or URL to write, read, rename and delete in",
                "set root=… to such a place, or give this user (or the node's role) those rights",
            )
        ]
    finally:
        with suppress(OSError, RaystillError):
            root.delete(name)
        # Only what is empty: a run may have begun to write there meanwhile.
        with suppress(OSError):
            for folder in made:
                folder.rmdir()
    findings = [ok("root", f"{root}: written, read, renamed, deleted"), check_clock("storage", modified_at - wrote_at)]
    if root.is_local:
        findings.append(check_space(shutil.disk_usage(_find_existing(root.path)).free, str(root)))
    return findings


def check_space(free: int, place: str) -> Finding:
    """Return whether there is room.

    Args:
        free: Bytes.
        place: Where.
    """
    if free >= TIGHT_BYTES:
        return ok("free space", f"{free / GIB:.1f} GiB at {place}")
    return warn(
        "free space",
        f"{free / GIB:.1f} GiB at {place}",
        f"{TIGHT_BYTES / GIB:.0f} GiB for steps, ledger and checkpoints",
        "make room, or set root=… to a larger disk",
    )


def check_data(location: str | None) -> Finding:
    """Return whether the folder of benchmarks and data files is there."""
    if location is None:
        return ok("data.root", "not set; nothing is looked for in it")
    try:
        check_place("data.root", location)
        if Folder.at(location).names():
            return ok("data.root", location)
        found = f"{location} is missing or empty"
    except NotADirectoryError:
        found = f"{location} is a file"
    except (OSError, RaystillError) as error:
        found = f"{error}"
    return fault(
        "data.root",
        found,
        "the folder or URL that holds benchmarks and data files",
        "set data.root=… to it, or fill it: python ray_jobs/fetch.py FOLDER",
    )


def check_sqlite(path: Path) -> Finding:
    """Return whether runs can be recorded in a SQLite file: its lock for writing is taken, and nothing written.

    Args:
        path: The file; it may be missing.
    """
    fix = "set tracking.uri to a tracking server or another file, or give this user the right to write"
    try:
        if path.exists():
            with closing(sqlite3.connect(path, timeout=2.0)) as database:
                database.execute("BEGIN IMMEDIATE")
                database.rollback()
        else:
            with tempfile.TemporaryFile(dir=_find_existing(path.parent)):
                pass
    except sqlite3.OperationalError as error:
        if "locked" in str(error):
            return warn("tracking.uri", f"{path}: {error}", "no other writer", "wait for the other run to end")
        return fault("tracking.uri", f"{path}: {error}", "a SQLite file that can be written", fix)
    except (OSError, sqlite3.DatabaseError) as error:
        return fault("tracking.uri", f"{path}: {error}", "a SQLite file that can be written", fix)
    return ok("tracking.uri", f"{path} can be written")


def _find_existing(path: Path) -> Path:
    """Return the path, or else the nearest of its parents that is there."""
    return next(one for one in (path, *path.parents) if one.exists())
