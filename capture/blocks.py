"""Bytes of the write-ahead log: blocks of rows, and the header of the segments they lie in. Pure.

A block holds one group of rows of one table, column by column, so that reading a whole segment back
takes a few array operations and no work per row (per-row formats cost 6-16 us a row there):

    magic, CRC of all that follows, length, rows, kind, ...   40 bytes, little-endian as everything
    table name
    8-byte columns | 4-byte columns | counts of lists and maps | length of each text (-1: null)
    1-byte columns
    all texts joined: column by column, then elements of lists, keys and values of maps

Each part begins at a multiple of 8, also within a segment, so that the reader may look at the bytes
as an array of integers. A null in a fixed-width column is that type's smallest integer, or one
certain NaN. A segment is a header of 64 bytes and blocks until its end, or until the first bytes
that are no whole block: the tail that a crash tore off.
"""

import functools
import hashlib
import struct
import zlib
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from operator import itemgetter
from typing import Any, NamedTuple
from uuid import UUID

import numpy as np
import pyarrow as pa

from capture import rows

FORMAT_VERSION = 1
HEADER_BYTES = 64
SCHEMA_HASH = hashlib.blake2b(
    "\n".join(
        f"{kind} {field.name} {field.type} {field.nullable}"
        for kind, (schema, _) in sorted(rows.KINDS.items())
        for field in schema
    ).encode(),
    digest_size=16,
).digest()

_SEGMENT_MAGIC = b"ILWALSEG"
_SEGMENT = struct.Struct("<8sI16sQ16s")
_BLOCK_MAGIC = b"ILB1"
# magic, crc, length, rows, start of the columns, texts, list elements, map pairs, text bytes,
# kind, length of the table name
_BLOCK = struct.Struct("<4sIIIIIIIIHH")
_AFTER_CRC = struct.Struct("<IIIIIIIHH")
_ROWS, _COLUMNS, _TEXTS, _ELEMENTS, _PAIRS, _TEXT_BYTES = range(3, 9)  # 4-byte words of the header

_NULL_NARROW, _NULL_WIDE = -(1 << 31), -(1 << 63)
_NULL_DOUBLE_BITS = 0x7FF8_0000_0000_07A2
_NULL_DOUBLE = struct.unpack("<d", struct.pack("<Q", _NULL_DOUBLE_BITS))[0]
_INT32_END = 1 << 31


class NotASegment(Exception):
    """The bytes do not begin with a whole segment header; no row can be in them."""


class ForeignSegment(Exception):
    """A segment of another format version or of other columns: its rows cannot be read here."""


class Header(NamedTuple):
    """Whose segment it is. The app id is that of the Delta transactions, one per incarnation."""

    app_id: UUID
    sequence: int


class Block(NamedTuple):
    """Where a whole block lies, and what is in it."""

    offset: int
    length: int
    table: str
    kind: str
    rows: int


class Recovered(NamedTuple):
    """The whole blocks from the start, and where the last of them ends."""

    blocks: list[Block]
    end: int


class _Layout(NamedTuple):
    """Where the columns of a kind go: indices into the row."""

    code: int
    schema: pa.Schema
    wide: tuple[int, ...]
    narrow: tuple[int, ...]
    flags: tuple[int, ...]
    texts: tuple[int, ...]
    lists: tuple[int, ...]
    maps: tuple[int, ...]
    nulls: tuple[
        tuple[int, Any], ...
    ]  # nullable fixed-width columns, each with what stands for null
    wide_codes: str


def _indices(schema: pa.Schema, accepts: Callable[[pa.DataType], bool]) -> tuple[int, ...]:
    return tuple(index for index, field in enumerate(schema) if accepts(field.type))


