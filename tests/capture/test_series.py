"""Requests as series over time, and counted for usage."""

from datetime import timedelta
from typing import Any

import deltalake
import polars as pl
import pyarrow as pa
import pytest

from capture import catalog, database, errors, names, rows, series
from capture.settings import Settings
from tests.capture import shop

RANGE = {
    "table": shop.TABLE,
    "from": "2024-03-01T12:00:00Z",
    "to": "2024-03-01T12:03:00Z",
    "step": 60,
}


def write(shop_settings: Settings, *requests: dict[str, Any], table: str = shop.TABLE) -> None:
    """Requests: seconds after shop.START, and what differs from a good one of 10 ms."""
    found = []
    for place, request in enumerate(requests):
        changed = dict(request)
        at = shop.START + timedelta(seconds=changed.pop("after"))
        found.append(
            dict.fromkeys(rows.PAYLOAD_SCHEMA.names)
            | {
                "request_date": at.date(),
                "databricks_request_id": str(names.uuid7(int(at.timestamp() * 1000), place)),
                "request_time": at,
                "status_code": 200,
                "endpoint_id": "e",
                "served_entity_name": "v1",
                "requester": "ann",
                "shadow": False,
                "request_encoding": "utf-8",
                "execution_duration_ms": 4,
                "gateway_us": 1000,
                "queue_us": 2000,
                "features_us": 3000,
                "predict_us": 4000,
            }
            | changed
        )
    deltalake.write_deltalake(
        names.table_path(shop_settings.tables_root, names.table_name(table)),
        pa.Table.from_pylist(found, schema=rows.PAYLOAD_SCHEMA),
        mode="append",
        partition_by=["request_date"],
    )


def values(reply: dict[str, Any], metric: str, by: str | None = None) -> list[Any]:
    (found,) = [one for one in reply["series"] if (one["metric"], one["by"]) == (metric, by)]
    return [value for _, value in found["points"]]


def test_requests_errors_and_latencies_per_step(shop_settings):
    write(
        shop_settings,
        {"after": 0},
        {"after": 59, "gateway_us": 21_000},
        {"after": 60, "status_code": 400, "error_source": "model"},
        {"after": 61, "status_code": 400, "error_source": "request"},
        {"after": 62, "status_code": 503, "error_source": "server"},
        {"after": 63, "shadow": True},
        {"after": 180},
        {"after": -1},
    )
    reply = series.timeseries(shop_settings, RANGE)
    assert reply["step_seconds"] == 60
    assert values(reply, "requests") == [2, 3, 0]
    assert values(reply, "errors") == [0, 2, 0]
    assert values(reply, "p99") == [30.0, 10.0, None]
    assert values(reply, "execution") == [4.0, 4.0, None]
    times = [time for time, _ in reply["series"][0]["points"]]
    assert times == [shop.START + timedelta(minutes=n) for n in range(3)]


def test_series_per_version(shop_settings):
    write(shop_settings, {"after": 0}, {"after": 1, "served_entity_name": "v2"}, {"after": 61})
    reply = series.timeseries(
        shop_settings, {**RANGE, "by": "served_entity", "metrics": "requests,p50"}
    )
    assert {(one["metric"], one["by"]) for one in reply["series"]} == {
        (metric, by) for metric in ("requests", "p50") for by in ("v1", "v2")
    }
    assert values(reply, "requests", "v1") == [1, 1, 0]
    assert values(reply, "requests", "v2") == [1, 0, 0]


def test_a_table_that_is_not_there_yet_has_empty_series(shop_settings):
    reply = series.timeseries(shop_settings, {**RANGE, "metrics": "requests,p50"})
    assert values(reply, "requests") == [0, 0, 0]
    assert values(reply, "p50") == [None] * 3


