"""The committer's niced child: unpacking, feature snapshots, and the upkeep of tables.

The committer tells on standard input which tables it committed to; when that ends, so does this
process, at once and wherever it is: everything here can be begun again. It unpacks what is new,
publishes feature snapshots, and keeps a commit cheap (see `delta`): a checkpoint every 50 commits,
few commits in the log, few small files. Only append-only tables are compacted and vacuumed: in
others a removal of ours could undo one of theirs.
"""

import fcntl
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote

import deltalake
import pyarrow as pa
import pyarrow.parquet as pq
from deltalake.transaction import AddAction, RemoveAction

from capture import data_files, delta, delta_history, delta_log, logline, names, publisher, unpack
from capture.settings import Settings

log = logline.logger(__name__)

NICENESS = 10
PUBLISH_SECONDS = 1.0
LOOK_SECONDS = 5.0
UPKEEP_SECONDS = 3600.0  # for tables without news: closed days, vacuum
FIRST_RETRY_SECONDS, LAST_RETRY_SECONDS = 1.0, 60.0

CHECKPOINT_COMMITS = 50
KEPT_COMMITS = 256
COMPACTION = "inferlake:compaction"  # app transaction: two compactions must not pass each other
SMALL_FILES = 64
SMALL_BYTES = 16 << 20
CLOSED_BYTES = 64 << 20  # below this, files of a closed day are merged
MERGED_BYTES, MERGED_ROWS = 64 << 20, 512_000
CLOSED_AFTER = timedelta(hours=1)
RETENTION_HOURS = 168
VACUUM_SECONDS = 86_400.0
FULL_VACUUM_SECONDS = 7 * 86_400.0


# Upkeep of one table -----------------------------------------------------------------------------


class ActiveFile(NamedTuple):
    """A data file of the table's present version."""

    path: str
    partition: tuple[tuple[str, str | None], ...]
    size_bytes: int
    rows: int
    first_time: str


@dataclass(frozen=True, slots=True)
class Done:
    """What one upkeep did."""

    checkpointed: bool = False
    merged_files: int = 0
    moved_commits: int = 0
    deleted_files: int = 0


def is_due(path: Path, commits: int = CHECKPOINT_COMMITS) -> bool:
    """Whether a table has had this many commits since its newest checkpoint."""
    versions = delta_log.commit_versions(path)
    checkpoints = delta_log.checkpoint_versions(path)
    return bool(versions) and versions[-1] - (checkpoints[-1] if checkpoints else -1) >= commits


def maintain(path: Path, now: datetime) -> Done:
    """Compact, checkpoint, clean the log, vacuum: each if it is time. Safe to repeat.

    now: aware UTC; closed days are those an hour behind its midnight."""
    handle = deltalake.DeltaTable(path)
    if handle.metadata().configuration.get("delta.appendOnly") != "true":
        return Done()
    merged = compact(handle, path, now)
    checkpointed = is_due(path)
    if checkpointed:
        _checkpoint(path)
    moved = delta_history.move_to_history(path, KEPT_COMMITS)
    return Done(checkpointed, merged, moved, _vacuum(path, now))


def _checkpoint(path: Path) -> None:
    handle = deltalake.DeltaTable(path)
    handle.create_checkpoint()
    delta_log.sync(delta_log.checkpoint_file(path, handle.version()))
    delta_log.sync(path / "_delta_log" / "_last_checkpoint")
    delta_log.sync(path / "_delta_log")


def _vacuum(path: Path, now: datetime) -> int:
    """Delete files that no version of the last 7 days has: daily those that a compaction replaced,
    weekly those of commits that never came to be as well."""
    full = _is_older(path / delta_history.HISTORY / "vacuumed-full", now, FULL_VACUUM_SECONDS)
    if not full and not _is_older(path / delta_history.HISTORY / "vacuumed", now, VACUUM_SECONDS):
        return 0
    handle = deltalake.DeltaTable(path)
    deleted = handle.vacuum(
        RETENTION_HOURS, dry_run=False, full=full, post_commithook_properties=delta.NO_HOOKS
    )
    _sync_log(path, handle)
    (path / delta_history.HISTORY).mkdir(exist_ok=True)
    for name in ("vacuumed", "vacuumed-full") if full else ("vacuumed",):
        marker = path / delta_history.HISTORY / name
        marker.touch()
        os.utime(marker, (now.timestamp(), now.timestamp()))
    return len(deleted)


