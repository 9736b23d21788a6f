"""The Delta tables that monitors write: profile and drift metrics, decisions.

Rows of a recomputed window replace the older ones in one commit: its data files are removed and the
new ones added together, so no reader ever sees a window twice or not at all. `window_key` tells
which rows belong together. Every key has a file of its own, whose name begins with the key's hash;
a file that somebody's compaction made of several is rewritten without the replaced rows.
"""

import hashlib
import json
import re
import time
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import deltalake
import pyarrow as pa
import pyarrow.fs as pa_fs
import pyarrow.parquet as pq
from deltalake.exceptions import DeltaError, TableNotFoundError
from deltalake.fs import DeltaStorageHandler
from deltalake.transaction import AddAction, RemoveAction

from capture import errors

TIMESTAMP = pa.timestamp("us", tz="UTC")
WINDOW = pa.struct([("start", TIMESTAMP), ("end", TIMESTAMP)])
RATES = pa.map_(pa.string(), pa.float64())
BY_CLASS = pa.struct(
    [
        ("one_vs_all", RATES),
        ("macro", pa.float64()),
        ("weighted", pa.float64()),
    ]
)
TEST = pa.struct([("statistic", pa.float64()), ("pvalue", pa.float64())])
KEY = "window_key"
CONFIGURATION = {"delta.logRetentionDuration": "interval 7 days"}
APPEND_ONLY = {"delta.appendOnly": "true"}  # these are compacted by `capture.maintenance`
RETENTION_HOURS = 168
ATTEMPTS = 5
UNTOUCHED = object()
Fields = Sequence[tuple[str, pa.DataType]]
OWN_FILE = re.compile(r"([0-9a-f]{16})-[0-9a-f-]{36}\.zstd\.parquet")

_GROUP: list[tuple[str, pa.DataType]] = [
    ("log_type", pa.string()),
    ("logging_table_commit_version", pa.int32()),
    ("monitor_version", pa.int64()),
    ("granularity", pa.string()),
    ("slice_key", pa.string()),
    ("slice_value", pa.string()),
]
_PROFILE: list[tuple[str, pa.DataType]] = [
    ("column_name", pa.string()),
    ("data_type", pa.string()),
    ("count", pa.int64()),
    ("num_nulls", pa.int64()),
    ("avg", pa.float64()),
    ("min", pa.float64()),
    ("max", pa.float64()),
    ("stddev", pa.float64()),
    ("quantiles", pa.list_(pa.float64())),
    ("num_zeros", pa.int64()),
    ("num_nan", pa.int64()),
    ("min_length", pa.float64()),
    ("max_length", pa.float64()),
    ("avg_length", pa.float64()),
    ("non_null_columns", pa.list_(pa.string())),
    ("frequent_items", pa.list_(pa.struct([("item", pa.string()), ("count", pa.int64())]))),
    ("median", pa.float64()),
    ("distinct_count", pa.int64()),
    ("percent_nan", pa.float64()),
    ("percent_null", pa.float64()),
    ("percent_zeros", pa.float64()),
    ("percent_distinct", pa.float64()),
    ("accuracy_score", pa.float64()),
    (
        "confusion_matrix",
        pa.list_(
            pa.struct([("prediction", pa.string()), ("label", pa.string()), ("count", pa.int64())])
        ),
    ),
    ("precision", BY_CLASS),
    ("recall", BY_CLASS),
    ("f1_score", BY_CLASS),
    ("roc_auc_score", BY_CLASS),
    ("log_loss", pa.float64()),
    ("predictive_parity", RATES),
    ("predictive_equality", RATES),
    ("equal_opportunity", RATES),
    ("statistical_parity", RATES),
    ("mean_squared_error", pa.float64()),
    ("root_mean_squared_error", pa.float64()),
    ("mean_average_error", pa.float64()),
    ("mean_absolute_percentage_error", pa.float64()),
    ("r2_score", pa.float64()),
]
_DRIFT: list[tuple[str, pa.DataType]] = [
    ("column_name", pa.string()),
    ("data_type", pa.string()),
    ("window_cmp", WINDOW),
    ("drift_type", pa.string()),
    ("count_delta", pa.int64()),
    ("avg_delta", pa.float64()),
    ("percent_null_delta", pa.float64()),
    ("percent_zeros_delta", pa.float64()),
    ("percent_distinct_delta", pa.float64()),
    ("ks_test", TEST),
    ("wasserstein_distance", pa.float64()),
    ("population_stability_index", pa.float64()),
    ("chi_squared_test", TEST),
    ("tv_distance", pa.float64()),
    ("l_infinity_distance", pa.float64()),
    ("js_distance", pa.float64()),
]
_OURS: list[tuple[str, pa.DataType]] = [(KEY, pa.string()), ("refresh_id", pa.int64())]