@pytest.mark.parametrize(
    ("days", "step", "expected"),
    [
        (1, 60, 60),
        (1, 1, 60),
        (1, None, 600),
        (30, 60, 1800),
        (365, 3600, 21_600),
        (4000, 1, 259_200),
    ],
)
def test_no_series_has_more_than_2000_points(shop_settings, days, step, expected):
    end = shop.START + timedelta(days=days)
    asked = {
        "table": shop.TABLE,
        "from": shop.START.isoformat(),
        "to": end.isoformat(),
        "step": step,
    }
    reply = series.timeseries(shop_settings, {**asked, "metrics": "requests"})
    assert reply["step_seconds"] == expected
    assert len(reply["series"][0]["points"]) <= series.MOST_POINTS


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"metrics": "requests,joy"}, "joy"),
        ({"by": "colour"}, "colour"),
        ({"from": "then"}, "then"),
        ({"to": None}, "to"),
        ({"to": "2024-03-01T12:00:00Z"}, "before"),
        ({"step": "fast"}, "fast"),
        ({"step": 0}, "step"),
    ],
)
def test_arguments_that_mean_nothing_are_refused_by_name(shop_settings, change, named):
    with pytest.raises(errors.InvalidParameter, match=named):
        series.timeseries(shop_settings, {**RANGE, **change})


def test_usage_is_counted_by_what_one_asks_for(shop_settings):
    with database.transaction(database.open_engine(shop_settings)) as connection:
        catalog.record(connection, "main.shop.t_payload", "two", "two", {}, {}, 0)
        catalog.record(connection, "main.shop.u_payload", "silent", "silent", {}, {}, 0)
    write(
        shop_settings,
        {"after": 0},
        {"after": 1, "requester": "bob"},
        {"after": 2, "status_code": 500},
    )
    write(shop_settings, {"after": 0, "served_entity_name": None}, table="main.shop.t_payload")
    assert series.usage(shop_settings, {}) == [
        {"endpoint": "shop", "served_entity": "v1", "requests": 3, "errors": 1, "execution_ms": 12},
        {"endpoint": "two", "served_entity": None, "requests": 1, "errors": 0, "execution_ms": 4},
    ]
    by_user = series.usage(shop_settings, {"by": "user", "endpoint": "shop"})
    assert [(one["user"], one["requests"]) for one in by_user] == [("ann", 2), ("bob", 1)]
    later = series.usage(shop_settings, {"by": "day", "from": "2024-03-01T12:00:01Z"})
    assert [(one["day"].isoformat(), one["requests"]) for one in later] == [("2024-03-01", 2)]
    with pytest.raises(errors.InvalidParameter, match="colour"):
        series.usage(shop_settings, {"by": "colour"})


def test_usage_counts_what_a_thinned_record_lacks_and_nothing_twice(shop_settings):
    write(shop_settings, {"after": 0, "status_code": 400, "error_source": "model"}, {"after": 1})
    payload = names.table_path(shop_settings.tables_root, names.table_name(shop.TABLE))
    kept = pl.read_delta(payload)["databricks_request_id"].to_list()
    tracked = [
        dict.fromkeys(rows.USAGE_SCHEMA.names)
        | {
            "request_date": shop.START.date(),
            "databricks_request_id": request_id,
            "request_time": shop.START,
            "status_code": status,
            "requester": "ann",
            "request_streaming": False,
            "endpoint_id": "e",
            "endpoint_name": "shop",
            "served_entity_name": "v1",
            "execution_duration_ms": 4,
        }
        for request_id, status in [(kept[0], 400), (kept[1], 200), ("thin", 503), ("thinner", 200)]
    ]
    deltalake.write_deltalake(
        names.table_path(shop_settings.tables_root, names.table_name(rows.USAGE_TABLE)),
        pa.Table.from_pylist(tracked, schema=rows.USAGE_SCHEMA),
        partition_by=["request_date"],
    )
    assert series.usage(shop_settings, {"by": "user"}) == [
        {"user": "ann", "requests": 4, "errors": 2, "execution_ms": 16}
    ]
    assert series.usage(shop_settings, {"by": "user", "endpoint": "other"}) == []
