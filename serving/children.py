"""The processes of one `up`: started, watched, restarted, ended in order.

- A child is up when `run/<name>.ready` names its pid.
- A child that ends is started again after 0.1 s, doubling to 30 s; a minute of life resets this.
- At the end the gateway drains first, then the controller ends the workers, the committer writes
  the rest, and the others end. A second signal cuts the waiting short.
"""

import contextlib
import dataclasses
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from capture import logline
from capture.settings import Settings
from serving import processes

log = logline.logger(__name__)

GATEWAY, CONTROLLER, COMMITTER, MONITOR, DASHBOARD = (
    "gateway",
    "controller",
    "committer",
    "monitor",
    "dashboard",
)
MODULES = {
    GATEWAY: "serving.gateway",
    CONTROLLER: "serving.controller",
    COMMITTER: "capture",
    MONITOR: "monitors",
    DASHBOARD: "dashboard",
}
LOOK_SECONDS, WATCH_SECONDS = 0.05, 2.0
FIRST_BACKOFF_SECONDS, LONGEST_BACKOFF_SECONDS, GOOD_LIFE_SECONDS = 0.1, 30.0, 60.0
STARTS_BEFORE_GIVING_UP = 4
LOG_BYTES = 16 << 20
# After the gateway has drained nobody waits for an answer; these bound what is left to write.
STOP_SECONDS = {CONTROLLER: 20.0, COMMITTER: 60.0, MONITOR: 15.0, DASHBOARD: 5.0}


class DoesNotStart(Exception):
    """A child ends again and again before it was ever ready; the message is one sentence."""


class Signals:
    """SIGTERM and SIGINT as a count; `wait` also returns early when a child ends."""

    def __init__(self) -> None:
        self.count = 0
        self._reader, self._writer = socket.socketpair()
        for end in (self._reader, self._writer):
            end.setblocking(False)
        self._wakeup = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        handlers = ((signal.SIGTERM, self._ask), (signal.SIGINT, self._ask))
        self._before: dict[signal.Signals, Any] = {
            number: signal.signal(number, handler) for number, handler in handlers
        }
        self._before[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, lambda number, frame: None)

    def _ask(self, number: int, frame: object) -> None:
        self.count += 1

    def wait(self, seconds: float) -> bool:
        """Until a signal or the end of a child, at most this long; whether there was one."""
        woken = bool(select.select([self._reader], [], [], seconds)[0])
        if woken:
            self._reader.recv(4096)
        return woken

    def close(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup)
        self._reader.close()
        self._writer.close()


@dataclasses.dataclass(slots=True)
class _Child:
    """A process that must run. Times are monotonic seconds."""

    name: str
    environment: dict[str, str]
    process: subprocess.Popen[bytes] | None = None
    pump: threading.Thread | None = None
    started: float = 0.0
    retry_at: float = 0.0
    failures: int = 0
    was_ready: bool = False
    last_lines: deque[str] = dataclasses.field(default_factory=lambda: deque(maxlen=20))


