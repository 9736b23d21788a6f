"""SQL of access: tokens, one-time sign-in codes, grants. Who may do what is decided in access.py.

Each change raises the counter `routes`: it bites in every gateway at its next poll.
"""

from collections.abc import Iterable
from dataclasses import dataclass, fields

import sqlalchemy as sa

from capture import database, errors
from serving import changes_state

tokens = sa.Table(
    "tokens",
    database.metadata,
    sa.Column("id", sa.String(16), primary_key=True),
    sa.Column("user", sa.String(256), nullable=False),
    sa.Column("comment", sa.Text),
    sa.Column("hash", sa.LargeBinary(32), nullable=False),
    sa.Column("created_ms", sa.BigInteger, nullable=False),
    sa.Column("expires_ms", sa.BigInteger),
    sa.Column("revoked_ms", sa.BigInteger),
)

sign_in_codes = sa.Table(
    "sign_in_codes",
    database.metadata,
    sa.Column("hash", sa.LargeBinary(32), primary_key=True),
    sa.Column("user", sa.String(256), nullable=False),
    sa.Column("expires_ms", sa.BigInteger, nullable=False),
    sa.Column("used", sa.Boolean, nullable=False),
)

grants = sa.Table(
    "grants",
    database.metadata,
    sa.Column("endpoint_id", sa.String(32), primary_key=True),
    sa.Column("principal", sa.String(280), primary_key=True),
    sa.Column("kind", sa.String(20), nullable=False),
    sa.Column("level", sa.String(20), nullable=False),
)


@dataclass(frozen=True, slots=True)
class Token:
    """A token's public side and the SHA-256 of its text."""

    id: str
    user: str
    comment: str | None
    hash: bytes
    created_ms: int
    expires_ms: int | None
    revoked_ms: int | None


@dataclass(frozen=True, slots=True)
class Grant:
    """`principal`: the user's name, or `group:NAME`; `kind`: user | group | service_principal."""

    endpoint_id: str
    principal: str
    kind: str
    level: str


def add_token(connection: sa.Connection, row: Token) -> None:
    """Write a token; its text is nowhere, only its hash."""
    values = {field.name: getattr(row, field.name) for field in fields(Token)}
    connection.execute(sa.insert(tokens).values(**values))
    changes_state.bump(connection)


def valid_tokens(connection: sa.Connection) -> list[Token]:
    """Tokens that were not revoked, oldest first; the caller looks at the expiry."""
    query = (
        sa.select(*database.columns(tokens, Token))
        .where(tokens.c.revoked_ms.is_(None))
        .order_by(tokens.c.created_ms, tokens.c.id)
    )
    return [Token(*row) for row in connection.execute(query)]


def token(connection: sa.Connection, token_id: str) -> Token:
    """A token by its public id. Raises DoesNotExist for unknown and revoked ones."""
    query = sa.select(*database.columns(tokens, Token)).where(
        tokens.c.id == token_id, tokens.c.revoked_ms.is_(None)
    )
    found = connection.execute(query).first()
    if found is None:
        raise errors.DoesNotExist(f"Token '{token_id[:200]}' does not exist.")
    return Token(*found)


def revoke_token(connection: sa.Connection, token_id: str, now_ms: int) -> None:
    """The token is worth nothing from now on."""
    where = tokens.c.id == token_id
    connection.execute(sa.update(tokens).where(where).values(revoked_ms=now_ms))
    changes_state.bump(connection)


def drop_expired_tokens(connection: sa.Connection, now_ms: int) -> None:
    """Forget tokens and codes that expired a day ago, so that sign-ins do not pile up."""
    day_ago = now_ms - 86_400_000
    connection.execute(sa.delete(tokens).where(tokens.c.expires_ms < day_ago))
    connection.execute(sa.delete(sign_in_codes).where(sign_in_codes.c.expires_ms < day_ago))


def add_sign_in_code(connection: sa.Connection, hash: bytes, user: str, expires_ms: int) -> None:
    """Write a one-time code, by the SHA-256 of its text."""
    connection.execute(
        sa.insert(sign_in_codes).values(hash=hash, user=user, expires_ms=expires_ms, used=False)
    )


def use_sign_in_code(connection: sa.Connection, hash: bytes, now_ms: int) -> str | None:
    """Take a code once: its user, or None if it is unknown, used or expired."""
    valid = (
        (sign_in_codes.c.hash == hash)
        & sign_in_codes.c.used.is_(False)
        & (sign_in_codes.c.expires_ms > now_ms)
    )
    done = connection.execute(sa.update(sign_in_codes).where(valid).values(used=True))
    if done.rowcount == 0:
        return None
    where = sign_in_codes.c.hash == hash
    return connection.execute(sa.select(sign_in_codes.c.user).where(where)).scalar_one()


def all_grants(connection: sa.Connection) -> list[Grant]:
    """Every grant on every endpoint."""
    return [Grant(*row) for row in connection.execute(sa.select(*database.columns(grants, Grant)))]


def grants_on(connection: sa.Connection, endpoint_id: str) -> list[Grant]:
    """Grants on one endpoint, by principal."""
    query = (
        sa.select(*database.columns(grants, Grant))
        .where(grants.c.endpoint_id == endpoint_id)
        .order_by(grants.c.principal)
    )
    return [Grant(*row) for row in connection.execute(query)]


def put_grants(connection: sa.Connection, endpoint_id: str, rows: Iterable[Grant]) -> None:
    """Add grants, or change their level."""
    for row in rows:
        key = (grants.c.endpoint_id == endpoint_id) & (grants.c.principal == row.principal)
        values = {"kind": row.kind, "level": row.level}
        done = connection.execute(sa.update(grants).where(key).values(**values))
        if done.rowcount == 0:
            connection.execute(
                sa.insert(grants).values(endpoint_id=endpoint_id, principal=row.principal, **values)
            )
    changes_state.bump(connection)


def drop_grants(
    connection: sa.Connection, *, endpoint_id: str | None = None, principal: str | None = None
) -> None:
    """Take back all grants on an endpoint, of a principal, or of both."""
    query = sa.delete(grants)
    if endpoint_id is not None:
        query = query.where(grants.c.endpoint_id == endpoint_id)
    if principal is not None:
        query = query.where(grants.c.principal == principal)
    connection.execute(query)
    changes_state.bump(connection)
