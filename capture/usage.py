"""Usage: counted requests, replica-hours, and what both cost.

Requests come from the record, and where that is thinned or off from the usage table; hours from
the lives of replicas (`lives`), prices from the price table (`prices`). Hours are shared out among
the users of a version's day by their time in the model; hours of a day on which nobody called are
nobody's. Costs are by the present prices, whatever they were.
"""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

import polars as pl

from capture import database, errors, filters, lives, prices, recorded, rows, selection, series
from capture.settings import Settings

DAY_MS, HOUR_MS = 86_400_000, 3_600_000
DIMENSIONS = ("endpoint", "served_entity", "user", "day")
ORDERS = ("requests", "errors", "limited", "execution_ms", "replica_hours", "cost")
NO_PRICES = "no price is set"
NO_HOURS = "how long replicas were there is not known for a part of the time"
LIVED = pl.Schema(
    [
        ("endpoint", pl.String()),
        ("served_entity", pl.String()),
        ("day", pl.Date()),
        ("hours", pl.Float64()),
        ("hours_cost", pl.Float64()),
        ("unpriced", pl.List(pl.String)),
    ]
)
_DAY = ["endpoint", "served_entity", "day"]


def usage(settings: Settings, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """{"usage": [{..., "requests", "errors", "limited", "execution_ms", "replica_hours", "cost",
    "cost_reason"}], "total": the same of all, "currency", "more"}.

    arguments: `by` (any of DIMENSIONS, joined by commas; default: endpoint, served_entity), `from`,
    `to` (RFC 3339, may be left out), `endpoint` (one of them), `order_by` (one of ORDERS, largest
    first; default: by what they go by), `skip` and `limit` (of rows; default: all). limited:
    answers of 429. A cost is None with its reason where a price is missing.
    """
    wanted = _dimensions(arguments)
    start, end = (
        filters.instant(arguments[name], name) if arguments.get(name) else None
        for name in ("from", "to")
    )
    only = arguments.get("endpoint") or None
    engine = database.open_engine(settings)
    try:
        with database.reading(engine) as connection:
            table = prices.read(connection)
            found = lives.between(connection, _ms(start), _ms(end), only)
    finally:
        engine.dispose()
    used = _joined(_counted(settings, start, end, only), _lived(found, table, start, end))
    grouped = _ordered(_summed(used, wanted), wanted, arguments.get("order_by"))
    skip, limit = int(arguments.get("skip") or 0), arguments.get("limit")
    shown = grouped.slice(skip, None if limit is None else int(limit))
    total = _summed(used, [])
    return {
        "usage": [_told(row, table) for row in shown.to_dicts()],
        "total": _told(total.row(0, named=True), table),
        "currency": table.currency,
        "more": grouped.height > skip + shown.height,
    }


def _dimensions(arguments: Mapping[str, Any]) -> list[str]:
    wanted = [
        name.strip() for name in str(arguments.get("by") or "endpoint,served_entity").split(",")
    ]
    for name in wanted:
        if name not in DIMENSIONS:
            raise errors.InvalidParameter(
                f"by: '{name[:100]}' is not known; use {', '.join(DIMENSIONS)}."
            )
    order = arguments.get("order_by")
    if order is not None and order not in ORDERS:
        raise errors.InvalidParameter(
            f"order_by: '{str(order)[:100]}' is not known; use {', '.join(ORDERS)}."
        )
    return list(dict.fromkeys(wanted))


# Requests ----------------------------------------------------------------------------------------


def _counted(
    settings: Settings, start: datetime | None, end: datetime | None, only: str | None
) -> pl.DataFrame:
    """Requests per endpoint, version, user and day."""
    parts = []
    for one in selection.recorded_tables(settings):
        frame = series.requests(settings, one.full_name, start, end)
        if frame is not None and only in (None, one.endpoint_name):
            parts.append(frame.select(pl.lit(one.endpoint_name).alias("endpoint"), **COUNTED))
    noted = recorded.scan(settings, rows.USAGE_TABLE, start, end)
    if noted is not None:
        noted = noted.filter(*recorded.within(start, end))
        if only is not None:
            noted = noted.filter(pl.col("endpoint_name") == only)
        parts.append(_unrecorded(noted, parts))
    if not parts:
        parts = [pl.LazyFrame(schema=_EMPTY)]
    return (
        pl.concat(parts)
        .group_by(DIMENSIONS)
        .agg(
            pl.len().cast(pl.Int64).alias("requests"),
            pl.col("failed").sum().cast(pl.Int64).alias("errors"),
            pl.col("limited").sum().cast(pl.Int64).alias("limited"),
            pl.col("execution_ms").sum(),
        )
        .collect()
    )


# Of each request that is counted, beside its endpoint.
COUNTED = {
    **series.DIMENSIONS,
    "id": pl.col("databricks_request_id"),
    "failed": filters.FAILED,
    "limited": pl.col("status_code") == 429,
    "execution_ms": pl.col("execution_duration_ms"),
}
_EMPTY = {
    "endpoint": pl.String,
    "served_entity": pl.String,
    "user": pl.String,
    "day": pl.Date,
    "failed": pl.Boolean,
    "limited": pl.Boolean,
    "execution_ms": pl.Int64,
}


def _unrecorded(noted: pl.LazyFrame, parts: list[pl.LazyFrame]) -> pl.LazyFrame:
    """Tracked requests that no record holds, as it is thinned or off. Of the others the record says
    more: an answer of 400 may be the model's fault."""
    without_source = noted.with_columns(pl.lit(None, pl.String).alias("error_source"))
    counted = without_source.select(pl.col("endpoint_name").alias("endpoint"), **COUNTED)
    for part in parts:
        counted = counted.join(part.select("id"), on="id", how="anti")
    return counted


# Hours and costs ---------------------------------------------------------------------------------


def _lived(
    found: Iterable[lives.Life],
    table: prices.Prices,
    start: datetime | None,
    end: datetime | None,
) -> pl.DataFrame:
    """Replica-hours per endpoint, version and day of [start, end), and what they cost."""
    pieces = []
    first, last = _ms(start), _ms(end)
    for life in found:
        price = table.hour(life.workload_type, life.workload_size)
        size = f" {life.workload_size}" if life.workload_size else ""
        unpriced = [] if price is not None else [f"{life.workload_type}{size}"]
        place = max(life.from_ms, first or 0)
        ends = life.until_ms if last is None else min(life.until_ms, last)
        while place < ends:
            next_day = (place // DAY_MS + 1) * DAY_MS
            hours = (min(ends, next_day) - place) / HOUR_MS
            day = datetime.fromtimestamp(place / 1000, UTC).date()
            cost = 0.0 if price is None else hours * price
            pieces.append((life.endpoint, life.served_entity, day, hours, cost, unpriced))
            place = next_day
    frame = pl.DataFrame(pieces, schema=LIVED, orient="row")
    return frame.group_by(_DAY).agg(
        pl.col("hours", "hours_cost").sum(), pl.col("unpriced").explode().drop_nulls().unique()
    )


def _joined(counted: pl.DataFrame, lived: pl.DataFrame) -> pl.DataFrame:
    """Requests with their part of the day's hours; hours of days without a request stand alone."""
    time, count = pl.col("execution_ms"), pl.col("requests")
    all_time, all_count = time.sum().over(_DAY), count.sum().over(_DAY)
    share = pl.when(all_time > 0).then(time / all_time).otherwise(count / all_count)
    both = counted.with_columns(share.alias("share")).join(
        lived, on=_DAY, how="full", coalesce=True, nulls_equal=True
    )
    part = pl.col("share").fill_null(1.0)
    return both.with_columns(
        pl.col("requests", "errors", "limited", "execution_ms").fill_null(0),
        (pl.col("hours").fill_null(0.0) * part).alias("replica_hours"),
        (pl.col("hours_cost").fill_null(0.0) * part).alias("hours_cost"),
        # Somebody was in the model, so a replica was there: before lives were written down.
        (pl.col("hours").is_null() & (time > 0)).alias("unlived"),
    )


def _summed(used: pl.DataFrame, wanted: list[str]) -> pl.DataFrame:
    sums = (
        pl.col(
            "requests", "errors", "limited", "execution_ms", "replica_hours", "hours_cost"
        ).sum(),
        pl.col("unpriced").explode().drop_nulls().unique().sort(),
        pl.col("unlived").any(),
    )
    if not wanted:
        return used.select(sums[0], sums[1].implode(), sums[2])
    return used.group_by(wanted).agg(*sums)


def _ordered(grouped: pl.DataFrame, wanted: list[str], order: str | None) -> pl.DataFrame:
    if order is None:
        return grouped.sort(wanted, nulls_last=True)
    by = {"cost": "hours_cost"}.get(order, order)
    turned = [True] + [False] * len(wanted)
    return grouped.sort([by, *wanted], descending=turned, nulls_last=True)


def _told(row: dict[str, Any], table: prices.Prices) -> dict[str, Any]:
    unpriced, hours_cost = row.pop("unpriced") or [], row.pop("hours_cost")
    unlived = row.pop("unlived")
    reason = None
    if not table.known:
        reason = NO_PRICES
    elif unpriced:
        reason = f"no price for a replica-hour of {', '.join(unpriced)}"
    elif unlived and table.replica_hours:
        reason = NO_HOURS
    requests_cost = row["requests"] / 1000 * (table.per_1000_requests or 0.0)
    cost = None if reason else hours_cost + requests_cost
    return {**row, "cost": cost, "cost_reason": reason}


def _ms(at: datetime | None) -> int | None:
    return None if at is None else int(at.timestamp() * 1000)