class House:
    """All children of one `up`. environments: what each child sees, by its name in MODULES."""

    def __init__(
        self, settings: Settings, environments: Mapping[str, dict[str, str]], signals: Signals
    ) -> None:
        self.settings, self.signals = settings, signals
        self.children = {name: _Child(name, seen) for name, seen in environments.items()}
        for token in (settings.admin_token, settings.service_token):
            if token is not None:
                logline.hide(token.get_secret_value())

    def start(self) -> None:
        """Start every child."""
        for child in self.children.values():
            self._start(child)

    def wait_until_ready(self, awaited: set[str]) -> bool:
        """True once all of these answer; False: a signal came first. Raises DoesNotStart."""
        while not self.signals.count:
            self._look()
            waiting = [name for name in awaited if not self._ready(self.children[name])]
            if not waiting:
                return True
            for name in waiting:
                child = self.children[name]
                if child.failures >= STARTS_BEFORE_GIVING_UP and not child.was_ready:
                    raise DoesNotStart(self._why(child))
            self.signals.wait(LOOK_SECONDS)
        return False

    def watch_until_signalled(self) -> None:
        """Restart what ends, reap orphaned workers. Each end wakes it: nothing is looked for."""
        while not self.signals.count:
            self._look()
            retries = [c.retry_at for c in self.children.values() if c.process is None]
            soonest = min(retries, default=float("inf")) - time.monotonic()
            if self.signals.wait(min(WATCH_SECONDS, max(0.0, soonest))):
                processes.reap_orphans(self._pids())

    def stop(self) -> None:
        """End all children in order, then whatever they left behind."""
        drain = self.settings.drain_seconds + 5
        for names in ((GATEWAY,), (CONTROLLER,), (COMMITTER, MONITOR, DASHBOARD)):
            children = [self.children[name] for name in names if name in self.children]
            for child in children:
                if child.process is not None:
                    child.process.terminate()
            for child in children:
                self._end(child, STOP_SECONDS.get(child.name, drain))
        for pid in processes.children():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        deadline = time.monotonic() + 10
        while processes.children() and time.monotonic() < deadline:
            processes.reap_orphans(())
            self.signals.wait(LOOK_SECONDS)

    def _start(self, child: _Child) -> None:
        self._ready_path(child).unlink(missing_ok=True)
        child.last_lines.clear()
        child.process = subprocess.Popen(
            processes.tied([sys.executable, "-P", "-m", MODULES[child.name]]),
            env=child.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        child.started = time.monotonic()
        path = self.settings.logs_dir / f"{child.name}.log"
        arguments = (child.process.stdout, path, child.last_lines)
        child.pump = threading.Thread(target=_pump, args=arguments, daemon=True)
        child.pump.start()

    def _look(self) -> None:
        now = time.monotonic()
        for child in self.children.values():
            if child.process is not None and child.process.poll() is not None:
                self._lost(child, now)
            if child.process is None and now >= child.retry_at:
                self._start(child)

    def _lost(self, child: _Child, now: float) -> None:
        assert child.process is not None
        if child.pump is not None:
            child.pump.join(timeout=1)
        if now - child.started >= GOOD_LIFE_SECONDS:
            child.failures = 0
        child.failures += 1
        doubled = FIRST_BACKOFF_SECONDS * 2 ** min(child.failures - 1, 16)
        child.retry_at = now + min(doubled, LONGEST_BACKOFF_SECONDS)
        log.error(
            "process_ended",
            process=child.name,
            code=child.process.returncode,
            restart_in_seconds=round(child.retry_at - now, 1),
            last_lines=[line for line in child.last_lines if not line.startswith("{")][-5:],
        )
        child.process = None
        self._ready_path(child).unlink(missing_ok=True)

    def _end(self, child: _Child, seconds: float) -> None:
        """Wait for a child that was asked to end; kill it when its time, or our patience, ends."""
        if child.process is None:
            return
        deadline, asked = time.monotonic() + seconds, self.signals.count
        while child.process.poll() is None and time.monotonic() < deadline:
            if self.signals.count > max(asked, 1):
                break
            processes.reap_orphans(self._pids())
            self.signals.wait(LOOK_SECONDS)
        if child.process.poll() is None:
            log.warning("process_killed", process=child.name, after_seconds=round(seconds))
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.process.pid, signal.SIGKILL)
        child.process.wait()
        if child.pump is not None:
            child.pump.join(timeout=5)
        self._ready_path(child).unlink(missing_ok=True)
        child.process = None

    def _ready(self, child: _Child) -> bool:
        ready = child.process is not None and _names_pid(self._ready_path(child), child.process.pid)
        child.was_ready = child.was_ready or ready
        return ready

    def _ready_path(self, child: _Child) -> Path:
        return self.settings.run_dir / f"{child.name}.ready"

    def _pids(self) -> set[int]:
        return {c.process.pid for c in self.children.values() if c.process is not None}

    def _why(self, child: _Child) -> str:
        said = [line for line in child.last_lines if not line.startswith("{")]
        reason = said[-1] if said else "it says nothing"
        path = self.settings.logs_dir / f"{child.name}.log"
        return f"The {child.name} does not start ({reason}); more in {path}."


def _names_pid(path: Path, pid: int) -> bool:
    try:
        return bool(json.loads(path.read_text(encoding="utf-8"))["pid"] == pid)
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return False  # not there yet, or half written


def _pump(stream: IO[bytes], path: Path, last_lines: deque[str]) -> None:
    """Copy a child's lines to its log, and its log events to ours, until it ends."""
    with stream:
        for line in stream:
            last_lines.append(line.decode(errors="replace").rstrip())
            # A full disk or a closed terminal costs lines; a pipe that nobody empties would stop
            # the child at its next word.
            with contextlib.suppress(OSError):
                _append(path, line)
            if line.startswith(b"{"):
                with contextlib.suppress(OSError, ValueError):
                    sys.stderr.buffer.write(line)
                    sys.stderr.buffer.flush()


def _append(path: Path, line: bytes) -> None:
    with path.open("ab") as file:
        file.write(line)
        full = file.tell() > LOG_BYTES
    if full:
        path.replace(path.with_suffix(".log.1"))
