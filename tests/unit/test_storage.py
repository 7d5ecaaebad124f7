"""Files that are whole or absent, on a local path and behind a URL."""

import json
import resource
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline.errors import StorageError
from pipeline.storage import Folder, decode_table, node_local

TABLE = pa.table({"text": ["a", "b"], "n": [1, 2]})


@pytest.fixture(params=["path", "url"])
def folder(request, tmp_path):
    """A folder on disk, and one behind a URL (fsspec's in-memory store)."""
    return Folder.at(tmp_path / "root" if request.param == "path" else f"fsspec+memory://bucket{tmp_path}")


def test_what_is_written_is_read_back(folder):
    folder.write_bytes("b.bin", b"\x00\xff")
    folder.write_text("t.txt", "naïve\n")
    folder.write_json("j.json", {"a": [1, None, "é"]})
    folder.write_table("t.parquet", TABLE)
    assert folder.read_bytes("b.bin") == b"\x00\xff"
    assert folder.read_text("t.txt") == "naïve\n"
    assert folder.read_json("j.json") == {"a": [1, None, "é"]}
    assert folder.read_table("t.parquet").equals(TABLE)
    assert folder.names() == ["b.bin", "j.json", "t.parquet", "t.txt"]


def test_writing_again_replaces(folder):
    folder.write_text("a.txt", "a long first version")
    folder.write_text("a.txt", "second")
    assert folder.read_text("a.txt") == "second"


def test_a_file_with_a_compressed_files_name_is_kept_as_it_is(folder):
    folder.write_bytes("a.gz", b"plain")
    assert folder.read_bytes("a.gz") == b"plain"


def test_naming_a_folder_creates_nothing(folder):
    inside = folder / "steps" / "x"
    assert str(inside) == f"{folder}/steps/x"
    assert not inside.exists()
    assert inside.names() == []
    inside.write_text("f.txt", "")
    assert inside.exists()
    assert inside.exists("f.txt")
    assert not inside.exists("g.txt")
    assert (folder / "steps").names() == ["x"]


def test_names_are_chosen_by_their_ending(folder):
    for name in ("b.json", "a.json", "json"):
        folder.write_text(name, "{}")
    assert folder.names(".json") == ["a.json", "b.json"]


def test_deleting_takes_what_is_named_and_only_that(folder):
    folder.write_text("keep/a.txt", "a")
    folder.write_text("gone/b.txt", "b")
    folder.write_text("c.txt", "c")
    folder.delete("missing")
    folder.delete_folder("missing")
    folder.delete("keep")
    folder.delete_folder("c.txt")
    assert folder.names() == ["c.txt", "gone", "keep"]
    folder.delete("c.txt")
    folder.delete_folder("gone")
    assert folder.names() == ["keep"]
    assert folder.read_text("keep/a.txt") == "a"


def test_a_missing_or_broken_file_is_named(folder):
    with pytest.raises(StorageError, match=r"missing\.txt"):
        folder.read_bytes("missing.txt")
    with pytest.raises(StorageError, match=r"missing\.parquet"):
        folder.read_table("missing.parquet")
    folder.write_text("broken.parquet", "no table")
    with pytest.raises(StorageError, match=r"broken\.parquet as Parquet"):
        folder.read_table("broken.parquet")


