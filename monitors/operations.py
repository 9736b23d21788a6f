"""What the routes of monitors do, whichever generation of Databricks' shapes it is asked in: one
store, one set of checks, one judgement on who may do what."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from capture import audit, catalog, database, errors, names
from monitors import alert_state, alerts, contract, object_ids, routing_context, state
from monitors.routing_context import Context

SYSTEM = "system."


def monitor_for(context: Context, request: Request, table: str, level: str) -> state.Monitor:
    """The monitor of a table, if the caller has `level` on its endpoint. Raises DoesNotExist, in
    the same words where there is none and where the caller may not know of it."""
    name = str(names.table_name(table))
    with database.reading(context.engine) as connection:
        try:
            found = state.monitor(connection, name)
        except errors.DoesNotExist:
            found = None
    unknown = f"Table '{name}' has no monitor."
    if found is None:
        raise errors.DoesNotExist(unknown)
    require(context, request, name, found.endpoint, level, unknown)
    return found


def require(
    context: Context, request: Request, table: str, endpoint: str | None, level: str, unknown: str
) -> routing_context.Caller:
    """The caller, if they have `level` on the endpoint of a table; the server's own tables are for
    administrators. Raises PermissionDenied, and DoesNotExist in these words for those who may not
    know that there is such an endpoint."""
    wanted = "CAN_MANAGE" if table.lower().startswith(SYSTEM) else level
    try:
        return context.access.require(request, endpoint, wanted)
    except errors.DoesNotExist:
        raise errors.DoesNotExist(unknown) from None


def may_see(context: Context, request: Request, monitor: state.Monitor) -> bool:
    """May the caller see this monitor?"""
    try:
        require(context, request, monitor.table_name, monitor.endpoint, "CAN_VIEW", "")
    except (errors.PermissionDenied, errors.DoesNotExist):
        return False
    return True


def table_name(context: Context, table: str) -> str:
    """Full name of a table that a caller names, in the letter case that it has."""
    name = str(names.table_name(table))
    with database.reading(context.engine) as connection:
        return object_ids.spelled(connection, context.settings, name)


def recorded_beside(
    context: Context, request: Request, table: str, level: str
) -> catalog.RecordedTable | None:
    """The catalogue's entry of the payload table beside `table`, if the caller may see it."""
    payload = str(names.table_name(table).sibling("payload"))
    with database.reading(context.engine) as connection:
        recorded = catalog.get(connection, payload)
    endpoint = recorded.endpoint_name if recorded else None
    require(context, request, table, endpoint, level, f"Table '{table}' does not exist.")
    return recorded


def page(context: Context, request: Request) -> tuple[list[state.Monitor], dict[str, Any]]:
    """The asked page of the monitors that the caller may see, by table, and what leads to the next
    page, if there is one."""
    context.access.require(request, None, "CAN_VIEW")
    asked = routing_context.page(routing_context.query(request, ("page_size", "page_token")))
    with database.reading(context.engine) as connection:
        found = state.all_monitors(connection)
    visible = [m for m in found if may_see(context, request, m)]
    if asked.after is not None:
        visible = [m for m in visible if m.table_name > asked.after[1]]
    shown = visible[: asked.size]
    if len(visible) == len(shown):
        return shown, {}
    return shown, {"next_page_token": routing_context.page_token(0, shown[-1].table_name)}


@dataclass(frozen=True, slots=True)
class Wanted:
    """A monitor to be made. recorded: the payload table beside its table; config: checked;
    spelled: what the caller calls a field, from what the stored one is called."""

    table_name: str
    recorded: catalog.RecordedTable | None
    config: dict[str, Any]
    spelled: Callable[[str], str] = str

    @property
    def endpoint(self) -> str | None:
        return self.recorded.endpoint_name if self.recorded else None


async def create(context: Context, request: Request, wanted: Wanted) -> state.Monitor:
    """A new monitor, with the rules that an endpoint without any begins with."""
    name, config = wanted.table_name, wanted.config
    if wanted.recorded is None:  # a recorded table may come with its first request
        info = await table_info(context, name)
        if not info["exists"]:
            raise errors.DoesNotExist(f"Table '{name}' does not exist.")
        _check_columns(config, info["columns"], wanted.spelled)
    await _check_expressions(context, name, config)
    return await run_in_threadpool(_create, context, request, wanted)


def _create(context: Context, request: Request, wanted: Wanted) -> state.Monitor:
    name, config, endpoint = wanted.table_name, wanted.config, wanted.endpoint
    caller = context.access.require(request, endpoint, "CAN_MANAGE")
    now = routing_context.now_ms()
    table_id = object_ids.table_id(name, wanted.recorded)
    with database.transaction(context.engine) as connection:
        state.create_monitor(connection, name, table_id, config, caller.user, now)
        if "baseline_table_name" in config:
            spec = {"kind": "training", "table": config["baseline_table_name"]}
            state.add_baseline(connection, name, spec, caller.user, now)
        if endpoint is not None and not alert_state.rules(connection, endpoint):
            for rule in alerts.defaults(endpoint, now):
                alert_state.add_rule(connection, rule)
        audit.write(
            connection,
            caller.user,
            "monitor.create",
            now,
            endpoint=endpoint,
            after=audited(name, config),
        )
        return state.monitor(connection, name)


