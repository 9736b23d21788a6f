"""The write-ahead log on disk, as its writer has it: append, seal, sync.

    <wal>/<incarnation uuid>/owner.lock                  held (flock) as long as the writer lives
                             <sequence:020>.open         being written, always the highest sequence
                             <sequence:020>-<bytes>.seg  sealed: the committer may take it
          spare/...                                      files to be written again
          reserve                                        space to drain with when the disk is full

The rules that make a row arrive exactly once:

- The uuid is the app id of the Delta transactions, the sequence their version. A start is a new
  incarnation; a sequence is used once and grows. A new folder gets its final name only when its
  lock is held, so an unlocked one has a dead owner.
- A row counts as accepted when `append` returns: after write(), which survives a kill, and with
  `power` after fdatasync(), which survives a power cut. All files are synced every 100 ms anyway.
- A write that fell short is cut back to the last whole block. A file whose sync failed is never
  synced again, for the kernel may have dropped the pages and call the next sync a success: it is
  sealed, and the block that was not acknowledged moves to a new file.
- The committer takes the segments of an incarnation in order, none above an `.open` one, and takes
  them away in order, each after its rows were committed and synced.
"""

import errno
import fcntl
import os
import queue
import shutil
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID, uuid4

from capture import blocks, encoding, errors, exchanges, logline, meters, wal_files
from capture.settings import Settings

SYNC_SECONDS = 0.1
LOOK_SECONDS = 0.25
SWEEP_SECONDS = 5.0
SWEEP_SEGMENTS = 256
MAX_BLOCK_BYTES = 256 << 20  # a larger group is halved: a segment must stay well below 2 GiB

log = logline.logger(__name__)


@dataclass(slots=True)
class _Segment:
    """A segment being written. seed: what the CRCs of its blocks begin with. The lock is held
    around each sync, so that whoever syncs next knows of a failure: the kernel reports one only
    once."""

    descriptor: int
    path: str
    sequence: int
    seed: int
    size: int
    since: float
    synced_size: int = 0
    synced_at: float = 0.0
    entry_synced: bool = False
    sync_failed: bool = False
    sync_asked: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def is_dirty(self) -> bool:
        return self.synced_size < self.size and not self.sync_asked


class _Waiting(NamedTuple):
    """A segment that the committer is to take: its name now, or as long as it could not be sealed
    its name before; bytes."""

    sealed_path: str
    path: str
    size: int

    @property
    def is_there(self) -> bool:
        return os.path.exists(self.sealed_path) or os.path.exists(self.path)


