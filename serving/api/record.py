"""`/api/1.0`: what the record of requests says: timeseries, capture."""

from typing import Any

from fastapi import APIRouter
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from capture import catalog, database
from monitors import alert_state
from serving import contract, replies, state
from serving.api import envelope, reading
from serving.api.context import Context, now_ms

OURS = "/api/1.0"
HOUR_MS = 3_600_000
MOST_EVENTS = 200


class Record:
    """The routes of one server."""

    def __init__(self, context: Context) -> None:
        self.context = context

    def router(self) -> APIRouter:
        router = APIRouter(prefix=OURS, tags=["record"])
        for path, handler in (
            ("/endpoints/{name}/timeseries", self.timeseries),
            ("/endpoints/{name}/capture", self.capture),
        ):
            router.add_api_route(path, handler, methods=["GET"], response_model=None)
        return router

    async def timeseries(self, request: Request, name: str) -> Response:
        """Requests, errors and latencies over time, with what happened to the endpoint meanwhile;
        default: the last hour. `recorded` false: its requests are not recorded now, so that no
        request in the series does not mean that none came."""
        await run_in_threadpool(self.context.require, request, name, "CAN_VIEW")
        given = reading.query(request, ("metrics", "from", "to", "step", "by"))
        end = reading.moment(given, "to") or now_ms()
        start = reading.moment(given, "from")
        start = end - HOUR_MS if start is None else start
        asked: dict[str, Any] = {
            **given,
            "from": replies.rfc3339(start),
            "to": replies.rfc3339(end),
        }
        recorded = await run_in_threadpool(self._recorded, name)
        found: dict[str, Any] = {"step_seconds": None, "series": []}
        if recorded is not None:
            asked["table"] = recorded.full_name
            found = await self.context.read("timeseries", asked)
        events = await run_in_threadpool(self._events, name, start, end)
        enabled = recorded is not None and recorded.enabled
        return envelope.Json({**found, "recorded": enabled, "events": events})

    async def capture(self, request: Request, name: str) -> Response:
        """How far the record of requests has come."""
        await run_in_threadpool(self.context.require, request, name, "CAN_VIEW")
        recorded = await run_in_threadpool(self._recorded, name)
        if recorded is None:
            nothing: dict[str, Any] = {
                "table": None,
                "committed_rows": 0,
                "committed_labels": 0,
                "lag_seconds": None,
                "wal_bytes": 0,
                "last_commit_time": None,
                "dropped": {},
            }
            return envelope.Json(nothing)
        asked = {"table": recorded.full_name, "now_ms": now_ms()}
        found = await self.context.read("capture_status", asked)
        dropped = self.context.data_plane.log.dropped.get(recorded.full_name, 0)
        shown = {"enabled": recorded.enabled, "dropped": {"log_full": dropped} if dropped else {}}
        return envelope.Json({**found, **shown})

    def _recorded(self, name: str) -> catalog.RecordedTable | None:
        with database.reading(self.context.engine) as db:
            return catalog.of_endpoint(db, name)

    # --- what happened ----------------------------------------------------------------------------

    def _events(self, name: str, start: int, end: int) -> list[dict[str, Any]]:
        """Configurations that went live and alerts that opened in [start, end) unix ms, by time."""
        with database.reading(self.context.engine) as db:
            row = state.find_endpoint(db, name)
            numbered = state.history(db, row.id, MOST_EVENTS) if row else []
            opened = alert_state.find_alerts(db, name)
        found = [
            (each.activated_ms, "configuration", _configured(each))
            for each in numbered
            if each.activated_ms is not None
        ]
        found += [(each.opened_ms, "alert", each.message) for each in opened]
        inside = sorted(each for each in found if start <= each[0] < end)
        return [
            {"time": replies.rfc3339(at), "kind": kind, "text": text}
            for at, kind, text in inside[-MOST_EVENTS:]
        ]


def _configured(numbered: state.Configuration) -> str:
    shares = contract.percentages(numbered.config)
    split = ", ".join(f"{name} {share} %" for name, share in shares.items() if share)
    return f"Configuration {numbered.config_version}: {split}"
