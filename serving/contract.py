"""Databricks serving shapes, in and out; no other file knows their field names. Pure.

Normalised configuration, the one form in which configurations are kept:

    {"served_entities": [{"id", "name", "entity_name", "entity_version", ...}],
     "traffic_config": {"routes": [{"served_model_name", "served_entity_name",
                                    "traffic_percentage"}],
                        "sticky": {"key", "salt"} | null},
     "auto_capture_config": {...} | null}
"""

from collections.abc import Mapping
from typing import Any, Literal

ADMIN_USER = "admin"
SERVICE_USER = "service"

WORKLOAD_SIZES = {"Small": (4, 4), "Medium": (8, 16), "Large": (16, 64)}


def percentages(config: Mapping[str, Any]) -> dict[str, int]:
    """Traffic in whole percent by entity name."""
    traffic = config.get("traffic_config") or {}
    routes = traffic.get("routes") or []
    return {route["served_entity_name"]: route["traffic_percentage"] for route in routes}


def kind(entity: Mapping[str, Any]) -> Literal["custom", "external", "foundation"]:
    """What an entity is: a registered model, a provider's model, or a foundation model."""
    if entity.get("external_model"):
        return "external"
    throughput = ("min_provisioned_throughput", "max_provisioned_throughput")
    if entity.get("provisioned_model_units") or any(entity.get(key) for key in throughput):
        return "foundation"
    return "custom"


def model_name(entity: Mapping[str, Any]) -> str:
    """The registered model's or the external model's name."""
    external = entity.get("external_model")
    return external["name"] if external else entity["entity_name"]


def model_version(entity: Mapping[str, Any]) -> str:
    """The registered model's version; empty for external models."""
    return entity.get("entity_version") or ""


def concurrency(entity: Mapping[str, Any]) -> tuple[int, int]:
    """Provisioned concurrency (least, most): requests in predict at a time."""
    low, high = WORKLOAD_SIZES[entity.get("workload_size") or "Small"]
    if entity.get("max_provisioned_concurrency") is not None:
        high = entity["max_provisioned_concurrency"]
        low = entity.get("min_provisioned_concurrency") or 0
    return (0 if entity.get("scale_to_zero_enabled") else low), high


def capture(
    endpoint: str,
    config: Mapping[str, Any],
    gateway: Mapping[str, Any] | None,
    telemetry: Mapping[str, Any] | None,
) -> tuple[str, float, Literal["process", "power"]] | None:
    """(full payload table name, sampling fraction, acknowledgement); None: nothing is recorded.

    The newest generation switched on decides: telemetry_config, ai_gateway, auto_capture."""
    newest = (telemetry or {}).get("inference_table_config")
    if newest and newest.get("name"):
        parts = newest["name"].split(".")
        catalog, schema, table = ("main", "default", *parts)[-3:]
        full_name = f"{catalog}.{schema}.{table.removesuffix('_payload')}_payload"
        return full_name, _fraction(newest), newest.get("acknowledgement") or "process"
    for older in ((gateway or {}).get("inference_table_config"), config.get("auto_capture_config")):
        if older and older.get("enabled", True):
            catalog = older.get("catalog_name") or "main"
            schema = older.get("schema_name") or "default"
            prefix = older.get("table_name_prefix") or endpoint
            full_name = f"{catalog}.{schema}.{prefix}_payload"
            return full_name, _fraction(older), older.get("acknowledgement") or "process"
    return None


def _fraction(table: Mapping[str, Any]) -> float:
    found = table.get("sampling_fraction")
    return 1.0 if found is None else float(found)
