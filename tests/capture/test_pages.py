"""Pages of recorded requests, newest first, on real tables."""

import json
import shutil
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from capture import errors, pages
from capture.settings import Settings
from tests.capture import shop


@pytest.fixture(scope="module")
def filled(tmp_path_factory, migrated: Path) -> Settings:
    """Four requests that differ in everything one can filter by."""
    shop_settings = Settings(data_dir=tmp_path_factory.mktemp("filled"))
    shutil.copy(migrated, shop_settings.data_dir)
    shop.record(shop_settings, shop.TABLE, "shop")
    features = [
        {"x": 0, "city": None, "ok": True, "at": "2013-07-01T00:00:00Z"},
        {"x": 1, "city": "vienna", "ok": False, "at": "2013-07-01T01:00:00Z", "status_code": 1},
        {"x": 2, "city": "bern", "status_code": 7},
        {"x": 3, "city": "zürich"},
    ]
    bodies = [json.dumps({"dataframe_records": [one]}, ensure_ascii=False) for one in features]
    shop.write(
        shop_settings,
        shop.payload(0, request=bodies[0]),
        shop.payload(1, prediction=0.75, request=bodies[1], served_entity_name="v2"),
        shop.payload(3, request=bodies[3]),
    )
    refused = {"status_code": 400, "response": '{"message": "no"}'}
    shop.write(shop_settings, shop.payload(2, request=bodies[2]) | refused)
    return shop_settings


def page(shop_settings: Settings, **arguments: Any) -> list[Any]:
    """The feature `x` of the rows on a page."""
    found = pages.requests_page(shop_settings, {"endpoint": "shop", **arguments})
    return [row["x"] for row in found["requests"]]


def test_a_page_holds_the_newest_rows_first_with_their_columns_and_labels(shop_settings):
    shop.write(
        shop_settings, shop.payload(0), shop.payload(1, [{"x": 1, "s": "a"}, {"x": 2, "s": "b"}])
    )
    shop.label(shop_settings, 1, 5, client_request_id="client-1", row_index=1)
    found = pages.requests_page(shop_settings, {"endpoint": "shop"})
    assert "next_page_token" not in found
    newest = found["requests"][0]
    assert (newest["endpoint"], newest["row_index"], newest["x"], newest["s"]) == (
        "shop",
        1,
        2,
        "b",
    )
    assert (newest["prediction"], newest["label"]) == (0.5, 1.0)
    assert newest["request_time"] == shop.START + timedelta(minutes=1)
    assert newest["label_time"] == shop.START + timedelta(minutes=5)
    assert [row["x"] for row in found["requests"]] == [2, 1, 0]


def test_pages_together_hold_every_row_once_even_if_new_ones_come_meanwhile(shop_settings):
    days = 60 * 24
    shop.write(shop_settings, *(shop.payload(place * days // 4) for place in range(20)))
    shop.write(shop_settings, shop.payload(3, [{"x": 100}, {"x": 101}, {"x": 102}]))
    everything = page(shop_settings)
    found, token = [], None
    while True:
        reply = pages.requests_page(
            shop_settings, {"endpoint": "shop", "page_size": 3, "page_token": token}
        )
        found += [row["x"] for row in reply["requests"]]
        token = reply.get("next_page_token")
        if token is None:
            break
        shop.write(shop_settings, shop.payload(100_000 + len(found)))
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
        ({"feature.x": ">1"}, [3, 2]),
        ({"feature.x": ">= 1"}, [3, 2, 1]),
        ({"feature.x": "<1"}, [0]),
        ({"feature.x": "<=1"}, [1, 0]),
        ({"feature.city": ">m"}, [3, 1]),
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


def test_failed_is_what_the_server_or_the_model_did_not_what_the_client_did(shop_settings):
    shop.write(
        shop_settings,
        shop.payload(0),
        shop.payload(1, status_code=503, error_source="server"),
        shop.payload(2, status_code=400, error_source="model"),
        shop.payload(3, status_code=400, error_source="request"),
        shop.payload(4, status_code=504),
    )
    assert page(shop_settings, status="failed") == [4, 2, 1]


def test_rare_rows_are_found_however_far_back_they_lie(shop_settings):
    many = [{"x": place} for place in range(10_000)]
    shop.write(shop_settings, *(shop.payload(minutes, many) for minutes in (0, 1, 60, 5_000)))
    assert page(shop_settings, **{"feature.x": "7"}) == [7] * 4
    asked = {"endpoint": "shop", "feature.x": ">=9997", "page_size": 5}
    first = pages.requests_page(shop_settings, asked)
    second = pages.requests_page(shop_settings, {**asked, "page_token": first["next_page_token"]})
    last = pages.requests_page(shop_settings, {**asked, "page_token": second["next_page_token"]})
    found = [row["x"] for part in (first, second, last) for row in part["requests"]]
    assert found == [9999, 9998, 9997] * 4
    assert "next_page_token" not in last


def test_all_endpoints_are_read_unless_some_are_named(shop_settings):
    shop.record(shop_settings, "main.shop.t_payload", "other")
    shop.record(shop_settings, "main.shop.u_payload", "silent")
    shop.write(shop_settings, shop.payload(0), shop.payload(2))
    shop.write(shop_settings, shop.payload(1), table="main.shop.t_payload")
    assert page(shop_settings, endpoint=None) == [2, 1, 0]
    assert page(shop_settings, endpoint=["other", "silent"]) == [1]
    assert page(shop_settings, endpoint=None, table="main.shop.t_unpacked") == [1]
    assert page(shop_settings, endpoint="silent") == []
    with pytest.raises(errors.DoesNotExist, match="nobody"):
        page(shop_settings, endpoint="nobody")
