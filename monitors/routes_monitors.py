"""Routes of monitors: Databricks' quality monitors, and the results that they give."""

from typing import Any

from fastapi import APIRouter, Depends, Response
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from capture import audit, catalog, database, errors, names
from monitors import contract, object_ids, operations, routing_context, state
from monitors.routing_context import Context

TABLES = "/api/2.1/unity-catalog/tables"
DASHBOARD = "/api/2.1/quality-monitoring/tables/{table}/monitor/dashboard"
OURS = "/api/1.0/monitors"


class Monitors:
    """`/api/2.1/unity-catalog/tables/{table}/monitor...` (databricks-monitoring.md, 1.1)."""

    def __init__(self, context: Context) -> None:
        self.context = context

    def router(self) -> APIRouter:
        router = APIRouter(tags=["monitors"])
        monitor, refreshes = "/{table}/monitor", "/{table}/monitor/refreshes"
        for method, path, handler in (
            ("GET", "/{table}", self.table),
            ("POST", monitor, self.create),
            ("GET", monitor, self.get),
            ("PUT", monitor, self.update),
            ("DELETE", monitor, self.delete),
            ("POST", refreshes, self.refresh),
            ("GET", refreshes, self.refreshes),
            ("GET", refreshes + "/{refresh_id}", self.refresh_state),
            ("POST", refreshes + "/{refresh_id}/cancel", self.cancel),
        ):
            router.add_api_route(TABLES + path, handler, methods=[method])
        router.add_api_route(DASHBOARD, self.dashboard, methods=["POST"])
        return router

    async def table(self, request: Request, table: str) -> dict[str, Any]:
        """Name, id and columns of a Delta table below the tables folder."""
        name = await run_in_threadpool(operations.table_name, self.context, table)
        recorded = await run_in_threadpool(
            operations.recorded_beside, self.context, request, name, "CAN_VIEW"
        )
        info = await operations.table_info(self.context, name)
        if not info["exists"] and recorded is None:
            raise errors.DoesNotExist(f"Table '{name}' does not exist.")
        return _table_info(names.table_name(name), recorded, info)

    async def create(
        self, request: Request, table: str, raw: bytes = Depends(routing_context.raw_body)
    ) -> dict[str, Any]:
        name = await run_in_threadpool(operations.table_name, self.context, table)
        recorded = await run_in_threadpool(
            operations.recorded_beside, self.context, request, name, "CAN_MANAGE"
        )
        config = contract.monitor_config(contract.body(raw))
        return contract.monitor_info(
            await operations.create(
                self.context, request, operations.Wanted(name, recorded, config)
            )
        )

    def get(self, request: Request, table: str) -> dict[str, Any]:
        return contract.monitor_info(self._monitor(request, table, "CAN_VIEW"))

    def _monitor(self, request: Request, table: str, level: str) -> state.Monitor:
        return operations.monitor_for(self.context, request, table, level)

    async def update(
        self, request: Request, table: str, raw: bytes = Depends(routing_context.raw_body)
    ) -> dict[str, Any]:
        found = await run_in_threadpool(self._monitor, request, table, "CAN_MANAGE")
        given = contract.body(raw)
        if "output_schema_name" not in given:
            raise errors.InvalidParameter("output_schema_name: a value is needed.")
        config = contract.updated_config(found.config, given)
        return contract.monitor_info(await operations.update(self.context, request, found, config))

    def delete(self, request: Request, table: str) -> dict[str, Any]:
        found = self._monitor(request, table, "CAN_MANAGE")
        operations.delete(self.context, request, found)
        return {}

    def dashboard(
        self, request: Request, table: str, raw: bytes = Depends(routing_context.raw_body)
    ) -> dict[str, Any]:
        """Where the monitor's pages are; they are drawn when looked at, so none is made anew."""
        found = self._monitor(request, table, "CAN_MANAGE")
        contract.parse(DashboardRequest, contract.body(raw))
        return {
            "dashboard_id": contract.dashboard_id(found),
            "parent_folder": found.config.get("assets_dir", "/"),
        }

    def refresh(
        self, request: Request, table: str, raw: bytes = Depends(routing_context.raw_body)
    ) -> dict[str, Any]:
        """Queue a refresh; `until` ends rows, labels and the time of decisions."""
        found = self._monitor(request, table, "CAN_MANAGE")
        asked = contract.parse(contract.RefreshRequest, contract.body(raw))
        return contract.refresh_info(operations.refresh(self.context, found, asked.until))

    def refreshes(self, request: Request, table: str) -> dict[str, Any]:
        found = self._monitor(request, table, "CAN_VIEW")
        with database.reading(self.context.engine) as connection:
            newest = state.newest_refreshes(connection, found.table_name)
        return {"refreshes": [contract.refresh_info(refresh) for refresh in newest]}

    def refresh_state(self, request: Request, table: str, refresh_id: str) -> dict[str, Any]:
        found = self._monitor(request, table, "CAN_VIEW")
        with database.reading(self.context.engine) as connection:
            refresh = state.get_refresh(
                connection, found.table_name, operations.refresh_number(refresh_id)
            )
        return contract.refresh_info(refresh)

    def cancel(self, request: Request, table: str, refresh_id: str) -> dict[str, Any]:
        found = self._monitor(request, table, "CAN_MANAGE")
        now = routing_context.now_ms()
        with database.transaction(self.context.engine) as connection:
            state.cancel_refresh(
                connection, found.table_name, operations.refresh_number(refresh_id), now
            )
        return {}


