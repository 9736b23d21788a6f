"""SQL of secrets and their scopes. A secret is sealed before it comes here: see vault.py."""

import sqlalchemy as sa

from capture import database, errors

secret_scopes = sa.Table(
    "secret_scopes",
    database.metadata,
    sa.Column("name", sa.String(128), primary_key=True),
    sa.Column("creator", sa.String(256), nullable=False),
    sa.Column("created_ms", sa.BigInteger, nullable=False),
)

secrets = sa.Table(
    "secrets",
    database.metadata,
    sa.Column("scope", sa.String(128), primary_key=True),
    sa.Column("key", sa.String(128), primary_key=True),
    sa.Column("sealed", sa.LargeBinary, nullable=False),
    sa.Column("updated_ms", sa.BigInteger, nullable=False),
)


def add_secret_scope(connection: sa.Connection, name: str, creator: str, now_ms: int) -> None:
    """Open a scope. Raises AlreadyExists."""
    if secret_scope_creator(connection, name) is not None:
        raise errors.AlreadyExists(f"Scope '{name}' exists already.")
    connection.execute(
        sa.insert(secret_scopes).values(name=name, creator=creator, created_ms=now_ms)
    )


def secret_scope_creator(connection: sa.Connection, name: str) -> str | None:
    """Who opened a scope; None: there is none of this name."""
    where = secret_scopes.c.name == name
    return connection.execute(sa.select(secret_scopes.c.creator).where(where)).scalar()


def all_secret_scopes(connection: sa.Connection) -> list[tuple[str, str]]:
    """(name, creator) of every scope, by name."""
    query = sa.select(secret_scopes.c.name, secret_scopes.c.creator)
    return [(name, who) for name, who in connection.execute(query.order_by(secret_scopes.c.name))]


def drop_secret_scope(connection: sa.Connection, name: str) -> None:
    """Remove a scope and every secret in it."""
    connection.execute(sa.delete(secrets).where(secrets.c.scope == name))
    connection.execute(sa.delete(secret_scopes).where(secret_scopes.c.name == name))


def put_secret(connection: sa.Connection, scope: str, key: str, sealed: bytes, now_ms: int) -> None:
    """Write a sealed secret, or replace it."""
    where = (secrets.c.scope == scope) & (secrets.c.key == key)
    values = {"sealed": sealed, "updated_ms": now_ms}
    done = connection.execute(sa.update(secrets).where(where).values(**values))
    if done.rowcount == 0:
        connection.execute(sa.insert(secrets).values(scope=scope, key=key, **values))


def sealed_secret(connection: sa.Connection, scope: str, key: str) -> bytes | None:
    """The sealed bytes of a secret."""
    where = (secrets.c.scope == scope) & (secrets.c.key == key)
    return connection.execute(sa.select(secrets.c.sealed).where(where)).scalar()


def all_secrets(connection: sa.Connection) -> list[tuple[str, str, bytes]]:
    """(scope, key, sealed bytes) of every secret."""
    query = sa.select(secrets.c.scope, secrets.c.key, secrets.c.sealed)
    return [(scope, key, sealed) for scope, key, sealed in connection.execute(query)]


def secret_keys(connection: sa.Connection, scope: str) -> list[tuple[str, int]]:
    """(key, time of the last write in unix ms) of a scope's secrets, by key."""
    query = sa.select(secrets.c.key, secrets.c.updated_ms).where(secrets.c.scope == scope)
    return [(key, at) for key, at in connection.execute(query.order_by(secrets.c.key))]


def drop_secret(connection: sa.Connection, scope: str, key: str) -> bool:
    """Remove a secret; False: there was none."""
    where = (secrets.c.scope == scope) & (secrets.c.key == key)
    return connection.execute(sa.delete(secrets).where(where)).rowcount == 1
