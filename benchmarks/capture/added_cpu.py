"""How much CPU does recording add to a request, against one write() of the same bytes?

    python benchmarks/capture/added_cpu.py [--seconds 40]

A live gateway with one worker and the committer answers 500 requests a second, at random moments,
to an endpoint that is recorded. All that its process does for the record is timed where it is
done, by the processor time of its thread: `_record` before the replies of a turn of its loop (rows,
block, write), the log's `tick`, and all of the log's thread that syncs; not the one comparison by
which a request sees that the log is not full. At random a third of the turns time `_record`, a
third bare os.writes of as many bytes, one for each request, just before it, and a third nothing in
that place: what timing by itself costs is taken off the others.
So each is met as cold as the others, and in the same seconds, and the clock of a thread stands
still while others have the core: a busy machine hardly changes their ratio.

Ratio: all of recording / all writes, over the run, with the range of its quarters. Bar: 4.
Exit code 1 if it is missed.
"""

import argparse
import asyncio
import itertools
import json
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import live

from capture import wal
from capture.settings import Settings
from serving import app
from serving.gateway import invoke, server

BAR = 4.0
PER_SECOND = 500
WARM_SECONDS = 4
ENDPOINT = "on"
TOLD_EVERY = 250  # requests
ARMS = ("_record", "write", "nothing")
PARTS = ("_record", "tick", "sync")


class Clock:
    """Processor time of the calling thread in what is timed: nanoseconds and calls, by name."""

    def __init__(self) -> None:
        self.spent: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()
        self.requests: Counter[str] = Counter()  # by arm

    def timing(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """The same call, timed."""

        def timed(*arguments: Any) -> Any:
            start = time.thread_time_ns()
            try:
                return call(*arguments)
            finally:
                self.spent[name] += time.thread_time_ns() - start
                self.calls[name] += 1

        return timed

    def line(self, plane: invoke.DataPlane, seen: int) -> str:
        """All of it so far, as JSON."""
        syncer = plane.log._syncer
        assert syncer is not None and syncer.ident is not None
        self.spent["sync"] = time.clock_gettime_ns(time.pthread_getcpuclockid(syncer.ident))
        self.calls["sync"] = 0
        requests = {**self.requests, **dict.fromkeys(PARTS[1:], seen)}
        return json.dumps({"spent": self.spent, "calls": self.calls, "requests": requests})


def gateway() -> None:
    """The gateway's process: times what it does for the record, and tells it line by line."""
    settings = Settings()
    clock = Clock()
    written = os.open(settings.data_dir / "written", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    told = (settings.data_dir / "spent.jsonl").open("w", buffering=1)
    record = invoke.DataPlane._record
    timed_record = clock.timing("_record", record)
    nothing = clock.timing("nothing", len)
    chance = random.Random(0)
    block = b""
    seen = 0

    def write(finished: list[invoke.Call]) -> None:
        for _ in finished:
            os.write(written, block)

    timed_write = clock.timing("write", write)

    def recording(plane: invoke.DataPlane, finished: list[invoke.Call]) -> None:
        nonlocal block, seen
        arm = chance.choice(ARMS)
        clock.requests[arm] += len(finished)
        if arm == "_record":
            timed_record(plane, finished)
        elif arm == "write":
            timed_write(finished)
            record(plane, finished)
        else:
            nothing(finished)
            record(plane, finished)
        seen += len(finished)
        if seen % TOLD_EVERY < len(finished):
            block = bytes(plane.log.appended_bytes // plane.log.appended.total())
            told.write(clock.line(plane, seen) + "\n")

    setattr(wal.Log, "tick", clock.timing("tick", wal.Log.tick))  # noqa: B010  as below
    setattr(invoke.DataPlane, "_record", recording)  # noqa: B010  whatever its parameters are called
    server.run(settings, app.build)


async def ask(running: live.Server, seconds: float) -> None:
    """Requests at random moments for so long."""
    chance = random.Random(0)
    bodies = [
        live.body(chance, f"{chance.getrandbits(64):x}") for _ in range(round(PER_SECOND * seconds))
    ]
    async with running.client() as asking:
        await live.load(asking, ENDPOINT, bodies, PER_SECOND, chance)


def measure(folder: Path, seconds: float) -> list[dict[str, Any]]:
    """What was spent until each of some moments of the run."""
    with live.running(folder, {ENDPOINT: True}, gateway=(__file__, "gateway")) as running:
        asyncio.run(ask(running, WARM_SECONDS))
        asyncio.run(ask(running, seconds))
        lines = (running.settings.data_dir / "spent.jsonl").read_text().splitlines()
    told: list[dict[str, Any]] = [json.loads(line) for line in lines]
    return [one for one in told if one["requests"]["tick"] >= WARM_SECONDS * PER_SECOND]


def between(start: dict[str, Any], end: dict[str, Any]) -> dict[str, float]:
    """Microseconds a request by part."""

    def more(what: str, part: str) -> float:
        return float(end[what].get(part, 0) - start[what].get(part, 0))

    empty = more("spent", "nothing") / more("calls", "nothing")
    return {
        part: (more("spent", part) - more("calls", part) * empty) / more("requests", part) / 1000
        for part in (*PARTS, "write")
    }


def ratio(spent: dict[str, float]) -> float:
    """Of recording to a write."""
    return sum(spent[part] for part in PARTS) / spent["write"]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=40)
    parser.add_argument("job", nargs="?", choices=("gateway",))
    given = parser.parse_args()
    if given.job == "gateway":
        gateway()
        return 0
    folder = Path(tempfile.mkdtemp(prefix="inferlake-added-"))
    try:
        told = measure(folder, given.seconds)
    finally:
        shutil.rmtree(folder)
    spent = between(told[0], told[-1])
    for part, microseconds in spent.items():
        print(f"{part}: {microseconds:.2f} us a request")
    ends = [told[round(place * (len(told) - 1) / 4)] for place in range(5)]
    quarters = [ratio(between(*pair)) for pair in itertools.pairwise(ends)]
    found = ratio(spent)
    print(
        f"added CPU: ratio {found:.2f} (quarters {min(quarters):.2f} to {max(quarters):.2f}), "
        f"bar {BAR:g}: {'met' if found <= BAR else 'MISSED'}"
    )
    return 0 if found <= BAR else 1


if __name__ == "__main__":
    sys.exit(main())
