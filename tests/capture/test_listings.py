"""Listed tables: always the newest version, whatever happened to the log meanwhile."""

import shutil
from datetime import UTC, datetime, timedelta

import deltalake
import polars as pl
import pytest

from capture import delta, listings, maintenance, stretches
from tests.capture import shop

UNPACKED = "main.shop.s_unpacked"
MINUTE = timedelta(minutes=1)


def rows(shop_settings, **limits: datetime) -> int:
    listing = listings.of(shop_settings, shop.TABLE)
    assert listing is not None
    return listing.scan(**limits).select(pl.len()).collect().item()


def test_a_table_that_is_not_there_is_none(shop_settings):
    assert listings.of(shop_settings, "main.shop.none_payload") is None


def test_each_question_sees_the_newest_commit(shop_settings):
    for place in range(3):
        shop.write(shop_settings, shop.payload(place))
        assert rows(shop_settings) == place + 1


def test_a_table_that_was_made_anew_is_read_anew(shop_settings):
    for place in range(3):
        shop.write(shop_settings, shop.payload(place))
    assert rows(shop_settings) == 3
    path = delta.path_of(shop_settings, shop.TABLE)
    shutil.rmtree(path)
    assert listings.of(shop_settings, shop.TABLE) is None
    deltalake.write_deltalake(path, pl.DataFrame({"x": [1]}).to_arrow())
    assert rows(shop_settings) == 1


def test_a_checkpoint_and_a_cleaned_log_hide_no_row(shop_settings):
    path = delta.path_of(shop_settings, shop.TABLE)
    for place in range(4):
        shop.write(shop_settings, shop.payload(place))
        deltalake.DeltaTable(path).create_checkpoint()
        assert rows(shop_settings) == place + 1
    maintenance.maintain(path, datetime.now(UTC))
    shop.write(shop_settings, shop.payload(9))
    assert rows(shop_settings) == 5


def test_columns_that_came_later_are_null_in_older_files(shop_settings):
    shop.write(shop_settings, shop.payload(0))
    shop.write(shop_settings, shop.payload(1, {"y": "new"}))
    found = listings.of(shop_settings, UNPACKED).scan().sort("request_time").collect()
    assert found.select("x", "y").rows() == [(0.0, None), (None, "new")]
    assert found.schema["request_date"] == pl.Date


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({}, 3),
        ({"start": shop.START + 6 * MINUTE}, 1),
        ({"end": shop.START + 7 * MINUTE}, 2),
        ({"end": shop.START}, 0),
        ({"start": shop.START + 8 * MINUTE}, 0),
        ({"start": shop.START + 1 * MINUTE, "end": shop.START + 2 * MINUTE}, 2),
    ],
)
def test_files_that_hold_no_such_time_are_left_out(shop_settings, limits, expected):
    shop.write(shop_settings, shop.payload(0), shop.payload(5))
    shop.write(shop_settings, shop.payload(7))
    assert rows(shop_settings, **limits) == expected


def test_the_log_tells_where_the_rows_lie_in_time(shop_settings):
    shop.write(shop_settings, shop.payload(0), shop.payload(5))
    shop.write(shop_settings, shop.payload(7))
    found = [file.extent for file in listings.of(shop_settings, UNPACKED).files]
    assert sorted(found) == [
        stretches.Extent(shop.START, shop.START + 5 * MINUTE + listings.CUT, 2),
        stretches.Extent(shop.START + 7 * MINUTE, shop.START + 7 * MINUTE + listings.CUT, 1),
    ]


def test_a_file_without_statistics_may_hold_any_time_of_its_day(shop_settings):
    row = {"request_time": [shop.START], "request_date": [shop.START.date()]}
    deltalake.write_deltalake(
        delta.path_of(shop_settings, shop.TABLE),
        pl.DataFrame(row).to_arrow(),
        partition_by="request_date",
        configuration={"delta.dataSkippingNumIndexedCols": "0"},
    )
    midnight = shop.START.replace(hour=0)
    (file,) = listings.of(shop_settings, shop.TABLE).files
    assert (file.extent.start, file.extent.end) == (midnight, midnight + timedelta(days=1))
    assert rows(shop_settings, start=shop.START) == 1
