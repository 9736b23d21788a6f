"""How much memory does an idle server take, and how much each further replica?

    python benchmarks/serving/memory.py

Starts `inferlake up` with the dashboard, waits until nothing moves, and adds up the proportional
set size (PSS: shared pages divided by who shares them) of every process below it. Then deploys a
logistic regression on 30 columns with two replicas, has both answer, and reads what the second one
shares with nobody. Bars: 900 MB in all, idle; 25 MB for the second replica; exit code 1 if one is
missed. 1 MB = 1,000,000 bytes.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import from_zero

from capture.settings import Settings
from serving import processes, supervisor

BAR_IDLE_MB, BAR_REPLICA_MB = 900.0, 25.0
MB = 1_000_000
SETTLE_SECONDS = 20.0


def tree(root: int) -> dict[int, str]:
    """Pid and command of a process and all below it."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                fields = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            parents[int(entry.name)] = int(fields[1])
    found = {root}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return {pid: command(pid) for pid in sorted(found)}


def command(pid: int) -> str:
    """A process's command line, without the interpreter."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_text(errors="replace").split("\0")
    except (FileNotFoundError, ProcessLookupError):
        return "ended"
    return " ".join(word for word in words[1:] if word)[:60]


def rollup(pid: int) -> dict[str, int]:
    """Bytes by name of /proc/PID/smaps_rollup; empty if it is gone."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    except (FileNotFoundError, ProcessLookupError):
        return {}
    return {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines}


def resting(root: int) -> dict[int, str]:
    """The processes, once they have used next to no processor time for some seconds."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        before = {pid: ticks(pid) for pid in tree(root)}
        time.sleep(SETTLE_SECONDS / 4)
        after = {pid: ticks(pid) for pid in tree(root)}
        if before.keys() == after.keys() and sum(after.values()) - sum(before.values()) < 100:
            break
    return tree(root)


def ticks(pid: int) -> int:
    """Processor time so far, in clock ticks."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return int(fields[11]) + int(fields[12])


def second_replica(server: from_zero.Server, root: int) -> tuple[float, float]:
    """Private MB of the second replica of an entity when it is ready, and after 2,000 answers."""
    entity = {
        "name": "lr",
        "entity_name": "lr",
        "entity_version": "1",
        "min_provisioned_concurrency": 8,
        "max_provisioned_concurrency": 8,
    }
    body = {"name": "two", "config": {"served_entities": [entity]}}
    server.ask("POST", "/api/2.0/serving-endpoints", body)
    from_zero.wait_for(lambda: server.event("replica_ready") >= 2)
    sockets = sorted(server.settings.run_dir.glob("w-*.sock"), key=lambda p: p.stat().st_mtime)
    newest = int(_owner(sockets[-1]))
    ready = processes.private_bytes(newest) / MB
    for _ in range(2000):
        server.ask("POST", "/serving-endpoints/two/invocations", from_zero.ROW)
    return ready, processes.private_bytes(newest) / MB


def _owner(path: Path) -> int:
    """Pid of the process that listens on a socket."""
    import socket
    import struct

    with socket.socket(socket.AF_UNIX) as probe:
        probe.connect(str(path))
        raw = probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    return int(struct.unpack("3i", raw)[0])


def main() -> int:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    with tempfile.TemporaryDirectory(prefix="mem-") as place:
        settings = Settings(data_dir=Path(place), port=0, dashboard_port=0)
        from_zero.register(settings)
        with supervisor.Running(settings) as running:
            assert running.process is not None
            server = from_zero.Server(running)
            time.sleep(SETTLE_SECONDS)
            found = resting(running.process.pid)
            total = 0.0
            for pid, name in found.items():
                used = rollup(pid)
                pss = used.get("Pss", 0) / MB
                total += pss
                print(f"{pss:7.1f} MB PSS {used.get('Rss', 0) / MB:7.1f} MB RSS  {name}")
            print(f"{total:7.1f} MB PSS in all, idle (bar {BAR_IDLE_MB:g})", flush=True)
            ready, later = second_replica(server, running.process.pid)
    print(f"{ready:7.1f} MB private of the second replica, {later:.1f} after 2,000 answers "
          f"(bar {BAR_REPLICA_MB:g})")  # fmt: skip
    missed = total > BAR_IDLE_MB or max(ready, later) > BAR_REPLICA_MB
    print("MISSED" if missed else "bars met")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
