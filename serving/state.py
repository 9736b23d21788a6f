"""SQL of the control plane: endpoints, configurations, replicas, tokens, grants.

Who writes what: the API writes endpoints, configurations, tokens and grants; the controller writes
replicas and entity states, and ends an update with `complete_update` or `fail_update`; gateways
write demand. Secrets are in `secret_state`, the audit in `audit_state`. An endpoint's row is
changed by compare-and-set on `row_version`. What a route table depends on raises the counter
`routes` in the same transaction, so a gateway that polls the counter (`Watch`) never misses a
change and never sees half of one.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import sqlalchemy as sa

from capture import database, errors, names, outbox
from serving import contract

ROUTES = "routes"
NOT_UPDATING, IN_PROGRESS = "NOT_UPDATING", "IN_PROGRESS"
UPDATE_FAILED, UPDATE_CANCELED = "UPDATE_FAILED", "UPDATE_CANCELED"

_JSON = sa.JSON(none_as_null=True)

endpoints = sa.Table(
    "endpoints",
    database.metadata,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("name", sa.String(63), nullable=False, unique=True),
    sa.Column("creator", sa.String(256), nullable=False),
    sa.Column("description", sa.Text),
    sa.Column("created_ms", sa.BigInteger, nullable=False),
    sa.Column("updated_ms", sa.BigInteger, nullable=False),
    sa.Column("active_version", sa.Integer),
    sa.Column("pending_version", sa.Integer),
    sa.Column("config_update", sa.String(20), nullable=False),
    sa.Column("update_message", sa.Text),
    sa.Column("update_started_ms", sa.BigInteger),
    sa.Column("stopped", sa.Boolean, nullable=False),
    sa.Column("tags", _JSON, nullable=False),
    sa.Column("ai_gateway", _JSON),
    sa.Column("rate_limits", _JSON),
    sa.Column("email_notifications", _JSON),
    sa.Column("telemetry_config", _JSON),
    sa.Column("route_optimized", sa.Boolean, nullable=False),
    sa.Column("budget_policy_id", sa.String(256)),
    sa.Column("row_version", sa.Integer, nullable=False),
)

configurations = sa.Table(
    "configurations",
    database.metadata,
    sa.Column("endpoint_id", sa.String(32), primary_key=True),
    sa.Column("config_version", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("config", _JSON, nullable=False),
    sa.Column("created_by", sa.String(256), nullable=False),
    sa.Column("created_ms", sa.BigInteger, nullable=False),
    sa.Column("reason", sa.Text),
    sa.Column("origin", sa.String(20), nullable=False),
    sa.Column("activated_ms", sa.BigInteger),
)

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

changes = sa.Table(
    "changes",
    database.metadata,
    sa.Column("name", sa.String(64), primary_key=True),
    sa.Column("counter", sa.BigInteger, nullable=False),
)


# --- rows as values -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A row of `endpoints`. Times in unix ms; the JSON columns as the client gave them."""

    id: str
    name: str
    creator: str
    description: str | None
    created_ms: int
    updated_ms: int
    active_version: int | None
    pending_version: int | None
    config_update: str
    update_message: str | None
    update_started_ms: int | None
    stopped: bool
    tags: list[dict[str, Any]]
    ai_gateway: dict[str, Any] | None
    rate_limits: list[dict[str, Any]] | None
    email_notifications: dict[str, Any] | None
    telemetry_config: dict[str, Any] | None
    route_optimized: bool
    budget_policy_id: str | None
    row_version: int


@dataclass(frozen=True, slots=True)
class Configuration:
    """A numbered, immutable configuration. `config`: see contract.py, "normalised". activated_ms:
    when it first became the active one; None: never."""

    endpoint_id: str
    config_version: int
    config: dict[str, Any]
    created_by: str
    created_ms: int
    reason: str | None
    origin: str
    activated_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Replica:
    """A running copy of an entity. `state`: STARTING | READY | DRAINING | FAILED."""

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


def _columns(table: sa.Table, row_type: type) -> list[sa.Column[Any]]:
    return [table.c[field.name] for field in fields(row_type)]


