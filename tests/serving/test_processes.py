"""Identity, groups and ties of processes, on real ones."""

import os
import signal
import subprocess
import sys
import time

import pytest

from serving import processes

PATIENCE_SECONDS = 30


def eventually(condition):
    """True once the condition holds, False when patience ends."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


@pytest.fixture
def sleeper():
    """A process that leads its own group."""
    child = subprocess.Popen(["sleep", "600"], start_new_session=True)
    yield child
    child.kill()
    child.wait()


def test_a_process_is_known_by_pid_and_start(sleeper):
    known = processes.identity(sleeper.pid)
    assert processes.alive(known)
    assert not processes.alive(processes.Identity(known.pid, known.start + 1))


def test_a_process_that_ended_is_not_alive_before_its_parent_asks(sleeper):
    known = processes.identity(sleeper.pid)
    sleeper.kill()
    assert eventually(lambda: not processes.alive(known))
    assert processes.identity(sleeper.pid) is None


def test_age_is_the_time_since_the_start(sleeper):
    assert 0 <= processes.age_seconds(processes.identity(sleeper.pid)) < PATIENCE_SECONDS


def test_a_group_is_counted_whole_and_ended_whole():
    command = "import os, time; os.fork(); x = bytearray(40_000_000); time.sleep(600)"
    child = subprocess.Popen([sys.executable, "-c", command], start_new_session=True)
    try:
        leader = processes.identity(child.pid)
        assert eventually(
            lambda: processes.usage({child.pid}).get(child.pid, processes.NO_USAGE).rss_bytes > 80e6
        )
        assert len(processes.members(child.pid)) == 2
        processes.signal_group(leader, signal.SIGKILL)
        child.wait()
        assert eventually(lambda: not processes.members(child.pid))
    finally:
        child.kill()


def test_a_strangers_group_is_not_signalled(sleeper):
    known = processes.identity(sleeper.pid)
    processes.signal_group(processes.Identity(known.pid, known.start - 5), signal.SIGKILL)
    assert processes.alive(known)


PARENT = """\
import subprocess, sys, time
from serving import processes
child = subprocess.Popen(processes.tied(["/bin/sleep", "600"]))
print(child.pid, flush=True)
time.sleep(600)
"""


def test_a_tied_child_dies_with_its_parent():
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True)
    with parent:
        child = int(parent.stdout.readline())
        assert processes.identity(child) is not None
        os.kill(parent.pid, signal.SIGKILL)
    assert eventually(lambda: processes.identity(child) is None)


REAPER = """\
import os, subprocess, sys, time
from serving import processes
processes.become_subreaper()
middle = subprocess.run(["/bin/sh", "-c", "/bin/sleep 0.01 & echo $!"], stdout=subprocess.PIPE)
orphan = int(middle.stdout)
while orphan in processes.children():
    processes.reap_orphans(())
    time.sleep(0.01)
print("reaped")
"""


def test_a_subreaper_waits_for_orphans():
    done = subprocess.run(
        [sys.executable, "-c", REAPER],
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=True,
    )
    assert done.stdout == "reaped\n"


def test_private_memory_is_a_part_of_what_is_resident():
    own = processes.identity(os.getpid())
    assert own is not None
    grown = bytearray(os.urandom(20 << 20))
    held = processes.private_bytes(own.pid)
    assert len(grown) < held <= processes.rss_bytes(own.pid) + (8 << 20)
    assert 0 < processes.available_share() < 1


def test_a_process_that_is_gone_holds_nothing():
    child = subprocess.Popen(["true"])
    child.wait()
    assert processes.private_bytes(child.pid) == 0