def _is_older(marker: Path, now: datetime, seconds: float) -> bool:
    try:
        return now.timestamp() - marker.stat().st_mtime >= seconds
    except FileNotFoundError:
        return True


def _sync_log(path: Path, handle: deltalake.DeltaTable) -> None:
    before = handle.version()
    handle.update_incremental()
    for version in range(before, handle.version() + 1):
        delta_log.sync(delta_log.commit_file(path, version))
    delta_log.sync(path / "_delta_log")


# Compaction --------------------------------------------------------------------------------------


def active_files(handle: deltalake.DeltaTable, layout: data_files.Layout) -> list[ActiveFile]:
    """Files of the version that a handle has loaded."""
    adds = delta.present_files(handle).to_pylist()
    return [
        ActiveFile(
            add["path"],
            tuple((name, _text(add[f"partition.{name}"])) for name in layout.partition_by),
            add["size_bytes"],
            add["num_records"],
            str(add.get(f"min.{layout.time_column}")),
        )
        for add in adds
        if add["num_records"] is not None
    ]


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


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
    """Merge small files; rows keep the order of time. Gives the number of files replaced."""
    layout = delta.layout_of(handle)
    groups = groups_to_merge(active_files(handle, layout), now)
    if not groups:
        return 0
    removes: list[RemoveAction] = []
    adds: list[AddAction] = []
    moment = time.time_ns() // 1_000_000
    for group in groups:
        partition = dict(group[0].partition)
        adds.append(
            data_files.write_file(path, layout, partition, _merged(path, layout, group), False)
        )
        removes += [
            RemoveAction(file.path, False, moment, file.size_bytes, partition) for file in group
        ]
    turn = (handle.transaction_version(COMPACTION) or 0) + 1
    handle.create_write_transaction(
        [*removes, *adds],
        mode="append",
        schema=handle.schema(),
        partition_by=list(layout.partition_by),
        commit_properties=deltalake.CommitProperties(
            app_transactions=[deltalake.Transaction(COMPACTION, turn)]
        ),
        post_commithook_properties=delta.NO_HOOKS,
    )
    _sync_log(path, handle)
    return len(removes)


def _merged(path: Path, layout: data_files.Layout, group: Sequence[ActiveFile]) -> pa.Table:
    parts = []
    for file in group:
        part = pq.ParquetFile(path / unquote(file.path)).read()
        if len(part) != file.rows:
            raise ValueError(f"File {file.path} has {len(part)} rows, the log says {file.rows}.")
        parts.append(data_files.conformed(part, layout.file_schema))
    return data_files.sorted_by(pa.concat_tables(parts), layout.time_column)


# The process -------------------------------------------------------------------------------------


class Inbox:
    """Tables that the committer told of. Ends the process when the committer is gone."""

    def __init__(self) -> None:
        self._told: dict[str, str] = {}
        self._lock = threading.Lock()
        self._arrived = threading.Event()

    def listen(self) -> None:
        """Read standard input in a thread of its own."""
        threading.Thread(target=self._listen, name="inbox", daemon=True).start()

    def _listen(self) -> None:
        for line in sys.stdin:
            told = json.loads(line)
            with self._lock:
                self._told[told["table"]] = told["kind"]
            self._arrived.set()
        # Nothing here is worth waiting for, and a new committer starts a new child at once.
        os._exit(0)

    def take(self, timeout_seconds: float) -> dict[str, str]:
        """Tables with news and their kinds, as soon as there are any; else nothing."""
        self._arrived.wait(timeout_seconds)
        with self._lock:
            self._arrived.clear()
            told, self._told = self._told, {}
        return told


