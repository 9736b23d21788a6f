"""Two monitor processes at once, and the one that works is killed in the middle of a refresh.

    python benchmarks/monitors/refresh_kills.py [--kills 50] [--seed 1]

Two real processes (`python -m monitors`) share one data directory. Each round writes a new day of
requests and some late rows of an older day, asks for a refresh, waits until it runs and kills the
process that holds the lease (SIGKILL): after a random part of the time that a refresh takes, and
every other time right after the first of the two tables was written. The other process takes over,
a new one is started, and the refresh has to end. Then both metric tables are read.

With each day come the labels of the day before, so that a label lost or forgotten is seen as well.
Bar: no window doubled, missing or falsely labelled in either table, after every kill. A refresh
that had ended when the kill came does not count as one. Exit code 1 if the bar is missed.
"""

import argparse
import collections
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import TypeVar

import orjson
import polars as pl
import refresh_cost

from capture import database
from monitors import contract, lease, state, tables

DAYS, ROWS, LATE_ROWS = 3, 1_000, 50
PATIENCE_SECONDS = 600.0  # of a machine that does other work beside it
AFTER_A_TABLE_SECONDS = 0.1
COLUMN = "balance"
ENDED = ("SUCCESS", "FAILED", "CANCELED")
METRICS = {name: f"{refresh_cost.TABLE}_{name}_metrics" for name in ("profile", "drift")}
ONE_ROW_EACH = {
    "profile": ["log_type", "window", "granularity", "column_name", "served_entity_name"],
    "drift": ["drift_type", "window", "granularity", "column_name", "served_entity_name"],
}
Found = TypeVar("Found")


class Pair:
    """Two monitor processes, of which one works."""

    def __init__(self, world: refresh_cost.World) -> None:
        self.world = world
        self.log = (world.settings.data_dir / "monitors.log").open("ab")
        self.processes: dict[int, subprocess.Popen[bytes]] = {}
        for _ in range(2):
            self.start()

    def start(self) -> None:
        given = {"INFERLAKE_DATA_DIR": str(self.world.settings.data_dir.absolute())}
        process = subprocess.Popen(
            [sys.executable, "-m", "monitors"],
            env={**os.environ, **given, "INFERLAKE_URL": "http://127.0.0.1:9"},
            stdout=self.log,
            stderr=self.log,
        )
        self.processes[process.pid] = process

    def holder(self) -> int | None:
        """The process that holds the lease."""
        with database.reading(self.world.engine) as connection:
            text = state.lease_holder(connection, lease.NAME)
        pid = int(text.split("/")[1]) if text else None
        return pid if pid in self.processes else None

    def kill(self, pid: int) -> None:
        process = self.processes.pop(pid)
        process.kill()
        process.wait()

    def close(self) -> None:
        for process in self.processes.values():
            process.send_signal(signal.SIGTERM)
        for process in self.processes.values():
            process.wait(60)
        self.log.close()


