"""Each kind of broken set-up is really broken here, and the doctor names what is wrong and what mends it."""

import json
import os
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import StringIO
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from pydantic import TypeAdapter
from rich.console import Console

from pipeline.doctor.finding import Finding, Level, print_findings
from pipeline.doctor.folders import check_data, check_root, check_space, check_sqlite
from pipeline.doctor.installation import check_installation, check_pins, check_python, check_requirements
from pipeline.doctor.machine import (
    GIB,
    check_clock,
    check_gpus,
    check_memory,
    check_open_files,
    check_shared_memory,
)
from pipeline.doctor.ray_cluster import check_port_free, check_port_open, check_ray, check_token, check_version
from pipeline.doctor.services import check_endpoint, check_server, check_tracking
from pipeline.storage import Folder
from pipeline.teachers.kinds import AnyTeacherConfig
from pipeline.tracking import TrackingConfig
from tests.composing import compose_teacher

PROJECT = Path(__file__).parents[2]
SECRET = "sk-planted-9d2c71e0aa"
KEY_VARIABLE = "RAYSTILL_TEST_DOCTOR_KEY"


@contextmanager
def serve(answers, *, clock_s=0.0, wanted_key=None):
    """Serve (status, JSON) by path at a free port; yield the address and a list of what was asked.

    The key that was sent is repeated in each refusal, as some endpoints do.
    """
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self._answer()

        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            self._answer()

        def date_time_string(self, timestamp=None):
            return formatdate(time.time() + clock_s, usegmt=True)

        def _answer(self):
            path = self.path.partition("?")[0]
            asked.append(f"{self.command} {path}")
            given = self.headers.get("Authorization", "")
            status, body = answers.get(path, (404, {"detail": "Not Found"}))
            if wanted_key is not None and given != f"Bearer {wanted_key}":
                status, body = 401, {"error": {"message": f"Incorrect API key provided: {given}"}}
            content = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def listen():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def find_closed_port():
    with listen() as port:
        return port


def make_endpoint(base_url, **changes):
    values = compose_teacher("openai", missing="sample") | {"base_url": base_url, "model": "sample"} | changes
    return TypeAdapter(AnyTeacherConfig).validate_python(values)


def text_of(*findings):
    return " ".join(f"{f.subject} {f.found} {f.needed} {f.fix}" for f in findings)


def worst(findings):
    """Return the one finding that is not ok."""
    (found,) = (finding for finding in findings if finding.level is not Level.OK)
    return found


def is_fault(finding, *words):
    assert finding.level is Level.FAULT, finding
    assert finding.fix
    assert [word for word in words if word not in text_of(finding)] == []
    return True


def is_warning(finding, *words):
    assert finding.level is Level.WARNING, finding
    assert finding.fix
    assert [word for word in words if word not in text_of(finding)] == []
    return True


MODELS = {"object": "list", "data": [{"id": "sample"}, {"id": "other"}]}


def test_a_sound_endpoint_is_ok_and_only_its_models_are_asked_for(monkeypatch):
    monkeypatch.setenv(KEY_VARIABLE, SECRET)
    with serve({"/v1/models": (200, MODELS)}, wanted_key=SECRET) as (address, asked):
        findings = check_endpoint("arms.a.teacher", make_endpoint(f"{address}/v1", api_key_env=KEY_VARIABLE))
    assert [f.level for f in findings] == [Level.OK, Level.OK]
    assert asked == ["GET /v1/models"]


def test_a_key_that_is_refused_is_told_and_not_shown(monkeypatch):
    monkeypatch.setenv(KEY_VARIABLE, SECRET)
    with serve({"/v1/models": (200, MODELS)}, wanted_key="another") as (address, _):
        findings = check_endpoint("arms.a.teacher", make_endpoint(f"{address}/v1", api_key_env=KEY_VARIABLE))
    assert is_fault(worst(findings), "arms.a.teacher.api_key_env", f"refuses the key in {KEY_VARIABLE}", "401")
    assert SECRET not in text_of(*findings)


def test_a_key_that_is_wanted_and_not_sent_is_told():
    with serve({}, wanted_key="another") as (address, _):
        findings = check_endpoint("t", make_endpoint(f"{address}/v1"))
    assert is_fault(worst(findings), "t.api_key_env", "a request without a key", "set t.api_key_env")


