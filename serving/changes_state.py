"""Counters of changes: how a process that polls learns cheaply that something moved.

Whoever changes what a route table depends on raises the counter `routes` in the same transaction,
so a gateway that polls it (`Watch`) never misses a change and never sees half of one.
"""

import sqlalchemy as sa

from capture import database

ROUTES = "routes"

changes = sa.Table(
    "changes",
    database.metadata,
    sa.Column("name", sa.String(64), primary_key=True),
    sa.Column("counter", sa.BigInteger, nullable=False),
)


def bump(connection: sa.Connection, name: str = ROUTES) -> None:
    """Raise a counter of changes in this transaction."""
    where = changes.c.name == name
    done = connection.execute(sa.update(changes).where(where).values(counter=changes.c.counter + 1))
    if done.rowcount == 0:
        connection.execute(sa.insert(changes).values(name=name, counter=1))


def counter(connection: sa.Connection, name: str = ROUTES) -> int:
    """Value of a counter of changes; 0 before the first."""
    found = connection.execute(sa.select(changes.c.counter).where(changes.c.name == name)).scalar()
    return found or 0


class Watch:
    """Says cheaply whether a counter moved since the last question. Owned by one thread.

    On SQLite `PRAGMA data_version` (of a connection that never writes) tells in microseconds that
    no other connection committed at all; only else the counter is read. It is asked past
    SQLAlchemy, which takes fifty times as long, of a server that nobody uses as well."""

    def __init__(self, engine: sa.Engine, name: str = ROUTES) -> None:
        self._connection = engine.execution_options(inferlake_reading=True).connect()
        self._sqlite = engine.dialect.name == "sqlite"
        self._name = name
        self._seen_file = -1
        self._seen = -1

    def touched(self) -> bool:
        """Whether anything at all was committed since the last call; True where that cannot be
        told."""
        if not self._sqlite:
            return True
        driver = self._connection.connection.driver_connection
        assert driver is not None  # the connection is open
        (found,) = driver.execute("PRAGMA data_version").fetchone()
        before, self._seen_file = self._seen_file, found
        return bool(found != before)

    def changed(self) -> bool:
        """True at the first call and whenever the counter moved since the last one."""
        return self.touched() and self.moved()

    def moved(self) -> bool:
        """`changed` for who knows already that something was committed."""
        try:
            now = counter(self._connection, self._name)
        finally:
            self._connection.rollback()
        moved, self._seen = now != self._seen, now
        return moved

    def close(self) -> None:
        """Give the connection back."""
        self._connection.close()


ROUTES = "routes"
