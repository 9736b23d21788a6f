"""Commits to a Delta table on local disk: appends, put at the end of its log; all else by delta-rs.

delta-rs takes the whole state of a table up before and after each commit, which costs several times
as much as the Parquet file that it is about. Who appends needs to know the newest version, and the
newest of each app transaction: `Head` follows both from commit to commit, and puts its own where no
commit is. A file that is linked under a name is there whole or not at all, and where the name is
taken already the commit that took it is looked at first. So a transaction that moved meanwhile is
found, as delta-rs would find it.

An append reads nothing, and contradicts no other commit but one that changes what the table asks of
its writers: then the table is loaded anew. Tables that ask for more than ours do get their commits
from delta-rs.
"""

import json
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import deltalake
import pyarrow as pa
import pyarrow.compute as pc
from deltalake.transaction import AddAction, RemoveAction

from capture import delta_log

NO_HOOKS = deltalake.PostCommitHookProperties(create_checkpoint=False, cleanup_expired_logs=False)
READER_VERSION, NEWEST_WRITER_VERSION = 1, 2  # 2: appends alone, which ours are, and invariants
_INVARIANTS = "delta.invariants"
_ALWAYS_FOLLOWED = {"add", "txn", "commitInfo"}


class CommitVanished(Exception):
    """A commit returned, but is not in the log, or not whole."""


class LogMoved(Exception):
    """Another commit came first, and ours cannot stand behind it: load the table anew."""


class Head:
    """The end of a table's log, as one that appends knows it.

    Made from the table as it is; its log must be mended and on disk.

    version: the newest; rows: in the table at that version."""

    def __init__(self, path: Path) -> None:
        self._path = path
        checkpoint_ns = _checkpoint_time(path)  # first: what comes now makes it stale
        self._handle = deltalake.DeltaTable(path)
        self._transactions: dict[str, int | None] = {}  # asked for, or committed since
        self._checkpoint_ns = checkpoint_ns
        self._is_plain = _is_plain(self._handle)
        self._is_outdated = False
        self.version = self._handle.version()
        self.rows = pc.sum(present_files(self._handle)["num_records"]).as_py() or 0

    @property
    def is_stale(self) -> bool:
        """Whether the table has to be loaded anew: something else than appends was committed, or
        commits that were loaded may have left the log, where delta-rs looks for them again."""
        return (
            self._is_outdated
            or _checkpoint_time(self._path) != self._checkpoint_ns
            or not delta_log.commit_file(self._path, self.version).exists()
        )

    def transaction_version(self, app_id: str) -> int | None:
        """Newest version of an application at this version of the table; None: none yet."""
        if app_id not in self._transactions:
            self._transactions[app_id] = self._handle.transaction_version(app_id)
        return self._transactions[app_id]

    def follow(self) -> None:
        """Take in what others have committed."""
        before = self.version
        with suppress(FileNotFoundError, LogMoved):
            while not self._is_outdated:
                self._take_in(self.version + 1)
        if self.version > before:
            delta_log.sync(self._path / "_delta_log")

    def append(self, adds: Sequence[AddAction], transactions: Mapping[str, int], rows: int) -> int:
        """Commit files of so many rows, with app transactions that are newer than those known here;
        on disk when it returns. Gives the version. Raises LogMoved, LogCleaned, CommitVanished,
        OSError, and what delta-rs raises: then the log alone tells what became of it.
        """
        if self._is_plain:
            partition_by = self._handle.metadata().partition_columns
            self._put(_text(adds, transactions, partition_by), transactions)
        else:
            self._publish(adds, transactions)
        self._transactions |= transactions
        self.rows += rows
        return self.version

    def _put(self, text: str, transactions: Mapping[str, int]) -> None:
        known = {app_id: self.transaction_version(app_id) for app_id in transactions}
        while not delta_log.put_commit(self._path, self.version + 1, text):
            self._take_in(self.version + 1)
            moved = [one for one, seen in known.items() if self.transaction_version(one) != seen]
            if moved:
                raise LogMoved(f"A newer transaction of {moved} came first.")
        self.version += 1

    def _take_in(self, version: int) -> None:
        """Learn of another's commit. Raises FileNotFoundError, LogMoved."""
        file = delta_log.commit_file(self._path, version)
        lines = delta_log.actions(file)
        kinds = {kind for line in lines or () for kind in line}
        if lines is None or kinds & {"metaData", "protocol"}:
            self._is_outdated = True
            raise LogMoved(f"Commit {version} is torn, or changes what the table asks of writers.")
        # A table ends at its first gap: ours must not be behind one. Its entry is synced later.
        delta_log.sync(file)
        self._is_outdated |= not kinds <= _ALWAYS_FOLLOWED
        for line in lines:
            if "txn" in line:
                self._transactions[line["txn"]["appId"]] = line["txn"]["version"]
            elif "add" in line:
                self.rows += json.loads(line["add"].get("stats") or "{}").get("numRecords", 0)
        self.version = version

    def _publish(self, adds: Sequence[AddAction], transactions: Mapping[str, int]) -> None:
        """Have delta-rs commit, and find that in the log."""
        before = self._handle.version()
        publish(self._handle, adds, transactions)
        self._handle.update_incremental()
        self._transactions.clear()  # the handle has seen those of others as well
        newest, ours = self._handle.version(), None
        for version in range(before + 1, newest + 1):
            # Read back, because an empty commit would be taken as one without rows.
            with suppress(FileNotFoundError):
                delta_log.sync(delta_log.commit_file(self._path, version))
                if delta_log.transactions(self._path, version) == dict(transactions):
                    ours = version
        delta_log.sync(self._path / "_delta_log")
        if ours is None:
            raise CommitVanished(f"No commit above {before} holds these transactions.")
        self.version = newest


def _checkpoint_time(path: Path) -> int:
    try:
        return (path / "_delta_log" / "_last_checkpoint").stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def _is_plain(handle: deltalake.DeltaTable) -> bool:
    """Whether a table asks of its writers what ours does, and no more."""
    asked = handle.protocol()
    return (
        asked.min_reader_version == READER_VERSION
        and asked.min_writer_version <= NEWEST_WRITER_VERSION
        and _INVARIANTS not in handle.schema().to_json()
    )


def _text(
    adds: Sequence[AddAction], transactions: Mapping[str, int], partition_by: Sequence[str]
) -> str:
    """A commit that appends, an action a line; its information says how many follow."""
    lines: list[dict[str, Any]] = [
        {
            "add": {
                "path": add.path,
                "partitionValues": add.partition_values,
                "size": add.size,
                "modificationTime": add.modification_time,
                "dataChange": add.data_change,
                "stats": add.stats,
            }
        }
        for add in adds
    ]
    lines += [{"txn": {"appId": one, "version": seen}} for one, seen in transactions.items()]
    information = {
        "timestamp": time.time_ns() // 1_000_000,
        "operation": "WRITE",
        "operationParameters": {"mode": "Append", "partitionBy": json.dumps(list(partition_by))},
        "engineInfo": "inferlake",
        "isBlindAppend": True,
        delta_log.ACTIONS: str(len(lines)),
    }
    return "\n".join(json.dumps(line) for line in [{"commitInfo": information}, *lines]) + "\n"


# By delta-rs -------------------------------------------------------------------------------------


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
