"""Blocks of the write-ahead log -> Arrow, many at once; blocks.py describes their format. Pure."""

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa

from capture import blocks, encoding, exchange_columns, runs

# Fields of a block's header, which are 4-byte words as far as the text bytes.
_ROWS, _COLUMNS, _TEXTS, _ELEMENTS, _PAIRS, _TEXT_BYTES = range(3, 9)
_unpack = msgspec.msgpack.decode


class _Reader:
    """Blocks of one kind in one buffer, taken apart column by column."""

    def __init__(self, data: Any, found: Sequence[blocks.Block]) -> None:
        self.layout = layout = blocks.LAYOUTS[found[0].kind]
        self.data = pa.py_buffer(data)
        words = np.frombuffer(data, "<i4", self.data.size // 4)
        offsets = np.array([block.offset for block in found], np.int64)
        heads = words[offsets[:, None] // 4 + np.arange(blocks.BLOCK.size // 4)].astype(np.int64)
        self.rows = heads[:, _ROWS]
        self.count = int(self.rows.sum())
        self.nested = layout.lists + layout.maps
        self.inside = [heads[:, _ELEMENTS]] if layout.lists else []
        self.inside += [heads[:, _PAIRS]] * 2 if layout.maps else []
        self._lengths_at = len(layout.wide) + len(layout.narrow) + len(self.nested)
        fixed = [8] * len(layout.wide) + [4] * (self._lengths_at - len(layout.wide))
        sizes = [self.rows * width for width in [*fixed, *[4] * len(layout.texts)]]
        sizes += [inside * 4 for inside in self.inside]
        sizes.append(-sum(sizes) % 8)
        self._flags_at = len(sizes)
        sizes += [self.rows] * len(layout.flags)
        sizes.append(-len(layout.flags) * self.rows % 8)
        lengths = np.stack(sizes, axis=1)
        starts = offsets + heads[:, _COLUMNS]
        self._fixed = runs.Runs(self.data, starts, lengths)
        self._read_lengths(starts + lengths.sum(axis=1))

    def _read_lengths(self, text_starts: np.ndarray) -> None:
        """Lengths of all texts, and with them where each run of text lies."""
        counts = [self.rows] * len(self.layout.texts) + self.inside
        self._lengths = [
            runs.Lengths(self._words(self._lengths_at + number)) for number in range(len(counts))
        ]
        sizes = [known.sums(count) for known, count in zip(self._lengths, counts, strict=True)]
        self._texts = runs.Runs(self.data, text_starts, np.stack(sizes, axis=1))

    def _words(self, run: int) -> np.ndarray:
        return np.frombuffer(self._fixed.column(run), "<i4")

    def _array(self, index: int, known: np.ndarray | None, values: pa.Buffer) -> pa.Array:
        nulls = None if known is None else runs.bitmap(known)
        kind = self.layout.schema.field(index).type
        return pa.Array.from_buffers(kind, self.count, [nulls, values])

    def numbers(self) -> dict[int, pa.Array]:
        """Columns of fixed width, by index."""
        layout, found = self.layout, {}
        nulls = [
            blocks.NULL_DOUBLE_BITS if code == "d" else blocks.NULL_WIDE
            for code in layout.wide_codes
        ]
        columns = [(index, "<i8", null) for index, null in zip(layout.wide, nulls, strict=True)]
        columns += [(index, "<i4", blocks.NULL_NARROW) for index in layout.narrow]
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
        return self._lengths[number].array(self._texts.column(number)).cast(pa.string())

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
            buffers = [runs.bitmap(counts >= 0), pa.py_buffer(offsets)]
            found[index] = pa.Array.from_buffers(kind, len(counts), buffers, children=[values])
        return found


def decode(data: Any, found: Iterable[blocks.Block]) -> pa.Table:
    """Rows of whole blocks of one table, at least one, in the order in which they were written, as
    its Arrow schema has them, save that text columns may be dictionaries.

    data: the bytes-like that `blocks.recover` looked at; the table keeps nothing of it.
    """
    parts = []
    for is_exchange, together in groupby(found, key=lambda block: block.form == blocks.EXCHANGES):
        taken = exchange_columns.table if is_exchange else _rows
        parts.append(taken(data, list(together)))
    return joined(parts)


def joined(parts: Sequence[pa.Table]) -> pa.Table:
    """Tables of one kind of rows, one after another."""
    if len(parts) == 1:
        return parts[0]
    if any(part.schema != parts[0].schema for part in parts):
        parts = [part.cast(plain(part.schema)) for part in parts]
    return pa.concat_tables(parts).unify_dictionaries()


def plain(schema: pa.Schema) -> pa.Schema:
    """A schema without dictionaries."""
    return pa.schema(
        [
            field.with_type(field.type.value_type) if pa.types.is_dictionary(field.type) else field
            for field in schema
        ]
    )


def _rows(data: Any, found: list[blocks.Block]) -> pa.Table:
    reader = _Reader(*_by_column(data, found))
    columns = {**reader.numbers(), **reader.texts(), **reader.lists_and_maps()}
    schema = reader.layout.schema
    return pa.Table.from_arrays([columns[index] for index in range(len(schema))], schema=schema)


def _by_column(data: Any, found: list[blocks.Block]) -> tuple[Any, list[blocks.Block]]:
    """The same rows in blocks that hold columns: packed ones beside each other become one block."""
    if not any(block.form for block in found):
        return data, found
    view = memoryview(data)
    parts: list[Any] = []
    for packed, together in groupby(found, key=lambda block: block.form):
        if packed:
            group = [row for block in together for row in _unpacked(view, block)]
            parts.append(blocks.signed(encoding.by_column(found[0].table, found[0].kind, group)))
        else:
            parts += [blocks.signed(blocks.unsigned(view, block)) for block in together]
    fresh = b"".join(parts)
    return fresh, blocks.recover(fresh).blocks


def _unpacked(view: memoryview, block: blocks.Block) -> list[Any]:
    head = blocks.BLOCK.unpack_from(view, block.offset)
    start = block.offset + head[_COLUMNS]
    rows: list[Any] = _unpack(view[start : start + head[_TEXT_BYTES]])
    return rows
