"""Which window and which slice a row of a batch belongs to. Pure.

Windows: so many rows, one value of a column, or a stretch of time; without any, one window of all.
A batch is cut into runs of one window each, which keep the order of the rows.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from monitors import slices, windows

Key = Any  # number of the window, value of its column, or start of its time: comparable


@dataclass(frozen=True, slots=True)
class Windowing:
    """At most one of the three; granularity belongs to time_column."""

    rows: int | None = None
    column: str | None = None
    time_column: str | None = None
    granularity: str = "1 day"

    @property
    def columns(self) -> list[str]:
        """What must be read to tell windows apart."""
        return [name for name in (self.column, self.time_column) if name is not None]

    @property
    def by_position(self) -> bool:
        """Windows follow one another in the file: one is complete when the next begins."""
        return not self.columns

    def parts(self, batch: pa.RecordBatch, first_row: int) -> Iterator[tuple[Key, pa.RecordBatch]]:
        """The batch by window; rows without a value or time are in none."""
        if self.columns:
            yield from grouped(batch, self._keys(batch))
            return
        size = self.rows or max(1, first_row + batch.num_rows)
        at = 0
        while at < batch.num_rows:
            number = (first_row + at) // size
            until = min(batch.num_rows, (number + 1) * size - first_row)
            yield number, batch.slice(at, until - at)
            at = until

    def _keys(self, batch: pa.RecordBatch) -> pl.Series:
        values = series(batch, self.columns[0])
        if self.time_column is not None:
            from monitors import intake  # loads deltalake, which nothing else here needs

            return windows.assign(intake.as_times(values), self.granularity)
        if values.dtype.is_float():
            whole = values.cast(pl.Int64, strict=False)
            if (whole.cast(pl.Float64) == values).all():
                return whole
        return values

    def shown(self, key: Key, rows: int) -> Any:
        """How a window is named: "[0:4999]", the value, or [start, end]."""
        if self.time_column is not None:
            end = windows.end_of(key, self.granularity)
            return [moment.isoformat().replace("+00:00", "Z") for moment in (key, end)]
        if self.column is not None:
            return key.isoformat() if isinstance(key, (date, datetime)) else key
        first_row = key * (self.rows or 0)
        return f"[{first_row}:{first_row + rows - 1}]" if rows else "[]"


def grouped(batch: pa.RecordBatch, keys: pl.Series) -> Iterator[tuple[Key, pa.RecordBatch]]:
    """The rows of each key, in order of the keys; those without one are left out."""
    codes = keys.rank("dense").fill_null(0).to_numpy()
    first, last = (int(codes.min()), int(codes.max())) if len(codes) else (0, 0)
    if first == last:
        if first > 0:
            yield keys[0], batch
        return
    order = np.argsort(codes, kind="stable")
    sorted_batch = batch.take(pl.Series(order).to_arrow())  # pyarrow's own would load pandas
    starts = np.flatnonzero(np.r_[True, np.diff(codes[order]) != 0])
    for start, end in zip(starts, [*starts[1:], len(codes)], strict=True):
        if codes[order[start]] > 0:
            yield keys[int(order[start])], sorted_batch.slice(start, end - start)


def series(batch: pa.RecordBatch, name: str) -> pl.Series:
    """A column; a dictionary of texts becomes texts."""
    column = batch.column(name)
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    return pl.Series(name, column)


def frame(batch: pa.RecordBatch, columns: Sequence[str]) -> pl.DataFrame:
    """Some columns as they are."""
    return pl.DataFrame([series(batch, name) for name in columns])


@dataclass(frozen=True, slots=True)
class Slicing:
    """Slicing expressions by their text, and which of their values count."""

    expressions: Mapping[str, pl.Expr]
    values: Mapping[str, frozenset[str]]

    @property
    def columns(self) -> list[str]:
        """What must be read to tell slices apart."""
        return slices.columns_of(self.expressions)

    def parts(self, batch: pa.RecordBatch) -> Iterator[tuple[slices.Slice, pa.RecordBatch]]:
        """The rows of each slice that counts."""
        for text, labels in self._labels(batch).items():
            for value, part in grouped(batch, labels):
                if value in self.values[text]:
                    yield (text, value), part

    def _labels(self, batch: pa.RecordBatch) -> dict[str, pl.Series]:
        return slices.labels(frame(batch, self.columns), self.expressions)

    def heaviest(self, batches: Callable[[Sequence[str]], Iterator[pa.RecordBatch]]) -> "Slicing":
        """With the 100 most frequent values of each expression; batches: gives the rows to look
        at, some columns of them."""
        seen: dict[str, Counter[str]] = {text: Counter() for text in self.expressions}
        if self.expressions:
            for batch in batches(self.columns):
                for text, labels in self._labels(batch).items():
                    seen[text].update(slices.counted(labels))
        kept = {text: frozenset(slices.heaviest(rows)) for text, rows in seen.items()}
        return Slicing(self.expressions, kept)
