"""What the registry holds: models with their versions and aliases, newest version first, and the
input that a version was logged with.

As in registry.py a SQLite registry is read by read-only SQL, any other one by the helper process.
"""

import json
import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from capture import logline
from capture.settings import Settings
from serving import registry

log = logline.logger(__name__)

MOST_VERSIONS = 100
MOST_EXAMPLE_BYTES = 64 << 10
EXAMPLE = "serving_input_example.json"  # MLflow writes it beside MLmodel


@dataclass(frozen=True, slots=True)
class Version:
    """A version of a model. created_ms: unix milliseconds, None where the registry keeps none."""

    number: int
    aliases: tuple[str, ...]
    created_ms: int | None
    description: str | None


@dataclass(frozen=True, slots=True)
class Listed:
    """A registered model; of its versions the newest MOST_VERSIONS, newest first."""

    name: str
    versions: tuple[Version, ...]


def models(settings: Settings, limit: int, after: str = "", part: str = "") -> list[Listed]:
    """At most `limit` models that have a version, by name: those whose name comes after `after`
    and holds `part`, in any case. Raises Unavailable."""
    path = registry.sqlite_file(settings)
    if path is not None:
        found = _query(path, limit, after, part.lower())
        if found is not None:
            return found
    asked = {"do": "list", "limit": limit, "after": after, "part": part.lower()}
    told = registry.helper(settings, asked)["models"]
    return [_listed(name, versions, aliases) for name, versions, aliases in told]


def example(folder: Path) -> Any:
    """The input that a model was logged with, as the body of a query; None: there is none, or it
    is larger than 64 KiB."""
    path = folder / EXAMPLE
    try:
        if path.stat().st_size > MOST_EXAMPLE_BYTES:
            return None
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _listed(
    name: str,
    versions: Iterable[Sequence[Any]],  # (number, created_ms, description)
    aliases: Iterable[Sequence[Any]],  # (alias, number)
) -> Listed:
    named = [(str(alias), int(number)) for alias, number in aliases]
    newest = sorted(versions, key=lambda each: -int(each[0]))[:MOST_VERSIONS]
    return Listed(
        name,
        tuple(
            Version(
                int(number),
                tuple(sorted(alias for alias, at in named if at == int(number))),
                created,
                description or None,
            )
            for number, created, description in newest
        ),
    )


def _query(path: Path, limit: int, after: str, part: str) -> list[Listed] | None:
    """From a SQLite registry; None: its tables are not known here."""
    if not path.exists():
        return []
    try:
        with registry.read_only(path) as connection:
            return _rows(connection, limit, after, part)
    except sqlite3.DatabaseError as error:
        log.warning("registry_not_listed", error=str(error))
        return None


def _rows(connection: sqlite3.Connection, limit: int, after: str, part: str) -> list[Listed]:
    columns = {row["name"] for row in connection.execute("PRAGMA table_info(model_versions)")}
    # Workspaces came with mlflow 3.10; others than the default are not ours to serve.
    here = "AND v.workspace = 'default'" if "workspace" in columns else ""
    same = "AND a.workspace = v.workspace" if here else ""
    kept = f"v.current_stage <> 'Deleted_Internal' {here}"
    names = [
        row["name"]
        for row in connection.execute(
            f"""SELECT DISTINCT v.name FROM model_versions v
                WHERE {kept} AND v.name > ? AND instr(lower(v.name), ?) > 0
                ORDER BY v.name LIMIT ?""",
            (after, part, limit),
        )
    ]
    created = "v.creation_time" if "creation_time" in columns else "NULL"
    about = "v.description" if "description" in columns else "NULL"
    found = []
    for name in names:
        versions = connection.execute(
            f"""SELECT v.version, {created}, {about} FROM model_versions v
                WHERE {kept} AND v.name = ? ORDER BY v.version DESC LIMIT ?""",
            (name, MOST_VERSIONS),
        ).fetchall()
        aliases = connection.execute(
            f"""SELECT DISTINCT a.alias, a.version FROM registered_model_aliases a
                JOIN model_versions v ON v.name = a.name AND v.version = a.version {same}
                WHERE {kept} AND v.name = ?""",
            (name,),
        ).fetchall()
        found.append(_listed(name, versions, aliases))
    return found
