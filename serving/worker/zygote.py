"""`python -m serving.worker.zygote --socket PATH`: imports once, then forks replicas.

A fresh process needs seconds for its imports, a fork of one that did them 0.3 s. The parent has one
thread, never loads a model, and never imports polars or deltalake (mlflow would, see
process.without): a parent that ran polars hangs its children, deltalake makes them panic.

A connection sends one line of JSON, {"spec": FILE, "env": {...}, "log": PATH}, and gets one,
{"pid": n, "pid_start": seconds from boot}. The child leads its own session, has exactly that
environment, writes to that log, and goes the way of `python -m serving.worker`.
"""

import argparse
import gc
import importlib
import json
import os
import random
import select
import signal
import socket
import sys
import threading
from pathlib import Path
from typing import Any

from serving.worker import process

PRELOADED = (
    "mlflow.pyfunc",
    "mlflow.pyfunc.scoring_server",
    "mlflow.sklearn",
    "sklearn.compose",
    "sklearn.ensemble",
    "sklearn.linear_model",
    "sklearn.pipeline",
    "sklearn.preprocessing",
    "pyarrow",
    "serving.features.online",
    "serving.worker.loop",
)
LINE_SECONDS = 5.0
MOST_LINE_BYTES = 1 << 20


def main() -> None:
    """Import, listen, fork, reap; SIGTERM ends it, its children live on."""
    parser = argparse.ArgumentParser(prog="python -m serving.worker.zygote")
    parser.add_argument("--socket", type=Path, required=True, help="Where to listen.")
    path = parser.parse_args().socket
    process.limit()
    with process.without(*process.HIDDEN):
        for name in PRELOADED:
            importlib.import_module(name)
    if threading.active_count() > 1:
        names = ", ".join(thread.name for thread in threading.enumerate())
        print(f"threads before a fork: {names}", file=sys.stderr, flush=True)
    path.unlink(missing_ok=True)
    os.umask(0o077)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(64)
    # Frozen objects are not touched by a child's collections, so their pages stay shared.
    gc.collect()
    gc.freeze()
    try:
        _serve(listener)
    finally:
        path.unlink(missing_ok=True)


def _serve(listener: socket.socket) -> None:
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
                _answer(connection, (listener.fileno(), wake_read, wake_write))


def _reap() -> None:
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return


def _answer(connection: socket.socket, descriptors: tuple[int, ...]) -> None:
    """Fork what one connection asks for. A broken order is answered with what is wrong."""
    connection.settimeout(LINE_SECONDS)
    try:
        order = json.loads(_line(connection))
        spec, log = Path(order["spec"]), Path(order["log"])
        environment = {str(name): str(value) for name, value in order["env"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        _reply(connection, {"error": f"{type(error).__name__}: {error}"})
        return
    pid = os.fork()
    if pid == 0:
        process.end(
            lambda: _be_worker(spec, log, environment, (connection.fileno(), *descriptors)),
            os._exit,
        )
    _reply(connection, {"pid": pid, "pid_start": _start_seconds(pid)})


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


def _be_worker(
    spec: Path, log: Path, environment: dict[str, str], inherited: tuple[int, ...]
) -> None:
    os.setsid()
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for descriptor in inherited:
        os.close(descriptor)
    _write_to(log)
    os.environ.clear()
    os.environ.update(environment)
    process.limit()
    _seed()
    loop = sys.modules["serving.worker.loop"]
    loop.serve(loop.read_spec(spec))


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


if __name__ == "__main__":
    main()
