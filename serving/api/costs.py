"""`/api/1.0/usage` and `/api/1.0/prices`: who used what, and what that costs."""

import re
from typing import Any

import sqlalchemy as sa
from fastapi import APIRouter, Depends
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from capture import audit, database, errors, prices
from serving import access, contract, fields, replies
from serving.api import envelope, reading
from serving.api.context import Context, caller, now_ms

OURS = "/api/1.0"
MOST_PRICE = 1e9
_CURRENCY = re.compile(r"[A-Z]{3}", re.ASCII)


class Costs:
    """The routes of one server."""

    def __init__(self, context: Context) -> None:
        self.context = context

    def router(self) -> APIRouter:
        router = APIRouter(prefix=OURS, tags=["costs"])
        for method, path, handler in (
            ("GET", "/usage", self.usage),
            ("GET", "/prices", self.prices),
            ("PUT", "/prices", self.put_prices),
        ):
            router.add_api_route(path, handler, methods=[method], response_model=None)
        return router

    async def usage(self, request: Request) -> Response:
        """Requests, errors, refusals by a limit, replica-hours and cost by `endpoint`,
        `served_entity`, `user`, `day`; `order_by` one of these numbers, largest first. A cost that
        a missing price hides is null, with `cost_reason`."""
        given = reading.query(request, ("by", "from", "to", "endpoint", "order_by", *reading.PAGE))
        page = reading.page(given)
        endpoint = given.get("endpoint")
        if endpoint is None and not caller(request).is_admin:
            raise errors.InvalidParameter("endpoint: name one; only administrators see all.")
        await run_in_threadpool(self.context.require, request, endpoint, "CAN_VIEW")
        skip = reading.whole(page.after) or 0
        asked: dict[str, Any] = {**given, "skip": skip, "limit": page.size}
        found = await self.context.read("usage", asked)
        if found.pop("more"):
            found["next_page_token"] = reading.token(skip + page.size)
        return envelope.Json(found)

    def prices(self) -> Response:
        """The price table; empty where nobody has set one."""
        with database.reading(self.context.engine) as db:
            return envelope.Json(_shown(prices.kept(db)))

    def put_prices(self, request: Request, body: Any = Depends(reading.json)) -> Response:
        """Replace the price table. Administrators only."""
        who = caller(request)
        access.require_admin(who)
        table = _asked(fields.body(body))
        with database.transaction(self.context.engine) as db:
            self._put(db, who, table)
            shown = _shown(prices.kept(db))
        return envelope.Json(shown)

    def _put(self, db: sa.Connection, who: access.Caller, table: dict[str, Any]) -> None:
        before, now = prices.kept(db), now_ms()
        prices.put(db, table, who.user, now)
        was = None if before is None else before.body
        audit.write(db, who.user, "prices.put", now, before=was, after=table)


def _asked(root: fields.Field) -> dict[str, Any]:
    """`{"currency", "replica_hours"?, "per_1000_requests"?}` -> the table, every field there."""
    root.only(("currency", "replica_hours", "per_1000_requests"))
    given, per_1000 = root.get("replica_hours"), root.get("per_1000_requests")
    hours = [_hour(each) for each in (given.items(100) if given else ())]
    kinds = [(each["workload_type"], each["workload_size"]) for each in hours]
    twice = next((kind for kind in kinds if kinds.count(kind) > 1), None)
    if twice is not None:
        size = twice[1] or "every size"
        raise errors.InvalidParameter(f"replica_hours: two prices of {twice[0]}, {size}.")
    return {
        "currency": root.need("currency").matching(_CURRENCY, "three capital letters, like EUR"),
        "replica_hours": hours,
        "per_1000_requests": None if per_1000 is None else per_1000.number(0, MOST_PRICE),
    }


def _hour(each: fields.Field) -> dict[str, Any]:
    each.only(("workload_type", "workload_size", "price"))
    size = each.get("workload_size")
    return {
        "workload_type": each.need("workload_type").choice(contract.WORKLOAD_TYPES),
        "workload_size": None if size is None else size.choice(contract.WORKLOAD_SIZES),
        "price": each.need("price").number(0, MOST_PRICE),
    }


def _shown(kept: prices.Kept | None) -> dict[str, Any]:
    if kept is None:
        named = ("currency", "per_1000_requests", "updated_by", "updated_time")
        return {"replica_hours": [], **dict.fromkeys(named)}
    told = {"updated_by": kept.updated_by, "updated_time": replies.rfc3339(kept.updated_ms)}
    return {**kept.body, **told}
