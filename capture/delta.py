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

import json
import os
import re
import time
import uuid
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote

import deltalake
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from deltalake.exceptions import DeltaError
from deltalake.transaction import AddAction

from capture import errors, logline, names
from capture.settings import Settings

log = logline.logger(__name__)

ROW_GROUP_ROWS = 128 * 1024
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
NO_HOOKS = deltalake.PostCommitHookProperties(create_checkpoint=False, cleanup_expired_logs=False)
HISTORY = "_history"
HISTORY_DAYS = 8
_SAFE_VALUE = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)
_CHECKPOINT = re.compile(r"(\d{20})\.checkpoint\.parquet")
_COMMIT = re.compile(r"(\d{20})\.json")


class CommitVanished(Exception):
    """A commit returned, but is not in the log, or not whole."""


def path_of(settings: Settings, full_name: str) -> Path:
    """Folder of a table. Raises InvalidParameter, NotImplementedHere for object storage."""
    if "://" in settings.tables_root:
        raise errors.NotImplementedHere(
            "Tables on object storage are not offered yet; leave INFERLAKE_TABLES_URI empty."
        )
    return Path(names.table_path(settings.tables_root, names.table_name(full_name)))


# Files -------------------------------------------------------------------------------------------


def sync(path: Path) -> None:
    """Put a file, or a folder's entries, on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _made(folder: Path) -> Path:
    """A folder that exists, and whose entry is on disk if it was made here."""
    if not folder.exists():
        parent = _made(folder.parent)
        folder.mkdir(exist_ok=True)
        sync(parent)
    return folder


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
    """The columns of a schema, in its order and types; missing nullable ones are null.

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
        rows[f.name].cast(f.type) if f.name in rows.column_names else pa.nulls(len(rows), f.type)
        for f in schema
    ]
    return pa.Table.from_arrays(columns, schema=schema)


def sorted_by(rows: pa.Table, column: str | None) -> pa.Table:
    """Rows in ascending order of a column; equal ones stay as they came."""
    if column is None or len(rows) < 2:
        return rows
    values = rows[column].combine_chunks()
    if pc.all(pc.less_equal(values[:-1], values[1:])).as_py():
        return rows
    return rows.take(pc.sort_indices(values))


def _parts(rows: pa.Table, by: Sequence[str]) -> list[tuple[dict[str, str | None], pa.Table]]:
    """Rows by value of the partition columns; the value as the log writes it."""
    if not by:
        return [({}, rows)]
    column, *rest = by
    found = []
    for value in pc.unique(rows[column]):
        matches = pc.equal(rows[column], value) if value.is_valid else pc.is_null(rows[column])
        part = rows if pc.all(matches, skip_nulls=False).as_py() else rows.filter(matches)
        text = str(value.as_py()) if value.is_valid else None
        found += [({column: text, **other}, below) for other, below in _parts(part, rest)]
    return found


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
    _made(target.parent)
    measured = layout.measured
    try:
        pq.write_table(
            rows.select(layout.file_schema.names),
            target,
            compression="zstd",
            compression_level=1,
            row_group_size=ROW_GROUP_ROWS,
            use_dictionary=[c for c in layout.dictionary_columns if c not in layout.partition_by],
            write_statistics=measured,
        )
        sync(target)
        sync(target.parent)
    except BaseException:  # on a full disk its bytes are needed
        target.unlink(missing_ok=True)
        raise
    return AddAction(
        path=relative,
        size=target.stat().st_size,
        partition_values=dict(partition),
        modification_time=time.time_ns() // 1_000_000,
        data_change=is_new_data,
        stats=_statistics(rows, measured),
    )


# The log -----------------------------------------------------------------------------------------


def commit_file(path: Path, commit_version: int) -> Path:
    return path / "_delta_log" / f"{commit_version:020}.json"


def _numbered(path: Path, pattern: re.Pattern[str]) -> list[int]:
    try:
        entries = [entry.name for entry in (path / "_delta_log").iterdir()]
    except FileNotFoundError:
        return []
    return sorted(int(found[1]) for name in entries if (found := pattern.fullmatch(name)))