# --- changes --------------------------------------------------------------------------------------


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
    no other connection committed at all; only else the counter is read."""

    def __init__(self, engine: sa.Engine, name: str = ROUTES) -> None:
        self._connection = engine.execution_options(inferlake_reading=True).connect()
        self._sqlite = engine.dialect.name == "sqlite"
        self._name = name
        self._seen_file = -1
        self._seen = -1

    def changed(self) -> bool:
        """True at the first call and whenever the counter moved since the last one."""
        try:
            if self._sqlite:
                found = self._connection.exec_driver_sql("PRAGMA data_version").scalar_one()
                if found == self._seen_file:
                    return False
                self._seen_file = found
            now = counter(self._connection, self._name)
        finally:
            self._connection.rollback()
        moved, self._seen = now != self._seen, now
        return moved

    def close(self) -> None:
        """Give the connection back."""
        self._connection.close()


# --- endpoints and configurations -----------------------------------------------------------------


def find_endpoint(connection: sa.Connection, name: str) -> Endpoint | None:
    """The endpoint of this name, if there is one."""
    query = sa.select(*_columns(endpoints, Endpoint)).where(endpoints.c.name == name)
    found = connection.execute(query).first()
    return Endpoint(*found) if found else None


def endpoint(connection: sa.Connection, name: str) -> Endpoint:
    """The endpoint of this name. Raises DoesNotExist."""
    found = find_endpoint(connection, name)
    if found is None:
        raise errors.DoesNotExist(f"Endpoint '{name[:200]}' does not exist.")
    return found


def endpoint_by_id(connection: sa.Connection, endpoint_id: str) -> Endpoint:
    """The endpoint of this id. Raises DoesNotExist."""
    query = sa.select(*_columns(endpoints, Endpoint)).where(endpoints.c.id == endpoint_id)
    found = connection.execute(query).first()
    if found is None:
        raise errors.DoesNotExist(f"Endpoint with id '{endpoint_id[:200]}' does not exist.")
    return Endpoint(*found)


def all_endpoints(connection: sa.Connection) -> list[Endpoint]:
    """Every endpoint, by name."""
    query = sa.select(*_columns(endpoints, Endpoint)).order_by(endpoints.c.name)
    return [Endpoint(*row) for row in connection.execute(query)]


def insert_endpoint(connection: sa.Connection, row: Endpoint) -> None:
    """Write a new endpoint and its creator's CAN_MANAGE. Raises AlreadyExists."""
    if find_endpoint(connection, row.name) is not None:
        raise errors.AlreadyExists(f"Endpoint '{row.name}' exists already.")
    values = {field.name: getattr(row, field.name) for field in fields(Endpoint)}
    try:
        connection.execute(sa.insert(endpoints).values(**values))
    except sa.exc.IntegrityError:
        # Two creations at once: where writers run side by side, the second one only sees it here.
        raise errors.AlreadyExists(f"Endpoint '{row.name}' exists already.") from None
    put_grants(connection, row.id, [Grant(row.id, row.creator, "user", "CAN_MANAGE")])
    bump(connection)


def write_endpoint(
    connection: sa.Connection, seen: Endpoint, now_ms: int, **values: Any
) -> Endpoint:
    """Change columns of an endpoint if nobody wrote since `seen` was read. Raises Conflict."""
    done = connection.execute(
        sa.update(endpoints)
        .where(endpoints.c.id == seen.id, endpoints.c.row_version == seen.row_version)
        .values(row_version=seen.row_version + 1, updated_ms=now_ms, **values)
    )
    if done.rowcount == 0:
        raise errors.Conflict(f"Endpoint '{seen.name}' was changed meanwhile.")
    bump(connection)
    return endpoint_by_id(connection, seen.id)


def delete_endpoint(connection: sa.Connection, seen: Endpoint) -> None:
    """Remove an endpoint with its configurations, grants and states. Its replicas' rows stay, so
    that the controller finds and ends them."""
    for table in (configurations, entity_states, grants):
        connection.execute(sa.delete(table).where(table.c.endpoint_id == seen.id))
    connection.execute(sa.delete(endpoints).where(endpoints.c.id == seen.id))
    bump(connection)


def configuration(
    connection: sa.Connection, endpoint_id: str, config_version: int
) -> Configuration | None:
    """One numbered configuration."""
    query = sa.select(*_columns(configurations, Configuration)).where(
        configurations.c.endpoint_id == endpoint_id,
        configurations.c.config_version == config_version,
    )
    found = connection.execute(query).first()
    return Configuration(*found) if found else None


