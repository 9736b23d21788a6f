"""SQL of how long each replica has lived, for replica-hours: one row per replica, for ever.

The controller begins a life with the replica and prolongs those that it sees alive; nothing has to
be closed. So a crash of any process, or of the machine, costs the time since the last look, and
counts no time twice.
"""

from collections.abc import Collection
from dataclasses import dataclass, fields

import sqlalchemy as sa

from capture import database

replica_lives = sa.Table(
    "replica_lives",
    database.metadata,
    sa.Column("replica_id", sa.String(32), primary_key=True),
    sa.Column("endpoint", sa.String(63), nullable=False, index=True),
    sa.Column("served_entity", sa.String(63), nullable=False),
    sa.Column("workload_type", sa.String(32), nullable=False),
    sa.Column("workload_size", sa.String(32)),
    sa.Column("from_ms", sa.BigInteger, nullable=False),
    sa.Column("until_ms", sa.BigInteger, nullable=False, index=True),
)


@dataclass(frozen=True, slots=True)
class Life:
    """A replica was there from its start until it was last seen, unix ms. workload_size: None where
    a range of concurrency was asked for instead."""

    replica_id: str
    endpoint: str
    served_entity: str
    workload_type: str
    workload_size: str | None
    from_ms: int
    until_ms: int


def begin(connection: sa.Connection, life: Life) -> None:
    """A replica starts."""
    values = {field.name: getattr(life, field.name) for field in fields(Life)}
    connection.execute(sa.insert(replica_lives).values(**values))


def prolong(connection: sa.Connection, replica_ids: Collection[str], now_ms: int) -> None:
    """These replicas are alive."""
    if replica_ids:
        chosen = replica_lives.c.replica_id.in_(replica_ids)
        connection.execute(sa.update(replica_lives).where(chosen).values(until_ms=now_ms))


def between(
    connection: sa.Connection, from_ms: int | None, to_ms: int | None, endpoint: str | None = None
) -> list[Life]:
    """Lives that touch [from_ms, to_ms), uncut, oldest first; None: no limit."""
    query = sa.select(*database.columns(replica_lives, Life))
    if from_ms is not None:
        query = query.where(replica_lives.c.until_ms > from_ms)
    if to_ms is not None:
        query = query.where(replica_lives.c.from_ms < to_ms)
    if endpoint is not None:
        query = query.where(replica_lives.c.endpoint == endpoint)
    query = query.order_by(replica_lives.c.from_ms, replica_lives.c.replica_id)
    return [Life(*row) for row in connection.execute(query)]
