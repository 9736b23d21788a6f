"""Replicas as processes of this machine: start, adopt, look, stop, read the end of the log.

- Every replica leads its own process group and session, has an environment built from an allow-list
  and no open file but its socket and its log. It survives the controller (no death signal): the
  next one adopts it by pid and start time, and asks it who it is before any request goes there.
- A zygote is a process of the server's own environment that has done the imports and forks on
  demand: 0.3 s to a replica instead of seconds. It dies with the controller, its children do not.
- Stopping never blocks: the group gets SIGTERM, and SIGKILL when its time is over (`expire`).
"""

import asyncio
import contextlib
import json
import os
import resource
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from capture import logline
from capture.settings import Settings
from serving import processes

log = logline.logger(__name__)

KILL_GRACE_SECONDS = 1.0
ZYGOTE_PATIENCE_SECONDS = 120.0
FORK_SECONDS = 30.0
LOG_BYTES, LOG_KEPT_BYTES, LOGS_PER_ENTITY = 8 << 20, 1 << 20, 20
TAIL_LINES, TAIL_CHARACTERS = 15, 1500

INHERITED = ("PATH", "HOME", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR", "LD_LIBRARY_PATH")
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
# What an interpreter or a numeric library reads once, at its start: too late in a fork.
READ_AT_START = (*THREADS, "LD_", "PYTHON", "MALLOC_", "GLIBC_", "KMP_", "GOTO_", "BLIS_")


@dataclass(frozen=True, slots=True)
class Order:
    """What to start. `python`: interpreter of the model's environment; `spec`: content of the
    worker's spec file; `variables`: the entity's own, secrets resolved."""

    replica_id: str
    python: str
    spec: Mapping[str, Any]
    variables: Mapping[str, str]
    log: Path
    fresh: bool


class StartFailed(Exception):
    """The process could not be started at all; the text says why."""


def worker_environment(variables: Mapping[str, str], path: Path | None) -> dict[str, str]:
    """Environment of a replica. `path`: folder that holds our packages, where they are not
    installed. The entity's own variables come last, but cannot take ours away."""
    kept = {name: os.environ[name] for name in INHERITED if name in os.environ}
    # One thread each: a replica is one unit of processor, and two pools on two busy cores were
    # twelve times slower than one (demo.md).
    threads = dict.fromkeys(THREADS, "1")
    quiet = {"DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
    ours = {} if path is None else {"PYTHONPATH": str(path)}
    return {**kept, **threads, **quiet, **variables, **ours}


class Local:
    """The back end of one controller. All calls in the controller's event loop."""

    def __init__(self, settings: Settings) -> None:
        self.run_dir = settings.run_dir
        self.logs_dir = settings.logs_dir
        self.packages = _packages_folder(settings)
        self._own: dict[int, subprocess.Popen[bytes]] = {}
        self._deadlines: dict[processes.Identity, float] = {}
        self._zygote: _Zygote | None = None
        for stale in self.run_dir.glob("z-*.sock"):
            stale.unlink()  # of a controller that was killed, and its zygote with it
        # A core dump of a model's process would hold its secrets and rows.
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        os.umask(0o077)

    def warm(self) -> None:
        """Have a zygote of the server's own environment on its way; safe to repeat."""
        self._reap()
        if self._zygote is None or self._zygote.process.poll() is not None:
            self._zygote = _Zygote(self.run_dir, self.logs_dir)

    async def start(self, order: Order) -> processes.Identity:
        """Start a replica. Raises StartFailed."""
        order.log.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        _drop_old_logs(order.log.parent)
        spec = self.run_dir / f"w-{order.replica_id}.json"
        _write_private(spec, json.dumps(order.spec))
        forkable = order.python == sys.executable and not order.fresh
        if forkable and not any(name.startswith(READ_AT_START) for name in order.variables):
            forked = await self._fork(order, spec)
            if forked is not None:
                return forked
        return self._spawn(order, spec)

    async def _fork(self, order: Order, spec: Path) -> processes.Identity | None:
        self.warm()
        assert self._zygote is not None
        environment = worker_environment(order.variables, None)
        pid = await self._zygote.fork(spec, environment, order.log)
        return None if pid is None else processes.identity(pid)

    def _spawn(self, order: Order, spec: Path) -> processes.Identity:
        ours = order.python == sys.executable
        environment = worker_environment(order.variables, None if ours else self.packages)
        with order.log.open("ab") as out:
            try:
                child = subprocess.Popen(
                    [order.python, "-m", "serving.worker", "--spec", str(spec)],
                    env=environment,
                    cwd=self.run_dir,
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=out,
                    start_new_session=True,
                )
            except OSError as error:
                raise StartFailed(f"The model's process did not start: {error.strerror}.") from None
        self._own[child.pid] = child
        known = processes.identity(child.pid)
        if known is None:
            raise StartFailed(tail(order.log) or "The model's process ended at its start.")
        return known

    def adopt(self, socket_path: str) -> processes.Identity | None:
        """Who listens on a replica's socket: for a row whose start was cut off by a crash."""
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(1)
            try:
                probe.connect(socket_path)
                raw = probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
            except OSError:
                return None
        return processes.identity(struct.unpack("3i", raw)[0])

    def stop(self, replica: processes.Identity, grace_seconds: float, now: float) -> None:
        """Ask a replica to end; its group is killed `grace_seconds` later. Repeating it may bring
        the kill forward, never put it off."""
        deadline = now + grace_seconds
        known = self._deadlines.get(replica)
        if known is None:
            processes.signal_group(replica, signal.SIGTERM)
        if known is None or deadline < known:
            self._deadlines[replica] = deadline

    def expire(self, now: float) -> None:
        """Kill what did not end in time; forget what did."""
        self._reap()
        for replica, deadline in list(self._deadlines.items()):
            if not processes.alive(replica):
                self.forget(replica)
            elif now >= deadline:
                processes.signal_group(replica, signal.SIGKILL)

    def forget(self, replica: processes.Identity) -> None:
        """The replica ended: what it left in its group ends too."""
        self._deadlines.pop(replica, None)
        self._reap()
        processes.signal_group(replica, signal.SIGKILL)

    def close(self) -> None:
        """End the zygote; replicas go on."""
        self._reap()
        for child in self._own.values():
            child.returncode = (
                0  # it is left to whoever adopts it, which Popen would complain about
            )
        self._own.clear()
        if self._zygote is not None:
            self._zygote.close()
            self._zygote = None

    def remove_files(self, replica_id: str) -> None:
        """A replica's socket and spec file."""
        for suffix in ("sock", "json"):
            (self.run_dir / f"w-{replica_id}.{suffix}").unlink(missing_ok=True)

    def _reap(self) -> None:
        for pid, child in list(self._own.items()):
            if child.poll() is not None:
                del self._own[pid]


class _Zygote:
    """The parent of forks. Its socket answers when its imports are done."""

    def __init__(self, run_dir: Path, logs_dir: Path) -> None:
        self.socket_path = run_dir / f"z-{os.urandom(4).hex()}.sock"
        command = [sys.executable, "-m", "serving.worker.zygote", "--socket", str(self.socket_path)]
        logs_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        with (logs_dir / "zygote.log").open("ab") as out:
            self.process = subprocess.Popen(
                processes.tied(command),
                env=worker_environment({}, None),
                cwd=run_dir,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        self._patience = ZYGOTE_PATIENCE_SECONDS

    async def fork(self, spec: Path, environment: dict[str, str], log_path: Path) -> int | None:
        """Pid of a new replica; None: this zygote is of no use, start it plainly."""
        line = {"spec": str(spec), "env": environment, "log": str(log_path)}
        try:
            async with asyncio.timeout(self._patience):
                reader, writer = await self._connected()
            async with asyncio.timeout(FORK_SECONDS):
                writer.write(json.dumps(line).encode() + b"\n")
                answer = json.loads(await reader.readline())
                writer.close()
                return int(answer["pid"])
        except (OSError, TimeoutError, ValueError, KeyError) as error:
            log.warning("zygote_failed", reason=f"{type(error).__name__}: {error}")
            # Without patience for a second one: whoever asks next must not wait as long again.
            self._patience = 1
            return None

    async def _connected(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        while True:
            try:
                return await asyncio.open_unix_connection(str(self.socket_path))
            except (FileNotFoundError, ConnectionRefusedError):
                if self.process.poll() is not None:
                    raise
                await asyncio.sleep(0.05)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.socket_path.unlink(missing_ok=True)


def log_path(settings: Settings, endpoint: str, entity: str, replica_id: str) -> Path:
    """Where a replica's output goes."""
    return settings.logs_dir / endpoint / entity / f"replica-{replica_id}.log"


def tail(path: Path) -> str:
    """What a model printed last, for a message: at most 15 lines and 1,500 characters. Our own
    log events are left out: they say nothing of why it ended."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 65_536))
            text = file.read().decode(errors="replace")
    except FileNotFoundError:
        return ""
    printed = (line.rstrip() for line in text.splitlines() if not line.startswith('{"time": '))
    lines = [line for line in printed if line]
    return "\n".join(lines[-TAIL_LINES:])[-TAIL_CHARACTERS:]


def trim(path: Path) -> None:
    """Keep a log's end once it has grown over its size. Writers append, so they go on at the new
    end; what is written in between is lost."""
    with contextlib.suppress(FileNotFoundError):
        if path.stat().st_size <= LOG_BYTES:
            return
        with path.open("r+b") as file:
            file.seek(-LOG_KEPT_BYTES, os.SEEK_END)
            kept = file.read()
            file.truncate(0)
        with path.open("ab") as file:
            file.write(kept.partition(b"\n")[2])


def _drop_old_logs(folder: Path) -> None:
    def written(path: Path) -> float:
        return path.stat().st_mtime

    for path in sorted(folder.glob("replica-*.log"), key=written)[: -LOGS_PER_ENTITY + 1]:
        path.unlink(missing_ok=True)


def _write_private(path: Path, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)


def _packages_folder(settings: Settings) -> Path:
    """A folder with links to the two packages that a worker needs: on the path of a model's own
    environment it shows these, and not all else that is installed beside them."""
    import capture
    import serving

    folder = settings.environments_dir / "path"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    for package in (capture, serving):
        _link(folder / package.__name__, Path(_only(package.__path__)))
    return folder


def _only(paths: Iterable[str]) -> str:
    return next(iter(paths))


def _link(link: Path, target: Path) -> None:
    if link.is_symlink() and link.readlink() == target:
        return
    link.unlink(missing_ok=True)
    link.symlink_to(target)
