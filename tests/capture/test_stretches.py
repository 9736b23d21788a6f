"""Stretches of time: together all of it, newest first, ever longer."""

from datetime import UTC, datetime, timedelta
from itertools import islice, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capture import stretches

START = datetime(2024, 3, 1, 12, tzinfo=UTC)


def after(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


extents = st.builds(
    lambda start, length, rows: stretches.Extent(after(start), after(start + length), rows),
    st.floats(0, 1e6),
    st.one_of(st.just(0.0), st.floats(0, 1e5)),
    st.integers(1, 1_000_000),
)


@given(
    given_=st.lists(extents, min_size=1, max_size=20),
    limits=st.tuples(*[st.one_of(st.none(), st.floats(-1e4, 1.2e6))] * 2),
)
def test_stretches_follow_each_other_from_the_newest_row_to_the_oldest(given_, limits):
    start, end = (None if one is None else after(one) for one in limits)
    found = list(stretches.back(given_, start, end))
    first = max(filter(None, [start, min(one.start for one in given_)]))
    newest = max(one.end for one in given_) + stretches.INSTANT
    last = newest if end is None else min(end, newest)
    if first >= last:
        assert found == []
        return
    assert (found[0].end, found[-1].start) == (last, first)
    assert all(one.start < one.end for one in found)
    assert all(newer.start == older.end for newer, older in pairwise(found))


def test_each_stretch_holds_as_many_rows_as_it_should_up_to_twice_as_many():
    hour = [stretches.Extent(after(3600 * n), after(3600 * (n + 1)), 3600) for n in range(1000)]
    found = stretches.back(hour, first_rows=1000, growth=10)
    seconds = [(one.end - one.start).total_seconds() for one in islice(found, 3)]
    assert 1_000 <= seconds[0] <= 2_000
    assert 10_000 <= seconds[1] <= 20_000
    assert 100_000 <= seconds[2] <= 200_000


@pytest.mark.parametrize("rows", [1, 10**9])
def test_rows_of_one_instant_are_one_stretch(rows):
    found = list(stretches.back([stretches.Extent(START, START, rows)]))
    assert found == [stretches.Stretch(START, START + stretches.INSTANT)]


def test_nothing_is_no_stretch():
    assert list(stretches.back([])) == []
