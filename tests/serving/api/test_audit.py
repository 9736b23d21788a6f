"""The audit over HTTP: every change makes an entry with before and after, and holds no secret."""

import csv
import io
from typing import Any

import pytest

from capture import names

BASE = "/api/2.0/serving-endpoints"
OURS = "/api/1.0"
NAME = "audited"
SECRET = "do-not-tell-anybody-7391"


@pytest.fixture(scope="module")
def endpoint(server: Any) -> str:
    entities = [
        {"name": f"v{v}", "entity_name": "main.f.m", "entity_version": str(v)} for v in (1, 2)
    ]
    routes = [{"served_model_name": n, "traffic_percentage": 50} for n in ("v1", "v2")]
    capture = {"catalog_name": "main", "schema_name": "f", "enabled": True}
    config = {
        "served_entities": entities,
        "traffic_config": {"routes": routes},
        "auto_capture_config": capture,
    }
    server.ok("POST", BASE, {"name": NAME, "config": config})
    server.complete(NAME)
    return NAME


def newest(server: Any, action: str, **more: str) -> dict[str, Any]:
    query = "&".join(f"{key}={value}" for key, value in {"action": action, **more}.items())
    entry: dict[str, Any] = server.ok("GET", f"{OURS}/audit?{query}")["audit"][0]
    return entry


def test_rules_and_webhooks_leave_entries(server: Any, endpoint: str) -> None:
    asked = {
        "endpoint": NAME,
        "name": "slow",
        "metric": "p99_ms",
        "condition": {"operator": ">", "threshold": 50},
        "severity": "warning",
    }
    rule = server.ok("POST", f"{OURS}/alert-rules", asked)
    server.ok("PATCH", f"{OURS}/alert-rules/{rule['id']}", {"severity": "critical"})
    entry = newest(server, "alert_rule.change", endpoint=NAME)
    assert (entry["before"]["severity"], entry["after"]["severity"]) == ("warning", "critical")
    server.ok("DELETE", f"{OURS}/alert-rules/{rule['id']}")
    assert newest(server, "alert_rule.delete")["before"]["name"] == "slow"

    url = f"http://127.0.0.1:9/services/{SECRET}"
    hook = server.ok("POST", f"{OURS}/webhooks", {"url": url, "events": ["alert.*"]})
    rotated = server.ok("POST", f"{OURS}/webhooks/{hook['id']}/rotate-secret", {})
    server.ok("PATCH", f"{OURS}/webhooks/{hook['id']}", {"events": ["endpoint.*"]})
    entry = newest(server, "webhook.change")
    assert (entry["before"]["events"], entry["after"]["events"]) == (["alert.*"], ["endpoint.*"])
    assert entry["after"]["host"] == "127.0.0.1"
    server.ok("DELETE", f"{OURS}/webhooks/{hook['id']}")
    told = server.send("GET", f"{OURS}/audit?action=webhook.*").text
    assert [word for word in (SECRET, hook["secret"], rotated["secret"]) if word in told] == []


def test_experiments_ramps_and_monitors_leave_entries(server: Any, endpoint: str) -> None:
    policy = {"primary": {"name": "accuracy", "kind": "binary", "mde": 0.02}}
    server.ok("PUT", f"{OURS}/endpoints/{NAME}/experiment", policy)
    wider = {"primary": {**policy["primary"], "mde": 0.05}}
    server.ok("PUT", f"{OURS}/endpoints/{NAME}/experiment", wider)
    entry = newest(server, "experiment.begin", endpoint=NAME)
    assert [entry[side]["primary"]["mde"] for side in ("before", "after")] == [0.02, 0.05]
    ramp = {"challenger": "v2", "steps": [5, 50], "auto": False}
    server.ok("PUT", f"{OURS}/endpoints/{NAME}/ramp", ramp)
    assert newest(server, "ramp.put", endpoint=NAME)["after"]["steps"] == [5, 50]
    server.ok("DELETE", f"{OURS}/endpoints/{NAME}/ramp")
    server.ok("DELETE", f"{OURS}/endpoints/{NAME}/experiment")
    assert newest(server, "experiment.end", endpoint=NAME)["before"]["primary"]["mde"] == 0.05

    table = str(names.TableName("main", "f", f"{NAME}_unpacked"))
    path = f"/api/2.1/unity-catalog/tables/{table}/monitor"
    body = {
        "output_schema_name": "main.f",
        "assets_dir": "/",
        "inference_log": {
            "problem_type": "PROBLEM_TYPE_CLASSIFICATION",
            "timestamp_col": "request_time",
            "granularities": ["1 day"],
            "prediction_col": "prediction",
            "model_id_col": "served_entity_name",
        },
    }
    server.ok("POST", path, body)
    assert newest(server, "monitor.create", endpoint=NAME)["after"]["table"] == table
    server.ok("DELETE", path)
    assert newest(server, "monitor.delete", endpoint=NAME)["before"]["table"] == table


