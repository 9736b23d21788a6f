"""Ids of tables and schemas, as the second generation of monitor routes names them.

A recorded payload table has the id of its entry in the catalogue; every other id is a hash of the
name, so that nothing is kept to give the same one again. The way back is a search: what monitors
and the catalogue name, then what lies below the tables folder.
"""

import re
import uuid
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import sqlalchemy as sa

from capture import catalog, errors, names
from capture.settings import Settings
from monitors import state

TABLE_IDS = uuid.UUID("5b9f4f3e-6d0c-5c0e-9d7e-1f1f6c6a7a10")
SCHEMA_IDS = uuid.UUID("0d0f2b1c-58a3-5f7e-8a3b-6c3f5f0b9d42")
SIBLINGS = ("unpacked", "labels", "decisions")
PATTERN = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.ASCII)


def canonical(text: str) -> str | None:
    """An id as it is stored; None: it cannot be one, so it is nobody's."""
    return text.lower() if PATTERN.fullmatch(text.lower()) else None


def schema_of(full_name: str) -> str:
    """`catalog.schema` of a table's full name."""
    return full_name.rpartition(".")[0]


def schema_id(full_name: str) -> str:
    """Id of `catalog.schema`, the same in whatever letter case it is written."""
    return str(uuid.uuid5(SCHEMA_IDS, full_name.lower()))


def table_id(full_name: str, recorded: catalog.RecordedTable | None) -> str:
    """Id of a table. recorded: the payload table that it is, or lies beside."""
    if recorded is not None and recorded.full_name == full_name:
        return recorded.table_id
    return str(uuid.uuid5(TABLE_IDS, full_name.lower()))


def find_table(connection: sa.Connection, settings: Settings, wanted: str) -> str | None:
    """Full name of the table with this id, if there is one."""
    watched = state.monitor_of_id(connection, wanted)
    if watched is not None:
        return watched.table_name
    known = catalog.everything(connection)
    payload = next((each.full_name for each in known if each.table_id == wanted), None)
    if payload is not None:
        return payload
    recorded = {each.full_name for each in known}
    for name in chain(_beside(known), _stored(settings)):
        if name not in recorded and table_id(name, None) == wanted:
            return name
    return None


def spelled(connection: sa.Connection, settings: Settings, full_name: str) -> str:
    """The name of a table as it is written in its folder; as it is given if there is none. Callers
    may write it in either letter case."""
    for recorded in catalog.everything(connection):
        if recorded.full_name.lower() == full_name.lower():
            return recorded.full_name
    return find_table(connection, settings, table_id(full_name, None)) or full_name


def find_schema(connection: sa.Connection, settings: Settings, wanted: str) -> str | None:
    """`catalog.schema` with this id, if something lies there or is to be written there."""
    return next((s for s in _schemas(connection, settings) if schema_id(s) == wanted), None)


def _schemas(connection: sa.Connection, settings: Settings) -> Iterator[str]:
    for monitor in state.all_monitors(connection):
        yield monitor.config["output_schema_name"]
    for recorded in catalog.everything(connection):
        yield schema_of(recorded.full_name)
    for name in _stored(settings):
        yield schema_of(name)


def _beside(known: list[catalog.RecordedTable]) -> Iterator[str]:
    """The tables that recording writes beside each payload table, be they there yet or not."""
    for recorded in known:
        for suffix in SIBLINGS:
            yield str(names.table_name(recorded.full_name).sibling(suffix))


def _stored(settings: Settings) -> Iterator[str]:
    """Full names of the Delta tables below a local tables folder; in object storage none is seen,
    where a table has an id once it is recorded or watched."""
    if "://" in settings.tables_root:
        return
    for log_folder in Path(settings.tables_root).glob("*/*/*/_delta_log"):
        try:
            yield str(names.table_name(".".join(log_folder.parts[-4:-1])))
        except errors.InvalidParameter:  # a folder that no table's name leads to
            continue
