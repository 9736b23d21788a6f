"""Filters of requests: what is typed, what the API gets, what polars is told."""

import contextlib
import io
from datetime import UTC, datetime
from typing import Any

import deltalake
import polars as pl
import pytest

from dashboard import selecting


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("amount > 100", {"feature.amount": ">100"}),
        ("amount>=100", {"feature.amount": ">=100"}),
        ("city = vienna", {"feature.city": "vienna"}),
        ("distance=100..500", {"feature.distance": "100..500"}),
        ("a < 5; b = x y ; ", {"feature.a": "<5", "feature.b": "x y"}),
        ("a >= 1; a <= 5", {"feature.a": "1..5"}),
        ("", {}),
    ],
)
def test_conditions_read_as_a_person_writes_them(typed: str, expected: dict[str, str]) -> None:
    assert selecting.conditions(typed) == expected


@pytest.mark.parametrize("typed", ["distance 100", "> 5", "amount >", "a > 1; a < 5", "a;"])
def test_what_is_no_condition_is_explained(typed: str) -> None:
    with pytest.raises(selecting.Unreadable, match="reads"):
        selecting.conditions(typed)


ROWS = [
    {
        "databricks_request_id": f"id-{number}",
        "request_time": datetime(2026, 3, 1 + number // 4, 6 * (number % 4), tzinfo=UTC),
        "served_entity_name": "v3" if number % 2 else "v1",
        "status_code": (200, 400, 400, 503)[number % 4],
        "error_source": (None, "model", "request", "server")[number % 4],
        "client_request_id": "it's" if number == 5 else f"order-{number}",
        "amount": 20.0 * number,
        "city": ["vienna", "bern"][number % 2],
        "zip": str(8010 + number),
        "ok": number % 3 == 0,
        "at": datetime(2013, 7, 1 + number, tzinfo=UTC),
        "status_code_": float(number),
    }
    for number in range(12)
]


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("tables")
    frame = pl.DataFrame(ROWS).with_columns(request_date=pl.col("request_time").dt.date())
    for name, table in (
        ("s_unpacked", frame),
        ("s_payload", frame.select("databricks_request_id", request="city", response="zip")),
    ):
        deltalake.write_deltalake(
            str(folder / name),
            table.to_arrow(),
            partition_by=["request_date"] if name == "s_unpacked" else None,
        )
    return str(folder / "s_unpacked")


def as_json(row: dict[str, Any]) -> dict[str, Any]:
    times = {k: v.isoformat().replace("+00:00", "Z") for k, v in row.items() if hasattr(v, "year")}
    return row | times


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({}, range(12)),
        ({"served_entity": "v3"}, [1, 3, 5, 7, 9, 11]),
        ({"status": "failed"}, [1, 3, 5, 7, 9, 11]),
        ({"status": "4xx"}, [1, 2, 5, 6, 9, 10]),
        ({"status": "503"}, [3, 7, 11]),
        ({"from": "2026-03-02T06:00:00Z", "to": "2026-03-03T00:00:00Z"}, [5, 6, 7]),
        ({"client_request_id": "it's"}, [5]),
        ({"text": "8012"}, [2]),
        ({"feature.amount": ">100"}, [6, 7, 8, 9, 10, 11]),
        ({"feature.amount": "20..60"}, [1, 2, 3]),
        ({"feature.amount": "..20"}, [0, 1]),
        ({"feature.amount": "40"}, [2]),
        ({"feature.zip": "8011"}, [1]),
        ({"feature.city": "bern", "feature.ok": "true"}, [3, 9]),
        ({"feature.at": "2013-07-11..2013-07-12T00:00:00Z"}, [10, 11]),
        ({"feature.status_code": "7"}, [7]),
        ({"feature.city": ".."}, range(12)),
    ],
)
def test_the_code_finds_the_rows_that_the_filters_mean(
    unpacked: str, filters: dict[str, str], expected: list[int]
) -> None:
    code = selecting.polars(unpacked, filters, [as_json(row) for row in ROWS])
    found: dict[str, Any] = {}
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(code, found)  # noqa: S102  it is the snippet that is tried
    ids = found["rows"].collect()["databricks_request_id"].to_list()
    assert sorted(ids) == sorted(f"id-{number}" for number in expected)
    assert f"shape: ({len(list(expected))}, " in printed.getvalue()


def test_without_a_row_to_see_the_limits_tell_the_types(unpacked: str) -> None:
    filters = {"feature.amount": ">100", "feature.city": "bern", "feature.at": ">2013-07-02"}
    found: dict[str, Any] = {}
    with contextlib.redirect_stdout(io.StringIO()):
        exec(selecting.polars(unpacked, filters, []), found)  # noqa: S102  as above
    assert found["rows"].collect().height == 3


def test_no_text_gets_out_of_its_quotes() -> None:
    nasty = "'); import os; ('"
    code = selecting.polars("x_unpacked", {"text": nasty, "feature.a'b": nasty}, [])
    compile(code, "snippet", "exec")
    assert "\nimport os" not in code