def _layout(code: int, schema: pa.Schema) -> _Layout:
    fixed = pa.types.is_int64, pa.types.is_timestamp, pa.types.is_float64
    wide = _indices(schema, lambda kind: any(accepts(kind) for accepts in fixed))
    narrow = _indices(schema, lambda kind: pa.types.is_int32(kind) or pa.types.is_date32(kind))
    doubles = {index for index in wide if pa.types.is_float64(schema.field(index).type)}
    nulls: list[tuple[int, Any]] = [(i, _NULL_DOUBLE if i in doubles else _NULL_WIDE) for i in wide]
    nulls += [(index, _NULL_NARROW) for index in narrow]
    layout = _Layout(
        code,
        schema,
        wide,
        narrow,
        _indices(schema, pa.types.is_boolean),
        _indices(schema, pa.types.is_string),
        _indices(schema, pa.types.is_list),
        _indices(schema, pa.types.is_map),
        tuple((index, null) for index, null in nulls if schema.field(index).nullable),
        "".join("d" if index in doubles else "q" for index in wide),
    )
    placed = sum(len(group) for group in layout[2:8])
    if placed != len(schema):
        raise TypeError(f"{len(schema) - placed} columns have a type that blocks cannot hold.")
    if len(layout.lists) > 1 or len(layout.maps) > 1:
        raise TypeError("A block holds at most one column of lists and one of maps.")
    return layout


_LAYOUTS = {
    kind: _layout(code, schema) for code, (kind, (schema, _)) in enumerate(rows.KINDS.items())
}
_KINDS = list(_LAYOUTS)


_PADDINGS = [bytes(size) for size in range(8)]


def _padding(size: int) -> int:
    return -size % 8


# Encoding --------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=1024)
def _name(table: str) -> tuple[bytes, int]:
    name = table.encode()
    return name + bytes(_padding(len(name))), len(name)


@functools.lru_cache(maxsize=4096)
def _packer(kind: str, count: int, texts: int) -> struct.Struct:
    layout = _LAYOUTS[kind]
    wide = "".join(f"{count}{code}" for code in layout.wide_codes)
    words = count * (len(layout.narrow) + len(layout.lists) + len(layout.maps)) + texts
    flags = count * len(layout.flags)
    return struct.Struct(f"<{wide}{words}i{_padding(4 * words)}x{flags}?{_padding(flags)}x")


class _Nested(NamedTuple):
    """Lists and maps of a group, flattened: a count per row (-1: null), and the texts inside."""

    counts: list[int]
    texts: list[str | None]
    elements: int
    pairs: int


def _nested(layout: _Layout, columns: list[tuple[Any, ...]], count: int) -> _Nested:
    counts: list[int] = []
    texts: list[str | None] = []
    elements = pairs = 0
    for index in layout.lists:
        column = columns[index]
        if column.count(None) == count:
            counts += [-1] * count
            continue
        counts += [-1 if value is None else len(value) for value in column]
        texts += chain.from_iterable(value for value in column if value)
        elements += sum(len(value) for value in column if value)
    for index in layout.maps:
        column = columns[index]
        if column.count(None) == count:
            counts += [-1] * count
            continue
        counts += [-1 if value is None else len(value) for value in column]
        texts += chain.from_iterable(value.keys() for value in column if value)
        texts += chain.from_iterable(value.values() for value in column if value)
        pairs += sum(len(value) for value in column if value)
    return _Nested(counts, texts, elements, pairs)


def _joined(texts: list[str | None]) -> tuple[list[int], bytes]:
    """Length in bytes of each text (-1: null), and all of them joined."""
    joined = "".join(filter(None, texts))
    if joined.isascii():
        return [-1 if text is None else len(text) for text in texts], joined.encode()
    # A lone surrogate is no UTF-8; it becomes a question mark, the row is kept.
    encoded = [None if text is None else text.encode("utf-8", "replace") for text in texts]
    lengths = [-1 if text is None else len(text) for text in encoded]
    return lengths, b"".join(filter(None, encoded))