def profile_schema(model_id_col: str | None, custom: Fields = ()) -> pa.Schema:
    """Columns of `<table>_profile_metrics`; `quality`: JSON, metrics with their intervals;
    `custom`: metrics of the user's own."""
    return _schema(model_id_col, _PROFILE, [("quality", pa.string()), *custom])


def drift_schema(model_id_col: str | None, custom: Fields = ()) -> pa.Schema:
    """Columns of `<table>_drift_metrics`; ours say whether the column drifted, and why. `bound` is
    that of the deciding `metric`, `bounds` JSON of all: metric -> how far off its value may be."""
    judged: list[tuple[str, pa.DataType]] = [
        ("baseline_version", pa.int32()),
        ("kind", pa.string()),
        ("status", pa.string()),
        ("severity", pa.string()),
        ("metric", pa.string()),
        ("value", pa.float64()),
        ("threshold", pa.float64()),
        ("bound", pa.float64()),
        ("bounds", pa.string()),
        ("pvalue", pa.float64()),
        ("effect", pa.float64()),
        ("n", pa.int64()),
        ("n_baseline", pa.int64()),
        ("null_share", pa.float64()),
        ("null_share_baseline", pa.float64()),
        ("text", pa.string()),
        *custom,
    ]
    return _schema(model_id_col, _DRIFT, judged)


def _schema(
    model_id_col: str | None,
    documented: list[tuple[str, pa.DataType]],
    ours: list[tuple[str, pa.DataType]],
) -> pa.Schema:
    model = [(model_id_col, pa.string())] if model_id_col else []
    return pa.schema([("window", WINDOW), *_GROUP, *model, *documented, *_OURS, *ours])


DECISIONS = pa.schema(
    [
        ("decided_time", TIMESTAMP),
        ("written_time", TIMESTAMP),
        ("endpoint", pa.string()),
        ("experiment", pa.int32()),
        ("champion", pa.string()),
        ("challenger", pa.string()),
        ("kind", pa.string()),
        ("action", pa.string()),
        ("reasons", pa.list_(pa.string())),
        ("summary", pa.string()),
        ("config_version", pa.int32()),
        ("requests", pa.int64()),
        ("unpacked_commit_version", pa.int64()),
        ("labels_commit_version", pa.int64()),
        ("refresh_id", pa.int64()),
        ("decision", pa.string()),
    ]
)


def open_table(uri: str) -> deltalake.DeltaTable | None:
    """The newest state of a Delta table; None: there is none. Raises Unavailable."""
    try:
        return deltalake.DeltaTable(uri)
    except TableNotFoundError:
        return None
    except DeltaError as error:
        raise errors.Unavailable(f"A table cannot be read: {type(error).__name__}.") from None


def open_or_create(uri: str, schema: pa.Schema, append_only: bool = False) -> deltalake.DeltaTable:
    """The table; made, or widened by columns that it does not have yet."""
    table = open_table(uri)
    if table is None:
        if "://" not in uri:
            Path(uri).mkdir(parents=True, exist_ok=True)
        return deltalake.DeltaTable.create(
            uri,
            schema=schema,
            mode="ignore",
            configuration=CONFIGURATION | (APPEND_ONLY if append_only else {}),
        )
    known = {field.name for field in table.schema().fields}
    missing = [field for field in schema if field.name not in known]
    if missing:
        table.alter.add_columns(deltalake.Schema.from_arrow(pa.schema(missing)).fields)
        table = deltalake.DeltaTable(uri)
    return table


def filesystem(uri: str) -> pa_fs.FileSystem:
    """Files of a table, by their paths within it."""
    if "://" in uri:
        return pa_fs.PyFileSystem(DeltaStorageHandler(uri))
    return pa_fs.SubTreeFileSystem(uri, pa_fs.LocalFileSystem())


def replace_windows(
    uri: str,
    schema: pa.Schema,
    windows: Mapping[str, Sequence[Mapping[str, Any]]],
    app_id: str,
    app_version: int,
    keep_others: bool = True,
    fence: Callable[[], None] = lambda: None,
) -> int:
    """Replace the rows of every given window key by the given rows, in one commit.

    `windows`: window key -> rows, which may be none. `keep_others` False: no other window stays.
    The app transaction tells which refresh wrote it. Gives the table's version. Written again on a
    conflict, from the table's newest state. `fence` raises if the lease was lost: it is asked after
    that state was read, and whoever writes later than that makes this commit a conflict."""
    if not windows and keep_others:
        table = open_table(uri)
        return table.version() if table else -1
    for attempt in range(ATTEMPTS):
        table = open_or_create(uri, schema)
        fence()
        try:
            return _replace(table, uri, schema, windows, app_id, app_version, keep_others)
        except DeltaError:
            # Maintenance may have compacted a file that was to be removed. The files written by
            # this attempt are in no commit and go with the next vacuum.
            if attempt == ATTEMPTS - 1:
                raise
    raise errors.InternalError("unreachable")


