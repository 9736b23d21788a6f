"""Reading back: pages, details, exports, counts; each on real tables."""

import json
import os
import shutil
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import deltalake
import polars as pl
import pyarrow as pa
import pytest

from capture import catalog, database, errors, names, query, reading, rows, unpack
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


@pytest.fixture(scope="module")
def filled(tmp_path_factory, migrated: Path) -> Settings:
    """Four requests that differ in everything one can filter by."""
    settings = Settings(data_dir=tmp_path_factory.mktemp("filled"))
    shutil.copy(migrated, settings.data_dir)
    record(settings, TABLE, "shop")
    features = [
        {"x": 0, "city": None, "ok": True, "at": "2013-07-01T00:00:00Z"},
        {"x": 1, "city": "vienna", "ok": False, "at": "2013-07-01T01:00:00Z", "status_code": 1},
        {"x": 2, "city": "bern", "status_code": 7},
        {"x": 3, "city": "zürich"},
    ]
    bodies = [json.dumps({"dataframe_records": [one]}, ensure_ascii=False) for one in features]
    write(
        settings,
        payload(0, request=bodies[0]),
        payload(1, prediction=0.75, request=bodies[1], served_entity_name="v2"),
        payload(3, request=bodies[3]),
    )
    refused = {"status_code": 400, "response": '{"message": "no"}'}
    write(settings, payload(2, request=bodies[2]) | refused)
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


def page(settings: Settings, **arguments: Any) -> list[Any]:
    """The feature `x` of the rows on a page."""
    found = query.requests_page(settings, {"endpoint": "shop", **arguments})
    return [row["x"] for row in found["requests"]]


# Pages


def test_a_page_holds_the_newest_rows_first_with_their_columns_and_labels(settings):
    write(settings, payload(0), payload(1, [{"x": 1, "s": "a"}, {"x": 2, "s": "b"}]))
    label(settings, 1, 5, client_request_id="client-1", row_index=1)
    found = query.requests_page(settings, {"endpoint": "shop"})
    assert "next_page_token" not in found
    newest = found["requests"][0]
    assert (newest["endpoint"], newest["row_index"], newest["x"], newest["s"]) == (
        "shop",
        1,
        2,
        "b",
    )
    assert (newest["prediction"], newest["label"]) == (0.5, 1.0)
    assert newest["request_time"] == START + timedelta(minutes=1)
    assert newest["label_time"] == START + timedelta(minutes=5)
    assert [row["x"] for row in found["requests"]] == [2, 1, 0]


def test_pages_together_hold_every_row_once_even_if_new_ones_come_meanwhile(settings):
    days = 60 * 24
    write(settings, *(payload(place * days // 4) for place in range(20)))
    write(settings, payload(3, [{"x": 100}, {"x": 101}, {"x": 102}]))
    everything = page(settings)
    found, token = [], None
    while True:
        reply = query.requests_page(
            settings, {"endpoint": "shop", "page_size": 3, "page_token": token}
        )
        found += [row["x"] for row in reply["requests"]]
        token = reply.get("next_page_token")
        if token is None:
            break
        write(settings, payload(100_000 + len(found)))
    assert found == everything
    assert len(found) == 23


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({"status": "400"}, [2]),
        ({"status": 200}, [3, 1, 0]),
        ({"status": "4xx"}, [2]),
        ({"served_entity": "v2"}, [1]),
        ({"client_request_id": "client-3"}, [3]),
        ({"from": "2024-03-01T12:01:00Z", "to": "2024-03-01T12:03:00Z"}, [2, 1]),
        ({"from": "2024-03-01T13:02:00+01:00"}, [3, 2]),
        ({"text": "zürich"}, [3]),
        ({"text": '"predictions": [0.75]'}, [1]),
        ({"text": ".*"}, []),
        ({"feature.x": "1..2"}, [2, 1]),
        ({"feature.x": "2.."}, [3, 2]),
        ({"feature.x": "..0"}, [0]),
        ({"feature.x": "3"}, [3]),
        ({"feature.x": ".."}, [3, 2, 1, 0]),
        ({"feature.city": "zürich"}, [3]),
        ({"feature.city": "a..m"}, [2]),
        ({"feature.ok": "true"}, [0]),
        ({"feature.at": "2013-07-01T00:30:00Z..2013-07-01T02:00:00Z"}, [1]),
        ({"feature.status_code": "7"}, [2]),
        ({"feature.score": "0.7..1"}, [1]),
        ({"served_entity": "v2", "status": "400"}, []),
        ({"client_request_id": "", "text": None}, [3, 2, 1, 0]),
    ],
)
def test_filters_leave_the_rows_that_pass_all_of_them(filled, filters, expected):
    assert page(filled, **filters) == expected


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"stauts": 200}, "stauts"),
        ({"status": "20"}, "status"),
        ({"status": "everything"}, "everything"),
        ({"from": "yesterday"}, "yesterday"),
        ({"feature.nothing": "1..2"}, "nothing"),
        ({"feature.x": "a..b"}, "'a'"),
        ({"feature.": "1"}, "feature"),
        ({"page_size": 0}, "page_size"),
        ({"page_size": 10_000}, "page_size"),
        ({"page_token": "nonsense"}, "page_token"),
        ({"page_token": "WzEsMl0="}, "page_token"),
    ],
)
def test_arguments_that_mean_nothing_are_refused_by_name(filled, arguments, named):
    with pytest.raises(errors.InvalidParameter, match=named):
        page(filled, **arguments)