class Rounds:
    """What was written and asked for so far, and what the tables must tell of it."""

    def __init__(self, world: refresh_cost.World, chance: random.Random) -> None:
        self.world, self.chance = world, chance
        self.rows = collections.Counter(dict.fromkeys(range(DAYS), ROWS))
        self.places: collections.Counter[str] = collections.Counter()

    def ask(self) -> int:
        """A refresh over all that is there."""
        until = refresh_cost.START + timedelta(days=len(self.rows))
        with database.transaction(self.world.engine) as connection:
            until_ms = contract.unix_ms(until)
            return state.request_refresh(connection, refresh_cost.TABLE, "MANUAL", until_ms, 1)

    def write(self) -> None:
        """A new day, and late rows of one before it."""
        day, late = len(self.rows), self.chance.randrange(len(self.rows))
        self.world.add(day)
        self.world.add(late, LATE_ROWS)
        self.rows[day] += ROWS
        self.rows[late] += LATE_ROWS

    def state_of(self, number: int) -> str:
        with database.reading(self.world.engine) as connection:
            return state.get_refresh(connection, refresh_cost.TABLE, number).state

    def finish(self, number: int) -> None:
        """Wait for a refresh. Raises RuntimeError if it does not succeed."""
        ended = wait_for(lambda: (s := self.state_of(number)) in ENDED and s)
        if ended != "SUCCESS":
            raise RuntimeError(f"Refresh {number} ended {ended}.")

    def place(self, number: int) -> str:
        """How far a refresh had come, as the tables tell."""
        done = [self.commit_of(name) >= number for name in METRICS]
        if all(done):
            return "after both tables were written"
        return "between the tables" if any(done) else "before a table was written"

    def commit_of(self, name: str) -> int:
        table = tables.open_table(self.world.uri(METRICS[name]))
        written = table.transaction_version("t1") if table is not None else None
        return -1 if written is None else written

    def kill_once(self, pair: Pair, typical_seconds: float) -> bool:
        """One round; was the refresh still running when the kill came?"""
        self.write()
        number = self.ask()
        wait_for(lambda: self.state_of(number) != "PENDING")
        if number % 2:
            time.sleep(self.chance.random() * 1.2 * typical_seconds)
        else:
            wait_for(lambda: self.commit_of("profile") >= number)
            time.sleep(self.chance.random() * AFTER_A_TABLE_SECONDS)
        pid = wait_for(pair.holder)
        pair.kill(pid)
        hit = self.state_of(number) == "RUNNING"
        if hit:
            self.places[self.place(number)] += 1
        pair.start()
        self.finish(number)
        return hit

    def wrong(self) -> list[str]:
        """What the metric tables tell twice, not at all, or falsely."""
        found = []
        frames = {name: pl.read_delta(self.world.uri(METRICS[name])) for name in METRICS}
        for name, frame in frames.items():
            double = frame.height - frame.select(ONE_ROW_EACH[name]).n_unique()
            if double:
                found.append(f"{name}: {double} rows stand there twice")
        told = {
            "profile": _by_day(frames["profile"].filter(pl.col("log_type") == "INPUT"), "count"),
            "drift": _by_day(frames["drift"].filter(pl.col("drift_type") == "BASELINE"), "n"),
        }
        found += [
            f"{name}: {days} instead of {dict(self.rows)}"
            for name, days in told.items()
            if days != dict(self.rows)
        ]
        labelled = _labelled(frames["profile"])
        newest = max(self.rows)
        wanted = {day: float(day < newest) for day in sorted(self.rows)}
        if labelled != wanted:
            found.append(f"profile: shares of labelled rows {labelled} instead of {wanted}")
        return found


def _by_day(rows: pl.DataFrame, value: str) -> dict[int, int]:
    """Rows per day, as told for one column of all versions together."""
    rows = rows.filter((pl.col("column_name") == COLUMN) & pl.col("served_entity_name").is_null())
    starts: list[datetime] = rows["window"].struct.field("start").to_list()
    days = [(start - refresh_cost.START).days for start in starts]
    return dict(sorted(zip(days, rows[value].to_list(), strict=True)))


def _labelled(rows: pl.DataFrame) -> dict[int, float]:
    """Share of a day's rows that have a label, as told for all versions together."""
    rows = rows.filter((pl.col("column_name") == ":table") & pl.col("served_entity_name").is_null())
    rows = rows.filter((pl.col("log_type") == "INPUT") & pl.col("quality").is_not_null())
    starts: list[datetime] = rows["window"].struct.field("start").to_list()
    days = [(start - refresh_cost.START).days for start in starts]
    shares = [orjson.loads(one)["realized"]["label_coverage"]["value"] for one in rows["quality"]]
    return dict(sorted(zip(days, shares, strict=True)))


def wait_for(condition: Callable[[], Found | None]) -> Found:
    """What a condition gives when it holds. Raises TimeoutError."""
    ends = time.monotonic() + PATIENCE_SECONDS
    while not (found := condition()):
        if time.monotonic() > ends:
            raise TimeoutError("It did not happen in ten minutes.")
        time.sleep(0.003)
    return found


def measure(folder: Path, kills: int, seed: int) -> tuple[int, Rounds]:
    """How many kills left a wrong table, and the rounds."""
    world = refresh_cost.World(folder, DAYS, ROWS, recorded=True)
    rounds, pair = Rounds(world, random.Random(seed)), Pair(world)
    try:
        rounds.finish(rounds.ask())
        begun = time.monotonic()
        rounds.write()
        rounds.finish(rounds.ask())
        typical_seconds = time.monotonic() - begun
        wrong = hits = 0
        while hits < kills:
            hits += rounds.kill_once(pair, typical_seconds)
            for problem in (problems := rounds.wrong()):
                print(f"  {problem}", flush=True)
            wrong += bool(problems)
    finally:
        pair.close()
        world.close()
    return wrong, rounds


def main() -> int:
    """0: the bar holds."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="inferlake-kills-") as folder:
        wrong, rounds = measure(Path(folder), asked.kills, asked.seed)
    places = "; ".join(f"{n} {place}" for place, n in sorted(rounds.places.items()))
    print(
        f"windows doubled or missing after {asked.kills} kills in a refresh: {wrong}, bar 0: "
        f"{'MISSED' if wrong else 'met'} ({places})"
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
