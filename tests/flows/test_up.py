"""`inferlake up` as a person meets it: one line when it is ready, one signal to end it."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import pytest

from serving import processes

PATIENCE_SECONDS = 120
CHILDREN = ("gateway", "controller", "committer", "monitor", "dashboard")


def eventually(condition):
    """The first true value of the condition. Fails when patience ends."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        found = condition()
        if found:
            return found
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {PATIENCE_SECONDS} s")
        time.sleep(0.02)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Up:
    """A running `inferlake up` on its own data directory."""

    def __init__(self, data_dir, *arguments):
        self.data_dir, self.port = data_dir, free_port()
        self.arguments = arguments
        self.url = f"http://127.0.0.1:{self.port}"
        self.errors = data_dir.parent / "stderr.txt"

    def start(self):
        clean = {k: v for k, v in os.environ.items() if not k.startswith("INFERLAKE_")}
        command = [
            *(sys.executable, "-m", "serving.cli", "up", "--data-dir", str(self.data_dir)),
            *("--port", str(self.port), "--dashboard-port", str(free_port())),
            *self.arguments,
        ]
        with self.errors.open("wb") as out:
            self.process = subprocess.Popen(
                command, env=clean, stdout=subprocess.PIPE, stderr=out, text=True
            )
        return self

    def ready_line(self):
        return self.process.stdout.readline().rstrip()

    def pid(self, name):
        """Pid in a ready file, or None."""
        try:
            return json.loads((self.data_dir / "run" / f"{name}.ready").read_text())["pid"]
        except (FileNotFoundError, ValueError):
            return None

    def healthy(self):
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=5) as reply:
                return reply.status == 200
        except OSError:
            return False

    def end(self, number=signal.SIGTERM):
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(number)
        with self.process:
            self.process.wait(timeout=PATIENCE_SECONDS)
        return self.process.returncode


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    up = Up(tmp_path_factory.mktemp("up") / "data").start()
    try:
        assert up.ready_line() == f"ready {up.url}", up.errors.read_text()
        yield up
    finally:
        up.end()


def test_ready_means_that_every_part_answers(running):
    assert running.healthy()
    assert all(processes.identity(running.pid(name)) for name in CHILDREN)


def test_it_says_where_the_token_is_and_how_to_sign_in(running):
    said = running.errors.read_text()
    assert str(running.data_dir / "admin-token") in said
    assert re.search(r"http://127\.0\.0\.1:\d+/\?code=\S{20,}", said)
    token = (running.data_dir / "admin-token").read_text().strip()
    assert token not in said
    request = urllib.request.Request(
        f"{running.url}/api/2.0/serving-endpoints", headers={"Authorization": f"Bearer {token}"}
    )
    with urllib.request.urlopen(request, timeout=30) as reply:
        assert not json.load(reply).get("endpoints")


def test_a_second_one_on_the_same_directory_is_refused(running):
    second = Up(running.data_dir)
    second.errors = running.data_dir.parent / "second.txt"
    assert second.start().ready_line() == ""
    assert second.process.wait(timeout=PATIENCE_SECONDS) == 1
    assert "Another `inferlake up`" in second.errors.read_text()
    second.process.stdout.close()


@pytest.mark.parametrize("name", CHILDREN)
def test_a_killed_part_comes_back(running, name):
    before = running.pid(name)
    os.kill(before, signal.SIGKILL)
    after = eventually(lambda: running.pid(name) not in (None, before) and running.pid(name))
    assert processes.identity(after)
    eventually(running.healthy)


def test_the_doctor_finds_nothing_wrong(running):
    done = subprocess.run(
        [sys.executable, "-m", "serving.cli", "doctor", "--data-dir", str(running.data_dir)],
        env={**os.environ, "INFERLAKE_URL": running.url},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def test_sigterm_ends_everything_with_exit_code_0(running):
    pids = [running.pid(name) for name in CHILDREN]
    eventually(lambda: list((running.data_dir / "run").glob("z-*.sock")))
    assert running.end() == 0
    assert not any(processes.identity(pid) for pid in pids)
    assert not list((running.data_dir / "run").glob("*.sock"))
    assert not list((running.data_dir / "run").glob("*.ready"))


def test_after_a_kill_of_the_supervisor_the_next_one_starts_at_once(tmp_path):
    up = Up(tmp_path / "data", "--no-dashboard").start()
    assert up.ready_line() == f"ready {up.url}", up.errors.read_text()
    pids = [up.pid(name) for name in CHILDREN[:4]]
    up.end(signal.SIGKILL)
    eventually(lambda: not any(processes.identity(pid) for pid in pids))
    up.start()
    assert up.ready_line() == f"ready {up.url}", up.errors.read_text()
    assert up.healthy()
    assert up.end() == 0
