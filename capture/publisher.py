"""Delta feature table -> new LMDB snapshot, swapped whole.

A feature table is a Delta table whose configuration names its primary keys
(`inferlake.primary_keys`, a JSON list) and, for a history, its time column
(`inferlake.timeseries`). Of a history the snapshot holds the newest row of each key. Offline
reading (`serving.features.offline`) goes through `read` and `newest` here, so both sides see the
same rows in the same order.
"""

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import deltalake
import lmdb
import msgspec
import polars as pl

from capture import errors, logline, names, snapshots
from capture.settings import Settings

log = logline.logger(__name__)

PRIMARY_KEYS = "inferlake.primary_keys"
TIMESERIES = "inferlake.timeseries"
MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Definition:
    """What makes a Delta table a feature table."""

    primary_keys: tuple[str, ...]
    time_column: str | None

    @property
    def identity(self) -> list[str]:
        """Columns that tell a row from all others."""
        return [*self.primary_keys, *([] if self.time_column is None else [self.time_column])]


def configuration(definition: Definition) -> dict[str, str]:
    """Delta table configuration of a feature table."""
    found = {PRIMARY_KEYS: json.dumps(list(definition.primary_keys))}
    if definition.time_column is not None:
        found[TIMESERIES] = definition.time_column
    return found


def definition_of(table: deltalake.DeltaTable) -> Definition | None:
    """The definition in a table's configuration; None: not a feature table."""
    found = table.metadata().configuration
    if PRIMARY_KEYS not in found:
        return None
    return Definition(tuple(json.loads(found[PRIMARY_KEYS])), found.get(TIMESERIES))


def open_table(settings: Settings, full_name: str) -> tuple[deltalake.DeltaTable, Definition]:
    """A feature table. Raises DoesNotExist, or InvalidParameter for another kind of table."""
    path = names.table_path(settings.tables_root, names.table_name(full_name))
    if not deltalake.DeltaTable.is_deltatable(path):
        raise errors.DoesNotExist(f"Feature table '{full_name}' does not exist.")
    table = deltalake.DeltaTable(path)
    definition = definition_of(table)
    if definition is None:
        raise errors.InvalidParameter(
            f"Table '{full_name}' has no primary keys, so it is not a feature table."
        )
    return table, definition


def read(table: deltalake.DeltaTable, columns: list[str] | None = None) -> pl.DataFrame:
    """Rows of a table's loaded version, in the order of its files."""
    scan = pl.scan_delta(table)
    return (scan if columns is None else scan.select(columns)).collect()


def newest(frame: pl.DataFrame, definition: Definition) -> pl.DataFrame:
    """One row per primary key: of a history the newest, of rows that tie the last written.

    Rows with a null in the key, or in the time column, are nobody's and are left out."""
    frame = frame.drop_nulls(definition.identity)
    if definition.time_column is not None:
        frame = frame.sort(definition.time_column, maintain_order=True)
    return frame.unique(subset=definition.primary_keys, keep="last", maintain_order=True)


def check_columns(schema: pl.Schema, definition: Definition) -> None:
    """Raise InvalidParameter where a column cannot be a key, a time, or be served."""
    for name in definition.identity:
        if name not in schema:
            raise errors.InvalidParameter(
                f"Column '{name}' is not in the table; it has {', '.join(schema)[:500]}."
            )
    for name in definition.primary_keys:
        key_kind(name, schema[name])
    if definition.time_column is not None and not schema[definition.time_column].is_temporal():
        raise errors.InvalidParameter(
            f"Time column '{definition.time_column}' is of type "
            f"{schema[definition.time_column]}; use a date or timestamp."
        )
    for name, kind in schema.items():
        if kind in (pl.Binary, pl.Object, pl.Duration, pl.Null):
            raise errors.InvalidParameter(f"Column '{name}' of type {kind} cannot be served.")


def key_kind(name: str, kind: pl.DataType) -> str:
    """Kind of a key column in a snapshot. Raises InvalidParameter for a type no key can have."""
    if kind in (pl.String, pl.Categorical, pl.Enum):
        return "string"
    if kind.is_integer():
        return "int64"
    if kind.is_float():
        return "double"
    for known, answer in ((pl.Boolean, "bool"), (pl.Datetime, "timestamp"), (pl.Date, "date")):
        if kind == known:
            return answer
    raise errors.InvalidParameter(f"Primary key '{name}' of type {kind} is not allowed.")


def publish(settings: Settings, full_name: str) -> int:
    """Bring a feature table's snapshot to its newest version; the version that is now published.

    Raises DoesNotExist, InvalidParameter (not a feature table, or a column that cannot be served).
    """
    with _lock(settings.snapshots_dir, full_name):
        table, definition = open_table(settings, full_name)
        version = table.version()
        if published_version(settings.snapshots_dir, full_name) == version:
            return version
        started = time.monotonic()
        frame = newest(read(table), definition)
        check_columns(frame.schema, definition)
        facts, items = _pack(frame, definition, full_name, version)
        _write(snapshots.snapshot_path(settings.snapshots_dir, full_name), facts, items)
    elapsed_ms = round((time.monotonic() - started) * 1000)
    log.info(
        "published", table=full_name, table_version=version, rows=facts.rows, elapsed_ms=elapsed_ms
    )
    return version


def published_version(directory: Path, full_name: str) -> int | None:
    """Delta version of the present snapshot; None if there is none."""
    try:
        return snapshots.Snapshot.open(directory, full_name).facts.table_version
    except errors.Unavailable:
        return None


