"""Jobs: work that a person starts, watches and may cancel, each in a process of its own.

The monitor process runs one job at a time as `python -m monitors.jobs JOB_ID`: niced, in a process
group of its own, and ended with whatever it started when it is cancelled or the monitor ends. Its
standard input is a pipe from the monitor that never carries a byte: its end is the monitor's.

A kind is a function `run(settings, arguments, progress) -> result`. The result is JSON; `file`
in it names a file in the job's folder (`progress.folder`) that `GET .../jobs/{id}/result` serves.
"""

import contextlib
import importlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from capture import database, errors, logline
from capture.settings import Settings
from monitors import job_state

log = logline.logger(__name__)

KINDS = {"report": "monitors.reports:run", "replay": "monitors.replays:run"}
COMMAND = (sys.executable, "-m", "monitors.jobs")
NICENESS = 10
LOOK_SECONDS = 0.1
TELL_SECONDS = 0.25
CANCEL_SECONDS = 2.0  # to stop by itself; then it is killed
KEPT_MS = 30 * 86_400_000
# What the libraries of a job would otherwise send to their makers.
QUIET = {"DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1"}
MONITOR_ENDED = "The monitor process ended while the job ran; start it again."


class Cancelled(Exception):
    """Somebody wants the job to stop."""


def folder(settings: Settings, job_id: str) -> Path:
    """Where a job's files lie."""
    return settings.data_dir.absolute() / "monitors" / "jobs" / job_id


class Progress:
    """How far a job is, told from within it."""

    def __init__(self, engine: sa.Engine, job_id: str, files: Path) -> None:
        self.folder = files
        self._engine = engine
        self._job_id = job_id
        self._stage: str | None = None
        self._told_at = 0.0

    def tell(self, stage: str, done: int = 0, total: int = 0) -> None:
        """Say what is being done, and how many pieces of how many (0: not known) are; as often as
        one likes. Raises Cancelled once cancelling was asked."""
        now = time.monotonic()
        if stage == self._stage and done != total and now - self._told_at < TELL_SECONDS:
            return
        self._stage, self._told_at = stage, now
        with database.transaction(self._engine) as connection:
            if not job_state.tell(connection, self._job_id, stage, done, total):
                raise Cancelled


# --- in the monitor process ----------------------------------------------------------------------


class Runner:
    """Runs what waits; for one thread. holds_lease: asked before a job is begun."""

    def __init__(
        self,
        engine: sa.Engine,
        settings: Settings,
        holds_lease: Callable[[], bool],
        command: Sequence[str] = COMMAND,
    ) -> None:
        self.engine = engine
        self.settings = settings
        self.holds_lease = holds_lease
        self.command = list(command)

    def take_over(self) -> None:
        """Say of the jobs that another process left running that they failed."""
        with database.transaction(self.engine) as connection:
            left = job_state.fail_unfinished(connection, MONITOR_ENDED, _now_ms())
        if left:
            log.warning("jobs_lost", jobs=left)

    def run_next(self, stop: threading.Event) -> bool:
        """Run the job that waits longest, to its end or until `stop`; False: none waits."""
        with database.reading(self.engine) as connection:
            job = job_state.next_waiting(connection)
        if job is None or not self.holds_lease():
            return False
        with database.transaction(self.engine) as connection:
            if not job_state.start(connection, job.id, _now_ms()):
                return True
        process = subprocess.Popen(
            [*self.command, job.id],
            env={**os.environ, **QUIET, "INFERLAKE_DATA_DIR": str(self.settings.data_dir)},
            stdin=subprocess.PIPE,
            start_new_session=True,
        )
        log.info("job_started", job=job.id, kind=job.kind, pid=process.pid)
        try:
            self._watch(job.id, process, stop)
        finally:
            _kill(process)
        self._settle(job.id, process.returncode, stop.is_set())
        return True

    def _watch(self, job_id: str, process: subprocess.Popen[bytes], stop: threading.Event) -> None:
        """Until the process has ended, or must."""
        asked_at: float | None = None
        while process.poll() is None and not stop.wait(LOOK_SECONDS):
            with database.reading(self.engine) as connection:
                asked = job_state.get(connection, job_id).cancel_requested
            if asked and asked_at is None:
                asked_at = time.monotonic()
            if asked_at is not None and time.monotonic() - asked_at >= CANCEL_SECONDS:
                return

    def _settle(self, job_id: str, exit_code: int, stopped: bool) -> None:
        """A process that could not say itself how it ended."""
        with database.transaction(self.engine) as connection:
            job = job_state.get(connection, job_id)
            if job.cancel_requested:
                job_state.end(connection, job_id, "cancelled", None, _now_ms())
            else:
                why = MONITOR_ENDED if stopped else _reason(exit_code)
                job_state.end(connection, job_id, "failed", why, _now_ms())
            job = job_state.get(connection, job_id)
        if job.state != "succeeded":
            shutil.rmtree(folder(self.settings, job_id), ignore_errors=True)
        log.info("job_ended", job=job_id, kind=job.kind, state=job.state, message=job.message)

    def clean(self) -> None:
        """Forget what ended a month ago, and its files."""
        with database.transaction(self.engine) as connection:
            old = job_state.forget_before(connection, _now_ms() - KEPT_MS)
        for job_id in old:
            shutil.rmtree(folder(self.settings, job_id), ignore_errors=True)


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End a job's process with all that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    assert process.stdin is not None
    process.stdin.close()
    process.wait()


