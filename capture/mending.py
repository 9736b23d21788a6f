"""What is damaged in a Delta table, and what needs a person's consent to mend.

A start mends by itself what a crash leaves (`delta_log.mend`). The rest is damage of the disk, when
the log segments of the rows are gone: a commit below others, a data file. Mending it gives rows up,
or takes them from where only evidence says that they belong:

- A damaged commit is replaced by one without actions; then the table can be read.
- A data file that is torn or gone leaves the table, so that all other rows can be read; what is
  left of it stays where it is until vacuum takes it.
- The rows of a damaged commit still lie in its data file, which no commit names now. It is added
  again if none of its rows is in the table: files of writers that were killed look the same, but
  their rows came again.

Whoever mends holds the locks of all writers, and has the write-ahead log taken in before `restore`.
"""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

import deltalake
import pyarrow.parquet as pq
from deltalake.transaction import AddAction, RemoveAction

from capture import data_files, delta, delta_commits, delta_log, logline

log = logline.logger(__name__)

MENDING = "inferlake:mending"  # app transaction: two menders must not pass each other


class Damage(NamedTuple):
    """What was found in a table."""

    found: str
    by_itself: bool  # the next start mends it


class Torn(NamedTuple):
    """A data file of the present version that cannot be read."""

    path: str
    partition: dict[str, str | None]
    size_bytes: int
    rows: int
    is_missing: bool


def examine(path: Path) -> list[Damage]:
    """All damage of a table. Changes nothing, reads no row unless a commit was damaged."""
    found = [*_log_damage(path)]
    if found:
        return found  # of a table that cannot be read nothing more can be said
    try:
        handle = deltalake.DeltaTable(path)
        return [*_file_damage(path, handle)]
    except BaseException as error:  # delta-rs panics outside of Exception
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        reason = str(error).splitlines()[0][:300] if str(error) else type(error).__name__
        return [Damage(f"cannot be read ({reason})", False)]


def _log_damage(path: Path) -> Iterator[Damage]:
    present = delta_log.commit_versions(path)
    sound = {v for v in present if delta_log.actions(delta_log.commit_file(path, v)) is not None}
    last_sound = max(sound, default=-1)
    for version in delta_log.damaged_commits(path):
        file = delta_log.commit_file(path, version)
        state = "missing" if version not in present else "torn" if file.stat().st_size else "empty"
        which = "last commit" if version == present[-1] else "commit"
        yield Damage(f"its {which}, {file.name}, is {state}", version > last_sound)
    if damaged := delta_log.damaged_checkpoint(path):
        yield Damage(f"its checkpoint, {damaged.name}, is torn or names none", True)


def _file_damage(path: Path, handle: deltalake.DeltaTable) -> Iterator[Damage]:
    for torn in torn_files(path, handle):
        state = "missing" if torn.is_missing else "torn"
        yield Damage(f"data file {torn.path} with {torn.rows} rows is {state}", False)
    for file in lost_files(path, handle):
        rows = pq.read_metadata(file).num_rows
        yield Damage(f"{rows} rows of a damaged commit lie in {file.name}, in no commit", False)


# What is left of the data ------------------------------------------------------------------------


def torn_files(path: Path, handle: deltalake.DeltaTable) -> list[Torn]:
    """Files of the version that a handle has loaded which are gone, cut, or no Parquet."""
    found = []
    columns = handle.metadata().partition_columns
    for add in delta_commits.present_files(handle).to_pylist():
        file = path / unquote(add["path"])
        is_missing = not file.exists()
        if is_missing or file.stat().st_size != add["size_bytes"] or not delta_log.is_parquet(file):
            values = delta.partition_of(add, columns)
            rows = add["num_records"] or 0
            found.append(Torn(add["path"], values, add["size_bytes"], rows, is_missing))
    return found


