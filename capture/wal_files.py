"""The files of the write-ahead log (wal.py) as others than its writer see them: which segments may
be committed, what dead writers left, the reserve.
"""

import fcntl
import os
import shutil
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple
from uuid import UUID

from capture import blocks, logline
from capture.settings import Settings

ABANDONED_SECONDS = 3600  # a folder that was never finished is swept away after this long
OWNER_LOCK = "owner.lock"
RESERVE = "reserve"

log = logline.logger(__name__)


class Sealed(NamedTuple):
    """A segment that may be committed."""

    app_id: UUID
    sequence: int
    path: Path


def incarnations(directory: Path) -> list[Path]:
    """Folders of all incarnations, dead or alive, by name."""
    try:
        return [folder for folder in sorted(directory.iterdir()) if _is_uuid(folder.name)]
    except FileNotFoundError:
        return []


def _is_uuid(name: str) -> bool:
    try:
        return str(UUID(name)) == name
    except ValueError:
        return False


def listed(folder: Path) -> tuple[dict[int, Path], list[int]]:
    """Segments of an incarnation by sequence: the sealed ones, and the sequences of open ones."""
    sealed: dict[int, Path] = {}
    unsealed: list[int] = []
    try:
        names = [path.name for path in folder.iterdir()]
    except FileNotFoundError:
        return {}, []
    for name in names:
        stem, _, suffix = name.partition(".")
        if suffix == "seg" and stem.isdigit():
            sealed[int(stem)] = folder / name
        elif suffix == "open" and stem.isdigit():
            unsealed.append(int(stem))
    return sealed, unsealed


def sealed(directory: Path) -> list[Sealed]:
    """All segments that may be committed, in order within each incarnation.

    Listing a folder may miss a file that is renamed meanwhile. Whatever was sealed before a segment
    of the first listing is in the second, so nothing is taken that the first did not reach: a
    segment that were skipped could never be committed later.
    """
    found: list[Sealed] = []
    for folder in incarnations(directory):
        first, _ = listed(folder)
        if not first:
            continue
        second, unsealed = listed(folder)
        end = min([max(first) + 1, *unsealed])
        app_id = UUID(folder.name)
        found += (Sealed(app_id, n, second[n]) for n in sorted(second) if n < end)
    return found


def adopt_dead(directory: Path) -> None:
    """Seal what dead writers left open, without torn tails; sweep away what is empty of them."""
    for folder in incarnations(directory):
        waiting, unsealed = listed(folder)
        if waiting and not unsealed:
            continue
        owner = _take_dead(folder)
        if owner is None:
            continue
        try:
            for sequence in sorted(listed(folder)[1]):
                _seal_dead(folder / f"{sequence:020}.open")
            _sweep(folder)
        finally:
            os.close(owner)
    _sweep_unfinished(directory)


def _take_dead(folder: Path) -> int | None:
    """Lock of an incarnation whose owner is dead, as a descriptor to be closed; else None."""
    try:
        owner = os.open(folder / OWNER_LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(owner)
        return None
    return owner


def _seal_dead(path: Path) -> None:
    with path.open("r+b") as file:
        data = file.read()
        try:
            blocks.read_header(data)
        except blocks.NotASegment:
            end = 0
        except blocks.ForeignSegment:
            end = len(data)  # not ours to judge; the committer sets it aside as it is
        else:
            end = blocks.recover(data, blocks.HEADER_BYTES).end
        file.truncate(end)
        os.fsync(file.fileno())
    if end <= blocks.HEADER_BYTES:
        path.unlink()
    else:
        path.rename(path.with_suffix(".seg"))
    if end < len(data):
        log.warning("torn_tail", segment=path.name, kept_bytes=end, dropped_bytes=len(data) - end)


def _sweep(folder: Path) -> None:
    if [path.name for path in folder.iterdir()] == [OWNER_LOCK]:
        (folder / OWNER_LOCK).unlink()
        folder.rmdir()


def _sweep_unfinished(directory: Path) -> None:
    for folder in directory.glob(".new-*"):
        with suppress(FileNotFoundError):
            if time.time() - folder.stat().st_mtime > ABANDONED_SECONDS:
                shutil.rmtree(folder, ignore_errors=True)


def keep_reserve(directory: Path, size: int) -> bool:
    """Have a file of `size` bytes in the log folder, to be given up when the disk is full."""
    path = directory / RESERVE
    if path.exists() and path.stat().st_size >= size:
        return True
    with path.open("wb") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        except OSError:
            path.unlink()
            return False
    return True


def give_reserve(directory: Path) -> bool:
    """Give the reserve up, so that draining goes on; False if there was none."""
    try:
        (directory / RESERVE).unlink()
    except FileNotFoundError:
        return False
    log.warning("reserve_given_up")
    return True


def waiting_bytes(settings: Settings) -> int:
    """Bytes of all processes' segments that wait to be committed; safe beside the committer."""
    found = 0
    for segment in settings.wal_dir.glob("*/*"):
        with suppress(FileNotFoundError):  # it was committed just now
            found += segment.stat().st_size if segment.is_file() else 0
    return found
