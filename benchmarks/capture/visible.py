"""How long from the reply to a request until its row can be read from the table?

    python benchmarks/capture/visible.py [--seconds 30]

500 requests a second, at random moments, on a live gateway with one worker, the committer and its
maintenance process. Counted: from the moment the client has the whole reply until the commit that
adds the row's file is seen in `_delta_log` by another reader, who looks every 2 ms. Bars: p50
0.25 s, p99 0.5 s. Exit code 1 if one is missed.
"""

import argparse
import asyncio
import json
import math
import random
import shutil
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import live
import pyarrow.parquet as pq

from capture import delta

PER_SECOND = 500
BARS = {0.5: 0.25, 0.99: 0.5}
LOOK_SECONDS = 0.002
SETTLE_SECONDS = 2.0


class Watcher:
    """Sees commits of a table as they appear."""

    def __init__(self, table: Path) -> None:
        self._table = table
        self._seen: dict[str, tuple[float, list[dict[str, Any]]]] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> "Watcher":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        log = self._table / "_delta_log"
        while not self._stop.wait(LOOK_SECONDS):
            try:
                names = [path.name for path in log.iterdir() if path.suffix == ".json"]
            except FileNotFoundError:
                continue  # the first commit makes it
            now = time.monotonic()
            for name in names:
                if name not in self._seen:
                    lines = (log / name).read_text().splitlines()
                    self._seen[name] = now, [json.loads(line) for line in lines]

    def visible(self) -> dict[str, float]:
        """When each row, by the client's id, could first be read."""
        found: dict[str, float] = {}
        for at, actions in self._seen.values():
            adds = [action["add"] for action in actions if "add" in action]
            for add in adds:
                if add["dataChange"]:
                    file = pq.ParquetFile(self._table / unquote(add["path"]))
                    ids = file.read(["client_request_id"])["client_request_id"].to_pylist()
                    found.update(dict.fromkeys(ids, at))
        return found


def measure(folder: Path, seconds: float) -> list[float]:
    """Seconds from reply to visible of each request, ascending."""
    with live.running(folder, {"seen": True}) as server:
        table = delta.path_of(server.settings, live.table("seen"))
        with Watcher(table) as watcher:
            replied = asyncio.run(_ask(server, seconds))
            live.wait_for(lambda: _is_empty(server.settings.wal_dir), "the last commit")
            time.sleep(10 * LOOK_SECONDS)
        visible = watcher.visible()
    return sorted(visible[name] - at for name, at in replied.items())


async def _ask(server: live.Server, seconds: float) -> dict[str, float]:
    """Time of each reply by the client's id, of the requests after the first moments."""
    chance = random.Random(0)
    count, settling = round(seconds * PER_SECOND), round(SETTLE_SECONDS * PER_SECOND)
    bodies = [live.body(chance, f"request-{number}") for number in range(settling + count)]
    async with server.client() as asking:
        replied = await live.load(asking, "seen", bodies, PER_SECOND, chance)
    return {f"request-{number}": replied[number] for number in range(settling, len(bodies))}


def _is_empty(log: Path) -> bool:
    return not [*log.glob("*/*.open"), *log.glob("*/*.seg")]


def quantile(ascending: list[float], share: float) -> float:
    """The smallest value that this share of all does not exceed."""
    return ascending[math.ceil(share * len(ascending)) - 1]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=30)
    folder = Path(tempfile.mkdtemp(prefix="inferlake-visible-"))
    try:
        taken = measure(folder, parser.parse_args().seconds)
    finally:
        shutil.rmtree(folder)
    missed = 0
    for share, bar in BARS.items():
        found = quantile(taken, share)
        missed += found > bar
        verdict = "met" if found <= bar else "MISSED"
        print(
            f"reply -> visible, p{share * 100:g} of {len(taken)} requests: {found:.3f} s, "
            f"bar {bar} s, ratio {found / bar:.2f}: {verdict}"
        )
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
