"""Blocks of exchanges (exchanges.py) -> the columns of the payload table. Pure.

Columns of few different values, as the context's, are dictionaries: one lies in memory and goes to
Parquet as numbers of its values. Nothing is done per row, save for bodies that are no UTF-8.
"""

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa

from capture import blocks, contexts, exchanges, rows, runs

_HEAD = np.dtype(
    [
        ("time_ns", "<i8"),
        ("id", "u1", 16),
        ("total_us", "<i8"),
        ("status_code", "<u4"),
        ("queue_us", "<u4"),
        ("features_us", "<u4"),
        ("predict_us", "<u4"),
        ("lengths", "<i4", len(exchanges.TEXTS)),
        ("error_source", "u1"),
        ("over", "u1"),
        ("", "V6"),
    ]
)
_ROWS, _START, _CONTEXT_BYTES = 3, 4, 6  # words of a block's front
_DAY_US = 86_400_000_000
_INT32_MAX = blocks.INT32_END - 1
_HEX = np.frombuffer(b"".join(b"%02x" % value for value in range(256)), "<u2")
_ID_CHARACTERS, _DASHES = 36, (8, 13, 18, 23)
_DASH = ord("-")
_decode_context = msgspec.msgpack.Decoder(contexts.Context).decode
_decode_usage = msgspec.json.Decoder(dict[str, str]).decode


