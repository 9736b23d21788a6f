import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capture import errors
from serving.gateway import admission

USER = [{"calls": 2, "renewal_period": "minute", "key": "user"}]
ENDPOINT = [{"calls": 3, "renewal_period": "minute", "key": "endpoint"}]


def passes(limits, rules, user, now):
    try:
        limits.admit(admission.counted("e", rules, user), now)
    except errors.RequestLimitExceeded:
        return False
    return True


def test_calls_pass_up_to_the_limit_and_again_after_a_while():
    limits = admission.RateLimits()
    assert [passes(limits, USER, "u", 0.0) for _ in range(3)] == [True, True, False]
    assert not passes(limits, USER, "u", 29.0)
    assert passes(limits, USER, "u", 31.0)


def test_each_user_has_their_own_calls_and_an_endpoint_one_count_for_all():
    limits = admission.RateLimits()
    assert [passes(limits, USER, name, 0.0) for name in "aabb"] == [True] * 4
    assert [passes(limits, ENDPOINT, name, 0.0) for name in "abcd"] == [True, True, True, False]


def test_the_strictest_limit_wins_and_a_refused_call_counts_nowhere():
    limits = admission.RateLimits()
    both = [*ENDPOINT, *USER]
    assert [passes(limits, both, "a", 0.0) for _ in range(4)] == [True, True, False, False]
    assert passes(limits, both, "b", 0.0)


def test_a_limit_for_one_principal_counts_only_theirs():
    rule = [{"calls": 0, "renewal_period": "minute", "key": "service_principal", "principal": "s"}]
    limits = admission.RateLimits()
    assert passes(limits, rule, "u", 0.0)
    assert not passes(limits, rule, "s", 0.0)


def test_a_refusal_says_the_limit_and_when_to_come_again():
    limits = admission.RateLimits()
    with pytest.raises(errors.RequestLimitExceeded) as refused:
        for _ in range(3):
            limits.admit(admission.counted("e", USER, "u"), 0.0)
    assert refused.value.message == "2 calls per minute for user 'u'."
    assert errors.headers(refused.value) == {"Retry-After": "30"}


def test_a_limit_of_zero_blocks_for_good():
    bucket = admission.Bucket(0, 60, 0.0)
    assert bucket.take(1e9) == math.inf


@given(
    calls=st.integers(1, 20),
    times=st.lists(st.floats(0, 300), max_size=60).map(sorted),
)
def test_no_minute_has_more_than_twice_the_calls(calls, times):
    """A bucket lets through its content and what refills: at most 2 x calls in any minute."""
    bucket = admission.Bucket(calls, 60, 0.0)
    passed = [now for now in times if bucket.take(now) == 0]
    for start in passed:
        assert len([at for at in passed if start <= at < start + 60]) <= 2 * calls


def test_the_line_is_32_times_the_concurrency_and_at_least_256():
    assert admission.queue_length(4, 0) == 256
    assert admission.queue_length(16, 0) == 512
    assert admission.queue_length(16, 10) == 10
    with pytest.raises(errors.QueueFull, match="10 requests are waiting for 'm'"):
        admission.check_queue(10, 10, "m")


def test_retries_are_a_fifth_of_what_is_active_and_at_least_three():
    assert admission.may_retry(2, 0)
    assert not admission.may_retry(3, 10)
    assert admission.may_retry(19, 100)


def test_one_that_sleeps_is_waited_for_as_long_as_a_model_one_that_crashed_is_not():
    assert admission.longest_wait_seconds(None, 100.0, 30, 297) == 297
    assert admission.longest_wait_seconds(95.0, 100.0, 30, 297) == 30


def test_of_too_many_buckets_the_one_unused_for_longest_goes():
    limits = admission.RateLimits()
    spent = [passes(limits, USER, name, 0.0) for name in ("kept", "gone") for _ in range(2)]
    assert spent == [True] * 4
    for i in range(admission.MOST_BUCKETS - 2):
        limits.admit(admission.counted("e", USER, f"user-{i}"), 0.0)
    assert not passes(limits, USER, "kept", 0.0)  # it was used just now
    limits.admit(admission.counted("e", USER, "one too many"), 0.0)
    assert not passes(limits, USER, "kept", 0.0)
    assert passes(limits, USER, "gone", 0.0)  # forgotten, so it begins anew
