"""MLflow's request forms, read strictly, and answers -> JSON. Pure.

A request that MLflow's own functions refuse is looked at again here, so that the message names the
column or field, what was found and what is allowed.
"""

import base64
import datetime
import json
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import msgspec
import numpy as np
import orjson
import pandas as pd

from capture import errors

FORMATS = ("dataframe_split", "dataframe_records", "instances", "inputs")
LLM_KEYS = ("messages", "prompt", "input")
SIDE_FIELDS = ("client_request_id", "usage_context", "databricks_options")

MAX_DEPTH = 200
MAX_KEYS = 100_000
MAX_CLIENT_ID_BYTES = 1_024
MAX_USAGE_PAIRS, MAX_USAGE_BYTES = 64, 256

_LONG_NUMBER = re.compile(rb"\d{19}")
_TOKENS = re.compile(rb'"(?:[^"\\]|\\.)*"|[][{}:]', re.DOTALL)


@dataclass(frozen=True, slots=True)
class Column:
    """A column that a request may or must hold. `kind`: an MLflow type name, or `any`."""

    name: str
    kind: str
    required: bool = True


class Sides(NamedTuple):
    """What comes with the rows but is not for the model. `usage_context`: JSON text."""

    client_request_id: str | None
    usage_context: bytes | None


class General(NamedTuple):
    """A request on the general way: `data` holds exactly one format key, or is LLM-shaped."""

    data: dict[str, Any]
    params: dict[str, Any] | None
    sides: Sides
    llm: bool


# --- the general way ------------------------------------------------------------------------------


def parse(payload: bytes, llm_keys: Sequence[str]) -> General:
    """Read a JSON request of any form. `llm_keys`: top-level keys by which this model takes a body
    whole. Raises BadRequest, naming byte or field."""
    body = loads(payload)
    if not isinstance(body, dict):
        raise _formats_wrong(describe(body))
    found_sides = sides(body.get("client_request_id"), _usage_text(body.get("usage_context")))
    for field in SIDE_FIELDS:
        body.pop(field, None)
    given = [name for name in FORMATS if name in body]
    if not given and any(key in body for key in llm_keys):
        return General(body, None, found_sides, True)
    if len(given) != 1:
        raise _formats_wrong(", ".join(given) or "none of them")
    params = body.get("params")
    if params is not None and not isinstance(params, dict):
        raise errors.BadRequest(f"params must be an object; found {describe(params)}.")
    data = body[given[0]]
    if given[0] == "dataframe_records":
        _check_records(data)
    elif given[0] == "dataframe_split":
        _check_split(data)
    return General({given[0]: data}, params, found_sides, False)


def _formats_wrong(found: str) -> errors.BadRequest:
    return errors.BadRequest(f"Give exactly one of {', '.join(FORMATS)}; found: {found}.")


def loads(payload: bytes) -> Any:
    """Strict JSON within the limits. Raises BadRequest with the byte, or the path of a number."""
    if not payload.strip():
        raise errors.BadRequest("Body is not valid JSON: it is empty at byte 0.")
    _check_shape(payload)
    try:
        value = orjson.loads(payload)
    except orjson.JSONDecodeError as error:
        raise _not_json(payload, error) from None
    # orjson reads integers over 64 bits as floats; MLflow, and a column of integers, does not.
    return json.loads(payload) if _LONG_NUMBER.search(payload) else value


def _check_shape(payload: bytes) -> None:
    """Depth and keys, before anything is built: a million keys take seconds to parse."""
    opening = payload.count(b"{") + payload.count(b"[")
    if opening <= MAX_DEPTH and payload.count(b":") <= MAX_KEYS:
        return
    keys: list[int] = []
    for token in _TOKENS.finditer(payload):
        kind = payload[token.start()]
        if kind in b"{[":
            keys.append(0)
            if len(keys) > MAX_DEPTH:
                raise errors.BadRequest(f"Nesting over {MAX_DEPTH} at byte {token.start()}.")
        elif kind in b"}]":
            if keys:
                keys.pop()
        elif kind == ord(":") and keys:
            keys[-1] += 1
            if keys[-1] > MAX_KEYS:
                raise errors.BadRequest(
                    f"Over {MAX_KEYS} keys in one object at byte {token.start()}."
                )