def commit_versions(path: Path) -> list[int]:
    """Versions whose commit file is there, ascending."""
    return _numbered(path, _COMMIT)


def checkpoint_versions(path: Path) -> list[int]:
    """Versions that have a checkpoint, ascending."""
    return _numbered(path, _CHECKPOINT)


def checkpoint_file(path: Path, commit_version: int) -> Path:
    return path / "_delta_log" / f"{commit_version:020}.checkpoint.parquet"


def _actions(file: Path) -> list[dict[str, Any]] | None:
    """Actions of a commit file; None if it is empty or torn."""
    try:
        lines = [json.loads(line) for line in file.read_bytes().splitlines() if line.strip()]
    except ValueError:
        return None
    return lines if lines and all(isinstance(line, dict) for line in lines) else None


def _is_parquet(file: Path) -> bool:
    try:
        pq.read_metadata(file)
    except (OSError, pa.ArrowInvalid):
        return False
    return True


def _set_aside(file: Path, event: str) -> None:
    place = file.with_name(f".damaged-{time.time_ns()}-{file.name}")
    file.rename(place)
    sync(file.parent)
    log.warning(event, table=file.parent.parent.name, file=file.name)


def mend(path: Path) -> None:
    """Make a table readable again whose log a crash left damaged.

    A last commit that is empty or torn is set aside: its rows still lie in the write-ahead log. A
    torn checkpoint goes, as does a `_last_checkpoint` that names none: the commits tell all.
    """
    for version in reversed(commit_versions(path)):
        if _actions(commit_file(path, version)) is not None:
            break
        _set_aside(commit_file(path, version), "commit_set_aside")
    for version in checkpoint_versions(path)[-1:]:
        if not _is_parquet(checkpoint_file(path, version)):
            _set_aside(checkpoint_file(path, version), "checkpoint_set_aside")
    pointer = path / "_delta_log" / "_last_checkpoint"
    if pointer.exists() and not _names_a_checkpoint(path, pointer):
        _set_aside(pointer, "checkpoint_pointer_set_aside")


def _names_a_checkpoint(path: Path, pointer: Path) -> bool:
    try:
        named = json.loads(pointer.read_bytes())
        return int(named["version"]) in checkpoint_versions(path) or "parts" in named
    except (ValueError, KeyError, TypeError):
        return False


def _sync_created(path: Path) -> None:
    sync(commit_file(path, 0))
    for folder in (path / "_delta_log", path):
        sync(folder)


# The handle --------------------------------------------------------------------------------------


