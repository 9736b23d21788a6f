"""Do the kill loop and the order audit find what they are there for? Bar: every planted fault.

    python benchmarks/capture/faults.py

Each fault is planted by patching a library or a part of ours in a child process of this benchmark,
never by a switch in the product. Then the kill loop (rows lost, doubled, torn) or the audit (order
of writes under `power`) runs as always, and must fail. Without a fault both must pass.
"""

import argparse
import os
import shutil
import sys
import tempfile
import zlib
from collections.abc import Callable
from contextlib import redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import kill
import order_audit

from capture import blocks, delta, wal

KILLS = 12
SEEDS = 5
REQUESTS = 80
HELD_GROUPS = 16


# Faults of the kill loop's processes -------------------------------------------------------------


def write_to_memory(*arguments: Any) -> None:
    """A writer that keeps groups of rows in memory before it writes them."""
    append: Callable[..., None] = wal.Log.append
    held: list[tuple[Any, ...]] = []

    def keep(log: wal.Log, *group: Any) -> None:
        held.append(group)
        if len(held) >= HELD_GROUPS:
            for one in held:
                append(log, *one)
            held.clear()

    wal.Log.append = keep  # type: ignore[assignment,method-assign]
    kill.write(*arguments)


def commit_without_looking(data_dir: Path) -> None:
    """A committer that does not look which segments a table has already."""
    delta.Table.is_committed = lambda *_: False  # type: ignore[method-assign,assignment]
    kill.commit(data_dir)


class _Unchecked(int):
    """A checksum that equals every other."""

    def __eq__(self, other: object) -> bool:
        return True

    def __ne__(self, other: object) -> bool:
        return False

    __hash__ = int.__hash__


def commit_without_checksums(data_dir: Path) -> None:
    """A committer that takes blocks for whole whatever their checksum says."""
    blocks.crc32 = lambda data, seed=0: _Unchecked(zlib.crc32(data))  # type: ignore[assignment]
    kill.commit(data_dir)


def _sign_all_alike() -> None:
    """Blocks that say nothing of the segment they are of, in a file that held others before."""
    blocks.crc32 = lambda data, seed=0: zlib.crc32(data)  # type: ignore[assignment]


def write_alike(*arguments: Any) -> None:
    """A writer whose blocks are signed alike in all segments."""
    _sign_all_alike()
    kill.write(*arguments)


def commit_alike(data_dir: Path) -> None:
    """A committer that takes them as they are."""
    _sign_all_alike()
    kill.commit(data_dir)


# Faults of the audit's processes: `python faults.py --plant NAME` --------------------------------


def reply_first() -> None:
    """A gateway that replies, and appends the rows when the log's next tick comes."""
    from serving.gateway import __main__ as gateway

    append, tick = wal.Log.append, wal.Log.tick
    late: list[tuple[Any, ...]] = []

    def append_later(log: wal.Log) -> None:
        for group in late:
            append(log, *group)
        late.clear()
        tick(log)

    wal.Log.append = lambda log, *group: late.append(group)  # type: ignore[method-assign,assignment]
    wal.Log.tick = append_later  # type: ignore[method-assign]
    gateway.main()


def reply_unsynced() -> None:
    """A gateway whose log is written under `power`, and not synced before the reply."""
    from serving.gateway import __main__ as gateway

    os.fdatasync = lambda descriptor: None  # type: ignore[assignment]
    wal.Log.__init__.__defaults__ = (os.fdatasync,)  # type: ignore[misc]
    gateway.main()


def unlink_unsynced() -> None:
    """A committer that unlinks segments without syncing what it committed."""
    from capture import __main__ as committer

    os.fsync = lambda descriptor: None  # type: ignore[assignment]
    committer.main()


PLANTED = {one.__name__: one for one in (reply_first, reply_unsynced, unlink_unsynced)}


# The run -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault, and how it is looked for: in a folder, with so many kills where there are kills.
    Gives what was found wrong, empty if nothing."""

    name: str
    look: Callable[[Path, int], str]


def _by_kills(jobs: kill.Jobs) -> Callable[[Path, int], str]:
    """Kills fall at moments of chance, and a few may all miss a fault: other seeds follow until it
    is seen. Where there is none, all of them must be clean."""

    def look(folder: Path, kills: int) -> str:
        for seed in range(SEEDS):
            outcome = kill.run(folder / str(seed), kills, seed, jobs=jobs)
            if not outcome.is_clean:
                return str(outcome)
        return ""

    return look


def _by_audit(**programs: list[str]) -> Callable[[Path, int], str]:
    def look(folder: Path, kills: int) -> str:
        found = order_audit.run(folder, REQUESTS, **programs)
        return f"{len(found.violations)} violations" if found.violations else ""

    return look


def _plant(fault: Callable[[], None]) -> list[str]:
    return [__file__, "--plant", fault.__name__]


# What a disk may do to a block: the bytes are there, and one of them is another.
CHANGED_BLOCKS = kill.Jobs(
    commit=commit_without_checksums,
    garbage=(lambda chance, segment: kill.changed_block(segment),),
)
FAULTS = (
    Fault("a row that is kept in memory only", _by_kills(kill.Jobs(write=write_to_memory))),
    Fault("no check of the transaction", _by_kills(kill.Jobs(commit=commit_without_looking))),
    Fault("no check of the checksum", _by_kills(CHANGED_BLOCKS)),
    Fault("blocks signed alike", _by_kills(kill.Jobs(write=write_alike, commit=commit_alike))),
    Fault("a reply before the append", _by_audit(gateway=_plant(reply_first))),
    Fault("a reply before the sync", _by_audit(gateway=_plant(reply_unsynced))),
    Fault("an unlinked segment before the sync", _by_audit(committer=_plant(unlink_unsynced))),
)
SOUND = (
    Fault("nothing, by kills", _by_kills(kill.Jobs())),
    Fault("nothing, by the audit", _by_audit()),
)


def look_for(fault: Fault, folder: Path, kills: int = KILLS) -> str:
    """What the proof says of a planted fault; empty if it did not see it."""
    with (folder / "stderr.txt").open("w") as out, redirect_stderr(out):
        return fault.look(folder, kills)


def main() -> None:
    """All faults; or, in a child, one of them."""
    parser = argparse.ArgumentParser(description="Planted faults, each to be found.")
    parser.add_argument("--plant", choices=list(PLANTED), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.plant:
        PLANTED[given.plant]()
        return
    seen = {}
    for fault in (*FAULTS, *SOUND):
        folder = Path(tempfile.mkdtemp(prefix="inferlake-faults-"))
        seen[fault] = look_for(fault, folder)
        print(f"planted {fault.name}: {seen[fault] or 'nothing found'}", flush=True)
        shutil.rmtree(folder)
    found = sum(bool(seen[fault]) for fault in FAULTS)
    false = sum(bool(seen[fault]) for fault in SOUND)
    is_good = found == len(FAULTS) and not false
    print(
        f"{'ok    ' if is_good else 'MISSED'} {found} of {len(FAULTS)} planted faults found, "
        f"{false} false alarms (bar: all, 0)"
    )
    sys.exit(0 if is_good else 1)


if __name__ == "__main__":
    main()
