"""`/api/1.0/endpoints/{name}`: the version in the shadow, and a version tried past the record."""

from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa
from fastapi import APIRouter, Depends
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from capture import audit, catalog, database, errors
from serving import contract, fields, replies, shadow_state, state
from serving.api import envelope, reading
from serving.api.context import Context, caller, now_ms

BASE = "/api/1.0/endpoints/{name}"
LEAST_PERCENTAGE = 0.01


class Shadows:
    """The routes of one server."""

    def __init__(self, context: Context) -> None:
        self.context = context

    def router(self) -> APIRouter:
        router = APIRouter(prefix=BASE, tags=["experiments"])
        for method, path, handler in (
            ("GET", "/shadow", self.get),
            ("PUT", "/shadow", self.put),
            ("DELETE", "/shadow", self.delete),
            ("POST", "/served-entities/{entity}/try", self.attempt),
        ):
            router.add_api_route(path, handler, methods=[method], response_model=None)
        return router

    async def get(self, request: Request, name: str) -> Response:
        """Who gets copies, what became of them, and how the two versions compare so far."""
        reading.query(request, ())
        shown, asked = await run_in_threadpool(self._seen, request, name)
        shown["comparison"] = None
        if asked is not None:
            shown["comparison"] = await self.context.read("shadow_comparison", asked)
        return envelope.Json(shown)

    def put(self, request: Request, name: str, body: Any = Depends(reading.json)) -> Response:
        """Copy a share of the requests to a served entity. Another share of the same one goes on
        with the comparison; another entity begins a new one."""
        who = self.context.require(request, name, "CAN_MANAGE")
        asked = fields.body(body).only(("served_entity", "sample_percentage"))
        entity = asked.need("served_entity").text(63)
        share = asked.get("sample_percentage")
        percentage = share.number(LEAST_PERCENTAGE, 100) if share else 100.0
        with self.context.change() as db:
            row = state.endpoint(db, name)
            _check(db, row, entity)
            before = shadow_state.find_shadow(db, row.id)
            goes_on = before is not None and before.served_entity == entity
            since = before.created_ms if before is not None and goes_on else now_ms()
            made = shadow_state.Shadow(row.id, entity, percentage, who.user, since)
            shadow_state.put_shadow(db, made)
            self._audit(db, request, name, before, made)
        shown, _ = self._seen(request, name)
        return envelope.Json(shown)

    def delete(self, request: Request, name: str) -> Response:
        """Copy no more; what was recorded stays."""
        self.context.require(request, name, "CAN_MANAGE")
        with self.context.change() as db:
            row = state.endpoint(db, name)
            before = _shadow(db, row)
            shadow_state.delete_shadow(db, row.id)
            self._audit(db, request, name, before, None)
        return envelope.Json({})

    async def attempt(
        self, request: Request, name: str, entity: str, body: bytes = Depends(reading.raw)
    ) -> Response:
        """One version's answer to a query's body, recorded and counted nowhere, behind live
        requests: 503 while those need the version's replicas."""
        reading.query(request, ())
        await run_in_threadpool(self._serves, request, name, entity)
        kind = request.headers.get("content-type", "").encode("latin-1")
        answer = await self.context.data_plane.attempt(name, entity, kind, body)
        headers = {"served-model-name": entity, "x-model-us": str(answer.predict_us)}
        if answer.error_source is not None:
            headers["x-error-source"] = answer.error_source
        return Response(answer.body, answer.status, headers, media_type="application/json")

    def _serves(self, request: Request, name: str, entity: str) -> None:
        """Raises DoesNotExist unless the endpoint serves this entity to its managers."""
        self.context.require(request, name, "CAN_MANAGE")
        with database.reading(self.context.engine) as db:
            served = _config(db, state.endpoint(db, name))["served_entities"]
        names = [one["name"] for one in served]
        if entity not in names:
            raise errors.DoesNotExist(
                f"Served entity '{entity[:200]}' of endpoint '{name}' does not exist; it serves: "
                f"{', '.join(names) or 'none'}."
            )

    def _seen(self, request: Request, name: str) -> tuple[dict[str, Any], dict[str, Any] | None]:
        """The reply without its comparison, and the question for that; None: nothing can be."""
        self.context.require(request, name, "CAN_VIEW")
        with database.reading(self.context.engine) as db:
            row = state.endpoint(db, name)
            shadow = _shadow(db, row)
            config = _config(db, row)
            recorded = catalog.of_endpoint(db, name)
        copies = self.context.data_plane.copies(name, shadow.served_entity)
        dropped = {
            why.removeprefix("dropped_"): count
            for why, count in copies.items()
            if why.startswith("dropped_")
        }
        shares = contract.percentages(config)
        pause = _pause(row, config, shadow)
        shown = {
            "served_entity": shadow.served_entity,
            "sample_percentage": shadow.sample_percentage,
            "created_by": shadow.created_by,
            "created_time": replies.rfc3339(shadow.created_ms),
            "state": "copying" if pause is None else "paused",
            "message": pause,
            "copies": {
                "answered": copies.get("answered", 0),
                "failed": copies.get("failed", 0),
                "dropped": dropped,
            },
        }
        others = {one: share for one, share in shares.items() if one != shadow.served_entity}
        if recorded is None or not others or shadow.served_entity not in shares:
            return shown, None
        versions = {e["name"]: contract.model_version(e) for e in config["served_entities"]}
        champion = max(others, key=lambda one: others[one])
        pair = {"champion": champion, "challenger": shadow.served_entity}
        return shown, {
            "table": recorded.full_name,
            "endpoint": name,
            "since_ms": shadow.created_ms,
            "now_ms": now_ms(),
            "dropped": sum(dropped.values()),
            **{role: {"name": one, "version": versions[one]} for role, one in pair.items()},
        }

    def _audit(
        self,
        db: sa.Connection,
        request: Request,
        name: str,
        before: shadow_state.Shadow | None,
        after: shadow_state.Shadow | None,
    ) -> None:
        was, becomes = _told(before), _told(after)
        audit.write(
            db,
            caller(request).user,
            "endpoint.shadow",
            now_ms(),
            endpoint=name,
            before=was,
            after=becomes,
        )


