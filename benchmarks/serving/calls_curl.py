"""Every route of Databricks' serving API by curl: both spellings of its path, every field of its
body, and each route under each method without a token."""

import json
import re
import subprocess
import sys
import time
from typing import Any, NamedTuple

import calls

url, token, prefix = calls.arguments()
NAME = f"{prefix}-main"
BASE = "/api/2.0/serving-endpoints"
METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE")
OPEN = {("GET", "/health"), ("GET", "/.well-known/databricks-config")}
PATIENCE_SECONDS = 240
ENTITY = {
    "name": "one",
    "entity_name": calls.SUM,
    "entity_version": "1",
    "workload_type": "CPU_MEDIUM",
    "scale_to_zero_enabled": True,
    "min_provisioned_concurrency": 0,
    "max_provisioned_concurrency": 4,
    "environment_vars": {"LEVEL": "1"},
    "instance_profile_arn": "arn:aws:iam::1:instance-profile/p",
    "burst_scaling_enabled": False,
}
ROUTES = [{"served_model_name": "one", "served_entity_name": "one", "traffic_percentage": 100}]
TABLE = {"catalog_name": "main", "schema_name": "clients", "enabled": True}
FULL = {
    "name": NAME,
    "description": "Adds; é",
    "config": {
        "served_entities": [ENTITY],
        "traffic_config": {"routes": ROUTES, "sticky": {"key": "caller", "salt": "s"}},
        "auto_capture_config": {**TABLE, "table_name_prefix": f"{NAME}-a"},
    },
    "tags": [{"key": "k", "value": "v"}, {"key": "bare"}],
    "ai_gateway": {
        "inference_table_config": {**TABLE, "table_name_prefix": f"{NAME}-g"},
        "usage_tracking_config": {"enabled": True},
        "rate_limits": [{"calls": 500, "renewal_period": "minute", "key": "user"}],
        "fallback_config": {"enabled": False},
    },
    "email_notifications": {"on_update_success": ["a@b.c"], "on_update_failure": ["d@e.f"]},
    "rate_limits": [{"calls": 600, "renewal_period": "minute", "key": "endpoint"}],
    "route_optimized": True,
    "telemetry_config": {
        "enabled_telemetry_features": ["TELEMETRY_FEATURE_INFERENCE_TABLE"],
        "inference_table_config": {"name": f"main.clients.{prefix}t", "sampling_fraction": 0.5},
        "table_names": {"logs_table": "main.clients.logs"},
        "telemetry_profile_id": "profile",
    },
    "budget_policy_id": "policy",
}


class Reply(NamedTuple):
    """What curl printed."""

    status: int
    headers: dict[str, str]
    text: str

    @property
    def json(self) -> Any:
        return json.loads(self.text)


def curl(method: str, path: str, body: Any = None, *more: str, key: str = token) -> Reply:
    """One call. The body goes out as JSON, or as it is if it is text."""
    command = ["curl", "-sS", "-i", "--path-as-is", "-X", method, "-H", "Expect:", url + path]
    if key:
        command += ["-H", f"Authorization: Bearer {key}"]
    if body is not None:
        sent = body if isinstance(body, str) else json.dumps(body)
        command += ["-H", "Content-Type: application/json", "--data-binary", sent]
    found = subprocess.run([*command, *more], capture_output=True, check=True, timeout=60)
    head, _, text = found.stdout.decode().partition("\r\n\r\n")
    first, *lines = head.split("\r\n")
    headers = {key.lower(): value for key, _, value in (line.partition(": ") for line in lines)}
    return Reply(int(first.split()[1]), headers, text)


def done(method: str, path: str, body: Any = None) -> Any:
    """The JSON of a call that must succeed."""
    found = curl(method, path, body)
    calls.check(found.status, 200, f"{method} {path}: {found.text[:300]}")
    return found.json


def refused(status: int, code: str, method: str, path: str, body: Any = None) -> Reply:
    """A call that must fail in this way, told in the envelope."""
    found = curl(method, path, body)
    calls.check((found.status, found.json.get("error_code")), (status, code), found.text[:300])
    calls.check(set(found.json), {"error_code", "message"})
    calls.check("application/json" in found.headers["content-type"], True)
    return found


