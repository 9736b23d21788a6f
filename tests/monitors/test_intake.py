from datetime import UTC, datetime, timedelta

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitors import intake

MONDAY = datetime(2024, 1, 1, tzinfo=UTC)


def times(*hours: float) -> pl.Series:
    return pl.Series("t", [MONDAY + timedelta(hours=h) for h in hours], dtype=intake.TIME)


@pytest.mark.parametrize(
    "series",
    [
        pl.Series([datetime(2024, 1, 1)]),
        pl.Series([datetime(2024, 1, 1)], dtype=pl.Datetime("ms")),
        pl.Series([MONDAY]),
        pl.Series([MONDAY]).dt.convert_time_zone("America/New_York"),
        pl.Series(["2024-01-01T00:00:00Z"]),
        pl.Series(["2024-01-01T01:00:00+01:00"]),
        pl.Series([MONDAY.date()]),
    ],
)
def test_times_of_every_kind_are_utc(series):
    assert intake.as_times(series).to_list() == [MONDAY]


def test_what_is_no_time_is_null():
    assert intake.as_times(pl.Series(["soon", None])).to_list() == [None, None]
    assert intake.as_times(pl.Series([1.5])).to_list() == [None]


def test_a_wrong_date_far_ahead_is_set_aside():
    assert intake.story_clock(times(*range(200), 24 * 365), None) == MONDAY + timedelta(hours=199)
    assert intake.story_clock(times(), None) is None
    assert intake.story_clock(times(), MONDAY) == MONDAY


def test_the_clock_goes_on_after_a_long_pause_and_never_back():
    later = times(*range(24 * 60, 24 * 60 + 50))
    assert intake.story_clock(later, MONDAY) == MONDAY + timedelta(hours=24 * 60 + 49)
    assert intake.story_clock(times(-5), MONDAY) == MONDAY


@given(st.lists(st.integers(0, 160), min_size=1, max_size=50))
def test_ordinary_rows_set_the_clock_to_the_newest(hours):
    assert intake.story_clock(times(*hours), None) == MONDAY + timedelta(hours=max(hours))


def labels(*rows: tuple) -> pl.DataFrame:
    """(databricks_request_id, client_request_id, row_index, label, hours)"""
    frame = pl.DataFrame(
        list(rows),
        schema={
            "databricks_request_id": pl.String, "client_request_id": pl.String,
            "row_index": pl.Int32, "label": pl.String, "hours": pl.Float64,
        },
        orient="row",
    )  # fmt: skip
    at = pl.lit(MONDAY).cast(intake.TIME) + pl.duration(minutes=pl.col("hours") * 60)
    return frame.with_columns(label_time=at).drop("hours").sort("label_time")


ROWS = pl.DataFrame(
    {
        "databricks_request_id": ["a", "b", "b", "c"],
        "client_request_id": ["x", "y", "y", None],
        "row_index": pl.Series([0, 0, 1, 0], dtype=pl.Int32),
    }
)


def test_the_newest_label_wins_by_either_id():
    known = labels(
        ("a", None, 0, "1", 1), (None, "x", 0, "0", 2), (None, "y", 1, "1", 1),
        ("b", None, 1, "0", 0.5), ("z", None, 0, "1", 9),
    )  # fmt: skip
    found = intake.with_labels(ROWS, known)
    assert found["label"].to_list() == [0.0, None, 1.0, None]
    assert found["label_time"].to_list()[0] == MONDAY + timedelta(hours=2)
    assert found.drop("label", "label_time").equals(ROWS)
    again = intake.with_labels(found, known)
    assert again.equals(found)


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["1", "0", None], [1.0, 0.0, None]),
        (["true", "false"], [1.0, 0.0]),
        (["1.5", "true"], [1.5, 1.0]),
        (['"late"', '"on time"'], ["late", "on time"]),
        (['"late"', "3"], ["late", "3"]),
        ([None, None], [None, None]),
    ],
)
def test_labels_become_numbers_or_texts(texts, expected):
    assert intake.scalars(pl.Series(texts, dtype=pl.String)).to_list() == expected