class _OutOfRange:
    """Stands for a number that JSON, or a double, cannot hold."""


_OUT_OF_RANGE = _OutOfRange()


def _not_json(payload: bytes, error: orjson.JSONDecodeError) -> errors.BadRequest:
    try:
        lenient = json.loads(
            payload.decode(),
            parse_constant=lambda _: _OUT_OF_RANGE,
            parse_float=_checked_float,
            parse_int=_checked_int,
        )
        path = next(_paths_out_of_range(lenient, ""), None)
        if path is not None:
            return errors.BadRequest(
                f"Number out of range at {path or 'the top level'}; use null for a missing value."
            )
    except UnicodeDecodeError as broken:
        return errors.BadRequest(f"Body is not valid JSON: not UTF-8 at byte {broken.start}.")
    except (ValueError, RecursionError):
        pass
    position = len(error.doc[: error.pos].encode("utf-8", "replace"))
    return errors.BadRequest(
        f"Body is not valid JSON: {error.msg.split(':')[0]} at byte {position}."
    )


def _checked_float(text: str) -> Any:
    number = float(text)
    return _OUT_OF_RANGE if number in (float("inf"), float("-inf")) else number


def _checked_int(text: str) -> Any:
    return _OUT_OF_RANGE if len(text) > 309 else int(text)


def _paths_out_of_range(value: Any, path: str) -> Iterator[str]:
    if value is _OUT_OF_RANGE:
        yield path
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _paths_out_of_range(inner, f"{path}.{key}" if path else key)
    elif isinstance(value, list):
        for place, inner in enumerate(value):
            yield from _paths_out_of_range(inner, f"{path}[{place}]")


def sides(client_request_id: Any, usage_context: bytes | None) -> Sides:
    """Check the side fields. `usage_context`: its JSON text. Raises BadRequest."""
    if client_request_id is not None:
        if not isinstance(client_request_id, str):
            raise errors.BadRequest(
                f"client_request_id must be a string; found {describe(client_request_id)}."
            )
        if len(client_request_id.encode("utf-8", "replace")) > MAX_CLIENT_ID_BYTES:
            raise errors.BadRequest(f"client_request_id is over {MAX_CLIENT_ID_BYTES} bytes.")
    if usage_context is None or usage_context == b"null":
        return Sides(client_request_id, None)
    return Sides(client_request_id, _usage(usage_context))


def _usage_text(usage: Any) -> bytes | None:
    """JSON text of a context, for orjson writes no integer over 64 bits: what is none of strings is
    refused before."""
    if usage is None:
        return None
    if not isinstance(usage, dict) or not all(isinstance(each, str) for each in usage.values()):
        raise errors.BadRequest("usage_context must be an object of strings.")
    return orjson.dumps(usage)


def _usage(text: bytes) -> bytes:
    limit = f"{MAX_USAGE_PAIRS} pairs of {MAX_USAGE_BYTES} bytes"
    if len(text) > MAX_USAGE_PAIRS * (6 * MAX_USAGE_BYTES * 2 + 6):
        raise errors.BadRequest(f"usage_context is too large; {limit} are allowed.")
    try:
        pairs = msgspec.json.decode(text, type=dict[str, str])
    except msgspec.MsgspecError:
        raise errors.BadRequest("usage_context must be an object of strings.") from None
    long = [key for pair in pairs.items() for key in pair if len(key.encode()) > MAX_USAGE_BYTES]
    if len(pairs) > MAX_USAGE_PAIRS or long:
        raise errors.BadRequest(f"usage_context is too large; {limit} are allowed.")
    return msgspec.json.encode(pairs)


def _check_records(data: Any) -> None:
    if not isinstance(data, list):
        raise errors.BadRequest(
            f"dataframe_records must be a list of objects; found {describe(data)}."
        )
    for place, record in enumerate(data):
        if not isinstance(record, dict):
            raise errors.BadRequest(
                f"dataframe_records[{place}] must be an object; found {describe(record)}."
            )


