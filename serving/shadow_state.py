"""SQL of shadows: the served entity that gets copies of an endpoint's requests, at most one each.

A change raises the counter `routes`: it reaches every gateway like any change of a route table.
"""

from dataclasses import dataclass, fields

import sqlalchemy as sa

from capture import database
from serving import changes_state

shadows = sa.Table(
    "shadows",
    database.metadata,
    sa.Column("endpoint_id", sa.String(32), primary_key=True),
    sa.Column("served_entity", sa.String(63), nullable=False),
    sa.Column("sample_percentage", sa.Float(53), nullable=False),
    sa.Column("created_by", sa.String(256), nullable=False),
    sa.Column("created_ms", sa.BigInteger, nullable=False),
)


@dataclass(frozen=True, slots=True)
class Shadow:
    """`served_entity`: its name; whatever has that name in the active configuration is meant.
    sample_percentage: of the requests that the split drew, 0..100. created_ms: since when."""

    endpoint_id: str
    served_entity: str
    sample_percentage: float
    created_by: str
    created_ms: int


def find_shadow(connection: sa.Connection, endpoint_id: str) -> Shadow | None:
    """The shadow of an endpoint, if it has one."""
    query = sa.select(*database.columns(shadows, Shadow))
    found = connection.execute(query.where(shadows.c.endpoint_id == endpoint_id)).first()
    return Shadow(*found) if found else None


def all_shadows(connection: sa.Connection) -> dict[str, Shadow]:
    """Every shadow, by endpoint id."""
    query = sa.select(*database.columns(shadows, Shadow))
    return {row[0]: Shadow(*row) for row in connection.execute(query)}


def put_shadow(connection: sa.Connection, shadow: Shadow) -> None:
    """Have an endpoint's requests copied, in place of whatever was before."""
    where = shadows.c.endpoint_id == shadow.endpoint_id
    connection.execute(sa.delete(shadows).where(where))
    values = {field.name: getattr(shadow, field.name) for field in fields(Shadow)}
    connection.execute(sa.insert(shadows).values(**values))
    changes_state.bump(connection)


def delete_shadow(connection: sa.Connection, endpoint_id: str) -> bool:
    """Copy no more; False: nothing was copied."""
    where = shadows.c.endpoint_id == endpoint_id
    done = connection.execute(sa.delete(shadows).where(where))
    changes_state.bump(connection)
    return done.rowcount == 1
