"""Recorded tables as frames: rows by any time, and what was known of their truth by then."""

import json
from datetime import UTC, datetime, timedelta

import polars as pl
import pytest

from capture import recorded
from tests.capture import shop


def test_the_label_known_by_a_time_is_joined_and_none_from_later(shop_settings):
    shop.write(shop_settings, *(shop.payload(place) for place in range(4)))
    shop.label(shop_settings, True, 10, client_request_id="client-0")
    shop.label(shop_settings, False, 20, client_request_id="client-0")
    shop.label(shop_settings, True, 30, databricks_request_id=shop.request_id(1))
    shop.label(shop_settings, False, 5, client_request_id="client-1")

    def known(until: int) -> list[float | None]:
        frame = recorded.joined(shop_settings, shop.TABLE, shop.START + timedelta(minutes=until))
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


def test_rows_can_be_read_by_a_time_of_their_own(shop_settings):
    shop.write(
        shop_settings,
        *(shop.payload(p, {"x": p, "event_time": f"2013-07-0{p}T00:00:00Z"}) for p in (1, 2, 3)),
    )
    first = datetime(2013, 7, 2, tzinfo=UTC)
    frame = recorded.unpacked(
        shop_settings, shop.TABLE, start=first, columns=["x"], time_column="event_time"
    )
    assert sorted(frame.collect()["x"]) == [2, 3]
    until = recorded.joined(shop_settings, shop.TABLE, first, "event_time")
    assert sorted(until["x"]) == [1, 2]


def test_a_table_that_is_not_there_yet_has_no_rows(shop_settings):
    assert recorded.joined(shop_settings, "main.shop.none_payload").columns[-2:] == [
        "label",
        "label_time",
    ]
    assert len(recorded.unpacked(shop_settings, "main.shop.none_payload").collect()) == 0
