"""Rows -> blocks of the write-ahead log, whose format is described in blocks.py. Pure.

Every recorded request pays for this. A few rows are packed as they are, 0.5 us for one of 900 bytes
on a shared core; they cost the committer 7 us a row more than columns do, which it has when groups
are small. From 24 rows on a group is packed column by column: 1.6 us a row at 64.
"""

import functools
import struct
import zlib
from collections.abc import Sequence
from itertools import chain
from typing import Any, NamedTuple

import msgspec

from capture import blocks

COLUMNWISE_ROWS = 24
_HEAD = struct.Struct("<4sI")
_PADDINGS = [bytes(size) for size in range(8)]


def _padding(size: int) -> int:
    return -size % 8


def encode(table: str, kind: str, group: Sequence[Any]) -> bytes:
    """One block of a group of rows (a tuple type of `rows`), at least one, of one table."""
    return b"".join(pieces(table, kind, group))


def pieces(table: str, kind: str, group: Sequence[Any]) -> list[bytes]:
    """The same as the pieces of one writev(): to join them would copy everything once more."""
    if len(group) < COLUMNWISE_ROWS:
        try:
            return _as_they_are(table, kind, group)
        except (UnicodeError, OverflowError, TypeError, msgspec.MsgspecError):
            pass  # what MessagePack has no form for, as a lone surrogate, has one in columns
    return by_column(table, kind, group)


def by_column(table: str, kind: str, group: Sequence[Any]) -> list[bytes]:
    """The pieces of a block that holds columns, whatever the size of the group."""
    try:
        return _columnwise(table, kind, group)
    except struct.error:  # a number is null, or overflows; to look first would cost every row
        return _columnwise(table, kind, [_fitting(blocks.LAYOUTS[kind], row) for row in group])


@functools.lru_cache(maxsize=1024)
def _name(table: str) -> tuple[bytes, int]:
    name = table.encode()
    return name + bytes(_padding(len(name))), len(name)


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


# A few rows --------------------------------------------------------------------------------------

_pack = msgspec.msgpack.Encoder().encode


def _as_they_are(table: str, kind: str, group: Sequence[Any]) -> list[bytes]:
    name, start, code, name_bytes = _packed_front(table, kind)
    packed = _pack(group)
    size = len(packed)
    padding = _PADDINGS[-size % 8]
    front = blocks.AFTER_CRC.pack(
        start + size + len(padding), len(group), start, 0, 0, 0, size, code, name_bytes
    )
    rest = b"".join((front, name, packed, padding))
    return [_HEAD.pack(blocks.BLOCK_MAGIC, zlib.crc32(rest)), rest]


@functools.lru_cache(maxsize=1024)
def _packed_front(table: str, kind: str) -> tuple[bytes, int, int, int]:
    name, name_bytes = _name(table)
    code = blocks.LAYOUTS[kind].code | blocks.PACKED
    return name, blocks.BLOCK.size + len(name), code, name_bytes


# Many rows ---------------------------------------------------------------------------------------


def _columnwise(table: str, kind: str, group: Sequence[Any]) -> list[bytes]:
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
    name, name_bytes = _name(table)
    paddings = _PADDINGS[_padding(len(words))], _PADDINGS[_padding(len(flags))]
    start, joined = blocks.BLOCK.size + len(name), [text for _, text in texts]
    size = start + sum(map(len, (words, flags, *paddings, *joined)))
    head = blocks.AFTER_CRC.pack(
        size + _padding(size),
        len(group),
        start,
        len(group) * len(layout.texts) + len(nested.texts),
        nested.elements,
        nested.pairs,
        sum(map(len, joined)),
        layout.code,
        name_bytes,
    )
    front = b"".join((head, name, words, paddings[0], flags, paddings[1]))
    rest = [front, *joined, _PADDINGS[_padding(size)]]
    crc = 0
    for piece in rest:
        crc = zlib.crc32(piece, crc)
    return [_HEAD.pack(blocks.BLOCK_MAGIC, crc), *rest]


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
