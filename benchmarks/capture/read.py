"""Are recorded requests found as fast as polars finds them in the same files? Bar: at most 2 x.

    python benchmarks/capture/read.py [--rows 10000000] [--files 200]

Three questions on a payload table and its typed rows, in as many files as said: the rows of an
hour, a day's p99 by version, one request by its id. Ours: the functions behind the API, from the
question to the values (`recorded.unpacked`, `series.timeseries`, `query.request_detail`, which also
finds the labels). Peer: `polars.scan_parquet` on the folder of the very same Parquet files, with
the day as a filter on the partition beside the time or the id. The two take turns; each round asks
for another hour, day and id; the ratio is that of the medians.

The tables are made first and not counted. --keep DIR makes them there and finds them again.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import recorded_requests as sample

from capture import delta, query, recorded, series
from capture.settings import Settings

BAR = 2.0
WARM_ROUNDS = 2
NAMES = (sample.TABLE, sample.UNPACKED)
Question = Callable[[], object]


def files(settings: Settings, full_name: str) -> pl.LazyFrame:
    """The peer's view of a table: its folder of Parquet files."""
    folder = delta.path_of(settings, full_name)
    return pl.scan_parquet(folder / "*" / "*.parquet", hive_partitioning=True)


def an_hour(settings: Settings, start: datetime) -> tuple[Question, Question]:
    end = start + timedelta(hours=1)
    time_, day = pl.col("request_time"), pl.col("request_date")

    def ours() -> pl.DataFrame:
        return recorded.unpacked(settings, sample.TABLE, start, end).collect()

    def peer() -> pl.DataFrame:
        wanted = (day == start.date()) & (time_ >= start) & (time_ < end)
        return files(settings, sample.UNPACKED).filter(wanted).collect()

    assert ours().height == peer().height > 0
    return ours, peer


def a_day(settings: Settings, start: datetime) -> tuple[Question, Question]:
    spent = pl.sum_horizontal("gateway_us", "queue_us", "features_us", "predict_us") / 1000
    asked = {
        "metrics": "p99",
        "by": "served_entity",
        "step": 86_400,
        "table": sample.TABLE,
    }
    asked |= {"from": start.isoformat(), "to": (start + timedelta(days=1)).isoformat()}

    def ours() -> object:
        return series.timeseries(settings, asked)

    def peer() -> pl.DataFrame:
        found = files(settings, sample.TABLE).filter(
            pl.col("request_date") == start.date(), ~pl.col("shadow")
        )
        return found.group_by("served_entity_name").agg(spent.quantile(0.99)).collect()

    return ours, peer


def one_request(settings: Settings, start: datetime) -> tuple[Question, Question]:
    hour = recorded.unpacked(settings, sample.TABLE, start, start + timedelta(hours=1))
    request_id = hour.select(pl.col("databricks_request_id").first()).collect().item()

    def ours() -> object:
        return query.request_detail(settings, {"id": request_id, "endpoint": sample.ENDPOINT})

    def peer() -> list[pl.DataFrame]:
        is_it = (pl.col("request_date") == start.date()) & (
            pl.col("databricks_request_id") == request_id
        )
        return [files(settings, name).filter(is_it).collect() for name in NAMES]

    return ours, peer


QUESTIONS = {
    "rows of one hour": (an_hour, timedelta(hours=1)),
    "a day's p99 by version": (a_day, timedelta(days=1)),
    "one request by id and date": (one_request, timedelta(hours=1)),
}


def took(question: Question) -> float:
    begin = time.perf_counter()
    question()
    return time.perf_counter() - begin


def measure(settings: Settings, name: str, rounds: int) -> float:
    """Prints a line; gives the ratio."""
    ask, grid = QUESTIONS[name]
    chance = np.random.default_rng(7)
    steps = timedelta(days=sample.DAYS) // grid
    seconds: tuple[list[float], list[float]] = ([], [])
    for number in range(rounds + WARM_ROUNDS):
        pair = ask(settings, sample.START + int(chance.integers(steps)) * grid)
        order = (0, 1) if number % 2 else (1, 0)
        spent = {place: took(pair[place]) for place in order}
        if number >= WARM_ROUNDS:
            for place in order:
                seconds[place].append(spent[place])
    ours, peer = (statistics.median(one) for one in seconds)
    ratio = ours / peer
    print(
        f"{name}: ours {ours * 1e3:.1f} ms, polars on the files {peer * 1e3:.1f} ms, ratio "
        f"{ratio:.2f}, bar {BAR:g}: {'met' if ratio <= BAR else 'MISSED'}",
        flush=True,
    )
    return ratio


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--files", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--keep", type=Path, default=None)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="inferlake-read-") as folder:
        settings = sample.make(options.keep or Path(folder), options.rows, options.files)
        ratios = [measure(settings, name, options.rounds) for name in QUESTIONS]
    return 0 if max(ratios) <= BAR else 1


if __name__ == "__main__":
    sys.exit(main())
