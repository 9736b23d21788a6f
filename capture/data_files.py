"""Rows -> Parquet files of a Delta table: in order of time, synced, with what the log says of them.

zstd level 1, dictionaries only where values repeat, row groups of 128 k rows: capture.md, facts 7
and 8. A file written here is on disk, and in no commit yet.
"""

import json
import re
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from deltalake.transaction import AddAction

from capture import delta_log, errors

ROW_GROUP_ROWS = 128 * 1024
LEAST_PIECE_ROWS = 32 * 1024
_SAFE_VALUE = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Layout:
    """How rows become files."""

    schema: pa.Schema
    partition_by: tuple[str, ...]
    time_column: str | None
    dictionary_columns: tuple[str, ...]

    @property
    def file_schema(self) -> pa.Schema:
        return pa.schema([f for f in self.schema if f.name not in self.partition_by])

    @property
    def measured(self) -> list[str]:
        """Columns with minimum and maximum in the log: times, and ids made of times."""
        return [
            f.name
            for f in self.file_schema
            if pa.types.is_timestamp(f.type) or f.name == "databricks_request_id"
        ]


def conformed(rows: pa.Table, schema: pa.Schema) -> pa.Table:
    """The columns of a schema, in its order and types; missing nullable ones are null. Text may
    stay a dictionary.

    Raises InvalidParameter for other columns, and for missing ones that may not be null."""
    if rows.schema.equals(schema):
        return rows
    unknown = [name for name in rows.column_names if name not in schema.names]
    missing = [f.name for f in schema if f.name not in rows.column_names and not f.nullable]
    if unknown or missing:
        raise errors.InvalidParameter(
            f"Rows do not fit the table: columns {unknown or missing} are "
            f"{'not in it' if unknown else 'missing'}."
        )
    columns = [
        _of_type(rows[f.name], f.type)
        if f.name in rows.column_names
        else pa.nulls(len(rows), f.type)
        for f in schema
    ]
    fields = [f.with_type(column.type) for f, column in zip(schema, columns, strict=True)]
    return pa.Table.from_arrays(columns, schema=pa.schema(fields))


def _of_type(values: pa.ChunkedArray, wanted: pa.DataType) -> pa.ChunkedArray:
    if pa.types.is_dictionary(values.type) and values.type.value_type == wanted:
        return values
    return values.cast(wanted)


def sorted_by(rows: pa.Table, column: str | None) -> pa.Table:
    """Rows in ascending order of a column; equal ones stay as they came."""
    if column is None or len(rows) < 2:
        return rows
    values = rows[column].combine_chunks()
    if pc.all(pc.less_equal(values[:-1], values[1:])).as_py():
        return rows
    return rows.take(pc.sort_indices(values))


def parts(rows: pa.Table, by: Sequence[str]) -> list[tuple[dict[str, str | None], pa.Table]]:
    """Rows by value of the partition columns; the value as the log writes it."""
    if not by:
        return [({}, rows)]
    column, *rest = by
    found = []
    for value in pc.unique(rows[column]):
        matches = pc.equal(rows[column], value) if value.is_valid else pc.is_null(rows[column])
        part = rows if pc.all(matches, skip_nulls=False).as_py() else rows.filter(matches)
        text = str(value.as_py()) if value.is_valid else None
        found += [({column: text, **other}, below) for other, below in parts(part, rest)]
    return found


def pieces(rows: pa.Table, most: int) -> list[pa.Table]:
    """Rows in order, cut into as many files as may be written at once, at most `most` and none of
    them small."""
    count = max(1, min(most, len(rows) // LEAST_PIECE_ROWS))
    size = -(-len(rows) // count)
    return [rows.slice(start, size) for start in range(0, len(rows), size)]


def _logged(value: pa.Scalar) -> Any:
    """A value as the log writes it. Times by way of text: `as_py` of one imports pandas."""
    if pa.types.is_timestamp(value.type):
        return value.cast(pa.string()).as_py().replace(" ", "T")
    return value.as_py()


def _statistics(rows: pa.Table, columns: Iterable[str]) -> str:
    lowest, highest, nulls = {}, {}, {}
    for column in columns:
        nulls[column] = rows[column].null_count
        ends = pc.min_max(rows[column])
        if ends["min"].is_valid:
            lowest[column], highest[column] = _logged(ends["min"]), _logged(ends["max"])
    values = {"minValues": lowest, "maxValues": highest, "nullCount": nulls}
    return json.dumps({"numRecords": len(rows), **values})


def _folder(column: str, value: str | None) -> str:
    # polars takes the value from the path, so it must stand there as it is.
    if value is None or not _SAFE_VALUE.fullmatch(value):
        raise errors.InvalidParameter(
            f"Partition column '{column}' holds {value!r}; use letters, digits, '_' or '-'."
        )
    return f"{column}={value}"


def write_file(
    path: Path,
    layout: Layout,
    partition: Mapping[str, str | None],
    rows: pa.Table,
    is_new_data: bool = True,
) -> AddAction:
    """Write a Parquet file of one partition into a table's folder, synced, not yet committed.

    Raises InvalidParameter for a partition value that is no plain word.
    """
    folders = [_folder(name, value) for name, value in partition.items()]
    relative = "/".join([*folders, f"part-{uuid.uuid4()}.zstd.parquet"])
    target = path / relative
    delta_log.made(target.parent)
    written = rows.select(layout.file_schema.names)
    try:
        pq.write_table(
            written,
            target,
            compression="zstd",
            compression_level=1,
            row_group_size=ROW_GROUP_ROWS,
            use_dictionary=[c for c in layout.dictionary_columns if c not in layout.partition_by],
            write_statistics=layout.measured,
            # A file says nothing of dictionaries: how text lies in memory is each reader's matter.
            store_schema=not any(pa.types.is_dictionary(kind) for kind in written.schema.types),
        )
        delta_log.sync(target)
        delta_log.sync(target.parent)
    except BaseException:  # on a full disk its bytes are needed
        target.unlink(missing_ok=True)
        raise
    return described(path, relative, layout, partition, rows, is_new_data)


def write_files(
    path: Path,
    layout: Layout,
    parts: Sequence[tuple[Mapping[str, str | None], pa.Table]],
    threads: int,
) -> list[AddAction]:
    """`write_file` of each part (partition, rows), several at once; if one fails, none is left."""
    if len(parts) == 1:
        return [write_file(path, layout, *parts[0])]
    with ThreadPoolExecutor(threads) as pool:
        written = [pool.submit(write_file, path, layout, *part) for part in parts]
    failed = [error for one in written if (error := one.exception())]
    added = [one.result() for one in written if not one.exception()]
    if failed:
        for add in added:
            (path / add.path).unlink(missing_ok=True)
        raise failed[0]
    return added


def described(
    path: Path,
    relative: str,
    layout: Layout,
    partition: Mapping[str, str | None],
    rows: pa.Table,
    is_new_data: bool = True,
) -> AddAction:
    """What a commit tells of a file of a table's folder that holds these rows."""
    return AddAction(
        path=relative,
        size=(path / relative).stat().st_size,
        partition_values=dict(partition),
        modification_time=time.time_ns() // 1_000_000,
        data_change=is_new_data,
        stats=_statistics(rows, layout.measured),
    )
