"""The first generation's names: read into Arrow, and as views of two engines, with equal rows."""

from datetime import timedelta
from pathlib import Path

import deltalake
import duckdb
import polars as pl
import pyarrow as pa
import pytest
import sqlglot

from capture import delta, errors, legacy, rows
from tests.capture import shop

LATER = shop.START + timedelta(days=1)


@pytest.fixture
def payload(tmp_path: Path) -> Path:
    """A payload table of two days; one request found no model."""
    schema, by = rows.KINDS["payload"]
    table = delta.open_or_create(tmp_path / "s_payload", schema, by)
    found = [
        shop.payload(0, model_name="main.shop.m", model_version="3", status_code=200),
        shop.payload(1, status_code=404, execution_duration_ms=0),
        shop.payload(2, model_name="main.shop.m", model_version="4")
        | {"request_time": LATER, "request_date": LATER.date()},
    ]
    table.append(pa.Table.from_pylist(found, schema=schema), "app", 1)
    return table.path


def test_rows_have_the_documented_names_and_types(payload: Path) -> None:
    found = legacy.read(payload, "shop")
    assert found.schema == legacy.SCHEMA
    first = found.sort_by("timestamp_ms").to_pylist()[0]
    assert first["timestamp_ms"] == int(shop.START.timestamp() * 1000)
    assert (first["date"], first["execution_time_ms"]) == (shop.START.date(), 3)
    assert dict(first["request_metadata"]) == {
        "model_name": "main.shop.m",
        "model_version": "3",
        "endpoint_name": "shop",
    }
    assert first["request"] == '{"dataframe_records": [{"x": 0}]}'
    assert pl.from_arrow(found).height == 3


def test_days_are_read_alone(payload: Path) -> None:
    assert len(legacy.read(payload, "shop", start=LATER.date())) == 1
    assert len(legacy.read(payload, "shop", end=shop.START.date())) == 2
    assert len(legacy.read(payload, "shop", LATER.date() + timedelta(1))) == 0


def test_a_table_without_rows_has_the_names_too(tmp_path: Path) -> None:
    schema, by = rows.KINDS["payload"]
    table = delta.open_or_create(tmp_path / "s_payload", schema, by)
    assert legacy.read(table.path, "shop").schema == legacy.SCHEMA


def test_the_view_of_duckdb_shows_the_rows_that_are_read(payload: Path) -> None:
    with duckdb.connect(config={"autoinstall_known_extensions": False}) as engine:
        engine.execute("SET TimeZone = 'UTC'")
        engine.register("files", deltalake.DeltaTable(payload).to_pyarrow_dataset())
        engine.execute(legacy.view("duckdb", "main.shop.s_payload", "files", "shop"))
        found = engine.sql("SELECT * FROM s_payload_legacy").to_arrow_table()
    assert found.column_names == legacy.SCHEMA.names
    assert [field.type for field in found.schema] == [field.type for field in legacy.SCHEMA]
    by_time = found.sort_by("timestamp_ms").to_pylist()
    assert by_time == legacy.read(payload, "shop").sort_by("timestamp_ms").to_pylist()


def test_the_view_of_spark_is_its_sql_with_the_same_columns() -> None:
    source = legacy.source("spark", "/data/tables/main/shop/s_payload")
    text = legacy.view("spark", "main.shop.s_payload", source, "shop")
    (statement,) = [one for one in sqlglot.parse(text, dialect="spark") if one is not None]
    assert statement.this.sql(dialect="spark") == "`main`.`shop`.`s_payload_legacy`"
    assert statement.expression.named_selects == legacy.SCHEMA.names
    assert "FROM delta.`/data/tables/main/shop/s_payload`" in text


@pytest.mark.parametrize(
    ("table", "endpoint", "path"),
    [("main.s", "shop", "/t"), ("main.a.b`c", "shop", "/t"), ("main.a.b", "x'y", "/t")],
)
def test_what_is_no_name_comes_into_no_sql(table: str, endpoint: str, path: str) -> None:
    with pytest.raises(errors.InvalidParameter):
        legacy.view("spark", table, legacy.source("spark", path), endpoint)
    with pytest.raises(errors.InvalidParameter):
        legacy.source("duckdb", "/it's/here")
