import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import polars as pl

from capture import database, names, outbox, sealing
from monitors import alert_state, contract, delivery, experiment_state, job_state, state

MONDAY = datetime(2024, 1, 1, tzinfo=UTC)
TABLE = "main.flights.p_unpacked"
EVERY_SECOND = {"quartz_cron_expression": "* * * * * ?", "timezone_id": "UTC"}


def wait_for(condition: Callable[[], Any], seconds: float = 120) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)
    return found


@contextmanager
def process(lake) -> Iterator[subprocess.Popen[bytes]]:
    """`python -m monitors` on the lake's data."""
    environment = {
        **os.environ,
        "INFERLAKE_DATA_DIR": str(lake.settings.data_dir),
        "INFERLAKE_URL": lake.gateway.url,
    }
    started = subprocess.Popen([sys.executable, "-m", "monitors"], env=environment)
    try:
        yield started
    finally:
        if started.poll() is None:
            started.kill()
        started.wait(30)


def ready(lake) -> int | None:
    """Process id of the one that is ready."""
    try:
        return json.loads((lake.settings.run_dir / "monitor.ready").read_text())["pid"]
    except (FileNotFoundError, ValueError):
        return None


def ended(lake, number: int) -> state.Refresh | None:
    with database.reading(lake.engine) as connection:
        found = state.get_refresh(connection, TABLE, number)
    return found if found.state in ("SUCCESS", "FAILED", "CANCELED") else None


def ask(lake) -> int:
    with database.transaction(lake.engine) as connection:
        return state.request_refresh(connection, TABLE, "MANUAL", None, 1)


def test_the_process_refreshes_delivers_runs_jobs_and_ends_when_told(lake):
    lake.monitor()
    lake.write(lake.rows(MONDAY, 300))
    secret = sealing.encrypt(lake.settings, delivery.new_secret())
    hook = alert_state.Webhook(
        names.new_id(), f"{lake.gateway.url}/hook", ["*"], "standard", None, secret, None, None,
        "ann", 1,
    )  # fmt: skip
    with database.transaction(lake.engine) as connection:
        alert_state.add_webhook(connection, hook)
        outbox.emit(connection, "endpoint.ready", {"endpoint": "delay"}, 1)
        asked = {"table": TABLE, "window": ["2030-01-01", "2030-01-02"], "baseline": {}}
        asked |= {"served_entity": None, "slice": None}
        job_id = job_state.create(connection, "report", asked, "delay", TABLE, "ann", 1)

    def job() -> job_state.Job:
        with database.reading(lake.engine) as connection:
            return job_state.get(connection, job_id)

    with process(lake) as running:
        wait_for(lambda: ready(lake) == running.pid)
        number = ask(lake)
        assert wait_for(lambda: ended(lake, number)).state == "SUCCESS"
        wait_for(lambda: [c for c in lake.gateway.calls if c[2]["type"] == "endpoint.ready"])
        wait_for(lambda: job().ended_ms)
        assert job().state == "failed" and "no rows" in job().message
        running.send_signal(signal.SIGTERM)
        assert running.wait(60) == 0
        assert ready(lake) is None


def test_a_schedule_asks_for_refreshes_and_a_paused_one_does_not(lake):
    lake.monitor(schedule=EVERY_SECOND)
    lake.write(lake.rows(MONDAY, 300))

    def refreshes() -> list[state.Refresh]:
        with database.reading(lake.engine) as connection:
            return state.newest_refreshes(connection, TABLE)

    with process(lake) as running:
        wait_for(lambda: len([r for r in refreshes() if r.state == "SUCCESS"]) >= 2)
        assert {refresh.trigger for refresh in refreshes()} == {"SCHEDULE"}
        with database.transaction(lake.engine) as connection:
            found = state.monitor(connection, TABLE)
            assert found.next_refresh_ms is not None
            paused = {**found.config, "schedule": {**EVERY_SECOND, "pause_status": "PAUSED"}}
            state.replace_config(connection, TABLE, paused, 2)

        def next_refresh() -> int | None:
            with database.reading(lake.engine) as connection:
                return state.monitor(connection, TABLE).next_refresh_ms

        wait_for(lambda: next_refresh() is None)
        running.send_signal(signal.SIGTERM)
        assert running.wait(60) == 0


def test_a_killed_process_is_replaced_and_no_window_is_doubled(lake):
    lake.monitor()
    for number in range(3):
        lake.write(lake.rows(MONDAY + timedelta(weeks=number), 400))
    with process(lake) as first, process(lake) as second:
        wait_for(lambda: ready(lake) in (first.pid, second.pid))
        holder = first if ready(lake) == first.pid else second
        other = second if holder is first else first
        number = ask(lake)

        def running() -> bool:
            with database.reading(lake.engine) as connection:
                return state.get_refresh(connection, TABLE, number).state != "PENDING"

        wait_for(running)
        holder.kill()
        wait_for(lambda: ready(lake) == other.pid)
        assert wait_for(lambda: ended(lake, number)).state == "SUCCESS"
        again = ask(lake)
        assert wait_for(lambda: ended(lake, again)).state == "SUCCESS"
        rows = lake.metrics("profile").filter(
            (pl.col("column_name") == "temp") & pl.col("served_entity_name").is_null()
        )
        assert rows.sort("start")["count"].to_list() == [400, 400, 400]


def test_a_guard_without_a_refresh_takes_a_failing_version_back(lake):
    split = {"v1": 50, "v2": 50}
    lake.gateway.configure(**split)
    yearly = {"quartz_cron_expression": "0 0 0 1 1 ?", "timezone_id": "UTC"}
    lake.monitor(schedule=yearly)
    policy = {
        "primary": {"name": "accuracy", "kind": "binary", "mde": 0.1},
        "champion": "v1", "challenger": "v2", "start_time": MONDAY.isoformat(),
    }  # fmt: skip
    with database.transaction(lake.engine) as connection:
        now = time.time_ns() // 1_000_000
        state.request_refresh(connection, TABLE, "SCHEDULE", None, now)
        experiment_state.begin_experiment(
            connection, "delay", contract.experiment(policy), "ann", 1
        )
        plan = contract.ramp_request({"challenger": "v2"})
        experiment_state.put_ramp(connection, "delay", plan, 1)
    lake.rounds.run_pending()
    frame = lake.rows(MONDAY, 300, 24, split=split, config_version=2)
    lake.write(lake.failing(frame, pl.col("served_entity_name") == "v2"))
    with process(lake) as running:
        wait_for(lambda: lake.gateway.shares == {"v1": 100})
        running.send_signal(signal.SIGTERM)
        assert running.wait(60) == 0
    with database.reading(lake.engine) as connection:
        assert experiment_state.get_ramp(connection, "delay").state == "rolled_back"