class _Flat(NamedTuple):
    """A group of rows in the order in which a block has their values."""

    wide: Iterable[Any]
    narrow: Iterable[Any]
    flags: Iterable[Any]
    texts: list[str | None]
    nested: _Nested


def _pick(indices: tuple[int, ...]) -> Callable[[Sequence[Any]], tuple[Any, ...]]:
    return itemgetter(*indices) if len(indices) > 1 else lambda row: tuple(row[i] for i in indices)


def _picks(layout: _Layout) -> tuple[Callable[[Sequence[Any]], tuple[Any, ...]], ...]:
    groups = (layout.wide, layout.narrow, layout.flags, layout.texts, layout.lists + layout.maps)
    return tuple(_pick(group) for group in groups)


_PICKS = {kind: _picks(layout) for kind, layout in _LAYOUTS.items()}
_NO_NESTED = {
    kind: _Nested([-1] * len(layout.lists + layout.maps), [], 0, 0)
    for kind, layout in _LAYOUTS.items()
}


def _flat(kind: str, columns: list[tuple[Any, ...]], count: int) -> _Flat:
    layout, flat = _LAYOUTS[kind], chain.from_iterable
    wide, narrow, flags, texts, _ = _PICKS[kind]
    for index, null in layout.nulls:
        if None in columns[index]:
            columns[index] = tuple(null if value is None else value for value in columns[index])
    nested = _nested(layout, columns, count)
    all_texts = [*flat(texts(columns)), *nested.texts]
    return _Flat(
        flat(wide(columns)), flat(narrow(columns)), flat(flags(columns)), all_texts, nested
    )


def _flat_one(kind: str, row: Sequence[Any]) -> _Flat:
    """The same for a single row, most of the groups there are, in half the time."""
    wide, narrow, flags, texts, inside = _PICKS[kind]
    wides, narrows = wide(row), narrow(row)
    if None in wides:
        nulls = dict(_LAYOUTS[kind].nulls)
        wides = tuple(nulls[i] if row[i] is None else row[i] for i in _LAYOUTS[kind].wide)
    if None in narrows:
        narrows = tuple(_NULL_NARROW if value is None else value for value in narrows)
    nested = _NO_NESTED[kind]
    if inside(row).count(None) < len(nested.counts):
        nested = _nested(_LAYOUTS[kind], [(value,) for value in row], 1)
    return _Flat(wides, narrows, flags(row), [*texts(row), *nested.texts], nested)


