"""Usage: counted requests, replica-hours, costs."""

from datetime import timedelta
from typing import Any

import deltalake
import polars as pl
import pyarrow as pa
import pytest

from capture import catalog, database, errors, lives, names, prices, rows, usage
from capture.settings import Settings
from tests.capture import shop

HOUR_MS = 3_600_000
START_MS = int(shop.START.timestamp() * 1000)
PRICES: dict[str, Any] = {
    "currency": "EUR",
    "replica_hours": [{"workload_type": "CPU", "workload_size": None, "price": 0.5}],
    "per_1000_requests": 2.0,
}


def found(settings: Settings, *fields: str, **arguments: Any) -> list[tuple[Any, ...]]:
    rows_ = usage.usage(settings, arguments)["usage"]
    return [tuple(row[field] for field in fields) for row in rows_]


def live(settings: Settings, replica: str, hours: tuple[float, float], **changed: Any) -> None:
    """A replica of `shop` between two times, in hours after START."""
    first, last = (START_MS + round(hour * HOUR_MS) for hour in hours)
    given: dict[str, Any] = {
        "endpoint": "shop",
        "served_entity": "v1",
        "workload_type": "CPU",
        "workload_size": "Small",
    }
    with database.transaction(database.open_engine(settings)) as connection:
        life = lives.Life(replica, **(given | changed), from_ms=first, until_ms=first)
        lives.begin(connection, life)
        lives.prolong(connection, [replica], last)


def priced(settings: Settings, body: dict[str, Any]) -> None:
    with database.transaction(database.open_engine(settings)) as connection:
        prices.put(connection, body, "admin", 1)


def test_usage_is_counted_by_what_one_asks_for(shop_settings: Settings) -> None:
    with database.transaction(database.open_engine(shop_settings)) as connection:
        catalog.record(connection, "main.shop.t_payload", "two", "two", {}, {}, 0)
        catalog.record(connection, "main.shop.u_payload", "silent", "silent", {}, {}, 0)
    shop.write_requests(
        shop_settings,
        {"after": 0},
        {"after": 1, "requester": "bob", "status_code": 429},
        {"after": 2, "status_code": 500},
    )
    two = {"after": 0, "served_entity_name": None}
    shop.write_requests(shop_settings, two, table="main.shop.t_payload")
    wanted = ("endpoint", "served_entity", "requests", "errors", "limited", "execution_ms")
    assert found(shop_settings, *wanted) == [
        ("shop", "v1", 3, 1, 1, 12),
        ("two", None, 1, 0, 0, 4),
    ]
    by_user = found(shop_settings, "user", "requests", by="user", endpoint="shop")
    assert by_user == [("ann", 2), ("bob", 1)]
    later = found(shop_settings, "day", "requests", **{"by": "day", "from": "2024-03-01T12:00:01Z"})
    assert later == [(shop.START.date(), 2)]
    busiest = usage.usage(shop_settings, {"by": "user", "order_by": "requests", "limit": 1})
    assert [row["user"] for row in busiest["usage"]] == ["ann"]
    assert busiest["more"] and busiest["total"]["requests"] == 4
    for wrong in ({"by": "colour"}, {"order_by": "colour"}):
        with pytest.raises(errors.InvalidParameter, match="colour"):
            usage.usage(shop_settings, wrong)


def test_usage_counts_what_a_thinned_record_lacks_and_nothing_twice(
    shop_settings: Settings,
) -> None:
    model_fault = {"after": 0, "status_code": 400, "error_source": "model"}
    shop.write_requests(shop_settings, model_fault, {"after": 1})
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
    wanted = ("user", "requests", "errors", "execution_ms")
    assert found(shop_settings, *wanted, by="user") == [("ann", 4, 2, 16)]
    assert found(shop_settings, *wanted, by="user", endpoint="other") == []


