"""Rows -> blocks of the write-ahead log, whose format is described in blocks.py. Pure.

Every recorded request pays for this, so a block is made in one of three ways, whose bytes are the
same: a single row is taken apart by one call per part of the block; a few rows are put in order and
packed at once; many are packed column by column, which pays from about 24 rows on.
Measured on a shared core: 5.6 us for one row of 900 bytes, 3.1 us a row at 8, 1.6 us at 64.
"""

import functools
import struct
import zlib
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from operator import itemgetter
from typing import Any, NamedTuple

from capture import blocks

COLUMNWISE_ROWS = 24
_PADDINGS = [bytes(size) for size in range(8)]


def _padding(size: int) -> int:
    return -size % 8


def encode(table: str, kind: str, group: Sequence[Any]) -> bytes:
    """One block of a group of rows (a tuple type of `rows`), at least one, of one table."""
    return b"".join(pieces(table, kind, group))


def pieces(table: str, kind: str, group: Sequence[Any]) -> list[bytes]:
    """The same as the pieces of one writev(): to join them would copy everything once more."""
    make = _columnwise if len(group) >= COLUMNWISE_ROWS else _at_once
    try:
        return make(table, kind, group)
    except struct.error:  # a number is null, or overflows; to look first would cost every row
        return make(table, kind, [_fitting(blocks.LAYOUTS[kind], row) for row in group])


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


# One row, or a few -------------------------------------------------------------------------------

# What a block holds, in its order: 8-byte and 4-byte columns, bools, texts, lists and maps.
_Flat = tuple[Iterable[Any], Iterable[Any], Iterable[Any], Sequence[str | None], _Nested]


def _pick(indices: tuple[int, ...]) -> Callable[[Sequence[Any]], tuple[Any, ...]]:
    if len(indices) > 1:
        return itemgetter(*indices)
    start, end = (indices[0], indices[0] + 1) if indices else (0, 0)
    return lambda row: tuple(row[start:end])


_PICKS = {
    kind: tuple(_pick(indices) for indices in (*one[2:6], one.lists + one.maps))
    for kind, one in blocks.LAYOUTS.items()
}
_NO_NESTED = {
    kind: _Nested([-1] * len(layout.lists + layout.maps), [], 0, 0)
    for kind, layout in blocks.LAYOUTS.items()
}


def _flat_one(kind: str, group: Sequence[Any]) -> _Flat:
    """Of a single row, as most groups have when there is little to do."""
    (row,) = group
    pick_wide, pick_narrow, pick_flags, pick_texts, pick_nested = _PICKS[kind]
    texts, inside = pick_texts(row), pick_nested(row)
    nested = _NO_NESTED[kind]
    if inside.count(None) < len(inside):
        nested = _nested(blocks.LAYOUTS[kind], [(value,) for value in row], 1)
        texts = (*texts, *nested.texts)
    return pick_wide(row), pick_narrow(row), pick_flags(row), texts, nested


def _flat_many(kind: str, group: Sequence[Any]) -> _Flat:
    layout, columns, flat = (
        blocks.LAYOUTS[kind],
        list(zip(*group, strict=True)),
        chain.from_iterable,
    )
    wide, narrow, flags, texts, _ = (pick(columns) for pick in _PICKS[kind])
    nested = _nested(layout, columns, len(group))
    return flat(wide), flat(narrow), flat(flags), [*flat(texts), *nested.texts], nested


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
def _packer(kind: str, name_bytes: int, count: int, texts: int) -> struct.Struct:
    """Packs all of a block after its checksum but the texts."""
    layout = blocks.LAYOUTS[kind]
    wide = "".join(f"{count}{code}" for code in layout.wide_codes)
    words = count * (len(layout.narrow) + len(layout.lists) + len(layout.maps)) + texts
    flags = count * len(layout.flags)
    columns = f"{wide}{words}i{_padding(4 * words)}x{flags}?{_padding(flags)}x"
    return struct.Struct(f"{blocks.AFTER_CRC.format}{name_bytes}s{columns}")


def _at_once(table: str, kind: str, group: Sequence[Any]) -> list[bytes]:
    flatten = _flat_one if len(group) == 1 else _flat_many
    wide, narrow, flags, texts, nested = flatten(kind, group)
    name, name_bytes = _name(table)
    lengths, joined = _joined(texts)
    packer = _packer(kind, len(name), len(group), len(texts))
    size = 8 + packer.size + len(joined)
    padding = _PADDINGS[-size % 8]
    front = packer.pack(
        size + len(padding),
        len(group),
        blocks.BLOCK.size + len(name),
        len(texts),
        nested.elements,
        nested.pairs,
        len(joined),
        blocks.LAYOUTS[kind].code,
        name_bytes,
        name,
        *wide,
        *narrow,
        *nested.counts,
        *lengths,
        *flags,
    )
    joined += padding
    return [_head(zlib.crc32(joined, zlib.crc32(front))), front, joined]


def _head(crc: int) -> bytes:
    return blocks.BLOCK_MAGIC + crc.to_bytes(4, "little")


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
    return [_head(crc), *rest]


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
