"""SQL of the upkeep of tables: how long rows are kept, what was asked for, what was done last.

The meeting point of the server, which takes such wishes, and of the maintenance process, which
alone rewrites tables."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import sqlalchemy as sa

from capture import database

_JSON = sa.JSON(none_as_null=True)

table_upkeep = sa.Table(
    "table_upkeep",
    database.metadata,
    sa.Column("full_name", sa.String(400), primary_key=True),
    sa.Column("retention_days", sa.Integer),
    sa.Column("asked_ms", sa.BigInteger),
    sa.Column("asked", _JSON),
    sa.Column("answered_ms", sa.BigInteger),
    sa.Column("done_ms", sa.BigInteger),
    sa.Column("done", _JSON),
)


class Upkeep(NamedTuple):
    """What is known of a table. asked: {"vacuum", "retention_hours"}, of the newest wish, made at
    `asked_ms` and fulfilled once `answered_ms` is that; done: what the last upkeep did, or its
    error. Times: unix ms."""

    full_name: str
    retention_days: int | None
    asked_ms: int | None
    asked: dict[str, Any] | None
    answered_ms: int | None
    done_ms: int | None
    done: dict[str, Any] | None

    @property
    def is_waiting(self) -> bool:
        """Whether the newest wish is yet to be fulfilled."""
        return self.asked_ms is not None and self.asked_ms != self.answered_ms


def of_table(connection: sa.Connection, full_name: str) -> Upkeep:
    """What is known of a table; of one that nobody asked about yet, nothing."""
    where = table_upkeep.c.full_name == full_name
    found = connection.execute(sa.select(table_upkeep).where(where)).first()
    return Upkeep(*found) if found else Upkeep(full_name, None, None, None, None, None, None)


def everything(connection: sa.Connection) -> dict[str, Upkeep]:
    """What is known of all tables, by full name."""
    found = connection.execute(sa.select(table_upkeep))
    return {row.full_name: Upkeep(*row) for row in found}


def keep_days(connection: sa.Connection, full_name: str, days: int | None) -> None:
    """Have rows of days longer ago than this dropped; None: rows stay."""
    _set(connection, full_name, retention_days=days)


def ask(connection: sa.Connection, full_name: str, asked: Mapping[str, Any], now_ms: int) -> int:
    """Wish for an upkeep now; gives the time that `answered_ms` will have when it is done."""
    before = of_table(connection, full_name).asked_ms
    at = now_ms if before is None else max(now_ms, before + 1)
    _set(connection, full_name, asked_ms=at, asked=dict(asked))
    return at


def note(
    connection: sa.Connection,
    full_name: str,
    done: Mapping[str, Any],
    now_ms: int,
    answers_ms: int | None = None,
) -> None:
    """Tell what an upkeep did. answers_ms: the time of the wish that it fulfils."""
    more = {} if answers_ms is None else {"answered_ms": answers_ms}
    _set(connection, full_name, done=dict(done), done_ms=now_ms, **more)


def _set(connection: sa.Connection, full_name: str, **values: Any) -> None:
    where = table_upkeep.c.full_name == full_name
    changed = connection.execute(sa.update(table_upkeep).where(where).values(**values))
    if changed.rowcount == 0:
        connection.execute(sa.insert(table_upkeep).values(full_name=full_name, **values))
