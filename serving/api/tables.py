"""`/api/1.0/tables`: the tables that inferlake writes, what is in them, and their upkeep."""

import asyncio
import time
from typing import Any

from fastapi import APIRouter, Depends
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from capture import audit, catalog, database, errors, ledger, names, rows, upkeep
from serving import access, attributes, fields, replies
from serving.api import envelope, reading
from serving.api.context import Context, caller, now_ms

BASE = "/api/1.0/tables"
SIBLINGS = ("payload", "unpacked", "labels", "decisions")
SYSTEM_TABLES = (*ledger.TABLES, rows.USAGE_TABLE)
MOST_DAYS, MOST_HOURS = 36_500, 24 * 365
DEFAULT_HOURS = 168
WAIT_SECONDS, STEP_SECONDS = 30.0, 0.1


class Tables:
    """The routes of one server. System tables are for administrators."""

    def __init__(self, context: Context) -> None:
        self.context = context

    def router(self) -> APIRouter:
        router = APIRouter(tags=["tables"])
        for method, path, handler in (
            ("GET", "", self.listed),
            ("GET", "/{full_name}", self.get),
            ("PATCH", "/{full_name}", self.change),
            ("POST", "/{full_name}/maintain", self.maintain),
        ):
            router.add_api_route(BASE + path, handler, methods=[method], response_model=None)
        return router

    def listed(self, request: Request) -> Response:
        """The recorded tables of the endpoints that the caller may see, by name; for administrators
        the system tables, too."""
        given = reading.query(request, reading.PAGE)
        page = reading.page(given)
        with database.reading(self.context.engine) as db:
            known = catalog.everything(db)
            kept = upkeep.everything(db)
        found = {each.full_name: _recorded(each) for each in known if self._sees(request, each)}
        if caller(request).is_admin:
            found |= {name: _system(name) for name in SYSTEM_TABLES}
        shown = [name for name in sorted(found) if page.after is None or name > page.after]
        days = {name: each.retention_days for name, each in kept.items()}
        reply: dict[str, Any] = {
            "tables": [
                {**found[name], "retention_days": days.get(name)} for name in shown[: page.size]
            ]
        }
        if len(shown) > page.size:
            reply["next_page_token"] = reading.token(shown[page.size - 1])
        return envelope.Json(reply)

    async def get(self, request: Request, full_name: str) -> Response:
        """Columns, files, bytes and versions of a table, the endpoint that it belongs to, and its
        last upkeep."""
        name = names.table_name(full_name)
        recorded = await run_in_threadpool(self._allowed, request, name, "CAN_VIEW")
        found = await self.context.read("table_contents", {"table": str(name)})
        if not found["exists"] and recorded is None and str(name) not in SYSTEM_TABLES:
            raise errors.DoesNotExist(f"Table '{name}' does not exist.")
        endpoint = recorded.endpoint_name if recorded else None
        kept = await run_in_threadpool(self._kept, name)
        return envelope.Json(
            {"full_name": str(name), "endpoint": endpoint, **found, **_upkeep(kept)}
        )

    async def change(
        self, request: Request, full_name: str, body: Any = Depends(reading.json)
    ) -> Response:
        """Keep rows for `retention_days` closed days and the open one; null: for ever."""
        name = names.table_name(full_name)
        recorded = await run_in_threadpool(self._allowed, request, name, "CAN_MANAGE")
        asked = fields.body(body).only(("retention_days",))
        if "retention_days" not in asked.value:
            raise errors.InvalidParameter("retention_days: a value is needed, found none.")
        found = asked.get("retention_days")
        days = None if found is None else found.integer(1, MOST_DAYS)
        if days is not None:
            await self._existing(name, by_day=True)
        kept = await run_in_threadpool(self._keep, caller(request), name, recorded, days)
        return envelope.Json({"full_name": str(name), **_upkeep(kept)})

    async def maintain(
        self, request: Request, full_name: str, body: Any = Depends(reading.json)
    ) -> Response:
        """Look after a table now: checkpoint, merge small files, drop days that are kept no longer;
        with `vacuum`, delete files that no version of the last `retention_hours` has."""
        name = names.table_name(full_name)
        await run_in_threadpool(self._allowed, request, name, "CAN_MANAGE")
        asked = _wish(body)
        await self._existing(name, by_day=False)
        at = await run_in_threadpool(self._ask, name, asked)
        kept = await self._answer(name, at)
        state = "PENDING"
        if kept.answered_ms is not None and kept.answered_ms >= at:
            state = "FAILED" if "error" in (kept.done or {}) else "DONE"
        return envelope.Json({"full_name": str(name), "state": state, **_upkeep(kept)})

    # --- shared -----------------------------------------------------------------------------------

    def _allowed(
        self, request: Request, name: names.TableName, level: str
    ) -> catalog.RecordedTable | None:
        """The recorded table that this one belongs to, if the caller holds `level` on its endpoint.
        Other tables may be looked at by everybody, save the system's, and changed by
        administrators."""
        if name.catalog == attributes.SYSTEM:
            access.require_admin(caller(request))
            return None
        with database.reading(self.context.engine) as db:
            recorded = catalog.get(db, str(name.sibling("payload")))
        self.context.require(request, recorded.endpoint_name if recorded else None, level)
        return recorded

    async def _existing(self, name: names.TableName, by_day: bool) -> None:
        """Raises DoesNotExist, or InvalidParameter if the table should have days and has none."""
        found = await self.context.read("table_contents", {"table": str(name)})
        if not found["exists"]:
            raise errors.DoesNotExist(f"Table '{name}' does not exist.")
        if by_day and found["day_column"] is None:
            raise errors.InvalidParameter(
                f"retention_days: table '{name}' is not partitioned by day, so it has no days to "
                "drop."
            )

    def _keep(
        self,
        who: access.Caller,
        name: names.TableName,
        recorded: catalog.RecordedTable | None,
        days: int | None,
    ) -> upkeep.Upkeep:
        with database.transaction(self.context.engine) as db:
            before = upkeep.of_table(db, str(name)).retention_days
            upkeep.keep_days(db, str(name), days)
            audit.write(
                db,
                who.user,
                "table.retention",
                now_ms(),
                endpoint=recorded.endpoint_name if recorded else None,
                before={"table": str(name), "retention_days": before},
                after={"table": str(name), "retention_days": days},
            )
            return upkeep.of_table(db, str(name))

    def _ask(self, name: names.TableName, asked: dict[str, Any]) -> int:
        with database.transaction(self.context.engine) as db:
            return upkeep.ask(db, str(name), asked, now_ms())

    async def _answer(self, name: names.TableName, at: int) -> upkeep.Upkeep:
        """The table's upkeep once the wish of that time is fulfilled, or after a while."""
        ends = time.monotonic() + WAIT_SECONDS
        while True:
            kept = await run_in_threadpool(self._kept, name)
            if (kept.answered_ms or 0) >= at or time.monotonic() > ends:
                return kept
            await asyncio.sleep(STEP_SECONDS)

    def _kept(self, name: names.TableName) -> upkeep.Upkeep:
        with database.reading(self.context.engine) as db:
            return upkeep.of_table(db, str(name))

    def _sees(self, request: Request, table: catalog.RecordedTable) -> bool:
        try:
            self.context.require(request, table.endpoint_name, "CAN_VIEW")
        except errors.InferlakeError:
            return False
        return True


