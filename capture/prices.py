"""What replicas and requests cost: the price table in SQL, and the one place that counts with it.

A price that is not known makes a cost unknown, with the reason; it never makes it 0.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from capture import database

ONLY = 1  # there is one price table

price_tables = sa.Table(
    "prices",
    database.metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("body", sa.JSON, nullable=False),
    sa.Column("updated_by", sa.String(256), nullable=False),
    sa.Column("updated_ms", sa.BigInteger, nullable=False),
)


@dataclass(frozen=True, slots=True)
class Prices:
    """currency: three letters. replica_hours: (workload type, workload size, or None for every
    size) -> price of an hour; empty: replicas are not charged for. per_1000_requests: None: nor are
    requests."""

    currency: str | None = None
    replica_hours: Mapping[tuple[str, str | None], float] | None = None
    per_1000_requests: float | None = None

    @property
    def known(self) -> bool:
        """Whether there is any price."""
        return bool(self.replica_hours) or self.per_1000_requests is not None

    def hour(self, workload_type: str, workload_size: str | None) -> float | None:
        """Price of an hour of one replica; that of the size comes before that of every size."""
        if not self.replica_hours:
            return 0.0 if self.known else None
        of_size = self.replica_hours.get((workload_type, workload_size))
        return of_size if of_size is not None else self.replica_hours.get((workload_type, None))


@dataclass(frozen=True, slots=True)
class Kept:
    """The price table as it was put: its JSON body, by whom and when."""

    body: dict[str, Any]
    updated_by: str
    updated_ms: int


def kept(connection: sa.Connection) -> Kept | None:
    """The price table; None: nobody has set prices."""
    query = sa.select(*database.columns(price_tables, Kept)).where(price_tables.c.id == ONLY)
    found = connection.execute(query).first()
    return None if found is None else Kept(*found)


def put(connection: sa.Connection, body: Mapping[str, Any], user: str, now_ms: int) -> None:
    """Replace the price table."""
    values = {"body": dict(body), "updated_by": user, "updated_ms": now_ms}
    where = price_tables.c.id == ONLY
    done = connection.execute(sa.update(price_tables).where(where).values(**values))
    if done.rowcount == 0:
        connection.execute(sa.insert(price_tables).values(id=ONLY, **values))


def read(connection: sa.Connection) -> Prices:
    """The price table to count with."""
    found = kept(connection)
    return Prices() if found is None else of_body(found.body)


def of_body(body: Mapping[str, Any]) -> Prices:
    """The price table of a body that was checked when it was put."""
    hours = {
        (each["workload_type"], each.get("workload_size")): float(each["price"])
        for each in body.get("replica_hours") or ()
    }
    return Prices(body.get("currency"), hours, body.get("per_1000_requests"))