def test_all_endpoints_are_read_unless_some_are_named(settings):
    record(settings, "main.shop.t_payload", "other")
    record(settings, "main.shop.u_payload", "silent")
    write(settings, payload(0), payload(2))
    write(settings, payload(1), table="main.shop.t_payload")
    assert page(settings, endpoint=None) == [2, 1, 0]
    assert page(settings, endpoint=["other", "silent"]) == [1]
    assert page(settings, endpoint=None, table="main.shop.t_unpacked") == [1]
    assert page(settings, endpoint="silent") == []
    with pytest.raises(errors.DoesNotExist, match="nobody"):
        page(settings, endpoint="nobody")


# One request


def test_a_request_is_shown_as_received_with_what_became_of_it(settings):
    write(settings, payload(0))
    write(
        settings,
        payload(
            1,
            [{"x": 1}, {"x": 2}],
            looked_up='{"seats": [100, null]}',
            usage_context=[("team", "a")],
        ),
    )
    label(settings, "late", 9, databricks_request_id=request_id(1))
    found = query.request_detail(settings, {"id": request_id(1)})
    assert found["request"] == '{"dataframe_records": [{"x": 1}, {"x": 2}]}'
    assert found["looked_up"] == {"seats": [100, None]}
    assert found["usage_context"] == {"team": "a"}
    assert found["parts"] == {
        "gateway_ms": 1.0,
        "queue_ms": 0.5,
        "features_ms": 0.0,
        "predict_ms": 3.5,
    }
    assert (found["endpoint"], found["table"], found["duration_ms"]) == ("shop", TABLE, 5.0)
    assert [(row["row_index"], row["x"], row["seats"]) for row in found["rows"]] == [
        (0, 1, 100),
        (1, 2, None),
    ]
    assert found["label"] == "late"
    assert found["labels"] == [
        {"row_index": 0, "label": "late", "label_time": START + timedelta(minutes=9)}
    ]


@pytest.mark.parametrize("unknown", [request_id(7), "no-uuid", "", "../../etc"])
def test_a_request_that_was_not_recorded_does_not_exist(settings, unknown):
    write(settings, payload(0))
    with pytest.raises(errors.DoesNotExist):
        query.request_detail(settings, {"id": unknown, "endpoint": "shop"})


# Export


def test_an_export_holds_the_rows_that_pass(settings, tmp_path):
    write(settings, *(payload(place) for place in range(5)))
    label(settings, 7, 9, client_request_id="client-3")
    path = tmp_path / "out.parquet"
    arguments = {"endpoint": "shop", "format": "parquet", "path": str(path), "feature.x": "2.."}
    assert query.export(settings, arguments) == {"path": str(path), "rows": 3}
    assert pl.read_parquet(path).select("x", "label").rows() == [(2, None), (3, 7), (4, None)]


