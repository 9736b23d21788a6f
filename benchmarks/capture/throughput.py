"""Rows a second from the log to Delta, against a raw Parquet write of the very same rows?

    python benchmarks/capture/throughput.py [--rows 1000000] [--pairs 3]

Peer: `pyarrow.parquet.write_table(table, file, compression="zstd", compression_level=1)`: one
thread, the rest as pyarrow has it, no sync; the rows are an Arrow table in memory. (With the
dictionaries and statistics of our files alone it would be about 15 % faster.) Counted: from the
call until the file is closed.

Ours: a writer process hands the exchanges, in memory as the gateway makes them, to
`wal.Log.append` and calls `tick`; this process commits as `python -m capture` does. Counted: from
the first append until the last row is in the table, every sync of log, data file and commit
included; with a million rows the first quarter second, in which a segment fills, hardly counts. Not
counted: making the exchanges; making the table, which holds a row already; unpacking and upkeep,
which a niced process does later.
`process`: groups of 64 rows. `power`: groups of 512, each synced before the next: what comes in
during a sync at the rate of the bar.

Peer and ours are measured in turn, the peer before and after. Bars: 0.6 and 0.35. Exit code 1 if
one is missed.
"""

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import traffic

from capture import __main__ as process
from capture import committer, rows, wal
from capture.settings import Settings

BARS = {"process": 0.6, "power": 0.35}
GROUP_ROWS = {"process": 64, "power": 512}
TICK_SECONDS = 0.05
PATIENCE_SECONDS = 300


def write(data_dir: Path, count: int, mode: str) -> None:
    """The writer process: make the rows, say so, wait for the word, append, seal."""
    settings = Settings(data_dir=data_dir)
    recorded = traffic.recorded(count)
    log = wal.Log(settings.wal_dir, settings)
    size, power = GROUP_ROWS[mode], mode == "power"
    print("ready", flush=True)
    sys.stdin.readline()
    ticked = time.monotonic()
    for start in range(0, count, size):
        log.append(traffic.TABLE, "payload", recorded[start : start + size], power)
        if time.monotonic() - ticked >= TICK_SECONDS:
            ticked = time.monotonic()
            log.tick()
    log.close()


def with_table(settings: Settings, one: committer.Committer) -> None:
    """Have the table, with one row."""
    log = wal.Log(settings.wal_dir, settings)
    log.append(traffic.TABLE, "payload", traffic.recorded(1))
    log.close()
    one.finish()


def ours(folder: Path, count: int, mode: str) -> float:
    """Rows a second from the first append until all are in the table."""
    settings = Settings(data_dir=folder)
    command = [sys.executable, __file__, "write", str(folder), str(count), mode]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    ) as writer:
        assert writer.stdin is not None and writer.stdout is not None
        if writer.stdout.readline() != "ready\n":
            raise RuntimeError("The writer did not start.")
        one = committer.Committer(settings)
        with_table(settings, one)
        start = time.monotonic()
        writer.stdin.write("go\n")
        left = count
        while left:
            done = one.turn()
            left -= sum(committed.rows for committed in done)
            if not done:
                time.sleep(process.POLL_SECONDS)
            if time.monotonic() - start > PATIENCE_SECONDS:
                raise TimeoutError(f"{left} rows are missing after {PATIENCE_SECONDS} s.")
        return count / (time.monotonic() - start)


def peer(folder: Path, recorded: pa.Table) -> float:
    """Rows a second of a raw one-thread write."""
    start = time.monotonic()
    target = folder / "raw.parquet"
    pq.write_table(recorded, target, compression="zstd", compression_level=1)
    return len(recorded) / (time.monotonic() - start)


def measure(count: int, pairs: int) -> dict[str, float]:
    """Median ratio by acknowledgement."""
    recorded = traffic.table(traffic.recorded(count))
    assert recorded.schema == rows.PAYLOAD_SCHEMA
    ratios: dict[str, list[float]] = {mode: [] for mode in BARS}
    for number in range(pairs):
        for mode, found in ratios.items():
            folder = Path(tempfile.mkdtemp(prefix="inferlake-throughput-"))
            try:
                before = peer(folder, recorded)
                mine = ours(folder, count, mode)
                raw = (before + peer(folder, recorded)) / 2
            finally:
                shutil.rmtree(folder)
            found.append(mine / raw)
            print(
                f"pair {number + 1}, {mode}: {mine:,.0f} rows/s, raw Parquet {raw:,.0f} rows/s, "
                f"ratio {found[-1]:.2f}",
                flush=True,
            )
    return {mode: statistics.median(found) for mode, found in ratios.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--pairs", type=int, default=3)
    jobs = parser.add_subparsers(dest="job")
    writing = jobs.add_parser("write")
    writing.add_argument("data_dir", type=Path)
    writing.add_argument("count", type=int)
    writing.add_argument("mode", choices=tuple(BARS))
    given = parser.parse_args()
    if given.job == "write":
        write(given.data_dir, given.count, given.mode)
        return 0
    committer.keep_memory()
    missed = 0
    for mode, ratio in measure(given.rows, given.pairs).items():
        missed += ratio < BARS[mode]
        verdict = "met" if ratio >= BARS[mode] else "MISSED"
        print(f"{mode}: ratio {ratio:.2f} (median of {given.pairs}), bar {BARS[mode]}: {verdict}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