def test_a_key_that_is_missing_is_told_and_the_endpoint_is_left_alone(monkeypatch):
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    with serve({"/v1/models": (200, MODELS)}) as (address, asked):
        findings = check_endpoint("t", make_endpoint(f"{address}/v1", api_key_env=KEY_VARIABLE))
    assert is_fault(worst(findings), "t.api_key_env", KEY_VARIABLE)
    assert asked == []


def test_further_endpoints_are_looked_at_each_under_its_own_setting(monkeypatch):
    monkeypatch.setenv(KEY_VARIABLE, SECRET)
    with serve({"/v1/models": (200, MODELS)}) as (address, _), serve({}, wanted_key="another") as (other, _):
        further = [{"base_url": f"{other}/v1", "api_key_env": KEY_VARIABLE}]
        findings = check_endpoint("t", make_endpoint(f"{address}/v1", further_endpoints=further))
    assert is_fault(worst(findings), "t.further_endpoints.0.api_key_env", f"refuses the key in {KEY_VARIABLE}")
    assert SECRET not in text_of(*findings)


def test_a_wrong_base_url_is_told():
    with serve({"/v1/models": (200, MODELS)}) as (address, _):
        findings = check_endpoint("t", make_endpoint(f"{address}/v2"))
    assert is_fault(worst(findings), "t.base_url", "HTTP 404", "/v1", f"correct t.base_url={address}/v2")


def test_an_endpoint_that_is_down_is_told():
    port = find_closed_port()
    findings = check_endpoint("t", make_endpoint(f"http://127.0.0.1:{port}/v1"))
    assert is_fault(worst(findings), "t.base_url", "refused", str(port))


def test_a_model_that_the_endpoint_lacks_is_told():
    with serve({"/v1/models": (200, MODELS)}) as (address, _):
        findings = check_endpoint("t", make_endpoint(f"{address}/v1", model="absent"))
    assert is_fault(worst(findings), "t.model", "doesn't list absent", "sample, other")


@pytest.mark.parametrize("body", [{}, [], {"data": None}, {"data": ["x"]}, "text"])
def test_an_answer_that_lists_nothing_is_told(body):
    with serve({"/v1/models": (200, body)}) as (address, _):
        assert is_warning(worst(check_endpoint("t", make_endpoint(f"{address}/v1"))), "lists no models")


@pytest.mark.parametrize("status", [429, 500, 503])
def test_an_endpoint_in_trouble_is_a_warning(status):
    with serve({"/v1/models": (status, {})}) as (address, _):
        assert is_warning(worst(check_endpoint("t", make_endpoint(f"{address}/v1"))), f"HTTP {status}")


@pytest.mark.parametrize(("clock_s", "words"), [(120, ("ahead", "120.")), (-3600, ("behind", "3600."))])
def test_a_clock_that_is_minutes_off_is_told(clock_s, words):
    with serve({"/v1/models": (200, MODELS)}, clock_s=clock_s) as (address, _):
        finding = worst(check_endpoint("t", make_endpoint(f"{address}/v1")))
    assert is_fault(finding, "clock", address, "set-ntp", words[0])
    assert abs(float(finding.found.split()[0]) - abs(clock_s)) < 2


def test_a_clock_is_judged_by_its_distance():
    levels = [check_clock("x", ahead_s).level for ahead_s in (0, 1.9, -1.9, 2.1, -59, 61, -61)]
    assert levels == [Level.OK] * 3 + [Level.WARNING] * 2 + [Level.FAULT] * 2


API = "/api/2.0/mlflow/experiments"
FOUND = (200, {"experiments": [{"experiment_id": "0", "name": "Default"}]})
EXISTS = (400, {"error_code": "RESOURCE_ALREADY_EXISTS"})
NO_LOGIN: dict[str, str] = {}


def test_a_sound_tracking_server_is_ok_and_nothing_new_is_made():
    with serve({f"{API}/search": FOUND, f"{API}/create": EXISTS}) as (address, asked):
        findings = check_server(address, NO_LOGIN)
    assert {f.level for f in findings} == {Level.OK}
    assert asked == [f"GET {API}/search", f"POST {API}/create"]