def _clamped(layout: _Layout, columns: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """Integers that overflow their column brought to its end: no row is refused for a number."""
    for indices, end in ((layout.wide, 1 << 63), (layout.narrow, _INT32_END)):
        for index in indices:
            if not pa.types.is_float64(layout.schema.field(index).type):
                columns[index] = tuple(
                    None if v is None else max(-end, min(end - 1, v)) for v in columns[index]
                )
    return columns


def encode(table: str, kind: str, group: Sequence[Any]) -> bytes:
    """One block of a group of rows (`rows.Payload` or `rows.Label`), at least one, of one table.

    Measured on a shared core: 7 us for one row of 1 kB, 2.2 us a row at 64.
    """
    count = len(group)
    if count == 1:
        flat = _flat_one(kind, group[0])
    else:
        flat = _flat(kind, list(zip(*group, strict=True)), count)
    lengths, joined = _joined(flat.texts)
    packer = _packer(kind, count, len(lengths))
    counts = flat.nested.counts
    try:
        fixed = packer.pack(*flat.wide, *flat.narrow, *counts, *lengths, *flat.flags)
    except struct.error:
        flat = _flat(kind, _clamped(_LAYOUTS[kind], list(zip(*group, strict=True))), count)
        fixed = packer.pack(*flat.wide, *flat.narrow, *counts, *lengths, *flat.flags)
    code = _LAYOUTS[kind].code
    return _sealed_block(table, code, count, len(lengths), flat.nested, fixed, joined)


def _sealed_block(
    table: str, code: int, count: int, texts: int, nested: _Nested, fixed: bytes, joined: bytes
) -> bytes:
    name, name_length = _name(table)
    start = _BLOCK.size + len(name)
    size = start + len(fixed) + len(joined)
    padding = _padding(size)
    rest = b"".join(
        (
            _AFTER_CRC.pack(
                size + padding,
                count,
                start,
                texts,
                nested.elements,
                nested.pairs,
                len(joined),
                code,
                name_length,
            ),
            name,
            fixed,
            joined,
            _PADDINGS[padding],
        )
    )
    return _BLOCK_MAGIC + zlib.crc32(rest).to_bytes(4, "little") + rest


def segment_header(app_id: UUID, sequence: int) -> bytes:
    """First 64 bytes of a segment."""
    text = _SEGMENT.pack(_SEGMENT_MAGIC, FORMAT_VERSION, app_id.bytes, sequence, SCHEMA_HASH)
    text += bytes(HEADER_BYTES - 4 - len(text))
    return text + zlib.crc32(text).to_bytes(4, "little")


# Reading ---------------------------------------------------------------------------------------


def read_header(data: Any) -> Header:
    """Header of a segment (bytes-like). Raises NotASegment, ForeignSegment."""
    head = bytes(memoryview(data)[:HEADER_BYTES])
    if len(head) < HEADER_BYTES or head[:8] != _SEGMENT_MAGIC:
        raise NotASegment(f"{len(head)} bytes are no segment header.")
    if zlib.crc32(head[:-4]) != int.from_bytes(head[-4:], "little"):
        raise NotASegment("The checksum of the segment header is wrong.")
    _, version, app_id, sequence, schema_hash = _SEGMENT.unpack_from(head)
    if version != FORMAT_VERSION or schema_hash != SCHEMA_HASH:
        raise ForeignSegment(f"Segment of format {version}; this is {FORMAT_VERSION}.")
    return Header(UUID(bytes=app_id), sequence)


def recover(data: Any, start: int = 0) -> Recovered:
    """The whole blocks of bytes-like `data` from `start` on, up to the first that is torn."""
    view = memoryview(data)
    size, position = len(view), start
    names: dict[bytes, str] = {}
    found: list[Block] = []
    while position + _BLOCK.size <= size:
        head = _BLOCK.unpack_from(view, position)
        magic, crc, length, count, *_, code, name_length = head
        if magic != _BLOCK_MAGIC or length < _BLOCK.size or position + length > size:
            break
        if zlib.crc32(view[position + 8 : position + length]) != crc or code >= len(_KINDS):
            break
        name = bytes(view[position + _BLOCK.size : position + _BLOCK.size + name_length])
        table = names.get(name) or names.setdefault(name, name.decode())
        found.append(Block(position, length, table, _KINDS[code], count))
        position += length
    return Recovered(found, position)


def _within(counts: np.ndarray) -> np.ndarray:
    """0..n-1 for each n of counts, one after another."""
    ends = np.cumsum(counts)
    return np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - counts, counts)


