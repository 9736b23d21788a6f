"""SQL of what runs: replicas, the states of entities, the demand that gateways see.

The controller writes replicas and states, each gateway its own rows of demand.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import sqlalchemy as sa

from capture import database
from serving import changes_state

replicas = sa.Table(
    "replicas",
    database.metadata,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("endpoint_id", sa.String(32), nullable=False),
    sa.Column("served_entity_id", sa.String(32), nullable=False, index=True),
    sa.Column("socket", sa.String(400), nullable=False),
    sa.Column("pid", sa.Integer),
    sa.Column("pid_start", sa.Float(53)),
    sa.Column("state", sa.String(20), nullable=False),
    sa.Column("message", sa.Text),
    sa.Column("created_ms", sa.BigInteger, nullable=False),
    sa.Column("ready_ms", sa.BigInteger),
    sa.Column("concurrency", sa.Integer, nullable=False),
    sa.Column("report", sa.JSON(none_as_null=True)),
)

entity_states = sa.Table(
    "entity_states",
    database.metadata,
    sa.Column("endpoint_id", sa.String(32), primary_key=True),
    sa.Column("served_entity_id", sa.String(32), primary_key=True),
    sa.Column("deployment", sa.String(30), nullable=False),
    sa.Column("message", sa.Text, nullable=False),
    sa.Column("updated_ms", sa.BigInteger, nullable=False),
)

demand = sa.Table(
    "demand",
    database.metadata,
    sa.Column("served_entity_id", sa.String(32), primary_key=True),
    sa.Column("gateway", sa.String(64), primary_key=True),
    sa.Column("waiting", sa.Integer, nullable=False),
    sa.Column("in_flight", sa.Integer, nullable=False),
    sa.Column("last_request_ms", sa.BigInteger, nullable=False),
)


# What a replica says of itself. `ways`: per way to its model `proven`, or why it is not taken;
# `calls`: per way how many requests it answered; `feature_misses`: per feature table how many keys
# had no row.
Report = dict[str, dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Replica:
    """A running copy of an entity. `state`: STARTING | READY | DRAINING | FAILED; `report`: None
    before it first answered."""

    id: str
    endpoint_id: str
    served_entity_id: str
    socket: str
    pid: int | None
    pid_start: float | None
    state: str
    message: str | None
    created_ms: int
    ready_ms: int | None
    concurrency: int
    report: Report | None = None


@dataclass(frozen=True, slots=True)
class EntityState:
    """What the controller says of an entity. `deployment`: DEPLOYMENT_* of the contract."""

    endpoint_id: str
    served_entity_id: str
    deployment: str
    message: str
    updated_ms: int


@dataclass(frozen=True, slots=True)
class Demand:
    """What one gateway sees of an entity's load. last_request_ms: unix ms, 0 if none came yet."""

    served_entity_id: str
    gateway: str
    waiting: int
    in_flight: int
    last_request_ms: int


def set_entity_state(
    connection: sa.Connection,
    endpoint_id: str,
    served_entity_id: str,
    deployment: str,
    message: str,
    now_ms: int,
) -> None:
    """Say how an entity's deployment stands: DEPLOYMENT_{CREATING, RECOVERING, READY, FAILED,
    ABORTED} and a sentence for people."""
    key = (entity_states.c.endpoint_id == endpoint_id) & (
        entity_states.c.served_entity_id == served_entity_id
    )
    values = {"deployment": deployment, "message": message, "updated_ms": now_ms}
    done = connection.execute(sa.update(entity_states).where(key).values(**values))
    if done.rowcount == 0:
        connection.execute(
            sa.insert(entity_states).values(
                endpoint_id=endpoint_id, served_entity_id=served_entity_id, **values
            )
        )


def states_of(
    connection: sa.Connection, endpoint_ids: Sequence[str] | None = None
) -> dict[str, EntityState]:
    """Entity states by served entity id, of all endpoints or of some."""
    query = sa.select(*database.columns(entity_states, EntityState))
    if endpoint_ids is not None:
        query = query.where(entity_states.c.endpoint_id.in_(endpoint_ids))
    found = (EntityState(*row) for row in connection.execute(query))
    return {each.served_entity_id: each for each in found}


def all_replicas(connection: sa.Connection) -> list[Replica]:
    """Every replica row, those of deleted endpoints included, oldest first."""
    query = sa.select(*database.columns(replicas, Replica)).order_by(
        replicas.c.created_ms, replicas.c.id
    )
    return [Replica(*row) for row in connection.execute(query)]


def add_replica(connection: sa.Connection, row: Replica) -> None:
    """Write a replica that is about to start."""
    connection.execute(
        sa.insert(replicas).values(
            **{field.name: getattr(row, field.name) for field in fields(Replica)}
        )
    )
    changes_state.bump(connection)


def set_replica(connection: sa.Connection, replica_id: str, **values: Any) -> bool:
    """Change columns of a replica (state, message, pid, pid_start, ready_ms, concurrency, socket).
    False: there is no such row."""
    where = replicas.c.id == replica_id
    done = connection.execute(sa.update(replicas).where(where).values(**values))
    changes_state.bump(connection)
    return done.rowcount == 1


def set_reports(connection: sa.Connection, reports: Mapping[str, Report]) -> None:
    """Write what replicas report, by their id. No route table depends on it, so none is reread."""
    if reports:
        where = replicas.c.id == sa.bindparam("replica")
        rows = [{"replica": key, "told": report} for key, report in reports.items()]
        told = sa.bindparam("told", type_=replicas.c.report.type)
        connection.execute(sa.update(replicas).where(where).values(report=told), rows)


def remove_replica(connection: sa.Connection, replica_id: str) -> None:
    """Forget a replica that has ended."""
    connection.execute(sa.delete(replicas).where(replicas.c.id == replica_id))
    changes_state.bump(connection)


def set_demand(connection: sa.Connection, rows: Iterable[Demand]) -> None:
    """Write what one gateway sees; it owns its rows, so nobody else writes them."""
    for row in rows:
        key = (demand.c.served_entity_id == row.served_entity_id) & (
            demand.c.gateway == row.gateway
        )
        values = {
            "waiting": row.waiting,
            "in_flight": row.in_flight,
            "last_request_ms": row.last_request_ms,
        }
        done = connection.execute(sa.update(demand).where(key).values(**values))
        if done.rowcount == 0:
            connection.execute(
                sa.insert(demand).values(
                    served_entity_id=row.served_entity_id, gateway=row.gateway, **values
                )
            )


def clear_demand(
    connection: sa.Connection, *, gateway: str | None = None, served_entity_id: str | None = None
) -> None:
    """Remove the rows of a gateway that ended, or of an entity that is gone."""
    query = sa.delete(demand)
    if gateway is not None:
        query = query.where(demand.c.gateway == gateway)
    if served_entity_id is not None:
        query = query.where(demand.c.served_entity_id == served_entity_id)
    connection.execute(query)


def demand_by_entity(connection: sa.Connection) -> dict[str, Demand]:
    """Load by served entity id, summed over gateways (`gateway` is empty), newest request time."""
    query = sa.select(
        demand.c.served_entity_id,
        sa.func.sum(demand.c.waiting),
        sa.func.sum(demand.c.in_flight),
        sa.func.max(demand.c.last_request_ms),
    ).group_by(demand.c.served_entity_id)
    rows = connection.execute(query)
    return {key: Demand(key, "", int(w), int(f), last) for key, w, f, last in rows}
