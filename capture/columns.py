"""Values as JSON brings them -> typed Arrow columns. Pure.

A kind is one of `double`, `int64`, `string`, `bool`, `timestamp`. It is found once, from the first
values, or told by a signature; what later does not fit is null and named, never guessed anew.
Numbers are double unless whole numbers beyond 2^53 are among them: a measure may turn fractional
tomorrow, an id must not lose digits.
"""

import json
from collections.abc import Sequence
from datetime import UTC, date, datetime
from typing import Any, NamedTuple

import pyarrow as pa

ARROW: dict[str, pa.DataType] = {
    "double": pa.float64(),
    "int64": pa.int64(),
    "string": pa.string(),
    "bool": pa.bool_(),
    "timestamp": pa.timestamp("us", tz="UTC"),
}
KINDS = {arrow: kind for kind, arrow in ARROW.items()}
EXACT_INTEGER = 1 << 53
INT64 = 1 << 63
SHOWN_CHARACTERS = 60

_EXACT_TYPES: dict[str, frozenset[type]] = {
    "double": frozenset({int, float, bool, type(None)}),
    "int64": frozenset({int, type(None)}),
    "string": frozenset({str, type(None)}),
    "bool": frozenset({bool, type(None)}),
    "timestamp": frozenset({datetime, type(None)}),
}


class Typed(NamedTuple):
    """A column, and what did not fit it: position -> what was found there."""

    array: pa.Array
    misfits: dict[int, str]


class _Misfit(Exception):
    """A value has no place in its column."""


def kind_of(values: Sequence[Any]) -> str | None:
    """Kind of a column from its values; None while there are only nulls.

    Text that is ISO 8601 dates or times throughout is a timestamp."""
    types = set(map(type, values)) - {type(None)}
    if not types:
        return None
    if types == {str}:
        return "timestamp" if _all_times(values) else "string"
    if types == {bool}:
        return "bool"
    if types <= {int, float, bool}:
        return _number_kind(values) if types == {int} else "double"
    return "timestamp" if types <= {datetime, date} else "string"


def _all_times(texts: Sequence[str | None]) -> bool:
    return all(_instant(text) is not None for text in set(texts) if text is not None)


def _number_kind(values: Sequence[int | None]) -> str:
    greatest = max(abs(value) for value in values if value is not None)
    if greatest <= EXACT_INTEGER:
        return "double"
    return "int64" if greatest < INT64 else "string"


def typed(values: Sequence[Any], kind: str) -> Typed:
    """A column of a kind. What does not fit is null in the array and named in `misfits`."""
    types = set(map(type, values))
    try:
        if types <= _EXACT_TYPES[kind]:
            return Typed(pa.array(values, ARROW[kind]), {})
        if kind == "timestamp" and types <= _EXACT_TYPES["string"]:
            return Typed(pa.array(values, pa.string()).cast(ARROW[kind]), {})
    except (pa.ArrowInvalid, OverflowError, UnicodeEncodeError):
        pass  # one of them is too large, or no text, or no time; the slow way finds it
    convert = _CONVERTERS[kind]
    fitted: list[Any] = []
    misfits: dict[int, str] = {}
    known: dict[str, Any] = {}
    for place, value in enumerate(values):
        try:
            if type(value) is str and kind == "timestamp":
                if value not in known:
                    known[value] = convert(value)
                fitted.append(known[value])
            else:
                fitted.append(None if value is None else convert(value))
        except _Misfit:
            fitted.append(None)
            misfits[place] = shown(value)
    return Typed(pa.array(fitted, ARROW[kind]), misfits)


def shown(value: Any) -> str:
    """A value as it is named to a person: JSON, cut to SHOWN_CHARACTERS."""
    text = _json(value).encode("utf-8", "replace").decode()
    return text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + "..."


def _double(value: Any) -> float:
    if not isinstance(value, (int, float)):
        raise _Misfit
    try:
        return float(value)
    except OverflowError:
        raise _Misfit from None


def _integer(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value:
        raise _Misfit
    if isinstance(value, float) and not value.is_integer():
        raise _Misfit
    whole = int(value)
    if not -INT64 <= whole < INT64:
        raise _Misfit
    return whole


def _string(value: Any) -> str:
    text = value if isinstance(value, str) else _json(value)
    # A lone surrogate is legal in JSON and in no table.
    return text.encode("utf-8", "replace").decode()


def _json(value: Any) -> str:
    # Not orjson: it refuses integers beyond 64 bits, and NaN becomes null.
    try:
        return json.dumps(value, default=str, ensure_ascii=False, separators=(",", ":"))
    except RecursionError:
        return "[...]"


def _boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise _Misfit
    return value


def _timestamp(value: Any) -> datetime:
    found = _instant(value) if isinstance(value, str) else value
    if isinstance(found, datetime):
        return found.replace(tzinfo=UTC) if found.tzinfo is None else found
    if isinstance(found, date):
        return datetime(found.year, found.month, found.day, tzinfo=UTC)
    raise _Misfit


def _instant(text: str) -> datetime | None:
    """An ISO 8601 date or time, from `2013-07-01` on; None for anything else.

    `fromisoformat` also reads `20130701` and `2013-W27`; plain numbers and codes stay text."""
    if len(text) < 10 or text[4] != "-" or text[7] != "-":
        return None
    try:
        found = datetime.fromisoformat(text)
        return found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)
    except (ValueError, OverflowError):
        return None


_CONVERTERS = {
    "double": _double,
    "int64": _integer,
    "string": _string,
    "bool": _boolean,
    "timestamp": _timestamp,
}
