"""`/api/1.0/endpoints/{name}`: traffic, versions, stop and start."""

from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa
from fastapi import APIRouter, Depends
from starlette.requests import Request
from starlette.responses import Response

from capture import audit, database
from serving import access, fields, promotion, replies, state
from serving.api import envelope, reading
from serving.api.context import Context, author, caller, now_ms

BASE = "/api/1.0/endpoints/{name}"
MOST_REASON = 4096


class Operations:
    """The routes of one server."""

    def __init__(self, context: Context) -> None:
        self.context = context

    def router(self) -> APIRouter:
        router = APIRouter(prefix=BASE, tags=["endpoints"])
        for method, path, handler in (
            ("POST", "/promote", self.promote),
            ("POST", "/rollback", self.rollback),
            ("GET", "/versions", self.versions),
            ("POST", "/stop", self.stop),
            ("POST", "/start", self.start),
        ):
            router.add_api_route(path, handler, methods=[method], response_model=None)
        return router

    # --- traffic ----------------------------------------------------------------------------------

    def promote(self, request: Request, name: str, body: Any = Depends(reading.json)) -> Response:
        """Give a served entity its share of the traffic."""
        who = self.context.require(request, name, "CAN_MANAGE")
        allowed = ("served_entity", "traffic_percentage", "if_config_version", "reason")
        asked = fields.body(body).only((*allowed, *_origin_key(who)))
        share = asked.get("traffic_percentage")
        reply = self.promoted(
            who,
            name,
            asked.need("served_entity").text(63),
            share.integer(0, 100) if share else 100,
            _version(asked, "if_config_version"),
            fields.text(asked, "reason", MOST_REASON, least=0),
            _origin(asked) or "user",
        )
        return envelope.Json(reply)

    def promoted(
        self,
        caller: access.Caller,
        endpoint: str,
        served_entity: str,
        traffic_percentage: int,
        if_config_version: int | None,
        reason: str | None,
        origin: str,
        shares: Mapping[str, int] | None = None,
    ) -> dict[str, Any]:
        """The one path of a promotion, for this route and for recommendations that are applied:
        gives the endpoint object with `audit_id`. `caller` holds CAN_MANAGE already. `shares`: the
        whole split, where it was proposed."""
        order = promotion.Order(caller, author(caller), reason, if_config_version)
        with self.context.change() as db:
            done = promotion.promote(
                db,
                endpoint,
                served_entity,
                traffic_percentage,
                order,
                promotion.origin(origin),
                shares,
            )
        return self._done(caller, done)

    def rollback(self, request: Request, name: str, body: Any = Depends(reading.json)) -> Response:
        """Make an earlier configuration current again; default: the one before."""
        who = self.context.require(request, name, "CAN_MANAGE")
        allowed = ("to_config_version", "if_config_version", "reason")
        asked = fields.body(body).only((*allowed, *_origin_key(who)))
        reason = fields.text(asked, "reason", MOST_REASON, least=0)
        order = promotion.Order(who, author(who), reason, _version(asked, "if_config_version"))
        origin = promotion.origin(_origin(asked) or "rollback")
        with self.context.change() as db:
            done = promotion.rollback(db, name, _version(asked, "to_config_version"), order, origin)
        return envelope.Json(self._done(who, done))

    def _done(self, who: access.Caller, done: promotion.Done) -> dict[str, Any]:
        self.context.aliases.follow(done)
        self.context.settle(done.endpoint)
        shown = self.context.endpoint_object(who, done.endpoint.id)
        return {**shown, "audit_id": done.audit_id}

    def versions(self, request: Request, name: str) -> Response:
        """Every configuration, newest first."""
        self.context.require(request, name, "CAN_VIEW")
        page = reading.page(reading.query(request, reading.PAGE))
        with database.reading(self.context.engine) as db:
            row = state.endpoint(db, name)
            found = state.history(db, row.id, page.size + 1, reading.whole(page.after))
        reply: dict[str, Any] = {
            "versions": [replies.version(name, each) for each in found[: page.size]]
        }
        if len(found) > page.size:
            reply["next_page_token"] = reading.token(found[page.size - 1].config_version)
        return envelope.Json(reply)

    # --- stop and start ---------------------------------------------------------------------------

    def stop(self, request: Request, name: str, body: Any = Depends(reading.json)) -> Response:
        """The replicas end; queries are answered 400 until the endpoint is started again."""
        fields.body(body).only(())
        self.context.require(request, name, "CAN_MANAGE")
        with self.context.change() as db:
            row = state.endpoint(db, name)
            if not row.stopped:
                row = state.stop_endpoint(db, row, now_ms())
                self._audit(db, request, "endpoint.stop", row)
        return envelope.Json(self.context.endpoint_object(caller(request), row.id))

    def start(self, request: Request, name: str, body: Any = Depends(reading.json)) -> Response:
        """The replicas start; an update runs until they answer."""
        fields.body(body).only(())
        self.context.require(request, name, "CAN_MANAGE")
        with self.context.change() as db:
            row = state.endpoint(db, name)
            if row.stopped:
                row = state.start_endpoint(db, row, now_ms())
                self._audit(db, request, "endpoint.start", row)
        self.context.settle(row)
        return envelope.Json(self.context.endpoint_object(caller(request), row.id))

    def _audit(self, db: sa.Connection, request: Request, action: str, row: state.Endpoint) -> None:
        was, now = {"stopped": not row.stopped}, {"stopped": row.stopped}
        user = caller(request).user
        audit.write(db, user, action, now_ms(), endpoint=row.name, before=was, after=now)


def _version(asked: fields.Field, key: str) -> int | None:
    found = asked.get(key)
    return found.integer(1) if found is not None else None


def _origin_key(who: access.Caller) -> tuple[str, ...]:
    """Only our own ramps say where a change comes from; others do not know the field."""
    return ("origin",) if who.is_service else ()


def _origin(asked: fields.Field) -> str | None:
    found = asked.get("origin")
    return found.choice(("ramp",)) if found is not None else None
