"""What does a refresh cost after one new day: the new rows, or all that came before as well?

    python benchmarks/monitors/refresh_cost.py [--rows-per-day 200000] [--days 30] [--long 10]
        [--recorded] [--new-days 5] [--keep DIR]

A monitor with days as its windows and a training baseline, on a table of 20 columns (14 numeric,
6 categorical, nulls), one data file a day. Peer: the same monitor without anything kept, which
reads the whole table again. Then a history `long` times as long against the short one, in turn.

Bars: a rescan of 30 days takes at least 20 x as long as the refresh after one new day; ten times
the history makes that refresh take at most 1.2 x as long. --recorded: the table of an endpoint,
whose rows have ids, versions and answers as well. Tables are made first and not counted; --keep
DIR makes them there and finds them again. Exit code 1 if a bar is missed.
"""

import argparse
import resource
import shutil
import statistics
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
from monitors import contract, rounds, state

RESCAN_BAR, LONGER_BAR = 20.0, 1.2
START = datetime(2024, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)
TEMPLATES = 4  # days differ in their times, and in these many sets of values
TABLE, BASELINE = "bench.shop.s_unpacked", "bench.shop.s_baseline"


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
            table = _recorded(table)
        deltalake.write_deltalake(self.uri(TABLE), table, mode="append")


class World(Tables):
    """A table with a history of so many days, its monitor, and a process that knows both."""

    def __init__(self, folder: Path, days: int, rows_per_day: int, recorded: bool) -> None:
        self.days, self.rows_per_day, self.recorded = days, rows_per_day, recorded
        super().__init__(Settings(data_dir=folder / f"{days}-days-of-{rows_per_day}"))
        self.templates = [_values(number, rows_per_day) for number in range(TEMPLATES)]
        if not self.settings.data_dir.exists():
            self.make()
        self.engine = database.open_engine(self.settings)
        self.rounds = rounds.Rounds(self.engine, self.settings, lambda: True)

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
        engine.dispose()
        deltalake.write_deltalake(self.uri(BASELINE), self.templates[0])
        for day in range(self.days):
            self.add(day)

    def add(self, day: int, rows: int | None = None) -> None:
        """One more day, or some late rows of one."""
        self.write_day(self.templates[day % TEMPLATES][:rows], day, self.recorded)

    def refresh(self, until: datetime) -> float:
        """Seconds of one refresh, from its request to its end."""
        with database.transaction(self.engine) as connection:
            until_ms = contract.unix_ms(until)
            number = state.request_refresh(connection, TABLE, "MANUAL", until_ms, 1)
        begun = time.perf_counter()
        self.rounds.run_pending()
        seconds = time.perf_counter() - begun
        with database.reading(self.engine) as connection:
            done = state.get_refresh(connection, TABLE, number)
        if done.state != "SUCCESS":
            raise RuntimeError(f"The refresh ended {done.state}: {done.message}")
        return seconds

    def rescan(self, until: datetime) -> float:
        """Seconds of a refresh that finds nothing kept but a profile of the baseline."""
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


def _recorded(table: pa.Table) -> pa.Table:
    """With what an endpoint's rows have beside their values."""
    n = table.num_rows
    known = pl.select(
        databricks_request_id=pl.format("{}-{}", pl.lit(time.time_ns()), pl.int_range(n)),
        row_index=pl.repeat(0, n, dtype=pl.Int32),
        client_request_id=pl.repeat(None, n, dtype=pl.String),
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


def measure(short: World, long: World, new_days: int) -> tuple[float, float]:
    """Prints both ratios, and gives them: rescan over refresh, long over short history."""
    first = {world.days: world.refresh(world.end()) for world in (short, long)}
    quick: dict[int, list[float]] = {short.days: [], long.days: []}
    for more in range(1, new_days + 1):
        for world in (short, long):
            world.add(world.days + more - 1)
            quick[world.days].append(world.refresh(world.end(more)))
    for world in (short, long):
        check(world, new_days)
    whole = short.rescan(short.end(new_days)) * short.days / (short.days + new_days)
    check(short, new_days)
    one, other = (statistics.median(quick[world.days]) for world in (short, long))
    print(
        f"a rescan of {short.days} days x {short.rows_per_day:,} rows against a refresh after one "
        f"new day: {whole / one:.1f} x the time, bar {RESCAN_BAR:g} x: "
        f"{met(whole / one >= RESCAN_BAR)} ({whole:.2f} against {one:.3f} s)"
    )
    print(
        f"a history of {long.days} days against {short.days}: {other / one:.2f} x the time, bar "
        f"{LONGER_BAR:g} x: {met(other / one <= LONGER_BAR)} ({other:.3f} against {one:.3f} s; "
        f"first refreshes {first[long.days]:.1f} and {first[short.days]:.1f} s)"
    )
    return whole / one, other / one


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
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="inferlake-refresh-") as folder:
        place = Path(folder)
        if asked.keep is not None and asked.keep.exists():
            shutil.copytree(asked.keep, place, dirs_exist_ok=True)
        sizes = (asked.days, asked.days * asked.long)
        worlds = [World(place, days, asked.rows_per_day, asked.recorded) for days in sizes]
        if asked.keep is not None and not asked.keep.exists():
            shutil.copytree(place, asked.keep)
        rescan, longer = measure(worlds[0], worlds[1], asked.new_days)
        for world in worlds:
            world.close()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"peak memory of the process: {peak:,.0f} MiB")
    return 0 if rescan >= RESCAN_BAR and longer <= LONGER_BAR else 1


if __name__ == "__main__":
    sys.exit(main())
