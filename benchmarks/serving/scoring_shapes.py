"""Requests of every shape, made of rows that a model takes."""

import io
import json
from collections.abc import Callable
from typing import Any, NamedTuple

import pandas as pd

Rows = list[dict[str, Any]]
JSON, CSV, PARQUET = "application/json", "text/csv", "application/vnd.apache.parquet"


class Shape(NamedTuple):
    """A request. allowed: why the answer to it may differ from MLflow's; None: it may not."""

    name: str
    body: bytes
    content_type: str = JSON
    allowed: str | None = None


NOT_JSON = "promises.md: what is no JSON is a 400, and null is what a missing value is told by"
NO_GUESS = "promises.md: columns twice, ragged rows and unknown parts are a 400, not a guess"


def _values(rows: Rows) -> list[list[Any]]:
    return [list(row.values()) for row in rows]


def _split(rows: Rows, **more: Any) -> dict[str, Any]:
    return {"dataframe_split": {"columns": list(rows[0]), "data": _values(rows), **more}}


def _records(rows: Rows, **more: Any) -> dict[str, Any]:
    return {"dataframe_records": rows, **more}


def _columns(rows: Rows) -> dict[str, list[Any]]:
    return {name: [row[name] for row in rows] for name in rows[0]}


def _with(rows: Rows, of: Callable[[Any], bool], value: Any, all_rows: bool = False) -> Rows:
    """Rows in which the first column whose value `of` fits holds another value, in one row or all;
    the rows as they are if there is no such column."""
    name = next((name for name, each in rows[0].items() if of(each)), None)
    if name is None:
        return rows
    return [{**row, name: value} if all_rows or not at else row for at, row in enumerate(rows)]


def _reordered(rows: Rows) -> Rows:
    return [dict(reversed(row.items())) for row in rows]


def _without(rows: Rows) -> Rows:
    return [dict(list(row.items())[:-1]) for row in rows]


def _extra(rows: Rows) -> Rows:
    return [{"extra": "x", **row} for row in rows]


def _csv(rows: Rows, **more: Any) -> bytes:
    return pd.DataFrame(rows).to_csv(index=False, **more).encode()


def _parquet(rows: Rows) -> bytes:
    out = io.BytesIO()
    pd.DataFrame(rows).to_parquet(out)
    return out.getvalue()


def _is_double(value: Any) -> bool:
    return isinstance(value, float)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


def _any(_: Any) -> bool:
    return True