class DashboardRequest(contract.Shape):
    """There are no warehouses here: the field is taken and left aside."""

    warehouse_id: str | None = None


class Results:
    """`/api/1.0/monitors...`: what monitors found (inferlake-api.md, "Monitors")."""

    def __init__(self, context: Context) -> None:
        self.context = context

    def router(self) -> APIRouter:
        router = APIRouter(tags=["monitors"])
        router.add_api_route(OURS, self.everything, methods=["GET"])
        router.add_api_route(OURS + "/{table}/drift", self.drift, methods=["GET"])
        router.add_api_route(OURS + "/{table}/profiles", self.profiles, methods=["GET"])
        router.add_api_route(OURS + "/{table}/quality", self.quality, methods=["GET"])
        router.add_api_route(OURS + "/{table}/baselines", self.baseline, methods=["POST"])
        return router

    def everything(self, request: Request) -> dict[str, Any]:
        """All monitors that the caller may see, with their last refresh and worst column."""
        shown, further = operations.page(self.context, request)
        with database.reading(self.context.engine) as connection:
            last = state.last_refresh_of_each(connection)
        return {"monitors": [_summary(m, last.get(m.table_name)) for m in shown], **further}

    async def _ask(
        self, request: Request, table: str, operation: str, known: tuple[str, ...]
    ) -> Response:
        given = routing_context.query(request, known)
        monitor = await run_in_threadpool(
            operations.monitor_for, self.context, request, table, "CAN_VIEW"
        )
        for name in ("from", "to", "window_start", "window_end"):
            if name in given:
                given[name] = contract.moment(given[name], name).isoformat()
        routing_context.choice(given, "type", ("BASELINE", "CONSECUTIVE"))
        profile_table, drift_table = contract.metric_tables(monitor.table_name, monitor.config)
        arguments = {
            "table": monitor.table_name,
            "table_id": monitor.table_id,
            "profile_table": profile_table,
            "drift_table": drift_table,
            "filters": given,
            **contract.reading_hints(monitor.config),
        }
        found = await self.context.reader.relay(operation, arguments, routing_context.READ_SECONDS)
        return Response(found, media_type="application/json")

    async def drift(self, request: Request, table: str) -> Response:
        """Columns x windows: how far each is from the baseline or from the window before."""
        known = ("from", "to", "column", "slice", "served_entity", "type", "granularity", "fields")
        return await self._ask(request, table, "drift", known)

    async def profiles(self, request: Request, table: str) -> Response:
        """Histograms of one column in one window, in the window before and in the baseline."""
        known = ("column", "window_start", "window_end", "slice", "served_entity")
        return await self._ask(request, table, "profiles", known)

    async def quality(self, request: Request, table: str) -> Response:
        """Quality per version and window with intervals, label coverage and delay."""
        known = ("from", "to", "slice", "served_entity", "metric", "granularity")
        return await self._ask(request, table, "quality", known)

    def baseline(
        self, request: Request, table: str, raw: bytes = Depends(routing_context.raw_body)
    ) -> dict[str, Any]:
        """A new baseline version; windows computed from now on are compared with it."""
        monitor = operations.monitor_for(self.context, request, table, "CAN_MANAGE")
        caller = self.context.access.require(request, monitor.endpoint, "CAN_MANAGE")
        spec = contract.baseline_spec(contract.body(raw))
        if spec["kind"] == "training" and spec["table"] is None:
            spec["table"] = monitor.config.get("baseline_table_name")
            if spec["table"] is None:
                raise errors.InvalidParameter("table: a table is needed; the monitor names none.")
        now = routing_context.now_ms()
        with database.transaction(self.context.engine) as connection:
            before = state.current_baseline(connection, monitor.table_name)
            number = state.add_baseline(connection, monitor.table_name, spec, caller.user, now)
            audit.write(
                connection,
                caller.user,
                "monitor.baseline",
                now,
                endpoint=monitor.endpoint,
                before=None if before is None else before.spec,
                after={"table": monitor.table_name, "baseline_version": number, **spec},
            )
        return {"table": monitor.table_name, "baseline_version": number, **spec}


def _table_info(
    name: names.TableName, recorded: catalog.RecordedTable | None, info: dict[str, Any]
) -> dict[str, Any]:
    return {
        "name": name.table,
        "catalog_name": name.catalog,
        "schema_name": name.schema,
        "full_name": str(name),
        "table_id": object_ids.table_id(str(name), recorded),
        "table_type": "MANAGED",
        "data_source_format": "DELTA",
        "columns": [
            {
                "name": column["name"],
                "type_name": column["type"].upper(),
                "type_text": column["type"],
                "nullable": column["nullable"],
                "position": position,
            }
            for position, column in enumerate(info["columns"])
        ],
    }


def _summary(monitor: state.Monitor, last: state.Refresh | None) -> dict[str, Any]:
    return {
        "table": monitor.table_name,
        "table_id": monitor.table_id,
        "endpoint": monitor.endpoint,
        "status": monitor.status,
        "monitor_version": monitor.monitor_version,
        "baseline_version": monitor.baseline_version,
        "schedule": monitor.config.get("schedule"),
        "failure_message": monitor.failure_message,
        "last_refresh": contract.refresh_info(last) if last else None,
        "next_refresh": contract.rfc3339(monitor.next_refresh_ms),
        "worst_column": monitor.summary.get("worst"),
        "label_coverage": monitor.summary.get("label_coverage"),
        "window": monitor.summary.get("window"),
    }
