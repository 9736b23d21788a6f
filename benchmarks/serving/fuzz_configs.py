"""Hostile names, URLs and values in every field of a configuration, one at a time."""

import copy
from collections.abc import Iterator
from typing import Any, NamedTuple

TEXTS = (
    "", " ", ".", "..", "../../etc/passwd", "..%2f..%2fetc", "a/b", "a\\b", "/etc/passwd", "a\0b",
    "a\nb", "a\rX-Header: b", "a b", "a;rm -rf /", "$(id)", "`id`", "' OR 1=1 --",
    '"; DROP TABLE endpoints; --', "{{secrets/s/k}}", "{{7*7}}", "<script>alert(1)</script>",
    "=cmd|' /C calc'!A0", "\u202egnp.exe", "\ud7ff\ue000", "é", "\U0001f4a5", "x" * 10_000,
    "system", "chat", "pt", "-", "_", "CON", "%00", "%s%s%n", "NaN", "null", "true",
)  # fmt: skip
URLS = (
    "javascript:alert(1)", "file:///etc/passwd", "ftp://h/x", "gopher://h", "http://", "http:///x",
    "//h/x", "http://user:word@h/", "http://169.254.169.254/latest/meta-data", "http://0xa9fea9fe/",
    "http://2852039166/", "http://[::ffff:169.254.169.254]/", "http://[fe80::1]/",
    "http://0.0.0.0/", "http://h:0/", "http://h:99999/", "http://h h/", "http://h\r\nX: y/",
    "http://[::1", "http://" + "h" * 5000,
)  # fmt: skip
# What would lead out of a folder, a header or a line; the URLs lead nowhere that is to be called.
MUST_FAIL = (*TEXTS[3:12], *URLS)
VALUES: tuple[Any, ...] = (
    True, 0, -1, 1.5, 2**31, 2**63, 10**40, 1e308, [], {}, [[]], {"": {}}, [1], ["x"], {"x": "y"},
    [{}] * 200, {str(n): n for n in range(200)},
)  # fmt: skip
SECRET = "{{secrets/s/k}}"
EXTERNAL: dict[str, dict[str, Any]] = {
    "openai": {"openai_config": {"openai_api_key": SECRET, "openai_api_base": "https://h/v1",
                                 "openai_organization": "o", "openai_api_type": "azure",
                                 "openai_api_version": "1", "openai_deployment_name": "d"}},
    "anthropic": {"anthropic_config": {"anthropic_api_key": SECRET}},
    "cohere": {"cohere_config": {"cohere_api_key": SECRET, "cohere_api_base": "https://h"}},
    "amazon-bedrock": {"amazon_bedrock_config": {
        "aws_region": "r", "bedrock_provider": "amazon", "aws_access_key_id": SECRET,
        "aws_secret_access_key": SECRET}},
    "google-cloud-vertex-ai": {"google_cloud_vertex_ai_config": {
        "project_id": "p", "region": "r", "private_key": SECRET}},
    "databricks-model-serving": {"databricks_model_serving_config": {
        "databricks_workspace_url": "https://h", "databricks_api_token": SECRET}},
    "ai21labs": {"ai21labs_config": {"ai21labs_api_key": SECRET}},
    "palm": {"palm_config": {"palm_api_key": SECRET}},
    "custom": {"custom_provider_config": {
        "custom_provider_url": "https://h/v1", "api_key_auth": {"key": "x-key", "value": SECRET}}},
}  # fmt: skip
URL_FIELDS = frozenset(
    {"openai_api_base", "cohere_api_base", "databricks_workspace_url", "custom_provider_url"}
)
# Words for people, and what is kept for others as it is: printable text is right there.
FREE = frozenset({
    "description", "budget_policy_id", "instance_profile_arn", "on_update_success",
    "on_update_failure", "telemetry_profile_id", "logs_table", "salt", "principal",
    "openai_organization", "openai_api_version", "openai_deployment_name", "aws_region",
    "project_id", "region", "LEVEL", "key", "value", "delete_tags", "user_name", "string_value",
    "reason", "client_request_id", "label", "model", "role", "content", "connection_name", "path",
    "headers", "scope",
})  # fmt: skip