class Table:
    """A Delta table that this process appends to. See the rules above; made by `open_or_create`."""

    def __init__(self, path: Path, layout: Layout) -> None:
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
            self._publish(handle, adds, transactions)
            commit_version = self._confirmed(handle, before, transactions)
        except BaseException:
            self.forget()
            self._take_back(adds, transactions)
            raise
        self._rows += len(rows)
        return commit_version

    def _take_back(self, adds: list[AddAction], transactions: Mapping[str, int]) -> None:
        """Delete files whose commit failed, once the log says that it is not there."""
        if not adds:
            return
        try:
            handle = deltalake.DeltaTable(self.path)
        except DeltaError as error:
            log.warning("files_left_behind", table=self.path.name, error=str(error))
            return
        for app_id, version in transactions.items():
            seen = handle.transaction_version(app_id)
            if seen is not None and seen >= version:
                return
        for add in adds:
            (self.path / add.path).unlink(missing_ok=True)

    def _write(self, rows: pa.Table) -> list[AddAction]:
        fitting = conformed(rows, self.layout.schema)
        in_order = sorted_by(fitting, self.layout.time_column)
        parts = _parts(in_order, self.layout.partition_by)
        return [write_file(self.path, self.layout, values, part) for values, part in parts]

    def _publish(
        self,
        handle: deltalake.DeltaTable,
        adds: list[AddAction],
        transactions: Mapping[str, int],
    ) -> None:
        known = [deltalake.Transaction(app_id, v) for app_id, v in transactions.items()]
        handle.create_write_transaction(
            list(adds),
            mode="append",
            schema=handle.schema(),
            partition_by=list(self.layout.partition_by),
            commit_properties=deltalake.CommitProperties(app_transactions=known),
            post_commithook_properties=NO_HOOKS,
        )

    def _confirmed(
        self, handle: deltalake.DeltaTable, before: int, transactions: Mapping[str, int]
    ) -> int:
        """Version of the commit just made, found in the log, on disk and whole."""
        handle.update_incremental()
        ours = None
        for version in range(min(before, self._synced_version) + 1, handle.version() + 1):
            # Commits of others below ours are synced as well: a table ends at its first gap.
            with suppress(FileNotFoundError):
                sync(commit_file(self.path, version))
                if version > before and _transactions(self.path, version) == dict(transactions):
                    ours = version
        sync(self.path / "_delta_log")
        if ours is None:
            raise CommitVanished(f"No commit above {before} holds these transactions.")
        self._synced_version = handle.version()
        return ours

    def _loaded(self) -> deltalake.DeltaTable:
        # The checkpoint first: what the handle does not know of it yet is only loaded once more.
        checkpoint_ns = self._checkpoint_time()
        if self._handle is None or checkpoint_ns != self._checkpoint_ns:
            if self._handle is None:
                mend(self.path)
            self._handle = deltalake.DeltaTable(self.path)
            self._checkpoint_ns = checkpoint_ns
            self._synced_version = self._handle.version()
            self._rows = _row_count(self._handle)
        return self._handle

    def _checkpoint_time(self) -> int:
        try:
            return (self.path / "_delta_log" / "_last_checkpoint").stat().st_mtime_ns
        except FileNotFoundError:
            return 0


def _transactions(path: Path, commit_version: int) -> dict[str, int]:
    found = [a["txn"] for a in _actions(commit_file(path, commit_version)) or [] if "txn" in a]
    return {txn["appId"]: txn["version"] for txn in found}


def present_files(handle: deltalake.DeltaTable) -> pa.Table:
    """A row per data file of the version that a handle has loaded, with its statistics."""
    # Not `pa.table`, which imports pandas to see whether the argument is of it.
    return pa.RecordBatchReader.from_stream(handle.get_add_actions(flatten=True)).read_all()


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
    mend(path)
    if not commit_versions(path) and not checkpoint_versions(path):
        _create(path, schema, by, {**CREATED_WITH, **(configuration or {})})
    handle = deltalake.DeltaTable(path)
    known = _widened(path, handle, schema)
    return Table(path, _layout(known, handle, time_column, dictionary_columns))


def layout_of(handle: deltalake.DeltaTable) -> Layout:
    """How a table's rows become files, where nobody said more."""
    return _layout(pa.schema(handle.schema().to_arrow()), handle, None, None)


def _layout(
    schema: pa.Schema,
    handle: deltalake.DeltaTable,
    time_column: str | None,
    dictionary_columns: Collection[str] | None,
) -> Layout:
    times = [field.name for field in schema if pa.types.is_timestamp(field.type)]
    if dictionary_columns is None:
        texts = (field.name for field in schema if pa.types.is_string(field.type))
        dictionary_columns = frozenset(texts) - HIGH_CARDINALITY
    encoded = tuple(name for name in schema.names if name in dictionary_columns)
    order = time_column or (times[0] if times else None)
    return Layout(schema, tuple(handle.metadata().partition_columns), order, encoded)


def _create(
    path: Path, schema: pa.Schema, by: tuple[str, ...], configuration: Mapping[str, str]
) -> None:
    _made(path)
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
        sync(commit_file(path, handle.version()))
        sync(path / "_delta_log")
    arrow = pa.schema(handle.schema().to_arrow())
    ours = {field.name: field for field in schema}
    # Where both have a column, ours says how Arrow names the inside of lists and maps.
    return pa.schema(
        [ours[f.name].with_nullable(f.nullable) if f.name in ours else f for f in arrow]
    )


# What is new -------------------------------------------------------------------------------------


class DataFile(NamedTuple):
    """A data file that a commit added."""

    path: Path
    commit_version: int
    partition: dict[str, str | None]
    rows: int | None
    size_bytes: int


