import dataclasses
import functools
import hashlib
import http.server
import threading
import zipfile

import pytest

from pipeline.errors import SourceError
from pipeline.sources.benchmarks import BENCHMARKS, OFFICIAL_FILES
from pipeline.sources.downloads import SourceFile, check_files, fetch, find_missing


@pytest.fixture
def site(tmp_path):
    """A folder, its URL on this machine, and the paths that were asked for."""
    folder, asked = tmp_path / "site", []
    folder.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            asked.append(self.path)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield folder, f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    thread.join()
    server.server_close()


def publish(site, content=b"rows", dev=b"[1]", train=b"[2]"):
    folder, url, _ = site
    (folder / "a.tsv").write_bytes(content)
    with zipfile.ZipFile(folder / "light.zip", "w") as archive:
        archive.writestr("light/dev.json", dev)
        archive.writestr("__MACOSX/light/._dev.json", b"junk")
        archive.writestr("light/train.json", train)
    return (
        SourceFile("set/a.tsv", hashlib.sha256(b"rows").hexdigest(), f"{url}/a.tsv"),
        SourceFile("other/dev.json", hashlib.sha256(b"[1]").hexdigest(), f"{url}/light.zip", "dev.json"),
        SourceFile("other/train.json", hashlib.sha256(b"[2]").hexdigest(), f"{url}/light.zip", "train.json"),
    )


def names(root):
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


def test_fetch_puts_every_file_in_place_once(tmp_path, site):
    root = tmp_path / "data"
    files = publish(site)
    assert fetch(files, root) == [str(root / file.path) for file in files]
    check_files(files, root)
    assert (root / "other" / "dev.json").read_bytes() == b"[1]"
    assert names(root) == ["other/dev.json", "other/train.json", "set/a.tsv"]
    assert len(site[2]) == 2  # the archive once for both of its files
    assert fetch(files, root) == []
    assert len(site[2]) == 2


def test_a_wrong_download_leaves_nothing(tmp_path, site):
    root = tmp_path / "data"
    files = publish(site, dev=b"[other]")
    with pytest.raises(
        SourceError, match=r"light\.zip: wrong checksum for other/dev\.json, expected sha256 \w{64}, got"
    ):
        fetch(files, root)
    assert names(root) == ["set/a.tsv"]


def test_a_file_of_the_user_is_never_replaced(tmp_path, site):
    root = tmp_path / "data"
    files = publish(site)
    (root / "set").mkdir(parents=True)
    (root / "set" / "a.tsv").write_bytes(b"mine")
    with pytest.raises(SourceError, match=r"a\.tsv: wrong checksum.*move it away"):
        fetch(files, root)
    assert names(root) == ["set/a.tsv"]
    assert (root / "set" / "a.tsv").read_bytes() == b"mine"


def test_a_failed_download_names_the_url(tmp_path, site):
    _, url, _ = site
    for address in (f"{url}/absent.tsv", "http://127.0.0.1:1/a.tsv", "no url"):
        with pytest.raises(SourceError, match=r"download failed .*put it in place by hand") as caught:
            fetch([SourceFile("a.tsv", "", address)], tmp_path / "data")
        assert str(caught.value).startswith(address)
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("member", "content", "message"),
    [
        ("absent.json", None, r"expected one absent\.json inside"),
        ("dev.json", b"no archive", "not a whole ZIP archive"),
    ],
)
def test_a_wrong_archive_is_refused(tmp_path, site, member, content, message):
    file = dataclasses.replace(publish(site)[1], member=member)
    if content is not None:
        (site[0] / "light.zip").write_bytes(content)
    with pytest.raises(SourceError, match=message):
        fetch([file], tmp_path / "data")


def test_a_file_without_a_url_is_not_fetched(tmp_path):
    own = SourceFile("own.tsv")
    assert fetch([own], tmp_path) == []
    assert find_missing([own], tmp_path) == [own]


def test_every_official_file_can_be_fetched_and_checked():
    for file in OFFICIAL_FILES:
        assert file.url.startswith("https://")
        assert len(file.sha256) == 64
    assert {file for benchmark in BENCHMARKS.values() for file in benchmark.files} <= set(OFFICIAL_FILES)
