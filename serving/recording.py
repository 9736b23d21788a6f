"""Which payload table an endpoint's configuration writes: tells the catalogue.

Recorded tables outlive their endpoint, and who may see them goes by the endpoint's name. So a name,
or a table, that belonged to a deleted endpoint may be taken again only by that endpoint's creator
and by administrators: else whoever comes next would read what others' clients sent."""

from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from capture import audit, catalog, errors, names
from serving import access, contract, registry, state

MOST_DELETIONS = 1000


def follow(
    connection: sa.Connection,
    endpoint: state.Endpoint,
    config: Mapping[str, Any],
    models: Sequence[registry.Model],
    who: access.Caller,
    now_ms: int,
) -> None:
    """Register the table that this configuration of the endpoint records to, with the columns of
    its models, and switch off any other one. Raises InvalidParameter for another's table."""
    meant = contract.capture(endpoint.name, config, endpoint.ai_gateway, endpoint.telemetry_config)
    full_name = str(names.table_name(meant[0])) if meant else None
    for known in catalog.everything(connection):
        if known.full_name == full_name:
            _refuse_anothers(connection, known, endpoint, who)
        elif known.endpoint_id == endpoint.id and known.enabled:
            catalog.switch_off(connection, known.full_name)
    if full_name is None:
        return
    columns = [(model.request_columns, model.looked_up_columns) for model in models]
    for request_columns, looked_up_columns in columns or [({}, {})]:
        catalog.record(
            connection,
            full_name,
            endpoint.id,
            endpoint.name,
            request_columns,
            looked_up_columns,
            now_ms,
        )


def stop(connection: sa.Connection, endpoint: state.Endpoint) -> None:
    """The endpoint is gone: its table stays, and takes no more rows."""
    for known in catalog.everything(connection):
        if known.endpoint_id == endpoint.id and known.enabled:
            catalog.switch_off(connection, known.full_name)


def refuse_name(connection: sa.Connection, name: str, who: access.Caller) -> None:
    """Raises AlreadyExists for the name of a deleted endpoint of somebody else, whose records are
    kept."""
    for known in catalog.everything(connection):
        if known.endpoint_name == name and not _may_take(connection, known, who):
            raise errors.AlreadyExists(
                f"The name '{name}' belonged to an endpoint whose records are kept; its creator or "
                "an administrator may take it again."
            )


def _refuse_anothers(
    connection: sa.Connection,
    known: catalog.RecordedTable,
    endpoint: state.Endpoint,
    who: access.Caller,
) -> None:
    if known.endpoint_id == endpoint.id:
        return
    owner = state.find_endpoint(connection, known.endpoint_name)
    alive = owner is not None and owner.id == known.endpoint_id
    if alive or not _may_take(connection, known, who):
        raise errors.InvalidParameter(
            f"Table '{known.full_name}' is recorded by "
            f"{'endpoint' if alive else 'the deleted endpoint'} '{known.endpoint_name}'; "
            "choose another table_name_prefix."
        )


def _may_take(connection: sa.Connection, known: catalog.RecordedTable, who: access.Caller) -> bool:
    """Whether the caller created the endpoint, deleted now, that this table belonged to."""
    if who.is_admin:
        return True
    deletions = audit.read(
        connection, MOST_DELETIONS, endpoint=known.endpoint_name, action="endpoint.delete"
    )
    befores = (row.before or {} for row in deletions)
    return any(
        before.get("id") == known.endpoint_id and before.get("creator") == who.user
        for before in befores
    )
