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


@given(st.lists(st.integers(0, 5000), min_size=1, max_size=400), st.integers(0, 300))
def test_the_newest_hundredth_is_enough_to_set_the_clock(hours, more):
    every = times(*hours)
    for before in (None, MONDAY + timedelta(hours=more * 10)):
        newest = every.top_k(len(hours) // 100 + 1)
        found = intake.story_clock(newest, before, len(hours))
        assert found == intake.story_clock(every, before)


@given(st.lists(st.integers(0, 160), min_size=1, max_size=50))
def test_ordinary_rows_set_the_clock_to_the_newest(hours):
    assert intake.story_clock(times(*hours), None) == MONDAY + timedelta(hours=max(hours))
