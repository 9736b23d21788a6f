"""Bytes of the write-ahead log: blocks of rows, and the header of the segments they lie in. Pure.

A block holds one group of rows of one table. It is made in encoding.py or exchanges.py, taken apart
in decoding.py, and begins with

    magic, CRC of all that follows, length, rows, kind, ...   40 bytes, little-endian as everything
    table name

Many rows follow column by column, so that reading them back takes a few array operations and no
work per row:

    8-byte columns | 4-byte columns | counts of lists and maps | length of each text (-1: null)
    1-byte columns
    all texts joined: column by column, then elements of lists, keys and values of maps

Each part begins at a multiple of 8, also within a segment, so that the reader may look at the bytes
as an array of integers. A null in a fixed-width column is that type's smallest integer, or one
certain NaN. A few rows follow as they are, as one MessagePack array of arrays: then requests are
few, the committer has time, and what counts is what each costs the gateway. Payload rows come from
the gateway in a third form, as exchanges, of which the committer makes the columns: exchanges.py.

A segment is a header of 64 bytes and blocks until its end, or until the first bytes that are no
whole block: the tail that a crash tore off, or what the file held in an earlier life, for files are
written again (wal_files.py). The CRC of a block begins with that of its segment's header, so that a
block of another segment never counts as one of this.
"""

import hashlib
import struct
from collections.abc import Callable
from typing import Any, NamedTuple
from uuid import UUID

import pyarrow as pa
from zlib_ng.zlib_ng import crc32  # zlib's, several times as fast

from capture import rows

FORMAT_VERSION = 4
READABLE_VERSIONS = (2, 3, 4)  # 3 is 4 with CRCs that begin with 0, 2 is 3 without exchanges
LAST_UNSEEDED_VERSION = 3
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
SIGNED_FROM = 8  # magic and CRC come before
MOST_NAMES = 1024
# magic, crc, length, rows, start of the columns, texts, list elements, map pairs, text bytes,
# kind, length of the table name. The "text bytes" of packed rows are the bytes that they take, the
# "list elements" of exchanges those of their contexts.
BLOCK = struct.Struct("<4sIIIIIIIIHH")
AFTER_CRC = struct.Struct("<IIIIIIIHH")
# In the field of the kind: the rows follow as they are, or as exchanges.
PACKED, EXCHANGES = 1 << 15, 1 << 14

PADDINGS = [bytes(size) for size in range(8)]  # to the next multiple of 8

NULL_NARROW, NULL_WIDE = -(1 << 31), -(1 << 63)
NULL_DOUBLE_BITS = 0x7FF8_0000_0000_07A2
NULL_DOUBLE = struct.unpack("<d", struct.pack("<Q", NULL_DOUBLE_BITS))[0]
INT32_END = 1 << 31


class NotASegment(Exception):
    """The bytes do not begin with a whole segment header; no row can be in them."""


class ForeignSegment(Exception):
    """A segment of another format version or of other columns: its rows cannot be read here."""


class Header(NamedTuple):
    """Whose segment it is, and what the CRCs of its blocks begin with. The app id is that of the
    Delta transactions, one per incarnation."""

    app_id: UUID
    sequence: int
    seed: int


class Block(NamedTuple):
    """Where a whole block lies, and what is in it. form: 0 (columns), PACKED or EXCHANGES."""

    offset: int
    length: int
    table: str
    kind: str
    rows: int
    form: int


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


def segment_header(app_id: UUID, sequence: int) -> tuple[bytes, int]:
    """First 64 bytes of a segment, and what the CRCs of its blocks begin with."""
    text = _SEGMENT.pack(_SEGMENT_MAGIC, FORMAT_VERSION, app_id.bytes, sequence, SCHEMA_HASH)
    text += bytes(HEADER_BYTES - 4 - len(text))
    seed = crc32(text)
    return text + seed.to_bytes(4, "little"), seed