def shapes(rows: Rows) -> list[Shape]:
    """Every shape. rows: at least two, of columns in the model's order."""
    one = rows[:1]
    bodies: list[tuple[str, Any]] = [
        ("split", _split(rows)),
        ("split of one row", _split(one)),
        ("split, permuted", _split(_reordered(rows))),
        ("split, a column missing", _split(_without(rows))),
        ("split, a column more", _split(_extra(rows))),
        ("split with its index", _split(rows, index=list(range(len(rows))))),
        ("split with another index", _split(rows, index=[f"r{n}" for n in range(len(rows))])),
        ("split without rows", {"dataframe_split": {"columns": list(rows[0]), "data": []}}),
        ("split without columns", {"dataframe_split": {"data": _values(rows)}}),
        ("records", _records(rows)),
        ("record", _records(one)),
        ("records, permuted", _records(_reordered(rows))),
        ("records, each in its own order", _records([rows[0], *_reordered(rows[1:])])),
        ("records, a column missing", _records(_without(rows))),
        ("records, a column missing in one", _records([rows[0], *_without(rows[1:])])),
        ("records, a column more", _records(_extra(rows))),
        ("records, a column more in one", _records([*_extra(one), *rows[1:]])),
        ("no records", _records([])),
        ("an empty record", _records([{}])),
        ("a null", _records(_with(rows, _any, None))),
        ("a column of nulls", _records(_with(rows, _any, None, True))),
        ("null for a double", _records(_with(rows, _is_double, None))),
        ("null for a whole number", _records(_with(rows, _is_whole, None))),
        ("null for a text", _records(_with(rows, _is_text, None))),
        ("null for a flag", _records(_with(rows, _is_flag, None))),
        ("whole numbers for doubles", _records(_with(rows, _is_double, 3, True))),
        ("a whole number for a double", _records(_with(rows, _is_double, -7))),
        ("a large whole number for a double", _records(_with(rows, _is_double, 2**53 + 1))),
        ("a double over 64 bits", _records(_with(rows, _is_double, 2**70))),
        ("whole doubles for whole numbers", _records(_with(rows, _is_whole, 3.0, True))),
        ("a fraction for a whole number", _records(_with(rows, _is_whole, 2.5))),
        ("2^31", _records(_with(rows, _is_whole, 2**31))),
        ("2^53 + 1", _records(_with(rows, _is_whole, 2**53 + 1))),
        ("2^63 - 1", _records(_with(rows, _is_whole, 2**63 - 1))),
        ("2^63", _records(_with(rows, _is_whole, 2**63))),
        ("-2^63", _records(_with(rows, _is_whole, -(2**63)))),
        ("text of a number", _records(_with(rows, _is_double, "1.5"))),
        ("text that is no number", _records(_with(rows, _is_double, "plenty"))),
        ("flag for a double", _records(_with(rows, _is_double, True))),
        ("flag for a whole number", _records(_with(rows, _is_whole, True))),
        ("number for a text", _records(_with(rows, _is_text, 5))),
        ("number for a flag", _records(_with(rows, _is_flag, 1))),
        ("text for a flag", _records(_with(rows, _is_flag, "true"))),
        ("unknown text", _records(_with(rows, _is_text, "Ünïcode \U0001f6eb"))),
        ("empty text", _records(_with(rows, _is_text, ""))),
        ("long text", _records(_with(rows, _is_text, "x" * 20_000))),
        ("a list for a value", _records(_with(rows, _any, [1, 2]))),
        ("an object for a value", _records(_with(rows, _any, {"a": 1}))),
        ("very large double", _records(_with(rows, _is_double, 1.7e308))),
        ("very small double", _records(_with(rows, _is_double, 5e-324))),
        ("negative zero", _records(_with(rows, _is_double, -0.0))),
        ("17 digits", _records(_with(rows, _is_double, 0.1 + 0.2))),
        ("instances of records", {"instances": rows}),
        ("instance of a record", {"instances": one}),
        ("instances, permuted", {"instances": _reordered(rows)}),
        ("instances of lists", {"instances": _values(rows)}),
        ("instances of numbers", {"instances": [1.0, 2.0]}),
        ("no instances", {"instances": []}),
        ("inputs by column", {"inputs": _columns(rows)}),
        ("inputs by column, permuted", {"inputs": _columns(_reordered(rows))}),
        ("inputs by column, one missing", {"inputs": _columns(_without(rows))}),
        ("inputs by column, one more", {"inputs": _columns(_extra(rows))}),
        ("inputs of scalars", {"inputs": rows[0]}),
        ("inputs of rows", {"inputs": _values(rows)}),
        ("inputs of records", {"inputs": rows}),
        ("inputs of one text", {"inputs": "hello"}),
        ("inputs nested", {"inputs": [_values(rows)]}),
        ("no inputs", {"inputs": {}}),
        ("params", _records(rows, params={"factor": 2.5, "top": 1})),
        ("params of another type", _records(rows, params={"factor": "much"})),
        ("a whole number for a param", _records(rows, params={"factor": 2})),
        ("unknown params", _records(rows, params={"nobody": 1})),
        ("no params", _records(rows, params={})),
        ("params null", _records(rows, params=None)),
        ("a field more", _records(rows, other={"a": [1]})),
        ("two formats", {**_records(rows), "inputs": 1}),
        ("no format", {"rows": rows}),
        ("messages", {"messages": [{"role": "user", "content": "hello"}]}),
        ("a list", rows),
    ]
    made = [Shape(name, json.dumps(body).encode()) for name, body in bodies]
    plain = json.dumps(_records(rows))
    first = json.dumps(next(iter(rows[0].values())))
    return [
        *made,
        Shape("white space and escapes", json.dumps(_records(rows), indent=3).encode() + b"\n\t "),
        Shape("UTF-8 as it is", json.dumps(_records(rows), ensure_ascii=False).encode()),
        Shape("a key twice", plain.replace("{", f'{{"{next(iter(rows[0]))}": {first}, ', 2)
              .replace(f'"{next(iter(rows[0]))}": {first}, ', "", 1).encode()),
        Shape("exponents", json.dumps(_records(_with(rows, _is_double, 12345.0)))
              .replace("12345.0", "1.2345E+4").encode()),
        Shape("NaN", json.dumps(_records(_with(rows, _is_double, float("nan")))).encode(),
              allowed=NOT_JSON),
        Shape("columns twice", json.dumps(_split([{**row} for row in rows],
              columns=[next(iter(rows[0]))] * len(rows[0]))).encode(), allowed=NO_GUESS),
        Shape("ragged rows", json.dumps(_split(rows, data=[*_values(rows), [1]])).encode(),
              allowed=NO_GUESS),
        Shape("index too short", json.dumps(_split(rows, index=[0])).encode(), allowed=NO_GUESS),
        Shape("cut off", plain[:-3].encode()),
        Shape("empty", b""),
        Shape("csv", _csv(rows), CSV),
        Shape("csv, permuted", _csv(_reordered(rows)), CSV),
        Shape("csv, a column missing", _csv(_without(rows)), CSV),
        Shape("csv, a column more", _csv(_extra(rows)), CSV),
        Shape("csv with a gap", _csv(_with(rows, _any, None)), CSV),
        Shape("csv all quoted", _csv(rows, quoting=1), CSV),
        Shape("csv of no rows", _csv(rows).partition(b"\n")[0] + b"\n", CSV),
        Shape("csv ragged", _csv(rows) + b"1,2,3,4,5,6,7,8,9\n", CSV),
        Shape("csv empty", b"", CSV),
        Shape("parquet", _parquet(rows), PARQUET),
        Shape("parquet, permuted", _parquet(_reordered(rows)), PARQUET),
        Shape("parquet, a column missing", _parquet(_without(rows)), PARQUET),
        Shape("parquet, a column more", _parquet(_extra(rows)), PARQUET),
        Shape("parquet with a gap", _parquet(_with(rows, _any, None)), PARQUET),
        Shape("parquet broken", b"PAR1", PARQUET),
        Shape("another content type", plain.encode(), "application/xml"),
    ]  # fmt: skip
