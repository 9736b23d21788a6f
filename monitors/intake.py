"""What a refresh reads: new rows of a monitored table and new labels, each data file once.

A row is *due* when its time has come (`until`); rows of the future wait in `Intake.ahead` and are
handed out by the refresh whose `until` reaches them. Maintenance replaces small files by large
ones: in a recorded table, whose rows have ids, only rows of unknown ids are then taken from the new
files; a table without ids is read anew.
"""

import urllib.parse
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import deltalake
import polars as pl
import pyarrow as pa
import pyarrow.fs as pa_fs
import pyarrow.parquet as pq

from capture import errors
from monitors import tables, truth

TIME = truth.TIME
BATCH_ROWS = 128_000
MOST_ROWS = 4 * BATCH_ROWS  # of a file that is read at once
LABEL_ROWS = 1_000_000
FAR_AHEAD = timedelta(days=7)
IDS = ("databricks_request_id", "row_index")


class ReadAnew(Exception):
    """What was taken in no longer fits the table; everything must be read again."""


def as_times(series: pl.Series) -> pl.Series:
    """Aware UTC microseconds; naive = UTC; text is read as ISO 8601; null where it is no time."""
    if series.dtype == pl.String:
        return series.str.to_datetime(time_unit="us", time_zone="UTC", strict=False)
    if series.dtype == pl.Date:
        series = series.cast(pl.Datetime("us"))
    if not isinstance(series.dtype, pl.Datetime):
        return pl.Series(series.name, [None] * len(series), dtype=TIME)
    if series.dtype.time_zone is None:
        series = series.dt.replace_time_zone("UTC")
    return series.dt.convert_time_zone("UTC").cast(TIME)


