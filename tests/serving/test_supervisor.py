"""`up` before anything is started: what it refuses, and in which words."""

import base64
import fcntl
import hashlib
import json
import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from capture import database, sealing
from capture.settings import Settings
from serving import access_state, supervisor


def up(data_dir, *arguments, **variables):
    clean = {k: v for k, v in os.environ.items() if not k.startswith("INFERLAKE_")}
    ours = {"INFERLAKE_DATA_DIR": str(data_dir), "INFERLAKE_DASHBOARD_PORT": "0"}
    env = {**clean, **ours, **variables}
    return subprocess.run(
        [sys.executable, "-m", "serving.supervisor", *arguments],
        env=env,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_a_port_in_use_is_one_sentence_that_tells_what_to_do(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = up(tmp_path, "--no-dashboard", INFERLAKE_PORT=str(port))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1
    assert f"Port {port}" in done.stderr
    assert "--port" in done.stderr


def test_a_data_directory_that_is_in_use_is_refused(tmp_path):
    (tmp_path / "run").mkdir()
    with (tmp_path / "run" / "up.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = up(tmp_path, INFERLAKE_PORT="0")
    assert done.returncode == 1
    assert "Another `inferlake up`" in done.stderr


def test_a_path_that_is_too_long_for_sockets_is_refused(tmp_path):
    done = up(tmp_path / ("x" * 100), INFERLAKE_PORT="0")
    assert done.returncode == 1
    assert "too long" in done.stderr


def test_a_data_directory_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").touch()
    done = up(tmp_path / "file" / "data", INFERLAKE_PORT="0")
    assert done.returncode == 1
    assert "cannot be made" in done.stderr


def test_an_administrators_token_with_spaces_is_refused(tmp_path):
    done = up(tmp_path, INFERLAKE_PORT="0", INFERLAKE_ADMIN_TOKEN="two words")
    assert done.returncode == 1
    assert "INFERLAKE_ADMIN_TOKEN" in done.stderr
    assert "two words" not in done.stderr


def test_a_token_that_is_made_is_readable_by_its_owner_alone_and_kept(tmp_path):
    settings = Settings(data_dir=tmp_path)
    first = supervisor.Running(settings).admin_token
    path = supervisor.admin_token_path(settings)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.read_text().strip() == first
    assert supervisor.Running(settings).admin_token == first


def test_a_dashboard_link_signs_in_once(tmp_path):
    settings = Settings(data_dir=tmp_path, dashboard_port=8765)
    database.migrate(settings)
    link = supervisor.dashboard_link(settings)
    base, _, code = link.partition("?code=")
    assert base == "http://127.0.0.1:8765/"
    digest = hashlib.sha256(code.encode()).digest()
    engine = database.open_engine(settings)
    with database.transaction(engine) as connection:
        assert access_state.use_sign_in_code(connection, digest, 0) == "admin"
        assert access_state.use_sign_in_code(connection, digest, 0) is None
    engine.dispose()


def test_a_child_sees_the_settings_and_not_the_callers_token(tmp_path, monkeypatch):
    monkeypatch.setenv("INFERLAKE_TOKEN", "somebodys-token")
    settings = Settings(data_dir=tmp_path, port=1234, wal_seal_bytes=77)
    seen = supervisor.exported(settings)
    assert seen["INFERLAKE_WAL_SEAL_BYTES"] == "77"
    assert seen["INFERLAKE_URL"] == "http://127.0.0.1:1234"
    assert seen["INFERLAKE_DATA_DIR"] == str(tmp_path)
    assert seen["DO_NOT_TRACK"] == "1"
    assert "INFERLAKE_TOKEN" not in seen


def test_a_key_that_is_none_is_refused_and_not_shown(tmp_path):
    done = up(tmp_path, "--no-dashboard", INFERLAKE_PORT="0", INFERLAKE_SECRET_KEY="geheim-geheim")
    assert done.returncode != 0
    assert "INFERLAKE_SECRET_KEY must be 32 bytes in base64" in done.stderr
    assert "geheim" not in done.stdout + done.stderr


def test_the_key_of_secrets_goes_to_those_processes_that_open_them(tmp_path):
    key = base64.b64encode(os.urandom(32)).decode()
    settings = Settings(data_dir=tmp_path, port=0, secret_key=key)
    with supervisor.Running(settings, dashboard=False) as running:
        holders = {
            name
            for name in ("gateway", "controller", "committer", "monitor")
            if key in _environment(settings.run_dir / f"{name}.ready")
        }
        logged = running.log_path.read_text()
    assert holders == {"gateway", "controller", "monitor"}
    assert key not in logged
    assert not (tmp_path / sealing.KEY_FILE).exists()


def _environment(ready):
    pid = json.loads(ready.read_text())["pid"]
    return Path(f"/proc/{pid}/environ").read_text()


def test_a_backend_that_is_not_offered_is_refused(tmp_path):
    settings = Settings(data_dir=tmp_path / "data", port=0, backend="ray")
    with (
        pytest.raises(supervisor.UpFailed, match="INFERLAKE_BACKEND=ray is not offered yet"),
        supervisor.Running(settings, dashboard=False),
    ):
        raise AssertionError("it must not start")


def test_running_tells_why_it_cannot_start(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        settings = Settings(data_dir=tmp_path, port=taken.getsockname()[1])
        with (
            pytest.raises(supervisor.UpFailed, match="cannot be used"),
            supervisor.Running(settings, dashboard=False),
        ):
            raise AssertionError("it must not start")
