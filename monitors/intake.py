"""What a refresh reads: new rows of a monitored table and new labels, each data file once.

A row is *due* when its time has come (`until`); rows of the future wait in `Intake.ahead` and are
handed out by the refresh whose `until` reaches them. Maintenance replaces small files by large
ones: in a recorded table, whose rows have ids, only rows of unknown ids are then taken from the new
files; a table without ids is read anew.
"""

import urllib.parse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import deltalake
import numpy as np
import orjson
import polars as pl
import pyarrow as pa
import pyarrow.fs as pa_fs
import pyarrow.parquet as pq

from capture import errors
from monitors import tables

TIME = pl.Datetime("us", "UTC")
BATCH_ROWS = 128_000
FAR_AHEAD = timedelta(days=7)
IDS = ("databricks_request_id", "row_index")
LABEL_COLUMNS = [
    "databricks_request_id",
    "client_request_id",
    "row_index",
    "label",
    "label_time",
]


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


def story_clock(times: pl.Series, before: datetime | None) -> datetime | None:
    """The moment of the newest rows, where the table's own time is not that of receipt.

    Values more than seven days ahead of the rest (99 of 100 rows, and what was known `before`) are
    set aside: one wrong date must not move every window."""
    known = times.drop_nulls()
    if known.is_empty():
        return before
    usual = known.sort()[max(0, (len(known) * 99 + 99) // 100 - 1)]
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
        self.ids: list[pl.DataFrame] = []
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

    def read(self, new: Sequence[str]) -> Iterator[pl.DataFrame]:
        """Rows of new files, in batches, with their time in column `__time`."""
        assert self.table is not None
        present = data_files(self.table)
        replaced = not self.taken.files <= present
        known = self._known_ids() if replaced else None
        batch: list[pl.DataFrame] = []
        rows = 0
        for path in new:
            frame = read_file(tables.filesystem(self.uri), path)
            if known is not None:
                frame = frame.join(known, on=list(IDS), how="anti")
            batch.append(frame)
            rows += frame.height
            if rows >= BATCH_ROWS:
                yield self._timed(batch)
                batch, rows = [], 0
        if batch:
            yield self._timed(batch)
        self.taken.files = (self.taken.files & present) | set(new)

    def newest_moment(self, new: Sequence[str]) -> datetime | None:
        """The story clock with the rows of these files: one column of them is read."""
        if self.time_column is None:
            return None
        files = tables.filesystem(self.uri)
        parts = [self._timed([read_file(files, path, [self.time_column])]) for path in new]
        if self.ahead is not None:
            parts.append(self.ahead)
        if parts:
            times = pl.concat([part.select("__time") for part in parts])["__time"]
            self.taken.clock = story_clock(times, self.taken.clock)
        return self.taken.clock

    def _known_ids(self) -> pl.DataFrame:
        parts = [*self.ids, *([] if self.ahead is None else [self.ahead.select(IDS)])]
        if not parts:
            return pl.DataFrame(schema={IDS[0]: pl.String, IDS[1]: pl.Int32})
        return pl.concat(parts)

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
        return self._remember(frame.filter(pl.col("__time") <= until))

    def come_due(self, until: datetime) -> pl.DataFrame | None:
        """Rows that waited and whose time has come now."""
        if self.ahead is None:
            return None
        come = self.ahead.filter(pl.col("__time") <= until)
        rest = self.ahead.filter(pl.col("__time") > until)
        self.ahead = rest if rest.height else None
        return self._remember(come) if come.height else None

    def _remember(self, frame: pl.DataFrame) -> pl.DataFrame:
        if self.with_ids:
            self.ids.append(frame.select(IDS))
            if len(self.ids) > 64:
                self.ids = [pl.concat(self.ids)]
        return frame

    def again(self, columns: Sequence[str], until: datetime) -> Iterator[pl.DataFrame]:
        """Some columns of the rows that were taken before, after a restart. Raises ReadAnew when
        the files are not the same any more."""
        if not self.taken.files:
            return
        if self.table is None or not self.taken.files <= data_files(self.table):
            raise ReadAnew("files of the table were replaced")
        files = tables.filesystem(self.uri)
        for path in sorted(self.taken.files):
            frame = self._timed([read_file(files, path, columns)])
            if self.time_column is not None:
                frame = frame.filter(pl.col("__time") <= until)
            yield self._remember(frame)


def data_files(table: deltalake.DeltaTable) -> set[str]:
    """Paths of the table's data files, below the table."""
    paths = pa.table(table.get_add_actions()).column("path").to_pylist()
    return {urllib.parse.unquote(path) for path in paths}


def read_file(
    files: pa_fs.FileSystem, path: str, columns: Sequence[str] | None = None
) -> pl.DataFrame:
    """One data file, or those of the wanted columns that it has. Raises ReadAnew if it is gone."""
    try:
        with pq.ParquetFile(path, filesystem=files) as file:
            wanted = None
            if columns is not None:
                wanted = [name for name in file.schema_arrow.names if name in columns]
            return _frame(file.read(columns=wanted))
    except FileNotFoundError:
        raise ReadAnew("a data file was removed while it was to be read") from None
    except pa.ArrowInvalid as error:
        raise errors.Unavailable(f"A data file cannot be read: {type(error).__name__}.") from None


def _frame(table: pa.Table) -> pl.DataFrame:
    frame = pl.from_arrow(table)
    assert isinstance(frame, pl.DataFrame)
    return frame


class Labels:
    """All labels of a recorded table, and the rows that they were joined with: of every call only
    the rows that are new and those whose labels are new are looked at."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self.table: deltalake.DeltaTable | None = None
        self.files: set[str] = set()
        self.rows = pl.DataFrame(
            schema={
                "databricks_request_id": pl.String,
                "client_request_id": pl.String,
                "row_index": pl.Int32,
                "label": pl.String,
                "label_time": TIME,
            }
        )
        self.news = self.rows  # read since the last `join`
        self.joined = 0  # rows of the last `join`
        self.until: datetime | None = None

    @property
    def version(self) -> int:
        return -1 if self.table is None else self.table.version()

    def look(self) -> bool:
        """Take in new labels; True: there were some."""
        self.table = tables.open_table(self.uri)
        if self.table is None:
            return False
        present = data_files(self.table)
        kept = self.files <= present  # else compaction moved rows into other files
        new = present - self.files if kept else present
        if not new:
            return False
        files = tables.filesystem(self.uri)
        parts = [
            read_file(files, path, LABEL_COLUMNS).select(LABEL_COLUMNS) for path in sorted(new)
        ]
        parts = [part.with_columns(pl.col("label_time").cast(TIME)) for part in parts]
        self.rows = pl.concat([*([self.rows] if kept else []), *parts], how="vertical_relaxed")
        self.news = pl.concat([*([self.news] if kept else []), *parts], how="vertical_relaxed")
        self.files = present
        return True

    def join(self, rows: pl.DataFrame, until: datetime) -> tuple[pl.DataFrame, pl.Series]:
        """The rows with `label` and `label_time` as they are known by `until`, and the times of the
        rows whose label changed. Rows of the last call come first; the others, or all where the
        label columns are missing, have no label yet. `until` never goes back."""
        known = self.rows.filter(pl.col("label_time") <= until)
        if "label_time" not in rows.columns:
            joined = _labelled(rows, known)
            times = joined.filter(pl.col("label_time").is_not_null())["__time"]
        else:
            at = self._touched(rows.head(self.joined), until)
            joined, times = _updated(rows, self.joined, at, known)
        self.news, self.joined, self.until = self.news.clear(), joined.height, until
        return joined, times

    def _touched(self, old: pl.DataFrame, until: datetime) -> pl.Series:
        """Positions of the rows that may have another label than at the last `join`."""
        since = [self.news.filter(pl.col("label_time") <= until)]
        if self.until is not None and self.until < until:
            later = pl.col("label_time").is_between(self.until, until, closed="right")
            since.append(self.rows.filter(later))
        fresh = pl.concat(since)
        if fresh.is_empty() or old.is_empty():
            return pl.Series(dtype=pl.UInt32)
        return _any_id_in(old, fresh).arg_true()


def _any_id_in(rows: pl.DataFrame, others: pl.DataFrame) -> pl.Series:
    """Which rows share the request id or the client's id with one of the others."""
    found = [
        rows[key].is_in(others[key].drop_nulls().unique().implode()).fill_null(False)
        for key in ("databricks_request_id", "client_request_id")
    ]
    return found[0] | found[1]


def _labelled(rows: pl.DataFrame, known: pl.DataFrame, as_texts: bool = False) -> pl.DataFrame:
    """Rows with their labels. known: in any order, of any rows."""
    if known.height > rows.height:
        known = known.filter(_any_id_in(known, rows))
    return with_labels(rows, known.sort("label_time", maintain_order=True), as_texts)


def _updated(
    rows: pl.DataFrame, joined: int, at: pl.Series, known: pl.DataFrame
) -> tuple[pl.DataFrame, pl.Series]:
    """Rows of which the first `joined` have labels, those at some positions maybe others by now."""
    old, new = rows.head(joined), rows.tail(rows.height - joined)
    if new.is_empty() and at.is_empty():
        return rows, pl.Series(dtype=TIME)
    as_texts, as_numbers = (_has_labels(old, type_) for type_ in (pl.String, pl.Float64))
    changing, new = (_labelled(part, known, as_texts) for part in (old[at], new))
    if as_numbers and (_has_labels(changing, pl.String) or _has_labels(new, pl.String)):
        whole = _labelled(rows, known)  # numbers so far, and now a text
        changed = whole["label_time"].ne_missing(rows["label_time"])
        return whole, whole.filter(changed)["__time"]
    changed = changing["label_time"].ne_missing(old["label_time"][at])
    arrived = new.filter(pl.col("label_time").is_not_null())
    times = pl.concat([changing.filter(changed)["__time"], arrived["__time"]])
    parts = [_replaced(old, at, changing), new.select(old.columns)]
    return pl.concat(parts, how="vertical_relaxed"), times


def _has_labels(rows: pl.DataFrame, type_: type[pl.DataType]) -> bool:
    labels = rows["label"]
    return labels.dtype == type_ and labels.null_count() < rows.height


def _replaced(old: pl.DataFrame, at: pl.Series, changing: pl.DataFrame) -> pl.DataFrame:
    """The rows with other labels at these positions."""
    if at.is_empty():
        return old
    source = np.arange(old.height)
    source[at.to_numpy()] = old.height + np.arange(changing.height)
    both = [part.select("label", "label_time") for part in (old, changing)]
    return old.with_columns(pl.concat(both, how="vertical_relaxed")[source])


def with_labels(rows: pl.DataFrame, known: pl.DataFrame, as_texts: bool = False) -> pl.DataFrame:
    """Rows with `label` (number or text) and `label_time`: the newest label of each row, by request
    id, else by client request id, and row index. `known`: oldest first."""
    bare = rows.drop("label", "label_time", strict=False)
    joined = bare
    for number, key in enumerate(("databricks_request_id", "client_request_id")):
        keyed = known.filter(pl.col(key).is_not_null()).unique(
            [key, "row_index"], keep="last", maintain_order=True
        )
        side = keyed.select(
            key,
            "row_index",
            pl.col("label").alias(f"__label_{number}"),
            pl.col("label_time").alias(f"__time_{number}"),
        )
        joined = joined.join(side, on=[key, "row_index"], how="left", maintain_order="left")
    newer = pl.col("__time_1").is_not_null() & (
        pl.col("__time_0").is_null() | (pl.col("__time_1") > pl.col("__time_0"))
    )
    pick = {
        name: pl.when(newer).then(pl.col(f"__{name}_1")).otherwise(pl.col(f"__{name}_0"))
        for name in ("label", "time")
    }
    joined = joined.with_columns(pick["label"].alias("__text"), label_time=pick["time"])
    label = scalars(joined["__text"], as_texts).alias("label")
    return joined.select(*bare.columns, label, "label_time")


def scalars(texts: pl.Series, as_texts: bool = False) -> pl.Series:
    """JSON scalars -> one column: numbers and booleans as double, else, or if wanted, all texts."""
    distinct = texts.drop_nulls().unique().to_list()
    values = [_scalar(text) for text in distinct]
    if not as_texts and all(isinstance(value, (int, float)) for value in values):  # or bool
        mapped: list[Any] = [float(value) for value in values]
        return _mapped(texts, distinct, mapped, pl.Float64())
    mapped = [
        value if isinstance(value, str) else text
        for value, text in zip(values, distinct, strict=True)
    ]
    return _mapped(texts, distinct, mapped, pl.String())


def _mapped(
    texts: pl.Series, distinct: list[str], values: list[Any], dtype: pl.DataType
) -> pl.Series:
    if not distinct:
        return pl.Series(texts.name, [None] * len(texts), dtype=dtype)
    return texts.replace_strict(distinct, values, default=None, return_dtype=dtype)


def _scalar(text: str) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return text


def utc(time: datetime) -> datetime:
    """Naive = UTC."""
    return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)
