"""Odd values on the way of a monitor: table -> profiles on disk -> metric tables -> alerts.

On files: test_files_cli.py; of every pair of odd columns: test_distances.py."""

import json
import math
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import polars as pl

MONDAY = datetime(2024, 1, 1, tzinfo=UTC)
WEEK = timedelta(weeks=1)
BASELINE = "main.flights.p_baseline"
N = 1_000


def columns(side: str) -> dict[str, Any]:
    """Values of each column in the baseline and in the rows that are judged."""
    rng = np.random.default_rng({"baseline": 1, "current": 2}[side])
    usual, now = rng.normal(size=N), side == "current"
    return {
        "still beside 1e12 now": [1e12, *usual[1:]] if now else usual,
        "still beside 1e12 before": usual if now else [1e12, *usual[1:]],
        "wider beside 1e12 now": [1e12, *(2 * usual[1:])] if now else usual,
        "wider beside 1e12 before": 2 * usual if now else [1e12, *usual[1:]],
        "wider far from zero": [1e12, *(1e6 + 2 * usual[1:])] if now else 1e6 + usual,
        "constant": [4.2] * N,
        "no longer constant": usual if now else [4.2] * N,
        "never there": pl.Series([None] * N, dtype=pl.Float64),
        "gone": pl.Series([None] * N, dtype=pl.Float64) if now else usual,
        "not a number": [math.nan] * N if now else usual,
        "some infinite": [math.inf, -math.inf, *usual[2:]] if now else usual,
        "only infinite": [math.inf] * N if now else usual,
        "beyond 2**53": 2**53 + 1 + rng.integers(0, 500, N),
        "moved beyond 2**53": 2**53 + 1 + rng.integers(0, 500, N) + 300 * now,
        "new category": rng.choice(["a", "b", "new"] if now else ["a", "b"], N),
        "date": pl.Series(["2026-01-01"] * N).str.to_date(),
        "flag": usual > 0,
    }


STATUS = {
    **dict.fromkeys(
        (
            "still beside 1e12 now", "still beside 1e12 before", "constant", "some infinite",
            "beyond 2**53", "flag",
        ),
        "ok",
    ),
    **dict.fromkeys(
        (
            "wider beside 1e12 now", "wider beside 1e12 before", "wider far from zero",
            "no longer constant", "gone", "not a number", "moved beyond 2**53", "new category",
        ),
        "drifted",
    ),
    "only infinite": "undefined",
}  # fmt: skip


def judged(lake, start: datetime) -> pl.DataFrame:
    rows = lake.metrics().filter(
        (pl.col("drift_type") == "BASELINE")
        & (pl.col("start") == start)
        & pl.col("served_entity_name").is_null()
    )
    return rows.filter(pl.col("column_name").is_in(list(columns("current"))))


def test_every_odd_column_has_an_answer_of_its_own_and_none_hides_another(lake):
    before = lake.rows(MONDAY - WEEK, N).select("event_time", "prediction", "score")
    lake.write(before.with_columns(pl.DataFrame(columns("baseline"))), BASELINE)
    lake.monitor(baseline_table_name=BASELINE)
    lake.write(lake.rows(MONDAY, N, **columns("current")))
    lake.restart()
    done = lake.done(MONDAY + WEEK)
    assert done.state == "SUCCESS"
    found = judged(lake, MONDAY)
    assert dict(found.select("column_name", "status").iter_rows()) == STATUS
    assert found.filter(pl.col("status") == "undefined")["text"].str.contains(": no ").all()
    for column in lake.metrics().get_columns():
        if column.dtype.is_float():
            assert column.drop_nulls().is_finite().all(), column.name
    assert {alert.column for alert in lake.open_alerts()} == {
        name for name, status in STATUS.items() if status == "drifted"
    }


def test_two_rows_are_too_few_and_a_week_without_rows_is_no_window(lake):
    usual = np.random.default_rng(3).normal(size=N)
    before = lake.rows(MONDAY - WEEK, N, temp=usual).select("event_time", "temp", "carrier")
    lake.write(before, BASELINE)
    lake.monitor(baseline_table_name=BASELINE)
    lake.write(lake.rows(MONDAY, 2, temp=[100.0, 200.0], carrier=["new", "new"]))
    lake.write(lake.rows(MONDAY + 2 * WEEK, N, temp=usual, carrier=before["carrier"]))
    lake.done(MONDAY + 3 * WEEK)
    rows = lake.metrics().filter(pl.col("drift_type") == "BASELINE")
    assert set(rows.filter(pl.col("start") == MONDAY)["status"]) == {"not_enough_data"}
    assert MONDAY + WEEK not in set(lake.metrics("profile")["start"])
    assert set(rows.filter(pl.col("start") == MONDAY + 2 * WEEK)["status"]) == {"ok"}
    consecutive = lake.metrics().filter(pl.col("drift_type") == "CONSECUTIVE")
    assert consecutive.is_empty()  # the week before has no rows to be compared with
    assert lake.open_alerts() == []
    for text in rows["bounds"].drop_nulls():
        json.loads(text)