def test_no_cell_of_a_csv_export_is_a_formula(settings, tmp_path):
    nasty = ["=1+1", "+1", "-1", "@a", "\tx", "\rx", 'a,"b"\n', "=é"]
    rows_ = [{"s": text, "=n": -place} for place, text in enumerate(nasty)]
    write(settings, payload(0, rows_, looked_up=None))
    path = tmp_path / "out.csv"
    query.export(settings, {"table": TABLE, "format": "csv", "path": str(path)})
    found = pl.read_csv(path, infer_schema=False)
    expected = [f"'{text}" if text[0] in "=+-@\t\r" else text for text in nasty]
    assert found["s"].to_list() == expected
    assert found["'=n"].to_list()[1] == "-1.0"  # a number is no formula
    assert found["request_time"].to_list()[0] == "2024-03-01T12:00:00Z"


@pytest.mark.parametrize("arguments", [{"format": "xlsx", "path": "x"}, {"path": "x"}])
def test_an_export_in_an_unknown_form_is_refused(settings, arguments):
    with pytest.raises(errors.InvalidParameter, match="parquet or csv"):
        query.export(settings, {"endpoint": "shop", **arguments})


# Facts


def test_the_state_of_a_record_is_what_the_committer_told(settings):
    write(settings, payload(0), payload(1))
    asked = {"table": TABLE, "now_ms": 10_000}
    counted = query.capture_status(settings, asked)
    assert (counted["committed_rows"], counted["lag_seconds"]) == (2, 0.0)
    settings.run_dir.mkdir()
    told = {"rows": 7, "last_commit_ms": 8_500, "commit_version": 3}
    for backlog, lag in ((0, 0.0), (100, 1.5)):
        committed = {"tables": {TABLE: told}, "backlog_bytes": backlog}
        (settings.run_dir / "committed.json").write_text(json.dumps(committed))
        found = query.capture_status(settings, asked)
        assert (found["committed_rows"], found["lag_seconds"]) == (7, lag)
        assert (found["wal_bytes"], found["commit_version"]) == (backlog, 3)
        assert found["last_commit_time"] == datetime.fromtimestamp(8.5, UTC)


def test_labels_of_requests_that_are_not_recorded_are_counted(settings):
    ids = [
        {"databricks_request_id": request_id(0)},
        {"databricks_request_id": request_id(9)},
        {"databricks_request_id": "no-uuid"},
        {"client_request_id": "client-1"},
        {"client_request_id": "nobody", "databricks_request_id": None},
        {"client_request_id": "nobody", "databricks_request_id": request_id(1)},
    ]
    asked = {"table": TABLE, "ids": ids}
    assert query.unmatched(settings, asked) == {"unmatched": 6}
    write(settings, payload(0), payload(1))
    assert query.unmatched(settings, asked) == {"unmatched": 3}


# The child


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_the_operations_answer_from_a_child_process(settings, anyio_backend):
    write(settings, payload(0))
    environment = {**os.environ, "INFERLAKE_DATA_DIR": str(settings.data_dir)}
    reader = reading.Reader([sys.executable, "-m", "capture.query"], environment)
    try:
        found = await reader.ask("requests_page", {"endpoint": "shop"}, 60)
        assert found["requests"][0]["request_time"] == "2024-03-01T12:00:00Z"
        assert set(found["requests"][0]) >= {"databricks_request_id", "prediction", "label", "x"}
        detail = await reader.ask("request_detail", {"id": request_id(0)}, 60)
        assert detail["parts"]["predict_ms"] == 3.5
        with pytest.raises(errors.DoesNotExist):
            await reader.ask("requests_page", {"endpoint": "nobody"}, 60)
    finally:
        await reader.close()


def test_the_parent_of_reads_loads_neither_polars_nor_delta():
    code = (
        "import sys, capture.reading; print({'polars', 'deltalake', 'pyarrow'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
