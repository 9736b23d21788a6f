"""Routes of Databricks' second generation of monitors, `/api/data-quality/v1`, and the look-up of
schemas that it needs: the same monitors as in `routes_monitors.py`, named by their table's id."""

from typing import Any

from fastapi import APIRouter, Depends
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from capture import catalog, database, errors
from monitors import (
    contract,
    object_ids,
    operations,
    routing_context,
    state,
    update_masks,
)
from monitors import data_quality_contract as shapes
from monitors.routing_context import Context

MONITORS = "/api/data-quality/v1/monitors"
SCHEMAS = "/api/2.1/unity-catalog/schemas"


class DataQuality:
    """`/api/data-quality/v1/monitors...` (databricks-monitoring.md, 1.2)."""

    def __init__(self, context: Context) -> None:
        self.context = context

    def router(self) -> APIRouter:
        router = APIRouter(tags=["monitors"])
        monitor = MONITORS + "/{object_type}/{object_id}"
        refreshes, refresh = monitor + "/refreshes", monitor + "/refreshes/{refresh_id}"
        for method, path, handler in (
            ("POST", MONITORS, self.create),
            ("GET", MONITORS, self.listed),
            ("GET", monitor, self.get),
            ("PATCH", monitor, self.update),
            ("DELETE", monitor, self.delete),
            ("POST", refreshes, self.refresh),
            ("GET", refreshes, self.refreshes),
            ("GET", refresh, self.refresh_state),
            ("PATCH", refresh, self.update_refresh),
            ("DELETE", refresh, self.delete_refresh),
            ("POST", refresh + "/cancel", self.cancel),
            ("GET", SCHEMAS + "/{schema}", self.schema),
        ):
            router.add_api_route(path, handler, methods=[method])
        return router

    # --- monitors --------------------------------------------------------------------------------

    async def create(
        self, request: Request, raw: bytes = Depends(routing_context.raw_body)
    ) -> dict[str, Any]:
        table_id, profiling = shapes.new_monitor(contract.body(raw))
        name, recorded = await run_in_threadpool(self._table, request, table_id)
        config = await run_in_threadpool(self._stored, profiling, {})
        wanted = operations.Wanted(name, recorded, config, shapes.spelled)
        return shapes.monitor_info(await operations.create(self.context, request, wanted))

    def _table(self, request: Request, table_id: str) -> tuple[str, catalog.RecordedTable | None]:
        """Name of a table that the caller may watch. Raises DoesNotExist, PermissionDenied."""
        unknown = f"Table with id '{table_id[:50]}' does not exist."
        wanted, name = object_ids.canonical(table_id), None
        if wanted is not None:
            with database.reading(self.context.engine) as connection:
                name = object_ids.find_table(connection, self.context.settings, wanted)
        if name is None:
            raise errors.DoesNotExist(unknown)
        try:
            return name, operations.recorded_beside(self.context, request, name, "CAN_MANAGE")
        except errors.DoesNotExist:
            raise errors.DoesNotExist(unknown) from None

    def _stored(self, profiling: dict[str, Any], before: dict[str, Any]) -> dict[str, Any]:
        wanted = profiling["output_schema_id"].lower()
        output = before.get("output_schema_name")
        if output is None or object_ids.schema_id(output) != wanted:
            with database.reading(self.context.engine) as connection:
                output = object_ids.find_schema(connection, self.context.settings, wanted)
        if output is None:
            raise errors.InvalidParameter(
                f"{shapes.PROFILING}.output_schema_id: no schema has the id '{wanted[:50]}'; "
                f"expected the schema_id of GET {SCHEMAS}/<catalog>.<schema>."
            )
        return shapes.stored(profiling, output, before)

    def listed(self, request: Request) -> dict[str, Any]:
        """All monitors that the caller may see, by table."""
        shown, further = operations.page(self.context, request)
        return {"monitors": [shapes.monitor_info(monitor) for monitor in shown], **further}

    def get(self, request: Request, object_type: str, object_id: str) -> dict[str, Any]:
        return shapes.monitor_info(self._monitor(request, object_type, object_id, "CAN_VIEW"))

    def _monitor(
        self, request: Request, object_type: str, object_id: str, level: str
    ) -> state.Monitor:
        """The monitor of a table, if the caller has `level`. Raises what `check_type` raises,
        DoesNotExist, PermissionDenied."""
        shapes.check_type(object_type)
        unknown = f"Cannot find a monitor with ID: {object_id[:50]}."
        wanted, found = object_ids.canonical(object_id), None
        if wanted is not None:
            with database.reading(self.context.engine) as connection:
                found = state.monitor_of_id(connection, wanted)
        if found is None:
            raise errors.DoesNotExist(unknown)
        operations.require(self.context, request, found.table_name, found.endpoint, level, unknown)
        return found

    async def update(
        self,
        request: Request,
        object_type: str,
        object_id: str,
        raw: bytes = Depends(routing_context.raw_body),
    ) -> dict[str, Any]:
        """Replace what `update_mask` names."""
        asked = routing_context.query(request, ("update_mask",))
        found = await run_in_threadpool(
            self._monitor, request, object_type, object_id, "CAN_MANAGE"
        )
        paths = update_masks.parse(asked.get("update_mask"))
        given = contract.body(raw)
        shapes.same_object(given, object_type, found.table_id)
        present = shapes.profiling(found.config)
        profiling = update_masks.apply(present, shapes.to_change(given), paths)
        config = await run_in_threadpool(self._stored, profiling, found.config)
        return shapes.monitor_info(
            await operations.update(self.context, request, found, config, shapes.spelled)
        )

    def delete(self, request: Request, object_type: str, object_id: str) -> dict[str, Any]:
        found = self._monitor(request, object_type, object_id, "CAN_MANAGE")
        operations.delete(self.context, request, found)
        return {}

    # --- refreshes -------------------------------------------------------------------------------

    def refresh(
        self,
        request: Request,
        object_type: str,
        object_id: str,
        raw: bytes = Depends(routing_context.raw_body),
    ) -> dict[str, Any]:
        """Queue a refresh; `until` ends rows, labels and the time of decisions."""
        found = self._monitor(request, object_type, object_id, "CAN_MANAGE")
        given = contract.body(raw)
        asked = contract.parse(shapes.Refresh, given)
        shapes.same_object(given, object_type, found.table_id)
        return shapes.refresh_info(found, operations.refresh(self.context, found, asked.until))

    def refreshes(self, request: Request, object_type: str, object_id: str) -> dict[str, Any]:
        """Newest first."""
        found = self._monitor(request, object_type, object_id, "CAN_VIEW")
        asked = routing_context.page(routing_context.query(request, ("page_size", "page_token")))
        before_id = None if asked.after is None else asked.after[0]
        with database.reading(self.context.engine) as connection:
            newest = state.newest_refreshes(connection, found.table_name, asked.size + 1, before_id)
        shown = newest[: asked.size]
        reply: dict[str, Any] = {"refreshes": [shapes.refresh_info(found, one) for one in shown]}
        if len(newest) > len(shown):
            reply["next_page_token"] = routing_context.page_token(shown[-1].id, "")
        return reply

    def _refresh(self, found: state.Monitor, refresh_id: str) -> state.Refresh:
        with database.reading(self.context.engine) as connection:
            number = operations.refresh_number(refresh_id)
            return state.get_refresh(connection, found.table_name, number)

    def refresh_state(
        self, request: Request, object_type: str, object_id: str, refresh_id: str
    ) -> dict[str, Any]:
        found = self._monitor(request, object_type, object_id, "CAN_VIEW")
        return shapes.refresh_info(found, self._refresh(found, refresh_id))

    def update_refresh(
        self,
        request: Request,
        object_type: str,
        object_id: str,
        refresh_id: str,
        raw: bytes = Depends(routing_context.raw_body),
    ) -> dict[str, Any]:
        """Known to the contract, not offered, once the request is found to be a sound one."""
        asked = routing_context.query(request, ("update_mask",))
        found = self._monitor(request, object_type, object_id, "CAN_MANAGE")
        self._refresh(found, refresh_id)
        given = contract.body(raw)
        contract.parse(shapes.Refresh, given)
        shapes.same_object(given, object_type, found.table_id)
        update_masks.check_refresh(asked.get("update_mask"))
        raise errors.NotImplementedHere(
            "What is said of a refresh cannot be changed; it can be cancelled or deleted."
        )

    def delete_refresh(
        self, request: Request, object_type: str, object_id: str, refresh_id: str
    ) -> dict[str, Any]:
        """Forget a refresh that has ended; what it found stays."""
        found = self._monitor(request, object_type, object_id, "CAN_MANAGE")
        number = operations.refresh_number(refresh_id)
        with database.transaction(self.context.engine) as connection:
            state.delete_refresh(connection, found.table_name, number)
        return {}

    def cancel(
        self, request: Request, object_type: str, object_id: str, refresh_id: str
    ) -> dict[str, Any]:
        """A waiting refresh ends at once, a running one between two files."""
        found = self._monitor(request, object_type, object_id, "CAN_MANAGE")
        number = operations.refresh_number(refresh_id)
        with database.transaction(self.context.engine) as connection:
            state.cancel_refresh(connection, found.table_name, number, routing_context.now_ms())
            refresh = state.get_refresh(connection, found.table_name, number)
        return {"refresh": shapes.refresh_info(found, refresh)}

    # --- schemas ---------------------------------------------------------------------------------

    def schema(self, request: Request, schema: str) -> dict[str, Any]:
        """Name and id of a schema in which a table lies, or is to be written."""
        self.context.access.require(request, None, "CAN_VIEW")
        contract.check_schema(schema, "schema")
        with database.reading(self.context.engine) as connection:
            found = object_ids.find_schema(
                connection, self.context.settings, object_ids.schema_id(schema)
            )
        if found is None:
            raise errors.DoesNotExist(f"Schema '{schema}' does not exist.")
        catalog_name, _, schema_name = found.partition(".")
        return {
            "name": schema_name,
            "catalog_name": catalog_name,
            "full_name": found,
            "schema_id": object_ids.schema_id(found),
        }