def live_configurations(
    connection: sa.Connection, endpoint_ids: Sequence[str] | None = None
) -> dict[tuple[str, int], Configuration]:
    """Active and pending configurations by (endpoint id, config version), of all or of some."""
    both = (endpoints.c.active_version, endpoints.c.pending_version)
    query = sa.select(*_columns(configurations, Configuration)).join(
        endpoints,
        sa.and_(
            endpoints.c.id == configurations.c.endpoint_id,
            configurations.c.config_version.in_(both),
        ),
    )
    if endpoint_ids is not None:
        query = query.where(configurations.c.endpoint_id.in_(endpoint_ids))
    found = (Configuration(*row) for row in connection.execute(query))
    return {(each.endpoint_id, each.config_version): each for each in found}


def history(
    connection: sa.Connection, endpoint_id: str, limit: int, below: int | None = None
) -> list[Configuration]:
    """Configurations newest first, those under version `below` if given."""
    query = sa.select(*_columns(configurations, Configuration)).where(
        configurations.c.endpoint_id == endpoint_id
    )
    if below is not None:
        query = query.where(configurations.c.config_version < below)
    query = query.order_by(configurations.c.config_version.desc()).limit(limit)
    return [Configuration(*row) for row in connection.execute(query)]


def configuration_before(
    connection: sa.Connection, endpoint_id: str, config_version: int
) -> Configuration | None:
    """The newest configuration under this number that ever was active."""
    query = (
        sa.select(*_columns(configurations, Configuration))
        .where(
            configurations.c.endpoint_id == endpoint_id,
            configurations.c.config_version < config_version,
            configurations.c.activated_ms.is_not(None),
        )
        .order_by(configurations.c.config_version.desc())
        .limit(1)
    )
    found = connection.execute(query).first()
    return Configuration(*found) if found else None


def newest_version(connection: sa.Connection, endpoint_id: str) -> int:
    """Highest configuration number so far; 0 if there is none."""
    highest = sa.select(sa.func.max(configurations.c.config_version))
    return (
        connection.execute(highest.where(configurations.c.endpoint_id == endpoint_id)).scalar() or 0
    )


def accept_configuration(
    connection: sa.Connection,
    seen: Endpoint,
    config: Mapping[str, Any],
    *,
    created_by: str,
    reason: str | None,
    origin: Literal["user", "ramp", "rollback", "recommendation"],
    at_once: bool,
    now_ms: int,
    **values: Any,
) -> Endpoint:
    """Write the next configuration and point the endpoint at it.

    at_once: it becomes active in this transaction (nothing has to start); else it is pending, the
    update IN_PROGRESS, and the controller ends it. New entities get DEPLOYMENT_CREATING.
    Further `values` are other columns of the endpoint. Raises Conflict."""
    version = newest_version(connection, seen.id) + 1
    row = Configuration(seen.id, version, dict(config), created_by, now_ms, reason, origin)
    connection.execute(
        sa.insert(configurations).values(
            **{field.name: getattr(row, field.name) for field in fields(Configuration)}
        )
    )
    known = set(states_of(connection, [seen.id]))
    for entity in config["served_entities"]:
        if entity["id"] not in known:
            set_entity_state(
                connection,
                seen.id,
                entity["id"],
                "DEPLOYMENT_CREATING",
                "Waiting to start.",
                now_ms,
            )
    if at_once:
        return _activate(connection, seen, version, now_ms, **values)
    changed = write_endpoint(
        connection,
        seen,
        now_ms,
        pending_version=version,
        config_update=IN_PROGRESS,
        update_message=None,
        update_started_ms=now_ms,
        **values,
    )
    _forget_states(connection, changed)
    return changed


def stop_endpoint(connection: sa.Connection, seen: Endpoint, now_ms: int) -> Endpoint:
    """Nothing of the endpoint runs any more; an update that runs is cancelled."""
    updating = seen.config_update == IN_PROGRESS
    update = UPDATE_CANCELED if updating else seen.config_update
    return write_endpoint(
        connection, seen, now_ms, stopped=True, config_update=update, update_started_ms=None
    )


