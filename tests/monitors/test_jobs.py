import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from capture import database, errors
from monitors import job_state, jobs

# A process of jobs as `python -m monitors.jobs`, with kinds that need no data.
PROCESS = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from monitors import jobs
for name in ("write", "wait", "sleep", "refuse", "die"):
    jobs.KINDS[name] = "job_kinds:" + name
raise SystemExit(jobs.main())
"""

# The part of a monitor process that runs jobs; its arguments: the command of a job's process.
MONITOR = """
import sys, threading
from capture import database
from capture.settings import Settings
from monitors import jobs
settings = Settings()
engine = database.open_engine(settings)
jobs.Runner(engine, settings, lambda: True, sys.argv[1:]).run_next(threading.Event())
"""


def wait_for(condition, seconds: float = 60) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)
    return found


class Office:
    """The jobs of a data directory, run as the monitor process runs them."""

    def __init__(self, lake) -> None:
        self.engine, self.settings = lake.engine, lake.settings
        command = [sys.executable, "-c", PROCESS]
        self.runner = jobs.Runner(lake.engine, lake.settings, lambda: True, command)

    def add(self, kind: str, **arguments: Any) -> str:
        with database.transaction(self.engine) as connection:
            return job_state.create(
                connection, kind, arguments, "delay", "main.flights.p_unpacked", "ann", 1
            )

    def get(self, job_id: str) -> job_state.Job:
        with database.reading(self.engine) as connection:
            return job_state.get(connection, job_id)

    def cancel(self, job_id: str) -> None:
        with database.transaction(self.engine) as connection:
            job_state.cancel(connection, job_id, 2)

    def done(self, job_id: str) -> job_state.Job:
        assert self.runner.run_next(threading.Event())
        return self.get(job_id)

    @contextmanager
    def running(self) -> Iterator[threading.Event]:
        """The next job runs in a thread; the event stops it, as the end of the monitor does."""
        stop = threading.Event()
        thread = threading.Thread(target=self.runner.run_next, args=(stop,))
        thread.start()
        try:
            yield stop
            thread.join(30)
        finally:
            stop.set()
            thread.join()


@pytest.fixture
def office(lake) -> Office:
    return Office(lake)


def pids(office: Office, job_id: str) -> list[int]:
    """Processes of the job `wait`, once it has said where they are."""
    stage = office.get(job_id).stage
    return [int(pid) for pid in stage.split()[1:]] if stage.startswith("pids") else []


def test_a_job_gives_its_result_and_file_and_is_forgotten_after_a_month(office):
    job_id = office.add("write", text="hello")
    assert office.get(job_id).state == "queued"
    found = office.done(job_id)
    assert (found.state, found.message) == ("succeeded", None)
    assert found.result == {"file": "text.html", "letters": 5}
    file = jobs.folder(office.settings, job_id) / "text.html"
    assert file.read_text() == "hello"
    assert (found.stage, found.done, found.total) == ("writing", 5, 5)
    assert found.created_ms <= found.started_ms <= found.ended_ms
    assert not office.runner.run_next(threading.Event())
    office.cancel(job_id)
    office.runner.take_over()
    office.runner.clean()
    assert office.get(job_id) == found and file.exists()
    with database.transaction(office.engine) as connection:
        connection.execute(
            job_state.jobs.update().values(ended_ms=found.ended_ms - jobs.KEPT_MS - 60_000)
        )
    office.runner.clean()
    assert not file.exists()
    with pytest.raises(errors.DoesNotExist):
        office.get(job_id)


def test_the_job_that_waits_longest_is_next_and_none_starts_twice(office):
    first = office.add("write", text="a")
    with database.transaction(office.engine) as connection:
        second = job_state.create(connection, "write", {"text": "b"}, None, None, "bob", 2)
        assert job_state.next_waiting(connection).id == first
        assert job_state.start(connection, first, 3) and not job_state.start(connection, first, 3)
        assert job_state.next_waiting(connection).id == second


def test_a_refusal_is_told_and_a_fault_is_named(office):
    refused = office.done(office.add("refuse"))
    assert (refused.state, refused.message) == ("failed", "window: there are no rows.")
    assert not jobs.folder(office.settings, refused.id).exists()
    killed = office.done(office.add("die"))
    assert killed.state == "failed" and "SIGKILL" in killed.message
    fault = office.add("write")
    with database.transaction(office.engine) as connection:
        job_state.start(connection, fault, 2)
    jobs.KINDS["write"] = "tests.monitors.absent:run"
    try:
        assert jobs.run(office.settings, fault) == "failed"
    finally:
        del jobs.KINDS["write"]
    assert "ModuleNotFoundError" in office.get(fault).message


def test_what_belongs_to_a_deleted_endpoint_ends_and_is_not_shown_under_its_name(office):
    waiting, other = office.add("write", text="a"), office.add("write", text="b")
    with database.transaction(office.engine) as connection:
        job_state.start(connection, other, 2)
        job_state.forget_endpoint(connection, "delay", 3)
    assert office.get(waiting).state == "cancelled" and office.get(other).cancel_requested
    assert {office.get(waiting).endpoint, office.get(other).endpoint} == {""}


def test_cancelling_ends_a_waiting_job_at_once_and_a_running_one_soon(office):
    waiting = office.add("write", text="a")
    office.cancel(waiting)
    assert office.get(waiting).state == "cancelled"
    assert not office.runner.run_next(threading.Event())
    job_id = office.add("wait")
    with office.running():
        wait_for(lambda: pids(office, job_id))
        office.cancel(job_id)
        assert office.get(job_id).cancel_requested
    assert office.get(job_id).state == "cancelled" and office.get(job_id).message is None


def test_a_job_that_does_not_listen_is_killed_with_what_it_started(office):
    job_id = office.add("sleep")
    with office.running():
        found = wait_for(lambda: pids(office, job_id))
        office.cancel(job_id)
    assert len(found) == 2
    wait_for(lambda: not any(psutil.pid_exists(pid) for pid in found))
    assert office.get(job_id).state == "cancelled"


def test_the_end_of_the_monitor_ends_the_job_and_says_so(office):
    job_id = office.add("sleep")
    with office.running() as stop:
        found = wait_for(lambda: pids(office, job_id))
        stop.set()
    wait_for(lambda: not any(psutil.pid_exists(pid) for pid in found))
    ended = office.get(job_id)
    assert ended.state == "failed" and ended.message == jobs.MONITOR_ENDED


def test_a_killed_monitor_takes_its_job_along_and_the_next_one_tells_of_it(office):
    job_id = office.add("sleep")
    environment = {**os.environ, "INFERLAKE_DATA_DIR": str(office.settings.data_dir)}
    command = [sys.executable, "-c", MONITOR, *office.runner.command]
    monitor = subprocess.Popen(command, env=environment)
    try:
        found = wait_for(lambda: pids(office, job_id))
    finally:
        monitor.kill()
        monitor.wait()
    wait_for(lambda: not any(psutil.pid_exists(pid) for pid in found))
    assert office.get(job_id).state == "running"
    office.runner.take_over()
    assert office.get(job_id).state == "failed"
    assert office.get(job_id).message == jobs.MONITOR_ENDED


def test_a_queue_has_an_end(office):
    for _ in range(job_state.MOST_WAITING):
        office.add("write", text="a")
    with pytest.raises(errors.QueueFull, match="50 jobs wait"):
        office.add("write", text="a")
