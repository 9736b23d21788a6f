"""Routes of monitors: Databricks' quality monitors, and the results that they give."""

import uuid
from typing import Any

from fastapi import APIRouter, Depends
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from capture import catalog, database, errors, names
from monitors import alert_state, alerts, contract, routing_context, state
from monitors.routing_context import Context

TABLES = "/api/2.1/unity-catalog/tables"
OURS = "/api/1.0/monitors"
TABLE_IDS = uuid.UUID("5b9f4f3e-6d0c-5c0e-9d7e-1f1f6c6a7a10")


def table_id(full_name: str) -> str:
    """Id of a table that the catalogue does not know: the same for the same name, always."""
    return str(uuid.uuid5(TABLE_IDS, full_name.lower()))


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
        return router

    async def table(self, request: Request, table: str) -> dict[str, Any]:
        """Name, id and columns of a Delta table below the tables folder."""
        name = str(names.table_name(table))
        recorded = await run_in_threadpool(self._allowed, request, name, "CAN_VIEW")
        info = await _info(self.context, name)
        if not info["exists"] and recorded is None:
            raise errors.DoesNotExist(f"Table '{name}' does not exist.")
        return _table_info(names.table_name(name), recorded, info)

    def _allowed(self, request: Request, table: str, level: str) -> catalog.RecordedTable | None:
        """The catalogue's entry of the payload table beside `table`, if the caller may see it."""
        payload = str(names.table_name(table).sibling("payload"))
        with database.reading(self.context.engine) as connection:
            recorded = catalog.get(connection, payload)
        endpoint = recorded.endpoint_name if recorded else None
        self.context.access.require(request, endpoint, level)
        return recorded

    async def create(
        self, request: Request, table: str, raw: bytes = Depends(routing_context.raw_body)
    ) -> dict[str, Any]:
        name = str(names.table_name(table))
        recorded = await run_in_threadpool(self._allowed, request, name, "CAN_MANAGE")
        config = contract.monitor_config(contract.body(raw))
        if recorded is None:  # a recorded table may come with its first request
            info = await _info(self.context, name)
            if not info["exists"]:
                raise errors.DoesNotExist(f"Table '{name}' does not exist.")
            _check_columns(config, info["columns"])
        await _check_expressions(self.context, name, config)
        return await run_in_threadpool(self._create, request, name, config, recorded)

    def _create(
        self,
        request: Request,
        name: str,
        config: dict[str, Any],
        recorded: catalog.RecordedTable | None,
    ) -> dict[str, Any]:
        endpoint = recorded.endpoint_name if recorded else None
        caller = self.context.access.require(request, endpoint, "CAN_MANAGE")
        now = routing_context.now_ms()
        with database.transaction(self.context.engine) as connection:
            state.create_monitor(connection, name, _id_of(name, recorded), config, caller.user, now)
            if "baseline_table_name" in config:
                spec = {"kind": "training", "table": config["baseline_table_name"]}
                state.add_baseline(connection, name, spec, caller.user, now)
            if endpoint is not None and not alert_state.rules(connection, endpoint):
                for rule in alerts.defaults(endpoint, now):
                    alert_state.add_rule(connection, rule)
            return contract.monitor_info(state.monitor(connection, name))

    def get(self, request: Request, table: str) -> dict[str, Any]:
        return contract.monitor_info(self._monitor(request, table, "CAN_VIEW"))

    def _monitor(self, request: Request, table: str, level: str) -> state.Monitor:
        return monitor_for(self.context, request, table, level)

    async def update(
        self, request: Request, table: str, raw: bytes = Depends(routing_context.raw_body)
    ) -> dict[str, Any]:
        found = await run_in_threadpool(self._monitor, request, table, "CAN_MANAGE")
        given = contract.body(raw)
        if "output_schema_name" not in given:
            raise errors.InvalidParameter("output_schema_name: a value is needed.")
        config = contract.updated_config(found.config, given)
        await _check_expressions(self.context, found.table_name, config)
        return await run_in_threadpool(self._update, request, found, config)

    def _update(
        self, request: Request, found: state.Monitor, config: dict[str, Any]
    ) -> dict[str, Any]:
        caller = self.context.access.require(request, found.endpoint, "CAN_MANAGE")
        now = routing_context.now_ms()
        baseline = config.get("baseline_table_name")
        with database.transaction(self.context.engine) as connection:
            state.replace_config(connection, found.table_name, config, now)
            if baseline and baseline != found.config.get("baseline_table_name"):
                spec = {"kind": "training", "table": baseline}
                state.add_baseline(connection, found.table_name, spec, caller.user, now)
            return contract.monitor_info(state.monitor(connection, found.table_name))

    def delete(self, request: Request, table: str) -> dict[str, Any]:
        found = self._monitor(request, table, "CAN_MANAGE")
        with database.transaction(self.context.engine) as connection:
            state.delete_monitor(connection, found.table_name)
        return {}

    def refresh(
        self, request: Request, table: str, raw: bytes = Depends(routing_context.raw_body)
    ) -> dict[str, Any]:
        """Queue a refresh; `until` ends rows, labels and the time of decisions."""
        found = self._monitor(request, table, "CAN_MANAGE")
        asked = contract.parse(contract.RefreshRequest, contract.body(raw))
        until = None
        if asked.until is not None:
            until = contract.unix_ms(contract.moment(asked.until, "until"))
        with database.transaction(self.context.engine) as connection:
            refresh_id = state.request_refresh(
                connection, found.table_name, "MANUAL", until, routing_context.now_ms()
            )
            return contract.refresh_info(
                state.get_refresh(connection, found.table_name, refresh_id)
            )

    def refreshes(self, request: Request, table: str) -> dict[str, Any]:
        found = self._monitor(request, table, "CAN_VIEW")
        with database.reading(self.context.engine) as connection:
            newest = state.newest_refreshes(connection, found.table_name)
        return {"refreshes": [contract.refresh_info(refresh) for refresh in newest]}

    def refresh_state(self, request: Request, table: str, refresh_id: str) -> dict[str, Any]:
        found = self._monitor(request, table, "CAN_VIEW")
        with database.reading(self.context.engine) as connection:
            refresh = state.get_refresh(connection, found.table_name, _number(refresh_id))
        return contract.refresh_info(refresh)

    def cancel(self, request: Request, table: str, refresh_id: str) -> dict[str, Any]:
        found = self._monitor(request, table, "CAN_MANAGE")
        now = routing_context.now_ms()
        with database.transaction(self.context.engine) as connection:
            state.cancel_refresh(connection, found.table_name, _number(refresh_id), now)
        return {}


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
        self.context.access.require(request, None, "CAN_VIEW")
        given = routing_context.query(request, ("page_size", "page_token"))
        page = routing_context.page(given)
        with database.reading(self.context.engine) as connection:
            found = state.all_monitors(connection)
            last = state.last_refresh_of_each(connection)
        seen = [m for m in found if self.context.may_see(request, m.endpoint)]
        if page.after is not None:
            seen = [m for m in seen if m.table_name > page.after[1]]
        shown = seen[: page.size]
        reply: dict[str, Any] = {"monitors": [_summary(m, last.get(m.table_name)) for m in shown]}
        if len(seen) > page.size:
            reply["next_page_token"] = routing_context.page_token(0, shown[-1].table_name)
        return reply

    async def _ask(
        self, request: Request, table: str, operation: str, known: tuple[str, ...]
    ) -> Any:
        given = routing_context.query(request, known)
        monitor = await run_in_threadpool(monitor_for, self.context, request, table, "CAN_VIEW")
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
        return await self.context.reader.ask(operation, arguments, routing_context.READ_SECONDS)

    async def drift(self, request: Request, table: str) -> Any:
        """Columns x windows: how far each is from the baseline or from the window before."""
        known = ("from", "to", "column", "slice", "served_entity", "type", "granularity")
        return await self._ask(request, table, "drift", known)

    async def profiles(self, request: Request, table: str) -> Any:
        """Histograms of one column in one window, in the window before and in the baseline."""
        known = ("column", "window_start", "window_end", "slice", "served_entity")
        return await self._ask(request, table, "profiles", known)

    async def quality(self, request: Request, table: str) -> Any:
        """Quality per version and window with intervals, label coverage and delay."""
        known = ("from", "to", "slice", "served_entity", "metric", "granularity")
        return await self._ask(request, table, "quality", known)

    def baseline(
        self, request: Request, table: str, raw: bytes = Depends(routing_context.raw_body)
    ) -> dict[str, Any]:
        """A new baseline version; windows computed from now on are compared with it."""
        monitor = monitor_for(self.context, request, table, "CAN_MANAGE")
        caller = self.context.access.require(request, monitor.endpoint, "CAN_MANAGE")
        spec = contract.baseline_spec(contract.body(raw))
        if spec["kind"] == "training" and spec["table"] is None:
            spec["table"] = monitor.config.get("baseline_table_name")
            if spec["table"] is None:
                raise errors.InvalidParameter("table: a table is needed; the monitor names none.")
        with database.transaction(self.context.engine) as connection:
            number = state.add_baseline(
                connection, monitor.table_name, spec, caller.user, routing_context.now_ms()
            )
        return {"table": monitor.table_name, "baseline_version": number, **spec}


