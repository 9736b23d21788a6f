"""Which data files a table has now and where in time their rows lie: so that a question opens the
files that can answer it, and no other.

Loading a table costs as much as its log is long, and listing its files as much as there are, so
both are kept and brought up to date at a question. A table is loaded anew when the log that was
read is not the same any more: a new checkpoint, or a newest commit that is another file now.
"""

import threading
from collections import OrderedDict
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

import deltalake
import polars as pl

from capture import delta, delta_log, errors, stretches
from capture.settings import Settings

MOST_KEPT = 64
TIME, DAY = "request_time", "request_date"
CUT = timedelta(milliseconds=1)  # Delta cuts the times in its statistics to milliseconds
WHOLE_DAY = timedelta(days=1)
UNREAD = frozenset({"deletionVectors", "columnMapping"})
EARLIEST, LATEST = datetime(1, 1, 2, tzinfo=UTC), datetime(9999, 12, 30, tzinfo=UTC)
# What other engines may have written: times in nanoseconds, narrower numbers.
CASTS = pl.ScanCastOptions(
    integer_cast="upcast", float_cast="upcast", datetime_cast=["nanosecond-downcast"]
)


class DataFile(NamedTuple):
    """A Parquet file. extent: of `request_time`; all of time where nothing tells."""

    path: str
    extent: stretches.Extent


@dataclass(frozen=True, slots=True)
class Listing:
    """One version of a table. partitions: the columns that stand in paths and not in files."""

    schema: pl.Schema
    partitions: pl.Schema
    files: tuple[DataFile, ...]

    def scan(self, start: datetime | None = None, end: datetime | None = None) -> pl.LazyFrame:
        """The rows of the files that may hold `start <= request_time < end`; None: no limit."""
        paths = [
            path
            for path, extent in self.files
            if (start is None or extent.end >= start) and (end is None or extent.start < end)
        ]
        if not paths:
            return self.schema.to_frame().lazy()
        return pl.scan_parquet(
            paths,
            schema=self.schema,
            hive_partitioning=bool(self.partitions),
            hive_schema=self.partitions or None,
            cast_options=CASTS,
            missing_columns="insert",
            extra_columns="ignore",
            glob=False,
        )


@dataclass(slots=True)
class _Kept:
    handle: deltalake.DeltaTable
    stamp: tuple[object, ...]
    listing: Listing


_kept: OrderedDict[Path, _Kept] = OrderedDict()
_listing = threading.Lock()


def of(settings: Settings, full_name: str) -> Listing | None:
    """The newest version of a table; None if there is no such table.

    Raises NotImplementedHere where its files alone do not tell its rows: nothing of ours writes
    deletion vectors or maps columns."""
    path = delta.path_of(settings, full_name)
    with _listing:
        kept = _kept.pop(path, None)
        if kept is None or kept.stamp != _stamp(path, kept.handle.version()):
            if not deltalake.DeltaTable.is_deltatable(str(path)):
                return None
            kept = _load(path, deltalake.DeltaTable(path))
        elif delta_log.commit_file(path, kept.handle.version() + 1).exists():
            kept.handle.update_incremental()
            kept = _load(path, kept.handle)
        _kept[path] = kept
        while len(_kept) > MOST_KEPT:
            _kept.popitem(last=False)
        return kept.listing


def _load(path: Path, handle: deltalake.DeltaTable) -> _Kept:
    return _Kept(handle, _stamp(path, handle.version()), _list(path, handle))


def _stamp(path: Path, version: int) -> tuple[object, ...]:
    """What tells that the log up to a version is still the one that was read."""
    found: list[object] = []
    for file in (path / "_delta_log" / "_last_checkpoint", delta_log.commit_file(path, version)):
        try:
            seen = file.stat()
            found += [seen.st_ino, seen.st_size, seen.st_mtime_ns]
        except FileNotFoundError:
            found.append(None)
    return tuple(found)


def _list(path: Path, handle: deltalake.DeltaTable) -> Listing:
    unread = UNREAD & set(handle.protocol().reader_features or ())
    if unread:
        raise errors.NotImplementedHere(f"Table '{path.name}' uses {', '.join(sorted(unread))}.")
    schema = pl.Schema(handle.schema())
    by = handle.metadata().partition_columns
    adds = pl.DataFrame(handle.get_add_actions(flatten=True))
    wanted = ("path", "num_records", f"min.{TIME}", f"max.{TIME}", f"partition.{DAY}")
    told = [adds[name].to_list() if name in adds else [None] * len(adds) for name in wanted]
    files = tuple(
        DataFile(str(path / unquote(name)), _extent(rows, first, last, day))
        for name, rows, first, last, day in zip(*told, strict=True)
    )
    return Listing(schema, pl.Schema({name: schema[name] for name in by}), files)


def _extent(
    rows: int | None, first: datetime | None, last: datetime | None, day: date | None
) -> stretches.Extent:
    """By the statistics of a file, else by its day."""
    if first is not None and last is not None:
        return stretches.Extent(_aware(first), _aware(last) + CUT, rows or 0)
    if isinstance(day, date):
        start = datetime(day.year, day.month, day.day, tzinfo=UTC)
        return stretches.Extent(start, start + WHOLE_DAY, rows or 0)
    return stretches.Extent(EARLIEST, LATEST, rows or 0)


def _aware(at: datetime) -> datetime:
    return at.replace(tzinfo=UTC) if at.tzinfo is None else at
