"""Which tables are recorded, for which endpoint, with which typed columns: the meeting point of the
server, which knows configurations and signatures, and of the committer, which knows neither."""

import uuid
from collections.abc import Mapping
from typing import Any, NamedTuple

import sqlalchemy as sa

from capture import database

recorded_tables = sa.Table(
    "recorded_tables",
    database.metadata,
    sa.Column("full_name", sa.String(400), primary_key=True),
    sa.Column("table_id", sa.String(36), nullable=False, unique=True),
    sa.Column("endpoint_id", sa.String(32), nullable=False),
    sa.Column("endpoint_name", sa.String(63), nullable=False, index=True),
    sa.Column("enabled", sa.Boolean, nullable=False),
    sa.Column("request_columns", sa.JSON, nullable=False),
    sa.Column("looked_up_columns", sa.JSON, nullable=False),
    sa.Column("created_ms", sa.BigInteger, nullable=False),
)


class RecordedTable(NamedTuple):
    """A payload table. Columns: name -> Arrow type name (`double`, `int64`, `string`, `bool`,
    `timestamp`), as far as signatures told; others are found in the rows."""

    full_name: str
    table_id: str
    endpoint_id: str
    endpoint_name: str
    enabled: bool
    request_columns: dict[str, str]
    looked_up_columns: dict[str, str]
    created_ms: int


def _widen(known: Mapping[str, str], new: Mapping[str, str]) -> dict[str, str]:
    merged = dict(known)
    for name, kind in new.items():
        if name in merged and merged[name] != kind:
            both = {merged[name], kind}
            merged[name] = "double" if both <= {"double", "int64", "bool"} else "string"
        else:
            merged[name] = kind
    return merged


def record(
    connection: sa.Connection,
    full_name: str,
    endpoint_id: str,
    endpoint_name: str,
    request_columns: Mapping[str, str],
    looked_up_columns: Mapping[str, str],
    now_ms: int,
) -> None:
    """Register a payload table, or widen its columns and switch it on again."""
    found = get(connection, full_name)
    values: dict[str, Any] = {
        "endpoint_id": endpoint_id,
        "endpoint_name": endpoint_name,
        "enabled": True,
        "request_columns": _widen(found.request_columns if found else {}, request_columns),
        "looked_up_columns": _widen(found.looked_up_columns if found else {}, looked_up_columns),
    }
    if found:
        where = recorded_tables.c.full_name == full_name
        connection.execute(sa.update(recorded_tables).where(where).values(**values))
        return
    table_id = str(uuid.uuid4())
    connection.execute(
        sa.insert(recorded_tables).values(
            full_name=full_name, table_id=table_id, created_ms=now_ms, **values
        )
    )


def switch_off(connection: sa.Connection, full_name: str) -> None:
    """Recording stops; the table and its rows stay."""
    where = recorded_tables.c.full_name == full_name
    connection.execute(sa.update(recorded_tables).where(where).values(enabled=False))


def get(connection: sa.Connection, full_name: str) -> RecordedTable | None:
    """The recorded payload table of this name."""
    where = recorded_tables.c.full_name == full_name
    found = connection.execute(sa.select(recorded_tables).where(where)).first()
    return RecordedTable(**found._mapping) if found else None


def of_endpoint(connection: sa.Connection, endpoint_name: str) -> RecordedTable | None:
    """The payload table that an endpoint writes, or wrote last."""
    found = connection.execute(
        sa.select(recorded_tables)
        .where(recorded_tables.c.endpoint_name == endpoint_name)
        .order_by(recorded_tables.c.enabled.desc(), recorded_tables.c.created_ms.desc())
    ).first()
    return RecordedTable(**found._mapping) if found else None


def everything(connection: sa.Connection) -> list[RecordedTable]:
    """All recorded payload tables, by name."""
    found = connection.execute(sa.select(recorded_tables).order_by(recorded_tables.c.full_name))
    return [RecordedTable(**row._mapping) for row in found]