def _reason(exit_code: int) -> str:
    if exit_code >= 0:
        return f"The job's process ended with exit code {exit_code}."
    hint = "; the machine may be out of memory" if -exit_code == signal.SIGKILL else ""
    return f"The job's process was ended by {signal.Signals(-exit_code).name}{hint}."


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


# --- in the job's own process --------------------------------------------------------------------


def run(settings: Settings, job_id: str) -> str:
    """Do a job and write down how it ended; gives that state. Raises DoesNotExist."""
    engine = database.open_engine(settings)
    with database.reading(engine) as connection:
        job = job_state.get(connection, job_id)
    files = folder(settings, job_id)
    result: dict[str, Any] | None = None
    message: str | None = None
    try:
        files.mkdir(parents=True, exist_ok=True, mode=0o700)
        result = _work(settings, job, Progress(engine, job_id, files))
        state = "succeeded"
    except Cancelled:
        state = "cancelled"
    except errors.InferlakeError as error:
        state, message = "failed", error.message
    except BaseException as error:  # noqa: BLE001 - polars and delta-rs panic outside Exception
        log.error("job_failed", job=job_id, kind=job.kind, error=repr(error)[:2000])
        state, message = "failed", f"Internal error in job {job_id} ({type(error).__name__})."
    with database.transaction(engine) as connection:
        job_state.end(connection, job_id, state, message, _now_ms(), result)
    engine.dispose()
    return state


def _work(settings: Settings, job: job_state.Job, progress: Progress) -> dict[str, Any]:
    progress.tell("starting")
    module, _, function = KINDS[job.kind].partition(":")
    work = getattr(importlib.import_module(module), function)
    result: Mapping[str, Any] = work(settings, job.arguments, progress)
    return dict(result)


def _end_with_parent() -> None:
    """Kill this process group once the monitor is gone, however it went."""
    os.read(sys.stdin.fileno(), 1)
    os.killpg(0, signal.SIGKILL)


def main() -> int:
    """`python -m monitors.jobs JOB_ID`, as the monitor process starts it."""
    os.nice(NICENESS)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    settings = Settings()
    for secret in (settings.service_token, settings.admin_token, settings.token):
        if secret is not None:
            logline.hide(secret.get_secret_value())
    return 0 if run(settings, sys.argv[1]) == "succeeded" else 1


if __name__ == "__main__":
    # Under its own name: what a job raises is the `Cancelled` that its kind imports.
    raise SystemExit(importlib.import_module("monitors.jobs").main())
