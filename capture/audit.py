"""SQL of the audit: who did what from where, written in the transaction that does it.

Each entry comes to the Delta table `system.access.audit` as well (`ledger`). Both packages that
change something write here; what stands in `before` and `after` must not hold a secret.
"""

import json
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from capture import database, ledger

DAY_MS = 86_400_000
_JSON = sa.JSON(none_as_null=True)
_COUNTING_ID = sa.BigInteger().with_variant(sa.Integer, "sqlite")

# Network address of the request that is being answered: set where requests come in, so that no
# route can forget to hand it down. None: a process of ours acts.
address: ContextVar[str | None] = ContextVar("audit_address", default=None)

entries = sa.Table(
    "audit",
    database.metadata,
    sa.Column("id", _COUNTING_ID, primary_key=True),
    sa.Column("time_ms", sa.BigInteger, nullable=False, index=True),
    sa.Column("actor", sa.String(256), nullable=False),
    sa.Column("action", sa.String(64), nullable=False),
    sa.Column("endpoint", sa.String(63)),
    sa.Column("before", _JSON),
    sa.Column("after", _JSON),
    sa.Column("reason", sa.Text),
    sa.Column("address", sa.String(64)),
)


@dataclass(frozen=True, slots=True)
class Entry:
    """Who did what to which endpoint, with the state before and after."""

    id: int
    time_ms: int
    actor: str
    action: str
    endpoint: str | None
    before: dict[str, Any] | None
    after: dict[str, Any] | None
    reason: str | None
    address: str | None


def write(
    connection: sa.Connection,
    actor: str,
    action: str,
    now_ms: int,
    *,
    endpoint: str | None = None,
    before: Mapping[str, Any] | None = None,
    after: Mapping[str, Any] | None = None,
    reason: str | None = None,
) -> int:
    """Write who did what, in the transaction that does it; gives the entry's id."""
    values = {
        "time_ms": now_ms,
        "actor": actor,
        "action": action,
        "endpoint": endpoint,
        "before": None if before is None else dict(before),
        "after": None if after is None else dict(after),
        "reason": reason,
        "address": address.get(),
    }
    key = connection.execute(sa.insert(entries).values(**values)).inserted_primary_key
    assert key is not None  # an INSERT of one row always gives it
    fact = {
        "event_date": now_ms // DAY_MS,
        "event_time": now_ms * 1000,
        "event_id": str(key[0]),
        "user_identity": {"email": actor},
        "action_name": action,
        "source_ip_address": values["address"],
        "endpoint": endpoint,
        "before": None if before is None else json.dumps(before),
        "after": None if after is None else json.dumps(after),
        "reason": reason,
    }
    ledger.write(connection, ledger.AUDIT, [fact])
    return int(key[0])


def read(
    connection: sa.Connection,
    limit: int,
    *,
    endpoint: str | None = None,
    actor: str | None = None,
    action: str | None = None,
    from_ms: int | None = None,
    to_ms: int | None = None,
    below_id: int | None = None,
) -> list[Entry]:
    """Entries newest first; from_ms included, to_ms excluded; ids under `below_id` if given.
    action: its name, or with a star at the end what names begin with (`token.*`)."""
    query = sa.select(*database.columns(entries, Entry))
    if action is not None and action.endswith("*"):
        query = query.where(entries.c.action.startswith(action[:-1], autoescape=True))
        action = None
    equal = {entries.c.endpoint: endpoint, entries.c.actor: actor, entries.c.action: action}
    for column, value in equal.items():
        if value is not None:
            query = query.where(column == value)
    if from_ms is not None:
        query = query.where(entries.c.time_ms >= from_ms)
    if to_ms is not None:
        query = query.where(entries.c.time_ms < to_ms)
    if below_id is not None:
        query = query.where(entries.c.id < below_id)
    query = query.order_by(entries.c.id.desc()).limit(limit)
    return [Entry(*row) for row in connection.execute(query)]
