"""Processes by their identity (pid and start time), their groups, and what ties them to a parent.

Linux: `/proc` and `prctl`. A pid alone is no identity, since the kernel gives it to the next one.
"""

import ctypes
import os
import signal
import sys
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple

_PR_SET_CHILD_SUBREAPER = 36
_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_ENDED = "ZXx"

# Executed by a fresh interpreter between fork and the real program, instead of a `preexec_fn`,
# which may deadlock in a process with threads. The parent may die before prctl: hence the check.
_TIED = """\
import ctypes, os, signal, sys
ctypes.CDLL(None, use_errno=True).prctl(1, int(sys.argv[2]))
if os.getppid() != int(sys.argv[1]):
    os.kill(os.getpid(), signal.SIGKILL)
os.execv(sys.argv[3], sys.argv[3:])
"""


class Identity(NamedTuple):
    """A process. `start`: seconds from boot to its start, in steps of a clock tick."""

    pid: int
    start: float


class Usage(NamedTuple):
    """A process group: resident bytes and processor seconds of all its processes together, and how
    many there are. Pages that several of them share count in each."""

    rss_bytes: int
    cpu_seconds: float
    members: int = 1


NO_USAGE = Usage(0, 0.0, 0)


def identity(pid: int) -> Identity | None:
    """Who has this pid now; None: nobody, or a process that ended and was not waited for."""
    fields = _stat(pid)
    if fields is None or fields[0] in _ENDED:
        return None
    return Identity(pid, int(fields[19]) / _TICKS_PER_SECOND)


def alive(process: Identity) -> bool:
    """This very process still runs."""
    return identity(process.pid) == process


def age_seconds(process: Identity) -> float:
    """Time since a process started, by the monotonic clock that counts from boot."""
    with Path("/proc/uptime").open(encoding="ascii") as file:
        return max(0.0, float(file.read().split()[0]) - process.start)


def usage(groups: Collection[int]) -> dict[int, Usage]:
    """Memory and processor time by process group, of these groups."""
    found: dict[int, Usage] = {}
    for pid in _pids():
        fields = _stat(pid)
        if fields is None:
            continue
        group = int(fields[2])
        if group in groups:
            before = found.get(group, NO_USAGE)
            rss = before.rss_bytes + int(fields[21]) * _PAGE_BYTES
            ticks = int(fields[11]) + int(fields[12])
            cpu_seconds = before.cpu_seconds + ticks / _TICKS_PER_SECOND
            found[group] = Usage(rss, cpu_seconds, before.members + 1)
    return found


def private_bytes(pid: int) -> int:
    """Memory that a process shares with nobody; 0 if it is gone."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
    except (FileNotFoundError, ProcessLookupError):
        return 0
    fields = (line.split() for line in text.splitlines())
    return sum(int(each[1]) * 1024 for each in fields if each[0].startswith("Private_"))


def available_share() -> float:
    """The part of the machine's memory that could be given out without swapping."""
    text = Path("/proc/meminfo").read_text(encoding="ascii")
    said = {line.partition(":")[0]: int(line.split()[1]) for line in text.splitlines()}
    return said["MemAvailable"] / said["MemTotal"]


def shared_out_bytes(group: int) -> int:
    """Memory of a process group in which each page counts once, however many of its processes share
    it. Takes a millisecond or more for each process."""
    total = 0
    for member in members(group):
        try:
            text = Path(f"/proc/{member.pid}/smaps_rollup").read_text(encoding="ascii")
        except (FileNotFoundError, ProcessLookupError):
            continue
        total += int(text.partition("\nPss:")[2].split()[0]) * 1024
    return total


def rss_bytes(pid: int) -> int:
    """Resident bytes of one process; 0: it is gone."""
    try:
        with open(f"/proc/{pid}/statm", encoding="ascii") as file:  # noqa: PTH123
            return int(file.read().split()[1]) * _PAGE_BYTES
    except (FileNotFoundError, ProcessLookupError):
        return 0


def members(group: int) -> list[Identity]:
    """Living processes of a group."""
    living = []
    for pid in _pids():
        fields = _stat(pid)
        if fields is not None and int(fields[2]) == group and fields[0] not in _ENDED:
            living.append(Identity(pid, int(fields[19]) / _TICKS_PER_SECOND))
    return living


def signal_group(leader: Identity, number: signal.Signals) -> None:
    """Signal a leader's whole group, unless its pid has become a stranger's."""
    known = identity(leader.pid)
    if known is not None and known != leader:
        return
    try:
        os.killpg(leader.pid, number)
    except ProcessLookupError:
        return


def tied(command: list[str], death_signal: signal.Signals = signal.SIGKILL) -> list[str]:
    """The command of a child that gets this signal when *the thread that starts it* ends."""
    own = [str(os.getpid()), str(int(death_signal))]
    return [sys.executable, "-I", "-S", "-c", _TIED, *own, *command]


def become_subreaper() -> None:
    """Orphans among this process's descendants become its children, not those of init."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def reap_orphans(own: Collection[int]) -> None:
    """Wait for ended children that nobody else waits for; `own`: pids that somebody does."""
    for pid in children():
        if pid not in own:
            try:
                os.waitpid(pid, os.WNOHANG)
            except ChildProcessError:
                continue


def children() -> list[int]:
    """Pids of this process's children, ended ones included."""
    own = os.getpid()
    stats = ((pid, _stat(pid)) for pid in _pids())
    return [pid for pid, fields in stats if fields is not None and int(fields[1]) == own]


def _pids() -> Iterator[int]:
    for name in os.listdir("/proc"):  # noqa: PTH208 - once a second over every process: 3x cheaper
        if name.isdecimal():
            yield int(name)


def _stat(pid: int) -> list[str] | None:
    """Fields of /proc/PID/stat from the third (state) on: the second may hold spaces."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:  # noqa: PTH123
            return file.read().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
