"""Recorded tables as frames: rows by any time, and what was known of their truth by then."""

import json
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import deltalake
import polars as pl
import pyarrow as pa
import pytest

from capture import catalog, database, names, recorded, rows, unpack
from capture.settings import Settings

TABLE = "main.shop.s_payload"
START = datetime(2024, 3, 1, 12, tzinfo=UTC)


@pytest.fixture(scope="module")
def migrated(tmp_path_factory) -> Path:
    """A state database to copy: migrating one takes longer than most tests here."""
    settings = Settings(data_dir=tmp_path_factory.mktemp("migrated"))
    database.migrate(settings)
    return settings.data_dir / "inferlake.db"


@pytest.fixture
def settings(tmp_path: Path, migrated: Path) -> Settings:
    shutil.copy(migrated, tmp_path)
    settings = Settings(data_dir=tmp_path)
    record(settings, TABLE, "shop")
    return settings


def record(settings: Settings, table: str, endpoint: str) -> None:
    with database.transaction(database.open_engine(settings)) as connection:
        catalog.record(connection, table, endpoint, endpoint, {}, {}, 0)


def request_id(place: int) -> str:
    at = START + timedelta(minutes=place)
    return str(names.uuid7(int(at.timestamp() * 1000), place))


def payload(place: int, features: Any = None, prediction: Any = 0.5, **changed: Any):
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
    deltalake.write_deltalake(
        names.table_path(settings.tables_root, names.table_name(table)),
        pa.Table.from_pylist(list(payload_rows), schema=rows.PAYLOAD_SCHEMA),
        mode="append",
        partition_by=["request_date"],
    )
    unpack.follow(settings, table)


def label(settings: Settings, value: Any, minutes: int, table: str = "main.shop.s_labels", **ids):
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


def test_the_label_known_by_a_time_is_joined_and_none_from_later(settings):
    write(settings, *(payload(place) for place in range(4)))
    label(settings, True, 10, client_request_id="client-0")
    label(settings, False, 20, client_request_id="client-0")
    label(settings, True, 30, databricks_request_id=request_id(1))
    label(settings, False, 5, client_request_id="client-1")

    def known(until: int) -> list[float | None]:
        frame = recorded.joined(settings, TABLE, START + timedelta(minutes=until))
        return frame.sort("request_time")["label"].to_list()

    assert known(10) == [1.0, 0.0, None, None]
    assert known(30) == [0.0, 1.0, None, None]
    assert known(2) == [None, None, None]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([True, False], [1.0, 0.0]),
        ([1, 2.5], [1.0, 2.5]),
        ([1, True], [1.0, 1.0]),
        (["a", "b"], ["a", "b"]),
        (["a", 1, True], ["a", "1", "true"]),
        ([1, None], [1.0, None]),
        (["a", None], ["a", None]),
        ([None], [None]),
        ([], []),
    ],
)
def test_labels_are_numbers_if_all_are_else_texts(given, expected):
    texts = pl.Series("label", [json.dumps(one) for one in given], dtype=pl.String)
    assert recorded.label_values(texts).to_list() == expected


def test_rows_can_be_read_by_a_time_of_their_own(settings):
    write(
        settings,
        *(payload(p, {"x": p, "event_time": f"2013-07-0{p}T00:00:00Z"}) for p in (1, 2, 3)),
    )
    first = datetime(2013, 7, 2, tzinfo=UTC)
    frame = recorded.unpacked(settings, TABLE, start=first, columns=["x"], time_column="event_time")
    assert sorted(frame.collect()["x"]) == [2, 3]
    until = recorded.joined(settings, TABLE, first, "event_time")
    assert sorted(until["x"]) == [1, 2]


def test_a_table_that_is_not_there_yet_has_no_rows(settings):
    assert recorded.joined(settings, "main.shop.none_payload").columns[-2:] == [
        "label",
        "label_time",
    ]
    assert len(recorded.unpacked(settings, "main.shop.none_payload").collect()) == 0
