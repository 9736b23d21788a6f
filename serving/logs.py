"""What the processes of an entity wrote, and how much of it is kept: a file per replica, one for
the template, each kept by its size."""

import contextlib
import os
from pathlib import Path

from capture import logline, names
from capture.settings import Settings

MOST_BYTES = 256 << 10
LOG_BYTES, LOG_KEPT_BYTES, LOGS_PER_ENTITY = 8 << 20, 1 << 20, 20
TAIL_LINES, TAIL_CHARACTERS = 15, 1500


def of_entity(settings: Settings, endpoint: str, entity: str) -> str:
    """The ends of the logs of an entity's replicas and template, the one written last at the end;
    at most 256 KiB, hidden values masked."""
    root = settings.logs_dir.resolve()
    folder = root / names.check_entity(endpoint, "name") / names.check_entity(entity, "entity")
    if not folder.resolve().is_relative_to(root) or not folder.is_dir():
        return ""
    parts: list[str] = []
    left = MOST_BYTES
    for path in sorted(folder.glob("*.log"), key=_written, reverse=True):
        if left <= 0:
            break
        text = _end(path, left)
        left -= len(text.encode())
        parts.append(f"==> {path.name} <==\n{text}")
    return "\n".join(reversed(parts))


def tail(path: Path) -> str:
    """What a model printed last, for a message: at most 15 lines and 1,500 characters, hidden
    values masked. Our own log events are left out: they say nothing of why it ended."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 65_536))
            text = logline.mask(file.read().decode(errors="replace"))
    except FileNotFoundError:
        return ""
    printed = (line.rstrip() for line in text.splitlines() if not line.startswith('{"time": '))
    lines = [line for line in printed if line]
    return "\n".join(lines[-TAIL_LINES:])[-TAIL_CHARACTERS:]


def trim(path: Path) -> None:
    """Keep a log's end once it has grown over its size. Writers append, so they go on at the new
    end; what is written in between is lost. A reader sees the old end or the new one, never none:
    to free a gigabyte takes a while."""
    with contextlib.suppress(FileNotFoundError):
        if path.stat().st_size <= LOG_BYTES:
            return
        with path.open("r+b") as file:
            file.seek(-LOG_KEPT_BYTES, os.SEEK_END)
            kept = file.read(LOG_KEPT_BYTES)
            file.seek(0)
            file.write(kept.partition(b"\n")[2])
            file.truncate()


def drop_old(folder: Path) -> None:
    """Make room for the log of one more replica."""
    for path in sorted(folder.glob("replica-*.log"), key=_written)[: -LOGS_PER_ENTITY + 1]:
        path.unlink(missing_ok=True)


def _written(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:  # the controller drops the oldest ones meanwhile
        return 0.0


def _end(path: Path, most: int) -> str:
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - most))
            data = file.read(most)
    except FileNotFoundError:
        return ""
    if size > most:
        data = data.partition(b"\n")[2]
    return logline.mask(data.decode("utf-8", "replace"))