def settled() -> None:
    ends = time.monotonic() + PATIENCE_SECONDS
    while done("GET", f"{BASE}/{NAME}")["state"]["config_update"] == "IN_PROGRESS":
        assert time.monotonic() < ends
        time.sleep(0.05)


def create_every_field_at_the_twin() -> None:
    made = done("POST", f"{BASE}/", FULL)
    calls.holds(made["tags"], FULL["tags"])
    settled()


def get_every_field() -> None:
    for path in (f"{BASE}/{NAME}", f"{BASE}/{NAME}/"):
        found = done("GET", path)
        # The deprecated rate_limits are answered where they are set, not in the endpoint.
        calls.holds(found, {key: value for key, value in FULL.items() if key != "rate_limits"})
    assert found["config"]["config_version"] == 1 and "pending_config" not in found
    calls.check(found["permission_level"], "CAN_MANAGE")
    mirror = found["config"]["served_models"][0]
    calls.check((mirror["model_name"], mirror["model_version"]), (calls.SUM, "1"))
    for key in ("id", "creator", "creation_timestamp", "last_updated_timestamp", "endpoint_url"):
        assert found[key], key


def list_every_field() -> None:
    for path in (BASE, f"{BASE}/"):
        (found,) = [each for each in done("GET", path)["endpoints"] if each["name"] == NAME]
        shown = ("name", "description", "config", "tags", "ai_gateway", "telemetry_config")
        calls.holds(found, {key: FULL[key] for key in (*shown, "budget_policy_id")})


def query_both_paths_and_headers() -> None:
    for path in ("invocations", "invocations/", "served-models/one/invocations"):
        where = f"/serving-endpoints/{NAME}/{path}"
        found = curl("POST", where, {"dataframe_records": [calls.ROW]})
        calls.check((found.status, found.json), (200, {"predictions": [3.0]}), path)
        calls.check(found.headers["served-model-name"], "one")
        request_id = found.headers["x-request-id"]
        calls.check(found.headers["databricks-request-id"], request_id)
        assert re.fullmatch(r"[0-9a-f-]{36}", request_id), request_id


def query_every_format() -> None:
    split = {"columns": ["a", "b"], "data": [[1, 2]]}
    for body in (
        {"dataframe_split": split},
        {"dataframe_records": [calls.ROW], "client_request_id": "i", "usage_context": {"a": "b"}},
        {"instances": [calls.ROW]},
        {"inputs": {"a": [1], "b": [2]}, "databricks_options": {"return_trace": True}},
    ):
        calls.check(done("POST", f"/serving-endpoints/{NAME}/invocations", body)["predictions"][0],
                    3.0)  # fmt: skip
    where = f"/serving-endpoints/{NAME}/invocations"
    found = curl("POST", where, None, "-H", "Content-Type: text/csv", "--data-binary", "a,b\n1,2\n")
    calls.check(found.json, {"predictions": [3.0]})


def update_config() -> None:
    body = {"served_entities": [{**ENTITY, "entity_version": 2}], "name": NAME}
    done("PUT", f"{BASE}/{NAME}/config", body)
    settled()
    found = done("GET", f"{BASE}/{NAME}")
    entity = found["config"]["served_entities"][0]
    calls.check((entity["entity_version"], found["config"]["config_version"]), ("2", 2))
    calls.holds(found["config"]["traffic_config"], FULL["config"]["traffic_config"])


def patch_tags() -> None:
    body = {"add_tags": [{"key": "n", "value": "1"}], "delete_tags": ["bare", "k"]}
    for path in ("tags", "tags/"):
        found = done("PATCH", f"{BASE}/{NAME}/{path}", body)
        calls.check(found, {"tags": body["add_tags"]})


def put_rate_limits() -> None:
    body = {"rate_limits": FULL["rate_limits"]}
    calls.check(done("PUT", f"{BASE}/{NAME}/rate-limits", body), body)


def put_ai_gateway() -> None:
    body = {"rate_limits": [{"calls": 400, "renewal_period": "minute", "key": "service_principal",
                             "principal": "p"}]}  # fmt: skip
    wanted = {**FULL["ai_gateway"], **body}
    calls.holds(done("PUT", f"{BASE}/{NAME}/ai-gateway", body), wanted)
    calls.holds(done("GET", f"{BASE}/{NAME}")["ai_gateway"], wanted)


