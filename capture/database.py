"""The state database, SQLite or PostgreSQL: engine, transactions, migrations, leases.

Each package defines its tables in its own `state.py` on the one `metadata` here; the migrations,
one chain for all, lie in `capture/migrations/versions`. `migrate` is called by the supervisor
before any other process starts; `open_engine` never changes the schema.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy import event

from capture.settings import Settings

if TYPE_CHECKING:
    import alembic.config

metadata = sa.MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_name)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)

leases = sa.Table(
    "leases",
    metadata,
    sa.Column("name", sa.String(128), primary_key=True),
    sa.Column("holder", sa.String(128), nullable=False),
    sa.Column("fence", sa.BigInteger, nullable=False),
    sa.Column("renewals", sa.BigInteger, nullable=False),
)


def open_engine(settings: Settings) -> sa.Engine:
    """Engine of the state database. SQLite runs in WAL mode and waits 15 s for a lock."""
    url = sa.make_url(settings.sqlalchemy_url)
    if url.get_backend_name() != "sqlite":
        return sa.create_engine(url, pool_pre_ping=True)
    engine = sa.create_engine(url, connect_args={"timeout": 15, "check_same_thread": False})

    @event.listens_for(engine, "connect")
    def _pragmas(connection: Any, _record: Any) -> None:
        # `begin` below starts transactions; the driver must not start its own deferred ones.
        connection.isolation_level = None
        for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON"):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def _begin(connection: sa.Connection) -> None:
        # A deferred transaction that upgrades from reading to writing fails at once when another
        # writer came between; an immediate one waits its turn. Readers say so (see `reading`).
        read_only = connection.get_execution_options().get("inferlake_reading", False)
        connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")

    return engine


@contextmanager
def transaction(engine: sa.Engine) -> Iterator[sa.Connection]:
    """A writing transaction: committed at the end, rolled back on any error."""
    with engine.begin() as connection:
        yield connection


@contextmanager
def reading(engine: sa.Engine) -> Iterator[sa.Connection]:
    """A reading transaction: one snapshot, no lock against writers."""
    with engine.execution_options(inferlake_reading=True).begin() as connection:
        yield connection


def columns(table: sa.Table, row_type: type) -> list[sa.Column[Any]]:
    """Columns of a table in the order of a dataclass's fields, which are named like them."""
    return [table.c[field.name] for field in fields(row_type)]


def alembic_configuration(settings: Settings) -> "alembic.config.Config":
    """Alembic's configuration for our chain of migrations."""
    # Loaded here alone: a tenth of the time in which a gateway starts, which never migrates.
    import alembic.config

    configuration = alembic.config.Config()
    configuration.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    configuration.attributes["engine_settings"] = settings
    return configuration


def migrate(settings: Settings) -> None:
    """Bring the schema to the newest version; safe to repeat."""
    import alembic.command

    settings.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    alembic.command.upgrade(alembic_configuration(settings), "head")


def seize_lease(
    connection: sa.Connection, name: str, holder: str, seen_renewals: int
) -> int | None:
    """Take a lease whose renewal count still is `seen_renewals` (-1: nobody holds it).

    A candidate watches the count for longer than the lease's life *on its own monotonic clock* and
    calls this only if it stood still, so clocks never need to agree. Gives the fencing number,
    which grows with every change of holder and goes into what the holder commits; None: somebody
    was faster, or the holder is alive.
    """
    if seen_renewals < 0:
        known = connection.execute(sa.select(leases.c.name).where(leases.c.name == name)).first()
        if known is not None:
            return None
        connection.execute(sa.insert(leases).values(name=name, holder=holder, fence=1, renewals=0))
        return 1
    done = connection.execute(
        sa.update(leases)
        .where(leases.c.name == name, leases.c.renewals == seen_renewals)
        .values(holder=holder, fence=leases.c.fence + 1, renewals=seen_renewals + 1)
    )
    if done.rowcount == 0:
        return None
    return connection.execute(sa.select(leases.c.fence).where(leases.c.name == name)).scalar_one()


def renew_lease(connection: sa.Connection, name: str, fence: int) -> bool:
    """Say that the holder with this fencing number lives; False: it was replaced."""
    done = connection.execute(
        sa.update(leases)
        .where(leases.c.name == name, leases.c.fence == fence)
        .values(renewals=leases.c.renewals + 1)
    )
    return done.rowcount == 1


def lease_renewals(connection: sa.Connection, name: str) -> int:
    """Renewal count of a lease; -1 if nobody ever held it."""
    found = connection.execute(sa.select(leases.c.renewals).where(leases.c.name == name)).scalar()
    return -1 if found is None else found


def release_lease(connection: sa.Connection, name: str, fence: int) -> None:
    """Give a lease back at a clean end, so that the next holder need not wait."""
    connection.execute(sa.delete(leases).where(leases.c.name == name, leases.c.fence == fence))
