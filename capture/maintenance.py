"""The committer's niced child: unpacking, feature snapshots, and the upkeep of tables.

The committer tells on standard input which tables it committed to; when that ends, so does this
process, at once and wherever it is: everything here can be begun again. It unpacks what is new,
publishes feature snapshots, brings the server's own facts to their tables, and keeps a commit cheap
(see `delta`): a checkpoint every 50 commits, few commits in the log, few small files. Only
append-only tables are compacted and vacuumed: in others a removal of ours could undo one of theirs.
"""

import fcntl
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import deltalake

from capture import (
    compaction,
    database,
    delta_commits,
    delta_history,
    delta_log,
    errors,
    ledger_tables,
    logline,
    names,
    publisher,
    unpack,
    upkeep,
)
from capture.settings import Settings

log = logline.logger(__name__)

NICENESS = 10
PUBLISH_SECONDS = 1.0
# Unpacking rests this many times as long as it worked: few large pieces cost requests less than
# many small ones. Not for long, for refreshes of monitors wait for it.
REST_SHARE, LONGEST_REST_SECONDS = 4.0, 1.0
LOOK_SECONDS = 5.0
UPKEEP_SECONDS = 3600.0  # for tables without news: closed days, vacuum
FIRST_RETRY_SECONDS, LAST_RETRY_SECONDS = 1.0, 60.0

CHECKPOINT_COMMITS = 50
KEPT_COMMITS = 256
RETENTION_HOURS, LEAST_RETENTION_HOURS = 168, 1
VACUUM_SECONDS = 86_400.0
FULL_VACUUM_SECONDS = 7 * 86_400.0


# Upkeep of one table -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Wish:
    """What an upkeep is to do beyond what is due. keep_days: rows of days longer ago are dropped;
    vacuum_hours: unused files older than this go now, whenever the last vacuum was."""

    keep_days: int | None = None
    vacuum_hours: int | None = None


@dataclass(frozen=True, slots=True)
class Done:
    """What one upkeep did. dropped_files: of days that are kept no longer."""

    checkpointed: bool = False
    moved_commits: int = 0
    merged_files: int = 0
    dropped_files: int = 0
    deleted_files: int = 0
    skipped: str | None = None


def is_due(path: Path, commits: int = CHECKPOINT_COMMITS) -> bool:
    """Whether a table has had this many commits since its newest checkpoint."""
    versions = delta_log.commit_versions(path)
    checkpoints = delta_log.checkpoint_versions(path)
    return bool(versions) and versions[-1] - (checkpoints[-1] if checkpoints else -1) >= commits


def maintain(path: Path, now: datetime, wish: Wish = Wish()) -> Done:
    """Checkpoint, clean the log, compact, drop days, vacuum: each if it is time, or wished for.
    Safe to repeat.

    now: aware UTC; closed days are those an hour behind its midnight."""
    handle = deltalake.DeltaTable(path)
    if handle.metadata().configuration.get("delta.appendOnly") != "true":
        return Done(skipped="The table is not append-only: who rewrites it looks after it.")
    checkpointed = is_due(path)
    if checkpointed:
        _checkpoint(path)
    moved = delta_history.move_to_history(path, KEPT_COMMITS)
    merged = compaction.compact(handle, path, now)
    dropped = 0
    if wish.keep_days is not None:
        dropped = compaction.drop_days(deltalake.DeltaTable(path), path, wish.keep_days, now)
    return Done(checkpointed, moved, merged, dropped, _vacuum(path, now, wish.vacuum_hours))


def _checkpoint(path: Path) -> None:
    handle = deltalake.DeltaTable(path)
    handle.create_checkpoint()
    delta_log.sync(delta_log.checkpoint_file(path, handle.version()))
    delta_log.sync(path / "_delta_log" / "_last_checkpoint")
    delta_log.sync(path / "_delta_log")