def test_a_tracking_server_that_is_down_is_told_without_its_password():
    port = find_closed_port()
    findings = check_server(f"http://me:{SECRET}@127.0.0.1:{port}", NO_LOGIN)
    assert is_fault(worst(findings), "tracking.uri", "refused", "MLFLOW_TRACKING_URI")
    assert SECRET not in text_of(*findings)


def test_a_tracking_server_whose_store_is_read_only_is_told():
    broken = (500, {"error_code": "INTERNAL_ERROR", "message": "attempt to write a readonly database"})
    with serve({f"{API}/search": FOUND, f"{API}/create": broken}) as (address, _):
        assert is_fault(worst(check_server(address, NO_LOGIN)), "not written", "INTERNAL_ERROR", "backend-store-uri")


def test_a_tracking_server_that_wants_another_user_is_told():
    with serve({f"{API}/search": FOUND}, wanted_key="another") as (address, _):
        findings = check_server(address, {"MLFLOW_TRACKING_TOKEN": SECRET})
    assert is_fault(worst(findings), "refuses this user", "MLFLOW_TRACKING_USERNAME")
    assert SECRET not in text_of(*findings)


def test_a_server_that_is_not_mlflows_is_told():
    with serve({"/": (200, {})}) as (address, _):
        assert is_fault(worst(check_server(address, NO_LOGIN)), "HTTP 404", "an MLflow server")


def test_tracking_without_a_place_is_told():
    config = TrackingConfig(enabled=True, uri=None, experiment=None)
    assert is_fault(worst(check_tracking(config, Folder.at("s3://bucket/x"), {})), "tracking.uri", "SQLite file")
    off = TrackingConfig(enabled=False, uri=None, experiment=None)
    assert [f.level for f in check_tracking(off, Folder.at("s3://bucket/x"), {})] == [Level.OK]


def test_the_sqlite_file_under_the_root_is_found(tmp_path):
    (tmp_path / "mlflow.db").write_bytes(b"no database" * 100)
    config = TrackingConfig(enabled=True, uri=None, experiment=None)
    findings = check_tracking(config, Folder.at(tmp_path), {})
    assert is_fault(worst(findings), "tracking.uri", str(tmp_path / "mlflow.db"), "not a database")


def test_a_sqlite_file_is_written_by_nobody_and_left_as_it_was(tmp_path):
    path = tmp_path / "a" / "mlflow.db"
    assert check_sqlite(path).level is Level.OK
    assert not path.parent.exists()
    path.parent.mkdir()
    with sqlite3.connect(path) as writer:
        writer.execute("CREATE TABLE runs (name TEXT)")
    writer.close()
    before = path.read_bytes()
    assert check_sqlite(path).level is Level.OK
    assert path.read_bytes() == before


def test_a_sqlite_file_in_a_place_that_takes_no_files_is_told():
    assert is_fault(check_sqlite(Path("/proc/raystill/mlflow.db")), "/proc/raystill", "right to write")


def test_a_sound_root_is_ok_and_left_as_it_was(tmp_path):
    (tmp_path / "kept").write_text("x")
    assert {f.level for f in check_root(str(tmp_path)) if f.subject != "free space"} == {Level.OK}
    check_root(str(tmp_path / "new" / "inner"))
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_a_file_where_the_root_should_be_is_told(tmp_path):
    (tmp_path / "runs").write_text("x")
    assert is_fault(worst(check_root(str(tmp_path / "runs"))), "root", "can't write into", "set root=")
    assert (tmp_path / "runs").read_text() == "x"


def test_a_root_that_takes_no_files_is_told():
    assert is_fault(worst(check_root("/proc/raystill")), "can't write into /proc/raystill", "set root=")


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is read-only to root")
def test_a_read_only_root_is_told(tmp_path):
    tmp_path.chmod(0o500)
    assert is_fault(worst(check_root(str(tmp_path))), "can't write into", "Permission denied")


def test_a_root_with_a_password_is_told_without_it():
    finding = worst(check_root(f"s3://me:{SECRET}@bucket/x"))
    assert is_fault(finding, "root", "credentials")
    assert SECRET not in text_of(finding)


def test_a_full_disk_is_told():
    assert check_space(100 * GIB, "/x").level is Level.OK
    assert is_warning(check_space(GIB, "/x"), "1.0 GiB at /x", "root=")