def _check_split(data: Any) -> None:
    if not isinstance(data, dict):
        raise errors.BadRequest(f"dataframe_split must be an object; found {describe(data)}.")
    unknown = [key for key in data if key not in ("columns", "data", "index")]
    if unknown:
        raise errors.BadRequest(
            f"dataframe_split.{unknown[0]} is not known; use columns, data and index."
        )
    rows, columns, index = data.get("data"), data.get("columns"), data.get("index")
    if not isinstance(rows, list):
        found = "nothing" if rows is None else describe(rows)
        raise errors.BadRequest(f"dataframe_split.data must be a list of lists; found {found}.")
    if columns is not None:
        _check_split_columns(columns, rows)
    if isinstance(index, list) and len(index) != len(rows):
        raise errors.BadRequest(
            f"dataframe_split.index has {_count(len(index), 'entry', 'entries')} "
            f"for {_count(len(rows), 'row')}."
        )


def _check_split_columns(columns: Any, rows: list[Any]) -> None:
    if not isinstance(columns, list):
        raise errors.BadRequest(
            f"dataframe_split.columns must be a list of names; found {describe(columns)}."
        )
    seen: set[Any] = set()
    for name in columns:
        if isinstance(name, (dict, list)):
            raise errors.BadRequest(
                f"dataframe_split.columns must be a list of names; found {describe(name)} in it."
            )
        if name in seen:
            raise errors.BadRequest(f"dataframe_split.columns names '{name}' twice.")
        seen.add(name)
    for place, row in enumerate(rows):
        if isinstance(row, str | int | float) and len(columns) > 1:
            raise errors.BadRequest(
                f"dataframe_split.data[{place}] must be a list of {len(columns)} values; "
                f"found {describe(row)}."
            )
        if isinstance(row, list) and len(row) != len(columns):
            raise errors.BadRequest(
                f"dataframe_split.data[{place}] has {_count(len(row), 'value')} "
                f"for {_count(len(columns), 'column')}."
            )


def _count(number: int, one: str, many: str | None = None) -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"


def describe(value: Any) -> str:
    """What was found, in words fit for a message."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return f"the boolean {str(value).lower()}"
    if isinstance(value, (int, float)):
        return f"the number {value!r}"[:60]
    if isinstance(value, str):
        return f'the string "{value[:60]}"'
    return "a list" if isinstance(value, list) else "an object"


# --- why MLflow refused ---------------------------------------------------------------------------


def explain(data: dict[str, Any], columns: Sequence[Column]) -> str | None:
    """The first column of a refused request that is missing, or holds a value that its type cannot
    take, in one sentence; None: nothing of the kind was found. `data`: as in General."""
    table = _by_column(data)
    if table is None:
        return _odd_instances(data)
    uneven = _uneven(data)
    if uneven is not None:
        return uneven
    for column in columns:
        values = table.get(column.name)
        if values is None:
            if column.required:
                return f"Column '{column.name}' is missing."
            continue
        for row, value in values:
            if not _fits(column, value):
                found = describe(value)
                verb = "is" if value is None else "holds"
                return f"Column '{column.name}' expects {column.kind}; row {row} {verb} {found}."
    return None


def _odd_instances(data: dict[str, Any]) -> str | None:
    """What of `instances` is no list, or no row as the others are."""
    ((form, content),) = data.items()
    if form != "instances":
        return None
    if not isinstance(content, list):
        return f"instances must be a list; found {describe(content)}."
    kind: Any = dict if content and isinstance(content[0], dict) else list
    for place, each in enumerate(content):
        if isinstance(each, dict | list) and not isinstance(each, kind):
            return f"instances[{place}] must be like those before; found {describe(each)}."
        if kind is dict and not isinstance(each, dict):
            return f"instances[{place}] must be an object; found {describe(each)}."
    return None


def _uneven(data: dict[str, Any]) -> str | None:
    """Columns of `inputs` that have different numbers of rows."""
    ((form, content),) = data.items()
    if form != "inputs" or not isinstance(content, dict):
        return None
    counts = {name: len(each) for name, each in content.items() if isinstance(each, list)}
    for name, count in counts.items():
        first, rows = next(iter(counts.items()))
        if count != rows:
            return (
                f"inputs.{name} has {_count(count, 'value')}, while inputs.{first} has "
                f"{_count(rows, 'value')}."
            )
    return None


def _by_column(data: dict[str, Any]) -> dict[str, Iterable[tuple[int, Any]]] | None:
    """(row, value) pairs per column of any form that has named columns."""
    ((form, content),) = data.items()
    if form in ("dataframe_records", "instances") and isinstance(content, list):
        if not all(isinstance(record, dict) for record in content):
            return None
        present = {name: None for record in content for name in record}
        return {
            name: [(row, record.get(name)) for row, record in enumerate(content)]
            for name in present
        }
    if form == "dataframe_split" and isinstance(content.get("columns"), list):
        rows = content["data"]
        if not all(isinstance(row, list) for row in rows):
            return None
        return {
            name: [(row, values[place]) for row, values in enumerate(rows)]
            for place, name in enumerate(content["columns"])
        }
    if form == "inputs" and isinstance(content, dict):
        return {
            name: list(enumerate(values if isinstance(values, list) else [values]))
            for name, values in content.items()
        }
    return None


def _fits(column: Column, value: Any) -> bool:
    """Whether MLflow casts a value to a column's type. It casts anything to text and boolean."""
    if column.kind in ("double", "float"):
        return value is None or _reads(float, value)
    if column.kind in ("long", "integer"):
        return _reads(int, value)
    if column.kind == "datetime":
        return value is None or _reads(pd.Timestamp, value)
    return column.kind != "binary" or isinstance(value, str)


