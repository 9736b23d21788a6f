"""SQL of the audit: who did what, written in the transaction that does it; also a Delta table."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from capture import database
from serving import ledger

_JSON = sa.JSON(none_as_null=True)
_COUNTING_ID = sa.BigInteger().with_variant(sa.Integer, "sqlite")

audit = sa.Table(
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
)


@dataclass(frozen=True, slots=True)
class AuditRow:
    """Who did what to which endpoint, with the state before and after."""

    id: int
    time_ms: int
    actor: str
    action: str
    endpoint: str | None
    before: dict[str, Any] | None
    after: dict[str, Any] | None
    reason: str | None


def write_audit(
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
    """Write who did what, in the transaction that does it; gives the row's id."""
    done = connection.execute(
        sa.insert(audit).values(
            time_ms=now_ms,
            actor=actor,
            action=action,
            endpoint=endpoint,
            before=None if before is None else dict(before),
            after=None if after is None else dict(after),
            reason=reason,
        )
    )
    key = done.inserted_primary_key
    assert key is not None  # an INSERT of one row always gives it
    audit_id = int(key[0])
    ledger.audited(connection, audit_id, now_ms, actor, action, endpoint, before, after, reason)
    return audit_id


def read_audit(
    connection: sa.Connection,
    limit: int,
    *,
    endpoint: str | None = None,
    actor: str | None = None,
    action: str | None = None,
    from_ms: int | None = None,
    to_ms: int | None = None,
    below_id: int | None = None,
) -> list[AuditRow]:
    """Audit rows newest first; from_ms included, to_ms excluded; ids under `below_id` if given."""
    query = sa.select(*database.columns(audit, AuditRow))
    equal = {audit.c.endpoint: endpoint, audit.c.actor: actor, audit.c.action: action}
    for column, value in equal.items():
        if value is not None:
            query = query.where(column == value)
    if from_ms is not None:
        query = query.where(audit.c.time_ms >= from_ms)
    if to_ms is not None:
        query = query.where(audit.c.time_ms < to_ms)
    if below_id is not None:
        query = query.where(audit.c.id < below_id)
    query = query.order_by(audit.c.id.desc()).limit(limit)
    return [AuditRow(*row) for row in connection.execute(query)]
