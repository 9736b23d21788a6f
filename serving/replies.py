"""Databricks serving shapes, as answers show them; contract.py knows them as requests. Pure."""

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from serving import access_state, attributes, configuration, replica_state, state

_PRIVATE = frozenset({"model_digest"})
_MIRRORED = {"entity_name": "model_name", "entity_version": "model_version"}
_NOT_MIRRORED = frozenset({"state", "min_provisioned_throughput", "max_provisioned_throughput"})
_OPTIONAL = (
    "description",
    "ai_gateway",
    "rate_limits",
    "email_notifications",
    "telemetry_config",
    "budget_policy_id",
)
STOPPED = "Stopped; start the endpoint to use it."


def rfc3339(unix_ms: int | None) -> str | None:
    """A time in UTC with milliseconds and `Z`."""
    if unix_ms is None:
        return None
    text = datetime.fromtimestamp(unix_ms / 1000, UTC).isoformat(timespec="milliseconds")
    return text.replace("+00:00", "Z")


def detailed(
    row: state.Endpoint,
    live: Mapping[tuple[str, int], state.Configuration],
    states: Mapping[str, replica_state.EntityState],
    level: str,
    base_url: str,
) -> dict[str, Any]:
    """The endpoint object of GET, create and update. live, states: at least this endpoint's."""
    active, pending = _of(row, row.active_version, live), _of(row, row.pending_version, live)
    reply = _common(row, active, states)
    reply["permission_level"] = level
    reply["route_optimized"] = row.route_optimized
    if active is not None:
        reply["config"] = config(row, active, states)
    if pending is not None and row.config_update != state.NOT_UPDATING:
        started = {"start_time": row.update_started_ms or pending.created_ms}
        reply["pending_config"] = config(row, pending, states) | started
    if row.update_message:
        reply["update_message"] = row.update_message
    if row.route_optimized:
        url = f"{base_url.rstrip('/')}/serving-endpoints/{row.name}/invocations"
        details = [{"type": "serving_endpoint", "resource_name": f"/serving-endpoints/{row.id}"}]
        reply["endpoint_url"] = url
        reply["data_plane_info"] = {
            "query_info": {"endpoint_url": url, "authorization_details": json.dumps(details)}
        }
    return reply


def summary(
    row: state.Endpoint,
    live: Mapping[tuple[str, int], state.Configuration],
    states: Mapping[str, replica_state.EntityState],
) -> dict[str, Any]:
    """The endpoint object of a list."""
    active, pending = _of(row, row.active_version, live), _of(row, row.pending_version, live)
    reply = _common(row, active, states)
    shown = active or pending
    if shown is not None:
        reply["config"] = config(row, shown, states)
    return reply


def _of(
    row: state.Endpoint,
    version: int | None,
    live: Mapping[tuple[str, int], state.Configuration],
) -> state.Configuration | None:
    return live.get((row.id, version)) if version is not None else None


def _common(
    row: state.Endpoint,
    active: state.Configuration | None,
    states: Mapping[str, replica_state.EntityState],
) -> dict[str, Any]:
    deployments = {key: each.deployment for key, each in states.items()}
    ready = configuration.is_ready(active.config if active else None, deployments, row.stopped)
    reply: dict[str, Any] = {
        "name": row.name,
        "id": row.id,
        "creator": row.creator,
        "creator_display_name": row.creator,
        "creation_timestamp": row.created_ms,
        "last_updated_timestamp": row.updated_ms,
        "state": {
            "ready": "READY" if ready else "NOT_READY",
            "config_update": row.config_update,
        },
        "tags": row.tags,
    }
    if row.stopped:
        reply["stopped"] = True
    return reply | {key: found for key in _OPTIONAL if (found := getattr(row, key)) is not None}


def config(
    row: state.Endpoint,
    numbered: state.Configuration,
    states: Mapping[str, replica_state.EntityState],
) -> dict[str, Any]:
    """A configuration with the states of its entities, under both spellings of entities."""
    entities = [
        _entity(entity, states, row.stopped) for entity in numbered.config["served_entities"]
    ]
    return {
        "served_entities": entities,
        "served_models": [_mirror(entity) for entity in entities],
        **plain_config(row.name, numbered.config),
        "config_version": numbered.config_version,
    }


def plain_config(endpoint: str, normalised: Mapping[str, Any]) -> dict[str, Any]:
    """Traffic and inference table of a configuration."""
    traffic = normalised["traffic_config"]
    shown: dict[str, Any] = {"traffic_config": {"routes": traffic["routes"]}}
    if traffic.get("sticky"):
        shown["traffic_config"]["sticky"] = traffic["sticky"]
    table = normalised.get("auto_capture_config")
    if table:
        named = {**attributes.table_defaults(endpoint), **table}
        payload = {"name": f"{named['table_name_prefix']}_payload", "status": "READY"}
        if not named.get("enabled", True):
            payload["status_message"] = "Switched off: its rows stay, and no more come."
        shown["auto_capture_config"] = {**named, "state": {"payload_table": payload}}
    return shown


def _entity(
    entity: Mapping[str, Any], states: Mapping[str, replica_state.EntityState], stopped: bool
) -> dict[str, Any]:
    shown = {key: value for key, value in entity.items() if key not in _PRIVATE}
    found = states.get(entity["id"])
    deployment, message = "DEPLOYMENT_CREATING", "Waiting to start."
    if stopped:
        deployment, message = "DEPLOYMENT_ABORTED", STOPPED
    elif found is not None:
        deployment, message = found.deployment, found.message
    shown["state"] = {"deployment": deployment, "deployment_state_message": message}
    return shown


