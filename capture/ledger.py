"""Facts of the server's own tables, on their way: SQL, and the columns that they will have.

A fact is written in the SQL transaction that makes it, and waits there until it is in its Delta
table: facts get the number of a batch, which `ledger_tables` commits, and then leave. A batch that
a crash cut short keeps its number, so that it is found committed, or is committed as it was.
Numbers are given by the one reader, hence no order of the writers' transactions can lose a fact.
Gateways load this file: nothing of Delta here.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pyarrow as pa
import sqlalchemy as sa

from capture import database, rows

AUDIT = "system.access.audit"
ENTITIES = "system.serving.served_entities"
MOST_FACTS = 10_000  # of a batch

ledger = sa.Table(
    "ledger",
    database.metadata,
    sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
    sa.Column("table_name", sa.String(400), nullable=False, index=True),
    sa.Column("fact", sa.JSON, nullable=False),
    sa.Column("batch", sa.BigInteger),
)

AUDIT_SCHEMA = pa.schema(
    [
        pa.field("event_date", pa.date32(), nullable=False),
        pa.field("event_time", rows.TIMESTAMP, nullable=False),
        pa.field("event_id", pa.string(), nullable=False),
        pa.field("user_identity", pa.struct([pa.field("email", pa.string())])),
        pa.field("action_name", pa.string(), nullable=False),
        pa.field("endpoint", pa.string()),
        pa.field("before", pa.string()),  # JSON, as the two below
        pa.field("after", pa.string()),
        pa.field("reason", pa.string()),
        pa.field("source_ip_address", pa.string()),
    ]
)
ENTITY_SCHEMA = pa.schema(
    [
        pa.field("served_entity_id", pa.string(), nullable=False),
        pa.field("account_id", pa.string()),
        pa.field("workspace_id", pa.string()),
        pa.field("created_by", pa.string()),
        pa.field("endpoint_name", pa.string(), nullable=False),
        pa.field("endpoint_id", pa.string(), nullable=False),
        pa.field("served_entity_name", pa.string(), nullable=False),
        pa.field("entity_type", pa.string(), nullable=False),
        pa.field("entity_name", pa.string(), nullable=False),
        pa.field("entity_version", pa.string()),
        pa.field("endpoint_config_version", pa.int32(), nullable=False),
        pa.field("task", pa.string()),
        pa.field("external_model_config", pa.struct([pa.field("provider", pa.string())])),
        pa.field(
            "foundation_model_config",
            pa.struct(
                [
                    pa.field("min_provisioned_throughput", pa.int32()),
                    pa.field("max_provisioned_throughput", pa.int32()),
                ]
            ),
        ),
        pa.field(
            "custom_model_config",
            pa.struct(
                [
                    pa.field("min_concurrency", pa.int32()),
                    pa.field("max_concurrency", pa.int32()),
                    pa.field("compute_type", pa.string()),
                ]
            ),
        ),
        pa.field("feature_spec_config", pa.struct([pa.field("compute_type", pa.string())])),
        pa.field("change_time", rows.TIMESTAMP, nullable=False),
        pa.field("endpoint_delete_time", rows.TIMESTAMP),
        pa.field("traffic_percentage", pa.int32()),
    ]
)


class Shape(NamedTuple):
    """How a table is made. time_column: the order of rows in a file."""

    schema: pa.Schema
    partition_by: tuple[str, ...]
    time_column: str


TABLES = {
    AUDIT: Shape(AUDIT_SCHEMA, ("event_date",), "event_time"),
    ENTITIES: Shape(ENTITY_SCHEMA, (), "change_time"),
}


def write(connection: sa.Connection, table: str, facts: Sequence[Mapping[str, Any]]) -> None:
    """Note facts for one of TABLES: they get there if and only if this transaction commits.

    A fact: column -> JSON value; times in microseconds since the epoch, dates in days."""
    if facts:
        values = [{"table_name": table, "fact": dict(fact)} for fact in facts]
        connection.execute(sa.insert(ledger), values)


def waiting(connection: sa.Connection) -> list[str]:
    """The tables that facts wait for, by name."""
    found = connection.execute(sa.select(ledger.c.table_name).distinct()).scalars()
    return sorted(found)


def take(connection: sa.Connection, name: str, committed: int) -> tuple[int, list[dict[str, Any]]]:
    """The next batch: the one that was begun, else of facts without one. committed: the newest
    batch in the table."""
    forget(connection, name, committed)
    mine = ledger.c.table_name == name
    begun = connection.execute(sa.select(sa.func.min(ledger.c.batch)).where(mine)).scalar()
    batch = committed + 1 if begun is None else begun
    if begun is None:
        fresh = sa.select(ledger.c.id).where(mine).order_by(ledger.c.id).limit(MOST_FACTS)
        chosen = ledger.c.id.in_(fresh.scalar_subquery())
        connection.execute(sa.update(ledger).where(chosen).values(batch=batch))
    found = sa.select(ledger.c.fact).where(mine, ledger.c.batch == batch).order_by(ledger.c.id)
    return batch, list(connection.execute(found).scalars())


def forget(connection: sa.Connection, name: str, batch: int) -> None:
    """Drop the facts of batches up to this one: they are in the table, on disk."""
    where = (ledger.c.table_name == name, ledger.c.batch <= batch)
    connection.execute(sa.delete(ledger).where(*where))
