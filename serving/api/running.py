"""`/api/1.0/endpoints/{name}`: what of an endpoint runs now, and what has happened to it."""

from collections.abc import Iterator, Mapping
from typing import Any

import sqlalchemy as sa
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from capture import audit, database, outbox
from monitors import alert_state
from serving import contract, processes, replica_state, replies, state
from serving.api import envelope, gauges, reading
from serving.api.context import Context

BASE = "/api/1.0/endpoints/{name}"
MOST_EVENTS = 200
UPDATE_FAILED = "endpoint.update_failed"
# Of the audit; what makes a configuration is told by the configuration.
SAID = {
    "endpoint.stop": "Stopped",
    "endpoint.start": "Started",
    "endpoint.tags": "Tags changed",
    "endpoint.rate_limits": "Rate limits changed",
    "endpoint.ai_gateway": "Gateway changed",
    "endpoint.notifications": "Notifications changed",
    "endpoint.telemetry": "Telemetry changed",
    "endpoint.permissions": "Permissions changed",
}


class Running:
    """The routes of one server."""

    def __init__(self, context: Context) -> None:
        self.context = context

    def router(self) -> APIRouter:
        router = APIRouter(prefix=BASE, tags=["endpoints"])
        for path, handler in (("/replicas", self.replicas), ("/events", self.events)):
            router.add_api_route(path, handler, methods=["GET"], response_model=None)
        return router

    def replicas(self, request: Request, name: str) -> Response:
        """Every served entity of the active and of the pending configuration: how it stands and
        since when, its load as the gateways see it, and its replicas with memory and processor
        time, where they are processes of this machine. A replica's `ways` tell of each way to its
        model `proven`, or why it is not taken, and `calls` how many requests each way answered;
        both, and `feature_misses`, are at most some seconds old, and null until it answers."""
        self.context.require(request, name, "CAN_VIEW")
        with database.reading(self.context.engine) as db:
            row = state.endpoint(db, name)
            live = state.live_configurations(db, [row.id])
            states = replica_state.states_of(db, [row.id])
            demand = replica_state.demand_by_entity(db)
            running = [r for r in replica_state.all_replicas(db) if r.endpoint_id == row.id]
        used = gauges.usage(running)
        entities = []
        for entity, active in _entities(row, live):
            said, load = states.get(entity["id"]), demand.get(entity["id"])
            mine = [r for r in running if r.served_entity_id == entity["id"]]
            entities.append(
                {
                    "served_entity": entity["name"],
                    "active": active,
                    "deployment": said.deployment if said else "DEPLOYMENT_CREATING",
                    "message": said.message if said else "Waiting to start.",
                    "since": replies.rfc3339(said.updated_ms if said else row.updated_ms),
                    "waiting": load.waiting if load else 0,
                    "in_flight": load.in_flight if load else 0,
                    "last_request_time": replies.rfc3339(
                        load.last_request_ms if load and load.last_request_ms else None
                    ),
                    "replicas": [_replica(each, used) for each in mine],
                }
            )
        return envelope.Json({"entities": entities})

    def events(self, request: Request, name: str) -> Response:
        """What happened to the endpoint, newest first, at most 200: configurations (asked for,
        live after how long, failed and why), other changes, alerts."""
        self.context.require(request, name, "CAN_VIEW")
        reading.query(request, ())
        with database.reading(self.context.engine) as db:
            row = state.endpoint(db, name)
            found = [*_configurations(db, row), *_changes(db, row), *_alerts(db, name)]
        found.sort(key=lambda each: each[0], reverse=True)
        told = [{"time": replies.rfc3339(at), **rest} for at, rest in found[:MOST_EVENTS]]
        return envelope.Json({"events": told})


Event = tuple[int, dict[str, Any]]  # unix ms, and what is said


def _entities(
    row: state.Endpoint, live: Mapping[tuple[str, int], state.Configuration]
) -> Iterator[tuple[dict[str, Any], bool]]:
    """Entities of the active configuration, then those that are new in the pending one."""
    seen: set[str] = set()
    for version in (row.active_version, row.pending_version):
        found = live.get((row.id, version)) if version is not None else None
        for entity in found.config["served_entities"] if found else ():
            if entity["id"] not in seen:
                seen.add(entity["id"])
                yield entity, version == row.active_version


def _replica(row: replica_state.Replica, used: Mapping[int, processes.Usage]) -> dict[str, Any]:
    usage = used.get(row.pid) if row.pid is not None else None
    report = row.report or {}
    return {
        "id": row.id,
        "state": row.state,
        "message": row.message,
        "created_time": replies.rfc3339(row.created_ms),
        "ready_time": replies.rfc3339(row.ready_ms),
        "concurrency": row.concurrency,
        "memory_bytes": usage.rss_bytes if usage else None,
        "cpu_seconds": usage.cpu_seconds if usage else None,
        "ways": report.get("ways"),
        "calls": report.get("calls"),
        "feature_misses": report.get("feature_misses"),
    }


def _event(kind: str, text: str, **more: Any) -> dict[str, Any]:
    empty = {"actor": None, "reason": None, "config_version": None, "duration_seconds": None}
    return {"kind": kind, "text": text, **empty, **more}


def _configurations(db: sa.Connection, row: state.Endpoint) -> Iterator[Event]:
    """Configurations as they were asked for, went live, and failed."""
    found = {each.config_version: each for each in state.history(db, row.id, MOST_EVENTS)}
    for number, each in found.items():
        shares = contract.percentages(each.config)
        split = ", ".join(f"{name} {share} %" for name, share in shares.items() if share)
        asked = _event(
            "configuration",
            f"Configuration {number} asked for: {split}",
            actor=each.created_by,
            reason=each.reason or (None if each.origin == "user" else each.origin),
            config_version=number,
        )
        yield each.created_ms, asked
        if each.activated_ms is not None:
            took = _seconds(each.created_ms, each.activated_ms)
            text = f"Configuration {number} is live"
            live = _event("live", text, config_version=number, duration_seconds=took)
            yield each.activated_ms, live
    for told in outbox.told(db, UPDATE_FAILED, row.name, MOST_EVENTS):
        number = told.data["config_version"]
        asked_ms = found[number].created_ms if number in found else None
        if asked_ms is None or told.created_ms < asked_ms:
            continue  # of an earlier endpoint of this name
        failed = _event(
            "failed",
            f"Configuration {number} failed",
            reason=told.data.get("message"),
            config_version=number,
            duration_seconds=_seconds(asked_ms, told.created_ms),
        )
        yield told.created_ms, failed


def _seconds(start_ms: int, end_ms: int) -> float:
    return (end_ms - start_ms) / 1000


def _changes(db: sa.Connection, row: state.Endpoint) -> Iterator[Event]:
    for each in audit.read(db, MOST_EVENTS, endpoint=row.name, from_ms=row.created_ms):
        if each.action in SAID:
            kind = each.action.removeprefix("endpoint.")
            yield each.time_ms, _event(kind, SAID[each.action], actor=each.actor)


def _alerts(db: sa.Connection, name: str) -> Iterator[Event]:
    for each in alert_state.find_alerts(db, name, limit=MOST_EVENTS):
        yield each.opened_ms, _event("alert", each.message)
        if each.closed_ms is not None:
            took = _seconds(each.opened_ms, each.closed_ms)
            text = f"Alert is over: {each.message}"
            yield each.closed_ms, _event("alert_closed", text, duration_seconds=took)
