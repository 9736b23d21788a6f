"""Which payload table an endpoint's configuration writes: tells the catalogue."""

from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from capture import catalog, errors, names
from serving import contract, registry, state


def follow(
    connection: sa.Connection,
    endpoint: state.Endpoint,
    config: Mapping[str, Any],
    models: Sequence[registry.Model],
    now_ms: int,
) -> None:
    """Register the table that this configuration of the endpoint records to, with the columns of
    its models, and switch off any other one. Raises InvalidParameter if another endpoint has it."""
    meant = contract.capture(endpoint.name, config, endpoint.ai_gateway, endpoint.telemetry_config)
    full_name = str(names.table_name(meant[0])) if meant else None
    for known in catalog.everything(connection):
        if known.full_name == full_name:
            _refuse_anothers(connection, known, endpoint)
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


def _refuse_anothers(
    connection: sa.Connection, known: catalog.RecordedTable, endpoint: state.Endpoint
) -> None:
    if known.endpoint_id == endpoint.id:
        return
    owner = state.find_endpoint(connection, known.endpoint_name)
    if owner is not None and owner.id == known.endpoint_id:
        raise errors.InvalidParameter(
            f"Table '{known.full_name}' is recorded by endpoint '{known.endpoint_name}'; "
            "choose another table_name_prefix."
        )