def patch_notifications() -> None:
    body = {"email_notifications": {"on_update_success": ["x@y.z"]}}
    calls.check(done("PATCH", f"{BASE}/{NAME}/notifications", body), {"name": NAME, **body})


def patch_telemetry_config() -> None:
    body = {"telemetry_config": FULL["telemetry_config"]}
    calls.holds(done("PATCH", f"{BASE}/{NAME}/telemetry-config", body), body)
    found = done("PATCH", f"{BASE}/{NAME}/telemetry-config", {})
    assert "telemetry_config" not in found


def documents() -> None:
    found = curl("GET", f"{BASE}/{NAME}/openapi", None, "-H", "Accept: text/plain").json
    assert found["openapi"].startswith("3") and found["paths"], found
    found = curl("GET", f"{BASE}/{NAME}/metrics")
    names = (
        "cpu_usage_percentage", "mem_usage_percentage", "provisioned_concurrent_requests_total",
        "request_count_total", "request_4xx_count_total", "request_5xx_count_total",
        "request_latency_ms_bucket", "request_latency_ms_sum", "request_latency_ms_count",
        "model_prediction_latency_ms_bucket", "model_queue_time_ms_bucket",
    )  # fmt: skip
    for name in names:
        assert f"\n{name}{{" in f"\n{found.text}", name
    assert f'endpoint_name="{NAME}"' in found.text
    for kind in ("build-logs", "logs"):
        found_logs = done("GET", f"{BASE}/{NAME}/served-models/one/{kind}")
        assert isinstance(found_logs["logs"], str), kind


def permissions() -> None:
    found = done("GET", f"{BASE}/{NAME}")
    path = f"/api/2.0/permissions/serving-endpoints/{found['id']}"
    ann = {"user_name": "ann", "permission_level": "CAN_VIEW"}
    team = {"group_name": "users", "permission_level": "CAN_QUERY"}
    robot = {"service_principal_name": "robot", "permission_level": "CAN_MANAGE"}
    done("PATCH", path, {"access_control_list": [ann]})
    shown = done("PUT", path, {"access_control_list": [team, robot]})
    calls.check(shown, done("GET", f"{path}/"))
    calls.check(shown["object_id"], f"/serving-endpoints/{found['id']}")
    principals = {
        next(each[key] for key in each if key.endswith("_name") and key != "display_name"): each
        for each in shown["access_control_list"]
    }
    assert {"users", "robot"} <= set(principals) and "ann" not in principals, principals
    calls.check(principals["users"]["all_permissions"],
                [{"permission_level": "CAN_QUERY", "inherited": False}])  # fmt: skip
    own = principals[found["creator"]]["all_permissions"][0]["permission_level"]
    calls.check(own, "CAN_MANAGE", "the creator's right after PUT")
    levels = done("GET", f"{path}/permissionLevels")["permission_levels"]
    calls.check({each["permission_level"] for each in levels},
                {"CAN_VIEW", "CAN_QUERY", "CAN_MANAGE"})  # fmt: skip


def secrets() -> None:
    base, scope = "/api/2.0/secrets", f"{prefix}-s"
    calls.check(done("POST", f"{base}/scopes/create", {"scope": scope}), {})
    calls.check(done("POST", f"{base}/put", {"scope": scope, "key": "k", "string_value": "v"}), {})
    assert scope in [each["name"] for each in done("GET", f"{base}/scopes/list")["scopes"]]
    listed = done("GET", f"{base}/list?scope={scope}")["secrets"]
    assert listed[0]["key"] == "k" and listed[0]["last_updated_timestamp"], listed
    calls.check(done("GET", f"{base}/get?scope={scope}&key=k"), {"key": "k", "value": "dg=="})
    calls.check(done("POST", f"{base}/delete", {"scope": scope, "key": "k"}), {})
    calls.check(done("POST", f"{base}/scopes/delete", {"scope": scope}), {})


