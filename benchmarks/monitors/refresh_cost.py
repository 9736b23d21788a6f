"""What does a refresh cost after one new day: the new rows, or all that came before as well?

    python benchmarks/monitors/refresh_cost.py [--rows-per-day 200000] [--days 30] [--long 10]
        [--recorded] [--late 0] [--new-days 5] [--keep DIR]

A monitor with days as its windows and a training baseline, on a table of 20 columns (14 numeric,
6 categorical, nulls), one data file a day. Peer: the same monitor without anything kept, which
reads the whole table again. Then a history `long` times as long against the short one, in turn.

--recorded: the table of an endpoint, whose rows have ids, versions and answers as well. With each
day come the labels of the day before, by the client's ids, and --late labels of days long gone,
in the first minutes of one day each. An experiment of two versions runs since 14 days.

Bars: a rescan of 30 days takes at least 20 x the processor time of the refresh after one new day;
ten times the history makes that refresh take at most 1.2 x the time and 1.2 x the memory. Memory
is the peak of processes of their own: one that meets the table for the first time, one that begins
with what is kept and meets a new day. Tables are made first and not counted; --keep DIR makes them
there and finds them again. Exit code 1 if a bar is missed.
"""

import argparse
import functools
import secrets
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import deltalake
import drift_files
import numpy as np
import polars as pl
import pyarrow as pa

from capture import catalog, database, names
from capture.settings import Settings
from monitors import contract, experiment_state, rounds, state

RESCAN_BAR, LONGER_BAR, MEMORY_BAR = 20.0, 1.2, 1.2
START = datetime(2024, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)
TEMPLATES = 4  # days differ in their times, and in these many sets of values
TABLE, BASELINE, LABELS = (f"bench.shop.s_{name}" for name in ("unpacked", "baseline", "labels"))
EXPERIMENT_DAYS = 14
SPLIT = '{"v1": 50, "v2": 50}'
POLICY = {
    "primary": {"name": "accuracy", "kind": "binary", "mode": "superiority", "mde": 0.02},
    "champion": "v1",
    "challenger": "v2",
}


