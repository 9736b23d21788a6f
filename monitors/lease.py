"""Only one process does the monitors' work: a lease in SQL, watched on the own monotonic clock.

A holder that stands still for `LIFE_SECONDS` is replaced. One that ran on this machine and is
certainly gone (its process id is free, or belongs to a younger process) is replaced at once.
"""

import os
import threading
import time
from pathlib import Path

import psutil
import sqlalchemy as sa

from capture import database, logline
from monitors import state

log = logline.logger(__name__)

NAME = "monitors"
LIFE_SECONDS = 10.0
RENEW_SECONDS = 1.0
LOOK_SECONDS = 0.1


def holder() -> str:
    """This process, as others on this machine can check it: boot, process name space, id, start."""
    return "/".join((_world(), str(os.getpid()), f"{psutil.Process().create_time():.2f}"))


def _world() -> str:
    """The same for two processes if and only if a process id means the same to both."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    space = Path("/proc/self/ns/pid")
    if boot.exists() and space.exists():
        return f"{boot.read_text().strip()} {space.readlink()}".replace("/", "-")
    return os.uname().nodename.replace("/", "-")


def is_gone(text: str) -> bool:
    """Is this holder a process of this machine that certainly ended?"""
    parts = text.split("/")
    if len(parts) != 3 or parts[0] != _world():
        return False
    try:
        process = psutil.Process(int(parts[1]))
        return f"{process.create_time():.2f}" != parts[2] or (
            process.status() == psutil.STATUS_ZOMBIE
        )
    except (psutil.NoSuchProcess, ValueError):
        return True


class Lease:
    """The lease as this process holds it, or waits for it."""

    def __init__(self, engine: sa.Engine) -> None:
        self.engine = engine
        self.me = holder()
        self.fence: int | None = None

    def acquire(self, stop: threading.Event) -> bool:
        """Wait until the lease is ours; False: `stop` came first."""
        seen, since = -2, time.monotonic()
        while not stop.is_set():
            with database.reading(self.engine) as connection:
                renewals = database.lease_renewals(connection, NAME)
                other = state.lease_holder(connection, NAME)
            if renewals != seen:
                seen, since = renewals, time.monotonic()
            still = time.monotonic() - since >= LIFE_SECONDS
            if renewals < 0 or still or (other is not None and is_gone(other)):
                with database.transaction(self.engine) as connection:
                    self.fence = database.seize_lease(connection, NAME, self.me, renewals)
                if self.fence is not None:
                    log.info("lease_taken", fence=self.fence)
                    return True
            stop.wait(LOOK_SECONDS)
        return False

    def renew(self) -> bool:
        """Say that this process lives; False: it was replaced and must not write any more."""
        if self.fence is None:
            return False
        with database.transaction(self.engine) as connection:
            return database.renew_lease(connection, NAME, self.fence)

    def release(self) -> None:
        """Give it back at a clean end, so that the next one need not wait."""
        if self.fence is not None:
            with database.transaction(self.engine) as connection:
                database.release_lease(connection, NAME, self.fence)
            self.fence = None