def lost_files(path: Path, handle: deltalake.DeltaTable) -> list[Path]:
    """Data files that a damaged commit had: no commit names them, no row of theirs is in the table.

    Only of append-only tables, and none where no commit was ever damaged."""
    was_damaged = any(file.suffix == ".json" for file in delta_log.damaged_files(path))
    configuration = handle.metadata().configuration
    if not was_damaged or configuration.get("delta.appendOnly") != "true":
        return []
    present = {
        path / unquote(name) for name in delta_commits.present_files(handle)["path"].to_pylist()
    }
    unnamed = [
        file
        for file in sorted(path.rglob("*.parquet"))
        if file not in present
        and not any(part.startswith(("_", ".")) for part in file.relative_to(path).parts)
        and delta_log.is_parquet(file)
    ]
    return [file for file in unnamed if _is_lost(file, present)]


def _is_lost(file: Path, present: set[Path]) -> bool:
    names = pq.read_schema(file).names
    # A request has its id. What has none is the same row only if it is the same in every column.
    own = {"databricks_request_id", "row_index"} & set(names)
    columns = sorted(own) if "request_time" in names and own else names
    rows = _keys(file, columns)
    # The other rows of its partition are the only ones that can be the same.
    return bool(rows) and not any(
        rows & _keys(other, columns) for other in present if other.parent == file.parent
    )


def _keys(file: Path, columns: Sequence[str]) -> set[tuple[str, ...]]:
    if not delta_log.is_parquet(file):
        return set()
    with pq.ParquetFile(file) as opened:
        known = [name for name in columns if name in opened.schema_arrow.names]
        table = opened.read(columns=known)
    return {tuple(map(repr, row)) for row in zip(*table.to_pydict().values(), strict=True)}


# Mending -----------------------------------------------------------------------------------------


def mend_log(path: Path) -> list[str]:
    """Make a table's log readable; gives what was done. Holders of the locks only.

    A table whose first commit is damaged below others has lost its schema: it stays as it is."""
    done = []
    damaged = [damage.found for damage in _log_damage(path)]
    delta_log.mend(path)
    has_begin = bool(delta_log.checkpoint_versions(path))
    for version in delta_log.damaged_commits(path):
        if version == 0 and not has_begin:
            return []
        delta_log.replace_commit(path, version, {delta_log.RESTORED: "true"})
    done += [f"{found}: replaced or set aside" for found in damaged]
    return done


def mend_files(path: Path) -> list[str]:
    """Take files that cannot be read out of a table; gives what was done."""
    handle = deltalake.DeltaTable(path)
    torn = torn_files(path, handle)
    if not torn:
        return []
    now_ms = time.time_ns() // 1_000_000
    # No change of data, in the words of the log: an append-only table admits no other removal.
    removes = [RemoveAction(one.path, False, now_ms, one.size_bytes, one.partition) for one in torn]
    _commit(path, handle, removes, {})
    return [f"data file {one.path} left the table, with {one.rows} rows" for one in torn]


def restore(path: Path) -> list[str]:
    """Add files again that a damaged commit had; gives what was done."""
    handle = deltalake.DeltaTable(path)
    layout = delta.layout_of(handle)
    adds: list[AddAction] = []
    done = []
    for file in lost_files(path, handle):
        relative = str(file.relative_to(path))
        folders = [folder.split("=", 1) for folder in relative.split("/")[:-1]]
        rows = pq.ParquetFile(file).read()
        fitting = data_files.conformed(rows, layout.file_schema)
        adds.append(data_files.described(path, relative, layout, dict(folders), fitting))
        done.append(f"{len(rows)} rows of a damaged commit are back, in {file.name}")
    if adds:
        _commit(path, handle, adds, {delta_log.RESTORED: "true"})
    return done


def _commit(
    path: Path,
    handle: deltalake.DeltaTable,
    actions: Sequence[AddAction | RemoveAction],
    told: dict[str, str],
) -> None:
    turn = (handle.transaction_version(MENDING) or 0) + 1
    delta_commits.publish(handle, actions, {MENDING: turn}, told)
    delta_log.sync_commits(path)
    log.warning("table_mended", table=path.name, actions=len(actions))