class Tables:
    """Tables of a data directory."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def uri(self, name: str) -> str:
        return names.table_path(self.settings.tables_root, names.table_name(name))

    def write_day(self, table: pa.Table, day: int, recorded: bool) -> None:
        """Rows spread over a day: one commit of one file."""
        n = table.num_rows
        at = (START + day * DAY).timestamp() * 1e6 + np.arange(n) * (86_400e6 / n)
        times = pa.array(at.astype(np.int64), pa.timestamp("us", tz="UTC"))
        table = table.append_column("request_time", times)
        if recorded:
            table = _recorded(table, day)
        deltalake.write_deltalake(self.uri(TABLE), table, mode="append")

    def write_labels(self, day: int, rows: int, after: timedelta = DAY) -> None:
        """The truth of the first requests of a day."""
        at = START + day * DAY + after
        table = pa.table(
            {
                "databricks_request_id": pa.nulls(rows, pa.string()),
                "client_request_id": [f"order-{day}-{k}" for k in range(rows)],
                "row_index": pa.array(np.zeros(rows, dtype=np.int32)),
                "label": [str(k % 3 % 2) for k in range(rows)],
                "label_time": pa.array([at] * rows, pa.timestamp("us", tz="UTC")),
            }
        )
        deltalake.write_deltalake(self.uri(LABELS), table, mode="append")


class World(Tables):
    """A table with a history of so many days, its monitor, and a process that knows both."""

    def __init__(
        self, folder: Path, days: int, rows_per_day: int, recorded: bool, experiment: bool = False
    ) -> None:
        self.days, self.rows_per_day, self.recorded = days, rows_per_day, recorded
        self.experiment, self.late = experiment, 0
        data_dir = folder / f"{days}-days-of-{rows_per_day}"
        super().__init__(Settings(data_dir=data_dir, url="http://127.0.0.1:9"))
        if not self.settings.data_dir.exists():
            self.make()
        self.engine = database.open_engine(self.settings)
        self.rounds = rounds.Rounds(self.engine, self.settings, lambda: True)

    @functools.cached_property
    def templates(self) -> list[pa.Table]:
        return [_values(number, self.rows_per_day) for number in range(TEMPLATES)]

    def make(self) -> None:
        database.migrate(self.settings)
        engine = database.open_engine(self.settings)
        config = contract.monitor_config(monitor(self.recorded))
        with database.transaction(engine) as connection:
            if self.recorded:
                payload = "bench.shop.s_payload"
                catalog.record(connection, payload, "e" * 32, "shop", {}, {}, 0)
            state.create_monitor(connection, TABLE, "t1", config, "ann", 1)
            spec = {"kind": "training", "table": BASELINE}
            state.add_baseline(connection, TABLE, spec, "ann", 1)
            if self.experiment:
                start = self.end() - EXPERIMENT_DAYS * DAY
                body = contract.experiment({**POLICY, "start_time": start.isoformat()})
                experiment_state.begin_experiment(connection, "shop", body, "ann", 1)
        engine.dispose()
        deltalake.write_deltalake(self.uri(BASELINE), self.templates[0])
        for day in range(self.days):
            self.add(day)

    def add(self, day: int, rows: int | None = None) -> None:
        """One more day, or some late rows of one; with a day come the labels of the one before."""
        self.write_day(self.templates[day % TEMPLATES][:rows], day, self.recorded)
        if self.recorded and rows is None:
            if day > 0:
                self.write_labels(day - 1, self.rows_per_day)
            for number in range(self.late):
                old = number * day // self.late
                self.write_labels(old, 20, after=(day - old) * DAY)

    def refresh(self, until: datetime) -> float:
        """Seconds of processor time of one refresh, from its request to its end."""
        with database.transaction(self.engine) as connection:
            until_ms = contract.unix_ms(until)
            number = state.request_refresh(connection, TABLE, "MANUAL", until_ms, 1)
        begun = time.process_time()
        self.rounds.run_pending()
        seconds = time.process_time() - begun
        with database.reading(self.engine) as connection:
            done = state.get_refresh(connection, TABLE, number)
        if done.state != "SUCCESS":
            raise RuntimeError(f"The refresh ended {done.state}: {done.message}")
        return seconds

    def rescan(self, until: datetime) -> float:
        """Processor time of a refresh that finds nothing kept but a profile of the baseline."""
        shutil.rmtree(self.settings.data_dir / "monitors")
        self.restart()
        with database.reading(self.engine) as connection:
            known = state.monitor(connection, TABLE)
        self.rounds.refresher.watch_of(known)
        return self.refresh(until)

    def restart(self) -> None:
        """As another process: nothing is in memory."""
        self.rounds.close()
        self.rounds = rounds.Rounds(self.engine, self.settings, lambda: True)

    def end(self, more: int = 0) -> datetime:
        return START + (self.days + more) * DAY

    def windows(self) -> set[tuple[str, int]]:
        """Days and rows that the profile table tells: proof that both ways did the same work."""
        uri = self.uri("bench.shop.s_unpacked_profile_metrics")
        rows = pl.read_delta(uri).filter(pl.col("column_name") == "balance")
        rows = rows.filter(pl.col("log_type") == "INPUT")
        if self.recorded:
            rows = rows.filter(pl.col("served_entity_name").is_null())
        starts = rows["window"].struct.field("start").dt.to_string()
        return set(zip(starts, rows["count"], strict=True))

    def close(self) -> None:
        self.rounds.close()
        self.engine.dispose()


def _values(number: int, rows: int) -> pa.Table:
    return drift_files.chunk(np.random.default_rng(100 + number), rows, 0.0)


def monitor(recorded: bool) -> dict[str, object]:
    log: dict[str, object] = {"timestamp_col": "request_time", "granularities": ["1 day"]}
    body: dict[str, object] = {
        "output_schema_name": "bench.shop",
        "baseline_table_name": BASELINE,
    }
    if not recorded:
        return {**body, "time_series": log}
    log |= {
        "problem_type": "PROBLEM_TYPE_CLASSIFICATION",
        "prediction_col": "prediction",
        "prediction_proba_col": "score",
        "model_id_col": "served_entity_name",
        "label_col": "label",
    }
    return {**body, "inference_log": log}


def _recorded(table: pa.Table, day: int) -> pa.Table:
    """With what an endpoint's rows have beside their values; ids as the gateway gives them."""
    n = table.num_rows
    ms = table["request_time"].cast(pa.int64()).to_numpy() // 1000
    seed = secrets.randbits(48)
    ids = [
        f"{(t := f'{m:012x}')[:8]}-{t[8:]}-7{k & 0xFFF:03x}-8{k >> 12 & 0xFFF:03x}-{seed:012x}"
        for k, m in enumerate(ms)
    ]
    known = pl.select(
        databricks_request_id=pl.Series(ids),
        row_index=pl.repeat(0, n, dtype=pl.Int32),
        client_request_id=pl.format("order-{}-{}", pl.lit(day), pl.int_range(n)),
        unit_id=pl.repeat(None, n, dtype=pl.String),
        config_version=pl.repeat(1, n, dtype=pl.Int32),
        route_split=pl.repeat(SPLIT, n),
        served_entity_name=pl.format("v{}", 1 + pl.int_range(n) % 2),
        status_code=pl.repeat(200, n, dtype=pl.Int32),
        execution_duration_ms=pl.repeat(5, n, dtype=pl.Int64),
        shadow=pl.repeat(False, n),
        error_source=pl.repeat(None, n, dtype=pl.String),
        prediction=pl.int_range(n) // 2 % 2,
    )
    known = known.select(pl.exclude(table.column_names))
    for name in known.columns:
        table = table.append_column(
            name, known[name].to_arrow(compat_level=pl.CompatLevel.oldest())
        )
    return table


def check(world: World, more: int) -> None:
    """Every day stands in the metric table once, with all its rows. Raises RuntimeError."""
    days = (START + day * DAY for day in range(world.days + more))
    wanted = {(f"{day:%Y-%m-%d %H:%M:%S.%f}+00:00", world.rows_per_day) for day in days}
    found = world.windows()
    if len(found) != len(wanted) or {n for _, n in found} != {world.rows_per_day}:
        raise RuntimeError(f"{len(found)} windows in the metric table, {len(wanted)} days.")


