"""How much CPU does recording add to a request, against one write() of the same bytes?

    python benchmarks/capture/added_cpu.py [--rounds 14]

A live gateway with one worker and the committer answers 500 requests a second, at random moments,
in three arms: an endpoint that is not recorded; the same where the gateway (patched for this, in
its own process here) makes one bare os.write of as many bytes as a recorded request has in the log;
an endpoint that is recorded. The arms take turns of a second in changing order. Counted: the
processor time of the gateway's process, all threads, kernel included (the process's CPU clock),
from the first request of a turn until 0.4 s after its last, so that sealing and syncing are in it.
Ratio: (recorded - off) / (write - off), means over all rounds, with its 95 % bootstrap interval.
Bar: 4. Beside it, in a loop in one process: one `wal.Log.append` of one row against one write.
Exit code 1 if the bar is missed.
"""

import argparse
import asyncio
import os
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import live
import traffic

from capture import wal
from capture.settings import Settings
from serving import app
from serving.gateway import invoke, server, twin

BAR = 4.0
PER_SECOND = 500
TURN_SECONDS = 1.0
AFTER_SECONDS = 0.4
OFF, WRITE, ON = "off", "write", "on"
DRAWS = 2_000


def gateway() -> None:
    """The gateway's process: one bare write for each request to the endpoint `write`."""
    settings = Settings()
    handle = invoke.DataPlane.handle
    target = live.path(WRITE).encode()
    file = os.open(settings.data_dir / "written", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    block = b""

    def writing(
        plane: invoke.DataPlane, request: twin.Request, reply: Callable[[twin.Reply], None]
    ) -> invoke.Call:
        nonlocal block
        if request.target == target:
            # The recorded endpoint was asked before: as many bytes as its rows have.
            block = block or bytes(plane.log.appended_bytes // plane.log.appended.total())
            os.write(file, block)
        return handle(plane, request, reply)

    invoke.DataPlane.handle = writing  # type: ignore[method-assign]
    server.run(settings, app.build)


def cpu_seconds(pid: int) -> float:
    """Processor time of all threads of a process: its CPU clock, whose id Linux makes of the pid
    (`clock_getcpuclockid`)."""
    return time.clock_gettime(~pid << 3 | 2)


async def turn(running: live.Server, endpoint: str, chance: random.Random) -> float:
    """Microseconds of the gateway's processor time a request."""
    bodies = [
        live.body(chance, f"{chance.getrandbits(64):x}")
        for _ in range(round(PER_SECOND * TURN_SECONDS))
    ]
    async with running.client() as asking:
        await live.load(asking, endpoint, bodies[:50], PER_SECOND, chance)
        await asyncio.sleep(AFTER_SECONDS)
        before = cpu_seconds(running.gateway)
        await live.load(asking, endpoint, bodies, PER_SECOND, chance)
        await asyncio.sleep(AFTER_SECONDS)
        return (cpu_seconds(running.gateway) - before) / len(bodies) * 1e6


def measure(folder: Path, rounds: int) -> list[dict[str, float]]:
    """Microseconds a request by arm, of each round."""
    arms = {ON: True, OFF: False, WRITE: False}
    found: list[dict[str, float]] = []
    chance = random.Random(0)
    with live.running(folder, arms, gateway=(__file__, "gateway")) as running:
        for number in range(-1, rounds):  # one round to warm up
            order = [ON, OFF, WRITE] if number < 0 else chance.sample([ON, OFF, WRITE], 3)
            taken = {arm: asyncio.run(turn(running, arm, chance)) for arm in order}
            if number >= 0:
                found.append(taken)
                shown = ", ".join(f"{arm} {taken[arm]:.1f}" for arm in (OFF, WRITE, ON))
                print(f"round {number + 1}: {shown} us a request", flush=True)
    return found


def ratio(rounds: list[dict[str, float]]) -> float:
    """What recording adds to what a write adds; infinite where the write is lost in noise."""
    off, write, on = (statistics.fmean(one[arm] for one in rounds) for arm in (OFF, WRITE, ON))
    return (on - off) / (write - off) if write > off else float("inf")


def interval(rounds: list[dict[str, float]]) -> tuple[float, float]:
    """95 % bootstrap interval of the ratio, over rounds."""
    chance = random.Random(0)
    drawn = sorted(ratio(chance.choices(rounds, k=len(rounds))) for _ in range(DRAWS))
    return drawn[DRAWS // 40], drawn[-DRAWS // 40]


def in_a_loop(folder: Path, count: int = 2_000, repeats: int = 7) -> tuple[float, float]:
    """Microseconds of one append of one row, and of one write of the same bytes."""
    settings = Settings(data_dir=folder)
    log = wal.Log(settings.wal_dir, settings)
    groups = [[row] for row in traffic.payloads(count)]
    log.append(traffic.TABLE, "payload", groups[0])
    block = bytes(log.appended_bytes)
    file = os.open(folder / "written", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    appends, writes = [], []
    for _ in range(repeats):
        start = time.perf_counter()
        for group in groups:
            log.append(traffic.TABLE, "payload", group)
        between = time.perf_counter()
        for _ in groups:
            os.write(file, block)
        appends.append(between - start)
        writes.append(time.perf_counter() - between)
    os.close(file)
    log.close()
    return min(appends) / count * 1e6, min(writes) / count * 1e6


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=14)
    parser.add_argument("job", nargs="?", choices=("gateway",))
    given = parser.parse_args()
    if given.job == "gateway":
        gateway()
        return 0
    folder = Path(tempfile.mkdtemp(prefix="inferlake-added-"))
    try:
        append, write = in_a_loop(folder)
        rounds = measure(folder, given.rounds)
    finally:
        shutil.rmtree(folder)
    print(f"in a loop: append {append:.2f} us, write {write:.2f} us, ratio {append / write:.2f}")
    found, (low, high) = ratio(rounds), interval(rounds)
    print(
        f"added CPU: ratio {found:.2f} [{low:.2f} {high:.2f}], bar {BAR:g}: "
        f"{'met' if found <= BAR else 'MISSED'}"
    )
    return 0 if found <= BAR else 1


if __name__ == "__main__":
    sys.exit(main())
