"""Bad requests by kind, each with the words that its refusal must hold, and mutations of good ones.

The model they go to has the columns of COLUMNS; pure, but for the random source that is given."""

import copy
import gzip
import io
import json
import random
from collections.abc import Iterator
from typing import Any, NamedTuple

import pandas as pd

COLUMNS = ("age", "visits", "city", "smoker")
ROW = {"age": 4.5, "visits": 3, "city": "Ulm", "smoker": False}
VALUES = list(ROW.values())
JSON, CSV, PARQUET = "application/json", "text/csv", "application/x-parquet"
GZIP = (("content-encoding", "gzip"),)
_PAIRS = {str(number): "" for number in range(65)}
_TOO_MUCH = b'{"inputs": "' + b"x" * (16 << 20) + b'"}'
DEEP = b"[" * 250 + b"]" * 250


class Sent(NamedTuple):
    """A request, and words that its refusal must hold in any case of letters."""

    name: str
    body: bytes
    words: tuple[str, ...] = ()
    content_type: str = JSON
    headers: tuple[tuple[str, str], ...] = ()


def _records(**change: Any) -> bytes:
    return json.dumps({"dataframe_records": [{**ROW, **change}]}).encode()


def _split(**change: Any) -> bytes:
    split = {"columns": list(COLUMNS), "data": [VALUES], **change}
    return json.dumps({"dataframe_split": split}).encode()


def _beside(**more: Any) -> bytes:
    return json.dumps({"dataframe_records": [ROW], **more}).encode()


def _number(text: str) -> bytes:
    return _records(age="N").replace(b'"N"', text.encode())


def parquet(frame: pd.DataFrame) -> bytes:
    """A frame as a Parquet file."""
    out = io.BytesIO()
    frame.to_parquet(out)
    return out.getvalue()


FRAME = pd.DataFrame([ROW])
CSV_GOOD = b"age,visits,city,smoker\n4.5,3,Ulm,False\n"