def peak_mib(folder: Path, days: int, rows_per_day: int, recorded: bool) -> tuple[float, float]:
    """MiB and seconds of a process of its own that refreshes what is there."""
    arguments = [*map(str, (folder, days, rows_per_day)), *(["--recorded"] if recorded else [])]
    command = [sys.executable, str(Path(__file__).resolve()), "--one-refresh", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    mib, seconds = map(float, done.stdout.split())
    return mib, seconds


def one_refresh(arguments: list[str]) -> int:
    """The other side of `peak_mib`."""
    folder, days, rows_per_day = Path(arguments[0]), int(arguments[1]), int(arguments[2])
    world = World(folder, days, rows_per_day, recorded="--recorded" in arguments)
    seconds = world.refresh(world.end(int((folder / f"more-{days}").read_text())))
    world.close()
    # Not ru_maxrss: that of a child begins with what its parent had.
    status = Path("/proc/self/status").read_text()
    print(int(status.split("VmHWM:")[1].split()[0]) / 1024, seconds)
    return 0


class Memory:
    """Peaks of processes of their own, by days of history."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def of(self, worlds: tuple[World, World], more: int) -> list[tuple[float, float]]:
        found = []
        for world in worlds:
            (self.folder / f"more-{world.days}").write_text(str(more))
            found.append(peak_mib(self.folder, world.days, world.rows_per_day, world.recorded))
        return found


def compared(what: str, peaks: list[tuple[float, float]], days: tuple[int, int]) -> bool:
    """Prints the peaks of the short and the long history; is the bar met?"""
    (one, _), (other, _) = peaks
    print(
        f"memory of {what} with {days[1]} days against {days[0]}: {other / one:.2f} x, bar "
        f"{MEMORY_BAR:g} x: {met(other / one <= MEMORY_BAR)} ({other:,.0f} against {one:,.0f} MiB)"
    )
    return other / one <= MEMORY_BAR


def measure(short: World, long: World, new_days: int, memory: Memory) -> bool:
    """Prints the ratios: rescan over refresh, long over short history, memory; do all bars hold?"""
    worlds = short, long
    days = short.days, long.days
    first = memory.of(worlds, 0)
    quick: dict[int, list[float]] = {short.days: [], long.days: []}
    for world in worlds:
        world.refresh(world.end())  # finds what is kept
    for more in range(1, new_days + 1):
        for world in worlds:
            world.add(world.days + more - 1)
            quick[world.days].append(world.refresh(world.end(more)))
    for world in worlds:
        world.rounds.close()
        world.add(world.days + new_days)
    again = memory.of(worlds, new_days + 1)
    for world in worlds:
        check(world, new_days + 1)
    whole = short.rescan(short.end(new_days + 1)) * short.days / (short.days + new_days + 1)
    check(short, new_days + 1)
    one, other = (statistics.median(quick[world.days]) for world in worlds)
    print(
        f"a rescan of {short.days} days x {short.rows_per_day:,} rows against a refresh after one "
        f"new day: {whole / one:.1f} x the processor time, bar {RESCAN_BAR:g} x: "
        f"{met(whole / one >= RESCAN_BAR)} ({whole:.2f} against {one:.3f} s)"
    )
    print(
        f"a history of {long.days} days against {short.days}: {other / one:.2f} x the processor "
        f"time, bar {LONGER_BAR:g} x: {met(other / one <= LONGER_BAR)} ({other:.3f} against "
        f"{one:.3f} s; first refreshes {first[1][1]:.1f} and {first[0][1]:.1f} s)"
    )
    little = [compared("a first refresh", first, days), compared("a new day", again, days)]
    return whole / one >= RESCAN_BAR and other / one <= LONGER_BAR and all(little)


def met(holds: bool) -> str:
    return "met" if holds else "MISSED"


def main() -> int:
    """0: both bars hold."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows-per-day", type=int, default=200_000)
    parser.add_argument("--days", type=int, default=30)
    parser.add_argument("--long", type=int, default=10)
    parser.add_argument("--new-days", type=int, default=5)
    parser.add_argument("--recorded", action="store_true")
    parser.add_argument("--keep", type=Path, default=None)
    parser.add_argument("--late", type=int, default=0)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="inferlake-refresh-") as folder:
        place = Path(folder)
        if asked.keep is not None and asked.keep.exists():
            shutil.copytree(asked.keep, place, dirs_exist_ok=True)
        sizes = (asked.days, asked.days * asked.long)
        short, long = (
            World(place, days, asked.rows_per_day, asked.recorded, experiment=asked.recorded)
            for days in sizes
        )
        if asked.keep is not None and not asked.keep.exists():
            shutil.copytree(place, asked.keep)
        short.late = long.late = asked.late
        holds = measure(short, long, asked.new_days, Memory(place))
        for world in (short, long):
            world.close()
    return 0 if holds else 1


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one-refresh"]:
        sys.exit(one_refresh(sys.argv[2:]))
    sys.exit(main())
