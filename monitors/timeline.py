"""Rows on disk, in the order of their time: those of a span, or of some moments, are found without
reading the others.

New rows wait in memory as pieces, each sorted by time, and become files of at most `piece_rows`
rows; small files become larger ones. A few columns change after a row was written (`changing`, null
at first): they lie in a second file beside the piece, which is replaced as a whole. Files are never
edited: what is saved stays readable until something newer is.
"""

import uuid
from collections import OrderedDict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from monitors import intake, key_index

Ints = NDArray[np.int64]

PIECE_ROWS = 1 << 18
GROUP_ROWS = 1 << 15
FRESH_PIECES = 32
FAN = 8  # small pieces that become one
TIMES_IN_MEMORY = 8


@dataclass(slots=True, eq=False)
class Piece:
    """Some rows in order of time. first, last: moments in microseconds; name, changes: files of the
    columns that stay and of those that change, None where these are all null; frame: the rows,
    while they are in memory alone."""

    rows: int
    first: int
    last: int
    name: str | None = None
    changes: str | None = None
    frame: pl.DataFrame | None = None

    def overlaps(self, start: int, end: int) -> bool:
        return self.first < end and self.last >= start


@dataclass(frozen=True, slots=True)
class Found:
    """Some rows of a piece: where they stand in it, and their columns."""

    piece: Piece
    positions: Ints
    rows: pl.DataFrame


