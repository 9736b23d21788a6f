"""Delta tables on local disk: exactly-once appends, a damaged log mended.

Rules, each of which was paid for:

- delta-rs records app transactions but does not enforce them on a fresh snapshot. So: read the
  transaction version from what is known of the log's end, drop what is at or below it, and commit
  right behind *that same* end, or learn what else was put there (delta_commits.py). After any error
  the end is forgotten; the next call loads the table and looks again. Nothing is retried blindly.
- delta-rs syncs nothing. A data file and its folder are synced before the commit; the commit file
  before it has its name, `_delta_log` after it. What is found committed is synced before anybody
  relies on it.
- To load a table, or to commit by delta-rs, costs O(commits since the checkpoint + files in
  `_delta_log`): with 1,000 of each 220 ms, with neither 6 ms. So commits that a checkpoint covers
  move to `_history`, where `files_since` still finds them.
- Two removals of one file do not conflict in delta-rs 1.6: two compactions of the same files, its
  own or ours, double their rows. Compaction therefore is an app transaction, too.
- Tables have protocol 1/2, no column mapping and a pinned schema, so that polars, DuckDB and Spark
  read them.
"""

import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import deltalake
import pyarrow as pa
from deltalake.exceptions import DeltaError
from deltalake.transaction import AddAction

from capture import data_files, delta_commits, delta_log, errors, logline, names
from capture.settings import Settings

log = logline.logger(__name__)

CREATED_WITH = {
    "delta.appendOnly": "true",
    "delta.checkpointInterval": "100",
    "delta.logRetentionDuration": "interval 1 days",
    "delta.deletedFileRetentionDuration": "interval 7 days",
}
# Text of which every row has its own: a dictionary would only fill up first.
HIGH_CARDINALITY = frozenset(
    {
        "databricks_request_id",
        "client_request_id",
        "request",
        "response",
        "looked_up",
        "unit_id",
    }
)
WRITERS = min(4, os.cpu_count() or 1)  # threads that compress a backlog


def path_of(settings: Settings, full_name: str) -> Path:
    """Folder of a table. Raises InvalidParameter, NotImplementedHere for object storage."""
    if "://" in settings.tables_root:
        raise errors.NotImplementedHere(
            "Tables on object storage are not offered yet; leave INFERLAKE_TABLES_URI empty."
        )
    return Path(names.table_path(settings.tables_root, names.table_name(full_name)))


# The handle --------------------------------------------------------------------------------------


class Table:
    """A Delta table that this process appends to. See the rules above; made by `open_or_create`."""

    def __init__(self, path: Path, layout: data_files.Layout) -> None:
        self.path = path
        self.layout = layout
        self._head: delta_commits.Head | None = None

    @property
    def schema(self) -> pa.Schema:
        return self.layout.schema

    @property
    def version(self) -> int:
        """Newest version that was seen here."""
        return self._known().version

    @property
    def rows(self) -> int:
        """Rows in the table, as far as seen here."""
        return self._known().rows

    def forget(self) -> None:
        """Load the table anew at the next call."""
        self._head = None

    def transaction_version(self, app_id: str) -> int | None:
        """Newest version that an application has committed; None: nothing yet."""
        self._known().follow()
        return self._known().transaction_version(app_id)

    def append(self, rows: pa.Table, app_id: str, version: int) -> int | None:
        """Append rows as `version` of an application, unless it is there already.

        Gives the commit version, or None. Zero rows commit the transaction alone.
        """
        if self.is_committed(app_id, version):
            return None
        return self.commit(rows, {app_id: version})

    def is_committed(self, app_id: str, version: int) -> bool:
        """Whether what a commit would rest on has this version of an application."""
        seen = self._known().transaction_version(app_id)
        return seen is not None and seen >= version

    def commit(self, rows: pa.Table, transactions: Mapping[str, int]) -> int:
        """Append rows that `is_committed` denied for each of these transactions, in one commit."""
        adds: list[AddAction] = []
        try:
            head = self._head or self._known()  # the one that denied, were it stale by now
            adds = self._write(rows) if len(rows) else []
            return head.append(adds, transactions, len(rows))
        except BaseException:
            self.forget()
            self._take_back(adds)
            raise

    def _take_back(self, adds: list[AddAction]) -> None:
        """Delete files whose commit failed, once the log says that it is not there."""
        if not adds:
            return
        try:
            delta_log.mend(self.path)
            present = delta_commits.present_files(deltalake.DeltaTable(self.path))
        except (DeltaError, OSError) as error:
            log.warning("files_left_behind", table=self.path.name, error=str(error))
            return
        known = set(present["path"].to_pylist())
        for add in adds:
            if add.path not in known:
                (self.path / add.path).unlink(missing_ok=True)

    def _write(self, rows: pa.Table) -> list[AddAction]:
        fitting = data_files.conformed(rows, self.layout.schema)
        in_order = data_files.sorted_by(fitting, self.layout.time_column)
        parts = [
            (values, piece)
            for values, part in data_files.parts(in_order, self.layout.partition_by)
            for piece in data_files.pieces(part, WRITERS)
        ]
        return data_files.write_files(self.path, self.layout, parts, WRITERS)

    def _known(self) -> delta_commits.Head:
        if self._head is None or self._head.is_stale:
            delta_log.mend(self.path)
            head = delta_commits.Head(self.path)
            delta_log.sync_commits(self.path)
            self._head = head
        return self._head


