"""The record of a data directory, to be damaged, and the processes that live with it."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import deltalake
import polars as pl

from capture import committer, delta, rows, unpack, wal
from capture.settings import Settings
from serving import doctor

TABLE = "main.default.model_payload"
OTHER = "main.default.other_payload"
UNPACKED = "main.default.model_unpacked"
DAY_US = 86_400_000_000
PATIENCE_SECONDS = 120


def until(condition: Callable[[], Any]) -> Any:
    """The first true value. Fails when patience ends."""
    end = time.monotonic() + PATIENCE_SECONDS
    while not (found := condition()):
        assert time.monotonic() < end, "The condition did not come true in time."
        time.sleep(0.02)
    return found


def payload(name: str, **other: Any) -> rows.Payload:
    """A good request of one row, whose id is its name."""
    values: dict[str, Any] = dict.fromkeys(rows.Payload._fields)
    values |= {"request_date": 20_000, "databricks_request_id": name}
    values |= {"request_time": 20_000 * DAY_US, "status_code": 200, "sampling_fraction": 1.0}
    values |= dict.fromkeys(("gateway_us", "queue_us", "features_us", "predict_us"), 0)
    values |= {"execution_duration_ms": 0, "endpoint_id": "e", "shadow": False}
    values |= {"request": '{"dataframe_records": [{"x": 1}]}', "response": '{"predictions": [1]}'}
    return rows.Payload(**(values | {"request_encoding": "utf-8"} | other))


class Record:
    """The record of one data directory."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.path = delta.path_of(settings, TABLE)

    def append(self, *names: str, table: str = TABLE) -> None:
        """Rows in a segment of their own."""
        log = wal.Log(self.settings.wal_dir, self.settings)
        log.append(table, "payload", [payload(name) for name in names])
        log.close()

    def commit(self, *names: str, table: str = TABLE) -> None:
        """Rows in a commit of their own, unpacked."""
        self.append(*names, table=table)
        committer.Committer(self.settings).finish()
        assert not self.segments()
        unpack.follow(self.settings, table)

    def segments(self) -> list[Path]:
        return sorted(self.settings.wal_dir.glob("*/*.seg"))

    def ids(self, table: str = TABLE) -> list[str]:
        """Rows of a table by polars; empty if it is not there."""
        path = delta.path_of(self.settings, table)
        if not deltalake.DeltaTable.is_deltatable(str(path)):
            return []
        return sorted(pl.read_delta(str(path))["databricks_request_id"])

    @contextmanager
    def running(self) -> Iterator[subprocess.Popen[bytes]]:
        """The committer with its maintenance process."""
        environment = {**os.environ, "INFERLAKE_DATA_DIR": str(self.settings.data_dir)}
        process = subprocess.Popen([sys.executable, "-m", "capture"], env=environment)
        ready = self.settings.run_dir / "committer.ready"
        try:
            until(lambda: ready.exists() and json.loads(ready.read_text())["pid"] == process.pid)
            yield process
        finally:
            process.terminate()
            process.wait()

    def problems(self) -> str:
        """What the doctor finds wrong, a line each."""
        return "\n".join(
            f"{one.subject}: {one.found}" for one in doctor.examine(self.settings) if not one.ok
        )

    def mended(self) -> str:
        """What the doctor says that it did; fails if anything is wrong still."""
        findings = doctor.mend(self.settings)
        assert all(one.ok for one in findings), findings
        return "\n".join(one.found for one in findings)
