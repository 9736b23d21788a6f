"""The audit and the overview over HTTP."""

import time
from typing import Any

from capture import database
from monitors import alert_state, experiment_state
from serving import state as sql

BASE = "/api/2.0/serving-endpoints"
OURS = "/api/1.0"


def make(server: Any, name: str) -> Any:
    entities = [
        {"name": f"v{v}", "entity_name": "main.f.m", "entity_version": str(v)} for v in (1, 2)
    ]
    routes = [
        {"served_model_name": n, "traffic_percentage": p} for n, p in (("v1", 90), ("v2", 10))
    ]
    config = {"served_entities": entities, "traffic_config": {"routes": routes}}
    made = server.ok("POST", BASE, {"name": name, "config": config})
    server.complete(name)
    return made


def overview(server: Any, name: str, **more: Any) -> tuple[Any, list[Any]]:
    """The row of an endpoint, and the inbox items that name it."""
    found = server.ok("GET", f"{OURS}/overview", **more)
    row = next((e for e in found["endpoints"] if e["name"] == name), None)
    return row, [item for item in found["inbox"] if name in item["title"]]


def test_a_healthy_endpoint_needs_nobody(server: Any) -> None:
    make(server, "healthy")
    row, inbox = overview(server, "healthy")
    assert inbox == []
    assert row["state"] == {"ready": "READY", "config_update": "NOT_UPDATING"}
    assert row["entities"] == [
        {"name": "v1", "percentage": 90, "version": "1"},
        {"name": "v2", "percentage": 10, "version": "2"},
    ]
    assert row["requests_per_second"] is None
    assert row["worst_drift"] is None


def test_an_endpoint_in_trouble_is_in_the_inbox(server: Any) -> None:
    made = make(server, "trouble")
    entity = {"name": "v9", "entity_name": "main.f.m", "entity_version": "3"}
    server.ok("PUT", f"{BASE}/trouble/config", {"served_entities": [entity]})
    with database.transaction(server.engine) as db:
        sql.fail_update(db, made["id"], 2, "The model raised ValueError: no.", 5)
    _, inbox = overview(server, "trouble")
    assert [(i["kind"], i["severity"], i["text"]) for i in inbox] == [
        ("endpoint", "warning", "The model raised ValueError: no.")
    ]
    assert inbox[0]["link"] == "/endpoint?endpoint=trouble"


def test_alerts_and_recommendations_are_in_the_inbox_worst_first(server: Any) -> None:
    make(server, "judged")
    now = time.time_ns() // 1_000_000
    alert = alert_state.Alert(
        "a1", "r1", "c", "judged", "null_share", "temp", "critical", "open", now, now, None, None,
        0.9, 0.1, 82, None, "temp is null in 90 % of 82 requests.", None, None, None,
    )  # fmt: skip
    proposal = experiment_state.Recommendation(
        "p1", "judged", "c", {"kind": "promote", "served_entity": "v2", "routes": []}, [],
        "log loss -0.09", "low", now, now + 1000, "open", None, None,
    )  # fmt: skip
    with database.transaction(server.engine) as db:
        alert_state.add_alert(db, alert)
        experiment_state.add_recommendation(db, proposal)
    _, inbox = overview(server, "judged")
    assert [(i["kind"], i["severity"], i["title"]) for i in inbox] == [
        ("alert", "critical", "judged: null_share of temp"),
        ("recommendation", "info", "judged: promote v2"),
    ]
    stranger = server.token("sees-nothing")
    assert overview(server, "judged", token=stranger) == (None, [])


def test_the_audit_tells_who_did_what(server: Any) -> None:
    make(server, "watched")
    body = {"served_entity": "v2", "traffic_percentage": 50, "reason": "canary"}
    server.ok("POST", f"{OURS}/endpoints/watched/promote", body)
    found = server.ok("GET", f"{OURS}/audit?endpoint=watched")["audit"]
    assert [(row["actor"], row["action"]) for row in found] == [
        ("admin", "endpoint.promoted"),
        ("admin", "endpoint.create"),
    ]
    promoted = found[0]
    assert promoted["reason"] == "canary"
    assert promoted["before"]["split"] == {"v1": 90, "v2": 10}
    assert promoted["after"]["split"] == {"v1": 50, "v2": 50}
    assert promoted["time"].endswith("Z")
    path = f"{OURS}/audit?endpoint=watched"
    one = server.ok("GET", f"{path}&action=endpoint.create")["audit"]
    assert [row["action"] for row in one] == ["endpoint.create"]
    first = server.ok("GET", f"{path}&page_size=1")
    token = first["next_page_token"]
    assert server.ok("GET", f"{path}&page_size=1&page_token={token}")["audit"] == found[1:]
    assert server.ok("GET", f"{path}&to={found[1]['time']}")["audit"] == []


def test_the_audit_of_all_is_for_administrators(server: Any) -> None:
    make(server, "secretive")
    grants = {"grants": [{"endpoint": "secretive", "level": "CAN_VIEW"}]}
    server.ok("PUT", f"{OURS}/users/curious/grants", grants)
    token = server.token("curious")
    assert server.refused("GET", f"{OURS}/audit", token=token)[0] == 403
    assert server.refused("GET", f"{OURS}/audit?endpoint=secretive", token=token)[0] == 403
    assert server.refused("GET", f"{OURS}/audit?endpoint=nobody", token=token)[0] == 404
    assert server.refused("GET", f"{OURS}/audit?colour=red")[0] == 400
