"""What the stand-in answers to the pages of administration: usage, audit, settings."""

from typing import Any

NAME = "flight-delay"
HOSTILE = "<script>alert(1)</script> [x](http://evil.example) **bold** $a$"
TOTAL = {
    "requests": 4200,
    "errors": 21,
    "limited": 7,
    "execution_ms": 63_000,
    "replica_hours": 48.0,
    "cost": 12.5,
    "cost_reason": None,
}
VERSION = TOTAL | {"endpoint": NAME, "served_entity": "v2"}
USAGE = {"usage": [VERSION], "total": TOTAL, "currency": "EUR"}
DAYS = {
    **USAGE,
    "usage": [VERSION | {"user": "ann", "day": f"2026-11-{day}"} for day in (24, 25)],
}
ENTRY = {
    "id": 9,
    "time": "2026-11-25T10:00:00Z",
    "actor": "ann",
    "address": "10.0.0.7",
    "action": "endpoint.promoted",
    "endpoint": NAME,
    "before": {"config_version": 1, "split": {"v1": 90, "v2": 10}},
    "after": {"config_version": 2, "split": {"v1": 50, "v2": 50}},
    "reason": HOSTILE,
}
PRICES: dict[str, Any] = {
    "currency": "EUR",
    "replica_hours": [{"workload_type": "CPU", "workload_size": None, "price": 0.26}],
    "per_1000_requests": 0.02,
    "updated_by": "admin",
    "updated_time": "2026-11-25T10:00:00Z",
}
TOKEN = {
    "id": "00ff00ff00ff00ff",
    "user": "ann",
    "comment": HOSTILE,
    "created_time": "2026-11-25T10:00:00Z",
    "expires_time": None,
}
TABLE = "main.flights.flight_delay_payload"
REPLIES: dict[str, Any] = {
    "/usage": DAYS,
    "/audit": {"audit": [ENTRY], "next_page_token": "OQ=="},
    "/tokens": {"tokens": [TOKEN]},
    "/grants": {"user": "ann", "grants": [{"endpoint": NAME, "level": "CAN_QUERY"}]},
    "/scopes/list": {"scopes": [{"name": "models"}]},
    "/secrets/list": {"secrets": [{"key": "api-key", "last_updated_timestamp": 1_790_000_000_000}]},
    "/prices": PRICES,
    "/storage": {
        "wal_bytes": 18_211,
        "wal_limit_bytes": 4 << 30,
        "disk_free_bytes": 90 << 30,
        "disk_total_bytes": 200 << 30,
    },
    "/tables": {"tables": [{"full_name": TABLE, "endpoint": NAME, "enabled": True}]},
}