def framed(
    table: str,
    code: int,
    count: int,
    packed: bytes,
    texts: int = 0,
    elements: int = 0,
    pairs: int = 0,
    text_bytes: int = 0,
) -> bytes:
    """A block of `count` rows that are packed, still to be `signed`; code: of their kind, and of
    their form. The rest: fields of BLOCK."""
    name, start, name_bytes = known_names.get(table) or named(table)
    size = start + len(packed)
    padding = PADDINGS[-size % 8]
    front = AFTER_CRC.pack(
        size + len(padding), count, start, texts, elements, pairs, text_bytes, code, name_bytes
    )
    return b"".join((front, name, packed, padding))


def signed(block: bytes, seed: int = 0) -> bytes:
    """A block as a segment has it whose CRCs begin with `seed`."""
    return b"".join((BLOCK_MAGIC, crc32(block, seed).to_bytes(4, "little"), block))


def unsigned(data: Any, block: Block) -> bytes:
    """A block of a segment as it was before it was signed."""
    return bytes(data[block.offset + SIGNED_FROM : block.offset + block.length])


known_names: dict[str, tuple[bytes, int, int]] = {}


def named(table: str) -> tuple[bytes, int, int]:
    """A table's name, padded; where the rows start behind it; its length."""
    name = table.encode()
    padded = name + PADDINGS[-len(name) % 8]
    if len(known_names) >= MOST_NAMES:
        known_names.clear()
    found = known_names[table] = padded, BLOCK.size + len(padded), len(name)
    return found


# Reading ---------------------------------------------------------------------------------------


def read_header(data: Any) -> Header:
    """Header of a segment (bytes-like). Raises NotASegment, ForeignSegment."""
    head = bytes(memoryview(data)[:HEADER_BYTES])
    if len(head) < HEADER_BYTES or head[:8] != _SEGMENT_MAGIC:
        raise NotASegment(f"{len(head)} bytes are no segment header.")
    crc = int.from_bytes(head[-4:], "little")
    if crc32(head[:-4]) != crc:
        raise NotASegment("The checksum of the segment header is wrong.")
    _, version, app_id, sequence, schema_hash = _SEGMENT.unpack_from(head)
    if version not in READABLE_VERSIONS:
        raise ForeignSegment(f"Segment of format {version}; this reads {READABLE_VERSIONS}.")
    if schema_hash != SCHEMA_HASH:
        raise ForeignSegment("Segment of rows with other columns than those of this version.")
    return Header(UUID(bytes=app_id), sequence, crc if version > LAST_UNSEEDED_VERSION else 0)


def read_segment(data: Any) -> tuple[Header, Recovered]:
    """Header and whole blocks of a segment (bytes-like). Raises NotASegment, ForeignSegment."""
    header = read_header(data)
    return header, recover(data, HEADER_BYTES, header.seed)


def recover(data: Any, start: int = 0, seed: int = 0) -> Recovered:
    """The whole blocks of bytes-like `data` from `start` on, up to the first that is torn. seed:
    what their CRCs begin with."""
    view = memoryview(data)
    size, position = len(view), start
    names: dict[bytes, str] = {}
    found: list[Block] = []
    while position + BLOCK.size <= size:
        head = BLOCK.unpack_from(view, position)
        magic, crc, length, count, *_, code, name_length = head
        if magic != BLOCK_MAGIC or length < BLOCK.size or position + length > size:
            break
        form = code & (PACKED | EXCHANGES)
        kind = code ^ form
        rest = view[position + SIGNED_FROM : position + length]
        if crc32(rest, seed) != crc or kind >= len(_KINDS):
            break
        name = bytes(view[position + BLOCK.size : position + BLOCK.size + name_length])
        table = names.get(name) or names.setdefault(name, name.decode())
        found.append(Block(position, length, table, _KINDS[kind], count, form))
        position += length
    return Recovered(found, position)
