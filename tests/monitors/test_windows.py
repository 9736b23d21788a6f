"""Windows: alignment by the calendar, the same one by one and for a whole column."""

from datetime import UTC, date, datetime, timedelta, timezone
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitors import windows

TIME = datetime(2026, 2, 18, 13, 47, 31, 5, tzinfo=UTC)  # a Wednesday


@pytest.mark.parametrize(
    ("granularity", "start", "end"),
    [
        ("5 minutes", datetime(2026, 2, 18, 13, 45), datetime(2026, 2, 18, 13, 50)),
        ("30 minutes", datetime(2026, 2, 18, 13, 30), datetime(2026, 2, 18, 14, 0)),
        ("1 hour", datetime(2026, 2, 18, 13), datetime(2026, 2, 18, 14)),
        ("1 day", datetime(2026, 2, 18), datetime(2026, 2, 19)),
        ("1 week", datetime(2026, 2, 16), datetime(2026, 2, 23)),
        ("1 month", datetime(2026, 2, 1), datetime(2026, 3, 1)),
        ("1 year", datetime(2026, 1, 1), datetime(2027, 1, 1)),
    ],
)
def test_a_window_is_aligned_to_clock_monday_and_calendar(
    granularity: str, start: datetime, end: datetime
) -> None:
    expected = (start.replace(tzinfo=UTC), end.replace(tzinfo=UTC))
    assert windows.align(TIME, granularity) == expected
    assert windows.align(TIME.replace(tzinfo=None), granularity) == expected
    assert windows.align(TIME.astimezone(timezone(timedelta(hours=-11))), granularity) == expected


def test_december_ends_in_the_next_year() -> None:
    end = windows.align(datetime(2026, 12, 31, 23, 59), "1 month")[1]
    assert end == datetime(2027, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize("odd", ["1 minute", "0 weeks", "day", "1 Hour", "", "999 weeks", "2 days"])
def test_a_granularity_outside_the_contract_is_refused_by_name(odd: str) -> None:
    with pytest.raises(ValueError, match=f"'{odd}' is not offered; allowed are 5 minutes"):
        windows.check(odd)


def test_weeks_have_one_spelling() -> None:
    assert windows.check("1 weeks") == "1 week"
    assert windows.check("3 week") == "3 weeks"
    assert all(windows.check(name) == name for name in windows.GRANULARITIES)


times = st.datetimes(datetime(1950, 1, 1), datetime(2100, 1, 1))


@given(time=times, granularity=st.sampled_from(windows.GRANULARITIES))
def test_every_time_lies_in_exactly_one_window(time: datetime, granularity: str) -> None:
    start, end = windows.align(time, granularity)
    aware = time.replace(tzinfo=UTC)
    assert start <= aware < end
    assert windows.align(start, granularity) == (start, end)
    assert windows.align(end, granularity)[0] == end


@given(
    values=st.lists(st.one_of(st.none(), times), max_size=20),
    granularity=st.sampled_from([*windows.GRANULARITIES, "7 weeks"]),
    unit=st.sampled_from(["ms", "us"]),
    zone=st.sampled_from([None, "UTC", "America/New_York"]),
)
def test_a_column_is_assigned_as_its_values_are(
    values: list[datetime | None], granularity: str, unit: Any, zone: str | None
) -> None:
    column = pl.Series("t", values, dtype=pl.Datetime(unit))
    if zone is not None:
        column = column.dt.replace_time_zone("UTC").dt.convert_time_zone(zone)
    found = windows.assign(column, granularity)
    expected = [None if v is None else windows.align(v, granularity)[0] for v in values]
    assert found.dtype == pl.Datetime("us", "UTC")
    assert found.to_list() == expected


def test_dates_are_assigned_at_midnight() -> None:
    found = windows.assign(pl.Series([date(2026, 2, 18)]), "1 week")
    assert found.to_list() == [datetime(2026, 2, 16, tzinfo=UTC)]


def test_a_file_touches_every_window_from_its_first_to_its_last_time() -> None:
    first, last = datetime(2026, 1, 30, 5), datetime(2026, 4, 1)
    starts = [start.month for start, _ in windows.touched(first, last, "1 month")]
    assert starts == [1, 2, 3, 4]
    assert len(windows.touched(first, first, "1 day")) == 1