def _replace(
    table: deltalake.DeltaTable,
    uri: str,
    schema: pa.Schema,
    windows: Mapping[str, Sequence[Mapping[str, Any]]],
    app_id: str,
    app_version: int,
    keep_others: bool,
) -> int:
    files = filesystem(uri)
    now_ms = time.time_ns() // 1_000_000
    actions: list[AddAction | RemoveAction] = []
    hashes = {_hash(key) for key in windows}
    found = pa.table(table.get_add_actions()).select(["path", "size_bytes"])
    for path, size in zip(*(column.to_pylist() for column in found.columns), strict=True):
        rest = _rest(files, path, hashes, windows) if keep_others else None
        if rest is UNTOUCHED:
            continue
        actions.append(RemoveAction(path, True, now_ms, size, {}))
        if isinstance(rest, pa.Table) and rest.num_rows:
            actions.append(_write(files, "rest", rest))
    for key, rows in windows.items():
        if rows:
            written = pa.Table.from_pylist(list(rows), schema=schema)
            actions.append(_write(files, _hash(key), written))
    table.create_write_transaction(
        actions,
        mode="append",
        schema=table.schema(),
        commit_properties=_properties(app_id, app_version),
    )
    table.update_incremental()
    return table.version()


def _hash(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()[:16]


def _rest(
    files: pa_fs.FileSystem, path: str, hashes: Collection[str], keys: Collection[str]
) -> pa.Table | object | None:
    """What stays of a file when these windows go: UNTOUCHED, some rows, or None."""
    named = OWN_FILE.fullmatch(path)
    if named:
        return None if named[1] in hashes else UNTOUCHED
    rows = pq.read_table(path, filesystem=files)
    stays = [key not in keys for key in rows.column(KEY).to_pylist()]
    return UNTOUCHED if all(stays) else rows.filter(pa.array(stays))


def _write(files: pa_fs.FileSystem, stem: str, rows: pa.Table) -> AddAction:
    path = f"{stem}-{uuid.uuid4()}.zstd.parquet"
    pq.write_table(rows, path, filesystem=files, compression="zstd", compression_level=1)
    return AddAction(
        path=path,
        size=files.get_file_info(path).size,
        partition_values={},
        modification_time=time.time_ns() // 1_000_000,
        data_change=True,
        stats=json.dumps({"numRecords": rows.num_rows}),
    )


def append(
    uri: str, schema: pa.Schema, rows: Sequence[Mapping[str, Any]], app_id: str, app_version: int
) -> int:
    """Append rows once: nothing happens if this app version was written before. Gives the table's
    version."""
    for attempt in range(ATTEMPTS):
        table = open_or_create(uri, schema, append_only=True)
        done = table.transaction_version(app_id)
        if done is not None and done >= app_version:
            return table.version()
        try:
            table.create_write_transaction(
                [_write(filesystem(uri), "part", pa.Table.from_pylist(list(rows), schema=schema))],
                mode="append",
                schema=table.schema(),
                commit_properties=_properties(app_id, app_version),
            )
            table.update_incremental()
            return table.version()
        except DeltaError:
            if attempt == ATTEMPTS - 1:
                raise
    raise errors.InternalError("unreachable")


def clean(uri: str) -> int:
    """Delete files that a week ago no reader could see any more; gives how many. Maintenance leaves
    tables alone in which rows are replaced."""
    table = open_table(uri)
    return 0 if table is None else len(table.vacuum(RETENTION_HOURS, dry_run=False))


def _properties(app_id: str, app_version: int) -> deltalake.CommitProperties:
    # No retries inside of delta-rs: it rebases a commit onto whatever came between without looking
    # whether a file to be removed is still there, and a compacted window would stand there twice.
    return deltalake.CommitProperties(
        max_commit_retries=0, app_transactions=[deltalake.Transaction(app_id, app_version)]
    )


def window_key(
    granularity: str | None, start: datetime, part: str, slice_: tuple[str, str] | None = None
) -> str:
    """Key of the rows of one window; `part`: `columns`, `table` (its whole-table rows), `drift`."""
    begun = start.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")
    cut = f"|{json.dumps(slice_)}" if slice_ else ""
    return f"{granularity or 'snapshot'}|{begun}|{part}{cut}"
