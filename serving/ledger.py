"""What the server's own tables are told of entities: which one served what since when.

Each fact is noted in the SQL transaction that makes it and comes to its Delta table once
(`capture.ledger`). Usage is not here: gateways write it to their log, a row per request; nor who
did what: that is `capture.audit`."""

from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa

from capture import ledger as queue
from serving import contract

_TYPES = {
    "custom": "CUSTOM_MODEL",
    "external": "EXTERNAL_MODEL",
    "foundation": "FOUNDATION_MODEL",
}


def configured(
    connection: sa.Connection,
    endpoint: tuple[str, str],
    config_version: int,
    config: Mapping[str, Any],
    now_ms: int,
    deleted: bool = False,
) -> None:
    """Note the entities of a configuration, for `system.serving.served_entities`: as they were
    accepted, and those of the newest once more when their endpoint is deleted.

    endpoint: (id, name)."""
    shares = contract.percentages(config)
    facts = [
        {
            **_entity(entity),
            "endpoint_id": endpoint[0],
            "endpoint_name": endpoint[1],
            "endpoint_config_version": config_version,
            "change_time": now_ms * 1000,
            "endpoint_delete_time": now_ms * 1000 if deleted else None,
            "traffic_percentage": shares.get(entity["name"], 0),
        }
        for entity in config["served_entities"]
    ]
    queue.write(connection, queue.ENTITIES, facts)


def _entity(entity: Mapping[str, Any]) -> dict[str, Any]:
    kind = contract.kind(entity)
    fact: dict[str, Any] = {
        "served_entity_id": entity["id"],
        "created_by": entity.get("creator"),
        "served_entity_name": entity["name"],
        "entity_type": _TYPES[kind],
        "entity_name": contract.model_name(entity),
        "entity_version": contract.model_version(entity) or None,
        "task": (entity.get("external_model") or {}).get("task"),
    }
    if kind == "external":
        fact["external_model_config"] = {"provider": entity["external_model"].get("provider")}
    elif kind == "foundation":
        names = ("min_provisioned_throughput", "max_provisioned_throughput")
        fact["foundation_model_config"] = {name: entity.get(name) for name in names}
    else:
        least, most = contract.concurrency(entity)
        fact["custom_model_config"] = {
            "min_concurrency": least,
            "max_concurrency": most,
            "compute_type": entity.get("workload_type") or "CPU",
        }
    return fact