class Attempts:
    """Runs jobs, logs what fails, and tries that again later and later."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._waits: dict[str, tuple[float, float]] = {}

    def is_waiting(self, name: str) -> bool:
        """Whether a job failed and its next try has not come yet."""
        return name in self._waits and self._waits[name][1] > self._monotonic()

    def run(self, name: str, job: Callable[[], Any]) -> bool:
        """Run a job unless its next try has not come yet. Gives whether it succeeded."""
        if self.is_waiting(name):
            return False
        try:
            job()
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # noqa: BLE001 - a panic of polars is no Exception
            before, _ = self._waits.get(name, (FIRST_RETRY_SECONDS / 2, 0.0))
            delay = min(before * 2, LAST_RETRY_SECONDS)
            self._waits[name] = (delay, self._monotonic() + delay)
            message = f"{type(error).__name__}: {error}"[:2000]
            log.error("job_failed", job=name, error=message, retry_seconds=delay)
            return False
        self._waits.pop(name, None)
        return True


class Keeper:
    """What the child does at each turn."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._attempts = Attempts()
        self._behind: set[str] = set()
        self._publish_at = self._look_at = 0.0
        self._begun_at = time.monotonic()
        self._kept_at: dict[str, float] = {}

    def tables(self) -> dict[str, Path]:
        """All tables, by full name."""
        root = Path(self._settings.tables_root)
        found = sorted(root.glob("*/*/*/_delta_log"))
        return {".".join(log.parent.parts[-3:]): log.parent for log in found}

    def begin(self) -> None:
        """See to what was missed: all payload tables count as told of."""
        self._behind |= {name for name in self.tables() if name.endswith("_payload")}

    def turn(self, told: dict[str, str]) -> None:
        """Unpack, publish, look after tables: what is due."""
        self._behind |= {name for name, kind in told.items() if kind == "payload"}
        for name in sorted(self._behind):
            if self._attempts.run(f"unpack {name}", partial(unpack.follow, self._settings, name)):
                self._behind.discard(name)
        now = time.monotonic()
        if now >= self._publish_at:
            self._publish_at = now + PUBLISH_SECONDS
            self._attempts.run("publish", partial(publisher.follow, self._settings))
        if now >= self._look_at:
            self._look_at = now + LOOK_SECONDS
            self._look(self.tables())
        else:
            known = {name: names.table_name(name) for name in told}
            root = self._settings.tables_root
            self._look({name: Path(names.table_path(root, known[name])) for name in told})

    def _look(self, tables: dict[str, Path]) -> None:
        for name, path in tables.items():
            # A table's commits stay in its log until they are unpacked.
            if name in self._behind:
                continue
            last = self._kept_at.get(name, self._begun_at)
            if is_due(path) or time.monotonic() - last >= UPKEEP_SECONDS:
                self._attempts.run(f"maintain {name}", partial(self._maintain, name, path))

    def _maintain(self, name: str, path: Path) -> None:
        start = self._kept_at[name] = time.monotonic()
        done = maintain(path, datetime.now(UTC))
        if done.merged_files and name.endswith("_payload"):
            # The merge is a commit, too: until unpacking has gone past it, a refresh would wait.
            self._behind.add(name)
        elapsed_ms = round((time.monotonic() - start) * 1000)
        log.debug(
            "maintained",
            table=name,
            merged_files=done.merged_files,
            moved_commits=done.moved_commits,
            deleted_files=done.deleted_files,
            elapsed_ms=elapsed_ms,
        )


def _wait_for_lock(settings: Settings) -> int:
    """Be the one child: an earlier one may still be ending."""
    settings.wal_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    lock = os.open(settings.wal_dir / "maintenance.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
    fcntl.flock(lock, fcntl.LOCK_EX)
    return lock


def main() -> None:
    """The child process: until standard input ends."""
    settings = Settings()
    os.nice(NICENESS)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the committer ends us, after its own last work
    inbox = Inbox()
    inbox.listen()
    lock = _wait_for_lock(settings)
    try:
        keeper = Keeper(settings)
        keeper.begin()
        while True:
            keeper.turn(inbox.take(PUBLISH_SECONDS))
    finally:
        os.close(lock)


if __name__ == "__main__":
    main()
