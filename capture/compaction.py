"""Small files of a table become larger ones; days that are kept no longer go.

Both take files out of a table, and two removals of one file do not conflict in delta-rs (see
`delta`): so both are one app transaction, REMOVALS, which none can pass. Readers see the table as
it was or as it is then; the files themselves stay until `maintenance` vacuums them.
"""

import time
from collections.abc import Iterator, Sequence
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote

import deltalake
import pyarrow as pa
import pyarrow.parquet as pq
from deltalake.transaction import AddAction, RemoveAction

from capture import data_files, delta, delta_commits, delta_log, errors, logline

log = logline.logger(__name__)

REMOVALS = "inferlake:compaction"
SMALL_FILES = 64
SMALL_BYTES = 16 << 20
CLOSED_BYTES = 64 << 20  # below this, files of a closed day are merged
MERGED_BYTES, MERGED_ROWS = 64 << 20, 512_000
CLOSED_AFTER = timedelta(hours=1)


class ActiveFile(NamedTuple):
    """A data file of the table's present version."""

    path: str
    partition: tuple[tuple[str, str | None], ...]
    size_bytes: int
    rows: int
    first_time: str


class DamagedFile(Exception):
    """A data file holds other rows than the log says."""


def active_files(handle: deltalake.DeltaTable, layout: data_files.Layout) -> list[ActiveFile]:
    """Files of the version that a handle has loaded."""
    adds = delta_commits.present_files(handle).to_pylist()
    return [
        ActiveFile(
            add["path"],
            tuple(delta.partition_of(add, layout.partition_by).items()),
            add["size_bytes"],
            add["num_records"],
            str(add.get(f"min.{layout.time_column}")),
        )
        for add in adds
        if add["num_records"] is not None
    ]


# Merging -----------------------------------------------------------------------------------------


def groups_to_merge(files: Sequence[ActiveFile], now: datetime) -> list[list[ActiveFile]]:
    """Files that should become one, each group within a partition and in order of time. Pure."""
    by_partition: dict[Any, list[ActiveFile]] = {}
    for file in files:
        by_partition.setdefault(file.partition, []).append(file)
    found: list[list[ActiveFile]] = []
    for partition, own in by_partition.items():
        closed = _is_closed(partition, now)
        small = [
            file for file in own if file.size_bytes < (CLOSED_BYTES if closed else SMALL_BYTES)
        ]
        if closed or len(small) > SMALL_FILES:
            found += _groups(sorted(small, key=lambda file: file.first_time))
    return found


def _is_closed(partition: tuple[tuple[str, str | None], ...], now: datetime) -> bool:
    """Whether a partition is a day that ended an hour ago or earlier."""
    try:
        ((_, value),) = partition
        day = date.fromisoformat(value or "")
    except ValueError:
        return False
    return datetime(day.year, day.month, day.day, tzinfo=UTC) + timedelta(1) + CLOSED_AFTER <= now


def _groups(files: Sequence[ActiveFile]) -> Iterator[list[ActiveFile]]:
    group: list[ActiveFile] = []
    for file in files:
        size = sum(one.size_bytes for one in group) + file.size_bytes
        rows = sum(one.rows for one in group) + file.rows
        if group and (size > MERGED_BYTES or rows > MERGED_ROWS):
            if len(group) > 1:
                yield group
            group = []
        group.append(file)
    if len(group) > 1:
        yield group


def compact(handle: deltalake.DeltaTable, path: Path, now: datetime) -> int:
    """Merge small files; rows keep the order of time. Gives the number of files replaced.

    A file that cannot be read, or holds other rows than the log says, stays as it is with those of
    its group: it is `inferlake doctor`'s business, and no reason not to look after the others."""
    layout = delta.layout_of(handle)
    adds: list[AddAction] = []
    replaced: list[ActiveFile] = []
    for group in groups_to_merge(active_files(handle, layout), now):
        try:
            merged = _merged(path, layout, group)
        except (FileNotFoundError, pa.ArrowException, DamagedFile) as error:
            log.error("files_not_merged", table=path.name, error=str(error)[:500])
            continue
        partition = dict(group[0].partition)
        adds.append(data_files.write_file(path, layout, partition, merged, False))
        replaced += group
    if replaced:
        _take_out(handle, path, replaced, adds)
    return len(replaced)


def _merged(path: Path, layout: data_files.Layout, group: Sequence[ActiveFile]) -> pa.Table:
    parts = []
    for file in group:
        part = pq.ParquetFile(path / unquote(file.path)).read()
        if len(part) != file.rows:
            raise DamagedFile(f"File {file.path} has {len(part)} rows, the log says {file.rows}.")
        parts.append(data_files.conformed(part, layout.file_schema))
    return data_files.sorted_by(pa.concat_tables(parts), layout.time_column)


# Days that go ------------------------------------------------------------------------------------


def day_column(handle: deltalake.DeltaTable) -> str | None:
    """The column that a table is partitioned by, if that is a day and nothing else."""
    columns = handle.metadata().partition_columns
    types = {field.name: str(getattr(field.type, "type", "")) for field in handle.schema().fields}
    return columns[0] if len(columns) == 1 and types[columns[0]] == "date" else None


def drop_days(handle: deltalake.DeltaTable, path: Path, keep_days: int, now: datetime) -> int:
    """Take out the days before the last `keep_days` closed ones; gives the number of files.

    The open day stays whatever happens. Raises InvalidParameter if the table has no days."""
    if day_column(handle) is None:
        raise errors.InvalidParameter(
            f"Table '{path.name}' is not partitioned by day, so no days of it can be dropped."
        )
    layout = delta.layout_of(handle)
    first_kept = now.astimezone(UTC).date() - timedelta(days=keep_days)
    gone = [file for file in active_files(handle, layout) if _ends_before(file, first_kept)]
    if gone:
        _take_out(handle, path, gone, [])
    return len(gone)


def _ends_before(file: ActiveFile, first_kept: date) -> bool:
    ((_, day),) = file.partition
    return day is not None and date.fromisoformat(day) < first_kept


def _take_out(
    handle: deltalake.DeltaTable,
    path: Path,
    files: Sequence[ActiveFile],
    adds: Sequence[AddAction],
) -> None:
    """Commit the removal of files, with what replaces them."""
    moment = time.time_ns() // 1_000_000
    # None is a change of data, of which an append-only table knows appends alone: whoever follows
    # its changes keeps the rows that it took in.
    removes = [
        RemoveAction(file.path, False, moment, file.size_bytes, dict(file.partition))
        for file in files
    ]
    before = handle.version()
    turn = (handle.transaction_version(REMOVALS) or 0) + 1
    delta_commits.publish(handle, [*removes, *adds], {REMOVALS: turn})
    delta_log.sync_commits(path, before)