def test_data_that_are_not_there_are_told(tmp_path):
    assert check_data(None).level is Level.OK
    (tmp_path / "file").write_text("x")
    assert check_data(str(tmp_path)).level is Level.OK
    assert is_fault(check_data(str(tmp_path / "absent")), "data.root", "missing or empty", "fetch.py")
    assert is_fault(check_data(str(tmp_path / "file")), "is a file", "set data.root=")


def test_a_port_that_is_taken_is_told():
    with listen() as port:
        assert is_warning(check_port_free("GCS", port, "--port"), str(port), "something listens", "ray stop")
        assert check_port_open("RAY_ADDRESS", "127.0.0.1", port).level is Level.OK
    assert check_port_free("GCS", port, "--port").level is Level.OK
    assert is_fault(check_port_open("RAY_ADDRESS", "127.0.0.1", port), f"127.0.0.1:{port}", "refused", "unset RAY_ADD")


def test_a_cluster_that_cannot_be_reached_is_told(tmp_path):
    port = find_closed_port()
    environ = {"RAY_ADDRESS": f"127.0.0.1:{port}", "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{port}"}
    token, gcs, version = check_ray(environ, None, tmp_path)
    assert is_warning(token, "RAY_AUTH_MODE")
    assert is_fault(gcs, "can't be reached", str(port))
    assert is_warning(version, "is not known", "RAY_API_SERVER_ADDRESS")


def test_a_cluster_of_another_version_is_told():
    with serve({"/api/version": (200, {"ray_version": "2.40.0"})}) as (address, _):
        assert is_fault(check_version(address, "2.60.0", None), "2.60.0 here, 2.40.0 on", "ray==2.40.0")
        assert check_version(address, "2.40.0", None).level is Level.OK


def test_a_token_that_the_cluster_refuses_is_told_and_not_shown():
    with serve({}, wanted_key="another") as (address, _):
        finding = check_version(address, "2.60.0", SECRET)
    assert is_fault(finding, "RAY_AUTH_TOKEN_PATH", "refuses this machine's token")
    assert SECRET not in text_of(finding)


def test_a_token_is_looked_for_where_ray_looks(tmp_path):
    on = {"RAY_AUTH_MODE": "token"}
    assert is_fault(check_token(on, tmp_path, is_cluster=True), "No such file", "get-auth-token")
    path = tmp_path / ".ray" / "auth_token"
    path.parent.mkdir()
    path.write_text("")
    path.chmod(0o600)
    assert is_fault(check_token(on, tmp_path, is_cluster=True), str(path), "is empty")
    path.write_text(SECRET)
    assert check_token(on, tmp_path, is_cluster=True).level is Level.OK
    path.chmod(0o644)
    finding = check_token(on, tmp_path, is_cluster=True)
    assert is_warning(finding, f"chmod 600 {path}")
    assert SECRET not in text_of(finding)
    elsewhere = {**on, "RAY_AUTH_TOKEN_PATH": str(tmp_path)}
    assert is_fault(check_token(elsewhere, tmp_path, is_cluster=True), "Is a directory")


def test_a_cluster_without_a_token_is_told(tmp_path):
    assert check_token({}, tmp_path, is_cluster=False).level is Level.OK
    assert is_warning(check_token({}, tmp_path, is_cluster=True), "not set", "RAY_AUTH_MODE=token")
    assert is_warning(check_token({"RAY_AUTH_MODE": "disabled"}, tmp_path, is_cluster=False), "off")
    assert is_fault(check_token({"RAY_AUTH_MODE": "tokn"}, tmp_path, is_cluster=False), "tokn", "token or disabled")


INSTALLED = {"numpy": "2.3.5", "torch": "2.13.0+cpu", "scikit-learn": "1.9.0"}


def test_a_pin_that_is_not_what_is_installed_is_told(tmp_path):
    path = tmp_path / "constraints.txt"
    path.write_text("# one set\nnumpy==9.9.9  # made up\ntorch==2.13.0\nscikit_learn==1.9.0\nabsent==1.0\n")
    finding = check_pins(path, INSTALLED)
    assert is_warning(finding, "1 of 3", "numpy==9.9.9 (installed: 2.3.5)", f"pip install -c {path} numpy,", "1 more")
    path.write_text("torch==2.13.0\n")
    assert check_pins(path, INSTALLED).level is Level.OK


