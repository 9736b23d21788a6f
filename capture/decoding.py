"""Blocks of the write-ahead log -> Arrow, many at once; blocks.py describes their format. Pure."""

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa

from capture import blocks, encoding

# Fields of a block's header, which are 4-byte words as far as the text bytes.
_ROWS, _COLUMNS, _TEXTS, _ELEMENTS, _PAIRS, _TEXT_BYTES = range(3, 9)

# A block's columns lie one after another, and so do the blocks of a segment: its bytes are an array
# of runs, and a column is the same run of every block. Arrow gathers those in one call, whatever is
# in them; numpy does the rest. Nothing is done per row or per block.


class _Runs:
    """Runs of bytes that lie one after another in each of several blocks. lengths: shape (blocks,
    runs), in bytes; starts: shape (blocks,), where the first run of each block begins."""

    def __init__(self, data: pa.Buffer, starts: np.ndarray, lengths: np.ndarray) -> None:
        count, runs = lengths.shape
        offsets = np.empty((count, runs + 1), np.int64)
        offsets[:, 0] = starts
        np.cumsum(lengths, axis=1, out=offsets[:, 1:])
        offsets[:, 1:] += starts[:, None]
        # What lies between two blocks becomes a run that nobody asks for.
        buffers = [None, pa.py_buffer(offsets), data]
        self._all = pa.Array.from_buffers(pa.large_binary(), offsets.size - 1, buffers)
        self._first = np.arange(count) * (runs + 1)

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
        known, offsets, values = (
            self._known[number],
            self._offsets[number],
            self._texts.column(number),
        )
        big = offsets[-1] >= blocks.INT32_END
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


def decode(data: Any, found: Iterable[blocks.Block]) -> pa.Table:
    """Rows of whole blocks of one table, at least one, as its Arrow schema has them, in the order
    in which they were written.

    data: the bytes-like that `blocks.recover` looked at; the table keeps nothing of it.
    """
    reader = _Reader(*_by_column(data, list(found)))
    columns = {**reader.numbers(), **reader.texts(), **reader.lists_and_maps()}
    schema = reader.layout.schema
    return pa.Table.from_arrays([columns[index] for index in range(len(schema))], schema=schema)


def _by_column(data: Any, found: list[blocks.Block]) -> tuple[Any, list[blocks.Block]]:
    """The same rows in blocks that hold columns: packed ones beside each other become one block."""
    if not any(block.packed for block in found):
        return data, found
    view = memoryview(data)
    parts: list[Any] = []
    for packed, together in groupby(found, key=lambda block: block.packed):
        if packed:
            group = [row for block in together for row in _unpacked(view, block)]
            parts += encoding.by_column(found[0].table, found[0].kind, group)
        else:
            parts += [view[block.offset : block.offset + block.length] for block in together]
    fresh = b"".join(parts)
    return fresh, blocks.recover(fresh).blocks


def _unpacked(view: memoryview, block: blocks.Block) -> list[list[Any]]:
    head = blocks.BLOCK.unpack_from(view, block.offset)
    start = block.offset + head[_COLUMNS]
    rows: list[list[Any]] = msgspec.msgpack.decode(view[start : start + head[_TEXT_BYTES]])
    return rows
