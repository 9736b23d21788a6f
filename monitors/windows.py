"""Windows of time: the granularities of the contract, aligned in UTC, half-open [start, end).

Minutes and hours are aligned to the clock, days to midnight, weeks to Monday (n weeks count from
Monday 5 January 1970), months and years to the calendar. Source: databricks-monitoring.md,
section 2. Loads no numbers: polars comes with the series that is handed in.
"""

import re
from datetime import UTC, datetime, time, timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import polars as pl

GRANULARITIES = (
    *("5 minutes", "30 minutes", "1 hour", "1 day"),
    *("1 week", "2 weeks", "3 weeks", "4 weeks", "1 month", "1 year"),
)
_FIXED = {
    "5 minutes": timedelta(minutes=5),
    "30 minutes": timedelta(minutes=30),
    "1 hour": timedelta(hours=1),
    "1 day": timedelta(days=1),
}
_CALENDAR = {"1 month": "1mo", "1 year": "1y"}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MONDAY = datetime(1970, 1, 5, tzinfo=UTC)
_MOST_WEEKS = 520
_MIDNIGHT = time()


def check(granularity: str) -> str:
    """The canonical spelling. Raises ValueError that names what is allowed."""
    if granularity in _FIXED or granularity in _CALENDAR:
        return granularity
    match = re.fullmatch(r"([1-9][0-9]{0,2}) weeks?", granularity)
    if match is None or int(match[1]) > _MOST_WEEKS:
        allowed = ", ".join((*_FIXED, "<n> week(s)", *_CALENDAR))
        raise ValueError(f"Granularity '{granularity}' is not offered; allowed are {allowed}.")
    return "1 week" if match[1] == "1" else f"{match[1]} weeks"


def align(moment: datetime, granularity: str) -> tuple[datetime, datetime]:
    """The window [start, end) in UTC that holds a time; a naive time is UTC."""
    moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    name = check(granularity)
    midnight = moment.replace(hour=0, minute=0, second=0, microsecond=0)
    if name == "1 month":
        start = midnight.replace(day=1)
    elif name == "1 year":
        start = midnight.replace(month=1, day=1)
    else:
        origin, width = _origin_and_width(name)
        start = origin + (moment - origin) // width * width
    return start, end_of(start, name)


def end_of(start: datetime, granularity: str) -> datetime:
    """The end of the window that begins at start (an aligned time)."""
    name = check(granularity)
    if name == "1 month":
        return start.replace(year=start.year + start.month // 12, month=start.month % 12 + 1)
    if name == "1 year":
        return start.replace(year=start.year + 1)
    return start + _origin_and_width(name)[1]


def touched(first: datetime, last: datetime, granularity: str) -> list[tuple[datetime, datetime]]:
    """The windows that hold any time from first to last, both included; in order."""
    windows = [align(first, granularity)]
    final = align(last, granularity)
    while windows[-1][0] < final[0]:
        windows.append(align(windows[-1][1], granularity))
    return windows


def assign(times: "pl.Series", granularity: str) -> "pl.Series":
    """The start of each time's window as Datetime("us", "UTC"), null where the time is null.

    times: Datetime of any unit and zone (naive = UTC) or Date."""
    name = check(granularity)
    at = _utc(times)
    if name in _CALENDAR:
        return at.dt.truncate(_CALENDAR[name])
    origin, width = _origin_and_width(name)
    step = width // timedelta(microseconds=1)
    offset = (origin - _EPOCH) // timedelta(microseconds=1)
    number = at.dt.timestamp("us")
    start = (number - offset) // step * step + offset
    return start.cast(at.dtype)


def _origin_and_width(name: str) -> tuple[datetime, timedelta]:
    if name in _FIXED:
        return _EPOCH, _FIXED[name]
    return _MONDAY, timedelta(weeks=int(name.split()[0]))


def _utc(times: "pl.Series") -> "pl.Series":
    if getattr(times.dtype, "time_zone", None) is not None:
        return times.dt.cast_time_unit("us").dt.convert_time_zone("UTC")
    if not hasattr(times.dtype, "time_unit"):
        times = times.dt.combine(_MIDNIGHT, "us")
    return times.dt.cast_time_unit("us").dt.replace_time_zone("UTC")