class Since(NamedTuple):
    """Files added by commits up to `version`, oldest commit first."""

    version: int
    files: list[DataFile]


class HistoryGone(Exception):
    """Commits that were asked for are no longer known; look at the table's present files."""


def _added(path: Path, commit_version: int, actions: list[dict[str, Any]]) -> list[DataFile]:
    adds = [action["add"] for action in actions if "add" in action]
    return [
        DataFile(
            path / unquote(add["path"]),
            commit_version,
            add.get("partitionValues") or {},
            json.loads(add.get("stats") or "{}").get("numRecords"),
            add["size"],
        )
        for add in adds
        if add["dataChange"]
    ]


def files_since(path: Path, version: int) -> Since:
    """Data files of the commits above `version` (-1: all), without those of compaction.

    Raises HistoryGone if these commits are older than the history, 8 days.
    """
    present = commit_versions(path)
    if not present:
        return Since(version, [])
    files: list[DataFile] = []
    if present[0] > version + 1:
        files += _archived(path, version, present[0])
    newest = max(version, present[0] - 1)
    for commit_version in range(newest + 1, present[-1] + 1):
        try:
            actions = _actions(commit_file(path, commit_version))
        except FileNotFoundError:
            if commit_versions(path)[0] < commit_version:
                raise HistoryGone(f"Commit {commit_version} is missing from the log.") from None
            return files_since(path, version)  # moved to the history while we read
        if actions is None:
            break  # torn: its owner will set it aside
        files += _added(path, commit_version, actions)
        newest = commit_version
    return Since(newest, files)


def _archived(path: Path, version: int, end: int) -> list[DataFile]:
    found: dict[int, list[DataFile]] = {}
    for file in sorted((path / HISTORY).glob("*.jsonl")):
        for line in file.read_bytes().splitlines():
            try:
                commit_version, adds = json.loads(line)
            except ValueError:
                continue  # torn by a crash: the commit is still in the log, or further down
            if version < commit_version < end:
                actions = [{"add": {**add, "dataChange": True}} for add in adds]
                found[commit_version] = _added(path, commit_version, actions)
    if len(found) != end - version - 1:
        raise HistoryGone(f"Commits {version + 1} to {end - 1} are no longer known.")
    return [file for commit_version in sorted(found) for file in found[commit_version]]


def move_to_history(path: Path, keep: int) -> int:
    """Take commits that two checkpoints cover out of the log, all but the newest `keep`.

    Nothing is taken above the older of two sound checkpoints, so that the table survives the loss
    of one. Gives the number of commits taken.
    """
    checkpoints = checkpoint_versions(path)
    versions = commit_versions(path)
    if len(checkpoints) < 2 or len(versions) <= keep:
        return 0
    if not all(_is_parquet(checkpoint_file(path, version)) for version in checkpoints[-2:]):
        return 0
    for version in checkpoints[-2:]:
        sync(checkpoint_file(path, version))
    sync(path / "_delta_log")
    end = min(checkpoints[-2], versions[-keep])
    taken = [version for version in versions if version < end]
    _write_history(path, taken)
    for version in taken:
        commit_file(path, version).unlink(missing_ok=True)
    for version in checkpoints[:-2]:
        checkpoint_file(path, version).unlink(missing_ok=True)
    return len(taken)


def _write_history(path: Path, versions: list[int]) -> None:
    folder = _made(path / HISTORY)
    target = folder / f"{datetime.now(UTC):%Y-%m-%d}.jsonl"
    with target.open("ab") as file:
        file.write(b"\n")  # ends a line that a crash may have torn
        for version in versions:
            actions = _actions(commit_file(path, version)) or []
            adds = [a["add"] for a in actions if "add" in a and a["add"]["dataChange"]]
            kept = ("path", "partitionValues", "stats", "size")
            line = [version, [{name: add.get(name) for name in kept} for add in adds]]
            file.write(json.dumps(line).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())
    sync(folder)
    for old in sorted(folder.glob("*.jsonl"))[:-HISTORY_DAYS]:
        old.unlink()
