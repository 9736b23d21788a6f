"""Filters of recorded rows: from a caller's arguments to polars conditions. Pure."""

import base64
import binascii
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple

import orjson
import polars as pl

from capture import errors

FEATURE = "feature."
NAMES = ("from", "to", "status", "served_entity", "client_request_id", "text")
STATUS = re.compile(r"[1-5](\d\d|xx)|failed", re.ASCII)
# A model that raises answers 400 by contract, yet it is the model's fault.
FAILED = (
    (pl.col("status_code") >= 500) | pl.col("error_source").is_in(["model", "server"])
).fill_null(False)
COMPARED = re.compile(r"([<>]=?)\s*(.*)", re.DOTALL)
COMPARISONS: dict[str, Callable[[pl.Expr, Any], pl.Expr]] = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
}
DEFAULT_PAGE_ROWS, MOST_PAGE_ROWS = 100, 1_000


class Place(NamedTuple):
    """Where a page ended: the last row's time (microseconds since the epoch), id and index."""

    time_us: int
    request_id: str
    row_index: int


@dataclass(frozen=True, slots=True)
class Filters:
    """What rows are wanted. Time: `start <= request_time < end`. status: 200, 2xx, failed.

    Features: name -> `lo..hi`, `>lo`, a value."""

    start: datetime | None = None
    end: datetime | None = None
    status: str | None = None
    served_entity: str | None = None
    client_request_id: str | None = None
    text: str | None = None
    features: dict[str, str] = field(default_factory=dict)


def parse(arguments: Mapping[str, Any]) -> Filters:
    """Filters from the query of a request. Empty values do not filter.

    Keys: NAMES and `feature.<column>`. Raises InvalidParameter, naming the key.
    """
    given = {name: value for name, value in arguments.items() if value not in (None, "")}
    for name in given:
        if name not in NAMES and not (name.startswith(FEATURE) and len(name) > len(FEATURE)):
            raise errors.InvalidParameter(
                f"Filter '{name[:100]}' is not known; use {', '.join(NAMES)} or feature.<column>."
            )
    return Filters(
        start=None if "from" not in given else instant(given["from"], "from"),
        end=None if "to" not in given else instant(given["to"], "to"),
        status=None if "status" not in given else _status(given["status"]),
        served_entity=_text(given, "served_entity"),
        client_request_id=_text(given, "client_request_id"),
        text=_text(given, "text"),
        features={
            name.removeprefix(FEATURE): str(value)
            for name, value in given.items()
            if name.startswith(FEATURE)
        },
    )


def _text(given: Mapping[str, Any], name: str) -> str | None:
    return None if name not in given else str(given[name])


def instant(value: Any, name: str) -> datetime:
    """An RFC 3339 time in UTC; without zone it is UTC. Raises InvalidParameter, naming it."""
    try:
        found = datetime.fromisoformat(value)
        return found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)
    except (TypeError, ValueError, OverflowError):
        raise errors.InvalidParameter(
            f"{name}: '{str(value)[:100]}' is no RFC 3339 time, such as 2024-03-01T12:00:00Z."
        ) from None


def _status(value: Any) -> str:
    text = str(value)
    if not STATUS.fullmatch(text):
        raise errors.InvalidParameter(
            f"status: '{text[:100]}' is not allowed; use a status, such as 200, 2xx to 5xx, or "
            "failed (5xx, or the model raised)."
        )
    return text


def conditions(filters: Filters, schema: pl.Schema, columns: Mapping[str, str]) -> list[pl.Expr]:
    """What rows of the unpacked table pass, all together; `text` and the partition aside.

    columns: feature -> column of `schema`. Raises InvalidParameter for an unknown feature.
    """
    wanted = [pl.lit(True)]
    if filters.start is not None:
        wanted.append(pl.col("request_time") >= filters.start)
    if filters.end is not None:
        wanted.append(pl.col("request_time") < filters.end)
    if filters.status is not None:
        wanted.append(_has_status(filters.status))
    if filters.served_entity is not None:
        wanted.append(pl.col("served_entity_name") == filters.served_entity)
    if filters.client_request_id is not None:
        wanted.append(pl.col("client_request_id") == filters.client_request_id)
    for name, limits in filters.features.items():
        if name not in columns:
            raise errors.InvalidParameter(
                f"feature.{name[:100]}: there is no such column; there are "
                f"{', '.join(sorted(columns))[:500]}."
            )
        wanted.append(_within(name, limits, columns[name], schema[columns[name]]))
    return wanted


def _has_status(status: str) -> pl.Expr:
    if status == "failed":
        return FAILED
    if status.endswith("xx"):
        return pl.col("status_code") // 100 == int(status[0])
    return pl.col("status_code") == int(status)


def _within(name: str, limits: str, column: str, kind: pl.DataType) -> pl.Expr:
    """`lo..hi`, both ends included, either left out; `>lo`, `>=lo`, `<hi`, `<=hi`; else the very
    value."""
    value = pl.col(column)
    compared = COMPARED.fullmatch(limits)
    if compared:
        return COMPARISONS[compared[1]](value, _limit(name, compared[2], kind))
    low, dots, high = limits.partition("..")
    if not dots:
        return value == _limit(name, low, kind)
    ends = []
    if low:
        ends.append(value >= _limit(name, low, kind))
    if high:
        ends.append(value <= _limit(name, high, kind))
    return pl.all_horizontal(ends) if ends else value.is_not_null()


def _limit(name: str, text: str, kind: pl.DataType) -> Any:
    """A limit in the type of its column."""
    try:
        if kind.is_numeric():
            return float(text)
        if kind == pl.Boolean:
            return {"true": True, "false": False}[text.lower()]
    except (ValueError, KeyError):
        raise errors.InvalidParameter(
            f"feature.{name[:100]}: '{text[:100]}' is no {str(kind).lower()}."
        ) from None
    if isinstance(kind, pl.Datetime):
        return pl.lit(instant(text, f"feature.{name[:100]}"))
    return text


def page_rows(value: Any) -> int:
    """Rows of a page. Raises InvalidParameter."""
    if value in (None, ""):
        return DEFAULT_PAGE_ROWS
    text = str(value)
    if not (text.isascii() and text.isdigit() and 1 <= int(text[:6]) <= MOST_PAGE_ROWS):
        raise errors.InvalidParameter(
            f"page_size: '{text[:100]}' is not allowed; use 1 to {MOST_PAGE_ROWS}."
        )
    return int(text)


def token(place: Place) -> str:
    """A place as a `page_token`."""
    return base64.urlsafe_b64encode(orjson.dumps(list(place))).decode()


def place(page_token: str) -> Place:
    """The place in a `page_token`. Raises InvalidParameter."""
    try:
        time_us, request_id, row_index = orjson.loads(base64.urlsafe_b64decode(page_token))
        if type(time_us) is int and type(request_id) is str and type(row_index) is int:
            return Place(time_us, request_id, row_index)
    except (binascii.Error, ValueError, TypeError):
        pass
    raise errors.InvalidParameter("page_token: this is no token of a page before.")


def after(found: Place) -> pl.Expr:
    """Rows that come after a place, newest first."""
    at = pl.lit(found.time_us).cast(pl.Datetime("us")).dt.replace_time_zone("UTC")
    time, request_id, index = (
        pl.col(name) for name in ("request_time", "databricks_request_id", "row_index")
    )
    same_id = (request_id == found.request_id) & (index < found.row_index)
    return (time < at) | ((time == at) & ((request_id < found.request_id) | same_id))