def sync_folder(folder: str | Path) -> None:
    """Put a folder's entries on disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Log:
    """The log of one process, written by one thread. See the rules above.

    directory: the folder of all incarnations; this one's is made below it. On a disk that is full
    the log still starts; it is made by the first `append` that finds space.
    """

    def __init__(
        self, directory: Path, settings: Settings, sync: Callable[[int], None] = os.fdatasync
    ) -> None:
        self.directory = directory
        self.dropped: Counter[str] = Counter()  # rows served but not logged, by table
        self.appended: Counter[tuple[str, str]] = Counter()  # rows, by table and kind
        self.appended_bytes = 0
        self.is_full = False  # whether the backlog has reached its limit; asked for each request
        self._settings = settings
        self._backlog_limit, self._seal_bytes = settings.wal_backlog_bytes, settings.wal_seal_bytes
        self._sync = sync
        self._owner: int | None = None
        self._folder = str(directory)  # paths are plain texts here: a Path costs more than its file
        self._app_id = UUID(int=0)
        self._sequence = 0
        self._segment: _Segment | None = None
        self._unsealed: list[_Waiting] = []
        self._own: deque[_Waiting] = deque()
        self._left: deque[_Waiting] = deque()
        self._waiting_bytes = 0
        self._looked_at = self._swept_at = time.monotonic()
        self._jobs: queue.SimpleQueue[tuple[_Segment, bool] | None] = queue.SimpleQueue()
        self._syncer: threading.Thread | None = None
        try:
            self._find_left_over()
            self.is_full = self.backlog_bytes >= self._backlog_limit
            self._begin()
        except OSError as error:
            log.warning("log_not_started", error=error.strerror)

    @property
    def app_id(self) -> UUID:
        """Id of this incarnation; all zeros before it could be made."""
        return self._app_id

    @property
    def backlog_bytes(self) -> int:
        """Log bytes not committed yet: this incarnation's and those found at its start."""
        return self._waiting_bytes + (self._segment.size if self._segment else 0)

    def append(self, table: str, kind: str, group: Sequence[Any], power: bool = False) -> None:
        """Write rows of one table, all of one type: `exchanges.Exchange` or `rows.Payload` for
        "payload", `rows.Label` for "labels", `rows.Usage` for "usage".

        Returns after write(); with `power` after it was synced, alone, so that callers should
        group. Raises LogFull if the backlog is at its limit or the file cannot be written: then
        the rows are not accepted. Under the policy `serve` payload rows are counted in `dropped`
        instead; labels are always refused, as nothing else answers for them.
        """
        if not group:
            return
        if type(group[0]) is exchanges.Exchange:
            block = exchanges.block(table, group)
        else:
            block = encoding.encode(table, kind, group)
        size = len(block)
        if size > MAX_BLOCK_BYTES and len(group) > 1:
            half = len(group) // 2
            self.append(table, kind, group[:half], power)
            self.append(table, kind, group[half:], power)
            return
        segment = self._segment
        backlog = self._waiting_bytes + size + (segment.size if segment else 0)
        try:
            if backlog > self._backlog_limit:
                raise errors.LogFull(
                    f"{backlog - size} bytes of requests wait to be recorded; the limit is "
                    f"{self._backlog_limit}."
                )
            if segment is None or segment.sync_failed:
                segment = self._opened()
            size = self._put(segment, block)
            if power:
                segment = self._synced(segment, block, size)
        except (errors.LogFull, OSError) as error:
            self._drop(table, kind, len(group), error)
            return
        if segment.size >= self._seal_bytes:
            self._seal()
        self.is_full = backlog >= self._backlog_limit
        self.appended[table, kind] += len(group)
        self.appended_bytes += size

    def tick(self) -> None:
        """To be called about every 50 ms: seal by age, ask for the sync of what was written, see
        what the committer has taken. Never blocks on the disk."""
        now = time.monotonic()
        for unsealed in self._unsealed[:]:
            self._rename(unsealed)
        segment = self._segment
        if segment is not None:
            if segment.sync_failed or now - segment.since >= self._settings.wal_seal_seconds:
                self._seal()
            elif segment.is_dirty and now - segment.synced_at >= SYNC_SECONDS:
                segment.sync_asked = True
                self._jobs.put((segment, False))
        if now - self._looked_at >= LOOK_SECONDS:
            self._looked_at = now
            for waiting in (self._own, self._left):
                self._forget_taken(waiting)
        if now - self._swept_at >= SWEEP_SECONDS:
            self._swept_at = now
            self._forget_taken_out_of_order()
        self.is_full = self.backlog_bytes >= self._backlog_limit

    def close(self) -> None:
        """Seal what is open, sync it, let the committer have everything."""
        self._seal()
        for waiting in self._unsealed[:]:
            self._rename(waiting)
        if self._syncer is not None:
            self._jobs.put(None)
            self._syncer.join()
            self._syncer = None
        if self._owner is not None:
            os.close(self._owner)
            self._owner = None

    def readings(self) -> Iterator[meters.Reading]:
        """A source of `meters.registry`."""
        for (table, kind), count in self.appended.items():
            yield meters.Reading(meters.LOG_ROWS, count, (table, kind))
        for table, count in self.dropped.items():
            yield meters.Reading(meters.LOG_DROPPED, count, (table,))
        yield meters.Reading(meters.LOG_BYTES, self.appended_bytes)
        yield meters.Reading(meters.LOG_BACKLOG, self.backlog_bytes)

    # -- writing

    def _drop(self, table: str, kind: str, count: int, why: errors.LogFull | OSError) -> None:
        """Count rows that were not written, or raise LogFull."""
        if kind == "payload" and self._settings.wal_full_policy == "serve":
            self.dropped[table] += count
        elif isinstance(why, OSError):
            raise errors.LogFull(f"The log cannot be written: {why.strerror}.") from why
        else:
            raise why

    def _opened(self) -> _Segment:
        if self._segment is not None:
            if not self._segment.sync_failed:
                return self._segment
            self._seal()
        if self._owner is None:
            self._begin()
        sequence = self._sequence
        path = f"{self._folder}/{wal_files.open_name(sequence)}"
        wal_files.take_spare(self.directory, path)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        head, seed = blocks.segment_header(self._app_id, sequence)
        try:
            if os.write(descriptor, head) != len(head):
                raise _disk_full()
        except OSError:
            os.close(descriptor)
            os.unlink(path)
            raise
        self._sequence += 1
        now = time.monotonic()
        self._segment = _Segment(
            descriptor, path, sequence, seed, len(head), since=now, synced_at=now
        )
        return self._segment

    def _put(self, segment: _Segment, block: bytes) -> int:
        """Write a block that is still to be signed; how many bytes it takes."""
        # As `blocks.signed` does it, without the call (exchanges.block).
        crc = blocks.crc32(block, segment.seed)
        signed = b"".join((blocks.BLOCK_MAGIC, crc.to_bytes(4, "little"), block))
        try:
            if os.write(segment.descriptor, signed) != len(signed):
                raise _disk_full()
        except OSError as error:
            # The line comes second: on a full disk it may not be writable either.
            self._cut_back(segment, segment.size)
            log.error("write_failed", segment=os.path.basename(segment.path), error=error.strerror)
            raise
        segment.size += len(signed)
        return len(signed)

    def _cut_back(self, segment: _Segment, size: int) -> None:
        """Cut a file back to a whole block and seal it; one without blocks may be tried again."""
        try:
            os.ftruncate(segment.descriptor, size)
            os.lseek(segment.descriptor, size, os.SEEK_SET)
        except OSError:
            self._seal()
            raise
        segment.size = size
        if size > blocks.HEADER_BYTES or segment.sync_failed:
            self._seal()

    def _synced(self, segment: _Segment, block: bytes, size: int) -> _Segment:
        """Sync a block just written, which takes `size` bytes; if that fails, write it to another
        file and sync that."""
        if self._sync_segment(segment):
            return segment
        # Cut first: if that is not possible the block may be read from the old file, and must not
        # be written a second time.
        self._cut_back(segment, segment.size - size)
        segment = self._opened()
        self._put(segment, block)
        if not self._sync_segment(segment):
            self._cut_back(segment, segment.size - size)
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return segment

    # -- sealing and syncing

    def _seal(self) -> None:
        segment, self._segment = self._segment, None
        if segment is None:
            return
        if segment.size <= blocks.HEADER_BYTES:
            with suppress(FileNotFoundError):
                os.unlink(segment.path)
        else:
            sealed = f"{self._folder}/{wal_files.sealed_name(segment.sequence, segment.size)}"
            waiting = _Waiting(sealed, segment.path, segment.size)
            self._own.append(waiting)
            self._waiting_bytes += segment.size
            self._rename(waiting, new=True)
        self._jobs.put((segment, True))

    def _rename(self, waiting: _Waiting, new: bool = False) -> None:
        try:
            os.rename(waiting.path, waiting.sealed_path)
        except OSError as error:
            log.error("seal_failed", segment=os.path.basename(waiting.path), error=error.strerror)
            if new:
                self._unsealed.append(waiting)
            return
        if not new:
            self._unsealed.remove(waiting)

    def _sync_segment(self, segment: _Segment) -> bool:
        """Put a segment on disk; False if that failed, now or ever. Any thread."""
        with segment.lock:
            if segment.sync_failed:
                return False
            size = segment.size
            if segment.synced_size == size:
                return True
            try:
                self._sync(segment.descriptor)
                if not segment.entry_synced:
                    sync_folder(os.path.dirname(segment.path))
                    segment.entry_synced = True
            except OSError as error:
                segment.sync_failed = True
                log.error(
                    "sync_failed", segment=os.path.basename(segment.path), error=error.strerror
                )
                return False
            segment.synced_size, segment.synced_at = size, time.monotonic()
            return True

    def _sync_loop(self) -> None:
        # Its own thread, because a sync takes as long as the disk likes and requests must not wait.
        while (job := self._jobs.get()) is not None:
            segment, is_last = job
            self._sync_segment(segment)
            segment.sync_asked = False
            if is_last:
                os.close(segment.descriptor)

    # -- the incarnation

    def _begin(self) -> None:
        # An app id is never used again with a fresh counter: each beginning has its own.
        app_id = uuid4()
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        unfinished = self.directory / f".new-{app_id}"
        owner = None
        try:
            unfinished.mkdir(mode=0o700)
            owner = os.open(
                unfinished / wal_files.OWNER_LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600
            )
            fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
            sync_folder(unfinished)
            unfinished.rename(self.directory / str(app_id))
            sync_folder(self.directory)
            sync_folder(self.directory.parent)
        except OSError:
            if owner is not None:
                os.close(owner)
            shutil.rmtree(unfinished, ignore_errors=True)
            raise
        self._owner, self._folder = owner, str(self.directory / str(app_id))
        self._app_id, self._sequence = app_id, 1
        self._syncer = threading.Thread(target=self._sync_loop, name="log-sync", daemon=True)
        self._syncer.start()

    def _find_left_over(self) -> None:
        for folder in wal_files.incarnations(self.directory):
            segments, unsealed = wal_files.listed(folder)
            opened = [folder / wal_files.open_name(sequence) for sequence in unsealed]
            for path in (*segments.values(), *opened):
                with suppress(FileNotFoundError):  # taken by the committer meanwhile
                    size = wal_files.segment_bytes(path)
                    self._left.append(
                        _Waiting(
                            str(path.with_suffix(".seg")), str(path.with_suffix(".open")), size
                        )
                    )
                    self._waiting_bytes += size

    def _forget_taken(self, waiting: deque[_Waiting]) -> None:
        while waiting and not waiting[0].is_there:
            self._waiting_bytes -= waiting.popleft().size

    def _forget_taken_out_of_order(self) -> None:
        # A segment stays when one of its tables cannot be written; those behind it go all the same.
        for waiting in (self._own, self._left):
            looked_at = [waiting.popleft() for _ in range(min(SWEEP_SEGMENTS, len(waiting)))]
            kept = [one for one in looked_at if one.is_there]
            self._waiting_bytes += sum(one.size for one in kept) - sum(
                one.size for one in looked_at
            )
            waiting.extendleft(reversed(kept))


def _disk_full() -> OSError:
    """What a write that fell short means."""
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
