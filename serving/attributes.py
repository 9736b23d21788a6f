"""Attributes of an endpoint beside its configuration, as requests bring them: inference table,
tags, limits, AI gateway, notifications, telemetry. Pure."""

from collections.abc import Mapping
from typing import Any

from capture import errors, names
from serving import fields

TELEMETRY = "TELEMETRY_FEATURE_"
INFERENCE_TABLE = f"{TELEMETRY}INFERENCE_TABLE"
SYSTEM = "system"  # the catalog of the server's own tables
OTHER_CATALOG = f"a catalog other than '{SYSTEM}'"
MOST_TAGS = 20
MOST_PREFIX = 100  # so that the suffixes of our tables fit into the 128 characters of a name


def table_defaults(endpoint: str) -> dict[str, str]:
    """Names of an inference table that gives none."""
    return {"catalog_name": "main", "schema_name": "default", "table_name_prefix": endpoint}


def inference_table(found: fields.Field) -> dict[str, Any]:
    """`auto_capture_config`, or `inference_table_config` of a gateway; ours beside the documented
    fields: sampling_fraction 0..1 and acknowledgement `process` | `power`."""
    table: dict[str, Any] = {}
    for key in ("catalog_name", "schema_name", "table_name_prefix"):
        if (part := found.get(key)) is not None:
            pattern = "1 to 128 letters, digits, '_' or '-'"
            table[key] = part.matching(names.PART_PATTERN, pattern)
    if table.get("catalog_name") == SYSTEM:
        raise found.need("catalog_name").refuse(OTHER_CATALOG)
    prefix = table.get("table_name_prefix", "")
    if len(prefix) > MOST_PREFIX:
        raise errors.InvalidParameter(
            f"{found.path('table_name_prefix')}: expected at most {MOST_PREFIX} characters, "
            f"so that the names of its tables fit, found {len(prefix)}."
        )
    enabled = found.get("enabled")
    table["enabled"] = enabled.flag() if enabled is not None else True
    _recording(found, table)
    return table


def named_as_before(asked: dict[str, Any], before: Mapping[str, Any] | None) -> dict[str, Any]:
    """A gateway's inference table under the names that it has, where none are given: switched on
    again, it goes on with the table it had."""
    names_before = (
        {key: before[key] for key in table_defaults("") if key in before} if before else {}
    )
    return {**names_before, **asked}


def _recording(found: fields.Field, table: dict[str, Any]) -> None:
    if (fraction := found.get("sampling_fraction")) is not None:
        table["sampling_fraction"] = fraction.number(0, 1)
    if (policy := found.get("acknowledgement")) is not None:
        table["acknowledgement"] = policy.choice(("process", "power"))


