"""Recorded requests as series over time.

Read from the payload table, so a request counts once, however many rows it held; where the record
keeps a share of the requests, one of it stands for as many. Shadow copies do not count: nobody
waited for them.
"""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import polars as pl

from capture import errors, filters, recorded
from capture.settings import Settings

MOST_POINTS = 2_000
STEPS = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 21_600, 43_200, 86_400)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
PARTS = ("gateway", "queue", "features", "predict")
# How many requests a recorded one stands for; rows of older records do not say.
WEIGHT = pl.when(pl.col("sampling_fraction") > 0).then(1 / pl.col("sampling_fraction")).otherwise(1)
# Of each request, before requests are counted: a group of plain columns is summed up faster.
MEASURED = {
    "weight": WEIGHT,
    "duration_us": pl.sum_horizontal("gateway_us", "queue_us", "features_us", "predict_us"),
    "failed": filters.FAILED,
    "execution_ms": pl.col("execution_duration_ms"),
    **{f"{part}_us": pl.col(f"{part}_us").fill_null(0) for part in PARTS},
}
METRICS: dict[str, pl.Expr] = {
    "requests": pl.col("weight").sum(),
    "errors": pl.col("weight").filter("failed").sum(),
    "p50": pl.col("duration_us").quantile(0.5) / 1000,
    "p95": pl.col("duration_us").quantile(0.95) / 1000,
    "p99": pl.col("duration_us").quantile(0.99) / 1000,
    "execution": pl.col("execution_ms").mean(),
    **{part: pl.col(f"{part}_us").mean() / 1000 for part in PARTS},
}
COUNTS = ("requests", "errors")
LINES = {
    "served_entity": pl.col("served_entity_name"),
    "status_code": pl.col("status_code").cast(pl.String),
}
DIMENSIONS = {
    "served_entity": pl.col("served_entity_name"),
    "user": pl.col("requester"),
    "day": pl.col("request_date"),
}


def timeseries(settings: Settings, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """{"step_seconds", "series": [{"metric", "by", "points": [[time, value], ...]}]}.

    arguments: `table`, `metrics` (names of METRICS joined by commas; default: all), `from`, `to`
    (RFC 3339, `from <= time < to`), `step` (seconds; made longer where a series would have more
    than 2,000 points; default: about 200 points), `by` (`served_entity`, `status_code`, or nothing:
    `by` is null). Times of points are starts of steps, aligned to the epoch. Counts are 0 where
    nothing came, and estimates where a share of the requests is recorded; latencies (milliseconds:
    `p50`, `p95`, `p99` of the whole stay, `execution` the mean in the model; `gateway`, `queue`,
    `features`, `predict` the means of the stay's parts) are null there.
    """
    start, end = (filters.instant(arguments.get(name), name) for name in ("from", "to"))
    if start >= end:
        raise errors.InvalidParameter("from must be before to.")
    metrics = _metrics(arguments.get("metrics"))
    by = arguments.get("by") or None
    if by not in (None, *LINES):
        allowed = ", ".join(LINES)
        raise errors.InvalidParameter(f"by: '{str(by)[:100]}' is not allowed; use {allowed}.")
    step = _step(arguments.get("step"), (end - start).total_seconds())
    table = recorded.sibling(str(arguments["table"]), "payload")
    found = _measured(settings, table, start, end, step, metrics, by)
    times = _times(start, end, step)
    groups = sorted({row["by"] for row in found}, key=str) or ([None] if by is None else [])
    values = {(row["by"], row["time"]): row for row in found}
    return {
        "step_seconds": step,
        "series": [
            {"metric": metric, "by": group, "points": _points(values, group, metric, times)}
            for metric in metrics
            for group in groups
        ],
    }


def _metrics(given: Any) -> list[str]:
    wanted = list(METRICS) if not given else [name.strip() for name in str(given).split(",")]
    for name in wanted:
        if name not in METRICS:
            raise errors.InvalidParameter(
                f"metrics: '{name[:100]}' is not known; use {', '.join(METRICS)}."
            )
    return list(dict.fromkeys(wanted))


def _step(given: Any, span_seconds: float) -> int:
    """A step in whole seconds, long enough for MOST_POINTS."""
    shortest = span_seconds / (MOST_POINTS - 1)
    wanted = span_seconds / 200
    if given not in (None, ""):
        text = str(given)
        if not (text.isascii() and text.isdigit() and int(text[:9]) > 0):
            raise errors.InvalidParameter(f"step: '{text[:100]}' is no whole number of seconds.")
        wanted = int(text[:9])
        if wanted >= shortest:
            return int(wanted)
    least = max(shortest, wanted)
    fitting = [step for step in STEPS if step >= least]
    return fitting[0] if fitting else -int(-least // 86_400) * 86_400


def _times(start: datetime, end: datetime, step: int) -> list[datetime]:
    first = int((start - EPOCH).total_seconds() // step) * step
    count = -int(-(end - EPOCH).total_seconds() // step) - first // step
    return [EPOCH + timedelta(seconds=first + place * step) for place in range(count)]


def _points(
    values: Mapping[tuple[Any, datetime], Mapping[str, Any]],
    group: Any,
    metric: str,
    times: list[datetime],
) -> list[list[Any]]:
    nothing = 0 if metric in COUNTS else None
    return [[time, values.get((group, time), {}).get(metric, nothing)] for time in times]


def requests(
    settings: Settings, full_name: str, start: datetime | None, end: datetime | None
) -> pl.LazyFrame | None:
    """The requests of `[start, end)`; None: no limit."""
    frame = recorded.scan(settings, full_name, start, end)
    wanted = recorded.within(start, end)
    return None if frame is None else frame.filter(*wanted, ~pl.col("shadow"))


def _measured(
    settings: Settings,
    full_name: str,
    start: datetime,
    end: datetime,
    step: int,
    metrics: list[str],
    by: str | None,
) -> list[dict[str, Any]]:
    frame = requests(settings, full_name, start, end)
    if frame is None:
        return []
    group = pl.lit(None, pl.String) if by is None else LINES[by]
    place = pl.col("request_time").dt.epoch("us") // (step * 1_000_000)
    found = (
        frame.select(group.alias("by"), place.alias("place"), **MEASURED)
        .group_by("by", "place")
        .agg(METRICS[name].alias(name) for name in metrics)
        .collect()
    )
    return [
        {**row, "time": EPOCH + timedelta(seconds=row["place"] * step)} for row in found.to_dicts()
    ]