def _reads(convert: Any, value: Any) -> bool:
    try:
        convert(value)
    except (TypeError, ValueError, OverflowError):
        return False
    return True


# --- answers --------------------------------------------------------------------------------------

_OPTIONS = (
    orjson.OPT_NON_STR_KEYS
    | orjson.OPT_PASSTHROUGH_DATETIME
    | orjson.OPT_PASSTHROUGH_SUBCLASS
    | orjson.OPT_PASSTHROUGH_DATACLASS
)


class CannotEncode(Exception):
    """The model's answer is nothing that JSON can hold."""


def plain(prediction: Any) -> Any:
    """A model's answer as plain lists, records and scalars: numpy types widened as MLflow does,
    frames and series as records."""
    if isinstance(prediction, np.ndarray):
        return prediction.tolist()
    if isinstance(prediction, pd.DataFrame):
        return prediction.to_dict(orient="records")
    if isinstance(prediction, pd.Series):
        return pd.DataFrame(prediction).to_dict(orient="records")
    return prediction


def encode(answer: Any, wrap: bool = True) -> bytes:
    """JSON of a plain answer, `{"predictions": ...}` or bare; NaN and infinities become null.

    Raises CannotEncode, saying the type that cannot be told in JSON."""
    whole = {"predictions": answer} if wrap else answer
    try:
        return orjson.dumps(whole, default=_plain_value, option=_OPTIONS)
    except (orjson.JSONEncodeError, RecursionError):
        return _encode_slowly(whole)


def _encode_slowly(whole: Any) -> bytes:
    """What orjson refuses and JSON allows: integers over 64 bits."""
    try:
        text = json.dumps(_finite(whole), default=_plain_value, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise CannotEncode(str(error)) from error
    return text.encode("utf-8", "replace")


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    return value


def _plain_value(value: Any) -> Any:
    if value is pd.NA or value is pd.NaT:
        return None
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, (np.datetime64, np.timedelta64)):
        return None if np.isnat(value) else str(value)
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, (pd.DataFrame, pd.Series)):
        return plain(value)
    if isinstance(value, (bytes, bytearray)):
        return base64.encodebytes(value).decode("ascii")
    if isinstance(value, (datetime.datetime, datetime.date, datetime.time)):
        return value.isoformat()
    base: Any
    for base in (str, dict, list, int, float):
        if isinstance(value, base):  # a subclass of a JSON type
            return base(value)
    if isinstance(value, tuple):
        return list(value)
    dump = getattr(value, "model_dump", None)
    if callable(dump):
        return dump()
    raise TypeError(f"{type(value).__module__}.{type(value).__qualname__}")


def split(answer: Any, counts: Sequence[int]) -> list[Any] | None:
    """Cut a plain answer for a joined batch into the requests' own; None if it has not one entry
    per row."""
    if not isinstance(answer, list) or len(answer) != sum(counts):
        return None
    parts, start = [], 0
    for count in counts:
        parts.append(answer[start : start + count])
        start += count
    return parts