def tags(found: fields.Field, present: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """`present` tags with these added or overwritten, by key in order of arrival."""
    merged = {tag["key"]: tag for tag in present}
    seen: set[str] = set()
    for item in found.items(MOST_TAGS):
        key = item.need("key").text(128)
        if key in seen:
            raise errors.InvalidParameter(f"{item.where}.key: '{key}' comes twice.")
        seen.add(key)
        value = fields.text(item, "value", 256, least=0)
        merged[key] = {"key": key} if value is None else {"key": key, "value": value}
    if len(merged) > MOST_TAGS:
        raise errors.InvalidParameter(
            f"{found.where}: an endpoint has at most {MOST_TAGS} tags, found {len(merged)}."
        )
    return list(merged.values())


def patched_tags(body: Any, present: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Tags after PATCH .../tags: deletions first, then additions."""
    root = fields.body(body)
    gone: set[str] = set()
    if (dropped := root.get("delete_tags")) is not None:
        gone = {each.text(128) for each in dropped.items()}
    kept = [tag for tag in present if tag["key"] not in gone]
    added = root.get("add_tags")
    return tags(added, kept) if added is not None else kept


def rate_limits(found: fields.Field) -> list[dict[str, Any]]:
    """The deprecated `rate_limits`: calls per minute by endpoint or user."""
    limits = []
    for item in found.items(100):
        key = item.get("key")
        limits.append(
            {
                "calls": item.need("calls").integer(0),
                "renewal_period": item.need("renewal_period").choice(("minute",)),
                "key": key.choice(("user", "endpoint")) if key else "endpoint",
            }
        )
    return limits


def ai_gateway(root: fields.Field) -> dict[str, Any]:
    """An AI Gateway configuration. Raises InvalidParameter; NotImplementedHere, after everything
    was validated, for what only language models have: guardrails, token limits, fallbacks."""
    gateway: dict[str, Any] = {}
    if (table := root.get("inference_table_config")) is not None:
        gateway["inference_table_config"] = inference_table(table)
    if (usage := root.get("usage_tracking_config")) is not None:
        enabled = usage.get("enabled")
        gateway["usage_tracking_config"] = {"enabled": enabled.flag() if enabled else False}
    unoffered: list[str] = []
    if (limits := root.get("rate_limits")) is not None:
        gateway["rate_limits"] = [_gateway_limit(each, unoffered) for each in limits.items(100)]
    if (guardrails := root.get("guardrails")) is not None:
        _guardrails(guardrails, unoffered)
    if (fallback := root.get("fallback_config")) is not None:
        enabled = fallback.get("enabled")
        gateway["fallback_config"] = {"enabled": enabled.flag() if enabled else False}
        if gateway["fallback_config"]["enabled"]:
            unoffered.append("Fallbacks")
    if unoffered:
        raise errors.NotImplementedHere(f"{unoffered[0]} are not offered for custom models yet.")
    return gateway


def _gateway_limit(item: fields.Field, unoffered: list[str]) -> dict[str, Any]:
    key = item.get("key")
    limit: dict[str, Any] = {
        "renewal_period": item.need("renewal_period").choice(("minute",)),
        "key": key.choice(("endpoint", "user", "user_group", "service_principal"))
        if key
        else "endpoint",
    }
    calls, token_count = item.get("calls"), item.get("tokens")
    if calls is None and token_count is None:
        raise errors.InvalidParameter(f"{item.where}: calls or tokens is needed, found none.")
    if calls is not None:
        limit["calls"] = calls.integer(0)
    if token_count is not None:
        token_count.integer(0)
        unoffered.append("Token limits")
    if limit["key"] in ("user_group", "service_principal"):
        limit["principal"] = item.need("principal").text(256)
    if limit["key"] == "user_group":
        unoffered.append("Limits of user groups")
    return limit


def _guardrails(found: fields.Field, unoffered: list[str]) -> None:
    for side in ("input", "output"):
        rules = found.get(side)
        if rules is None:
            continue
        for key in ("invalid_keywords", "valid_topics"):
            if (words := rules.get(key)) is not None:
                for word in words.items(1000):
                    word.text(256)
        if (safety := rules.get("safety")) is not None:
            safety.flag()
        if (pii := rules.get("pii")) is not None and (behavior := pii.get("behavior")):
            behavior.choice(("NONE", "BLOCK", "MASK"))
        unoffered.append("Guardrails")


def notifications(root: fields.Field) -> dict[str, Any] | None:
    """`email_notifications` of a body: lists of addresses."""
    found = root.get("email_notifications")
    if found is None:
        return None
    kept: dict[str, Any] = {}
    for key in ("on_update_success", "on_update_failure"):
        if (addresses := found.get(key)) is not None:
            kept[key] = [each.text(320) for each in addresses.items(20)]
    return kept


def telemetry_config(found: fields.Field) -> dict[str, Any]:
    """`telemetry_config`: of its features the inference table is offered, the others are 501."""
    kept: dict[str, Any] = {}
    asked: list[str] = []
    if (features := found.get("enabled_telemetry_features")) is not None:
        known = [f"{TELEMETRY}{each}" for each in ("INFERENCE_TABLE", "LOGS", "METRICS", "TRACES")]
        asked = [each.choice(known) for each in features.items()]
        kept["enabled_telemetry_features"] = asked
    if (table := found.get("inference_table_config")) is not None:
        config: dict[str, Any] = {"name": _telemetry_table(table.need("name"))}
        _recording(table, config)
        kept["inference_table_config"] = config
    if (named := found.get("table_names")) is not None:
        for key in ("logs_table", "metrics_table", "traces_table", "annotations_table"):
            fields.text(named, key, 400)
        kept["table_names"] = named.value
    if (profile := fields.text(found, "telemetry_profile_id", 256)) is not None:
        kept["telemetry_profile_id"] = profile
    others = [each for each in asked if each != INFERENCE_TABLE]
    if others:
        raise errors.NotImplementedHere(f"{others[0]} is not offered yet.")
    return kept


def _telemetry_table(found: fields.Field) -> str:
    parts = found.text(400).split(".")
    fits = len(parts) <= 3 and all(names.PART_PATTERN.fullmatch(part) for part in parts)
    if not fits or len(parts[-1].removesuffix("_payload")) > MOST_PREFIX:
        raise found.refuse(f"[catalog.][schema.]table, the table of 1 to {MOST_PREFIX} characters")
    if len(parts) == 3 and parts[0] == SYSTEM:
        raise found.refuse(OTHER_CATALOG)
    return found.value
