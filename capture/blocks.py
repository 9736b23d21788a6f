"""Bytes of the write-ahead log: blocks of rows, and the header of the segments they lie in. Pure.

A block holds one group of rows of one table, column by column, so that reading a whole segment back
takes a few array operations and no work per row (per-row formats cost 6-16 us a row there). It is
made in encoding.py and looks like this:

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

import hashlib
import struct
import zlib
from collections.abc import Callable, Iterable, Sequence
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
BLOCK_MAGIC = b"ILB1"
# magic, crc, length, rows, start of the columns, texts, list elements, map pairs, text bytes,
# kind, length of the table name
BLOCK = struct.Struct("<4sIIIIIIIIHH")
AFTER_CRC = struct.Struct("<IIIIIIIHH")
_ROWS, _COLUMNS, _TEXTS, _ELEMENTS, _PAIRS, _TEXT_BYTES = range(3, 9)  # 4-byte words of the header

NULL_NARROW, NULL_WIDE = -(1 << 31), -(1 << 63)
NULL_DOUBLE_BITS = 0x7FF8_0000_0000_07A2
NULL_DOUBLE = struct.unpack("<d", struct.pack("<Q", NULL_DOUBLE_BITS))[0]
INT32_END = 1 << 31


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


class Layout(NamedTuple):
    """Where the columns of a kind go in a block: indices into the row."""

    code: int
    schema: pa.Schema
    wide: tuple[int, ...]
    narrow: tuple[int, ...]
    flags: tuple[int, ...]
    texts: tuple[int, ...]
    lists: tuple[int, ...]  # at most one
    maps: tuple[int, ...]  # at most one
    wide_codes: str
    nulls: tuple[tuple[int, Any], ...]  # nullable columns of numbers, each with what means null


def _indices(schema: pa.Schema, accepts: Callable[[pa.DataType], bool]) -> tuple[int, ...]:
    return tuple(index for index, field in enumerate(schema) if accepts(field.type))


def _layout(code: int, schema: pa.Schema) -> Layout:
    fixed = pa.types.is_int64, pa.types.is_timestamp, pa.types.is_float64
    wide = _indices(schema, lambda kind: any(accepts(kind) for accepts in fixed))
    narrow = _indices(schema, lambda kind: pa.types.is_int32(kind) or pa.types.is_date32(kind))
    doubles = {index for index in wide if pa.types.is_float64(schema.field(index).type)}
    nulls: list[tuple[int, Any]] = [(i, NULL_DOUBLE if i in doubles else NULL_WIDE) for i in wide]
    nulls += [(index, NULL_NARROW) for index in narrow]
    layout = Layout(
        code,
        schema,
        wide,
        narrow,
        _indices(schema, pa.types.is_boolean),
        _indices(schema, pa.types.is_string),
        _indices(schema, pa.types.is_list),
        _indices(schema, pa.types.is_map),
        "".join("d" if index in doubles else "q" for index in wide),
        tuple((index, null) for index, null in nulls if schema.field(index).nullable),
    )
    placed = sum(len(group) for group in layout[2:8])
    if placed != len(schema):
        raise TypeError(f"{len(schema) - placed} columns have a type that blocks cannot hold.")
    if len(layout.lists) > 1 or len(layout.maps) > 1:
        raise TypeError("A block holds at most one column of lists and one of maps.")
    return layout


LAYOUTS = {
    kind: _layout(code, schema) for code, (kind, (schema, _)) in enumerate(rows.KINDS.items())
}
_KINDS = list(LAYOUTS)


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
    while position + BLOCK.size <= size:
        head = BLOCK.unpack_from(view, position)
        magic, crc, length, count, *_, code, name_length = head
        if magic != BLOCK_MAGIC or length < BLOCK.size or position + length > size:
            break
        if zlib.crc32(view[position + 8 : position + length]) != crc or code >= len(_KINDS):
            break
        name = bytes(view[position + BLOCK.size : position + BLOCK.size + name_length])
        table = names.get(name) or names.setdefault(name, name.decode())
        found.append(Block(position, length, table, _KINDS[code], count))
        position += length
    return Recovered(found, position)


# A block's columns lie one after another, and so do the blocks of a segment: its bytes are an array
# of runs, and a column is the same run of every block. Arrow gathers those in one call, whatever is
# in them; numpy does the rest. Nothing is done per row or per block.


class _Runs:
    """Runs of bytes that lie one after another in each of several blocks. lengths: shape (blocks,
    runs), in bytes; starts: shape (blocks,), where the first run of each block begins."""

    def __init__(self, data: pa.Buffer, starts: np.ndarray, lengths: np.ndarray) -> None:
        blocks, self._runs = lengths.shape
        offsets = np.empty((blocks, self._runs + 1), np.int64)
        offsets[:, 0] = starts
        np.cumsum(lengths, axis=1, out=offsets[:, 1:])
        offsets[:, 1:] += starts[:, None]
        # What lies between two blocks becomes a run that nobody asks for.
        buffers = [None, pa.py_buffer(offsets), data]
        self._all = pa.Array.from_buffers(pa.large_binary(), offsets.size - 1, buffers)
        self._first = np.arange(blocks) * (self._runs + 1)

    def column(self, run: int) -> pa.Buffer:
        """A run of all blocks, joined."""
        return self._all.take(_places(self._first + run)).buffers()[2]


def _places(indices: np.ndarray) -> pa.Array:
    # Not `pa.array`, which imports pandas to see whether the argument is of it.
    return pa.Array.from_buffers(pa.int64(), len(indices), [None, pa.py_buffer(indices)])


def _bitmap(known: np.ndarray) -> pa.Buffer | None:
    if known.all():
        return None
    return pa.py_buffer(np.packbits(known, bitorder="little"))


class _Reader:
    """Blocks of one kind in one buffer, taken apart column by column."""

    def __init__(self, data: Any, blocks: Sequence[Block]) -> None:
        self.layout = layout = LAYOUTS[blocks[0].kind]
        self.data = pa.py_buffer(data)
        words = np.frombuffer(data, "<i4", self.data.size // 4)
        offsets = np.array([block.offset for block in blocks], np.int64)
        heads = words[offsets[:, None] // 4 + np.arange(BLOCK.size // 4)].astype(np.int64)
        self.rows = heads[:, _ROWS]
        self.count = int(self.rows.sum())
        self.nested = layout.lists + layout.maps
        self.inside = [heads[:, _ELEMENTS]] if layout.lists else []
        self.inside += [heads[:, _PAIRS]] * 2 if layout.maps else []
        self._lengths_at = len(layout.wide) + len(layout.narrow) + len(self.nested)
        fixed = [8] * len(layout.wide) + [4] * (self._lengths_at - len(layout.wide))
        runs = [self.rows * width for width in [*fixed, *[4] * len(layout.texts)]]
        runs += [inside * 4 for inside in self.inside]
        runs.append(-sum(runs) % 8)
        self._flags_at = len(runs)
        runs += [self.rows] * len(layout.flags)
        runs.append(-len(layout.flags) * self.rows % 8)
        lengths = np.stack(runs, axis=1)
        starts = offsets + heads[:, _COLUMNS]
        self._fixed = _Runs(self.data, starts, lengths)
        self._read_lengths(starts + lengths.sum(axis=1))

    def _read_lengths(self, text_starts: np.ndarray) -> None:
        """Lengths of all texts, and with them where each run of text lies."""
        counts = [self.rows] * len(self.layout.texts) + self.inside
        self._known: list[np.ndarray] = []
        self._offsets: list[np.ndarray] = []
        runs = []
        for number, count in enumerate(counts):
            lengths = self._words(self._lengths_at + number)
            offsets = np.zeros(len(lengths) + 1, np.int64)
            np.cumsum(np.maximum(lengths, 0), out=offsets[1:])
            runs.append(np.diff(offsets[np.concatenate(([0], np.cumsum(count)))]))
            self._known.append(lengths >= 0)
            self._offsets.append(offsets)
        self._texts = _Runs(self.data, text_starts, np.stack(runs, axis=1))

    def _words(self, run: int) -> np.ndarray:
        return np.frombuffer(self._fixed.column(run), "<i4")

    def _array(self, index: int, known: np.ndarray | None, values: pa.Buffer) -> pa.Array:
        nulls = None if known is None else _bitmap(known)
        kind = self.layout.schema.field(index).type
        return pa.Array.from_buffers(kind, self.count, [nulls, values])

    def numbers(self) -> dict[int, pa.Array]:
        """Columns of fixed width, by index."""
        layout, found = self.layout, {}
        nulls = [NULL_DOUBLE_BITS if code == "d" else NULL_WIDE for code in layout.wide_codes]
        columns = [(index, "<i8", null) for index, null in zip(layout.wide, nulls, strict=True)]
        columns += [(index, "<i4", NULL_NARROW) for index in layout.narrow]
        for run, (index, kind, null) in enumerate(columns):
            values = self._fixed.column(run)
            known = None
            if layout.schema.field(index).nullable:
                known = np.frombuffer(values, kind) != null
            found[index] = self._array(index, known, values)
        for run, index in enumerate(layout.flags, start=self._flags_at):
            flags = np.frombuffer(self._fixed.column(run), "u1")
            bits = pa.py_buffer(np.packbits(flags, bitorder="little"))
            found[index] = self._array(index, None, bits)
        return found

    def _text(self, number: int) -> pa.Array:
        """Text column, or texts inside of lists and maps, by place in the block."""
        known, offsets, values = (
            self._known[number],
            self._offsets[number],
            self._texts.column(number),
        )
        big = offsets[-1] >= INT32_END
        kind, width = (pa.large_string(), np.int64) if big else (pa.string(), np.int32)
        buffers = [_bitmap(known), pa.py_buffer(offsets.astype(width, copy=False)), values]
        return pa.Array.from_buffers(kind, len(known), buffers).cast(pa.string())

    def texts(self) -> dict[int, pa.Array]:
        """Columns of text, by index."""
        return {index: self._text(number) for number, index in enumerate(self.layout.texts)}

    def lists_and_maps(self) -> dict[int, pa.Array]:
        """Lists and maps, by index."""
        layout, found = self.layout, {}
        number = len(layout.texts)
        for run, index in enumerate(self.nested, start=self._lengths_at - len(self.nested)):
            kind = layout.schema.field(index).type
            counts = self._words(run)
            values = self._text(number)
            number += 1
            if pa.types.is_map(kind):
                fields = [kind.key_field, kind.item_field]
                values = pa.StructArray.from_arrays([values, self._text(number)], fields=fields)
                number += 1
            if (counts < 0).all():
                found[index] = pa.nulls(len(counts), kind)
                continue
            offsets = np.zeros(len(counts) + 1, np.int32)
            np.cumsum(np.maximum(counts, 0), out=offsets[1:])
            buffers = [_bitmap(counts >= 0), pa.py_buffer(offsets)]
            found[index] = pa.Array.from_buffers(kind, len(counts), buffers, children=[values])
        return found


def decode(data: Any, blocks: Iterable[Block]) -> pa.Table:
    """Rows of whole blocks of one table, at least one, as its Arrow schema has them, in the order
    in which they were written.

    data: the bytes-like that `recover` looked at; the table keeps nothing of it.
    """
    reader = _Reader(data, list(blocks))
    found = {**reader.numbers(), **reader.texts(), **reader.lists_and_maps()}
    schema = reader.layout.schema
    return pa.Table.from_arrays([found[index] for index in range(len(schema))], schema=schema)
