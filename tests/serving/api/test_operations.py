"""Traffic, versions, stop and start over HTTP."""

from typing import Any

import pytest

from capture import audit, database
from serving import state as sql

BASE = "/api/2.0/serving-endpoints"
OURS = "/api/1.0/endpoints"
SERVICE = "service-token-of-this-start"


def make(server: Any, name: str) -> Any:
    """A ready endpoint with v1 90 %, v2 10 %, v3 0 %."""
    entities = [
        {"name": f"v{v}", "entity_name": "main.f.m", "entity_version": str(v)} for v in (1, 2, 3)
    ]
    routes = [
        {"served_model_name": n, "traffic_percentage": p} for n, p in (("v1", 90), ("v2", 10))
    ]
    config = {"served_entities": entities, "traffic_config": {"routes": routes}}
    server.ok("POST", BASE, {"name": name, "config": config})
    server.complete(name)
    return server.ok("GET", f"{BASE}/{name}")


def shares(endpoint: Any) -> dict[str, int]:
    routes = endpoint["config"]["traffic_config"]["routes"]
    return {route["served_entity_name"]: route["traffic_percentage"] for route in routes}


def test_a_promotion_answers_the_endpoint_and_its_audit_row(server: Any) -> None:
    make(server, "prom")
    body = {"served_entity": "v2", "traffic_percentage": 50, "if_config_version": 1, "reason": "r"}
    done = server.ok("POST", f"{OURS}/prom/promote", body)
    assert shares(done) == {"v1": 50, "v2": 50, "v3": 0}
    assert done["state"]["config_update"] == "NOT_UPDATING"
    with database.reading(server.engine) as db:
        row = audit.read(db, 1, endpoint="prom", action="endpoint.promoted")[0]
    assert (row.id, row.reason) == (done["audit_id"], "r")
    status, message = server.refused("POST", f"{OURS}/prom/promote", body)
    assert (status, message) == (409, "Endpoint 'prom' is at configuration 2, not 1.")


def test_a_rollback_undoes_and_can_be_undone(server: Any) -> None:
    make(server, "back")
    server.ok("POST", f"{OURS}/back/promote", {"served_entity": "v3"})
    back = server.ok("POST", f"{OURS}/back/rollback", {"reason": "worse"})
    assert shares(back) == {"v1": 90, "v2": 10, "v3": 0}
    assert back["config"]["config_version"] == 3
    again = server.ok("POST", f"{OURS}/back/rollback", {"to_config_version": 2})
    assert shares(again) == {"v1": 0, "v2": 0, "v3": 100}
    found = server.ok("GET", f"{OURS}/back/versions")["versions"]
    assert [(v["config_version"], v["origin"], v["reason"]) for v in found] == [
        (4, "rollback", None),
        (3, "rollback", "worse"),
        (2, "user", None),
        (1, "user", None),
    ]
    assert found[0]["created_by"] == "admin" and found[0]["created_time"].endswith("Z")


def test_versions_are_paged(server: Any) -> None:
    make(server, "pages")
    for share in (20, 30, 40):
        server.ok(
            "POST", f"{OURS}/pages/promote", {"served_entity": "v2", "traffic_percentage": share}
        )
    first = server.ok("GET", f"{OURS}/pages/versions?page_size=3")
    assert [v["config_version"] for v in first["versions"]] == [4, 3, 2]
    token = first["next_page_token"]
    last = server.ok("GET", f"{OURS}/pages/versions?page_size=3&page_token={token}")
    assert [v["config_version"] for v in last["versions"]] == [1]
    assert "next_page_token" not in last


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({}, 400, "served_entity: a value is needed"),
        ({"served_entity": "v9"}, 404, "Served entity 'v9' does not exist."),
        ({"served_entity": "v2", "traffic_percentage": 101}, 400, "an integer 0..100, found 101"),
        ({"served_entity": "v2", "traffic_percentage": 1.5}, 400, "an integer 0..100, found 1.5"),
        ({"served_entity": "v2", "percent": 5}, 400, "percent: unknown field; allowed: served_"),
        ({"served_entity": "v2", "origin": "ramp"}, 400, "origin: unknown field"),
    ],
)
def test_a_bad_promotion_is_told(server: Any, body: Any, status: int, message: str) -> None:
    if server.send("GET", f"{BASE}/bad").status_code == 404:
        make(server, "bad")
    found, told = server.refused("POST", f"{OURS}/bad/promote", body)
    assert found == status and message in told


