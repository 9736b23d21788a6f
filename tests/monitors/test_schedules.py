from datetime import UTC, datetime, timedelta

import pytest
from apscheduler.triggers.cron import CronTrigger
from hypothesis import given
from hypothesis import strategies as st

from monitors import schedules


def times(expression: str, count: int = 3, start: datetime = datetime(2024, 1, 1, tzinfo=UTC)):
    trigger = CronTrigger(timezone="UTC", **schedules.fields(expression))
    found, previous, now = [], None, start - timedelta(microseconds=1)
    for _ in range(count):
        previous = trigger.get_next_fire_time(previous, previous or now)
        found.append(previous)
        now = previous
    return found


def at(*parts: int) -> datetime:
    return datetime(*parts, tzinfo=UTC)


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("0 0 8 * * ?", [at(2024, 1, 1, 8), at(2024, 1, 2, 8), at(2024, 1, 3, 8)]),
        ("0 0/20 * * * ?", [at(2024, 1, 1), at(2024, 1, 1, 0, 20), at(2024, 1, 1, 0, 40)]),
        ("0 0 0 ? * 2", [at(2024, 1, 1), at(2024, 1, 8), at(2024, 1, 15)]),  # 2 = Monday
        ("0 0 0 ? * SUN", [at(2024, 1, 7), at(2024, 1, 14), at(2024, 1, 21)]),
        ("0 0 0 ? * MON-WED", [at(2024, 1, 1), at(2024, 1, 2), at(2024, 1, 3)]),
        ("0 0 0 L * ?", [at(2024, 1, 31), at(2024, 2, 29), at(2024, 3, 31)]),
        ("0 0 0 ? * 6L", [at(2024, 1, 26), at(2024, 2, 23), at(2024, 3, 29)]),  # last Friday
        ("0 0 0 ? * 6#3", [at(2024, 1, 19), at(2024, 2, 16), at(2024, 3, 15)]),  # third Friday
        ("30 15 6 1,15 JAN ? 2025", [at(2025, 1, 1, 6, 15, 30), at(2025, 1, 15, 6, 15, 30)]),
    ],
)
def test_a_quartz_expression_fires_when_quartz_would(expression, expected):
    assert times(expression, len(expected)) == expected


@pytest.mark.parametrize(
    "expression",
    [
        "",
        "* * * * *",
        "0 0 0 * * *",
        "0 0 0 ? * ?",
        "0 60 0 * * ?",
        "0 0 0 1W * ?",
        "0 0 0 ? * 8",
        "0 5-1 0 * * ?",
        "0 0/0 0 * * ?",
        "0 0 0 ? * FRIDAY",
        "0 0 0 * * ? 2024 7",
    ],
)
def test_what_is_not_understood_is_refused_in_words(expression):
    with pytest.raises(ValueError, match=r"\.$"):
        schedules.fields(expression)


@given(st.text(alphabet="0123456789*/-,?LW#MONSUJA ", max_size=40))
def test_whatever_is_accepted_makes_a_trigger(expression):
    try:
        translated = schedules.fields(expression)
    except ValueError:
        return
    CronTrigger(timezone="UTC", **translated)


def test_a_time_zone_is_checked():
    assert str(schedules.timezone("America/New_York")) == "America/New_York"
    for name in ("Mars/Olympus", "../etc/passwd", ""):
        with pytest.raises(ValueError):
            schedules.timezone(name)
