"""`inferlake up` as a person meets it: one line when it is ready, one signal to end it."""

import json
import os
import re
import signal
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


@pytest.fixture(scope="module")
def running(tmp_path_factory, up_on):
    up = up_on(tmp_path_factory.mktemp("up") / "data").start()
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


def test_a_second_one_on_the_same_directory_is_refused(running, up_on):
    second = up_on(running.data_dir)
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


def test_after_a_kill_of_the_supervisor_the_next_one_starts_at_once(tmp_path, up_on):
    up = up_on(tmp_path / "data", "--no-dashboard").start()
    assert up.ready_line() == f"ready {up.url}", up.errors.read_text()
    pids = [up.pid(name) for name in CHILDREN[:4]]
    up.end(signal.SIGKILL)
    eventually(lambda: not any(processes.identity(pid) for pid in pids))
    up.start()
    assert up.ready_line() == f"ready {up.url}", up.errors.read_text()
    assert up.healthy()
    assert up.end() == 0
