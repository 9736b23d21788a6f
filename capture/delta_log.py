"""The files of a Delta log on local disk: which commits and checkpoints there are, damage mended.

- A commit of ours says in its first line how many actions follow, so that one that a power cut
  ended at the end of a line is known as torn: its rows without their transaction would come twice.
- A version is never used twice with other content, for readers keep the newest version that they
  have taken in. What replaces a damaged commit has its version and no actions.
- Nothing damaged is deleted: it stays beside its place as `.damaged-<nanoseconds>-<name>`.
"""

import fcntl
import json
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from capture import logline

log = logline.logger(__name__)

ACTIONS = "inferlake.actions"  # in a commit's information: the number of its other lines
# There, too: rows of a damaged commit are, or may be, elsewhere in the table.
RESTORED = "inferlake.restored"
_CHECKPOINT = re.compile(r"(\d{20})\.checkpoint\.parquet")
_COMMIT = re.compile(r"(\d{20})\.json")
_STAGED = re.compile(r"\.\d{20}\.json\.\d+")
STAGED_SECONDS = 60


class LogCleaned(Exception):
    """Commits that were counted on have left the log; load the table anew."""


def sync(path: Path) -> None:
    """Put a file, or a folder's entries, on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def made(folder: Path) -> Path:
    """A folder that exists, and whose entry is on disk if it was made here."""
    if not folder.exists():
        parent = made(folder.parent)
        folder.mkdir(exist_ok=True)
        sync(parent)
    return folder


# What is there -----------------------------------------------------------------------------------


def commit_file(path: Path, commit_version: int) -> Path:
    return path / "_delta_log" / f"{commit_version:020}.json"


def checkpoint_file(path: Path, commit_version: int) -> Path:
    return path / "_delta_log" / f"{commit_version:020}.checkpoint.parquet"


def _numbered(path: Path, pattern: re.Pattern[str]) -> list[int]:
    try:
        entries = [entry.name for entry in (path / "_delta_log").iterdir()]
    except FileNotFoundError:
        return []
    return sorted(int(found[1]) for name in entries if (found := pattern.fullmatch(name)))


def commit_versions(path: Path) -> list[int]:
    """Versions whose commit file is there, ascending."""
    return _numbered(path, _COMMIT)


def checkpoint_versions(path: Path) -> list[int]:
    """Versions that have a checkpoint, ascending."""
    return _numbered(path, _CHECKPOINT)


def actions(file: Path) -> list[dict[str, Any]] | None:
    """Actions of a commit file, its information first; None if it is empty or torn."""
    try:
        lines = [json.loads(line) for line in file.read_bytes().splitlines() if line.strip()]
    except ValueError:
        return None
    if not lines or not all(isinstance(line, dict) for line in lines):
        return None
    told = _information(lines).get(ACTIONS)
    return lines if told is None or int(told) == len(lines) - 1 else None


def _information(lines: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return next((line["commitInfo"] for line in lines if "commitInfo" in line), {})


def is_restored(lines: Sequence[dict[str, Any]]) -> bool:
    """Whether a commit is about rows that a damaged one had: whoever counts on each commit's rows
    being new has to compare."""
    return RESTORED in _information(lines)


def transactions(path: Path, commit_version: int) -> dict[str, int]:
    """App transactions of a commit; none of one that is damaged."""
    found = [a["txn"] for a in actions(commit_file(path, commit_version)) or [] if "txn" in a]
    return {txn["appId"]: txn["version"] for txn in found}


def is_parquet(file: Path) -> bool:
    """Whether a file begins and ends as a Parquet file does."""
    try:
        pq.read_metadata(file)
    except (OSError, pa.ArrowInvalid):
        return False
    return True


def sync_commits(path: Path, first: int | None = None) -> int:
    """Put on disk the commits from `first` on; gives the newest version.

    Default: what no checkpoint covers, as an earlier process may have been killed before it did so,
    and the log segments of what is found committed are unlinked."""
    newest = max(checkpoint_versions(path), default=-1) if first is None else first - 1
    for version in commit_versions(path):
        if version > newest:
            sync(commit_file(path, version))
            newest = version
    sync(path / "_delta_log")
    return newest


def put_commit(path: Path, commit_version: int, text: str) -> bool:
    """Make a commit of this version, whole and on disk; False if there is one already.

    Raises LogCleaned if the commit below is not there: then what is behind it is not known."""
    file = commit_file(path, commit_version)
    with _staged(file, text) as fresh, locked(path, fcntl.LOCK_SH):
        if not commit_file(path, commit_version - 1).exists():
            raise LogCleaned(f"Commit {commit_version - 1} has left the log.")
        try:
            os.link(fresh, file)
        except FileExistsError:
            return False
    sync(file.parent)
    return True


@contextmanager
def _staged(file: Path, text: str) -> Iterator[Path]:
    """What is to be a file, whole and on disk beside its place; gone when it is there, or not."""
    fresh = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        fresh.write_text(text)
        sync(fresh)
        yield fresh
    finally:
        fresh.unlink(missing_ok=True)


@contextmanager
def locked(path: Path, how: int) -> Iterator[None]:
    """Hold a log's lock (`fcntl.LOCK_*`): shared to put a commit, alone to take commits out. What
    was taken out between a look at the end and a commit there would leave this in a gap, where no
    reader finds it."""
    descriptor = os.open(path / "_delta_log", os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, how)
        yield
    finally:
        os.close(descriptor)


# Damage ------------------------------------------------------------------------------------------


def mend(path: Path) -> None:
    """Make a table readable again whose log a crash left damaged.

    Last commits that are empty or torn are replaced: their rows still lie in the write-ahead log. A
    torn checkpoint goes, as does a `_last_checkpoint` that names none: the commits tell all.
    """
    _sweep_staged(path)
    torn = _torn_tail(path)
    for version in torn:
        if 0 in torn:  # the table was never made
            set_aside(commit_file(path, version), "commit_set_aside")
        else:
            replace_commit(path, version)
    while damaged := damaged_checkpoint(path):
        set_aside(damaged, "checkpoint_set_aside")


def _sweep_staged(path: Path) -> None:
    """Delete commits that were written and, their process killed, never given their name."""
    for file in (path / "_delta_log").glob(".*.json.*"):
        with suppress(FileNotFoundError):
            if _STAGED.fullmatch(file.name) and time.time() - file.stat().st_mtime > STAGED_SECONDS:
                file.unlink()


def _torn_tail(path: Path) -> list[int]:
    torn: list[int] = []
    for version in reversed(commit_versions(path)):
        if actions(commit_file(path, version)) is not None:
            break
        torn.append(version)
    return torn


def damaged_checkpoint(path: Path) -> Path | None:
    """The newest checkpoint if it is torn, else `_last_checkpoint` if it names none."""
    for version in checkpoint_versions(path)[-1:]:
        if not is_parquet(checkpoint_file(path, version)):
            return checkpoint_file(path, version)
    pointer = path / "_delta_log" / "_last_checkpoint"
    return pointer if pointer.exists() and not _names_a_checkpoint(path, pointer) else None


def _names_a_checkpoint(path: Path, pointer: Path) -> bool:
    try:
        named = json.loads(pointer.read_bytes())
        return int(named["version"]) in checkpoint_versions(path) or "parts" in named
    except (ValueError, KeyError, TypeError):
        return False


def damaged_commits(path: Path) -> list[int]:
    """Versions whose commit is torn, or missing between others; ascending."""
    present = commit_versions(path)
    if not present:
        return []
    return [
        version
        for version in range(present[0], present[-1] + 1)
        if version not in present or actions(commit_file(path, version)) is None
    ]


def _aside(file: Path) -> Path:
    return file.with_name(f".damaged-{time.time_ns()}-{file.name}")


def damaged_files(path: Path) -> list[Path]:
    """What was set aside in a table's log."""
    return sorted((path / "_delta_log").glob(".damaged-*"))


def set_aside(file: Path, event: str) -> None:
    """Take a damaged file out of a log."""
    file.rename(_aside(file))
    sync(file.parent)
    log.warning(event, table=file.parent.parent.name, file=file.name)


def replace_commit(path: Path, version: int, told: Mapping[str, str] = {}) -> None:
    """Put a commit without actions where a damaged one is, or where one is missing.

    told: more to be said in its information."""
    file = commit_file(path, version)
    if file.exists():
        os.link(file, _aside(file))
    else:
        _aside(file).touch()  # that one was missing must be known when its rows are looked for
    now_ms = time.time_ns() // 1_000_000
    information = {"timestamp": now_ms, "operation": "SET ASIDE", ACTIONS: "0", **told}
    with _staged(file, json.dumps({"commitInfo": information})) as fresh:
        fresh.replace(file)
    sync(file.parent)
    log.warning("commit_replaced", table=path.name, commit_version=version)
