"""How long does `inferlake drift` take on two files, and how much memory, against its peers?

    python benchmarks/monitors/drift_files.py [--rows 1000000] [--pairs 3] [--evidently]
        [--whylogs PYTHON] [--memory]

Rows x 20 columns a side (14 numeric, 6 categorical, nulls), Parquet. Peer: pyarrow's `read_table`
of the two files and nothing else; each a whole process, in turn, so that a busy moment of the
machine hits both. --evidently: also Evidently's full drift preset on the same files, in its own
process (some minutes). --whylogs: the interpreter of an environment of its own with whylogs 1.6,
which wants numpy below 2 and so cannot live beside us; without it a line says that it is left out.
--memory: 10M + 10M rows and only the peak memory of one run. Exit code 1 if a bar is missed.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

DECODE_BAR, EVIDENTLY_BAR, WHYLOGS_BAR, MEMORY_SHARE_BAR = 3.0, 30.0, 12.0, 0.25
MANY_ROWS, MANY_ROWS_MIB_BAR = 10_000_000, 600
CHUNK = 500_000
BESIDE = Path(sys.executable).parent
QUIET = {**os.environ, "DO_NOT_TRACK": "1"}

DECODE = """
import sys
import pyarrow.parquet
for path in sys.argv[1:]:
    pyarrow.parquet.read_table(path)
"""
EVIDENTLY = """
import sys
import pandas
from evidently import Report
from evidently.presets import DataDriftPreset
reference, current = (pandas.read_parquet(path) for path in sys.argv[1:])
for side in (reference, current):
    side["is_new"] = side["is_new"].astype(str)
