"""Events for webhooks, written in the same SQL transaction as what they tell; monitors deliver."""

from typing import Any, NamedTuple

import sqlalchemy as sa

from capture import database

outbox = sa.Table(
    "outbox",
    database.metadata,
    sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
    sa.Column("type", sa.String(64), nullable=False),
    sa.Column("data", sa.JSON, nullable=False),
    sa.Column("created_ms", sa.BigInteger, nullable=False),
    sa.Column("dispatched", sa.Boolean, nullable=False, index=True),
)


class Event(NamedTuple):
    """`type`: dotted, e.g. `endpoint.promoted`; `data`: JSON object, names its `endpoint`."""

    id: int
    type: str
    data: dict[str, Any]
    created_ms: int


def emit(connection: sa.Connection, type: str, data: dict[str, Any], now_ms: int) -> None:
    """Write an event; it goes out if and only if this transaction commits."""
    connection.execute(
        sa.insert(outbox).values(type=type, data=data, created_ms=now_ms, dispatched=False)
    )


def waiting(connection: sa.Connection, limit: int = 100) -> list[Event]:
    """Events that were not yet given to their receivers, oldest first."""
    found = connection.execute(
        sa.select(outbox.c.id, outbox.c.type, outbox.c.data, outbox.c.created_ms)
        .where(outbox.c.dispatched.is_(False))
        .order_by(outbox.c.id)
        .limit(limit)
    )
    return [Event(*row) for row in found]


def mark_dispatched(connection: sa.Connection, event_ids: list[int]) -> None:
    """These events have become deliveries (one per receiver), in this same transaction."""
    connection.execute(sa.update(outbox).where(outbox.c.id.in_(event_ids)).values(dispatched=True))


def told(connection: sa.Connection, type: str, endpoint: str, limit: int) -> list[Event]:
    """Events of a type that name this endpoint, newest first."""
    found = connection.execute(
        sa.select(outbox.c.id, outbox.c.type, outbox.c.data, outbox.c.created_ms)
        .where(outbox.c.type == type, outbox.c.data["endpoint"].as_string() == endpoint)
        .order_by(outbox.c.id.desc())
        .limit(limit)
    )
    return [Event(*row) for row in found]


def forget_before(connection: sa.Connection, before_ms: int) -> int:
    """Drop events that were made before this time and have become deliveries; gives their number.
    What waits stays, however old it is."""
    old = (outbox.c.created_ms < before_ms, outbox.c.dispatched.is_(True))
    return connection.execute(sa.delete(outbox).where(*old)).rowcount