def start_endpoint(connection: sa.Connection, seen: Endpoint, now_ms: int) -> Endpoint:
    """Let a stopped endpoint run again: an update, to the configuration that was cancelled if none
    became active before, else to the active one, which the controller completes as any other."""
    version = seen.active_version or newest_version(connection, seen.id)
    running = configuration(connection, seen.id, version) if version else None
    if running is None:
        return write_endpoint(connection, seen, now_ms, stopped=False, config_update=NOT_UPDATING)
    for entity in running.config["served_entities"]:
        set_entity_state(
            connection, seen.id, entity["id"], "DEPLOYMENT_CREATING", "Waiting to start.", now_ms
        )
    return write_endpoint(
        connection,
        seen,
        now_ms,
        stopped=False,
        pending_version=version,
        config_update=IN_PROGRESS,
        update_message=None,
        update_started_ms=now_ms,
    )


def complete_update(connection: sa.Connection, endpoint_id: str, version: int, now_ms: int) -> bool:
    """The pending configuration `version` becomes the active one. False: it is not pending."""
    seen = _pending(connection, endpoint_id, version)
    if seen is None:
        return False
    _activate(connection, seen, version, now_ms)
    data = {"endpoint": seen.name, "config_version": version}
    outbox.emit(connection, "endpoint.ready", data, now_ms)
    return True


def fail_update(
    connection: sa.Connection, endpoint_id: str, version: int, message: str, now_ms: int
) -> bool:
    """The update to `version` failed; what was active stays. False: it no longer is pending.

    The failed configuration stays visible as the pending one until the next update."""
    seen = _pending(connection, endpoint_id, version)
    if seen is None:
        return False
    write_endpoint(connection, seen, now_ms, config_update=UPDATE_FAILED, update_message=message)
    data = {"endpoint": seen.name, "config_version": version, "message": message}
    outbox.emit(connection, "endpoint.update_failed", data, now_ms)
    return True


def _pending(connection: sa.Connection, endpoint_id: str, version: int) -> Endpoint | None:
    query = sa.select(*_columns(endpoints, Endpoint)).where(
        endpoints.c.id == endpoint_id,
        endpoints.c.pending_version == version,
        endpoints.c.config_update == IN_PROGRESS,
    )
    found = connection.execute(query).first()
    return Endpoint(*found) if found else None


def _activate(
    connection: sa.Connection, seen: Endpoint, version: int, now_ms: int, **values: Any
) -> Endpoint:
    changed = write_endpoint(
        connection,
        seen,
        now_ms,
        active_version=version,
        pending_version=None,
        config_update=NOT_UPDATING,
        update_message=None,
        update_started_ms=None,
        **values,
    )
    connection.execute(
        sa.update(configurations)
        .where(
            configurations.c.endpoint_id == seen.id,
            configurations.c.config_version == version,
            configurations.c.activated_ms.is_(None),
        )
        .values(activated_ms=now_ms)
    )
    _forget_states(connection, changed)
    return changed


def _forget_states(connection: sa.Connection, changed: Endpoint) -> None:
    """Drop the states of entities that neither the active nor the pending configuration has."""
    live = live_configurations(connection, [changed.id]).values()
    kept = {entity["id"] for each in live for entity in each.config["served_entities"]}
    connection.execute(
        sa.delete(entity_states).where(
            entity_states.c.endpoint_id == changed.id,
            entity_states.c.served_entity_id.not_in(kept),
        )
    )


# --- what the controller reads and writes ---------------------------------------------------------


@dataclass(frozen=True, slots=True)
class WantedEntity:
    """An entity that should run. `definition`: the normalised served entity of the configuration
    (contract.py); a change of definition is a new id."""

    id: str
    name: str
    percentage: int
    in_active: bool
    in_pending: bool
    definition: dict[str, Any]


@dataclass(frozen=True, slots=True)
class WantedEndpoint:
    """An endpoint and the entities of its active and, while an update runs, pending configuration.

    Stopped endpoints want no entity. update_started_ms: unix ms, null if no update runs."""

    id: str
    name: str
    stopped: bool
    config_update: str
    active_version: int | None
    pending_version: int | None
    update_started_ms: int | None
    entities: tuple[WantedEntity, ...]