Report([DataDriftPreset()]).run(current, reference).dict()
"""

WHYLOGS = """
import sys
import pandas
import whylogs
from whylogs.viz.drift.column_drift_algorithms import calculate_drift_scores
reference, current = (whylogs.log(pandas.read_parquet(path)).view() for path in sys.argv[1:])
calculate_drift_scores(target_view=current, reference_view=reference, with_thresholds=True)
"""


class Run(NamedTuple):
    """One process: seconds on the clock, seconds of processor, peak resident memory."""

    seconds: float
    cpu_seconds: float
    mib: float


def measured(command: list[str]) -> Run:
    """Run it to its end. Raises CalledProcessError."""
    begun = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=QUIET)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.monotonic() - begun
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return Run(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


def chunk(random: np.random.Generator, n: int, shift: float) -> pa.Table:
    """What a scoring service sees: amounts, counts, ids, shares, rounded values, names, gaps."""

    def gaps(values: Any, share: float) -> pa.Array:
        return pa.array(values, mask=random.random(n) < share)

    def names(kinds: int, word: str, null_share: float = 0.0, slope: float = 1.0) -> pa.Array:
        weight = 1 / np.arange(1, kinds + 1) ** slope
        chosen = random.choice(kinds, n, p=weight / weight.sum())
        words = pa.array([f"{word}-{number}" for number in range(kinds)])
        return words.take(gaps(chosen, null_share))

    paid = np.where(random.random(n) < 0.6, 0, random.exponential(100, n))
    return pa.table(
        {
            "amount": gaps(random.lognormal(3 + shift, 1, n), 0.02),
            "balance": random.normal(1000 * shift, 5000, n),
            "score": random.beta(2, 5, n),
            "ratio": gaps(random.random(n), 0.1),
            "temperature": np.round(random.normal(15, 8, n), 1),
            "price": np.round(random.gamma(2, 50, n), 2),
            "wait": random.exponential(30, n),
            "paid": paid,
            "age": gaps(random.integers(18, 90, n), 0.01),
            "count": random.poisson(3, n),
            "distance": random.integers(1, 5000, n).astype(np.int32),
            "customer": random.integers(1, 200_000, n),
            "logit": random.normal(0, 1, n).astype(np.float32),
            "speed": gaps(random.weibull(2, n) * 80, 0.05),
            "country": names(40, "land"),
            "device": names(4, "device", 0.03),
            "carrier": names(16, "carrier"),
            "city": names(2000, "town"),
            "channel": names(6, "channel", slope=0.5),
            "is_new": random.random(n) < 0.3,
        }
    )


def write(path: Path, rows: int, seed: int, shift: float) -> None:
    """A Parquet file of these rows."""
    random = np.random.default_rng(seed)
    writer = None
    for start in range(0, rows, CHUNK):
        part = chunk(random, min(CHUNK, rows - start), shift)
        writer = writer or pq.ParquetWriter(path, part.schema)
        writer.write_table(part)
    if writer is not None:
        writer.close()


def shown(run: Run) -> str:
    return f"{run.seconds:.2f} s, {run.cpu_seconds:.2f} s of processor, {run.mib:.0f} MiB"


def against_decoding(ours: list[str], files: list[str], pairs: int) -> tuple[Run, bool]:
    """Prints the ratio; the median run of ours, and whether the bar holds."""
    decode = [sys.executable, "-c", DECODE, *files]
    runs = [(measured(ours), measured(decode)) for _ in range(pairs)]
    ratio = statistics.median(one.seconds / other.seconds for one, other in runs)
    one, other = sorted(runs)[len(runs) // 2]
    print(
        f"drift against decoding: {ratio:.2f} x the time (bar: at most {DECODE_BAR:g} x; "
        f"ours {shown(one)}; pyarrow {shown(other)})"
    )
    return one, ratio <= DECODE_BAR


def against_evidently(mine: Run, files: list[str]) -> bool:
    """Prints both ratios; whether the bars hold."""
    theirs = measured([sys.executable, "-c", EVIDENTLY, *files])
    times, share = theirs.seconds / mine.seconds, mine.mib / theirs.mib
    print(
        f"drift against Evidently: {times:.0f} x as fast (bar: {EVIDENTLY_BAR:g} x; "
        f"Evidently {shown(theirs)})"
    )
    print(
        f"drift's peak memory: {share:.2f} of Evidently's (bar: at most {MEMORY_SHARE_BAR:g}; "
        f"{mine.mib:.0f} against {theirs.mib:.0f} MiB)"
    )
    return times >= EVIDENTLY_BAR and share <= MEMORY_SHARE_BAR


def against_whylogs(mine: Run, python: Path | None, files: list[str]) -> bool:
    """Prints the ratio, or that there is nothing to compare with; whether the bar holds."""
    if python is None:
        print("drift against whylogs: left out; --whylogs names an environment that has it")
        return True
    theirs = measured([str(python), "-c", WHYLOGS, *files])
    times = theirs.seconds / mine.seconds
    print(
        f"drift against whylogs: {times:.1f} x as fast (bar: {WHYLOGS_BAR:g} x; "
        f"whylogs {shown(theirs)})"
    )
    return times >= WHYLOGS_BAR


def within_memory(mine: Run, rows: int) -> bool:
    """Prints the peak; whether the bar holds."""
    print(f"peak memory, {rows:,} rows a side: {mine.mib:.0f} MiB (bar: {MANY_ROWS_MIB_BAR} MiB)")
    return mine.mib <= MANY_ROWS_MIB_BAR


def main() -> int:
    """0: every bar that was measured holds."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--evidently", action="store_true")
    parser.add_argument("--whylogs", type=Path, default=None)
    parser.add_argument("--memory", action="store_true")
    asked = parser.parse_args()
    if asked.memory:
        asked.rows = MANY_ROWS
    with tempfile.TemporaryDirectory(prefix="inferlake-drift-") as folder:
        paths = [Path(folder) / f"{side}.parquet" for side in ("reference", "current")]
        for path, seed, shift in zip(paths, (1, 2), (0.0, 0.1), strict=True):
            write(path, asked.rows, seed, shift)
        files = [str(path) for path in paths]
        ours = [str(BESIDE / "inferlake"), "drift", *files, "--json", f"{folder}/out.json"]
        if asked.memory:
            return 0 if within_memory(measured(ours), asked.rows) else 1
        mine, holds = against_decoding(ours, files, asked.pairs)
        if asked.rows >= MANY_ROWS:
            holds &= within_memory(mine, asked.rows)
        holds &= against_whylogs(mine, asked.whylogs, files)
        if asked.evidently:
            holds &= against_evidently(mine, files)
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
