"""Recorded requests as series over time, and counted for usage.

Read from the payload table, so a request counts once, however many rows it held. Shadow copies do
not count: nobody waited for them. Usage counts tracked requests as well that no record holds.
"""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import polars as pl

from capture import errors, filters, recorded, rows, selection
from capture.settings import Settings

MOST_POINTS = 2_000
STEPS = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 21_600, 43_200, 86_400)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# Of each request, before requests are counted: a group of plain columns is summed up faster.
MEASURED = {
    "duration_us": pl.sum_horizontal("gateway_us", "queue_us", "features_us", "predict_us"),
    "failed": filters.FAILED,
    "execution_ms": pl.col("execution_duration_ms"),
}
METRICS: dict[str, pl.Expr] = {
    "requests": pl.len(),
    "errors": pl.col("failed").sum(),
    "p50": pl.col("duration_us").quantile(0.5) / 1000,
    "p95": pl.col("duration_us").quantile(0.95) / 1000,
    "p99": pl.col("duration_us").quantile(0.99) / 1000,
    "execution": pl.col("execution_ms").mean(),
}
COUNTS = ("requests", "errors")
DIMENSIONS = {
    "served_entity": pl.col("served_entity_name"),
    "user": pl.col("requester"),
    "day": pl.col("request_date"),
}

# Of each request that is counted for usage, beside its endpoint.
COUNTED = {
    **DIMENSIONS,
    "id": pl.col("databricks_request_id"),
    "failed": filters.FAILED,
    "execution_ms": pl.col("execution_duration_ms"),
}


def timeseries(settings: Settings, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """{"step_seconds", "series": [{"metric", "by", "points": [[time, value], ...]}]}.

    arguments: `table`, `metrics` (names of METRICS joined by commas; default: all), `from`, `to`
    (RFC 3339, `from <= time < to`), `step` (seconds; made longer where a series would have more
    than 2,000 points; default: about 200 points), `by` (`served_entity`, or nothing: `by` is null).
    Times of points are starts of steps, aligned to the epoch. Counts are 0 where nothing came;
    latencies (milliseconds: `p50`, `p95`, `p99` of the whole stay, `execution` the mean in the
    model) are null there.
    """
    start, end = (filters.instant(arguments.get(name), name) for name in ("from", "to"))
    if start >= end:
        raise errors.InvalidParameter("from must be before to.")
    metrics = _metrics(arguments.get("metrics"))
    by = arguments.get("by") or None
    if by not in (None, "served_entity"):
        raise errors.InvalidParameter(f"by: '{str(by)[:100]}' is not allowed; use served_entity.")
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


def _requests(
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
    frame = _requests(settings, full_name, start, end)
    if frame is None:
        return []
    group = pl.lit(None, pl.String) if by is None else DIMENSIONS[by]
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


def usage(settings: Settings, arguments: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Counted requests: [{..., "requests", "errors", "execution_ms"}], ordered by what they go by.

    arguments: `by` (any of `endpoint`, `served_entity`, `user`, `day`, joined by commas; default:
    endpoint, served_entity), `from`, `to` (RFC 3339, may be left out), `endpoint` (one of them).
    """
    wanted = [
        name.strip() for name in str(arguments.get("by") or "endpoint,served_entity").split(",")
    ]
    for name in wanted:
        if name not in ("endpoint", *DIMENSIONS):
            raise errors.InvalidParameter(
                f"by: '{name[:100]}' is not known; use endpoint, {', '.join(DIMENSIONS)}."
            )
    start, end = (
        filters.instant(arguments[name], name) if arguments.get(name) else None
        for name in ("from", "to")
    )
    only = arguments.get("endpoint") or None
    parts = []
    for one in selection.recorded_tables(settings):
        frame = _requests(settings, one.full_name, start, end)
        if frame is not None and only in (None, one.endpoint_name):
            parts.append(frame.select(pl.lit(one.endpoint_name).alias("endpoint"), **COUNTED))
    noted = recorded.scan(settings, rows.USAGE_TABLE, start, end)
    if noted is not None:
        noted = noted.filter(*recorded.within(start, end))
        if only is not None:
            noted = noted.filter(pl.col("endpoint_name") == only)
        parts.append(_unrecorded(noted, parts))
    if not parts:
        return []
    counted = (
        pl.concat(parts)
        .group_by(wanted)
        .agg(
            pl.len().cast(pl.Int64).alias("requests"),
            pl.col("failed").sum().cast(pl.Int64).alias("errors"),
            pl.col("execution_ms").sum(),
        )
    )
    return counted.sort(wanted, nulls_last=True).collect().to_dicts()


def _unrecorded(noted: pl.LazyFrame, parts: list[pl.LazyFrame]) -> pl.LazyFrame:
    """Tracked requests that no record holds, as it is thinned or off. Of the others the record says
    more: an answer of 400 may be the model's fault."""
    without_source = noted.with_columns(pl.lit(None, pl.String).alias("error_source"))
    counted = without_source.select(pl.col("endpoint_name").alias("endpoint"), **COUNTED)
    for part in parts:
        counted = counted.join(part.select("id"), on="id", how="anti")
    return counted
