"""The URL says where a person looks, and a link shows the same thing to everybody."""

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from dashboard import address

TIMES = st.datetimes(datetime(1990, 1, 1), datetime(2090, 1, 1)).map(
    lambda at: at.replace(second=0, microsecond=0, tzinfo=UTC)
)
NAMES = st.text("abcdefghij-_0123456789", min_size=1, max_size=20)
ADDRESSES = st.builds(
    address.Address,
    endpoint=st.none() | NAMES,
    range=st.sampled_from([key for key in address.RANGES if key != "own"]),
    version=st.none() | NAMES,
) | st.builds(
    address.Address,
    endpoint=st.none() | NAMES,
    range=st.just("own"),
    start=TIMES,
    end=TIMES,
    version=st.none() | NAMES,
)


@given(ADDRESSES)
def test_an_address_survives_its_url(there: address.Address) -> None:
    assert address.read(address.write(there)) == there


@given(st.dictionaries(st.sampled_from(address.KEYS), st.text(max_size=30)))
def test_no_url_is_refused(params: dict[str, str]) -> None:
    assert address.read(params).range in address.RANGES


def test_what_the_url_leaves_out_is_remembered() -> None:
    before = address.Address(endpoint="flights", range="7d", version="v2")
    assert address.resume({}, before) == before
    assert address.resume({"range": "1h"}, before).endpoint == "flights"


def test_another_endpoint_does_not_inherit_the_version() -> None:
    before = address.Address(endpoint="flights", version="v2")
    assert address.resume({"endpoint": "prices"}, before).version is None


def test_a_range_is_counted_back_from_the_newest_row() -> None:
    newest = datetime(2013, 12, 30, tzinfo=UTC)
    week = address.bounds(address.Address(range="7d"), newest)
    assert week == (newest - timedelta(days=7), None)
    assert address.bounds(address.Address(range="all"), newest) == (None, None)


@given(TIMES, st.integers(1, 10**9))
def test_a_chart_never_gets_more_steps_than_it_can_show(start: datetime, seconds: int) -> None:
    end = start + timedelta(seconds=seconds)
    assert seconds / address.step_seconds(start, end) <= address.MOST_STEPS


def test_links_lead_to_pages_of_ours_alone() -> None:
    assert address.link("/experiment?endpoint=a%2Fb") == (
        "views/experiment.py",
        {"endpoint": "a/b"},
    )
    assert address.link("http://evil.example/elsewhere") is None
    assert address.link("javascript:alert(1)") is None
    assert address.link(None) is None


def test_yesterday_is_the_day_before_from_midnight_to_midnight() -> None:
    newest = datetime(2026, 3, 1, 15, 7, tzinfo=UTC)
    chosen = address.read({"range": "yesterday"})
    midnight = datetime(2026, 3, 1, tzinfo=UTC)
    assert address.bounds(chosen, newest) == (midnight - timedelta(days=1), midnight)