def monitor_for(context: Context, request: Request, table: str, level: str) -> state.Monitor:
    """The monitor of a table, if the caller has `level` on its endpoint. Raises DoesNotExist."""
    name = str(names.table_name(table))
    with database.reading(context.engine) as connection:
        try:
            found = state.monitor(connection, name)
        except errors.DoesNotExist:
            found = None
    if found is None:
        context.access.require(request, None, level)
        raise errors.DoesNotExist(f"Table '{name}' has no monitor.")
    context.access.require(request, found.endpoint, level)
    return found


async def _info(context: Context, table: str) -> dict[str, Any]:
    """Existence and columns of a Delta table."""
    asked = {"table": table}
    return await context.reader.ask("table_info", asked, routing_context.READ_SECONDS)


async def _check_expressions(context: Context, table: str, config: dict[str, Any]) -> None:
    """Slicing expressions hold allowed nodes and columns that are there. Raises InvalidParameter.

    Asked of the reading child: what parses and computes is not loaded here."""
    if config.get("slicing_exprs"):
        asked = {"table": table, "slicing_exprs": config["slicing_exprs"]}
        await context.reader.ask("check_expressions", asked, routing_context.READ_SECONDS)


def _id_of(name: str, recorded: catalog.RecordedTable | None) -> str:
    known = recorded is not None and recorded.full_name == name
    return recorded.table_id if known and recorded else table_id(name)


def _number(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise errors.DoesNotExist(f"Refresh '{text[:50]}' does not exist.")
    return int(text)


def _check_columns(config: dict[str, Any], columns: list[dict[str, Any]]) -> None:
    """The columns that a configuration names are there."""
    present = {column["name"] for column in columns}
    chosen = config.get("inference_log") or config.get("time_series") or {}
    for field in ("timestamp_col", "prediction_col", "model_id_col", "prediction_proba_col"):
        if field in chosen and chosen[field] not in present:
            raise errors.InvalidParameter(f"{field}: the table has no column '{chosen[field]}'.")


def _table_info(
    name: names.TableName, recorded: catalog.RecordedTable | None, info: dict[str, Any]
) -> dict[str, Any]:
    return {
        "name": name.table,
        "catalog_name": name.catalog,
        "schema_name": name.schema,
        "full_name": str(name),
        "table_id": _id_of(str(name), recorded),
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
