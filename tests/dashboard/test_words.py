"""Numbers, times and codes as a person reads them."""

import math
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dashboard import words

NOW = datetime(2013, 10, 8, 14, 0, tzinfo=UTC)


@given(st.text())
def test_text_of_others_is_never_markup(text: str) -> None:
    shown = words.plain(text)
    bare = shown.replace("\\\\", "")  # an escaped backslash escapes nothing
    for sign in "`*_[]<>!$~|#":
        assert bare.count(sign) == bare.count("\\" + sign)
    assert "\n" not in shown


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (None, "–"),
        (float("nan"), "–"),
        (float("inf"), "–"),
        (0, "0"),
        (0.1, "0.1"),
        (0.7571, "0.757"),
        (41.72, "41.7"),
        (14200, "14,200"),
        (0.00004, "4e-05"),
    ],
)
def test_an_amount_has_three_digits(value: float | None, said: str) -> None:
    assert words.amount(value) == said


def test_a_missing_number_is_a_dash_and_never_zero() -> None:
    assert words.percent(None) == words.count(None) == words.signed(None) == words.NOTHING
    assert words.interval([None, 1]) == words.interval(None) == words.NOTHING
    assert words.figure(True) is None


def test_a_difference_says_its_sign() -> None:
    assert words.signed(0.0412) == "+0.041"
    assert words.signed(-0.0004) == "-0.0004"
    assert words.interval([-0.1582, -0.007]) == "[-0.158, -0.007]"


@pytest.mark.parametrize(
    ("share", "said"), [(0.62, "62 %"), (0.0027, "0.27 %"), (0.0623, "6.2 %"), (0, "0 %")]
)
def test_a_share_is_said_in_percent(share: float, said: str) -> None:
    assert words.percent(share) == said


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (1.23, "1.2 s"),
        (75, "75 s"),
        (840, "14 min"),
        (3600, "1 h"),
        (111_600, "31 h"),
        (4e5, "5 days"),
    ],
)
def test_a_duration_has_the_unit_that_reads_best(seconds: float, said: str) -> None:
    assert words.duration(seconds) == said


def test_times_name_their_zone() -> None:
    assert words.clock("2013-10-08T16:00:00+02:00") == "8 Oct 2013 14:00 UTC"
    assert words.clock(1_381_240_800_000) == "8 Oct 2013 14:00 UTC"
    assert words.clock("yesterday") == words.NOTHING


def test_what_is_long_ago_is_a_date() -> None:
    assert words.ago(NOW - timedelta(minutes=14), NOW) == "14 min ago"
    assert words.ago(NOW - timedelta(days=30), NOW) == "8 Sep 2013 14:00 UTC"


def test_a_window_is_named_by_its_length() -> None:
    day = ["2013-10-08T00:00:00Z", "2013-10-09T00:00:00Z"]
    week = ["2013-10-07T00:00:00Z", "2013-10-14T00:00:00Z"]
    hour = ["2013-10-08T07:00:00Z", "2013-10-08T08:00:00Z"]
    assert words.window(day) == "8 Oct 2013"
    assert words.window(week) == "7 Oct 2013 to 14 Oct 2013"
    assert words.window(hour) == "8 Oct 2013 07:00 to 08:00 UTC"
    assert words.window([]) == words.NOTHING


def test_a_statistic_is_a_sentence_with_both_numbers_of_rows() -> None:
    cell = {"metric": "psi", "value": 0.31, "threshold": 0.2, "n": 14200, "n_baseline": 50000}
    assert words.statistic(cell) == "PSI 0.31, threshold 0.2; 14,200 rows against 50,000."
    missing = {"status": "not_enough_data", "n": 82, "n_baseline": 50000}
    assert words.statistic(missing).startswith("No answer: not enough rows to judge; 82 rows")


def test_reasons_are_words_and_keep_their_names() -> None:
    assert words.reason("slice_regression:region=apac") == "worse in a slice (region=apac)"
    assert words.reason("latency_p95") == "latency p95 crossed its limit"
    assert words.reason("error_rate") == "error rate crossed its limit"


@given(st.floats(allow_nan=True, allow_infinity=True) | st.integers())
def test_every_number_can_be_said(number: float) -> None:
    for say in (words.amount, words.count, words.percent, words.signed):
        assert "nan" not in say(number)
        assert "inf" not in say(number)
    assert words.figure(number) is None or math.isfinite(words.figure(number) or 0)


def test_an_id_tells_when_its_request_came_in() -> None:
    at = NOW - timedelta(seconds=2.5)
    young = f"{int(at.timestamp() * 1000):012x}" + "70008" + "0" * 15
    assert words.age_of_id(young, NOW) == pytest.approx(2.5)
    assert words.age_of_id("no id", NOW) == words.age_of_id(f"{4:032x}", NOW) == math.inf
