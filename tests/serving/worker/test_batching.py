from typing import NamedTuple

from hypothesis import given
from hypothesis import strategies as st

from serving.worker import batching


class One(NamedTuple):
    row_count: int
    shares: int | None
    number: int


lines = st.lists(st.tuples(st.integers(1, 9), st.sampled_from([None, 0, 1])), max_size=40).map(
    lambda pairs: [One(rows, shares, number) for number, (rows, shares) in enumerate(pairs)]
)
LIMITS = batching.Limits(max_requests=4, max_rows=12)


@given(waiting=lines)
def test_each_request_is_in_exactly_one_call(waiting):
    calls = batching.batches(waiting, LIMITS)
    assert sorted(one.number for call in calls for one in call) == list(range(len(waiting)))


@given(waiting=lines)
def test_a_call_keeps_its_limits_order_and_kind(waiting):
    for call in batching.batches(waiting, LIMITS):
        assert len({one.shares for one in call}) == 1
        assert [one.number for one in call] == sorted(one.number for one in call)
        if len(call) > 1:
            assert call[0].shares is not None
            assert len(call) <= LIMITS.max_requests
            assert sum(one.row_count for one in call) <= LIMITS.max_rows


@given(waiting=lines)
def test_nobody_that_may_share_waits_behind_one_that_must_be_alone(waiting):
    kinds = [call[0].shares is None for call in batching.batches(waiting, LIMITS)]
    assert kinds == sorted(kinds)


def test_what_fits_shares_one_call():
    waiting = [One(1, 0, number) for number in range(64)]
    assert len(batching.batches(waiting, batching.Limits())) == 1


def test_a_request_over_the_limit_of_rows_goes_alone():
    waiting = [One(1, 0, 0), One(50, 0, 1), One(1, 0, 2)]
    assert [len(call) for call in batching.batches(waiting, LIMITS)] == [1, 1, 1]
