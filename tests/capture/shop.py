"""Recorded requests of a shop, for tests that read them back: an endpoint, a request a minute."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import deltalake
import pyarrow as pa

from capture import catalog, database, names, rows, unpack
from capture.settings import Settings

TABLE = "main.shop.s_payload"
START = datetime(2024, 3, 1, 12, tzinfo=UTC)


def record(settings: Settings, table: str, endpoint: str) -> None:
    """Register a payload table of an endpoint."""
    with database.transaction(database.open_engine(settings)) as connection:
        catalog.record(connection, table, endpoint, endpoint, {}, {}, 0)


def request_id(place: int) -> str:
    at = START + timedelta(minutes=place)
    return str(names.uuid7(int(at.timestamp() * 1000), place))


def payload(
    place: int, features: Any = None, prediction: Any = 0.5, **changed: Any
) -> dict[str, Any]:
    """A request `place` minutes after START; features: of one row, or a list of rows."""
    at = START + timedelta(minutes=place)
    records = features if isinstance(features, list) else [features or {"x": place}]
    row = dict.fromkeys(rows.PAYLOAD_SCHEMA.names) | {
        "request_date": at.date(),
        "databricks_request_id": request_id(place),
        "request_time": at,
        "status_code": 200,
        "endpoint_id": "e",
        "served_entity_name": "v1",
        "client_request_id": f"client-{place}",
        "shadow": False,
        "request_encoding": "utf-8",
        "execution_duration_ms": 3,
        "request": json.dumps({"dataframe_records": records}),
        "response": json.dumps({"predictions": [prediction] * len(records)}),
        "gateway_us": 1000,
        "queue_us": 500,
        "features_us": 0,
        "predict_us": 3500,
    }
    return row | changed


def write(settings: Settings, *payload_rows: dict[str, Any], table: str = TABLE) -> None:
    """One commit of payload rows, unpacked."""
    deltalake.write_deltalake(
        names.table_path(settings.tables_root, names.table_name(table)),
        pa.Table.from_pylist(list(payload_rows), schema=rows.PAYLOAD_SCHEMA),
        mode="append",
        partition_by=["request_date"],
    )
    unpack.follow(settings, table)


def label(
    settings: Settings, value: Any, minutes: int, table: str = "main.shop.s_labels", **ids: Any
) -> None:
    """One label, `minutes` after START."""
    at = START + timedelta(minutes=minutes)
    row = dict.fromkeys(rows.LABEL_SCHEMA.names) | {
        "received_date": at.date(),
        "row_index": 0,
        "label": json.dumps(value),
        "label_time": at,
        "received_time": at,
    }
    deltalake.write_deltalake(
        names.table_path(settings.tables_root, names.table_name(table)),
        pa.Table.from_pylist([row | ids], schema=rows.LABEL_SCHEMA),
        mode="append",
        partition_by=["received_date"],
    )


def write_requests(settings: Settings, *requests: dict[str, Any], table: str = TABLE) -> None:
    """Requests: seconds after START, and what differs from a good one of 10 ms."""
    found = []
    for place, request in enumerate(requests):
        changed = dict(request)
        at = START + timedelta(seconds=changed.pop("after"))
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
        names.table_path(settings.tables_root, names.table_name(table)),
        pa.Table.from_pylist(found, schema=rows.PAYLOAD_SCHEMA),
        mode="append",
        partition_by=["request_date"],
    )
