"""The committer process: take the lock, start the maintenance child, commit until SIGTERM."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from capture import committer, logline, wal_files
from capture.settings import Settings

log = logline.logger("capture")

POLL_SECONDS = 0.025
FIRST_RESTART_SECONDS, LAST_RESTART_SECONDS = 0.1, 30.0
GOOD_WORK_SECONDS = 60.0
FULL_DISK_SECONDS = 0.5


class Child:
    """The maintenance process: started again when it dies, later each time."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._started_at = self._start_at = 0.0
        self._delay = FIRST_RESTART_SECONDS

    def watch(self) -> None:
        """Start it if it does not run and its time has come."""
        now = time.monotonic()
        if self._process is not None:
            if self._process.poll() is None:
                return
            self._lost(self._process, now)
        if now < self._start_at:
            return
        command = [sys.executable, "-m", "capture.maintenance"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE)
        assert self._process.stdin is not None
        # A child busy with a long compaction must not stop us; it looks at all tables now and then.
        os.set_blocking(self._process.stdin.fileno(), False)
        self._started_at = now

    def _lost(self, process: subprocess.Popen[bytes], now: float) -> None:
        if now - self._started_at >= GOOD_WORK_SECONDS:
            self._delay = FIRST_RESTART_SECONDS
        log.error("maintenance_lost", exit_code=process.returncode, restart_seconds=self._delay)
        self._process = None
        self._start_at = now + self._delay
        self._delay = min(self._delay * 2, LAST_RESTART_SECONDS)

    def tell(self, done: Iterable[committer.Committed]) -> bool:
        """Say which tables have news. False: it was not told, so tell it again."""
        if self._process is None or self._process.stdin is None:
            return True  # a new one looks at everything
        told = {one.table: one.kind for one in done}
        try:
            for table, kind in told.items():  # a line is short enough to be written whole or not
                line = json.dumps({"table": table, "kind": kind}) + "\n"
                os.write(self._process.stdin.fileno(), line.encode())
        except BlockingIOError:
            return False
        except BrokenPipeError:
            return True
        return True

    def stop(self) -> None:
        """End it, wherever it is: it can begin again."""
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()
            self._process.wait()


@contextmanager
def only_one(settings: Settings, stop: threading.Event) -> Iterator[bool]:
    """Hold the committer's lock, as soon as no other has it; False if we are to stop first.

    A full disk may not even take the lock's folder: that is waited for as well."""
    lock = None
    while lock is None and not stop.is_set():
        lock = _locked(settings.wal_dir / "committer.lock")
        if lock is None:
            stop.wait(0.1)
    try:
        yield lock is not None
    finally:
        if lock is not None:
            os.close(lock)


def _locked(path: Path) -> int | None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        log.warning("lock_not_made", error=error.strerror)
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return None
    return lock


@contextmanager
def said_ready(settings: Settings, stop: threading.Event) -> Iterator[None]:
    """`run/committer.ready` for as long as we answer. Where the disk is so full that not even the
    reserve helps, space is waited for: a process that ends comes back later than the space."""
    path = settings.run_dir / "committer.ready"
    text = json.dumps({"pid": os.getpid()})
    while not stop.is_set():
        try:
            committer.write_whole(path, text)
            break
        except OSError as error:
            if not committer.is_disk_full(error):
                raise
            if not wal_files.give_reserve(settings.wal_dir):
                log.warning("ready_not_said", error=error.strerror)
                stop.wait(FULL_DISK_SECONDS)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def run(settings: Settings, stop: threading.Event) -> None:
    """Commit until `stop`, then what is sealed by then."""
    committer.keep_memory()
    one = committer.Committer(settings)
    child = Child()
    untold: list[committer.Committed] = []
    try:
        with said_ready(settings, stop):
            while not stop.is_set():
                child.watch()
                done = _turn(one)
                untold = untold + done
                if untold and child.tell(untold):
                    untold = []
                if not done:
                    stop.wait(POLL_SECONDS)
            _finish(one)
    finally:
        child.stop()


def _turn(one: committer.Committer) -> list[committer.Committed]:
    try:
        return one.turn()
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # noqa: BLE001 - the loop must live; panics are no Exceptions
        log.error("turn_failed", error=f"{type(error).__name__}: {error}"[:2000])
        time.sleep(committer.FIRST_RETRY_SECONDS)
        return []


def _finish(one: committer.Committer) -> None:
    try:
        one.finish()
    except OSError as error:
        log.error("not_finished", error=error.strerror)


def main() -> None:
    """`python -m capture`."""
    settings = Settings()
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    with only_one(settings, stop) as is_ours:
        if is_ours:
            run(settings, stop)


if __name__ == "__main__":
    main()