def kinds() -> list[Sent]:
    """Every kind of bad request of the error table and of the limits, in all formats."""
    records = _records()
    text = records.decode()
    return [
        # what is no JSON
        Sent("empty body", b"", ("empty", "byte 0")),
        Sent("white space alone", b"  \n ", ("empty",)),
        Sent("cut off", records[:-4], ("not valid JSON", "byte")),
        Sent("two documents", records + b" {}", ("not valid JSON", f"byte {len(records) + 1}")),
        Sent("comment", b"/* x */" + records, ("not valid JSON", "byte 0")),
        Sent("trailing comma", records[:-1] + b",}", ("trailing comma", "byte")),
        Sent("single quotes", text.replace('"', "'").encode(), ("not valid JSON", "byte 1")),
        Sent("bare key", b"{inputs: [1]}", ("not valid JSON", "byte 1")),
        Sent("control character", b'{"inputs": "\x01"}', ("control character", "byte")),
        Sent("not UTF-8", b'{"inputs": "\xff"}', ("not UTF-8", "byte 12")),
        Sent("overlong UTF-8", b'{"inputs": "\xc0\xaf"}', ("not UTF-8", "byte 12")),
        Sent("lone surrogate", b'{"inputs": "\\ud800"}', ("surrogate", "byte")),
        Sent("byte order mark", b"\xef\xbb\xbf" + records, ("byte order mark",)),
        Sent("UTF-16", text.encode("utf-16"), ("not UTF-8", "byte 0")),
        Sent("UTF-32", text.encode("utf-32"), ("not UTF-8", "byte 0")),
        Sent("bad escape", b'{"inputs": "\\q"}', ("not valid JSON", "byte")),
        Sent("leading zero", _number("01"), ("not valid JSON", "byte")),
        Sent("plus sign", _number("+1"), ("not valid JSON", "byte")),
        Sent("hexadecimal", _number("0x10"), ("not valid JSON", "byte")),
        Sent("bare word", b"hello", ("not valid JSON", "byte 0")),
        Sent("zero bytes", b"\0" * 40, ("not valid JSON", "byte 0")),
        # numbers
        Sent("NaN", _number("NaN"), ("out of range", "dataframe_records[0].age")),
        Sent("Infinity", _number("-Infinity"), ("out of range", "dataframe_records[0].age")),
        Sent("1e400", _number("1e400"), ("out of range", "dataframe_records[0].age")),
        Sent("401 digits", _number("9" * 401), ("out of range", "dataframe_records[0].age")),
        Sent("5,000 digits", _number("9" * 5000), ("out of range", "dataframe_records[0].age")),
        # limits
        Sent("too deep", b'{"inputs": ' + DEEP + b"}", ("Nesting over 200", "byte")),
        Sent("very deep", b'{"inputs": ' + b"[" * 500_000, ("Nesting over 200", "byte")),
        Sent("deep objects", b'{"a": ' * 300 + b"1" + b"}" * 300, ("Nesting over 200", "byte")),
        Sent("too many keys", _many_keys(100_001), ("100000 keys", "byte")),
        Sent("body too large", _TOO_MUCH, ("Body over 16777216",)),
        # forms
        Sent("a list", b"[1]", ("exactly one of", "a list")),
        Sent("a string", b'"x"', ("exactly one of", "string")),
        Sent("null", b"null", ("exactly one of", "null")),
        Sent("no format", b'{"rows": [1]}', ("exactly one of", "none")),
        Sent("two formats", _beside(inputs=[1]), ("exactly one of", "dataframe_records, inputs")),
        Sent("records no list", b'{"dataframe_records": {}}', ("dataframe_records", "an object")),
        Sent("record no object", b'{"dataframe_records": [1]}', ("dataframe_records[0]", "1")),
        Sent("records null", b'{"dataframe_records": null}', ("dataframe_records", "null")),
        Sent("split no object", b'{"dataframe_split": []}', ("dataframe_split", "a list")),
        Sent("split without data", b'{"dataframe_split": {}}', ("dataframe_split.data", "nothing")),
        Sent("split data no list", _split(data=7), ("dataframe_split.data", "7")),
        Sent("split row short", _split(data=[[1]]), ("data[0] has 1 value for 4 columns",)),
        Sent("split row long", _split(data=[[*VALUES, 1]]), ("data[0] has 5 values",)),
        Sent("split row no list", _split(data=[1]), ("dataframe_split.data[0]", "1")),
        Sent("split columns twice", _split(columns=["age", "age", "city", "smoker"]), ("twice",)),
        Sent("split columns no list", _split(columns="age"), ("dataframe_split.columns", "age")),
        Sent("split column an object", _split(columns=[{}, 1, 2, 3]), ("dataframe_split.columns",)),
        Sent("split index short", _split(index=[]), ("index has 0 entries for 1 row",)),
        Sent("split unknown part", _split(rows=1), ("dataframe_split.rows",)),
        Sent("instances a number", b'{"instances": 3}', ("instances",)),
        Sent("instances mixed", b'{"instances": [{"age": 1}, 2]}', ("instances",)),
        Sent("inputs ragged", b'{"inputs": {"age": [1, 2], "visits": [1]}}', ("inputs",)),
        Sent("inputs a number", b'{"inputs": 3}', ("inputs",)),
        Sent("params no object", _beside(params=[1]), ("params", "a list")),
        Sent("params of a wrong type", _beside(params={"factor": "much"}), ("factor",)),
        Sent("client id a number", _beside(client_request_id=7), ("client_request_id", "7")),
        Sent("client id too long", _beside(client_request_id="x" * 1025), ("client_request_id",)),
        Sent("usage no object", _beside(usage_context=[1]), ("usage_context", "object of strings")),
        Sent("usage of a number", _beside(usage_context={"a": 1}), ("usage_context", "strings")),
        Sent("usage too long", _beside(usage_context={"a": "x" * 257}), ("usage_context", "256")),
        Sent("usage too many", _beside(usage_context=_PAIRS), ("64",)),
        # columns
        Sent("column missing", b'{"dataframe_records": [{"age": 1}]}', ("'visits' is missing",)),
        Sent("split column missing", _split(columns=["age"], data=[[1]]), ("'visits'", "missing")),
        Sent("double of text", _records(age="plenty"), ("expects double", "row 0", '"plenty"')),
        Sent("double of a list", _records(age=[1]), ("'age' expects double", "a list")),
        Sent("long of null", _records(visits=None), ("'visits' expects long", "null")),
        Sent("long of an object", _records(visits={}), ("'visits' expects long", "an object")),
        Sent("later row wrong", json.dumps({"dataframe_records": [ROW, ROW, {**ROW, "age": "x"}]})
             .encode(), ("'age' expects double", "row 2")),
        # content type, encoding
        Sent("content type XML", records, ("Content-Type", "application/xml"), "application/xml"),
        Sent("content type form", b"a=1", ("Content-Type",), "application/x-www-form-urlencoded"),
        Sent("charset", records, ("Charset", "utf-16"), "application/json; charset=utf-16"),
        Sent("encoding zpaq", records, ("zpaq",), JSON, (("content-encoding", "zpaq"),)),
        Sent("gzip broken", b"\x1f\x8bnonsense", ("gzip",), JSON, GZIP),
        Sent("gzip cut off", gzip.compress(records)[:-5], ("gzip",), JSON, GZIP),
        Sent("gzip bomb", gzip.compress(b" " * (17 << 20)), ("Body over",), JSON, GZIP),
        # the other two formats
        Sent("CSV empty", b"", ("CSV",), CSV),
        Sent("CSV ragged", CSV_GOOD + b"1,2\n3,4,5,6,7,8\n", ("CSV",), CSV),
        Sent("CSV not UTF-8", b"age\n\xff\n", ("UTF-8", "byte 4"), CSV),
        Sent("CSV column missing", b"age\n1\n", ("'visits'", "missing"), CSV),
        Sent("CSV wrong type", CSV_GOOD.replace(b"4.5", b"plenty"), ("double", "plenty"), CSV),
        Sent("Parquet broken", b"PAR1nonsensePAR1", ("Parquet",), PARQUET),
        Sent("Parquet empty", b"", ("Parquet",), PARQUET),
        Sent("Parquet column missing", parquet(FRAME[["age"]]), ("'visits'", "missing"), PARQUET),
        Sent("Parquet wrong type", parquet(FRAME.assign(age="x")), ("'age'", "double"), PARQUET),
    ]  # fmt: skip


