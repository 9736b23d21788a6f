"""An even sample of a table's rows, in bounded memory: what a report is made of.

Each row draws a number from a generator with a fixed seed, and the rows with the smallest numbers
are kept: the same rows for the same files, and every row with the same chance.
"""

import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import deltalake
import numpy as np
import polars as pl
import pyarrow as pa

from capture import errors
from monitors import intake, slices, tables

SEED = 20_24
DRAWN = "__drawn"
STATISTICS_ROUNDED = timedelta(milliseconds=2)  # a file tells its times in whole milliseconds

Span = tuple[datetime, datetime]


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which rows: those in [start, end) of a column of times, of one version, of one slice; shadow
    copies, which nobody was answered with, never. None: all."""

    time_column: str | None = None
    span: Span | None = None
    version: tuple[str, str] | None = None  # column, value
    slice: slices.Slice | None = None

    def of(self, frame: pl.DataFrame) -> pl.DataFrame:
        """The wanted rows. Raises InvalidParameter where they cannot be told."""
        if "shadow" in frame.columns and frame.schema["shadow"] == pl.Boolean:
            frame = frame.filter(~pl.col("shadow").fill_null(False))
        if self.span is not None:
            if self.time_column is None or self.time_column not in frame.columns:
                return frame.clear()
            times = intake.as_times(frame[self.time_column])
            inside = (times >= self.span[0]) & (times < self.span[1])
            frame = frame.filter(inside.fill_null(False))
        if self.version is not None:
            column, value = self.version
            if column not in frame.columns:
                return frame.clear()
            frame = frame.filter(pl.col(column).cast(pl.String) == value)
        if self.slice is not None:
            text, value = self.slice
            labels = slices.labels(frame, slices.parse([text], frame.columns))
            frame = frame.filter((labels[text] == value).fill_null(False))
        return frame


@dataclass(frozen=True, slots=True)
class Sample:
    """rows: at most as many as asked for; found: how many there are in all."""

    rows: pl.DataFrame
    found: int


def sample(uri: str, wanted: Wanted, most_rows: int, step: Callable[[int, int], None]) -> Sample:
    """Rows of a Delta table. step: is told how many files of how many were read.

    Raises DoesNotExist (no table), Unavailable, InvalidParameter."""
    table = tables.open_table(uri)
    if table is None:
        raise errors.DoesNotExist("The table to take rows from does not exist.")
    paths = _files(table, wanted)
    files = tables.filesystem(uri)
    generator = np.random.default_rng(SEED)
    kept, found = pl.DataFrame(), 0
    for number, path in enumerate(paths):
        step(number, len(paths))
        try:
            rows = wanted.of(intake.read_file(files, path))
        except intake.ReadAnew:
            raise errors.Unavailable(
                "The table was rewritten while it was read; try again."
            ) from None
        found += rows.height
        rows = rows.with_columns(pl.Series(DRAWN, generator.random(rows.height)))
        kept = rows if kept.is_empty() else pl.concat([kept, rows], how="diagonal_relaxed")
        kept = kept.bottom_k(most_rows, by=DRAWN)
    step(len(paths), len(paths))
    return Sample(kept.drop(DRAWN, strict=False), found)


def _files(table: deltalake.DeltaTable, wanted: Wanted) -> list[str]:
    """The data files that may hold wanted rows, as far as their statistics tell."""
    actions = pl.DataFrame(pa.table(table.get_add_actions(flatten=True)))
    if wanted.span is not None:
        least, most = f"min.{wanted.time_column}", f"max.{wanted.time_column}"
        if isinstance(actions.schema.get(least), pl.Datetime) and most in actions.columns:
            lows, highs = intake.as_times(actions[least]), intake.as_times(actions[most])
            start, end = (moment.astimezone(UTC) for moment in wanted.span)
            outside = (highs < start - STATISTICS_ROUNDED) | (lows > end + STATISTICS_ROUNDED)
            actions = actions.filter(~outside.fill_null(False))
    return sorted(urllib.parse.unquote(path) for path in actions["path"].to_list())