def full(name: str, model: str) -> dict[str, Any]:
    """A body of a creation that uses every field of a custom model."""
    table = {"catalog_name": "main", "schema_name": "fuzz", "enabled": True}
    entity = {
        "name": "one", "entity_name": model, "entity_version": "1", "workload_type": "CPU",
        "workload_size": "Small", "scale_to_zero_enabled": True, "environment_vars": {"LEVEL": "1"},
        "instance_profile_arn": "arn", "burst_scaling_enabled": True,
    }  # fmt: skip
    routes = [{"served_model_name": "one", "traffic_percentage": 100}]
    return {
        "name": name,
        "description": "d",
        "config": {
            "served_entities": [entity],
            "traffic_config": {"routes": routes, "sticky": {"key": "caller", "salt": "s"}},
            "auto_capture_config": {**table, "table_name_prefix": name},
        },
        "tags": [{"key": "k", "value": "v"}],
        "ai_gateway": {
            "inference_table_config": {**table, "table_name_prefix": f"{name}-g"},
            "usage_tracking_config": {"enabled": True},
            "rate_limits": [{"calls": 5, "renewal_period": "minute", "key": "service_principal",
                             "principal": "p"}],
            "fallback_config": {"enabled": False},
        },
        "email_notifications": {"on_update_success": ["a@b"], "on_update_failure": ["a@b"]},
        "rate_limits": [{"calls": 5, "renewal_period": "minute", "key": "user"}],
        "route_optimized": False,
        "telemetry_config": {
            "enabled_telemetry_features": ["TELEMETRY_FEATURE_INFERENCE_TABLE"],
            "inference_table_config": {"name": "main.fuzz.t", "sampling_fraction": 0.5},
            "table_names": {"logs_table": "l"},
            "telemetry_profile_id": "p",
        },
        "budget_policy_id": "b",
    }  # fmt: skip


def external(name: str, provider: str) -> dict[str, Any]:
    """A body of a creation of one provider's model."""
    model = {"provider": provider, "name": "m", "task": "llm/v1/chat", **EXTERNAL[provider]}
    return {"name": name, "config": {"served_entities": [{"external_model": model}]}}


def others(endpoint: str, endpoint_id: str) -> list[tuple[str, str, dict[str, Any]]]:
    """(method, path, body) of the other control routes."""
    own = f"/api/2.0/serving-endpoints/{endpoint}"
    secrets, ours = "/api/2.0/secrets", f"/api/1.0/endpoints/{endpoint}"
    grants = [{"user_name": "u", "permission_level": "CAN_VIEW"}]
    traffic = {"routes": [{"served_entity_name": "one", "traffic_percentage": 100}]}
    return [
        ("PATCH", f"{own}/tags", {"add_tags": [{"key": "k", "value": "v"}], "delete_tags": ["d"]}),
        ("PATCH", f"{own}/notifications", {"email_notifications": {"on_update_failure": ["a@b"]}}),
        ("PUT", f"{own}/config?dry_run=true", {"name": endpoint, "traffic_config": traffic}),
        ("PATCH", f"/api/2.0/permissions/serving-endpoints/{endpoint_id}",
         {"access_control_list": grants}),
        ("POST", f"{secrets}/scopes/create", {"scope": "fuzz"}),
        ("POST", f"{secrets}/put", {"scope": "fuzz", "key": "k", "string_value": "s"}),
        ("POST", f"{secrets}/put", {"scope": "fuzz", "key": "k", "bytes_value": "czo="}),
        ("POST", f"{secrets}/delete", {"scope": "fuzz", "key": "k"}),
        ("POST", f"{ours}/promote", {"served_entity": "one", "traffic_percentage": 100,
                                     "if_config_version": 9, "reason": "r"}),
        ("POST", f"{ours}/labels", {"labels": [{"client_request_id": "i", "row_index": 0,
                                                "label": 1, "label_time": "2026-01-01"}]}),
        ("PUT", f"{ours}/shadow", {"served_entity": "two", "sample_percentage": 1}),
        ("POST", "/serving-endpoints/chat/completions",
         {"model": "m", "messages": [{"role": "user", "content": "c"}], "max_tokens": 5}),
        ("POST", "/api/2.0/external-function",
         {"connection_name": "c", "method": "GET", "path": "/", "headers": "{}"}),
    ]  # fmt: skip


class Changed(NamedTuple):
    """A body with one hostile value. must_fail: it may not pass in that place."""

    name: str
    body: dict[str, Any]
    must_fail: bool


def hostile(body: dict[str, Any]) -> Iterator[Changed]:
    """Every field with every hostile value."""
    for path in _paths(body):
        last = next(step for step in reversed(path) if isinstance(step, str))
        present = _at(body, path)
        if isinstance(present, str):
            texts = URLS if last in URL_FIELDS else TEXTS
            values = (*texts, *VALUES)
        else:
            values = (*TEXTS[:6], *VALUES)
        for value in values:
            if value != present:
                changed = copy.deepcopy(body)
                _at(changed, path[:-1])[path[-1]] = copy.deepcopy(value)
                # Names of other models may hold a slash, as `org/model`.
                other = path[-2:] == ("external_model", "name") and value == "a/b"
                must_fail = last not in FREE and value in MUST_FAIL and not other
                yield Changed(f"{_shown(path)} = {str(value)[:40]!r}", changed, must_fail)


def _paths(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value)
    for key, each in inner:
        yield (*at, key)
        if isinstance(each, dict | list):
            yield from _paths(each, (*at, key))


def _at(value: Any, path: tuple[Any, ...]) -> Any:
    for step in path:
        value = value[step]
    return value


def _shown(path: tuple[Any, ...]) -> str:
    return "".join(f"[{s}]" if isinstance(s, int) else f".{s}" for s in path)[1:]
