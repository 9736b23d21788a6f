"""Recorded bodies -> rows: what a request asked for, what an answer said. Pure.

Requests: the four JSON forms of MLflow (`dataframe_split`, `dataframe_records`, `instances`,
`inputs`), CSV and Parquet. A tensor without names takes the declared names in their order if it has
as many columns, else `input_0`, `input_1`, ... A request of another shape (a chat, say) is one row
without features.
"""

import base64
import binascii
import csv
import io
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

Record = dict[str, Any]
MAX_TENSOR_COLUMNS = 64
MAX_PARQUET_VALUES = 10_000_000
SHARE_TOLERANCE = 1e-6
NUMBERS = frozenset({float, int})


class Unreadable(Exception):
    """A body that gives no rows; the message says why."""


class Answer(NamedTuple):
    """One row of an answer. `prediction`: number or text; `others`: further outputs by name."""

    prediction: float | str | None
    score: float | None
    others: Record | None = None


def records(
    text: str | None, encoding: str, content_type: str | None, names: Sequence[str]
) -> list[Record]:
    """Rows of a request, name -> value; at least one. Raises Unreadable.

    text: the body as recorded; encoding: `utf-8` or `base64`; names: declared columns, in order.
    """
    if text is None:
        raise Unreadable("the request was not recorded")
    if encoding == "base64" or content_type == "application/x-parquet":
        return _parquet(text)
    if content_type is not None and content_type.startswith("text/csv"):
        return _csv(text)
    body = loads(text)
    if not isinstance(body, dict):
        raise Unreadable("the request is no JSON object")
    return _of_json(body, names) or [{}]


def loads(text: str) -> Any:
    """JSON as servers accept it, NaN and Infinity included. Raises Unreadable."""
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        pass
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Unreadable("the body is no JSON") from error


def _of_json(body: Record, names: Sequence[str]) -> list[Record]:
    try:
        if "dataframe_split" in body:
            split = body["dataframe_split"]
            columns = [str(name) for name in split["columns"]]
            return [dict(zip(columns, row, strict=True)) for row in split["data"]]
        if "dataframe_records" in body:
            return [dict(row) for row in body["dataframe_records"]]
        if "instances" in body:
            return _tensor(body["instances"], names)
        if "inputs" in body:
            inputs = body["inputs"]
            return _by_name(inputs) if isinstance(inputs, dict) else _tensor(inputs, names)
    except (TypeError, ValueError, KeyError) as error:
        raise Unreadable("the rows do not have the shape of their format") from error
    return [{}]


def _tensor(rows: Any, names: Sequence[str]) -> list[Record]:
    if not isinstance(rows, list):
        rows = [rows]
    return [row if isinstance(row, dict) else _named(row, names) for row in rows]


def _named(row: Any, names: Sequence[str]) -> Record:
    values = row if isinstance(row, list) else [row]
    if len(values) == len(names):
        return dict(zip(names, values, strict=True))
    if not isinstance(row, list):
        return {"input": row}
    if len(values) > MAX_TENSOR_COLUMNS:
        return {}
    return {f"input_{place}": value for place, value in enumerate(values)}


def _by_name(columns: Record) -> list[Record]:
    """`{"a": [1, 2]}` -> two rows; columns of unlike length, or plain values, are one row."""
    lists = [value for value in columns.values() if isinstance(value, list)]
    lengths = {len(value) for value in lists}
    if len(lists) < len(columns) or len(lengths) != 1:
        return [columns]
    return [dict(zip(columns, row, strict=True)) for row in zip(*lists, strict=True)]


def _parquet(text: str) -> list[Record]:
    try:
        file = pq.ParquetFile(io.BytesIO(base64.b64decode(text)))
        if file.metadata.num_rows * file.metadata.num_columns > MAX_PARQUET_VALUES:
            raise Unreadable(f"the request holds more than {MAX_PARQUET_VALUES} values")
        return file.read().to_pylist() or [{}]
    except (binascii.Error, pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise Unreadable("the request is no Parquet file") from error


def _csv(text: str) -> list[Record]:
    rows = csv.reader(io.StringIO(text))
    try:
        names = next(rows, [])
        return [dict(zip(names, map(_cell, row), strict=True)) for row in rows if row] or [{}]
    except (csv.Error, ValueError) as error:
        raise Unreadable("the request is no CSV with a header") from error


def _cell(text: str) -> float | str | None:
    if not text:
        return None
    try:
        return float(text)
    except ValueError:
        return text


def answers(text: str | None) -> list[Answer]:
    """Rows of an answer with status 200; empty where it has none we know. Raises Unreadable."""
    if text is None:
        raise Unreadable("the answer was not recorded")
    body = loads(text)
    found = body.get("predictions", body.get("outputs")) if isinstance(body, dict) else body
    if isinstance(found, dict):
        found = _by_name(found)
    if not isinstance(found, list):
        return [] if found is None else [answer(found)]
    return [answer(value) for value in found]


def answer(value: Any) -> Answer:
    """One row of `predictions`.

    A fraction is prediction and score; a whole number or text a prediction; shares of two or more
    classes give the likeliest class and its share (of two: the share of the second); an object
    gives its `prediction` (or `label`) and `score` (or `probability`), the rest becomes `others`.
    """
    kind = type(value)
    if kind is float:
        return Answer(value, value)
    if kind is int or kind is bool:
        return Answer(_number(value), None)
    if kind is str:
        return Answer(value, None)
    if kind is dict:
        return _of_object(value)
    return _of_list(value) if kind is list else Answer(None, None)


def _number(value: Any) -> float | None:
    try:
        return float(value)
    except (OverflowError, TypeError, ValueError):
        return None


def _of_list(values: list[Any]) -> Answer:
    if len(values) == 1:
        return answer(values[0])
    if are_shares(values):
        best = values.index(max(values))
        return Answer(float(best), float(values[1] if len(values) == 2 else values[best]))
    if len(values) > MAX_TENSOR_COLUMNS:
        return Answer(None, None)
    return Answer(None, None, {str(place): value for place, value in enumerate(values)})


def are_shares(values: list[Any]) -> bool:
    """Whether these are the shares of two or more classes: numbers in 0..1 with the sum 1."""
    if len(values) < 2 or not NUMBERS.issuperset(map(type, values)):
        return False
    return min(values) >= 0 and max(values) <= 1 and abs(sum(values) - 1) <= SHARE_TOLERANCE


def _of_object(value: Record) -> Answer:
    if len(value) == 1:
        return answer(next(iter(value.values())))
    main = next((name for name in ("prediction", "label") if name in value), None)
    score = next((name for name in ("score", "probability") if name in value), None)
    others = {name: item for name, item in value.items() if name not in (main, score)}
    first = Answer(None, None) if main is None else answer(value[main])
    second = first.score if score is None else _number(value[score])
    return Answer(first.prediction, second, others or None)