def test_hours_of_replicas_are_cut_at_days_and_at_the_period(shop_settings: Settings) -> None:
    live(shop_settings, "a", (0, 14))  # START is noon
    live(shop_settings, "b", (1, 2))
    live(shop_settings, "c", (-30, -20))
    days = found(shop_settings, "day", "replica_hours", by="day", **{"from": "2024-03-01T00:00Z"})
    assert [(day.isoformat(), hours) for day, hours in days] == [
        ("2024-03-01", 13.0),
        ("2024-03-02", 2.0),
    ]
    period = {"from": "2024-03-01T12:30:00Z", "to": "2024-03-01T13:30:00Z"}
    assert found(shop_settings, "replica_hours", by="endpoint", **period) == [(1.5,)]


def test_a_replica_counts_until_it_was_last_seen_and_never_twice(shop_settings: Settings) -> None:
    live(shop_settings, "a", (0, 1))
    with database.transaction(database.open_engine(shop_settings)) as connection:
        lives.prolong(
            connection, ["a"], START_MS + 2 * HOUR_MS
        )  # seen again, by another controller
    assert found(shop_settings, "replica_hours", by="endpoint") == [(2.0,)]


def test_costs_follow_the_price_table(shop_settings: Settings) -> None:
    live(shop_settings, "a", (0, 4))
    shop.write_requests(shop_settings, *({"after": second} for second in range(5)))
    wanted = ("cost", "cost_reason")
    assert found(shop_settings, *wanted, by="endpoint") == [(None, usage.NO_PRICES)]
    priced(shop_settings, PRICES)
    assert found(shop_settings, *wanted, by="endpoint") == [(4 * 0.5 + 0.005 * 2, None)]
    small = {"workload_type": "CPU", "workload_size": "Small", "price": 1.0}
    priced(shop_settings, PRICES | {"replica_hours": [*PRICES["replica_hours"], small]})
    assert found(shop_settings, *wanted, by="endpoint") == [(4 * 1.0 + 0.005 * 2, None)]
    priced(shop_settings, {"replica_hours": [], "per_1000_requests": 2.0})
    assert found(shop_settings, *wanted, by="endpoint") == [(0.005 * 2, None)]


def test_a_missing_price_is_a_reason_and_never_0(shop_settings: Settings) -> None:
    live(shop_settings, "a", (0, 4))
    live(shop_settings, "b", (0, 1), served_entity="v2", workload_type="GPU_SMALL")
    priced(shop_settings, PRICES)
    assert found(shop_settings, "served_entity", "cost", "cost_reason") == [
        ("v1", 2.0, None),
        ("v2", None, "no price for a replica-hour of GPU_SMALL Small"),
    ]
    total = usage.usage(shop_settings, {})["total"]
    assert (total["cost"], total["replica_hours"]) == (None, 5.0)
    assert "GPU_SMALL" in total["cost_reason"]


def test_requests_without_a_known_replica_have_no_cost(shop_settings: Settings) -> None:
    shop.write_requests(shop_settings, {"after": 0})
    priced(shop_settings, PRICES)
    assert found(shop_settings, "cost", "cost_reason") == [(None, usage.NO_HOURS)]
    priced(shop_settings, {"per_1000_requests": 2.0})
    assert found(shop_settings, "cost", "cost_reason") == [(0.002, None)]


def test_users_share_the_hours_of_a_day_by_their_time_in_the_model(shop_settings: Settings) -> None:
    live(shop_settings, "a", (0, 4))
    live(shop_settings, "b", (24, 25))
    shop.write_requests(
        shop_settings,
        {"after": 0, "execution_duration_ms": 30},
        {"after": 1, "execution_duration_ms": 10, "requester": "bob"},
    )
    priced(shop_settings, PRICES)
    shares = found(shop_settings, "user", "replica_hours", by="user")
    assert shares == [("ann", 3.0), ("bob", 1.0), (None, 1.0)]
    period = {"to": (shop.START + timedelta(hours=2)).isoformat()}
    shares = found(shop_settings, "user", "cost", by="user", **period)
    assert shares == [("ann", 0.752), ("bob", 0.252)]
