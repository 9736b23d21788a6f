"""`/api/1.0`: the overview: everything that needs a person, in one call; and the storage."""

import asyncio
import contextlib
import shutil
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
import sqlalchemy as sa
from fastapi import APIRouter
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from capture import catalog, database, errors, wal_files
from monitors import state as monitors_state
from serving import access, contract, replica_state, replies, state
from serving.api import envelope
from serving.api.context import Context, caller, now_ms

OURS = "/api/1.0"
SPAN_MS = 300_000
MOST_MEASURED = 20
SEVERITIES = {"critical": 0, "warning": 1}
PENDING = "MONITOR_STATUS_PENDING"


class Administration:
    """The routes of one server."""

    def __init__(self, context: Context) -> None:
        self.context = context

    def router(self) -> APIRouter:
        router = APIRouter(prefix=OURS, tags=["administration"])
        for path, handler in (("/overview", self.overview), ("/storage", self.storage)):
            router.add_api_route(path, handler, methods=["GET"], response_model=None)
        return router

    def storage(self, request: Request) -> Response:
        """What lies on this machine: bytes that wait in the log, against the most that may; the
        disk of log and tables. Administrators only."""
        access.require_admin(caller(request))
        settings = self.context.settings
        disk = shutil.disk_usage(settings.data_dir)
        return envelope.Json(
            {
                "wal_bytes": wal_files.waiting_bytes(settings),
                "wal_limit_bytes": settings.wal_backlog_bytes,
                "disk_free_bytes": disk.free,
                "disk_total_bytes": disk.total,
                "tables": settings.tables_root,
            }
        )

    async def overview(self, request: Request) -> Response:
        """What needs a person, worst first; every endpoint with its speed of the last five
        minutes; the age of the newest committed row."""
        seen = await run_in_threadpool(self._seen, caller(request))
        measured = await asyncio.gather(*(self._measure(each) for each in seen.recorded_first()))
        speeds = {each.row.name: speed for each, speed in measured}
        age = await run_in_threadpool(_data_age, self.context, seen.tables())
        return envelope.Json(
            {
                "inbox": seen.inbox,
                "endpoints": [
                    {**each.shown, **speeds.get(each.row.name, _NO_SPEED)}
                    for each in seen.endpoints
                ],
                "data_age_seconds": age,
            }
        )

    async def _measure(self, each: "_Seen") -> tuple["_Seen", dict[str, Any]]:
        end = now_ms()
        asked = {
            "table": each.table,
            "metrics": "requests,errors,p99",
            "from": replies.rfc3339(end - SPAN_MS),
            "to": replies.rfc3339(end),
            "step": str(SPAN_MS // 1000),
        }
        try:
            found = await self.context.read("timeseries", asked)
        except errors.Unavailable:
            return each, _NO_SPEED  # no number is better than no page
        return each, _speed(found["series"])

    def _seen(self, who: access.Caller) -> "_Overview":
        with database.reading(self.context.engine) as db:
            rows = [row for row in state.all_endpoints(db) if self.context.right(who, row)]
            live = state.live_configurations(db)
            states = replica_state.states_of(db)
            names = {row.name for row in rows}
            monitors = [m for m in monitors_state.failing_monitors(db) if m.status != PENDING]
            inbox = [
                *_recommended(db, names),
                *_alerting(db, names),
                *(_unready(row, live, states) for row in rows),
                *(_failing(m) for m in monitors if who.is_admin or m.endpoint in names),
            ]
            endpoints = [_endpoint(db, row, live, states) for row in rows]
        items = sorted((item for item in inbox if item), key=_urgency)
        return _Overview(items, endpoints)


class _Seen(msgspec.Struct, frozen=True):
    row: state.Endpoint
    table: str | None
    shown: dict[str, Any]


class _Overview(msgspec.Struct, frozen=True):
    inbox: list[dict[str, Any]]
    endpoints: list[_Seen]

    def recorded_first(self) -> list[_Seen]:
        """The endpoints whose speed is worth a read, as many as a page shows."""
        return [each for each in self.endpoints if each.table][:MOST_MEASURED]

    def tables(self) -> list[str]:
        return [each.table for each in self.endpoints if each.table]


_NO_SPEED: dict[str, Any] = {"requests_per_second": None, "p99_ms": None, "error_rate": None}


def _speed(series: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Of the one or two steps that the last five minutes touch: sums, and the p99 of the fuller."""
    points = {each["metric"]: [value for _, value in each["points"]] for each in series}
    counts = points.get("requests") or [0]
    requests = sum(counts)
    fullest = max(range(len(counts)), key=counts.__getitem__)
    p99 = points.get("p99") or [None] * len(counts)
    return {
        "requests_per_second": requests / (SPAN_MS / 1000),
        "p99_ms": p99[fullest],
        "error_rate": sum(points.get("errors") or [0]) / requests if requests else None,
    }


def _endpoint(
    db: sa.Connection,
    row: state.Endpoint,
    live: Mapping[tuple[str, int], state.Configuration],
    states: Mapping[str, replica_state.EntityState],
) -> _Seen:
    summary = replies.summary(row, live, states)
    version = row.active_version or row.pending_version
    config = live[row.id, version].config if version else {"served_entities": []}
    shares = contract.percentages(config)
    found = [m.summary for m in monitors_state.monitors_of(db, row.name) if m.summary]
    worst = max((s["worst"] for s in found if s.get("worst")), key=_effect, default=None)
    coverage = [s["label_coverage"] for s in found if s.get("label_coverage") is not None]
    recorded = catalog.of_endpoint(db, row.name)
    shown = {
        "name": row.name,
        "state": summary["state"],
        "stopped": row.stopped,
        "entities": [
            {
                "name": entity["name"],
                "percentage": shares.get(entity["name"], 0),
                "version": contract.model_version(entity),
            }
            for entity in config["served_entities"]
        ],
        "worst_drift": worst and {"column": worst["column"], "effect": worst["effect"]},
        "label_coverage": coverage[0] if coverage else None,
    }
    return _Seen(row, recorded.full_name if recorded else None, shown)


def _effect(worst: Mapping[str, Any]) -> float:
    return worst.get("effect") or 0.0


def _recommended(db: sa.Connection, names: set[str]) -> Iterable[dict[str, Any]]:
    for each in monitors_state.open_recommendations(db):
        if each.endpoint in names:
            entity = each.action.get("served_entity") or ""
            title = f"{each.endpoint}: {each.action['kind'].replace('_', ' ')} {entity}".rstrip()
            link = f"/recommendations?endpoint={each.endpoint}"
            severity = "critical" if each.action["kind"] == "roll_back" else "info"
            text = each.expected_effect
            yield _item("recommendation", severity, title, text, link, each.created_ms)


def _alerting(db: sa.Connection, names: set[str]) -> Iterable[dict[str, Any]]:
    for each in monitors_state.open_alerts(db):
        if each.endpoint in names:
            title = f"{each.endpoint}: {each.metric}" + (f" of {each.column}" * bool(each.column))
            link = f"/alerts?endpoint={each.endpoint}"
            yield _item("alert", each.severity, title, each.message, link, each.opened_ms)


def _unready(
    row: state.Endpoint,
    live: Mapping[tuple[str, int], state.Configuration],
    states: Mapping[str, replica_state.EntityState],
) -> dict[str, Any] | None:
    """An endpoint that is down, or whose last update failed; one that starts or was stopped on
    purpose needs nobody."""
    found = replies.summary(row, live, states)["state"]
    failed = row.config_update == state.UPDATE_FAILED
    down = row.active_version is not None and found["ready"] != "READY"
    if row.stopped or not (failed or (down and row.config_update != state.IN_PROGRESS)):
        return None
    version = row.active_version or row.pending_version
    entities = live[row.id, version].config["served_entities"] if version else []
    said = (states[e["id"]].message for e in entities if e["id"] in states)
    text = row.update_message if failed else next(said, "")
    title = f"{row.name}: the last update failed" if failed else f"{row.name} is not ready"
    severity = "warning" if found["ready"] == "READY" else "critical"
    return _item(
        "endpoint", severity, title, text or "", f"/endpoint?endpoint={row.name}", row.updated_ms
    )


def _failing(monitor: monitors_state.Monitor) -> dict[str, Any]:
    link = f"/drift?endpoint={monitor.endpoint}" if monitor.endpoint else "/drift"
    title = f"Monitor of {monitor.table_name} failed"
    text = monitor.failure_message or ""
    return _item("monitor", "warning", title, text, link, monitor.updated_ms)


def _item(
    kind: str, severity: str, title: str, text: str, link: str, unix_ms: int
) -> dict[str, Any]:
    return {
        "kind": kind,
        "severity": severity,
        "title": title,
        "text": text,
        "link": link,
        "time": replies.rfc3339(unix_ms),
    }


def _urgency(item: Mapping[str, Any]) -> tuple[int, str]:
    return SEVERITIES.get(item["severity"], len(SEVERITIES)), str(item["title"])


def _data_age(context: Context, tables: Iterable[str]) -> float | None:
    """Seconds since the newest commit of these tables; None: there is none yet."""
    told: dict[str, Any] = {}
    with contextlib.suppress(FileNotFoundError):
        path = context.settings.run_dir / "committed.json"
        told = msgspec.json.decode(path.read_bytes()).get("tables", {})
    times = [told[t]["last_commit_ms"] for t in tables if told.get(t, {}).get("last_commit_ms")]
    return max(0.0, (now_ms() - max(times)) / 1000) if times else None
