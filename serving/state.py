"""SQL of the control plane: endpoints and configurations, and the views read across all tables.

The API writes both; the controller ends an update with `complete_update` or `fail_update`. What
runs is in `replica_state`, tokens and grants in `access_state`, shadows in `shadow_state`, secrets
in `secret_state`, the audit in `capture.audit`. An endpoint's row is changed by compare-and-set on
`row_version`; whatever a route table depends on raises the counter `routes` (`changes_state`) in
the same transaction.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import sqlalchemy as sa

from capture import database, errors, names, outbox
from serving import (
    access_state,
    changes_state,
    contract,
    placement,
    replica_state,
    shadow_state,
)

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


# --- endpoints and configurations -----------------------------------------------------------------


def find_endpoint(connection: sa.Connection, name: str) -> Endpoint | None:
    """The endpoint of this name, if there is one."""
    query = sa.select(*database.columns(endpoints, Endpoint)).where(endpoints.c.name == name)
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
    query = sa.select(*database.columns(endpoints, Endpoint)).where(endpoints.c.id == endpoint_id)
    found = connection.execute(query).first()
    if found is None:
        raise errors.DoesNotExist(f"Endpoint with id '{endpoint_id[:200]}' does not exist.")
    return Endpoint(*found)


def all_endpoints(connection: sa.Connection) -> list[Endpoint]:
    """Every endpoint, by name."""
    query = sa.select(*database.columns(endpoints, Endpoint)).order_by(endpoints.c.name)
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
    access_state.put_grants(
        connection, row.id, [access_state.Grant(row.id, row.creator, "user", "CAN_MANAGE")]
    )
    changes_state.bump(connection)


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
    changes_state.bump(connection)
    return endpoint_by_id(connection, seen.id)


def delete_endpoint(connection: sa.Connection, seen: Endpoint) -> None:
    """Remove an endpoint with its configurations, grants, shadow and states. Its replicas' rows
    stay, so that the controller finds and ends them."""
    for table in (
        configurations,
        replica_state.entity_states,
        access_state.grants,
        shadow_state.shadows,
    ):
        connection.execute(sa.delete(table).where(table.c.endpoint_id == seen.id))
    connection.execute(sa.delete(endpoints).where(endpoints.c.id == seen.id))
    changes_state.bump(connection)


def configuration(
    connection: sa.Connection, endpoint_id: str, config_version: int
) -> Configuration | None:
    """One numbered configuration."""
    query = sa.select(*database.columns(configurations, Configuration)).where(
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
    query = sa.select(*database.columns(configurations, Configuration)).join(
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
    query = sa.select(*database.columns(configurations, Configuration)).where(
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
        sa.select(*database.columns(configurations, Configuration))
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
    known = set(replica_state.states_of(connection, [seen.id]))
    for entity in config["served_entities"]:
        if entity["id"] not in known:
            replica_state.set_entity_state(
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
        replica_state.set_entity_state(
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
    query = sa.select(*database.columns(endpoints, Endpoint)).where(
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
        sa.delete(replica_state.entity_states).where(
            replica_state.entity_states.c.endpoint_id == changed.id,
            replica_state.entity_states.c.served_entity_id.not_in(kept),
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
class ShadowView:
    """Who gets copies of an endpoint's requests. share: 0..1 of them."""

    served_entity: str
    share: float


@dataclass(frozen=True, slots=True)
class EndpointView:
    """An endpoint as a gateway needs it. Without an active configuration `config_version` is None
    and `entities` empty; `updating` then tells whether one is on its way. usage: each request is a
    row of `system.serving.endpoint_usage`. places: of the units of a sticky split. shadow: names
    one of the entities."""

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
    usage: bool = False
    places: tuple[placement.Place, ...] = ()
    shadow: ShadowView | None = None


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
    for replica in replica_state.all_replicas(connection):
        if replica.state == "READY":
            view = ReplicaView(replica.id, replica.socket, replica.concurrency)
            running.setdefault(replica.served_entity_id, []).append(view)
    shadows = shadow_state.all_shadows(connection)
    return Snapshot(
        tuple(
            _endpoint_view(row, live, running, shadows.get(row.id))
            for row in all_endpoints(connection)
        ),
        {
            t.id: TokenView(t.user, t.hash, t.expires_ms)
            for t in access_state.valid_tokens(connection)
        },
        {(g.endpoint_id, g.principal): g.level for g in access_state.all_grants(connection)},
        frozenset({contract.ADMIN_USER}),
    )


def _endpoint_view(
    row: Endpoint,
    live: Mapping[tuple[str, int], Configuration],
    running: Mapping[str, list[ReplicaView]],
    shadow: shadow_state.Shadow | None,
) -> EndpointView:
    active = live.get((row.id, row.active_version)) if row.active_version is not None else None
    config = active.config if active else {"served_entities": []}
    shares = contract.percentages(config)
    traffic = config.get("traffic_config") or {}
    sticky = traffic.get("sticky") or {}
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
        contract.usage_tracked(row.ai_gateway),
        tuple(placement.Place(*each) for each in traffic.get("places") or ()),
        _shadow_view(shadow, config),
    )


def _shadow_view(
    shadow: shadow_state.Shadow | None, config: Mapping[str, Any]
) -> ShadowView | None:
    """None also while the configuration has no model of that name: nothing is copied then."""
    names = {e["name"] for e in config["served_entities"] if contract.kind(e) == "custom"}
    if shadow is None or shadow.served_entity not in names:
        return None
    return ShadowView(shadow.served_entity, shadow.sample_percentage / 100)


def grants_to(connection: sa.Connection, principal: str) -> list[tuple[str, access_state.Grant]]:
    """(endpoint name, grant) for one principal, by endpoint name."""
    query = (
        sa.select(endpoints.c.name, *database.columns(access_state.grants, access_state.Grant))
        .join(endpoints, endpoints.c.id == access_state.grants.c.endpoint_id)
        .where(access_state.grants.c.principal == principal)
        .order_by(endpoints.c.name)
    )
    return [(row[0], access_state.Grant(*row[1:])) for row in connection.execute(query)]


def new_endpoint_id() -> str:
    """A fresh id for an endpoint or an entity."""
    return names.new_id()