def _pack(
    frame: pl.DataFrame, definition: Definition, full_name: str, version: int
) -> tuple[snapshots.Facts, list[tuple[bytes, bytes]]]:
    """The facts of a snapshot and its rows as (key, value) bytes."""
    keys = list(definition.primary_keys)
    columns = [name for name in frame.columns if name not in keys]
    kinds = tuple(key_kind(name, frame.schema[name]) for name in keys)
    packers = snapshots.key_packers(kinds)
    encode = msgspec.msgpack.Encoder().encode
    values = frame.select(servable(frame.schema, name) for name in columns)
    packed_keys = (snapshots.pack_key(packers, key) for key in frame.select(keys).iter_rows())
    pairs = zip(packed_keys, values.iter_rows() if columns else ((),) * len(frame), strict=True)
    items = [(key, encode(row)) for key, row in pairs if key is not None]
    facts = snapshots.Facts(
        table=full_name,
        table_version=version,
        primary_keys=tuple(keys),
        key_kinds=kinds,
        columns=tuple(columns),
        time_column=definition.time_column,
        newest_us=_newest_us(frame, definition),
        rows=len(items),
        published_ms=time.time_ns() // 1_000_000,
    )
    return facts, items


def servable(schema: pl.Schema, name: str) -> pl.Expr:
    """A column as it is served: times as ISO 8601 text, decimals as doubles, categories as text."""
    kind, column = schema[name], pl.col(name)
    if isinstance(kind, pl.Datetime):
        if kind.time_zone not in (None, "UTC"):
            column = column.dt.convert_time_zone("UTC")
        return column.dt.strftime("%Y-%m-%dT%H:%M:%S%.fZ")
    if kind == pl.Date:
        return column.dt.strftime("%Y-%m-%d")
    if kind in (pl.Time, pl.Categorical, pl.Enum):
        return column.cast(pl.String)
    return column.cast(pl.Float64) if isinstance(kind, pl.Decimal) else column


def _newest_us(frame: pl.DataFrame, definition: Definition) -> int | None:
    if definition.time_column is None or frame.is_empty():
        return None
    newest_time: Any = frame.get_column(definition.time_column).cast(pl.Datetime("us")).max()
    return snapshots.microseconds(newest_time)


def _write(path: Path, facts: snapshots.Facts, items: list[tuple[bytes, bytes]]) -> None:
    """A whole new file beside the present one, synced, then renamed over it."""
    fresh = path.with_name(f"{os.getpid()}.new")
    fresh.unlink(missing_ok=True)
    size = sum(len(key) + len(value) for key, value in items)
    # Pages are filled to the brim when keys come sorted; a value over half a page takes whole
    # pages of its own. The map is address space, not memory and not disk.
    map_bytes = 16 * MIB + 4 * size + 2 * 4096 * sum(len(value) > 2000 for _, value in items)
    environment = lmdb.open(
        str(fresh), subdir=False, lock=False, map_size=map_bytes, sync=False, meminit=False
    )
    try:
        with environment.begin(write=True) as transaction:
            rows = sorted([(snapshots.FACTS_KEY, msgspec.json.encode(facts)), *items])
            transaction.cursor().putmulti(rows, append=True)
        environment.sync(True)
    finally:
        environment.close()
    fresh.replace(path)
    _sync_directory(path.parent)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _lock(directory: Path, full_name: str) -> Iterator[None]:
    """One publisher at a time per table, also over processes; an older version never comes last."""
    folder = snapshots.snapshot_path(directory, full_name).parent
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


@dataclass(slots=True)
class _Seen:
    """What `follow` knows of one table folder: `version` was tried, published or not."""

    log_inode: int
    is_feature_table: bool
    version: int
    failed: bool


_seen: dict[str, _Seen] = {}


def follow(settings: Settings) -> None:
    """Publish every feature table that has new commits; a few file look-ups when none has.

    A table that cannot be published is logged once per version and does not keep others back.
    Tables in an object store are published by name only (`publish`).
    """
    root = settings.tables_root
    if "://" in root:
        return
    for log_folder in sorted(Path(root).glob("*/*/*/_delta_log")):
        known = _seen.get(str(log_folder))
        if known is not None and known.log_inode == log_folder.stat().st_ino:
            if not known.is_feature_table:
                continue
            if not _has_news(settings, log_folder, known):
                continue
        _follow_one(settings, log_folder)


def _has_news(settings: Settings, log_folder: Path, known: _Seen) -> bool:
    if (log_folder / f"{known.version + 1:020}.json").exists():
        return True
    if known.failed:
        return False
    full_name = ".".join(log_folder.parts[-4:-1])
    return not snapshots.snapshot_path(settings.snapshots_dir, full_name).exists()


def _follow_one(settings: Settings, log_folder: Path) -> None:
    path = str(log_folder.parent)
    if not deltalake.DeltaTable.is_deltatable(path):
        return
    inode = log_folder.stat().st_ino
    table = deltalake.DeltaTable(path)
    version, is_feature_table = table.version(), definition_of(table) is not None
    failed = False
    if is_feature_table:
        full_name = ".".join(log_folder.parts[-4:-1])
        try:
            version = publish(settings, full_name)
        except Exception as error:  # noqa: BLE001  one bad table must not stop the others
            failed = True
            log.error("publish_failed", table=full_name, table_version=version, error=str(error))
    _seen[str(log_folder)] = _Seen(inode, is_feature_table, version, failed)