class _Reader:
    """Blocks of one kind in one buffer, taken apart by array operations."""

    def __init__(self, data: Any, blocks: Sequence[Block]) -> None:
        self.data = data
        self.layout = _LAYOUTS[blocks[0].kind]
        usable = len(memoryview(data)) // 8 * 8
        self.words = np.frombuffer(data, "<i4", usable // 4)
        self.longs = np.frombuffer(data, "<i8", usable // 8)
        self.bytes = np.frombuffer(data, "u1", usable)
        offsets = np.array([block.offset for block in blocks], np.int64)
        head = offsets // 4
        self.rows = self.words[head + _ROWS].astype(np.int64)
        self.texts = self.words[head + _TEXTS].astype(np.int64)
        self.elements = self.words[head + _ELEMENTS].astype(np.int64)
        self.pairs = self.words[head + _PAIRS].astype(np.int64)
        self.columns = offsets + self.words[head + _COLUMNS]
        self._locate(self.words[head + _TEXT_BYTES].astype(np.int64) & 0xFFFF_FFFF)
        self.block_of = np.repeat(np.arange(len(blocks)), self.rows)
        self.index = _within(self.rows)

    def _locate(self, text_bytes: np.ndarray) -> None:
        layout = self.layout
        nested = len(layout.lists) + len(layout.maps)
        self.narrow_at = self.columns + 8 * len(layout.wide) * self.rows
        self.counts_at = self.narrow_at + 4 * len(layout.narrow) * self.rows
        self.lengths_at = self.counts_at + 4 * nested * self.rows
        self.flags_at = (self.lengths_at + 4 * self.texts + 7) // 8 * 8
        self.text_at = (self.flags_at + len(layout.flags) * self.rows + 7) // 8 * 8
        self.text_end = self.text_at + text_bytes

    def _cells(self, part_at: np.ndarray, width: int, column: int) -> np.ndarray:
        """Index of each row's cell, counted in cells of `width` bytes."""
        in_block = column * self.rows[self.block_of] + self.index
        return part_at[self.block_of] // width + in_block

    def order(self, sort_by: str) -> None:
        """Put the rows into ascending order of a timestamp column; equal ones stay as they came."""
        column = self.layout.wide.index(self.layout.schema.get_field_index(sort_by))
        values = self.longs[self._cells(self.columns, 8, column)]
        if (np.diff(values) < 0).any():
            places = np.argsort(values, kind="stable")
            self.block_of, self.index = self.block_of[places], self.index[places]

    def fixed(self) -> dict[int, pa.Array]:
        """Columns of fixed width, by index."""
        layout, found = self.layout, {}
        nullable = {index for index, _ in layout.nulls}
        for place, index in enumerate(layout.wide):
            values = self.longs[self._cells(self.columns, 8, place)]
            double = layout.wide_codes[place] == "d"
            null = _NULL_DOUBLE_BITS if double else _NULL_WIDE
            found[index] = _fixed(layout, index, values, null if index in nullable else None)
        for place, index in enumerate(layout.narrow):
            values = self.words[self._cells(self.narrow_at, 4, place)]
            found[index] = _fixed(
                layout, index, values, _NULL_NARROW if index in nullable else None
            )
        for place, index in enumerate(layout.flags):
            values = self.bytes[self._cells(self.flags_at, 1, place)]
            bits = pa.py_buffer(np.packbits(values, bitorder="little"))
            found[index] = pa.Array.from_buffers(pa.bool_(), len(values), [None, bits])
        return found

    def read_texts(self) -> None:
        """All texts of all blocks as one Arrow array over the buffer itself: nothing is copied.

        What lies between the texts of two blocks becomes an element that nobody asks for."""
        lengths = self.words[np.repeat(self.lengths_at // 4, self.texts) + _within(self.texts)]
        sizes = np.maximum(lengths, 0).astype(np.int64)
        before = np.cumsum(sizes) - sizes
        first = np.cumsum(self.texts) - self.texts
        block_before = before[np.minimum(first, max(len(before) - 1, 0))]
        starts = np.repeat(self.text_at - block_before, self.texts) + before
        blocks = np.arange(len(self.texts))
        self.first_text = first + blocks + 1
        places = np.arange(len(lengths)) + np.repeat(blocks, self.texts) + 1
        offsets = np.empty(len(lengths) + len(blocks) + 1, np.int64)
        offsets[places] = starts
        offsets[self.first_text - 1] = np.concatenate(([0], self.text_end[:-1]))
        offsets[-1] = self.text_end[-1]
        known = np.zeros(len(offsets) - 1, bool)
        known[places] = lengths >= 0
        big = len(self.bytes) >= _INT32_END
        kind, width = (pa.large_string(), np.int64) if big else (pa.string(), np.int32)
        buffers = [_bitmap(known), pa.py_buffer(offsets.astype(width)), pa.py_buffer(self.data)]
        self.all_texts = pa.Array.from_buffers(kind, len(known), buffers)

    def _taken(self, places: np.ndarray) -> pa.Array:
        return self.all_texts.take(_places(places)).cast(pa.string())

    def text_columns(self) -> dict[int, pa.Array]:
        """Columns of text, by index."""
        first, count = self.first_text[self.block_of], self.rows[self.block_of]
        places = first + self.index
        return {
            index: self._taken(places + column * count)
            for column, index in enumerate(self.layout.texts)
        }

    def nested_columns(self) -> dict[int, pa.Array]:
        """Lists and maps, by index."""
        layout = self.layout
        own = len(layout.texts) * self.rows
        found: dict[int, pa.Array] = {}
        for place, index in enumerate((*layout.lists, *layout.maps)):
            kind = layout.schema.field(index).type
            counts = self.words[self._cells(self.counts_at, 4, place)]
            if (counts < 0).all():
                found[index] = pa.nulls(len(counts), kind)
                continue
            inside = self.elements if index in layout.lists else self.pairs
            base = self.first_text + own + (0 if index in layout.lists else self.elements)
            found[index] = self._nested(kind, place, base, inside)
        return found

    def _nested(
        self, kind: pa.DataType, place: int, base: np.ndarray, inside: np.ndarray
    ) -> pa.Array:
        # First as the blocks have them, for elements follow the rows of their block; then in order.
        stored_block = np.repeat(np.arange(len(self.rows)), self.rows)
        stored_cell = place * self.rows[stored_block] + _within(self.rows)
        counts = self.words[self.counts_at[stored_block] // 4 + stored_cell]
        places = np.repeat(base, inside) + _within(inside)
        values = self._taken(places)
        if pa.types.is_map(kind):
            items = self._taken(places + np.repeat(inside, inside))
            fields = [kind.key_field, kind.item_field]
            values = pa.StructArray.from_arrays([values, items], fields=fields)
        ends = np.cumsum(np.maximum(counts, 0))
        offsets = np.concatenate(([0], ends)).astype(np.int32)
        buffers = [_bitmap(counts >= 0), pa.py_buffer(offsets)]
        stored = pa.Array.from_buffers(kind, len(counts), buffers, children=[values])
        first_row = np.cumsum(self.rows) - self.rows
        return stored.take(_places(first_row[self.block_of] + self.index))


def _places(indices: np.ndarray) -> pa.Array:
    # Not `pa.array`, which imports pandas to see whether the argument is of it.
    return pa.Array.from_buffers(pa.int64(), len(indices), [None, pa.py_buffer(indices)])


def _bitmap(known: np.ndarray) -> pa.Buffer | None:
    if known.all():
        return None
    return pa.py_buffer(np.packbits(known, bitorder="little"))


def _fixed(layout: _Layout, index: int, values: np.ndarray, null: int | None) -> pa.Array:
    known = None if null is None else _bitmap(values != null)
    kind = layout.schema.field(index).type
    return pa.Array.from_buffers(kind, len(values), [known, pa.py_buffer(values)])


def decode(data: Any, blocks: Iterable[Block], sort_by: str | None = None) -> pa.Table:
    """Rows of whole blocks of one table, as its Arrow schema has them.

    data: the bytes-like that `recover` looked at, or several segments joined (block offsets are
    into it). sort_by: a timestamp column whose ascending order the rows shall have.
    """
    reader = _Reader(data, list(blocks))
    if sort_by is not None:
        reader.order(sort_by)
    reader.read_texts()
    found = {**reader.fixed(), **reader.text_columns(), **reader.nested_columns()}
    schema = reader.layout.schema
    return pa.Table.from_arrays([found[index] for index in range(len(schema))], schema=schema)
