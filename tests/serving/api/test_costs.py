"""Prices and usage over HTTP: who may, what is refused, what a change does."""

from typing import Any

import pytest

OURS = "/api/1.0"
TABLE = {
    "currency": "EUR",
    "replica_hours": [
        {"workload_type": "CPU", "workload_size": None, "price": 0.1},
        {"workload_type": "CPU", "workload_size": "Large", "price": 0.4},
    ],
    "per_1000_requests": 0.02,
}


def test_administrators_put_prices_and_everybody_reads_them(server: Any) -> None:
    token = server.token("reads-prices")
    put = server.ok("PUT", f"{OURS}/prices", TABLE)
    assert {key: put[key] for key in TABLE} == TABLE
    assert put["updated_by"] == "admin" and put["updated_time"].endswith("Z")
    assert server.ok("GET", f"{OURS}/prices", token=token) == put
    assert server.refused("PUT", f"{OURS}/prices", TABLE, token=token)[0] == 403
    dearer = {**TABLE, "per_1000_requests": None}
    server.ok("PUT", f"{OURS}/prices", dearer)
    entry = server.ok("GET", f"{OURS}/audit?action=prices.put")["audit"][0]
    assert (entry["before"], entry["after"]) == (TABLE, dearer)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"currency": "euro"}, "currency"),
        ({"per_1000_requests": -1}, "per_1000_requests"),
        ({"per_1000_requests": "free"}, "per_1000_requests"),
        ({"replica_hours": [{"workload_type": "CPU"}]}, "replica_hours[0].price"),
        ({"replica_hours": [{"workload_type": "abacus", "price": 1}]}, "workload_type"),
        ({"replica_hours": [{"workload_type": "CPU", "price": 1}] * 2}, "two prices of CPU"),
        ({"discount": 1}, "discount"),
    ],
)
def test_a_wrong_price_is_refused_by_its_name(
    server: Any, change: dict[str, Any], named: str
) -> None:
    status, message = server.refused("PUT", f"{OURS}/prices", {**TABLE, **change})
    assert status == 400 and named in message


def test_usage_has_totals_pages_and_an_order(server: Any) -> None:
    found = server.ok("GET", f"{OURS}/usage?by=endpoint&order_by=requests&page_size=1")
    assert set(found) >= {"usage", "total", "currency"}
    assert set(found["total"]) >= {"requests", "errors", "limited", "replica_hours", "cost"}
    assert server.refused("GET", f"{OURS}/usage?order_by=colour")[0] == 400


def test_the_storage_is_shown_to_administrators(server: Any) -> None:
    found = server.ok("GET", f"{OURS}/storage")
    assert 0 <= found["wal_bytes"] <= found["wal_limit_bytes"]
    assert 0 < found["disk_free_bytes"] <= found["disk_total_bytes"]
    token = server.token("wonders-about-the-disk")
    assert server.refused("GET", f"{OURS}/storage", token=token)[0] == 403