def story_clock(
    times: pl.Series, before: datetime | None, count: int | None = None
) -> datetime | None:
    """The moment of the newest rows, where the table's own time is not that of receipt.

    Values more than seven days ahead of the rest (99 of 100 rows, and what was known `before`) are
    set aside: one wrong date must not move every window. count: how many times there are, where
    only the newest hundredth of them is given."""
    known = times.drop_nulls()
    if known.is_empty():
        return before
    n = len(known) if count is None else count
    usual = known.sort(descending=True)[n - max(1, (n * 99 + 99) // 100)]
    edge = max(usual, before) if before is not None else usual
    near = known.filter(known <= edge + FAR_AHEAD).max()
    assert isinstance(near, datetime)
    return max(near, before) if before is not None else near


@dataclass(slots=True)
class Taken:
    """How far a table was read; goes into what a monitor keeps."""

    files: set[str] = field(default_factory=set)
    until: datetime | None = None
    clock: datetime | None = None


class Intake:
    """Rows of one Delta table, in the order of its files. Not shared between threads."""

    def __init__(self, uri: str, time_column: str | None, with_ids: bool) -> None:
        self.uri = uri
        self.time_column = time_column
        self.with_ids = with_ids
        self.table = tables.open_table(uri)
        self.taken = Taken()
        self.ahead: pl.DataFrame | None = None
        self.untimed_rows = 0

    @property
    def version(self) -> int:
        """Commit version of the table as it was read; -1: no table yet."""
        return -1 if self.table is None else self.table.version()

    def look(self) -> list[str]:
        """Data files that were not taken yet. Raises ReadAnew."""
        # A new handle each time: maintenance moves commits away that a checkpoint covers, and an
        # old handle would not find its way to the newest one.
        self.table = tables.open_table(self.uri)
        if self.table is None:
            return []
        present = data_files(self.table)
        if not self.taken.files <= present and not self.with_ids:
            raise ReadAnew("files of the table were replaced")
        return sorted(present - self.taken.files)

    def read(
        self, new: Sequence[str], unknown: Callable[[pl.DataFrame], pl.DataFrame]
    ) -> Iterator[pl.DataFrame]:
        """Rows of new files, in batches, with their time in column `__time`. unknown: of some ids
        with that time those whose rows were not taken before; asked where files were replaced."""
        assert self.table is not None
        present = data_files(self.table)
        replaced = not self.taken.files <= present
        batch: list[pl.DataFrame] = []
        rows = 0
        for path in new:
            for frame in self._parts_of(path, unknown if replaced else None):
                batch.append(frame)
                rows += frame.height
                if rows >= BATCH_ROWS:
                    yield self._timed(batch)
                    batch, rows = [], 0
        if batch:
            yield self._timed(batch)
        self.taken.files = (self.taken.files & present) | set(new)

    def _parts_of(
        self, path: str, unknown: Callable[[pl.DataFrame], pl.DataFrame] | None
    ) -> Iterator[pl.DataFrame]:
        files = tables.filesystem(self.uri)
        if unknown is None:
            yield from read_parts(files, path)
            return
        if not self._holds_unknown(files, path, unknown):
            return  # as after most compactions: all rows are those of files that are gone
        for frame in read_parts(files, path):
            ids = self._unknown(self._timed([frame]).select(*IDS, "__time"), unknown)
            yield frame.join(ids.select(IDS), on=list(IDS), how="semi", maintain_order="left")

    def _holds_unknown(
        self,
        files: pa_fs.FileSystem,
        path: str,
        unknown: Callable[[pl.DataFrame], pl.DataFrame],
    ) -> bool:
        columns = [name for name in (*IDS, self.time_column) if name is not None]
        parts = (self._timed([frame]) for frame in read_parts(files, path, columns))
        return any(self._unknown(part, unknown).height for part in parts)

    def _unknown(
        self, ids: pl.DataFrame, unknown: Callable[[pl.DataFrame], pl.DataFrame]
    ) -> pl.DataFrame:
        rest = unknown(ids)
        if self.ahead is not None:
            rest = rest.join(self.ahead.select(IDS), on=list(IDS), how="anti")
        return rest

    def newest_moment(self, new: Sequence[str]) -> datetime | None:
        """The story clock with the rows of these files: one column of them is read."""
        if self.time_column is None:
            return None
        files = tables.filesystem(self.uri)
        ahead = pl.Series(dtype=TIME) if self.ahead is None else self.ahead["__time"]
        newest, count = ahead, len(ahead)
        most = (sum(row_count(files, path) for path in new) + count) // 100 + 1
        for path in new:
            for part in read_parts(files, path, [self.time_column]):
                times = self._timed([part])["__time"].drop_nulls()
                count += len(times)
                newest = pl.concat([newest, times]).top_k(most)
        self.taken.clock = story_clock(newest, self.taken.clock, count)
        return self.taken.clock

    def _timed(self, batch: Sequence[pl.DataFrame]) -> pl.DataFrame:
        frame = pl.concat(batch, how="diagonal_relaxed") if len(batch) > 1 else batch[0]
        if self.time_column is None:
            times = pl.Series("__time", [None] * frame.height, dtype=TIME)
        elif self.time_column in frame.columns:
            times = as_times(frame[self.time_column]).alias("__time")
        else:
            times = pl.Series("__time", [None] * frame.height, dtype=TIME)
        return frame.with_columns(times)

    def due(self, frame: pl.DataFrame, until: datetime) -> pl.DataFrame:
        """The rows whose time has come; the others wait. Rows without a time are in no window."""
        if self.time_column is None:
            return frame
        self.untimed_rows += frame["__time"].null_count()
        later = frame.filter(pl.col("__time") > until)
        if later.height:
            parts = [later] if self.ahead is None else [self.ahead, later]
            self.ahead = pl.concat(parts, how="diagonal_relaxed")
        return frame.filter(pl.col("__time") <= until)

    def come_due(self, until: datetime) -> pl.DataFrame | None:
        """Rows that waited and whose time has come now."""
        if self.ahead is None:
            return None
        come = self.ahead.filter(pl.col("__time") <= until)
        rest = self.ahead.filter(pl.col("__time") > until)
        self.ahead = rest if rest.height else None
        return come if come.height else None

    def again(self, columns: Sequence[str], until: datetime) -> Iterator[pl.DataFrame]:
        """Some columns of the rows that were taken before, to be held anew. Raises ReadAnew when
        the files are not the same any more."""
        if not self.taken.files:
            return
        if self.table is None or not self.taken.files <= data_files(self.table):
            raise ReadAnew("files of the table were replaced")
        files = tables.filesystem(self.uri)
        for path in sorted(self.taken.files):
            for part in read_parts(files, path, columns):
                frame = self._timed([part])
                yield frame.filter(pl.col("__time") <= until)


def data_files(table: deltalake.DeltaTable) -> set[str]:
    """Paths of the table's data files, below the table."""
    paths = pa.table(table.get_add_actions()).column("path").to_pylist()
    return {urllib.parse.unquote(path) for path in paths}


@contextmanager
def _opened(files: pa_fs.FileSystem, path: str) -> Iterator[pq.ParquetFile]:
    """A data file. Raises ReadAnew if it is gone, Unavailable if it cannot be read."""
    try:
        with pq.ParquetFile(path, filesystem=files) as file:
            yield file
    except FileNotFoundError:
        raise ReadAnew("a data file was removed while it was to be read") from None
    except pa.ArrowInvalid as error:
        said = f"A data file cannot be read: {type(error).__name__}."
        raise errors.Unavailable(said) from None


def row_count(files: pa_fs.FileSystem, path: str) -> int:
    """How many rows a data file has. Raises ReadAnew if it is gone."""
    with _opened(files, path) as file:
        return int(file.metadata.num_rows)


def read_parts(
    files: pa_fs.FileSystem, path: str, columns: Sequence[str] | None = None
) -> Iterator[pl.DataFrame]:
    """One data file as `read_file` reads it; a large one in parts."""
    with _opened(files, path) as file:
        if file.metadata.num_rows > MOST_ROWS:
            for batch in file.iter_batches(BATCH_ROWS, columns=_there(file, columns)):
                yield _frame(pa.Table.from_batches([batch]))
            return
        whole = _frame(file.read(columns=_there(file, columns)))
    yield whole


def read_file(
    files: pa_fs.FileSystem, path: str, columns: Sequence[str] | None = None
) -> pl.DataFrame:
    """One data file, or those of the wanted columns that it has. Raises ReadAnew if it is gone."""
    with _opened(files, path) as file:
        return _frame(file.read(columns=_there(file, columns)))


def _there(file: pq.ParquetFile, columns: Sequence[str] | None) -> list[str]:
    return [name for name in file.schema_arrow.names if columns is None or name in columns]


def _frame(table: pa.Table) -> pl.DataFrame:
    frame = pl.from_arrow(table)
    assert isinstance(frame, pl.DataFrame)
    return frame


class Labels:
    """Labels of a recorded table, each data file once."""

    def __init__(self, uri: str, taken: Collection[str] = ()) -> None:
        self.uri = uri
        self.table: deltalake.DeltaTable | None = None
        self.files = set(taken)
        self.replaced = False  # compaction moved labels into other files

    @property
    def version(self) -> int:
        """Commit version of the table as it was read; -1: no table yet."""
        return -1 if self.table is None else self.table.version()

    def look(self) -> list[str]:
        """Data files that were not taken yet."""
        self.table = tables.open_table(self.uri)
        if self.table is None:
            return []
        present = data_files(self.table)
        self.replaced = not self.files <= present
        return sorted(present - self.files)

    def read(self, new: Sequence[str]) -> Iterator[pl.DataFrame]:
        """Labels of new files that have a time, in batches, columns as in truth.SCHEMA."""
        files = tables.filesystem(self.uri)
        batch: list[pl.DataFrame] = []
        rows = 0
        for path in new:
            for part in read_parts(files, path, list(truth.SCHEMA)):
                typed = part.select(pl.col(name).cast(t) for name, t in truth.SCHEMA.items())
                batch.append(typed.drop_nulls("label_time"))
                rows += batch[-1].height
                if rows >= LABEL_ROWS:
                    yield pl.concat(batch)
                    batch, rows = [], 0
        if batch:
            yield pl.concat(batch)
        if self.table is not None:
            self.files = (self.files & data_files(self.table)) | set(new)


def utc(time: datetime) -> datetime:
    """Naive = UTC."""
    return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)
