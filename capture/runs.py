"""Runs of bytes gathered from many blocks, and Arrow arrays made of them. Pure.

A block's columns lie one after another: a column is the same run of every block, joined. numpy does
the rest. Nothing is done per row.
"""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from capture import blocks


class Runs:
    """Runs of bytes that lie one after another in each of several blocks. lengths: shape (blocks,
    runs), in bytes; starts: shape (blocks,), where the first run of each block begins."""

    def __init__(self, data: pa.Buffer, starts: np.ndarray, lengths: np.ndarray) -> None:
        self._data = memoryview(data)
        self._ends = starts[:, None] + np.cumsum(lengths, axis=1)
        self._starts = self._ends - lengths

    def column(self, run: int) -> pa.Buffer:
        """A run of all blocks, joined."""
        places = zip(self._starts[:, run].tolist(), self._ends[:, run].tolist(), strict=True)
        # Arrow's `take` needs no Python for each of them, and costs several times as much.
        pieces = [self._data[start:end] for start, end in places if end > start]
        return pa.py_buffer(b"".join(pieces))


def bitmap(known: np.ndarray) -> pa.Buffer | None:
    """Which values are known, as Arrow has it; None: all of them."""
    if known.all():
        return None
    return pa.py_buffer(np.packbits(known, bitorder="little"))


class Lengths:
    """Lengths of texts that lie one after another, in bytes; -1: null."""

    def __init__(self, lengths: np.ndarray) -> None:
        self.known = lengths >= 0
        self.offsets = np.zeros(len(lengths) + 1, np.int64)
        np.cumsum(np.maximum(lengths, 0), out=self.offsets[1:])

    def sums(self, counts: np.ndarray) -> np.ndarray:
        """Bytes of the first counts[0] texts, of the next counts[1], ..."""
        return np.diff(self.offsets[np.concatenate(([0], np.cumsum(counts)))])

    def array(self, values: pa.Buffer | None) -> pa.Array:
        """The texts, as `binary`, or as `large_binary` from 2 GiB on."""
        big = self.offsets[-1] >= blocks.INT32_END
        kind, width = (pa.large_binary(), np.int64) if big else (pa.binary(), np.int32)
        buffers = [bitmap(self.known), pa.py_buffer(self.offsets.astype(width, copy=False)), values]
        return pa.Array.from_buffers(kind, len(self.known), buffers)


def texts(values: Sequence[bytes | None]) -> pa.Array:
    """Texts that are UTF-8 as an array of them."""
    lengths = np.fromiter((-1 if v is None else len(v) for v in values), np.int64, len(values))
    return Lengths(lengths).array(pa.py_buffer(b"".join(filter(None, values)))).cast(pa.string())
