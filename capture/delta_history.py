"""What is new in a Delta table since a version, also when its commits have left the log.

Commits that two checkpoints cover move from `_delta_log` to `_history`, a line each, since a commit
costs the more the longer the log is (see `delta`). `files_since` finds them in both.
"""

import fcntl
import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote

from capture import delta_log

HISTORY = "_history"
HISTORY_DAYS = 8


class DataFile(NamedTuple):
    """A data file that a commit added."""

    path: Path
    commit_version: int
    partition: dict[str, str | None]
    rows: int | None
    size_bytes: int


class Since(NamedTuple):
    """Files added by commits up to `version`, oldest commit first."""

    version: int
    files: list[DataFile]


class HistoryGone(Exception):
    """Commits that were asked for are no longer known; look at the table's present files."""


def _added(path: Path, commit_version: int, actions: list[dict[str, Any]]) -> list[DataFile]:
    adds = [action["add"] for action in actions if "add" in action]
    return [
        DataFile(
            path / unquote(add["path"]),
            commit_version,
            add.get("partitionValues") or {},
            json.loads(add.get("stats") or "{}").get("numRecords"),
            add["size"],
        )
        for add in adds
        if add["dataChange"]
    ]


def files_since(path: Path, version: int) -> Since:
    """Data files of the commits above `version` (-1: all), without those of compaction.

    Raises HistoryGone if these commits are older than the history, 8 days, or were damaged, or
    bring back rows of one that was.
    """
    present = delta_log.commit_versions(path)
    if not present:
        return Since(version, [])
    files: list[DataFile] = []
    if present[0] > version + 1:
        files += _archived(path, version, present[0])
    newest = max(version, present[0] - 1)
    for commit_version in range(newest + 1, present[-1] + 1):
        try:
            actions = delta_log.actions(delta_log.commit_file(path, commit_version))
        except FileNotFoundError:
            if delta_log.commit_versions(path)[0] < commit_version:
                raise HistoryGone(f"Commit {commit_version} is missing from the log.") from None
            return files_since(path, version)  # moved to the history while we read
        if actions is None and commit_version < present[-1]:
            raise HistoryGone(f"Commit {commit_version} is damaged.")
        if actions is None:
            break  # torn: its owner will set it aside
        if delta_log.is_restored(actions):
            raise HistoryGone(f"Commit {commit_version} is about rows of a damaged one.")
        files += _added(path, commit_version, actions)
        newest = commit_version
    return Since(newest, files)


def _archived(path: Path, version: int, end: int) -> list[DataFile]:
    found: dict[int, list[DataFile]] = {}
    for file in sorted((path / HISTORY).glob("*.jsonl")):
        for line in file.read_bytes().splitlines():
            try:
                commit_version, adds = json.loads(line)
            except ValueError:
                continue  # torn by a crash: the commit is still in the log, or further down
            if version < commit_version < end:
                actions = [{"add": {**add, "dataChange": True}} for add in adds]
                found[commit_version] = _added(path, commit_version, actions)
    if len(found) != end - version - 1:
        raise HistoryGone(f"Commits {version + 1} to {end - 1} are no longer known.")
    return [file for commit_version in sorted(found) for file in found[commit_version]]


def move_to_history(path: Path, keep: int) -> int:
    """Take commits that two checkpoints cover out of the log, all but the newest `keep`.

    Nothing is taken above the older of two sound checkpoints, so that the table survives the loss
    of one. Gives the number of commits taken.
    """
    checkpoints = delta_log.checkpoint_versions(path)
    versions = delta_log.commit_versions(path)
    if len(checkpoints) < 2 or len(versions) <= keep:
        return 0
    newest = [delta_log.checkpoint_file(path, version) for version in checkpoints[-2:]]
    if not all(delta_log.is_parquet(file) for file in newest):
        return 0
    for file in newest:
        delta_log.sync(file)
    delta_log.sync(path / "_delta_log")
    end = min(checkpoints[-2], versions[-keep])
    taken = [version for version in versions if version < end]
    _write_history(path, taken)
    with delta_log.locked(path, fcntl.LOCK_EX):
        for version in taken:
            delta_log.commit_file(path, version).unlink(missing_ok=True)
    for version in checkpoints[:-2]:
        delta_log.checkpoint_file(path, version).unlink(missing_ok=True)
    return len(taken)


def _write_history(path: Path, versions: list[int]) -> None:
    folder = delta_log.made(path / HISTORY)
    target = folder / f"{datetime.now(UTC):%Y-%m-%d}.jsonl"
    with target.open("ab") as file:
        file.write(b"\n")  # ends a line that a crash may have torn
        for version in versions:
            actions = delta_log.actions(delta_log.commit_file(path, version)) or []
            adds = [a["add"] for a in actions if "add" in a and a["add"]["dataChange"]]
            kept = ("path", "partitionValues", "stats", "size")
            line = [version, [{name: add.get(name) for name in kept} for add in adds]]
            file.write(json.dumps(line).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())
    delta_log.sync(folder)
    for old in sorted(folder.glob("*.jsonl"))[:-HISTORY_DAYS]:
        old.unlink()
