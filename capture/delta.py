"""Delta tables on local disk: one handle per table, exactly-once appends, a damaged log mended.

Rules, each of which was paid for:

- delta-rs records app transactions but does not enforce them on a fresh snapshot. So: read the
  transaction version from a handle, drop what is at or below it, and commit with *that same*
  handle, which then fails if the transaction moved meanwhile. After any error the handle is
  forgotten; the next call loads the table and looks again. Nothing is retried blindly.
- delta-rs syncs nothing. A data file and its folder are synced before the commit, the commit file
  and `_delta_log` after it; then the commit file is read back, because an empty one would be taken
  as a commit without rows.
- A commit costs O(commits since the handle's checkpoint + files in `_delta_log`): with 1,000 of
  each 220 ms, with neither 6 ms. So a new checkpoint means a new handle, and commits that a
  checkpoint covers move to `_history`, where `files_since` still finds them.
- Two removals of one file do not conflict in delta-rs 1.6: two compactions of the same files, its
  own or ours, double their rows. Compaction therefore is an app transaction, too.
- Tables have protocol 1/2, no column mapping and a pinned schema, so that polars, DuckDB and Spark
  read them.
"""

import os
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import deltalake
import pyarrow as pa
import pyarrow.compute as pc
from deltalake.exceptions import DeltaError
from deltalake.transaction import AddAction, RemoveAction

from capture import data_files, delta_log, errors, logline, names
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
NO_HOOKS = deltalake.PostCommitHookProperties(create_checkpoint=False, cleanup_expired_logs=False)


class CommitVanished(Exception):
    """A commit returned, but is not in the log, or not whole."""


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
        self._handle: deltalake.DeltaTable | None = None
        self._checkpoint_ns = 0
        self._synced_version = 0
        self._rows = 0

    @property
    def schema(self) -> pa.Schema:
        return self.layout.schema

    @property
    def version(self) -> int:
        """Version that this handle has seen."""
        return self._loaded().version()

    @property
    def rows(self) -> int:
        """Rows in the table, as far as this handle has seen."""
        self._loaded()
        return self._rows

    def forget(self) -> None:
        """Load the table anew at the next call."""
        self._handle = None

    def transaction_version(self, app_id: str) -> int | None:
        """Newest version that an application has committed; None: nothing yet."""
        handle = self._loaded()
        handle.update_incremental()
        return handle.transaction_version(app_id)

    def append(self, rows: pa.Table, app_id: str, version: int) -> int | None:
        """Append rows as `version` of an application, unless it is there already.

        Gives the commit version, or None. Zero rows commit the transaction alone.
        """
        if self.is_committed(app_id, version):
            return None
        return self.commit(rows, {app_id: version})

    def is_committed(self, app_id: str, version: int) -> bool:
        """Whether the handle that would commit next knows this version of an application."""
        seen = self._loaded().transaction_version(app_id)
        return seen is not None and seen >= version

    def commit(self, rows: pa.Table, transactions: Mapping[str, int]) -> int:
        """Append rows that `is_committed` denied for each of these transactions, in one commit."""
        adds: list[AddAction] = []
        try:
            handle = self._loaded()
            before = handle.version()
            adds = self._write(rows) if len(rows) else []
            publish(handle, adds, transactions)
            commit_version = self._confirmed(handle, before, transactions)
        except BaseException:
            self.forget()
            self._take_back(adds)
            raise
        self._rows += len(rows)
        return commit_version

    def _take_back(self, adds: list[AddAction]) -> None:
        """Delete files whose commit failed, once the log says that it is not there."""
        if not adds:
            return
        try:
            delta_log.mend(self.path)
            known = set(present_files(deltalake.DeltaTable(self.path))["path"].to_pylist())
        except (DeltaError, OSError) as error:
            log.warning("files_left_behind", table=self.path.name, error=str(error))
            return
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

    def _confirmed(
        self, handle: deltalake.DeltaTable, before: int, transactions: Mapping[str, int]
    ) -> int:
        """Version of the commit just made, found in the log, on disk and whole."""
        handle.update_incremental()
        ours = None
        for version in range(min(before, self._synced_version) + 1, handle.version() + 1):
            # Commits of others below ours are synced as well: a table ends at its first gap.
            with suppress(FileNotFoundError):
                delta_log.sync(delta_log.commit_file(self.path, version))
                found = delta_log.transactions(self.path, version)
                if version > before and found == dict(transactions):
                    ours = version
        delta_log.sync(self.path / "_delta_log")
        if ours is None:
            raise CommitVanished(f"No commit above {before} holds these transactions.")
        self._synced_version = handle.version()
        return ours

    def _loaded(self) -> deltalake.DeltaTable:
        # The checkpoint first: what the handle does not know of it yet is only loaded once more.
        checkpoint_ns = self._checkpoint_time()
        if self._handle is None or checkpoint_ns != self._checkpoint_ns:
            if self._handle is None:
                delta_log.mend(self.path)
            # Before the load: what others commit meanwhile is synced with our next commit.
            self._synced_version = delta_log.sync_commits(self.path)
            self._handle = deltalake.DeltaTable(self.path)
            self._checkpoint_ns = checkpoint_ns
            self._rows = _row_count(self._handle)
        return self._handle

    def _checkpoint_time(self) -> int:
        try:
            return (self.path / "_delta_log" / "_last_checkpoint").stat().st_mtime_ns
        except FileNotFoundError:
            return 0


def publish(
    handle: deltalake.DeltaTable,
    actions: Sequence[AddAction | RemoveAction],
    transactions: Mapping[str, int],
    told: Mapping[str, str] = {},
) -> None:
    """One commit of ours, by the handle that told the transactions; whoever calls syncs it.

    It says how many actions it has, so that one that was cut at the end of a line is known as torn.
    told: more to be said in its information."""
    known = [deltalake.Transaction(app_id, version) for app_id, version in transactions.items()]
    count = len(actions) + len(known)
    handle.create_write_transaction(
        list(actions),
        mode="append",
        schema=handle.schema(),
        partition_by=handle.metadata().partition_columns,
        commit_properties=deltalake.CommitProperties(
            custom_metadata={delta_log.ACTIONS: str(count), **told}, app_transactions=known
        ),
        post_commithook_properties=NO_HOOKS,
    )


def present_files(handle: deltalake.DeltaTable) -> pa.Table:
    """A row per data file of the version that a handle has loaded, with its statistics."""
    # Not `pa.table`, which imports pandas to see whether the argument is of it.
    return pa.RecordBatchReader.from_stream(handle.get_add_actions(flatten=True)).read_all()


def partition_of(add: Mapping[str, Any], columns: Sequence[str]) -> dict[str, str | None]:
    """The partition of a row of `present_files`, as the log writes its values."""
    values = {name: add[f"partition.{name}"] for name in columns}
    return {name: None if value is None else str(value) for name, value in values.items()}


def _row_count(handle: deltalake.DeltaTable) -> int:
    return pc.sum(present_files(handle)["num_records"]).as_py() or 0


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
        handle.alter.add_columns(missing, post_commithook_properties=NO_HOOKS)
        handle.update_incremental()
        delta_log.sync(delta_log.commit_file(path, handle.version()))
        delta_log.sync(path / "_delta_log")
    arrow = pa.schema(handle.schema().to_arrow())
    ours = {field.name: field for field in schema}
    # Where both have a column, ours says how Arrow names the inside of lists and maps.
    return pa.schema(
        [ours[f.name].with_nullable(f.nullable) if f.name in ours else f for f in arrow]
    )
