"""Sealed segments -> one commit per table, exactly once.

One turn: see which segments are sealed, read a batch of them, commit each table's rows with the
transactions of all incarnations in the batch, remove. What a table already has (its transaction
version says so) is dropped; a segment is removed last, when each of its tables has its rows on
disk. A table that fails holds back its own segments alone and is tried again, later and later; the
order of its segments is kept, since a skipped one could never be committed.

Of a backlog the next batch is read and decoded while this one is compressed and synced: nearly all
of both is done outside of the interpreter's lock.
"""

import errno
import json
import os
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

import pyarrow as pa

from capture import blocks, decoding, delta, errors, logline, rows, wal_files
from capture.settings import Settings

log = logline.logger(__name__)

ADOPT_SECONDS = 0.2
FIRST_RETRY_SECONDS, LAST_RETRY_SECONDS = 0.5, 30.0
STATUS_SECONDS = 0.25
KEPT_MEMORY_MS = 1_000
SPARE_SECONDS = 10.0  # files that nobody wrote again for this long are given back
SORTED_BY = {"payload": "request_time", "labels": "received_time", "usage": "request_time"}


@dataclass(frozen=True, slots=True)
class Limits:
    """How much is taken at once, and how much space is kept back to drain a full disk with."""

    batch_rows: int = 128_000  # a row group; two batches are in memory at a time
    batch_bytes: int = 128 << 20
    reserve_bytes: int = 32 << 20  # two segments as Parquet, at worst


class Committed(NamedTuple):
    """Rows of a table that have become visible."""

    table: str
    kind: str
    commit_version: int
    rows: int


class _Key(NamedTuple):
    table: str
    kind: str


class _Read(NamedTuple):
    """A segment of the batch: its rows by table, or why they could not be decoded."""

    segment: wal_files.Sealed
    rows: dict[_Key, pa.Table | BaseException]


@dataclass(slots=True)
class _Failure:
    """A table that could not be written."""

    message: str
    delay: float
    next_try: float


@dataclass(slots=True)
class _Status:
    """What `run/committed.json` tells of a table."""

    rows: int
    last_commit_ms: int
    commit_version: int


