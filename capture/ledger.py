"""Facts of the server's own tables: written in the SQL transaction that makes them, then to Delta.

A fact waits in SQL until the maintenance process has it in its table, exactly once: facts get the
number of a batch, the batch is committed as that version of the app transaction `ledger:<table>`,
and only then do they leave SQL. A batch that a crash cut short keeps its number, so that it is
either found committed, or committed as it was. Numbers are given by the one reader, hence no order
of the writers' transactions can lose a fact.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pyarrow as pa
import sqlalchemy as sa

from capture import database, delta, rows
from capture.settings import Settings

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


class Ledger:
    """Brings facts from SQL to Delta. One per data directory: the maintenance process has it."""

    def __init__(self, settings: Settings, engine: sa.Engine) -> None:
        self._settings, self._engine = settings, engine
        self._open: dict[str, delta.Table] = {}

    def follow(self) -> int:
        """Commit what waits; gives the number of facts. Safe to repeat after any error."""
        with database.reading(self._engine) as connection:
            waiting = connection.execute(sa.select(ledger.c.table_name).distinct()).scalars().all()
        return sum(self._commit(name) for name in sorted(waiting) if name in TABLES)

    def _commit(self, name: str) -> int:
        table, app_id = self._table(name), f"ledger:{name}"
        committed = table.transaction_version(app_id) or 0
        with database.transaction(self._engine) as connection:
            batch, facts = _take(connection, name, committed)
        if not facts:
            return 0
        table.append(_arrow(facts, table.schema), app_id, batch)
        with database.transaction(self._engine) as connection:
            _forget(connection, name, batch)
        return len(facts)

    def _table(self, name: str) -> delta.Table:
        if name not in self._open:
            shape, path = TABLES[name], delta.path_of(self._settings, name)
            self._open[name] = delta.open_or_create(
                path, shape.schema, shape.partition_by, time_column=shape.time_column
            )
        return self._open[name]


def _take(connection: sa.Connection, name: str, committed: int) -> tuple[int, list[dict[str, Any]]]:
    """The next batch: the one that was begun, else of facts without one. committed: the newest
    batch in the table."""
    _forget(connection, name, committed)
    mine = ledger.c.table_name == name
    begun = connection.execute(sa.select(sa.func.min(ledger.c.batch)).where(mine)).scalar()
    batch = committed + 1 if begun is None else begun
    if begun is None:
        fresh = sa.select(ledger.c.id).where(mine).order_by(ledger.c.id).limit(MOST_FACTS)
        chosen = ledger.c.id.in_(fresh.scalar_subquery())
        connection.execute(sa.update(ledger).where(chosen).values(batch=batch))
    found = sa.select(ledger.c.fact).where(mine, ledger.c.batch == batch).order_by(ledger.c.id)
    return batch, list(connection.execute(found).scalars())


def _forget(connection: sa.Connection, name: str, batch: int) -> None:
    """Drop the facts of batches up to this one: they are in the table, on disk."""
    where = (ledger.c.table_name == name, ledger.c.batch <= batch)
    connection.execute(sa.delete(ledger).where(*where))


def _arrow(facts: Sequence[Mapping[str, Any]], schema: pa.Schema) -> pa.Table:
    columns = [_column([fact.get(field.name) for fact in facts], field.type) for field in schema]
    return pa.Table.from_arrays(columns, schema=schema)


def _column(values: list[Any], kind: pa.DataType) -> pa.Array:
    if pa.types.is_timestamp(kind):
        return pa.array(values, pa.int64()).cast(kind)
    if pa.types.is_date32(kind):
        return pa.array(values, pa.int32()).cast(kind)
    if pa.types.is_string(kind):
        texts = [v if v is None or isinstance(v, str) else json.dumps(v) for v in values]
        return pa.array(texts, kind)
    return pa.array(values, kind)
