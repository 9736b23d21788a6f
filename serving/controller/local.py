"""Replicas as processes of this machine: start, adopt, look, stop.

- Every replica leads its own process group and session, has an environment built from an allow-list
  and no open file but its socket and its log. It survives the controller (no death signal): the
  next one adopts it by pid and start time, and asks it who it is before any request goes there.
- Mostly it is a fork of its entity's template or of its environment's zygote, else a fresh process.
- Stopping never blocks: the group gets SIGTERM, and SIGKILL when its time is over (`expire`).
"""

import os
import resource
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from capture import errors
from capture.settings import Settings
from serving import logs, processes
from serving.controller import orders, templates, zygotes


class StartFailed(Exception):
    """The process could not be started at all; the text says why."""


class Local:
    """The back end of one controller. All calls in the controller's event loop."""

    def __init__(self, settings: Settings) -> None:
        self.run_dir = settings.run_dir
        self._own: dict[int, subprocess.Popen[bytes]] = {}
        self._deadlines: dict[processes.Identity, float] = {}
        self.zygotes = zygotes.Zygotes(self.run_dir, settings.logs_dir, _packages_folder(settings))
        most = settings.template_memory_bytes
        self.templates = templates.Templates(self.run_dir, self.zygotes, most)
        # A core dump of a model's process would hold its secrets and rows.
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        os.umask(0o077)

    def warm(self) -> None:
        """Have a zygote of the server's own environment on its way; safe to repeat."""
        self._reap()
        self.zygotes.of(sys.executable)

    async def wake(self, order: orders.Order) -> processes.Identity | None:
        """Start a replica as a fork of its entity's template; None: there is none for it."""
        if not order.forkable:
            return None
        pid = await self.templates.fork(order, self._environment(order), self._prepared(order))
        return None if pid is None else processes.identity(pid)

    async def start(self, order: orders.Order) -> processes.Identity:
        """Start a replica, as a fork of a zygote if that may be. Raises StartFailed."""
        try:
            await order.check_model()
        except errors.Conflict as error:
            raise StartFailed(str(error)) from None
        spec = self._prepared(order)
        if order.forkable:
            line = {"spec": str(spec), "env": self._environment(order), "log": str(order.log)}
            pid = await self.zygotes.of(order.python).fork(line)
            forked = None if pid is None else processes.identity(pid)
            if forked is not None:
                return forked
        return self._spawn(order, spec)

    def _prepared(self, order: orders.Order) -> Path:
        """The order's spec file; makes room for its log."""
        order.log.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        logs.drop_old(order.log.parent)
        return orders.write_spec(self.run_dir / f"w-{order.replica_id}.json", order.spec)

    def _environment(self, order: orders.Order) -> dict[str, str]:
        path = self.zygotes.path(order.python)
        return orders.environment(order.variables, path, order.gpus)

    def _spawn(self, order: orders.Order, spec: Path) -> processes.Identity:
        with order.log.open("ab") as out:
            try:
                child = subprocess.Popen(
                    [order.python, "-m", "serving.worker", "--spec", str(spec)],
                    env=self._environment(order),
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
            raise StartFailed(logs.tail(order.log) or "The model's process ended at its start.")
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
        """End zygotes and templates; replicas go on."""
        self._reap()
        for child in self._own.values():
            child.returncode = (
                0  # it is left to whoever adopts it, which Popen would complain about
            )
        self._own.clear()
        self.templates.close()
        self.zygotes.close()

    def remove_files(self, replica_id: str) -> None:
        """A replica's socket and spec file."""
        for suffix in ("sock", "json"):
            (self.run_dir / f"w-{replica_id}.{suffix}").unlink(missing_ok=True)

    def _reap(self) -> None:
        for pid, child in list(self._own.items()):
            if child.poll() is not None:
                del self._own[pid]


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