def table(data: Any, found: Sequence[blocks.Block]) -> pa.Table:
    """The payload rows of blocks of exchanges in bytes-like `data`, at least one, in order. Text
    columns may be dictionaries; the table keeps nothing of the data."""
    buffer = pa.py_buffer(data)
    words = np.frombuffer(data, "<i4", buffer.size // 4)
    offsets = np.array([block.offset for block in found], np.int64)
    fronts = words[offsets[:, None] // 4 + np.arange(blocks.BLOCK.size // 4)].astype(np.int64)
    counts, context_bytes = fronts[:, _ROWS], fronts[:, _CONTEXT_BYTES]
    starts = offsets + fronts[:, _START]
    sizes = [counts * _HEAD.itemsize, counts * 4, -counts * 4 % 8, context_bytes]
    fixed = runs.Runs(buffer, starts, np.stack(sizes, axis=1))
    heads = np.frombuffer(fixed.column(0), _HEAD)
    ends = starts + sum(sizes)
    shared, numbers = _contexts(data, ends - context_bytes, ends)
    first = np.repeat(np.cumsum([0, *map(len, numbers[:-1])]), counts)
    own = np.concatenate(numbers)[first + np.frombuffer(fixed.column(1), "<u4")]
    columns = {
        **_numbers(heads),
        **_common(shared, own),
        **_texts(buffer, ends, heads["lengths"], counts),
    }
    columns["databricks_request_id"] = _ids(heads["id"])
    arrays = [columns[name] for name in rows.PAYLOAD_SCHEMA.names]
    fields = [
        field.with_type(array.type)
        for field, array in zip(rows.PAYLOAD_SCHEMA, arrays, strict=True)
    ]
    return pa.Table.from_arrays(arrays, schema=pa.schema(fields))


# Numbers -----------------------------------------------------------------------------------------


def _fixed(name: str, values: np.ndarray, known: np.ndarray | None = None) -> pa.Array:
    kind = rows.PAYLOAD_SCHEMA.field(name).type
    if pa.types.is_boolean(kind):
        packed = np.packbits(values, bitorder="little")
    else:
        packed = np.ascontiguousarray(values, f"i{kind.bit_width // 8}")
    nulls = None if known is None else runs.bitmap(known)
    return pa.Array.from_buffers(kind, len(values), [nulls, pa.py_buffer(packed)])


def _numbers(heads: np.ndarray) -> dict[str, pa.Array]:
    time_us = heads["time_ns"] // 1000
    inside = {name: heads[name].astype(np.int64) for name in ("queue_us", "features_us")}
    inside["predict_us"] = predict_us = heads["predict_us"].astype(np.int64)
    gateway_us = np.maximum(heads["total_us"] - sum(inside.values()), 0)
    micros = {**inside, "gateway_us": gateway_us, "status_code": heads["status_code"]}
    found = {name: _fixed(name, np.minimum(value, _INT32_MAX)) for name, value in micros.items()}
    found["request_time"] = _fixed("request_time", time_us)
    found["request_date"] = _fixed("request_date", time_us // _DAY_US)
    found["execution_duration_ms"] = _fixed("execution_duration_ms", (predict_us + 500) // 1000)
    sources = heads["error_source"].astype(np.int32) - 1
    found["error_source"] = _dictionary(sources, exchanges.ERROR_SOURCES[1:])
    found["logging_error_codes"] = _error_codes(heads["over"])
    return found


def _error_codes(over: np.ndarray) -> pa.Array:
    kind = rows.PAYLOAD_SCHEMA.field("logging_error_codes").type
    if not over.any():
        return pa.nulls(len(over), kind)
    sides = np.stack(
        [over & exchanges.REQUEST_OVER, over & exchanges.RESPONSE_OVER], axis=1
    ).astype(bool)
    codes = rows.error_codes(True, True) or []
    values = runs.texts([codes[side].encode() for side in np.nonzero(sides)[1]])
    offsets = np.zeros(len(over) + 1, np.int32)
    np.cumsum(sides.sum(axis=1), out=offsets[1:])
    buffers = [runs.bitmap(over > 0), pa.py_buffer(offsets)]
    return pa.Array.from_buffers(kind, len(over), buffers, children=[values])


def _ids(raw: np.ndarray) -> pa.Array:
    """The texts of UUIDs."""
    characters = np.empty((len(raw), _ID_CHARACTERS), np.uint8)
    digits = _HEX[raw].view(np.uint8)
    start = taken = 0
    for end in (*_DASHES, _ID_CHARACTERS):
        characters[:, start:end] = digits[:, taken : taken + end - start]
        start, taken = end + 1, taken + end - start
    characters[:, _DASHES] = _DASH
    offsets = np.arange(len(raw) + 1, dtype=np.int32) * _ID_CHARACTERS
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(characters)]
    return pa.Array.from_buffers(pa.string(), len(raw), buffers)


# What exchanges have in common -------------------------------------------------------------------


def _contexts(
    data: Any, starts: np.ndarray, ends: np.ndarray
) -> tuple[list[contexts.Context], list[list[int]]]:
    """The different contexts of all blocks, and for each block where its own are among them."""
    view = memoryview(data)
    found: dict[bytes, int] = {}
    of_text: dict[bytes, list[int]] = {}
    numbers = []
    for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
        text = bytes(view[start:end])
        if text not in of_text:
            of_text[text] = [found.setdefault(one, len(found)) for one in _split(text)]
        numbers.append(of_text[text])
    return [_decode_context(one) for one in found], numbers


def _split(text: bytes) -> list[bytes]:
    parts, place, size = [], 0, contexts.LENGTH.size
    while place < len(text):
        end = place + size + contexts.LENGTH.unpack_from(text, place)[0]
        parts.append(text[place + size : end])
        place = end + -end % 8
    return parts


def _common(shared: list[contexts.Context], own: np.ndarray) -> dict[str, pa.Array]:
    found = {}
    for name, values in zip(contexts.Context._fields, zip(*shared, strict=True), strict=True):
        kind = rows.PAYLOAD_SCHEMA.field(name).type
        known = np.array([value is not None for value in values])
        if pa.types.is_string(kind):
            different = list(dict.fromkeys(value for value in values if value is not None))
            place = {value: number for number, value in enumerate(different)}
            indices = np.array([place.get(value, -1) for value in values], np.int32)
            found[name] = _dictionary(indices[own], different)
        else:
            is_double = pa.types.is_floating(kind)
            numbers = np.array([value or 0 for value in values], np.float64 if is_double else None)
            taken = _doubles if is_double else _fixed
            found[name] = taken(name, numbers[own], known[own])
    return found


def _doubles(name: str, values: np.ndarray, known: np.ndarray) -> pa.Array:
    buffers = [runs.bitmap(known), pa.py_buffer(np.ascontiguousarray(values))]
    return pa.Array.from_buffers(pa.float64(), len(values), buffers)


def _dictionary(indices: np.ndarray, values: Sequence[str | None]) -> pa.Array:
    """Texts by their number among `values`; -1: null."""
    buffers = [runs.bitmap(indices >= 0), pa.py_buffer(np.maximum(indices, 0))]
    numbers = pa.Array.from_buffers(pa.int32(), len(indices), buffers)
    known = runs.texts([None if value is None else value.encode() for value in values])
    return pa.DictionaryArray.from_arrays(numbers, known)


# Texts -------------------------------------------------------------------------------------------


def _texts(
    data: pa.Buffer, starts: np.ndarray, lengths: np.ndarray, counts: np.ndarray
) -> dict[str, pa.Array]:
    each = [runs.Lengths(lengths[:, number]) for number in range(len(exchanges.TEXTS))]
    sizes = np.stack([one.sums(counts) for one in each], axis=1)
    gathered = runs.Runs(data, starts, sizes)
    binary = {
        name: each[number].array(gathered.column(number))
        for number, name in enumerate(exchanges.TEXTS)
    }
    request, encoding = _body(binary["request"])
    found = {
        "request": request,
        "response": _body(binary["response"])[0],
        "request_encoding": encoding,
        "usage_context": _usage(binary["usage_context"]),
    }
    for name in ("client_request_id", "unit_id", "looked_up"):
        found[name] = _readable(binary[name])
    return found


def _body(received: pa.Array) -> tuple[pa.Array, pa.Array]:
    """Bodies as they came, those that are no UTF-8 as base64, and which of the two each is."""
    try:
        text, is_binary = received.cast(pa.string()), np.zeros(len(received), np.int32)
    except pa.ArrowInvalid:
        loggable = [
            (None, "utf-8") if body is None else rows.loggable(body, len(body))[:2]
            for body in received.to_pylist()
        ]
        text = runs.texts([None if body is None else body.encode() for body, _ in loggable])
        is_binary = np.array([encoding == "base64" for _, encoding in loggable], np.int32)
    return text, _dictionary(is_binary, ("utf-8", "base64"))


def _readable(received: pa.Array) -> pa.Array:
    """Text beside the bodies; what is no UTF-8 in it becomes a replacement character."""
    try:
        return received.cast(pa.string())
    except pa.ArrowInvalid:
        known = received.to_pylist()
        return runs.texts(
            [v if v is None else v.decode("utf-8", "replace").encode() for v in known]
        )


def _usage(received: pa.Array) -> pa.Array:
    kind = rows.PAYLOAD_SCHEMA.field("usage_context").type
    if received.null_count == len(received):
        return pa.nulls(len(received), kind)
    decoded: dict[bytes, dict[str, str]] = {}
    of_row = []
    for text in received.to_pylist():
        if text is not None and text not in decoded:
            decoded[text] = _decode_usage(text)
        of_row.append(None if text is None else decoded[text])
    known = [usage for usage in of_row if usage]
    keys = runs.texts([key.encode() for usage in known for key in usage])
    values = runs.texts([value.encode() for usage in known for value in usage.values()])
    lengths = runs.Lengths(np.array([-1 if u is None else len(u) for u in of_row]))
    pairs = pa.StructArray.from_arrays([keys, values], fields=[kind.key_field, kind.item_field])
    offsets = pa.py_buffer(lengths.offsets.astype(np.int32))
    buffers = [runs.bitmap(lengths.known), offsets]
    return pa.Array.from_buffers(kind, len(of_row), buffers, children=[pairs])