def _told(shadow: shadow_state.Shadow | None) -> dict[str, Any] | None:
    if shadow is None:
        return None
    return {
        "served_entity": shadow.served_entity,
        "sample_percentage": shadow.sample_percentage,
    }


def _shadow(db: sa.Connection, row: state.Endpoint) -> shadow_state.Shadow:
    found = shadow_state.find_shadow(db, row.id)
    if found is None:
        raise errors.DoesNotExist(f"Endpoint '{row.name}' has no version in the shadow.")
    return found


def _config(db: sa.Connection, row: state.Endpoint) -> Mapping[str, Any]:
    """The active configuration; before there is one, that which is on its way."""
    version = row.active_version if row.active_version is not None else row.pending_version
    found = state.configuration(db, row.id, version) if version is not None else None
    return found.config if found else {"served_entities": []}


def _check(db: sa.Connection, row: state.Endpoint, entity: str) -> None:
    """Raises DoesNotExist for an entity that the endpoint does not serve, InvalidParameter where
    there is nothing to compare."""
    config = _config(db, row)
    kinds = {one["name"]: contract.kind(one) for one in config["served_entities"]}
    if entity not in kinds:
        served = ", ".join(kinds) or "none"
        raise errors.DoesNotExist(
            f"Served entity '{entity}' of endpoint '{row.name}' does not exist; it serves: "
            f"{served}. Add the version with 0 % of the traffic first."
        )
    if kinds[entity] != "custom":
        raise errors.InvalidParameter(f"served_entity: '{entity}' is no custom model.")
    if contract.capture(row.name, config, row.ai_gateway, row.telemetry_config) is None:
        raise errors.InvalidParameter(
            f"Endpoint '{row.name}' records no requests, so there would be nothing to compare "
            "with; switch its inference table on first."
        )


def _pause(
    row: state.Endpoint, config: Mapping[str, Any], shadow: shadow_state.Shadow
) -> str | None:
    """Why nothing is copied at present; None: requests are."""
    name = shadow.served_entity
    if row.stopped:
        return "The endpoint is stopped."
    if name not in {one["name"] for one in config["served_entities"]}:
        return f"The present configuration serves no '{name}'."
    if contract.capture(row.name, config, row.ai_gateway, row.telemetry_config) is None:
        return "The endpoint records no requests."
    if contract.percentages(config).get(name) == 100:
        return f"'{name}' answers all requests itself."
    return None
