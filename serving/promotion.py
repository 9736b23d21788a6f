"""Promote and undo: the one path of a traffic change, for person, CI and ramp.

Configuration, audit row, event and change counter are written in one transaction: either gateways,
audit and receivers learn of a promotion, or it did not happen. Afterwards the registry's alias
`champion` follows, in the background, since that takes seconds and must not undo a promotion.
"""

import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

import sqlalchemy as sa

from capture import audit, database, errors, logline, outbox
from capture.settings import Settings
from serving import (
    access,
    configuration,
    contract,
    ledger,
    recording,
    registry,
    replica_state,
    state,
)

log = logline.logger(__name__)

CHAMPION = "champion"
Origin = Literal["user", "ramp", "rollback", "recommendation"]
ORIGINS: tuple[Origin, ...] = ("user", "ramp", "rollback", "recommendation")


@dataclass(frozen=True, slots=True)
class Done:
    """A traffic change that is committed. champion: (model, version) that has all the traffic."""

    endpoint: state.Endpoint
    audit_id: int
    champion: tuple[str, str] | None


@dataclass(frozen=True, slots=True)
class Order:
    """Who wants a traffic change, why, and which configuration version they saw."""

    who: access.Caller
    author: configuration.Author
    reason: str | None = None
    if_config_version: int | None = None


def origin(text: str) -> Origin:
    """Where a change comes from. Raises InvalidParameter."""
    for each in ORIGINS:
        if text == each:
            return each
    raise errors.InvalidParameter(f"origin: '{text[:50]}' is not one of {', '.join(ORIGINS)}.")


def promote(
    connection: sa.Connection,
    name: str,
    entity: str,
    percentage: int,
    order: Order,
    origin: Origin = "user",
    shares: Mapping[str, int] | None = None,
) -> Done:
    """Give `percentage` of the traffic to a served entity; the others share the rest, or everybody
    gets what `shares` says.

    Raises DoesNotExist, InvalidParameter, Conflict (version moved on, or an update runs)."""
    seen = state.endpoint(connection, name)
    active = _active(connection, seen, order)
    if shares is None:
        config = configuration.shift(active.config, entity, percentage)
    else:
        config = configuration.divide(active.config, shares)
    detail = {"served_entity": entity, "traffic_percentage": percentage}
    return _change(connection, seen, active, config, order, "promoted", origin, detail)


def rollback(
    connection: sa.Connection,
    name: str,
    to_config_version: int | None,
    order: Order,
    origin: Origin = "rollback",
) -> Done:
    """Make an earlier configuration current again, as a new version; default: the one before.

    Raises DoesNotExist, InvalidParameter, Conflict."""
    seen = state.endpoint(connection, name)
    active = _active(connection, seen, order)
    if to_config_version is None:
        target = state.configuration_before(connection, seen.id, active.config_version)
    else:
        target = state.configuration(connection, seen.id, to_config_version)
    if target is None:
        wanted = to_config_version or f"before {active.config_version}"
        raise errors.DoesNotExist(f"Endpoint '{name}' has no configuration {wanted}.")
    entities = target.config["served_entities"]
    config = {
        **target.config,
        "served_entities": configuration.identified(entities, active.config, order.author),
        "traffic_config": configuration.restored(target.config, active.config),
    }
    detail = {"to_config_version": target.config_version}
    return _change(connection, seen, active, config, order, "rolled_back", origin, detail)


def refuse_while_updating(connection: sa.Connection, seen: state.Endpoint) -> None:
    """Raises Conflict while an update of the endpoint runs; one that only waits for a device is
    replaced instead, since it may wait for ever."""
    if seen.config_update == state.IN_PROGRESS and not _waits_for_device(connection, seen):
        started = datetime.fromtimestamp((seen.update_started_ms or 0) / 1000, UTC)
        raise errors.Conflict(
            f"An update of '{seen.name}' started at {started.isoformat(timespec='seconds')} "
            "is in progress."
        )


def _waits_for_device(connection: sa.Connection, seen: state.Endpoint) -> bool:
    states = replica_state.states_of(connection, [seen.id]).values()
    return any(each.message.startswith(contract.WAITING_FOR_DEVICE) for each in states)