def test_tokens_grants_secrets_and_prices_leave_entries_without_a_secret(
    server: Any, endpoint: str
) -> None:
    made = server.ok("POST", f"{OURS}/tokens", {"user": "audited-user", "comment": "ci"})
    server.ok("DELETE", f"{OURS}/tokens/{made['id']}")
    entry = newest(server, "token.revoke")
    assert (entry["before"]["id"], entry["before"]["comment"]) == (made["id"], "ci")
    assert entry["actor"] == "admin" and entry["address"] == "127.0.0.1"
    grants = {"grants": [{"endpoint": NAME, "level": "CAN_VIEW"}]}
    server.ok("PUT", f"{OURS}/users/audited-user/grants", grants)
    entry = newest(server, "grants.put")
    assert entry["before"] == {"user": "audited-user"}
    assert entry["after"] == {"user": "audited-user", NAME: "CAN_VIEW"}
    server.ok("POST", "/api/2.0/secrets/scopes/create", {"scope": "aud"})
    secret = {"scope": "aud", "key": "k", "string_value": SECRET}
    server.ok("POST", "/api/2.0/secrets/put", secret)
    server.ok("POST", "/api/2.0/secrets/delete", {"scope": "aud", "key": "k"})
    assert newest(server, "secrets.delete")["before"] == {"scope": "aud", "key": "k"}
    told = server.send("GET", f"{OURS}/audit?page_size=1000").text
    assert SECRET not in told and made["token"] not in told


def test_the_audit_is_filtered_paged_and_exported(server: Any, endpoint: str) -> None:
    for action in ("stop", "start"):
        server.ok("POST", f"{OURS}/endpoints/{NAME}/{action}", {})
    entry = newest(server, "endpoint.stop", endpoint=NAME)
    assert (entry["before"], entry["after"]) == ({"stopped": False}, {"stopped": True})
    seen, token = [], ""
    while token is not None:
        more = f"&page_token={token}" if token else ""
        page = server.ok("GET", f"{OURS}/audit?endpoint={NAME}&page_size=2{more}")
        seen += [entry["id"] for entry in page["audit"]]
        token = page.get("next_page_token")
    assert seen == sorted(set(seen), reverse=True) and len(seen) > 2
    none = server.ok("GET", f"{OURS}/audit?endpoint={NAME}&to=2020-01-01T00:00:00Z")
    assert none == {"audit": []}
    assert server.refused("GET", f"{OURS}/audit?who=me")[0] == 400

    server.ok("POST", f"{OURS}/tokens", {"user": "=cmd()|evil"})
    answer = server.send("GET", f"{OURS}/audit.csv", token=server.token("=cmd()|evil"))
    assert answer.status_code == 403  # only administrators see all
    text = server.send("GET", f"{OURS}/audit.csv?action=token.create").text
    rows = list(csv.DictReader(io.StringIO(text)))
    assert rows[0]["actor"] == "admin" and rows[0]["action"] == "token.create"
    assert not any(cell.startswith(("=", "+", "-", "@")) for row in rows for cell in row.values())


def test_whoever_manages_an_endpoint_reads_its_audit_alone(server: Any, endpoint: str) -> None:
    user = "manages-audited"
    grants = {"grants": [{"endpoint": NAME, "level": "CAN_MANAGE"}]}
    server.ok("PUT", f"{OURS}/users/{user}/grants", grants)
    token = server.token(user)
    found = server.ok("GET", f"{OURS}/audit?endpoint={NAME}", token=token)["audit"]
    assert {entry["endpoint"] for entry in found} == {NAME}
    assert server.refused("GET", f"{OURS}/audit", token=token)[0] == 403