def _wish(body: Any) -> dict[str, Any]:
    """`{"vacuum"?, "retention_hours"?}` -> what the maintenance process is asked for."""
    asked = fields.body(body).only(("vacuum", "retention_hours"))
    vacuum, hours = asked.get("vacuum"), asked.get("retention_hours")
    kept_hours = DEFAULT_HOURS if hours is None else hours.integer(1, MOST_HOURS)
    wanted = vacuum is not None and vacuum.flag()
    if hours is not None and not wanted:
        raise errors.InvalidParameter("retention_hours: of a vacuum; give vacuum: true with it.")
    return {"retention_hours": kept_hours} if wanted else {}


def _recorded(table: catalog.RecordedTable) -> dict[str, Any]:
    name = names.table_name(table.full_name)
    return {
        "full_name": table.full_name,
        "table_id": table.table_id,
        "endpoint": table.endpoint_name,
        "enabled": table.enabled,
        "created_time": replies.rfc3339(table.created_ms),
        "siblings": [str(name.sibling(suffix)) for suffix in SIBLINGS],
    }


def _system(full_name: str) -> dict[str, Any]:
    return {
        "full_name": full_name,
        "table_id": None,
        "endpoint": None,
        "enabled": True,
        "created_time": None,
        "siblings": [],
    }


def _upkeep(kept: upkeep.Upkeep) -> dict[str, Any]:
    last = None
    if kept.done_ms is not None:
        last = {"time": replies.rfc3339(kept.done_ms), **(kept.done or {})}
    return {"retention_days": kept.retention_days, "last_maintenance": last}
