"""Custom metrics through refreshes of real tables, against polars on the raw rows."""

from datetime import UTC, datetime, timedelta
from typing import Any

import deltalake
import polars as pl
import pytest

MONDAY = datetime(2024, 1, 1, tzinfo=UTC)
WEEK = timedelta(weeks=1)
TABLE, BASELINE = "main.flights.p_unpacked", "main.flights.p_baseline"


def metric(kind: str, name: str, definition: str, *columns: str, type_: str = "double") -> dict:
    return {
        "type": f"CUSTOM_METRIC_TYPE_{kind}",
        "name": name,
        "input_columns": list(columns or (":table",)),
        "definition": definition,
        "output_data_type": type_,
    }


def aggregate(name: str, definition: str, *columns: str, **more: str) -> dict:
    return metric("AGGREGATE", name, definition, *columns, **more)


def derived(name: str, definition: str, *columns: str, **more: str) -> dict:
    return metric("DERIVED", name, definition, *columns, **more)


def drift(name: str, definition: str, *columns: str, **more: str) -> dict:
    return metric("DRIFT", name, definition, *columns, **more)


SQUARES = aggregate("squares", "avg(`{{input_column}}` * `{{input_column}}`)", "temp", "distance")
ROOT = derived("root", "sqrt(squares)", "temp", "distance")
COST = aggregate(
    "cost",
    "avg(CASE WHEN {{label_col}} IS NULL THEN NULL WHEN {{prediction_col}} = {{label_col}} THEN 0 "
    "WHEN carrier = 'UA' THEN 5 ELSE 1 END)",
)


def rows_of(lake, column: str, kind: str = "profile", **where: Any) -> pl.DataFrame:
    rows = lake.metrics(kind).filter(pl.col("column_name") == column)
    for name in ("served_entity_name", "slice_key", "slice_value"):
        rows = rows.filter(pl.col(name).eq_missing(pl.lit(where.get(name), pl.String)))
    return rows.filter(pl.col("log_type") == where.get("log_type", "INPUT")).sort("start")


def truth(lake, frame: pl.DataFrame) -> pl.DataFrame:
    known = [int(lake.late[one]) for one in frame["databricks_request_id"].to_list()]
    return frame.with_columns(label=pl.Series(known, dtype=pl.Float64))


def test_aggregates_are_those_of_the_raw_rows_per_window_version_and_slice(lake):
    metrics = [
        SQUARES,
        aggregate("spread", "stddev({{input_column}}) + min({{input_column}})", "temp"),
        aggregate("far", "count_if(distance > 300)", type_="bigint"),
        aggregate("mixed", "100 * sum(temp * distance) / count(*) - max(temp) + var_pop(temp)"),
        aggregate("slow", "max(execution_duration_ms)", "execution_duration_ms", type_="int"),
        aggregate("many", "count(temp) > 100", type_="boolean"),
    ]
    lake.monitor(custom_metrics=metrics, slicing_exprs=["carrier = 'UA'"])
    frames = [
        lake.rows(MONDAY + n * WEEK, 400, split={"v1": 60, "v2": 40}).with_columns(
            temp=pl.when(pl.col("carrier") == "AA").then(None).otherwise("temp")
        )
        for n in range(2)
    ]
    for frame in frames:
        lake.write(frame)
    lake.done(MONDAY + 2 * WEEK)
    for number, frame in enumerate(frames):
        for where, part in (
            ({}, frame),
            ({"served_entity_name": "v2"}, frame.filter(pl.col("served_entity_name") == "v2")),
            (
                {"slice_key": "carrier = 'UA'", "slice_value": "true"},
                frame.filter(pl.col("carrier") == "UA"),
            ),
        ):
            temp, distance = part["temp"], part["distance"]
            found = rows_of(lake, "temp", **where).row(number, named=True)
            assert found["squares"] == pytest.approx((temp**2).mean())
            assert found["spread"] == pytest.approx(temp.std() + temp.min())
            assert found["far"] is None
            table = rows_of(lake, ":table", **where).row(number, named=True)
            mixed = 100 * (temp * distance).sum() / part.height - temp.max() + temp.var(ddof=0)
            assert table["mixed"] == pytest.approx(mixed)
            assert table["far"] == part.filter(pl.col("distance") > 300).height
            assert table["many"] is (temp.count() > 100)
            assert table["squares"] is None
            slow = rows_of(lake, "execution_duration_ms", **where).row(number, named=True)
            assert slow["slow"] == 5
    schema = deltalake.DeltaTable(lake.uri(f"{TABLE}_profile_metrics")).schema()
    types = {field.name: str(field.type) for field in schema.fields}
    assert list(types)[-6:] == ["squares", "spread", "far", "mixed", "slow", "many"]
    assert "long" in types["far"] and "boolean" in types["many"] and "integer" in types["slow"]


def test_labels_that_come_later_reach_the_metrics_that_name_them(lake):
    wrong = aggregate("wrong_by", "avg(abs({{input_column}} - {{label_col}}))", "score")
    lake.monitor(custom_metrics=[COST, wrong])
    frame = lake.rows(MONDAY, 500)
    lake.write(frame)
    lake.done(MONDAY + WEEK)
    assert rows_of(lake, ":table")["cost"].to_list() == [None]
    assert rows_of(lake, "score")["wrong_by"].to_list() == [None]
    lake.label(frame, timedelta(days=10))
    lake.done(MONDAY + 3 * WEEK)
    known = truth(lake, frame)
    weight = pl.when(pl.col("carrier") == "UA").then(5).otherwise(1)
    cost = known.select(pl.when(pl.col("prediction") != pl.col("label")).then(weight).otherwise(0))
    assert rows_of(lake, ":table")["cost"].to_list() == [pytest.approx(cost.to_series().mean())]
    by = (known["score"] - known["label"]).abs().mean()
    assert rows_of(lake, "score")["wrong_by"].to_list() == [pytest.approx(by)]
    lake.restart()
    late = lake.rows(MONDAY, 100)
    lake.write(late)
    lake.done(MONDAY + 4 * WEEK)
    assert rows_of(lake, ":table")["cost"].to_list() == [pytest.approx(cost.to_series().mean())]