def partition_of(add: Mapping[str, Any], columns: Sequence[str]) -> dict[str, str | None]:
    """The partition of a row of `present_files`, as the log writes its values."""
    values = {name: add[f"partition.{name}"] for name in columns}
    return {name: None if value is None else str(value) for name, value in values.items()}


def open_or_create(
    path: Path,
    schema: pa.Schema,
    partition_by: str | Sequence[str] = (),
    configuration: Mapping[str, str] | None = None,
    time_column: str | None = None,
    dictionary_columns: Collection[str] | None = None,
) -> Table:
    """The table in a folder, made if it is not there, its log mended.

    Columns of `schema` that an existing table lacks are added, as nullable ones; columns that only
    the table has stay. time_column: the order of rows in a file; default: the first timestamp.
    dictionary_columns: text of few different values; default: all but ids and payloads. Raises
    InvalidParameter if a type differs.
    """
    by = (partition_by,) if isinstance(partition_by, str) else tuple(partition_by)
    delta_log.mend(path)
    if not delta_log.commit_versions(path) and not delta_log.checkpoint_versions(path):
        _create(path, schema, by, {**CREATED_WITH, **(configuration or {})})
    handle = deltalake.DeltaTable(path)
    known = _widened(path, handle, schema)
    return Table(path, _layout(known, handle, time_column, dictionary_columns))


def layout_of(handle: deltalake.DeltaTable) -> data_files.Layout:
    """How a table's rows become files, where nobody said more."""
    return _layout(pa.schema(handle.schema().to_arrow()), handle, None, None)


def _layout(
    schema: pa.Schema,
    handle: deltalake.DeltaTable,
    time_column: str | None,
    dictionary_columns: Collection[str] | None,
) -> data_files.Layout:
    times = [field.name for field in schema if pa.types.is_timestamp(field.type)]
    if dictionary_columns is None:
        texts = (field.name for field in schema if pa.types.is_string(field.type))
        dictionary_columns = frozenset(texts) - HIGH_CARDINALITY
    encoded = tuple(name for name in schema.names if name in dictionary_columns)
    order = time_column or (times[0] if times else None)
    return data_files.Layout(schema, tuple(handle.metadata().partition_columns), order, encoded)


def _create(
    path: Path, schema: pa.Schema, by: tuple[str, ...], configuration: Mapping[str, str]
) -> None:
    delta_log.made(path)
    deltalake.DeltaTable.create(
        path,
        schema,
        mode="ignore",
        partition_by=list(by),
        configuration=configuration,
        raise_if_key_not_exists=False,
    )
    _sync_created(path)
    log.info("table_created", table=path.name)


def _sync_created(path: Path) -> None:
    delta_log.sync(delta_log.commit_file(path, 0))
    for folder in (path / "_delta_log", path):
        delta_log.sync(folder)


def _widened(path: Path, handle: deltalake.DeltaTable, schema: pa.Schema) -> pa.Schema:
    """Arrow schema of a table, after columns that it lacked were added."""
    wanted = {field.name: field for field in deltalake.Schema.from_arrow(schema).fields}
    known = {field.name: field for field in handle.schema().fields}
    for name, field in wanted.items():
        if name in known and known[name].type != field.type:
            raise errors.InvalidParameter(
                f"Column '{name}' of table '{path.name}' is {known[name].type}, not {field.type}."
            )
    missing = [
        deltalake.Field(name, field.type, nullable=True)
        for name, field in wanted.items()
        if name not in known
    ]
    if missing:
        handle.alter.add_columns(missing, post_commithook_properties=delta_commits.NO_HOOKS)
        handle.update_incremental()
        delta_log.sync(delta_log.commit_file(path, handle.version()))
        delta_log.sync(path / "_delta_log")
    arrow = pa.schema(handle.schema().to_arrow())
    ours = {field.name: field for field in schema}
    # Where both have a column, ours says how Arrow names the inside of lists and maps.
    return pa.schema(
        [ours[f.name].with_nullable(f.nullable) if f.name in ours else f for f in arrow]
    )