def _active(connection: sa.Connection, seen: state.Endpoint, order: Order) -> state.Configuration:
    refuse_while_updating(connection, seen)
    version = seen.active_version
    active = state.configuration(connection, seen.id, version) if version is not None else None
    if active is None:
        raise errors.InvalidParameter(f"Endpoint '{seen.name}' has no active configuration yet.")
    expected = order.if_config_version
    if expected is not None and expected != active.config_version:
        raise errors.Conflict(
            f"Endpoint '{seen.name}' is at configuration {active.config_version}, not {expected}."
        )
    return active


def _change(
    connection: sa.Connection,
    seen: state.Endpoint,
    active: state.Configuration,
    config: dict[str, Any],
    order: Order,
    event: Literal["promoted", "rolled_back"],
    origin: Origin,
    detail: Mapping[str, Any],
) -> Done:
    author = order.author
    deployments = {
        key: each.deployment for key, each in replica_state.states_of(connection, [seen.id]).items()
    }
    changed = state.accept_configuration(
        connection,
        seen,
        config,
        created_by=author.user,
        reason=order.reason,
        origin=origin,
        at_once=configuration.at_once(config, active.config, deployments, seen.stopped),
        now_ms=author.now_ms,
    )
    recording.follow(connection, changed, config, [], order.who, author.now_ms)
    version = state.newest_version(connection, changed.id)
    ledger.configured(connection, (changed.id, changed.name), version, config, author.now_ms)
    before = {"config_version": active.config_version, "split": contract.percentages(active.config)}
    after = {"config_version": version, "split": contract.percentages(config)}
    audit_id = audit.write(
        connection,
        author.user,
        f"endpoint.{event}",
        author.now_ms,
        endpoint=seen.name,
        before=before,
        after={**after, **detail, "origin": origin},
        reason=order.reason,
    )
    told = {
        "endpoint": seen.name,
        **detail,
        "config_version": version,
        "before": before,
        "after": after,
        "actor": author.user,
        "reason": order.reason,
        "origin": origin,
        "audit_id": audit_id,
    }
    outbox.emit(connection, f"endpoint.{event}", told, author.now_ms)
    return Done(changed, audit_id, _champion(config))


def _champion(config: Mapping[str, Any]) -> tuple[str, str] | None:
    shares = contract.percentages(config)
    for entity in config["served_entities"]:
        if shares.get(entity["name"]) == 100 and contract.kind(entity) == "custom":
            return entity["entity_name"], entity["entity_version"]
    return None


class Aliases:
    """Moves the registry's alias after promotions: one after the other, so that the last promotion
    wins; a failure is logged and written to the audit."""

    def __init__(self, settings: Settings, engine: sa.Engine) -> None:
        self._settings, self._engine = settings, engine
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="aliases")

    def follow(self, done: Done) -> None:
        """Let the alias name the version that has all the traffic now, if one has."""
        if done.champion is not None:
            self._pool.submit(self._move, done.endpoint.name, *done.champion)

    def close(self) -> None:
        """Wait for the moves that were asked for."""
        self._pool.shutdown(wait=True)

    def _move(self, endpoint: str, model: str, version: str) -> None:
        facts = {"model": model, "alias": CHAMPION, "version": version}
        try:
            registry.set_alias(self._settings, model, CHAMPION, version)
        except errors.InferlakeError as error:
            log.error("alias_not_moved", endpoint=endpoint, error=error.message, **facts)
            self._tell("registry.alias_not_moved", endpoint, facts, error.message)
        else:
            log.info("alias_moved", endpoint=endpoint, **facts)
            self._tell("registry.alias_moved", endpoint, facts, None)

    def _tell(
        self, action: str, endpoint: str, facts: Mapping[str, Any], reason: str | None
    ) -> None:
        try:
            with database.transaction(self._engine) as connection:
                audit.write(
                    connection,
                    contract.SERVICE_USER,
                    action,
                    time.time_ns() // 1_000_000,
                    endpoint=endpoint,
                    after=facts,
                    reason=reason,
                )
        except sa.exc.SQLAlchemyError as error:
            log.error("audit_not_written", action=action, endpoint=endpoint, error=repr(error))