class Committer:
    """The one committer of a data directory; whoever runs it holds `lock`."""

    def __init__(
        self,
        settings: Settings,
        monotonic: Callable[[], float] = time.monotonic,
        limits: Limits = Limits(),
    ) -> None:
        self._settings = settings
        self._monotonic = monotonic
        self._limits = limits
        self._tables: dict[_Key, delta.Table] = {}
        self._failures: dict[_Key, _Failure] = {}
        self._left: dict[Path, set[_Key]] = {}  # segments read, and the tables they wait for
        self._sizes: dict[Path, int] = {}
        self._batch_bytes = limits.batch_bytes
        self._ahead: Future[list[_Read]] | None = None
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="read-ahead")
        self._adopt_at = self._status_at = 0.0
        self._reserve_at = 0.0
        self._drop_spares_at = monotonic() + SPARE_SECONDS
        self._status = _read_status(self.status_path)
        self._status_changed = True

    @property
    def status_path(self) -> Path:
        return self._settings.run_dir / "committed.json"

    def turn(self) -> list[Committed]:
        """Commit what is sealed, as much as fits in one commit per table."""
        now = self._monotonic()
        if now >= self._adopt_at:
            self._adopt_at = now + ADOPT_SECONDS
            wal_files.adopt_dead(self._settings.wal_dir)
        segments = wal_files.sealed(self._settings.wal_dir)
        self._measure(segments)
        done = self._commit_next(segments, now)
        self._tell(now)
        if not segments:
            self._keep_reserve(now)
            if now >= self._drop_spares_at:
                self._drop_spares_at = now + SPARE_SECONDS
                wal_files.drop_spares(self._settings.wal_dir)
        return done

    def finish(self) -> list[Committed]:
        """Commit everything that is sealed, without another try for tables that fail."""
        done: list[Committed] = []
        before = None
        while before != (before := self._fresh()):
            self._adopt_at = 0.0
            done += self.turn()
        self._status_at = 0.0
        self._tell(self._monotonic())
        return done

    def _fresh(self) -> list[wal_files.Sealed]:
        sealed = wal_files.sealed(self._settings.wal_dir)
        return [segment for segment in sealed if segment.path not in self._left]

    # -- which segments

    def _measure(self, segments: list[wal_files.Sealed]) -> None:
        present = {segment.path for segment in segments}
        if present == self._sizes.keys():
            return
        for path in [path for path in self._sizes if path not in present]:
            del self._sizes[path]
            self._left.pop(path, None)
        for path in present - self._sizes.keys():
            with suppress(FileNotFoundError):
                self._sizes[path] = wal_files.segment_bytes(path)
        self._status_changed = True

    def _commit_next(self, segments: list[wal_files.Sealed], now: float) -> list[Committed]:
        due = {key for key, failure in self._failures.items() if failure.next_try <= now}
        again = [s for s in segments if self._left.get(s.path, set()) & due]
        if again:
            return self._commit(self._read(again, due), due)
        fresh = [s for s in segments if s.path not in self._left]
        ahead, self._ahead = self._ahead, None
        batch = self._read(fresh) if ahead is None else ahead.result()
        taken = {found.segment.path for found in batch}
        behind = [s for s in fresh if s.path not in taken]
        if batch and behind:
            self._ahead = self._pool.submit(self._read, behind)
        keys = {key for found in batch for key in found.rows}
        return self._commit(batch, keys - self._failures.keys())

    def _read(
        self, segments: Iterable[wal_files.Sealed], only: set[_Key] | None = None
    ) -> list[_Read]:
        """Segments in order until the batch is full; not beyond one that cannot be read. only: of
        these tables. Any thread."""
        read: list[_Read] = []
        memory = _Memory()
        size = count = 0
        stopped: set[UUID] = set()
        for segment in segments:
            if segment.app_id in stopped:
                continue
            if read and (size >= self._batch_bytes or count >= self._limits.batch_rows):
                break
            try:
                data = memory.content(segment.path)
            except FileNotFoundError:
                continue  # refused since it was listed
            except OSError as error:
                log.error("segment_not_read", segment=segment.path.name, error=error.strerror)
                stopped.add(segment.app_id)
                continue
            found = self._blocks(segment, data)
            if found is None:
                continue
            read.append(_Read(segment, _decoded(data, found, only)))
            size += data.size
            count += sum(block.rows for block in found)
        return read

    def _blocks(self, segment: wal_files.Sealed, data: pa.Buffer) -> list[blocks.Block] | None:
        """Whole blocks of a segment; None if it is not what it says, and was set aside."""
        try:
            header, recovered = blocks.read_segment(data)
        except (blocks.NotASegment, blocks.ForeignSegment) as error:
            self._refuse(segment, str(error))
            return None
        if header[:2] != (segment.app_id, segment.sequence):
            self._refuse(segment, "Its header names another incarnation or sequence.")
            return None
        if dropped := wal_files.segment_bytes(segment.path) - recovered.end:
            log.warning("torn_tail", segment=segment.path.name, dropped_bytes=dropped)
        return recovered.blocks

    def _refuse(self, segment: wal_files.Sealed, reason: str) -> None:
        segment.path.rename(segment.path.with_suffix(".refused"))
        log.error("segment_refused", segment=segment.path.name, reason=reason)

    # -- committing

    def _commit(self, batch: list[_Read], keys: set[_Key]) -> list[Committed]:
        done: list[Committed] = []
        written: set[_Key] = set()
        for key in sorted(keys):
            try:
                committed = self._commit_table(batch, key)
            except (KeyboardInterrupt, SystemExit):
                raise
            except BaseException as error:  # noqa: BLE001 - a panic of delta-rs is no Exception
                self._failed(key, error)
                continue
            written.add(key)
            if committed is not None:
                done.append(committed)
        self._remove(batch, written)
        self._recovered(written)
        return done

    def _commit_table(self, batch: list[_Read], key: _Key) -> Committed | None:
        table = self._table(key)
        wanted: list[pa.Table] = []
        transactions: dict[str, int] = {}
        for found in batch:
            app_id, sequence = str(found.segment.app_id), found.segment.sequence
            if key not in found.rows or table.is_committed(app_id, sequence):
                continue
            decoded = found.rows[key]
            if isinstance(decoded, BaseException):
                raise decoded
            wanted.append(decoded)
            transactions[app_id] = max(sequence, transactions.get(app_id, 0))
        if not wanted:
            return None
        table_rows = decoding.joined(wanted)
        start = self._monotonic()
        commit_version = table.commit(table_rows, transactions)
        elapsed_ms = round((self._monotonic() - start) * 1000, 1)
        facts: dict[str, Any] = {"table": key.table, "commit_version": commit_version}
        log.debug("committed", **facts, rows=len(table_rows), elapsed_ms=elapsed_ms)
        self._note(key, table, commit_version)
        return Committed(key.table, key.kind, commit_version, len(table_rows))

    def _table(self, key: _Key) -> delta.Table:
        if key not in self._tables:
            schema, partition = rows.KINDS[key.kind]
            path = delta.path_of(self._settings, key.table)
            order = SORTED_BY[key.kind]
            self._tables[key] = delta.open_or_create(path, schema, partition, time_column=order)
        return self._tables[key]

    def _remove(self, batch: list[_Read], written: set[_Key]) -> None:
        for found in batch:
            path = found.segment.path
            left = self._left.get(path, set(found.rows)) - written
            if left:
                self._left[path] = left
                continue
            if self._batch_bytes < self._limits.batch_bytes:  # the disk was full a moment ago
                path.unlink(missing_ok=True)
            else:
                wal_files.recycle(self._settings.wal_dir, path)
                self._drop_spares_at = self._monotonic() + SPARE_SECONDS
            self._left.pop(path, None)
            self._sizes.pop(path, None)
            self._status_changed = True

    # -- failing and recovering

    def _failed(self, key: _Key, error: BaseException) -> None:
        self._tables.pop(key, None)
        message = f"{type(error).__name__}: {error}"[: errors.MAX_MESSAGE_CHARACTERS]
        before = self._failures.get(key)
        delay = FIRST_RETRY_SECONDS if before is None else min(before.delay * 2, LAST_RETRY_SECONDS)
        self._failures[key] = _Failure(message, delay, self._monotonic() + delay)
        self._status_changed = True
        log.error("commit_failed", table=key.table, error=message, retry_seconds=delay)
        if is_disk_full(error):
            # Small batches need little space and give some back: each unlinks what it committed.
            self._batch_bytes, self._ahead = 1, None
            directory = self._settings.wal_dir
            if wal_files.drop_spares(directory) or wal_files.give_reserve(directory):
                self._failures[key].next_try = self._monotonic()

    def _recovered(self, written: set[_Key]) -> None:
        for key in written & self._failures.keys():
            if any(key in left for left in self._left.values()):
                self._failures[key].next_try = self._monotonic()
            else:
                del self._failures[key]
                self._status_changed = True
                log.info("commit_recovered", table=key.table)
        if written and not self._failures:
            self._batch_bytes = self._limits.batch_bytes

    def _keep_reserve(self, now: float) -> None:
        if now < self._reserve_at:
            return
        self._reserve_at = now + LAST_RETRY_SECONDS
        directory = self._settings.wal_dir
        with suppress(OSError):
            free = os.statvfs(directory)
            if free.f_bavail * free.f_frsize > 4 * self._limits.reserve_bytes:
                wal_files.keep_reserve(directory, self._limits.reserve_bytes)

    # -- telling

    def _note(self, key: _Key, table: delta.Table, commit_version: int) -> None:
        now_ms = time.time_ns() // 1_000_000
        self._status[key.table] = _Status(table.rows, now_ms, commit_version)
        self._status_changed = True

    def _tell(self, now: float) -> None:
        if not self._status_changed or now < self._status_at:
            return
        self._status_at = now + STATUS_SECONDS
        text = json.dumps(
            {
                "tables": {
                    name: {
                        "rows": status.rows,
                        "last_commit_ms": status.last_commit_ms,
                        "commit_version": status.commit_version,
                    }
                    for name, status in self._status.items()
                },
                "failing": {key.table: failure.message for key, failure in self._failures.items()},
                "backlog_bytes": sum(self._sizes.values()),
            }
        )
        try:
            write_whole(self.status_path, text)
        except OSError as error:
            log.warning("status_not_written", error=error.strerror)
            return
        self._status_changed = False


