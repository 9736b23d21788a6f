"""Which requests a person wants: as it was typed, as the API takes it, as polars code. Pure."""

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

STATUSES: dict[str, str | None] = {
    "all": None,
    "answered": "2xx",
    "refused": "4xx",
    "failed": "failed",
}
STATUS_HELP = "answered: 2xx; refused: 4xx; failed: 5xx, or the model raised (which answers 400)"
FEATURE = "feature."
CONDITION = re.compile(r"\s*([^<>=]+?)\s*(>=|<=|>|<|=)\s*(.*?)\s*", re.DOTALL)
HOW = "column > 100, column = text or column = low..high; several are joined by ;"
TIME = re.compile(r"\d{4}-\d\d-\d\d(T.*)?", re.ASCII)
Row = Mapping[str, Any]


class Unreadable(Exception):
    """What was typed is no condition; the message says what one looks like."""


def conditions(text: str) -> dict[str, str]:
    """`amount > 100; city = vienna` -> {"feature.amount": ">100", "feature.city": "vienna"}.

    A column that stands there twice is bounded from both sides. Raises Unreadable."""
    found: dict[str, str] = {}
    for part in filter(str.strip, text.split(";")):
        read = CONDITION.fullmatch(part)
        if read is None or not read[3]:
            raise Unreadable(f"'{part.strip()}' is no condition. One reads {HOW}.")
        column, sign, value = read.groups()
        key = f"{FEATURE}{column}"
        limits = value if sign == "=" else f"{sign}{value}"
        found[key] = limits if key not in found else _both(column, found[key], limits)
    return found


def _both(column: str, first: str, second: str) -> str:
    """`>=1` and `<=5` are `1..5`; other pairs the API has no word for."""
    low, high = sorted((first, second), key=lambda one: one.startswith("<"))
    if not (low.startswith(">=") and high.startswith("<=")):
        raise Unreadable(f"'{column}' is named twice; between two limits reads {column} = 1..5.")
    return f"{low[2:]}..{high[2:]}"


# As polars code


def polars(folder: str, filters: Mapping[str, Any], shown: Sequence[Row]) -> str:
    """Code that prints the rows that the page shows, and how many they are.

    folder: of the endpoint's unpacked table; filters: as the API takes them; shown: rows of the
    page, which tell the types of columns."""
    lines = ["from datetime import datetime", "", "import polars as pl", ""]
    lines += [f"rows = pl.scan_delta({folder!r}).filter("]
    lines += [f"    {condition}," for condition in _all(filters, shown)]
    lines += [")"]
    if filters.get("text"):
        payload = folder.removesuffix("_unpacked") + "_payload"
        text = filters["text"]
        lines += [
            f"holds = pl.col('request', 'response').str.contains({text!r}, literal=True)",
            f"found = pl.scan_delta({payload!r}).filter(pl.any_horizontal(holds))",
            "rows = rows.join(found, on='databricks_request_id', how='semi')",
        ]
    lines += ["print(rows.sort('request_time', descending=True).collect())"]
    return "\n".join(lines)


def _all(filters: Mapping[str, Any], shown: Sequence[Row]) -> list[str]:
    found: list[str] = []
    for key, sign in (("from", ">="), ("to", "<")):
        if filters.get(key):
            at = datetime.fromisoformat(str(filters[key])).astimezone(UTC)
            day = "<=" if sign == "<" else sign
            found.append(f"pl.col('request_date') {day} pl.date({at:%Y, %-m, %-d})")
            found.append(f"pl.col('request_time') {sign} {_time(at.isoformat())}")
    if filters.get("status"):
        found.append(_status(str(filters["status"])))
    for key, column in (
        ("served_entity", "served_entity_name"),
        ("client_request_id", "client_request_id"),
    ):
        if filters.get(key):
            found.append(f"pl.col({column!r}) == {filters[key]!r}")
    for key, limits in filters.items():
        if key.startswith(FEATURE):
            found += _feature(key.removeprefix(FEATURE), str(limits), shown)
    return found


def _status(wanted: str) -> str:
    if wanted == "failed":
        return "(pl.col('status_code') >= 500) | pl.col('error_source').is_in(['model', 'server'])"
    if wanted.endswith("xx"):
        return f"pl.col('status_code') // 100 == {wanted[0]}"
    return f"pl.col('status_code') == {wanted}"


def _feature(name: str, limits: str, shown: Sequence[Row]) -> list[str]:
    """A feature that is called like a column of the record has an underscore behind its name."""
    column = f"{name}_" if any(f"{name}_" in row for row in shown) else name
    value = f"pl.col({column!r})"
    read = re.fullmatch(r"([<>]=?)\s*(.*)", limits, re.DOTALL)
    if read:
        return [f"{value} {read[1]} {_literal(column, read[2], shown)}"]
    low, dots, high = limits.partition("..")
    if not dots:
        return [f"{value} == {_literal(column, low, shown)}"]
    ends = [
        f"{value} {sign} {_literal(column, text, shown)}"
        for sign, text in ((">=", low), ("<=", high))
        if text
    ]
    return ends or [f"{value}.is_not_null()"]


def _literal(column: str, text: str, shown: Sequence[Row]) -> str:
    """A limit in the type of the column's values; where the page shows none, by its look."""
    value = next((row[column] for row in shown if row.get(column) is not None), None)
    if isinstance(value, bool):
        return str(text.lower() == "true")
    if isinstance(value, str) and not (TIME.fullmatch(value) and TIME.fullmatch(text)):
        return repr(text)
    if isinstance(value, str) or (value is None and TIME.fullmatch(text)):
        return _time(text)
    try:
        return f"{float(text):g}" if float(text) == float(f"{float(text):g}") else str(float(text))
    except ValueError:
        return repr(text)


def _time(text: str) -> str:
    at = datetime.fromisoformat(text)
    aware = at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)
    return f"datetime.fromisoformat({aware.isoformat()!r})"