def audited(table: str, config: dict[str, Any]) -> dict[str, Any]:
    """A monitor as the audit tells it."""
    return {"table": table, **config}


def delete(context: Context, request: Request, found: state.Monitor) -> None:
    """The monitor goes; its metric tables stay."""
    caller = context.access.require(request, found.endpoint, "CAN_MANAGE")
    with database.transaction(context.engine) as connection:
        state.delete_monitor(connection, found.table_name)
        audit.write(
            connection,
            caller.user,
            "monitor.delete",
            routing_context.now_ms(),
            endpoint=found.endpoint,
            before=audited(found.table_name, found.config),
        )


async def update(
    context: Context,
    request: Request,
    found: state.Monitor,
    config: dict[str, Any],
    spelled: Callable[[str], str] = str,
) -> state.Monitor:
    """The monitor with other content. found: what the content was made from; if somebody changed
    it meanwhile, nothing happens; spelled: as in `Wanted`. Raises Conflict."""
    if found.endpoint is None:
        info = await table_info(context, found.table_name)
        if info["exists"]:  # without its table a monitor can still be mended
            _check_columns(config, info["columns"], spelled)
    await _check_expressions(context, found.table_name, config)
    return await run_in_threadpool(_update, context, request, found, config)


def _update(
    context: Context, request: Request, found: state.Monitor, config: dict[str, Any]
) -> state.Monitor:
    caller = context.access.require(request, found.endpoint, "CAN_MANAGE")
    name, now = found.table_name, routing_context.now_ms()
    before, after = (c.get("baseline_table_name") for c in (found.config, config))
    with database.transaction(context.engine) as connection:
        present = state.monitor(connection, name).monitor_version
        if present != found.monitor_version:
            raise errors.Conflict(
                f"The monitor of '{name}' was changed meanwhile: version {present} follows "
                f"version {found.monitor_version}; read it again and repeat the change."
            )
        state.replace_config(connection, name, config, now)
        if after and after != before:
            spec = {"kind": "training", "table": after}
            state.add_baseline(connection, name, spec, caller.user, now)
        elif before and not after:
            used = state.current_baseline(connection, name)
            if used is not None and used.spec == {"kind": "training", "table": before}:
                state.add_baseline(connection, name, {"kind": "none"}, caller.user, now)
        audit.write(
            connection,
            caller.user,
            "monitor.update",
            now,
            endpoint=found.endpoint,
            before=audited(name, found.config),
            after=audited(name, config),
        )
        return state.monitor(connection, name)


def refresh(context: Context, monitor: state.Monitor, until: str | None) -> state.Refresh:
    """A refresh that waits for its turn. until: RFC 3339."""
    until_ms = None if until is None else contract.unix_ms(contract.moment(until, "until"))
    name, now = monitor.table_name, routing_context.now_ms()
    with database.transaction(context.engine) as connection:
        refresh_id = state.request_refresh(connection, name, "MANUAL", until_ms, now)
        return state.get_refresh(connection, name, refresh_id)


def refresh_number(refresh_id: str) -> int:
    """The id of a refresh in a path. Raises DoesNotExist for what cannot be one."""
    if not refresh_id.isascii() or not refresh_id.isdigit() or len(refresh_id) > 18:
        raise errors.DoesNotExist(f"Refresh '{refresh_id[:50]}' does not exist.")
    return int(refresh_id)


async def table_info(context: Context, table: str) -> dict[str, Any]:
    """Existence and columns of a Delta table."""
    asked = {"table": table}
    return await context.reader.ask("table_info", asked, routing_context.READ_SECONDS)


async def _check_expressions(context: Context, table: str, config: dict[str, Any]) -> None:
    """Slicing expressions and custom metrics hold allowed nodes and columns that are there. Raises
    InvalidParameter.

    Asked of the reading child: what parses and computes is not loaded here."""
    if config.get("slicing_exprs") or config.get("custom_metrics"):
        asked = {"table": table, "config": config}
        await context.reader.ask("check_expressions", asked, routing_context.READ_SECONDS)


def _check_columns(
    config: dict[str, Any], columns: list[dict[str, Any]], spelled: Callable[[str], str]
) -> None:
    """The columns that a configuration names are there. Labels may lie in a table beside."""
    present = [column["name"] for column in columns]
    kind = next(kind for kind in contract.PROFILE_TYPES if kind in config)
    for field in ("timestamp_col", "prediction_col", "model_id_col", "prediction_proba_col"):
        name = config[kind].get(field)
        if name is not None and name not in present:
            raise errors.InvalidParameter(
                f"{spelled(f'{kind}.{field}')}: the table has no column '{name[:200]}'; "
                f"it has {', '.join(present)[:500]}."
            )
