"""Quartz cron expressions, as Databricks' monitors carry them, in the terms of APScheduler. Pure.

Quartz: `seconds minutes hours day-of-month month day-of-week [year]`, one of the two days is `?`,
weekdays are 1 (Sunday) to 7 or SUN..SAT, `a/b` means from a on every b. APScheduler numbers
weekdays from Monday, so they travel as names.
"""

import re
import zoneinfo
from typing import NamedTuple

WEEKDAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
MONTHS = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"]
ORDINALS = ("1st", "2nd", "3rd", "4th", "5th")


class _Field(NamedTuple):
    name: str
    low: int
    high: int


FIELDS = (
    _Field("second", 0, 59),
    _Field("minute", 0, 59),
    _Field("hour", 0, 23),
    _Field("day", 1, 31),
    _Field("month", 1, 12),
    _Field("day_of_week", 1, 7),
    _Field("year", 1970, 2199),
)


def fields(expression: str) -> dict[str, str]:
    """Keyword arguments of APScheduler's CronTrigger for a Quartz expression.

    Raises ValueError saying which field is not understood; `W` is not offered."""
    parts = expression.split()
    if len(parts) not in (6, 7):
        raise ValueError(f"expected 6 or 7 fields, found {len(parts)}.")
    if (parts[3] == "?") == (parts[5] == "?"):
        raise ValueError("exactly one of day-of-month and day-of-week must be '?'.")
    translated: dict[str, str] = {}
    for field, text in zip(FIELDS, parts, strict=False):
        if text == "?":
            continue
        items = [_item(field, item) for item in text.upper().split(",")]
        translated.update(_merged(field, items))
    return translated


def timezone(name: str) -> zoneinfo.ZoneInfo:
    """Raises ValueError for a name that is no time zone."""
    try:
        return zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError(f"'{name[:100]}' is not a time zone name such as 'UTC'.") from None


def _merged(field: _Field, items: list[str]) -> dict[str, str]:
    # "6L" and "6#3" speak of days of the month in APScheduler's terms ("last fri", "3rd fri").
    monthly = [item for item in items if " " in item or item == "last"]
    if not monthly:
        return {field.name: ",".join(items)}
    if len(monthly) != len(items):
        raise ValueError(f"{field.name}: 'L' and '#' cannot be mixed with other values.")
    return {"day": ",".join(items)}


def _item(field: _Field, item: str) -> str:
    base, _, step = item.partition("/")
    if step and not re.fullmatch(r"[1-9][0-9]{0,3}", step):
        raise ValueError(f"{field.name}: '{item}' has no valid step.")
    if field.name in ("day", "day_of_week"):
        monthly = _monthly(field, base)
        if monthly is not None and not step:
            return monthly
    if base == "*":
        return f"*/{step}" if step else "*"
    low, _, high = base.partition("-")
    first = _number(field, low, item)
    last = _number(field, high, item) if high else (field.high if step else first)
    if first > last:
        raise ValueError(f"{field.name}: '{item}' runs backwards.")
    return _range(field, first, last, int(step or 1))


def _monthly(field: _Field, base: str) -> str | None:
    if field.name == "day":
        return "last" if base == "L" else None
    last = re.fullmatch(r"([1-7]|[A-Z]{3})L", base)
    if last:
        return f"last {WEEKDAYS[_number(field, last[1], base) - 1]}"
    nth = re.fullmatch(r"([1-7]|[A-Z]{3})#([1-5])", base)
    if nth:
        return f"{ORDINALS[int(nth[2]) - 1]} {WEEKDAYS[_number(field, nth[1], base) - 1]}"
    return None


def _number(field: _Field, text: str, item: str) -> int:
    names = {"month": MONTHS, "day_of_week": list(WEEKDAYS)}.get(field.name, [])
    if text.lower() in names:
        return names.index(text.lower()) + 1
    if not re.fullmatch(r"[0-9]{1,4}", text) or not field.low <= int(text) <= field.high:
        raise ValueError(
            f"{field.name}: '{item}' is not understood; numbers go from {field.low} to "
            f"{field.high}."
        )
    return int(text)


def _range(field: _Field, first: int, last: int, step: int) -> str:
    if field.name == "day_of_week":
        return ",".join(WEEKDAYS[number - 1] for number in range(first, last + 1, step))
    if first == last:
        return str(first)
    return f"{first}-{last}" + (f"/{step}" if step > 1 else "")