def desired(connection: sa.Connection) -> list[WantedEndpoint]:
    """What should run: every endpoint with its wanted entities, by name."""
    live = live_configurations(connection)
    return [_wanted(row, live) for row in all_endpoints(connection)]


def _wanted(row: Endpoint, live: Mapping[tuple[str, int], Configuration]) -> WantedEndpoint:
    updating = row.config_update == IN_PROGRESS
    versions = (row.active_version, row.pending_version if updating else None)
    active, pending = (live.get((row.id, v)) if v is not None else None for v in versions)
    wanted: dict[str, WantedEntity] = {}
    for config, is_active in ((pending, False), (active, True)):
        if config is None or row.stopped:
            continue
        shares = contract.percentages(config.config)
        for entity in config.config["served_entities"]:
            known = wanted.get(entity["id"])
            wanted[entity["id"]] = WantedEntity(
                entity["id"],
                entity["name"],
                shares.get(entity["name"], 0),
                is_active,
                known is not None or not is_active,
                entity,
            )
    return WantedEndpoint(
        row.id,
        row.name,
        row.stopped,
        row.config_update,
        row.active_version,
        row.pending_version if updating else None,
        row.update_started_ms if updating else None,
        tuple(wanted.values()),
    )


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
    query = sa.select(*_columns(entity_states, EntityState))
    if endpoint_ids is not None:
        query = query.where(entity_states.c.endpoint_id.in_(endpoint_ids))
    found = (EntityState(*row) for row in connection.execute(query))
    return {each.served_entity_id: each for each in found}


def all_replicas(connection: sa.Connection) -> list[Replica]:
    """Every replica row, those of deleted endpoints included, oldest first."""
    query = sa.select(*_columns(replicas, Replica)).order_by(replicas.c.created_ms, replicas.c.id)
    return [Replica(*row) for row in connection.execute(query)]


def add_replica(connection: sa.Connection, row: Replica) -> None:
    """Write a replica that is about to start."""
    connection.execute(
        sa.insert(replicas).values(
            **{field.name: getattr(row, field.name) for field in fields(Replica)}
        )
    )
    bump(connection)


def set_replica(connection: sa.Connection, replica_id: str, **values: Any) -> bool:
    """Change columns of a replica (state, message, pid, pid_start, ready_ms, concurrency, socket).
    False: there is no such row."""
    where = replicas.c.id == replica_id
    done = connection.execute(sa.update(replicas).where(where).values(**values))
    bump(connection)
    return done.rowcount == 1


def remove_replica(connection: sa.Connection, replica_id: str) -> None:
    """Forget a replica that has ended."""
    connection.execute(sa.delete(replicas).where(replicas.c.id == replica_id))
    bump(connection)


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


# --- what a gateway reads -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ReplicaView:
    """A replica that takes requests. concurrency: requests in predict at once."""

    id: str
    socket: str
    concurrency: int


@dataclass(frozen=True, slots=True)
class EntityView:
    """An entity of an active configuration. concurrency: provisioned maximum."""

    id: str
    name: str
    model_name: str
    model_version: str
    percentage: int
    concurrency: int
    kind: Literal["custom", "external", "foundation"]
    replicas: tuple[ReplicaView, ...]


@dataclass(frozen=True, slots=True)
class CaptureView:
    """Where an endpoint's requests are recorded. table: full name of the payload table."""

    table: str
    sampling_fraction: float
    acknowledgement: Literal["process", "power"]


@dataclass(frozen=True, slots=True)
class EndpointView:
    """An endpoint as a gateway needs it. Without an active configuration `config_version` is None
    and `entities` empty; `updating` then tells whether one is on its way."""

    id: str
    name: str
    stopped: bool
    updating: bool
    config_version: int | None
    entities: tuple[EntityView, ...]
    sticky_key: str | None
    sticky_salt: str
    rate_limits: tuple[dict[str, Any], ...]
    capture: CaptureView | None