def known_and_not_offered() -> None:
    entity = {"entity_name": "system.ai.m", "provisioned_model_units": 50}
    pt = {"name": "x", "config": {"served_entities": [entity]}}
    function = {"connection_name": "c", "method": "GET", "path": "/"}
    chat = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}
    for method, path, body in (
        ("POST", f"{BASE}/pt", pt),
        ("PUT", f"{BASE}/pt/{NAME}/config", {"config": pt["config"]}),
        ("POST", "/api/2.0/external-function", function),
        ("POST", "/serving-endpoints/chat/completions", chat),
        ("POST", "/serving-endpoints/completions", {"model": "m", "prompt": "hello"}),
        ("POST", "/serving-endpoints/embeddings", {"model": "m", "input": "hello"}),
        ("POST", "/serving-endpoints/responses", {"model": "m", "input": "hello"}),
    ):
        refused(501, "NOT_IMPLEMENTED", method, path, body)
        refused(400, "INVALID_PARAMETER_VALUE", method, path, {})


def errors_of_every_class() -> None:
    bad = "INVALID_PARAMETER_VALUE"
    gone = "RESOURCE_DOES_NOT_EXIST"
    query = f"/serving-endpoints/{NAME}/invocations"
    refused(400, bad, "POST", BASE, {"name": "x", "config": []})
    refused(400, "RESOURCE_ALREADY_EXISTS", "POST", BASE, {"name": NAME})
    refused(400, "BAD_REQUEST", "POST", BASE, '{"name": ')
    refused(400, "BAD_REQUEST", "POST", query, '{"inputs": NaN}')
    refused(404, gone, "POST", "/serving-endpoints/nobody/invocations", {"inputs": 1})
    missing = f"/serving-endpoints/{NAME}/served-models/nobody/invocations"
    refused(404, gone, "POST", missing, {"inputs": 1})
    refused(404, gone, "GET", f"{BASE}/nobody")
    refused(404, gone, "GET", "/api/2.0/permissions/serving-endpoints/nobody")
    refused(404, "ENDPOINT_NOT_FOUND", "GET", "/api/2.0/nothing")
    refused(404, "ENDPOINT_NOT_FOUND", "GET", f"{BASE}/{NAME}/%2e%2e%2f")
    refused(405, "ENDPOINT_NOT_FOUND", "PATCH", BASE, {})
    calls.check(curl("GET", BASE, key="").json["error_code"], "UNAUTHENTICATED")
    calls.check(curl("GET", BASE, key="il_wrong").json["error_code"], "PERMISSION_DENIED")
    calls.check(curl("GET", "/.well-known/databricks-config", key="").status, 404)


def limited_with_retry_after() -> None:
    none = {"rate_limits": [{"calls": 0, "renewal_period": "minute", "key": "endpoint"}]}
    done("PUT", f"{BASE}/{NAME}/ai-gateway", none)
    query = f"/serving-endpoints/{NAME}/invocations"
    found = refused(429, "REQUEST_LIMIT_EXCEEDED", "POST", query, {"dataframe_records": [{}]})
    assert int(found.headers["retry-after"]) >= 1, found.headers


def nothing_without_a_token() -> None:
    """Each route of the server's own list under each method, by one curl for all."""
    paths = done("GET", "/openapi.json")["paths"]
    asked = [
        (method, re.sub(r"\{[^}]*\}", "x", path))
        for path in paths
        for method in METHODS
        if (method, path) not in OPEN
    ]
    command = ["curl", "-sS", "--path-as-is"]
    for number, (method, path) in enumerate(asked):
        command += ["--next"] * bool(number)
        command += ["-X", method, "-o", "/dev/null", "-w", "%{http_code}\\n", url + path]
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    calls.check(len(found), len(asked), "answers")
    odd = [
        f"{method} {path}: {status}"
        for (method, path), status in zip(asked, found, strict=True)
        if status not in ("401", "404", "405")
    ]
    calls.check(odd, [], f"open among {len(asked)} routes and methods")


def delete() -> None:
    calls.check(done("DELETE", f"{BASE}/{NAME}/"), {})
    refused(404, "RESOURCE_DOES_NOT_EXIST", "GET", f"{BASE}/{NAME}")


if __name__ == "__main__":
    listed = (
        create_every_field_at_the_twin,
        get_every_field,
        list_every_field,
        query_both_paths_and_headers,
        query_every_format,
        update_config,
        patch_tags,
        put_rate_limits,
        put_ai_gateway,
        patch_notifications,
        patch_telemetry_config,
        documents,
        permissions,
        secrets,
        known_and_not_offered,
        errors_of_every_class,
        limited_with_retry_after,
        nothing_without_a_token,
        delete,
    )
    sys.exit(calls.run([(each.__name__, each) for each in listed]))
