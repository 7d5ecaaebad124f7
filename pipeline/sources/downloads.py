"""Files that others publish: where they belong, whether they are the right ones, how to get them.

Nothing is downloaded unless asked for: a run that finds a file missing says so and names the command.
"""

import hashlib
import http.client
import io
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass

from pipeline.errors import SourceError
from pipeline.sources.tables import Location, exists, file_digest, locate
from pipeline.storage import Folder


@dataclass(frozen=True)
class SourceFile:
    """A file that a benchmark or data set consists of. Empty fields: unknown, as for a site's own file."""

    path: str
    """Below `data.root`."""
    sha256: str = ""
    url: str = ""
    member: str = ""
    """Its name inside the ZIP archive at `url`; empty: the URL is the file itself."""


def find_missing(files: Iterable[SourceFile], root: Location) -> list[SourceFile]:
    """Return the files that are not under the root."""
    return [file for file in files if not exists(locate(root, file.path))]


def check_present(files: Iterable[SourceFile], root: Location) -> None:
    """Check that all files are there.

    Raises:
        SourceError: Says which files to put where, and how to get them.
    """
    missing = find_missing(files, root)
    if not missing:
        return
    lines = ["a file is missing; put it here:" if len(missing) == 1 else "files are missing; put them here:"]
    lines += [f"  {locate(root, file.path)}{_describe_origin(file)}" for file in missing]
    if any(file.url for file in missing):
        lines.append(f"or let this fetch what is missing: {_fetch_command(root)}")
    raise SourceError("\n".join(lines))


def find_wrong(files: Iterable[SourceFile], root: Location) -> list[str]:
    """Return one sentence for each file whose content is not the one expected."""
    sentences = []
    for file in files:
        location = locate(root, file.path)
        found = file_digest(location)
        if file.sha256 and found != file.sha256:
            how = f"; move it away and run: {_fetch_command(root)}" if file.url else ""
            sentences.append(f"{location}: wrong checksum, expected sha256 {file.sha256}, found {found}{how}")
    return sentences


def check_files(files: Iterable[SourceFile], root: Location) -> None:
    """Check that all files are there and are the right ones.

    Raises:
        SourceError: As `check_present`, or names the paths with their expected and found checksums.
    """
    files = list(files)
    check_present(files, root)
    wrong = find_wrong(files, root)
    if wrong:
        raise SourceError("\n".join(wrong))


def fetch(files: Iterable[SourceFile], root: Location, timeout_s: float = 60.0) -> list[str]:
    """Download what is missing and return the new files' paths; what is there already is only checked.

    A file appears whole and right or not at all.

    Raises:
        SourceError: A download failed or is not the file expected, or a file that is there is not.
        StorageError: The root can't be written.
    """
    wanted = [file for file in files if file.url]
    missing = find_missing(wanted, root)
    check_files([file for file in wanted if file not in missing], root)
    bodies: dict[str, bytes] = {}
    for file in missing:
        if file.url not in bodies:
            bodies[file.url] = _download(file.url, timeout_s)
        content = _extract(bodies[file.url], file)
        found = hashlib.sha256(content).hexdigest()
        if file.sha256 and found != file.sha256:
            raise SourceError(f"{file.url}: wrong checksum for {file.path}, expected sha256 {file.sha256}, got {found}")
        Folder.at(root).write_bytes(file.path, content)
    return [locate(root, file.path) for file in missing]


def _download(url: str, timeout_s: float) -> bytes:
    try:
        with urllib.request.urlopen(url, timeout=timeout_s) as response:
            content: bytes = response.read()
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise SourceError(f"{url}: download failed ({error}); get it elsewhere and put it in place by hand") from error
    return content


def _extract(content: bytes, file: SourceFile) -> bytes:
    if not file.member:
        return content
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            names = [name for name in archive.namelist() if f"/{name}".endswith(f"/{file.member}")]
            if len(names) != 1:
                raise SourceError(f"{file.url}: expected one {file.member} inside, found {archive.namelist()}")
            return archive.read(names[0])
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise SourceError(f"{file.url}: not a whole ZIP archive: {error}") from error


def _describe_origin(file: SourceFile) -> str:
    inside = f"{file.member} in " if file.member else ""
    return f"  (from {inside}{file.url})" if file.url else ""


def _fetch_command(root: Location) -> str:
    return f"python ray_jobs/fetch.py {root}"