def _many_keys(count: int) -> bytes:
    return b'{"inputs": {' + b",".join(b'"k%d":1' % n for n in range(count)) + b"}}"


GOOD = (
    Sent("records", _beside(client_request_id="i", usage_context={"a": "b"})),
    Sent("split", _split(index=[0])),
    Sent("instances", json.dumps({"instances": [ROW, ROW]}).encode()),
    Sent("inputs", json.dumps({"inputs": {k: [v] for k, v in ROW.items()}}).encode()),
    Sent("params", _beside(params={"factor": 2.0})),
    Sent("csv", CSV_GOOD, (), CSV),
    Sent("parquet", parquet(FRAME), (), PARQUET),
    Sent("gzip", gzip.compress(_records()), (), JSON, GZIP),
)
HOSTILE: tuple[Any, ...] = (
    None, True, 0, -1, 1.5, 2**31, 2**53 + 1, 2**63, 2**64, 10**40, 1e308, 5e-324, "", "x", "\0",
    "é" * 300, "\U0001f600", "NaN", "1", "2020-01-01T00:00:00Z", [], {}, [[]], [None], {"": None},
    {"age": {"age": 1}}, [[1, 2], [3]], "x" * 70_000,
)  # fmt: skip
TOKENS = (b"NaN", b"1e999", b"\xff", b"\x00", b"{", b"]", b'"', b",", b":", b"\\u0000", b"\\ud8",
          b"-", b"e", b"9" * 30, b"\n", b"null", b"/*", b"\xef\xbb\xbf")  # fmt: skip


def mutations(count: int, source: random.Random) -> Iterator[Sent]:
    """Requests that began as good ones."""
    for number in range(count):
        good = source.choice(GOOD)
        if good.content_type == JSON and not good.headers and source.random() < 0.5:
            tree = json.loads(good.body)
            for _ in range(source.randint(1, 3)):
                _replace(tree, source)
            body = json.dumps(tree).encode()
        else:
            body = _damaged(good.body, source)
        yield Sent(f"mutation {number} of {good.name}", body, (), good.content_type, good.headers)


def _replace(tree: Any, source: random.Random) -> None:
    """One place of a tree becomes something else, goes, comes twice, or is renamed."""
    places: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        for key, inner in node.items() if isinstance(node, dict) else enumerate(node):
            places.append((node, key))
            if isinstance(inner, dict | list):
                walk(inner)

    walk(tree)
    if not places:
        return
    node, key = source.choice(places)
    what = source.randrange(4)
    if what == 0 and isinstance(node, dict):
        node[source.choice(("", "x", "columns", "inputs", "é", "age", "\0"))] = node.pop(key)
    elif what == 1:
        del node[key]
    elif what == 2 and isinstance(node, list):
        node.insert(key, copy.deepcopy(node[key]))
    else:
        node[key] = copy.deepcopy(source.choice(HOSTILE))


def _damaged(body: bytes, source: random.Random) -> bytes:
    found = bytearray(body)
    for _ in range(source.choice((1, 1, 2, 5, 20))):
        at = source.randrange(len(found) + 1)
        what = source.randrange(5)
        if what == 0:
            del found[at : at + source.choice((1, 2, 10))]
        elif what == 1:
            found[at:at] = source.choice(TOKENS)
        elif what == 2 and at < len(found):
            found[at] = source.randrange(256)
        elif what == 3:
            found = found[:at] if source.random() < 0.3 else found
        else:
            found[at:at] = found[at : at + source.choice((1, 5, 40))]
    return bytes(found)
