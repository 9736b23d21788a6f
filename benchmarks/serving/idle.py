"""What does an `inferlake up` cost that nobody asks anything of? Bar: 3 % of one processor in all.

    python benchmarks/serving/idle.py [--seconds 60] [--no-dashboard]

One endpoint with one worker, then silence: the processor time of every process (user and system,
from /proc), as a percentage of one processor, and how often each was woken a second (voluntary
context switches of all its threads). Exit code 1 if the sum misses the bar.
"""

import argparse
import contextlib
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from faults_ground import SUM, House, entity, register

BAR_PERCENT = 3.0
SETTLE_SECONDS = 10
TICKS = os.sysconf("SC_CLK_TCK")


class Spent(NamedTuple):
    """Of one process so far: what it is called, processor seconds, wakings."""

    name: str
    seconds: float
    wakings: int


def spent(pid: int) -> Spent:
    """What a process has used so far."""
    folder = Path(f"/proc/{pid}")
    fields = (folder / "stat").read_text().rpartition(")")[2].split()
    seconds = (int(fields[11]) + int(fields[12])) / TICKS
    wakings = 0
    for task in (folder / "task").iterdir():
        with contextlib.suppress(OSError):
            text = (task / "status").read_text()
            wakings += int(text.partition("\nvoluntary_ctxt_switches:")[2].split()[0])
    return Spent(_name(folder), seconds, wakings)


def _name(folder: Path) -> str:
    words = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
    if "-m" in words[:-1]:
        return words[words.index("-m") + 1]
    return next((word for word in words if word.startswith("inferlake")), words[0][-40:])


def measure(house: House, seconds: float) -> dict[str, tuple[float, float]]:
    """By process: percent of a processor, wakings a second."""
    pids = [each.pid for each in house.tree()] + list(house.worker_pids())
    before = {pid: spent(pid) for pid in pids}
    time.sleep(seconds)
    after = {pid: spent(pid) for pid in pids}
    found = {}
    for pid in pids:
        used = after[pid].seconds - before[pid].seconds
        woken = after[pid].wakings - before[pid].wakings
        found[f"{after[pid].name} ({pid})"] = 100 * used / seconds, woken / seconds
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--no-dashboard", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="idle-") as place:
        registry = register(Path(place))
        with House(Path(place), registry, dashboard=not options.no_dashboard) as house:
            house.create("quiet", entity(SUM))
            time.sleep(SETTLE_SECONDS)
            found = measure(house, options.seconds)
    for name, (percent, woken) in sorted(found.items(), key=lambda each: -each[1][0]):
        print(f"{percent:6.2f} %  {woken:7.1f} wakings/s  {name}")
    total = sum(percent for percent, _ in found.values())
    met = total <= BAR_PERCENT
    print(f"sum {total:.2f} % of one processor (bar {BAR_PERCENT:g}): {'met' if met else 'MISSED'}")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
