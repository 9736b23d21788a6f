"""Faults around the record: damaged log, full disk, panics, a state database that is gone."""

import contextlib
import os
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import deltalake
import pytest

from capture import committer, database, errors, wal, wal_files
from capture.settings import Settings
from tests.faults.record import TABLE, UNPACKED, Record, payload, until

DISK_BYTES = 192 << 20  # enough for a reserve


def tail_cut(segment: Path) -> None:
    os.truncate(segment, segment.stat().st_size - 20)


def tail_of_zeros(segment: Path) -> None:
    tail_cut(segment)
    with segment.open("ab") as file:
        file.write(bytes(4096))


def tail_of_noise(segment: Path) -> None:
    tail_cut(segment)
    with segment.open("ab") as file:
        file.write(os.urandom(4096))


@pytest.mark.parametrize("damage", [tail_cut, tail_of_zeros, tail_of_noise])
def test_a_damaged_tail_of_the_log_is_cut_back_to_the_last_whole_block(
    record: Record, damage: Callable[[Path], None]
) -> None:
    log = wal.Log(record.settings.wal_dir, record.settings)
    for name in "def":
        log.append(TABLE, "payload", [payload(name)])
    log.close()
    (segment,) = record.segments()
    damage(segment)
    with record.running():
        record.append("g")
        until(lambda: not record.segments())
        until(lambda: record.ids(UNPACKED) == ["a", "b", "c", "d", "e", "g"])
    assert record.ids() == ["a", "b", "c", "d", "e", "g"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Record]:
    """A record on a disk of its own that is small."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(place)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("Only root can mount a small disk.")
    yield Record(Settings(data_dir=place / "data"))
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def fill(folder: Path) -> Path:
    """A file that takes all space there is."""
    filler = folder / "filler"
    disk = os.statvfs(folder)
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        os.posix_fallocate(file.fileno(), 0, (disk.f_bavail - 16) * disk.f_frsize)
        file.seek(0, os.SEEK_END)
        while True:
            file.write(bytes(4096))
    return filler


def test_on_a_full_disk_it_starts_refuses_and_is_well_again_with_space(
    small_disk: Record,
) -> None:
    settings = small_disk.settings
    database.migrate(settings)
    small_disk.commit("a")
    with small_disk.running():
        until((settings.wal_dir / wal_files.RESERVE).exists)
    filler = fill(settings.data_dir)
    log = wal.Log(settings.wal_dir, settings)
    with pytest.raises(errors.LogFull):
        for n in range(100):
            log.append(TABLE, "payload", [payload(f"refused-{n}", request="x" * 10_000)])
    with small_disk.running():
        assert not (settings.wal_dir / wal_files.RESERVE).exists()
        filler.unlink()
        log.append(TABLE, "payload", [payload("b")])
        log.close()
        until(lambda: "b" in small_disk.ids())
        until(lambda: "b" in small_disk.ids(UNPACKED))
    assert not small_disk.segments()


class Panic(BaseException):
    """As a panic of the native library arrives: outside of Exception."""


def test_a_panic_of_the_native_library_stops_neither_the_committer_nor_the_row(
    record: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    def panics(*_: Any, **__: Any) -> None:
        raise Panic("index out of bounds")

    now = 0.0
    one = committer.Committer(record.settings, monotonic=lambda: now)
    record.append("d")
    with monkeypatch.context() as native:
        native.setattr(deltalake.DeltaTable, "transaction_version", panics)
        assert one.turn() == []
    assert len(record.segments()) == 1
    now += committer.FIRST_RETRY_SECONDS
    (done,) = one.turn()
    assert done.rows == 1
    assert record.ids() == ["a", "b", "c", "d"]


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """A state database that somebody else holds for themselves."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("PRAGMA locking_mode = EXCLUSIVE")
        other.execute("BEGIN EXCLUSIVE")
        yield
        other.execute("ROLLBACK")


@contextlib.contextmanager
def gone(path: Path) -> Iterator[None]:
    """A state database that is not there."""
    away = path.with_name("away")
    path.rename(away)
    yield
    away.replace(path)


@pytest.mark.parametrize("fault", [locked, gone])
def test_a_state_database_that_cannot_be_asked_does_not_hurt_the_record(
    record: Record, fault: Callable[[Path], contextlib.AbstractContextManager[None]]
) -> None:
    with record.running():
        with fault(record.settings.data_dir / "inferlake.db"):
            record.append("d")
            until(lambda: record.ids() == ["a", "b", "c", "d"])
        until(lambda: record.ids(UNPACKED) == ["a", "b", "c", "d"])