def _decoded(
    data: pa.Buffer, found: Iterable[blocks.Block], only: set[_Key] | None
) -> dict[_Key, pa.Table | BaseException]:
    by_table: dict[_Key, list[blocks.Block]] = {}
    for block in found:
        by_table.setdefault(_Key(block.table, block.kind), []).append(block)
    decoded: dict[_Key, pa.Table | BaseException] = {}
    for key in by_table.keys() if only is None else by_table.keys() & only:
        try:
            decoded[key] = decoding.decode(data, by_table[key])
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # noqa: BLE001 - as in committing: it is one table's failure
            decoded[key] = error
    return decoded


class _Memory:
    """Room for one file's bytes at a time, used again: new pages cost more than the reading."""

    def __init__(self) -> None:
        self._room = bytearray()

    def content(self, path: Path) -> pa.Buffer:
        """Bytes of a segment, until the next is asked for."""
        with path.open("rb", buffering=0) as file:
            size = min(os.fstat(file.fileno()).st_size, wal_files.segment_bytes(path))
            if len(self._room) < size:
                self._room = bytearray(size + size // 8)
            view, done = memoryview(self._room)[:size], 0
            while done < size and (count := file.readinto(view[done:])):
                done += count
        return pa.py_buffer(view[:done])


def keep_memory() -> None:
    """Have this process keep Arrow's memory for a second before it is given back: to get new pages
    for each segment costs a third of taking it in."""
    if "jemalloc" in pa.supported_memory_backends():
        pa.set_memory_pool(pa.jemalloc_memory_pool())
        pa.jemalloc_set_decay_ms(KEPT_MEMORY_MS)


def write_whole(path: Path, text: str) -> None:
    """Replace a small file at once: a reader sees the old text or the new."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        fresh.write_text(text)
        fresh.replace(path)
    except OSError:
        fresh.unlink(missing_ok=True)
        raise


def is_disk_full(error: BaseException) -> bool:
    """Whether an error of Python, Arrow or delta-rs says that the disk is full."""
    return getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error)


def _read_status(path: Path) -> dict[str, _Status]:
    try:
        known = json.loads(path.read_bytes())["tables"]
        return {name: _Status(**status) for name, status in known.items()}
    except (OSError, ValueError, KeyError, TypeError):
        return {}  # none yet, or torn: it is only a view of the tables and is written anew
