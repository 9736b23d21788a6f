"""A parent with one thread that waits at a socket and forks a child for each order.

A connection sends one line of JSON, {"spec": FILE, "env": {...}, "log": PATH, "template": PATH?},
and gets one, {"pid": n, "pid_start": seconds from boot}. The child leads its own session, has
exactly that environment and no open file but its log, and draws other random numbers than its
siblings.
"""

import gc
import json
import os
import random
import select
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serving.worker import process

LINE_SECONDS = 5.0
MOST_LINE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Order:
    """What one child shall be. `template`: where it shall wait for orders itself, if it shall."""

    spec: Path
    log: Path
    environment: dict[str, str]
    template: Path | None


def serve(path: Path, become: Callable[[Order], None]) -> None:
    """Fork until SIGTERM; a child does `become` and ends. The children live on."""
    path.unlink(missing_ok=True)
    os.umask(0o077)
    listener = socket.socket(socket.AF_UNIX)
    # Frozen objects are not touched by a child's collections, so their pages stay shared.
    gc.collect()
    gc.freeze()
    listener.bind(str(path))
    listener.listen(64)
    try:
        _wait_and_fork(listener, become)
    finally:
        path.unlink(missing_ok=True)


def _wait_and_fork(listener: socket.socket, become: Callable[[Order], None]) -> None:
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    stopped: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: stopped.append(number))
    signal.signal(signal.SIGCHLD, lambda *_: None)  # only so that it wakes the loop
    while not stopped:
        ready, _, _ = select.select([listener.fileno(), wake_read], [], [])
        if wake_read in ready:
            os.read(wake_read, 4096)
            _reap()
        if listener.fileno() in ready and not stopped:
            connection, _ = listener.accept()
            with connection:
                _answer(connection, (listener.fileno(), wake_read, wake_write), become)


def _reap() -> None:
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return


def _answer(
    connection: socket.socket, descriptors: tuple[int, ...], become: Callable[[Order], None]
) -> None:
    """Fork what one connection asks for. A broken order is answered with what is wrong."""
    connection.settimeout(LINE_SECONDS)
    try:
        order = _order(json.loads(_line(connection)))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        _reply(connection, {"error": f"{type(error).__name__}: {error}"})
        return
    pid = os.fork()
    if pid == 0:
        inherited = (connection.fileno(), *descriptors)
        process.end(lambda: _begin(order, inherited, become), os._exit)
    _reply(connection, {"pid": pid, "pid_start": _start_seconds(pid)})


def _order(said: Any) -> Order:
    template = said.get("template")
    return Order(
        spec=Path(said["spec"]),
        log=Path(said["log"]),
        environment={str(name): str(value) for name, value in said["env"].items()},
        template=Path(template) if template is not None else None,
    )


def _line(connection: socket.socket) -> bytes:
    received = b""
    while not received.endswith(b"\n"):
        part = connection.recv(65_536)
        if not part or len(received) > MOST_LINE_BYTES:
            raise ValueError("no whole line came")
        received += part
    return received


def _reply(connection: socket.socket, answer: dict[str, Any]) -> None:
    try:
        connection.sendall(json.dumps(answer).encode() + b"\n")
    except OSError:
        return  # who asked is gone; a child that started is found by its socket


def _begin(order: Order, inherited: tuple[int, ...], become: Callable[[Order], None]) -> None:
    os.setsid()
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for descriptor in inherited:
        os.close(descriptor)
    _write_to(order.log)
    os.environ.clear()
    os.environ.update(order.environment)
    process.limit()
    _seed()
    become(order)


def _write_to(log: Path) -> None:
    log.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
    os.close(null)


def _seed() -> None:
    """Forks must not all draw the same numbers."""
    random.seed()
    numpy = sys.modules["numpy"]
    numpy.random.seed(int.from_bytes(os.urandom(4), "little"))


def _start_seconds(pid: int) -> float:
    """Seconds from boot to a process's start, in clock ticks: with the pid its identity."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    ticks = int(fields.rpartition(")")[2].split()[19])
    return ticks / os.sysconf("SC_CLK_TCK")