@dataclass(frozen=True, slots=True)
class TokenView:
    """A token that was not revoked. expires_ms: unix ms, None for never."""

    user: str
    hash: bytes
    expires_ms: int | None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything that answering a request depends on, read in one transaction."""

    endpoints: tuple[EndpointView, ...]
    tokens: dict[str, TokenView]
    grants: dict[tuple[str, str], str]
    admins: frozenset[str]


def snapshot(connection: sa.Connection) -> Snapshot:
    """Read what a route table is built from; give it a `database.reading` connection."""
    live = live_configurations(connection)
    running: dict[str, list[ReplicaView]] = {}
    for replica in all_replicas(connection):
        if replica.state == "READY":
            view = ReplicaView(replica.id, replica.socket, replica.concurrency)
            running.setdefault(replica.served_entity_id, []).append(view)
    return Snapshot(
        tuple(_endpoint_view(row, live, running) for row in all_endpoints(connection)),
        {t.id: TokenView(t.user, t.hash, t.expires_ms) for t in valid_tokens(connection)},
        {(g.endpoint_id, g.principal): g.level for g in all_grants(connection)},
        frozenset({contract.ADMIN_USER}),
    )


def _endpoint_view(
    row: Endpoint,
    live: Mapping[tuple[str, int], Configuration],
    running: Mapping[str, list[ReplicaView]],
) -> EndpointView:
    active = live.get((row.id, row.active_version)) if row.active_version is not None else None
    config = active.config if active else {"served_entities": []}
    shares = contract.percentages(config)
    sticky = (config.get("traffic_config") or {}).get("sticky") or {}
    capture = contract.capture(row.name, config, row.ai_gateway, row.telemetry_config)
    gateway_limits = (row.ai_gateway or {}).get("rate_limits") or []
    return EndpointView(
        row.id,
        row.name,
        row.stopped,
        row.config_update == IN_PROGRESS,
        row.active_version,
        tuple(
            EntityView(
                entity["id"],
                entity["name"],
                contract.model_name(entity),
                contract.model_version(entity),
                shares.get(entity["name"], 0),
                contract.concurrency(entity)[1],
                contract.kind(entity),
                tuple(running.get(entity["id"], ())),
            )
            for entity in config["served_entities"]
        ),
        sticky.get("key"),
        sticky.get("salt") or row.id,
        (*(row.rate_limits or ()), *gateway_limits),
        CaptureView(*capture) if capture else None,
    )


# --- tokens and sign-in codes ---------------------------------------------------------------------


def add_token(connection: sa.Connection, row: Token) -> None:
    """Write a token; its text is nowhere, only its hash."""
    values = {field.name: getattr(row, field.name) for field in fields(Token)}
    connection.execute(sa.insert(tokens).values(**values))
    bump(connection)


def valid_tokens(connection: sa.Connection) -> list[Token]:
    """Tokens that were not revoked, oldest first; the caller looks at the expiry."""
    query = (
        sa.select(*_columns(tokens, Token))
        .where(tokens.c.revoked_ms.is_(None))
        .order_by(tokens.c.created_ms, tokens.c.id)
    )
    return [Token(*row) for row in connection.execute(query)]


def token(connection: sa.Connection, token_id: str) -> Token:
    """A token by its public id. Raises DoesNotExist for unknown and revoked ones."""
    query = sa.select(*_columns(tokens, Token)).where(
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
    bump(connection)


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


# --- grants ---------------------------------------------------------------------------------------


def all_grants(connection: sa.Connection) -> list[Grant]:
    """Every grant on every endpoint."""
    return [Grant(*row) for row in connection.execute(sa.select(*_columns(grants, Grant)))]


def grants_on(connection: sa.Connection, endpoint_id: str) -> list[Grant]:
    """Grants on one endpoint, by principal."""
    query = (
        sa.select(*_columns(grants, Grant))
        .where(grants.c.endpoint_id == endpoint_id)
        .order_by(grants.c.principal)
    )
    return [Grant(*row) for row in connection.execute(query)]


def grants_to(connection: sa.Connection, principal: str) -> list[tuple[str, Grant]]:
    """(endpoint name, grant) for one principal, by endpoint name."""
    query = (
        sa.select(endpoints.c.name, *_columns(grants, Grant))
        .join(endpoints, endpoints.c.id == grants.c.endpoint_id)
        .where(grants.c.principal == principal)
        .order_by(endpoints.c.name)
    )
    return [(row[0], Grant(*row[1:])) for row in connection.execute(query)]


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
    bump(connection)


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
    bump(connection)


def new_endpoint_id() -> str:
    """A fresh id for an endpoint or an entity."""
    return names.new_id()