def test_a_table_that_is_not_as_it_was_written_is_refused(folder):
    table = pa.table({"text": [f"{n * 7919 % 1000:03}" for n in range(500)]})
    folder.write_table("t.parquet", table)
    content = folder.read_bytes("t.parquet")
    assert decode_table(content).equals(table)
    for damaged in (b"", content[:-1], content[:100], bytes(len(content))):
        with pytest.raises(ValueError):
            decode_table(damaged)
    refusals = []
    for place in range(100, 600, 10):
        folder.write_bytes("t.parquet", content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
        try:
            assert folder.read_table("t.parquet").equals(table), "a flipped bit changed a value"
        except StorageError as error:
            refusals.append(str(error))
    assert len(refusals) > 40, "most of these bytes are values"
    assert all(f"cannot read {folder}/t.parquet as Parquet" in refusal for refusal in refusals)


def test_a_file_moves_once_and_as_it_is(folder):
    target = folder / "deep" / "target"
    folder.write_bytes("a.bin", b"\x00\xff")
    assert folder.move("a.bin", target)
    assert not folder.exists("a.bin")
    assert target.read_bytes("a.bin") == b"\x00\xff"
    assert not folder.move("a.bin", target)
    assert target.names() == ["a.bin"]


def test_a_file_that_cannot_be_moved_stays_and_is_told(tmp_path):
    folder = Folder.at(tmp_path)
    folder.write_text("a.txt", "a")
    folder.write_text("file", "no folder")
    with pytest.raises(StorageError, match=r"cannot move .*/a\.txt to .*/file"):
        folder.move("a.txt", folder / "file")
    assert folder.read_text("a.txt") == "a"


def test_nan_is_refused_in_json(folder):
    folder.write_json("m.json", {"f1": 0.5})
    with pytest.raises(ValueError, match="not JSON compliant"):
        folder.write_json("m.json", {"f1": float("nan")})
    assert folder.read_json("m.json") == {"f1": 0.5}


def test_a_folder_is_uploaded_and_given_back_as_a_local_one(folder, tmp_path):
    model = tmp_path / "model"
    (model / "sub").mkdir(parents=True)
    (model / "config.json").write_text("{}")
    (model / "sub" / "weights.bin").write_bytes(b"\x01\x02")
    folder.upload(model, "fits/final-1")
    with (folder / "fits").as_local("final-1") as local:
        assert (local / "config.json").read_text() == "{}"
        assert (local / "sub" / "weights.bin").read_bytes() == b"\x01\x02"
    assert local.exists() == folder.is_local, "a copy is deleted afterwards, the original is not"
    assert folder.exists("fits/final-1/config.json")


def test_a_writable_folder_passes_the_check_and_stays_empty(folder):
    folder.check_writable()
    assert folder.names() == []


def test_a_folder_that_cannot_be_is_refused_with_advice(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (Folder.at(tmp_path / "file"), Folder.at(tmp_path / "file" / "runs")):
        with pytest.raises(StorageError, match="give a root you may write to"):
            folder.check_writable()
        with pytest.raises(StorageError, match="give a root you may write to"):
            folder.write_table("t.parquet", TABLE)


@contextmanager
def a_full_disk():
    """Let files of this process end at 10 kB."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)


def test_a_write_that_fails_midway_leaves_the_old_file_and_nothing_else(tmp_path):
    folder = Folder.at(tmp_path)
    folder.write_text("a.txt", "old")
    folder.write_table("t.parquet", TABLE)
    with a_full_disk(), pytest.raises(StorageError, match=r"cannot write .*a\.txt"):
        folder.write_bytes("a.txt", bytes(50_000))
    with pytest.raises(TypeError):
        folder.write_bytes("a.txt", object())
    with a_full_disk(), pytest.raises(StorageError, match=r"cannot write .*t\.parquet"):
        folder.write_table("t.parquet", pa.table({"n": [str(hash(i)) * 9 for i in range(50_000)]}))
    assert folder.names() == ["a.txt", "t.parquet"]
    assert folder.read_text("a.txt") == "old"
    assert folder.read_table("t.parquet").equals(TABLE)


def test_a_reader_never_sees_half_a_file(tmp_path):
    folder = Folder.at(tmp_path)
    versions = [json.dumps([version] * 20_000) for version in range(2)]
    folder.write_text("a.json", versions[0])
    finished = threading.Event()

    def write():
        for turn in range(200):
            folder.write_text("a.json", versions[turn % 2])
        finished.set()

    writer = threading.Thread(target=write)
    writer.start()
    seen = set()
    while not finished.is_set():
        seen.add(folder.read_text("a.json"))
    writer.join()
    assert seen <= set(versions)


def test_a_listing_shows_a_file_or_the_one_that_replaced_it(tmp_path):
    folder = Folder.at(tmp_path)
    for name in ("0", *(f"x{n}" for n in range(50))):
        (tmp_path / name).touch()
    stop = threading.Event()

    def replace():
        number = 0
        while not stop.is_set():
            (tmp_path / f"{number + 1}").touch()
            (tmp_path / f"{number}").unlink()
            number += 1

    replacer = threading.Thread(target=replace)
    replacer.start()
    give_up_at = time.monotonic() + 0.5
    shortest = 51
    while time.monotonic() < give_up_at:
        shortest = min(shortest, len(folder.names()))
    stop.set()
    replacer.join()
    assert shortest == 51


def test_a_location_is_a_path_or_a_url(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert Folder.at("runs/").url == str(tmp_path / "runs")
    assert Folder.at(Path("/a/b")) == Folder.at("/a/b/") == Folder.at("file:///a/b")
    assert Folder.at("~/runs").url == str(Path.home() / "runs")
    assert Folder.at("s3://bucket/runs/").url == "s3://bucket/runs"
    assert Folder.at("file:///a/b").is_local
    assert not Folder.at("s3://bucket").is_local


def test_a_url_has_no_local_path():
    assert Folder.at("/a/b").path == Path("/a/b")
    with pytest.raises(StorageError, match="s3://bucket/runs is no local path"):
        _ = Folder.at("s3://bucket/runs").path


def test_a_folder_behind_a_url_has_one_place_of_its_own_on_this_machine(tmp_path):
    assert node_local(Folder.at(tmp_path)) == tmp_path
    first, again, other = (node_local(Folder.at(f"s3://bucket/{name}")) for name in ("a", "a", "b"))
    assert first == again != other
    assert first.is_absolute()


def test_a_folder_that_is_filled_is_there_whole_or_not_at_all(tmp_path):
    folder = Folder.at(tmp_path / "step")

    def fail_midway():
        with folder.filling("parts") as path:
            (path / "half").write_text("x")
            raise RuntimeError("midway")

    with pytest.raises(RuntimeError, match="midway"):
        fail_midway()
    assert folder.names() == []
    with folder.filling("parts") as path:
        (path / "whole").write_text("x")
        assert not folder.exists("parts")
    # Another writer of the same leaves alone what readers may have mapped.
    before = (tmp_path / "step" / "parts" / "whole").stat().st_ino
    with folder.filling("parts") as path:
        (path / "whole").write_text("x")
    assert (tmp_path / "step" / "parts" / "whole").stat().st_ino == before
    assert folder.names() == ["parts"]


def test_a_mappable_table_comes_back_as_it_was(tmp_path):
    table = pa.table({"id": ["a", "b"], "n": [1, 2]})
    Folder.at(tmp_path).write_mappable("t.arrow", table)
    with pa.memory_map(str(tmp_path / "t.arrow")) as source:
        assert pa.ipc.open_file(source).read_all().equals(table)