def _vacuum(path: Path, now: datetime, hours: int | None) -> int:
    """Delete files that no version of the last 7 days has: daily those that were taken out, weekly
    those of commits that never came to be as well. hours: both, now, and of the last `hours`."""
    full = hours is not None or _is_older(
        path / delta_history.HISTORY / "vacuumed-full", now, FULL_VACUUM_SECONDS
    )
    if not full and not _is_older(path / delta_history.HISTORY / "vacuumed", now, VACUUM_SECONDS):
        return 0
    handle = deltalake.DeltaTable(path)
    before = handle.version()
    deleted = handle.vacuum(
        RETENTION_HOURS if hours is None else max(hours, LEAST_RETENTION_HOURS),
        dry_run=False,
        enforce_retention_duration=hours is None,
        full=full,
        post_commithook_properties=delta_commits.NO_HOOKS,
    )
    delta_log.sync_commits(path, before)
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
        self._rest_until: dict[str, float] = {}
        self._publish_at = self._look_at = 0.0
        self._begun_at = time.monotonic()
        self._kept_at: dict[str, float] = {}
        self._engine = database.open_engine(settings)
        self._ledger = ledger_tables.Follower(settings, self._engine)
        self._upkeep: dict[str, upkeep.Upkeep] = {}

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
            if time.monotonic() >= self._rest_until.get(name, 0.0):
                self._unpack(name)
        now = time.monotonic()
        if now >= self._publish_at:
            self._publish_at = now + PUBLISH_SECONDS
            self._attempts.run("publish", partial(publisher.follow, self._settings))
            self._attempts.run("ledger", self._ledger.follow)
            self._attempts.run("wishes", self._read_wishes)
            self._fulfil()
        if now >= self._look_at:
            self._look_at = now + LOOK_SECONDS
            self._look(self.tables())
        else:
            known = {name: names.table_name(name) for name in told}
            root = self._settings.tables_root
            self._look({name: Path(names.table_path(root, known[name])) for name in told})

    def pause_seconds(self) -> float:
        """How long there is nothing to do, if nothing is told."""
        now = time.monotonic()
        rests = [self._rest_until.get(name, now) - now for name in self._behind]
        return min([PUBLISH_SECONDS, *(rest for rest in rests if rest > 0)])

    def _unpack(self, name: str) -> None:
        start = time.monotonic()
        if self._attempts.run(f"unpack {name}", partial(unpack.follow, self._settings, name)):
            self._behind.discard(name)
        end = time.monotonic()
        self._rest_until[name] = end + min((end - start) * REST_SHARE, LONGEST_REST_SECONDS)

    def _read_wishes(self) -> None:
        with database.reading(self._engine) as connection:
            self._upkeep = upkeep.everything(connection)

    def _fulfil(self) -> None:
        """Do what was asked for, of all but tables whose commits are still to be unpacked."""
        waiting = {name: wished for name, wished in self._upkeep.items() if wished.is_waiting}
        tables = self.tables() if waiting else {}
        for name, wished in waiting.items():
            if name in tables and name not in self._behind:
                self._attempts.run(f"asked {name}", partial(self._asked, wished, tables[name]))

    def _asked(self, wished: upkeep.Upkeep, path: Path) -> None:
        hours = (wished.asked or {}).get("retention_hours")
        try:
            self._maintain(wished.full_name, path, hours, wished.asked_ms)
        except Exception as error:  # noqa: BLE001  told to who asked, who may ask again
            message = f"{type(error).__name__}: {error}"[: errors.MAX_MESSAGE_CHARACTERS]
            log.error("upkeep_failed", table=wished.full_name, error=message)
            self._note(wished.full_name, {"error": message}, wished.asked_ms)

    def _look(self, tables: dict[str, Path]) -> None:
        for name, path in tables.items():
            # A table's commits stay in its log until they are unpacked.
            if name in self._behind:
                continue
            last = self._kept_at.get(name, self._begun_at)
            if is_due(path) or time.monotonic() - last >= UPKEEP_SECONDS:
                self._attempts.run(f"maintain {name}", partial(self._maintain, name, path))

    def _maintain(
        self, name: str, path: Path, vacuum_hours: int | None = None, asked_ms: int | None = None
    ) -> None:
        start = self._kept_at[name] = time.monotonic()
        kept = self._upkeep.get(name)
        wish = Wish(kept.retention_days if kept else None, vacuum_hours)
        done = maintain(path, datetime.now(UTC), wish)
        if (done.merged_files or done.dropped_files) and name.endswith("_payload"):
            # The merge is a commit, too: until unpacking has gone past it, a refresh would wait.
            self._behind.add(name)
        elapsed_ms = round((time.monotonic() - start) * 1000)
        log.debug("maintained", table=name, **asdict(done), elapsed_ms=elapsed_ms)
        told = {**asdict(done), "elapsed_ms": elapsed_ms}
        self._attempts.run("note", partial(self._note, name, told, asked_ms))

    def _note(self, name: str, told: dict[str, Any], asked_ms: int | None) -> None:
        now_ms = time.time_ns() // 1_000_000
        with database.transaction(self._engine) as connection:
            upkeep.note(connection, name, told, now_ms, asked_ms)
        if asked_ms is not None:
            self._upkeep[name] = self._upkeep[name]._replace(answered_ms=asked_ms)


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
            keeper.turn(inbox.take(keeper.pause_seconds()))
    finally:
        os.close(lock)


if __name__ == "__main__":
    main()