class Timeline:
    """Rows of one kind below a folder. time: the column that orders them, without nulls; changing:
    the columns that change, and their types."""

    def __init__(
        self,
        folder: Path,
        time: str,
        changing: Mapping[str, Any],
        pieces: Sequence[Sequence[Any]] = (),
        piece_rows: int = PIECE_ROWS,
    ) -> None:
        self.piece_rows = piece_rows
        self.folder = folder
        self.time = time
        self.changing = dict(changing)
        self.pieces = [Piece(*one) for one in pieces]
        self.saved = self.files
        self.times: OrderedDict[str, Ints] = OrderedDict()

    @property
    def height(self) -> int:
        return sum(piece.rows for piece in self.pieces)

    @property
    def files(self) -> set[str]:
        """Names of the files that hold it."""
        both = {name for piece in self.pieces for name in (piece.name, piece.changes)}
        return {name for name in both if name is not None}

    def save(self) -> list[list[Any]]:
        """Put everything into files; gives what makes it again."""
        self.spill()
        return [[p.rows, p.first, p.last, p.name, p.changes] for p in self.pieces]

    # --- adding ------------------------------------------------------------------------------

    def add(self, frame: pl.DataFrame) -> None:
        """Rows with their time and the columns that change."""
        if frame.is_empty():
            return
        self.pieces.append(self._in_memory(frame))
        fresh = [piece for piece in self.pieces if piece.frame is not None]
        if sum(piece.rows for piece in fresh) >= self.piece_rows:
            self.spill()
        elif len(fresh) >= FRESH_PIECES:
            self._replace(fresh, [self._in_memory(self._together(fresh))])

    def spill(self) -> None:
        """Put what is in memory into files, and small files together."""
        fresh = [piece for piece in self.pieces if piece.frame is not None]
        if fresh:
            self._replace(fresh, self._written(self._together(fresh)))
        for size in (self.piece_rows // 8, self.piece_rows // 2):
            small = [piece for piece in self.pieces if piece.rows < size]
            if len(small) >= FAN:
                self._replace(small, self._written(self._together(small)))

    def _in_memory(self, frame: pl.DataFrame) -> Piece:
        ordered = frame.sort(self.time, maintain_order=True)
        moments = ordered[self.time].dt.epoch("us")
        return Piece(ordered.height, moments[0], moments[-1], frame=ordered)

    def _together(self, pieces: Sequence[Piece]) -> pl.DataFrame:
        parts = [self._read(piece, 0, piece.rows, None) for piece in pieces]
        return pl.concat(parts, how="diagonal_relaxed").sort(self.time, maintain_order=True)

    def _written(self, ordered: pl.DataFrame) -> list[Piece]:
        made = []
        count = -(-ordered.height // self.piece_rows)
        step = -(-ordered.height // count)
        for start in range(0, ordered.height, step):
            piece = self._in_memory(ordered.slice(start, step))
            assert piece.frame is not None
            piece.name = self._write(piece.frame.drop(list(self.changing)))
            piece.changes = self._write_changes(piece.frame.select(list(self.changing)))
            piece.frame = None
            made.append(piece)
        return made

    def _write_changes(self, frame: pl.DataFrame) -> str | None:
        nothing = all(column.null_count() == frame.height for column in frame)
        return None if nothing else self._write(frame)

    def _write(self, frame: pl.DataFrame) -> str:
        name = f"rows-{uuid.uuid4().hex}.parquet"
        # Dictionaries of what is different in each row would be made in vain.
        few = [
            column.name
            for column in frame
            if column.dtype in (pl.String, pl.Int32) and not column.name.endswith("request_id")
        ]
        pq.write_table(
            frame.to_arrow(compat_level=pl.CompatLevel.oldest()),
            self.folder / name,
            row_group_size=GROUP_ROWS,
            compression="zstd",
            compression_level=1,
            use_dictionary=few,
            write_statistics=False,
        )
        return name

    def _replace(self, old: Sequence[Piece], new: Sequence[Piece]) -> None:
        gone = {id(piece) for piece in old}
        at = next(k for k, piece in enumerate(self.pieces) if id(piece) in gone)
        rest = [piece for piece in self.pieces if id(piece) not in gone]
        self.pieces = [*rest[:at], *new, *rest[at:]]
        for piece in old:
            self._drop(piece.name)
            self._drop(piece.changes)

    def _drop(self, name: str | None) -> None:
        """A file that is no longer needed; one that is saved goes when it is so no more."""
        if name is not None and name not in self.saved:
            (self.folder / name).unlink(missing_ok=True)

    # --- finding -----------------------------------------------------------------------------

    def between(
        self, start: int, end: int, columns: Collection[str] | None = None
    ) -> Iterator[pl.DataFrame]:
        """Rows of a span of moments [start, end), piece by piece; columns that a piece lacks are
        not there."""
        for piece in self.pieces:
            if piece.overlaps(start, end):
                times = self._times(piece)
                low, high = (int(at) for at in np.searchsorted(times, [start, end]))
                if low < high:
                    yield self._read(piece, low, high, columns)

    def at(self, moments: Ints, columns: Collection[str] | None = None) -> Iterator[Found]:
        """Rows of some moments (in order, each once), piece by piece."""
        for piece in list(self.pieces):
            near = slice(*np.searchsorted(moments, [piece.first, piece.last + 1]))
            wanted = moments[near]
            if not len(wanted):
                continue
            times = self._times(piece)
            left = np.searchsorted(times, wanted)
            count = np.searchsorted(times, wanted, "right") - left
            positions = key_index.spread(left, count)
            if len(positions):
                low, high = int(positions[0]), int(positions[-1]) + 1
                yield Found(
                    piece, positions, self._read(piece, low, high, columns)[positions - low]
                )

    def _times(self, piece: Piece) -> Ints:
        if piece.name is None:
            assert piece.frame is not None
            return piece.frame[self.time].dt.epoch("us").to_numpy()
        if piece.name not in self.times:
            found = self._read(piece, 0, piece.rows, [self.time])[self.time]
            self.times[piece.name] = found.dt.epoch("us").to_numpy()
            while len(self.times) > TIMES_IN_MEMORY:
                self.times.popitem(last=False)
        self.times.move_to_end(piece.name)
        return self.times[piece.name]

    def _read(
        self, piece: Piece, low: int, high: int, columns: Collection[str] | None
    ) -> pl.DataFrame:
        if piece.frame is not None:
            names = [n for n in piece.frame.columns if columns is None or n in columns]
            return piece.frame.slice(low, high - low).select(names)
        assert piece.name is not None
        wanted = [name for name in self.changing if columns is None or name in columns]
        if columns is not None and len(wanted) == len(columns):
            frame = pl.DataFrame(height=high - low)
        else:
            frame = _rows_of(self.folder / piece.name, low, high, columns)
        if piece.changes is None:
            return frame.with_columns(
                pl.lit(None, self.changing[name]).alias(name) for name in wanted
            )
        return frame.with_columns(_rows_of(self.folder / piece.changes, low, high, wanted))

    # --- changing ----------------------------------------------------------------------------

    def change(self, piece: Piece, positions: Ints, values: pl.DataFrame) -> None:
        """Replace the columns that change at some positions of a piece."""
        before = self._read(piece, 0, piece.rows, [*self.changing])
        source = np.arange(piece.rows)
        source[positions] = piece.rows + np.arange(len(positions))
        after = pl.concat([part.select(list(self.changing)) for part in (before, values)])[source]
        if piece.frame is not None:
            piece.frame = piece.frame.with_columns(after)
            return
        old, piece.changes = piece.changes, self._write_changes(after)
        self._drop(old)


def _rows_of(path: Path, low: int, high: int, columns: Collection[str] | None) -> pl.DataFrame:
    """Some rows of a file. Raises ReadAnew where it is gone or not whole."""
    try:
        with pq.ParquetFile(path) as file:
            wanted = None
            if columns is not None:
                wanted = [name for name in file.schema_arrow.names if name in columns]
            first = low // GROUP_ROWS
            groups = list(range(first, -(-high // GROUP_ROWS)))
            table = file.read_row_groups(groups, wanted)
    except (OSError, pa.ArrowException):
        raise intake.ReadAnew("a file of the monitor's own is gone or not whole") from None
    frame = pl.from_arrow(table)
    assert isinstance(frame, pl.DataFrame)
    return frame.slice(low - first * GROUP_ROWS, high - low)