def test_only_the_service_says_that_a_ramp_did_it(server: Any) -> None:
    make(server, "ramped")
    body = {"served_entity": "v2", "traffic_percentage": 20, "origin": "ramp"}
    server.ok("POST", f"{OURS}/ramped/promote", body, token=SERVICE)
    back = {"to_config_version": 1, "origin": "ramp"}
    server.ok("POST", f"{OURS}/ramped/rollback", back, token=SERVICE)
    found = server.ok("GET", f"{OURS}/ramped/versions")["versions"]
    assert [(v["origin"], v["created_by"]) for v in found[:2]] == [("ramp", "service")] * 2


def test_a_promotion_needs_can_manage(server: Any) -> None:
    made = make(server, "guarded")
    acl = [{"user_name": "viewer", "permission_level": "CAN_QUERY"}]
    path = f"/api/2.0/permissions/serving-endpoints/{made['id']}"
    server.ok("PATCH", path, {"access_control_list": acl})
    viewer = server.token("viewer")
    for action, body in (("promote", {"served_entity": "v2"}), ("rollback", {}), ("stop", {})):
        status, message = server.refused("POST", f"{OURS}/guarded/{action}", body, token=viewer)
        assert status == 403 and message.startswith("CAN_MANAGE on endpoint 'guarded' is needed")
    assert server.ok("GET", f"{OURS}/guarded/versions", token=viewer)["versions"]


def test_a_stopped_endpoint_says_so_until_it_is_started(server: Any) -> None:
    made = make(server, "halt")
    stopped = server.ok("POST", f"{OURS}/halt/stop")
    assert stopped["state"] == {"ready": "NOT_READY", "config_update": "NOT_UPDATING"}
    assert stopped["stopped"] is True
    deployment = stopped["config"]["served_entities"][0]["state"]["deployment"]
    assert deployment == "DEPLOYMENT_ABORTED"
    status, message = server.refused("POST", "/serving-endpoints/halt/invocations", {})
    assert (status, message) == (400, "Endpoint 'halt' is stopped; start it first.")
    with database.reading(server.engine) as db:
        assert next(w for w in sql.desired(db) if w.name == "halt").entities == ()
    started = server.ok("POST", f"{OURS}/halt/start")
    assert started["state"] == {"ready": "NOT_READY", "config_update": "IN_PROGRESS"}
    server.complete("halt")
    done = server.ok("GET", f"{BASE}/halt")
    assert done["state"] == {"ready": "READY", "config_update": "NOT_UPDATING"}
    assert done["config"] == made["config"]


def test_stopping_cancels_an_update_and_twice_is_once(server: Any) -> None:
    make(server, "cancel")
    entity = {"name": "v9", "entity_name": "main.f.m", "entity_version": "3"}
    server.ok("PUT", f"{BASE}/cancel/config", {"served_entities": [entity]})
    stopped = server.ok("POST", f"{OURS}/cancel/stop", {})
    assert stopped["state"]["config_update"] == "UPDATE_CANCELED"
    assert server.ok("POST", f"{OURS}/cancel/stop")["stopped"] is True
    server.ok("POST", f"{OURS}/cancel/start")
    server.complete("cancel")
    assert shares(server.ok("GET", f"{BASE}/cancel")) == {"v1": 90, "v2": 10, "v3": 0}


def test_an_endpoint_stopped_before_it_was_ever_ready_starts_with_what_it_was_given(
    server: Any,
) -> None:
    entity = {"name": "v1", "entity_name": "main.f.m", "entity_version": "1"}
    server.ok("POST", BASE, {"name": "early", "config": {"served_entities": [entity]}})
    server.ok("POST", f"{OURS}/early/stop")
    server.ok("POST", f"{OURS}/early/start")
    server.complete("early")
    assert shares(server.ok("GET", f"{BASE}/early")) == {"v1": 100}
