"""What the replicas of an entity wrote, from their files."""

from pathlib import Path

from capture import names
from capture.settings import Settings

MOST_BYTES = 256 << 10


def of_entity(settings: Settings, endpoint: str, entity: str) -> str:
    """The ends of the logs of an entity's replicas, the one written last at the end; at most
    256 KiB."""
    root = settings.logs_dir.resolve()
    folder = root / names.check_entity(endpoint, "name") / names.check_entity(entity, "entity")
    if not folder.resolve().is_relative_to(root) or not folder.is_dir():
        return ""
    parts: list[str] = []
    left = MOST_BYTES
    for path in sorted(folder.glob("replica-*.log"), key=_written, reverse=True):
        if left <= 0:
            break
        text = _end(path, left)
        left -= len(text.encode())
        parts.append(f"==> {path.name} <==\n{text}")
    return "\n".join(reversed(parts))


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
    return data.decode("utf-8", "replace")