def test_a_requirement_that_is_not_met_is_told():
    wanted = [Requirement(text) for text in ("numpy>=3", "torch>=2.13,<2.14", "absent>=1", "gone==1; extra == 'gpu'")]
    finding = check_requirements(wanted, INSTALLED)
    assert is_fault(finding, "2 of 3", "numpy>=3 (installed: 2.3.5)", "absent>=1 (installed: none)", "pip install")
    assert "gone" not in text_of(finding)
    assert check_requirements(wanted[1:2], INSTALLED).level is Level.OK


def test_a_python_that_the_project_does_not_take_is_told():
    assert check_python("3.11.7", ">=3.11,<3.13").level is Level.OK
    assert is_fault(check_python("3.9.2", ">=3.11,<3.13"), "3.9.2", "Python >=3.11,<3.13")


def test_a_set_up_without_its_files_is_told(tmp_path):
    assert is_warning(check_installation([tmp_path])[-1], "constraints.txt", f"not in {tmp_path}", "project's folder")


def test_the_pins_of_the_project_are_found_and_read():
    subjects = [finding.subject for finding in check_installation([PROJECT])]
    assert subjects == ["Python", "packages", "constraints.txt"]


def test_limits_of_open_files():
    assert check_open_files(1024, 4096).level is Level.WARNING
    assert is_warning(check_open_files(1024, 1024), "ulimit -n", "1024", "8192", "65536")
    for enough in [(1024, 65536), (20000, 20000), (-1, -1), (1024, -1)]:
        assert check_open_files(*enough).level is Level.OK


def test_a_small_shared_memory_is_told():
    # What a container gets unless told otherwise: 64 MB; Ray would take 0.3 x 100 GiB.
    assert is_warning(
        check_shared_memory(64 * 2**20, 100 * GIB), "/dev/shm", "0.06 GiB", "30.0 GiB", "--shm-size=32.2gb"
    )
    assert check_shared_memory(31 * GIB, 100 * GIB).level is Level.OK


def test_a_machine_without_memory_is_told():
    assert check_memory(50 * GIB, 100 * GIB).level is Level.OK
    assert is_warning(check_memory(10 * GIB, 100 * GIB), "10.0 of 100.0 GiB")
    assert is_fault(check_memory(4 * GIB, 100 * GIB), "95%")


def test_gpus_that_are_asked_for_and_not_there_are_told():
    assert check_gpus([], 0, is_local=True).level is Level.OK
    assert is_fault(check_gpus([], 1, is_local=True), "none on this machine", "teacher.gpus", "scale=cluster")
    assert is_fault(check_gpus([24 * GIB], 4, is_local=True), "1: 24.0 GiB", "4 GPUs")
    assert check_gpus([], 4, is_local=False).level is Level.OK


def test_a_table_shows_all_findings_as_they_are_worded():
    out = StringIO()
    print_findings(
        [Finding(Level.FAULT, "root", "[bold]no[/bold] place", "a place", "set root=…")], Console(file=out, width=120)
    )
    for words in (
        "fault",
        "root",
        "[bold]no[/bold] place",
        "needed: a place",
        "set root=…",
        "1 fault, 0 warning, 0 ok",
    ):
        assert words in out.getvalue()


def test_the_job_ends_with_a_fault_and_its_findings_as_json(tmp_path):
    (tmp_path / "taken").write_text("x")
    environ = {**os.environ, "PYTHONPATH": str(PROJECT), KEY_VARIABLE: SECRET, "COLUMNS": "200"}
    with serve({"/v1/models": (200, MODELS)}, wanted_key="another") as (address, _):
        overrides = [
            "teacher=openai", f"teacher.base_url={address}/v1", "teacher.model=sample",
            f"teacher.api_key_env={KEY_VARIABLE}", f"root={tmp_path}/taken", f"output={tmp_path}/found/findings.json",
        ]  # fmt: skip
        done = subprocess.run(
            [sys.executable, str(PROJECT / "ray_jobs" / "doctor.py"), *overrides],
            cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
    assert done.returncode == 1, done.stderr
    findings = [Finding(**row) for row in json.loads((tmp_path / "found" / "findings.json").read_text())]
    faults = [finding.subject for finding in findings if finding.level == Level.FAULT]
    assert {"root", "arms.openai.teacher.api_key_env"} <= set(faults), faults
    assert SECRET not in done.stdout + done.stderr + text_of(*findings)
    assert f"{len(faults)} fault" in done.stdout
