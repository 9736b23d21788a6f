"""Does a commit at 10,000 commits cost more than one at 100?

    python benchmarks/capture/commit_cost.py [--commits 2000]

Segments of a few rows are sealed and committed one by one, as fast as it goes, while the real
maintenance process unpacks the rows, compacts, makes checkpoints and clears the log. Counted: one
`Committer.turn` that commits one segment, all syncs included. Ratio: median of the last 101 turns
to the median of turns 50 to 150. Bar: 1.2. `--commits 10000` is the long form. Exit code 1 if it is
missed.
"""

import argparse
import os
import random
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

import traffic

from capture import __main__ as process
from capture import committer, database, wal
from capture.settings import Settings

BAR = 1.2
FIRST, WINDOW = 100, 101
SEGMENT_ROWS = 8
PAUSE_SECONDS = 0.01
TELL_COMMITS = 500


def measure(folder: Path, commits: int) -> list[float]:
    """Milliseconds of each commit."""
    settings = Settings(data_dir=folder, wal_seal_bytes=1)  # type: ignore[call-arg]
    os.environ["INFERLAKE_DATA_DIR"] = str(folder)
    database.migrate(settings)
    chance = random.Random(0)
    log = wal.Log(settings.wal_dir, settings)
    one = committer.Committer(settings)
    child = process.Child()
    taken: list[float] = []
    try:
        while len(taken) < commits:
            now_us = time.time_ns() // 1000
            group = [traffic.exchange(chance, now_us + number) for number in range(SEGMENT_ROWS)]
            log.append(traffic.TABLE, "payload", group)
            log.tick()
            child.watch()
            start = time.perf_counter()
            done = one.turn()
            taken.append((time.perf_counter() - start) * 1000)
            if [committed.rows for committed in done] != [SEGMENT_ROWS]:
                raise RuntimeError(f"A turn committed {done}, not one segment.")
            child.tell(done)
            time.sleep(PAUSE_SECONDS)
            if len(taken) % TELL_COMMITS == 0:
                print(f"{len(taken)} commits: {_around(taken, len(taken)):.1f} ms", flush=True)
    finally:
        child.stop()
        log.close()
    return taken


def _around(taken: list[float], end: int) -> float:
    """Median of a window that ends with a commit."""
    return statistics.median(taken[max(0, end - WINDOW) : end])


def ratio(taken: list[float]) -> float:
    """The last commits to those around the hundredth."""
    return _around(taken, len(taken)) / _around(taken, FIRST + WINDOW // 2)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--commits", type=int, default=2_000)
    commits = parser.parse_args().commits
    folder = Path(tempfile.mkdtemp(prefix="inferlake-commit-cost-"))
    try:
        taken = measure(folder, commits)
    finally:
        shutil.rmtree(folder)
    found = ratio(taken)
    first, last = _around(taken, FIRST + WINDOW // 2), _around(taken, len(taken))
    print(
        f"commit at {commits}: {last:.1f} ms, at {FIRST}: {first:.1f} ms, ratio {found:.2f}, "
        f"bar {BAR}: {'met' if found <= BAR else 'MISSED'}"
    )
    return 0 if found <= BAR else 1


if __name__ == "__main__":
    sys.exit(main())