def _mirror(entity: Mapping[str, Any]) -> dict[str, Any]:
    mirrored = {
        _MIRRORED.get(key, key): value for key, value in entity.items() if key not in _NOT_MIRRORED
    }
    return mirrored | {"state": entity["state"]}


def version(endpoint: str, numbered: state.Configuration) -> dict[str, Any]:
    """One line of the version history."""
    entities = [
        {key: value for key, value in entity.items() if key not in _PRIVATE}
        for entity in numbered.config["served_entities"]
    ]
    return {
        "config_version": numbered.config_version,
        "config": {"served_entities": entities, **plain_config(endpoint, numbered.config)},
        "created_by": numbered.created_by,
        "created_time": rfc3339(numbered.created_ms),
        "activated_time": rfc3339(numbered.activated_ms),
        "reason": numbered.reason,
        "origin": numbered.origin,
    }


_PRINCIPALS = {
    "user": "user_name",
    "group": "group_name",
    "service_principal": "service_principal_name",
}


def permissions(endpoint_id: str, grants: Iterable[access_state.Grant]) -> dict[str, Any]:
    """The permissions object of an endpoint; administrators' rights are inherited."""
    listed = [
        _grant(_PRINCIPALS[grant.kind], grant.principal.removeprefix("group:"), grant.level, None)
        for grant in grants
    ]
    listed.append(_grant("group_name", "admins", "CAN_MANAGE", "/serving-endpoints/"))
    return {
        "object_id": f"/serving-endpoints/{endpoint_id}",
        "object_type": "serving-endpoint",
        "access_control_list": listed,
    }


def _grant(key: str, principal: str, level: str, inherited_from: str | None) -> dict[str, Any]:
    permission: dict[str, Any] = {
        "permission_level": level,
        "inherited": inherited_from is not None,
    }
    if inherited_from is not None:
        permission["inherited_from_object"] = [inherited_from]
    return {key: principal, "display_name": principal, "all_permissions": [permission]}


PERMISSION_LEVELS = {
    "permission_levels": [
        {"permission_level": "CAN_VIEW", "description": "Can see the endpoint and its metrics"},
        {"permission_level": "CAN_QUERY", "description": "Can also query it and send labels"},
        {"permission_level": "CAN_MANAGE", "description": "Can also change and delete it"},
    ]
}


# --- the OpenAPI description of one endpoint ------------------------------------------------------

_SCHEMAS = {
    "double": {"type": "number", "format": "double"},
    "float": {"type": "number", "format": "float"},
    "long": {"type": "integer", "format": "int64"},
    "integer": {"type": "integer", "format": "int32"},
    "string": {"type": "string"},
    "boolean": {"type": "boolean"},
    "datetime": {"type": "string", "format": "date-time"},
}


def openapi(
    endpoint: str,
    entities: Sequence[str],
    columns: Mapping[str, tuple[str, bool]],
    base_url: str,
) -> dict[str, Any]:
    """OpenAPI 3 of an endpoint's query routes. columns: name -> (MLflow type, required), of what a
    client sends; empty for models without named columns."""
    paths = [f"/serving-endpoints/{endpoint}/invocations"]
    paths += [f"/serving-endpoints/{endpoint}/served-models/{e}/invocations" for e in entities]
    values = {name: _nullable(kind, need) for name, (kind, need) in columns.items()}
    required = [name for name, (_, need) in columns.items() if need]
    record = {"type": "object", "properties": values, "required": required}
    by_column = {
        "type": "object",
        "properties": {name: {"type": "array", "items": kind} for name, kind in values.items()},
        "required": required,
    }
    sides = {
        "client_request_id": {"type": "string", "maxLength": 1024},
        "usage_context": {"type": "object", "additionalProperties": {"type": "string"}},
        "params": {"type": "object"},
    }
    formats = {
        "dataframe_records": {"type": "array", "items": record},
        "dataframe_split": {
            "type": "object",
            "properties": {
                "columns": {
                    "type": "array",
                    "items": {"enum": list(columns)} if columns else {"type": "string"},
                    "minItems": len(required),
                    "uniqueItems": True,
                },
                "index": {"type": "array", "items": {}},
                "data": {
                    "type": "array",
                    "items": {"type": "array", "items": {}, "minItems": len(required)},
                },
            },
            "required": ["columns", "data"],
        },
        "instances": {"type": "array", "items": record if columns else {}},
        "inputs": by_column if columns else {},
    }
    body = {
        "oneOf": [
            {"type": "object", "properties": {name: schema, **sides}, "required": [name]}
            for name, schema in formats.items()
        ]
    }
    answer = {
        "type": "object",
        "properties": {"predictions": {"type": "array", "items": {}}},
        "required": ["predictions"],
    }
    operation = {
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {"schema": body},
                "text/csv": {"schema": {"type": "string", "description": _table(columns)}},
                "application/x-parquet": {
                    "schema": {
                        "type": "string",
                        "format": "binary",
                        "description": _table(columns),
                    }
                },
            },
        },
        "responses": {
            "200": {
                "description": "Successful operation",
                "content": {"application/json": {"schema": answer}},
            }
        },
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": endpoint, "version": "1"},
        "servers": [{"url": base_url}],
        "paths": {path: {"post": operation} for path in paths},
    }


def _table(columns: Mapping[str, object]) -> str:
    named = f", with columns {', '.join(columns)}" if columns else ""
    return f"A table{named}; one answer a row."


def _nullable(kind: str, required: bool) -> dict[str, Any]:
    schema = dict(_SCHEMAS[kind])
    return schema if required else {**schema, "type": [schema["type"], "null"]}
