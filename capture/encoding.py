"""Rows -> blocks of the write-ahead log, whose format is described in blocks.py. Pure.

The gateway makes rows of labels and usage alone; of a request it logs an exchange (exchanges.py). A
few rows are packed as they are, by one call: at 500 requests a second all that is touched is cold,
and each step of Python costs several times what it does under load. They cost the committer some us
more than columns do, which it has when groups are small. From 24 on a group is packed column by
column.
"""

import functools
import struct
from collections.abc import Sequence
from itertools import chain
from typing import Any, NamedTuple

import msgspec

from capture import blocks

COLUMNWISE_ROWS = 24


def _padding(size: int) -> int:
    return -size % 8


def encode(table: str, kind: str, group: Sequence[Any]) -> bytes:
    """One block of a group of rows, all of one tuple type of `rows`, at least one, of one table;
    still to be signed (blocks.py)."""
    if len(group) >= COLUMNWISE_ROWS:
        return by_column(table, kind, group)
    try:
        packed = _pack(group)
    except (UnicodeError, OverflowError, TypeError, msgspec.MsgspecError):
        # What MessagePack has no form for, as a lone surrogate, has one in columns.
        return by_column(table, kind, group)
    code = blocks.LAYOUTS[kind].code | blocks.PACKED
    return blocks.framed(table, code, len(group), packed, text_bytes=len(packed))


_pack = msgspec.msgpack.Encoder().encode


def by_column(table: str, kind: str, group: Sequence[Any]) -> bytes:
    """As `encode`, in columns whatever the size of the group."""
    try:
        return _columnwise(table, kind, group)
    except struct.error:  # a number is null, or overflows; to look first would cost every row
        return _columnwise(table, kind, [_fitting(blocks.LAYOUTS[kind], row) for row in group])


def _fitting(layout: blocks.Layout, row: Sequence[Any]) -> list[Any]:
    """A row whose numbers can be packed: what stands for null, and integers that overflow their
    column brought to its end, for no row is refused for a number."""
    fitting = list(row)
    for index, null in layout.nulls:
        if row[index] is None:
            fitting[index] = null
    integers = [i for i, code in zip(layout.wide, layout.wide_codes, strict=True) if code == "q"]
    for indices, end in ((integers, 1 << 63), (layout.narrow, blocks.INT32_END)):
        for index in indices:
            fitting[index] = max(-end, min(end - 1, fitting[index]))
    return fitting


class _Nested(NamedTuple):
    """Lists and maps of a group: how long each is (-1: null), and the texts inside."""

    counts: list[int]
    texts: list[str | None]
    elements: int
    pairs: int


def _nested(layout: blocks.Layout, columns: list[tuple[Any, ...]], count: int) -> _Nested:
    counts: list[int] = []
    texts: list[str | None] = []
    sizes = {"lists": 0, "maps": 0}
    for index in layout.lists + layout.maps:
        column = columns[index]
        if column.count(None) == count:
            counts += [-1] * count
            continue
        counts += [-1 if value is None else len(value) for value in column]
        known = [value for value in column if value]
        texts += chain.from_iterable(known)  # of maps, their keys
        if index in layout.maps:
            texts += chain.from_iterable(value.values() for value in known)
        sizes["maps" if index in layout.maps else "lists"] = sum(map(len, known))
    return _Nested(counts, texts, sizes["lists"], sizes["maps"])


# Many rows ---------------------------------------------------------------------------------------


def _columnwise(table: str, kind: str, group: Sequence[Any]) -> bytes:
    layout, columns = blocks.LAYOUTS[kind], list(zip(*group, strict=True))
    fixed = [
        _numbers(columns[index], code)
        for index, code in zip(layout.wide, layout.wide_codes, strict=True)
    ]
    fixed += [_numbers(columns[index], "i") for index in layout.narrow]
    nested = _nested(layout, columns, len(group))
    texts = [_texts(column) for column in (*(columns[i] for i in layout.texts), nested.texts)]
    words = b"".join([*fixed, _packed("i", nested.counts), *(lengths for lengths, _ in texts)])
    flags = b"".join([_packed("?", columns[index]) for index in layout.flags])
    paddings = blocks.PADDINGS[_padding(len(words))], blocks.PADDINGS[_padding(len(flags))]
    joined = b"".join(text for _, text in texts)
    return blocks.framed(
        table,
        layout.code,
        len(group),
        b"".join((words, paddings[0], flags, paddings[1], joined)),
        len(group) * len(layout.texts) + len(nested.texts),
        nested.elements,
        nested.pairs,
        len(joined),
    )


def _joined(texts: Sequence[str | None]) -> tuple[list[int], bytes]:
    """Length in bytes of each text (-1: null), and all of them joined."""
    joined = "".join(filter(None, texts))
    if joined.isascii():
        return [-1 if text is None else len(text) for text in texts], joined.encode()
    # A lone surrogate is no UTF-8; it becomes a question mark, the row is kept.
    encoded = [None if text is None else text.encode("utf-8", "replace") for text in texts]
    lengths = [-1 if text is None else len(text) for text in encoded]
    return lengths, b"".join(filter(None, encoded))


@functools.lru_cache(maxsize=4096)
def _struct(code: str, count: int) -> struct.Struct:
    return struct.Struct(f"<{count}{code}")


def _packed(code: str, values: Sequence[Any]) -> bytes:
    return _struct(code, len(values)).pack(*values)


# Requests that went the same way have most columns in common, as the same object. The last row is
# looked at first: where columns differ, the ends mostly do.


def _numbers(column: Sequence[Any], code: str) -> bytes:
    first = column[0]
    if first is column[-1] and code != "d" and column.count(first) == len(column):  # 0.0 == -0.0
        return _struct(code, 1).pack(first) * len(column)
    return _struct(code, len(column)).pack(*column)


def _texts(column: Sequence[str | None]) -> tuple[bytes, bytes]:
    """As `_joined`, the lengths packed; of one column."""
    if column and column[0] is column[-1] and column.count(column[0]) == len(column):
        length, text = _constant(column[0])
        return length * len(column), text * len(column)
    try:
        joined = "".join(column)  # type: ignore[arg-type]
        if joined.isascii():
            return _struct("i", len(column)).pack(*map(len, column)), joined.encode()  # type: ignore[arg-type]
    except TypeError:  # a null among them
        pass
    lengths, text = _joined(column)
    return _packed("i", lengths), text


@functools.lru_cache(maxsize=4096)
def _constant(text: str | None) -> tuple[bytes, bytes]:
    lengths, joined = _joined((text,))
    return _packed("i", lengths), joined
