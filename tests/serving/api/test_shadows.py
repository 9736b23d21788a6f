"""Shadow and replay over HTTP: who may, what is refused, what is shown."""

from typing import Any

from capture import audit, database
from monitors import job_state

BASE = "/api/2.0/serving-endpoints"
OURS = "/api/1.0/endpoints"
TABLE = {"enabled": True, "catalog_name": "main", "schema_name": "shadows"}


def make(server: Any, name: str, **more: Any) -> None:
    """A ready endpoint with v1 100 %, v2 0 %."""
    entities = [
        {"name": f"v{v}", "entity_name": "main.f.m", "entity_version": str(v)} for v in (1, 2)
    ]
    routes = [{"served_model_name": "v1", "traffic_percentage": 100}]
    config = {"served_entities": entities, "traffic_config": {"routes": routes}, **more}
    server.ok("POST", BASE, {"name": name, "config": config})
    server.complete(name)


def recording(server: Any, name: str) -> None:
    make(server, name, auto_capture_config={**TABLE, "table_name_prefix": name})


def test_a_shadow_is_set_shown_and_ended_with_an_audit_row_each(server: Any) -> None:
    recording(server, "shade")
    path = f"{OURS}/shade/shadow"
    assert server.refused("GET", path) == (404, "Endpoint 'shade' has no version in the shadow.")
    made = server.ok("PUT", path, {"served_entity": "v2"})
    assert (made["served_entity"], made["sample_percentage"]) == ("v2", 100.0)
    assert (made["state"], made["message"], made["created_by"]) == ("copying", None, "admin")
    assert made["copies"] == {"answered": 0, "failed": 0, "dropped": {}}
    again = server.ok("PUT", path, {"served_entity": "v2", "sample_percentage": 2.5})
    assert (again["sample_percentage"], again["created_time"]) == (2.5, made["created_time"])
    shown = server.ok("GET", path)
    assert shown["comparison"]["reasons"] == ["no_data"]
    assert (shown["comparison"]["champion"], shown["comparison"]["challenger"]) == ("v1", "v2")
    assert server.ok("DELETE", path) == {}
    assert server.refused("DELETE", path)[0] == 404
    with database.reading(server.engine) as db:
        rows = audit.read(db, 10, endpoint="shade", action="endpoint.shadow")
    assert [row.after and row.after["sample_percentage"] for row in rows] == [None, 2.5, 100.0]
    assert rows[0].before == {"served_entity": "v2", "sample_percentage": 2.5}


def test_a_shadow_that_cannot_be_is_refused_by_name(server: Any) -> None:
    recording(server, "shady")
    path = f"{OURS}/shady/shadow"
    status, message = server.refused("PUT", path, {"served_entity": "v9"})
    assert (status, message) == (
        404,
        "Served entity 'v9' of endpoint 'shady' does not exist; it serves: v1, v2. Add the "
        "version with 0 % of the traffic first.",
    )
    refused = [
        ({}, "served_entity: a value is needed, found none."),
        ({"served_entity": "v2", "sample_percentage": 0}, "sample_percentage: expected a number"),
        ({"served_entity": "v2", "percentage": 5}, "percentage: unknown field"),
    ]
    for body, told in refused:
        status, message = server.refused("PUT", path, body)
        assert (status, message.startswith(told)) == (400, True), message
    make(server, "unseen", auto_capture_config={**TABLE, "enabled": False})
    status, message = server.refused("PUT", f"{OURS}/unseen/shadow", {"served_entity": "v2"})
    assert (status, message.startswith("Endpoint 'unseen' records no requests")) == (400, True)


def test_a_shadow_that_rests_says_why(server: Any) -> None:
    recording(server, "rests")
    path = f"{OURS}/rests/shadow"
    assert server.ok("PUT", path, {"served_entity": "v1"})["message"] == (
        "'v1' answers all requests itself."
    )
    server.ok("POST", f"{OURS}/rests/stop", {})
    assert server.ok("GET", path)["message"] == "The endpoint is stopped."


def test_a_new_endpoint_of_the_name_has_no_shadow(server: Any) -> None:
    recording(server, "anew")
    server.ok("PUT", f"{OURS}/anew/shadow", {"served_entity": "v2"})
    server.ok("DELETE", f"{BASE}/anew")
    recording(server, "anew")
    assert server.refused("GET", f"{OURS}/anew/shadow")[0] == 404


def test_viewers_see_the_comparison_and_managers_alone_change_or_replay(server: Any) -> None:
    recording(server, "rights")
    server.ok("PUT", f"{OURS}/rights/shadow", {"served_entity": "v2"})
    id = server.ok("GET", f"{BASE}/rights")["id"]
    grant = [{"user_name": "vic", "permission_level": "CAN_QUERY"}]
    server.ok(
        "PATCH", f"/api/2.0/permissions/serving-endpoints/{id}", {"access_control_list": grant}
    )
    token = server.token("vic")
    assert server.ok("GET", f"{OURS}/rights/shadow", token=token)["served_entity"] == "v2"
    for method, path, body in (
        ("PUT", "shadow", {"served_entity": "v2"}),
        ("DELETE", "shadow", None),
        ("POST", "replay", {"served_entity": "v2"}),
        ("POST", "served-entities/v2/try", {}),
    ):
        assert server.refused(method, f"{OURS}/rights/{path}", body, token=token)[0] == 403


def test_trying_a_version_that_is_not_served_tells_which_are(server: Any) -> None:
    recording(server, "tried")
    path = f"{OURS}/tried/served-entities"
    assert server.refused("POST", f"{path}/v9/try", {}) == (
        404,
        "Served entity 'v9' of endpoint 'tried' does not exist; it serves: v1, v2.",
    )
    assert server.refused("POST", f"{path}/v2/try?dry_run=true", {}) == (
        400,
        "dry_run: unknown parameter; allowed: none.",
    )
    assert server.refused("POST", f"{OURS}/nobody/served-entities/v2/try", {})[0] == 404


def test_a_replay_is_a_job_of_the_newest_day_unless_said_otherwise(server: Any) -> None:
    recording(server, "asked")
    path = f"{OURS}/asked/replay"
    id = server.ok("POST", path, {"served_entity": "v2"})["job_id"]
    with database.reading(server.engine) as db:
        job = job_state.get(db, id)
    assert (job.kind, job.endpoint, job.table_name) == (
        "replay", "asked", "main.shadows.asked_payload",
    )  # fmt: skip
    asked = job.arguments
    assert asked["to_ms"] - asked["from_ms"] == 86_400_000
    assert (asked["served_entity"], asked["limit"]) == ("v2", 1000)
    span = {"from": "2026-01-01T00:00:00.0005Z", "to": "2026-01-01T00:00:00.0015Z"}
    id = server.ok("POST", path, {"served_entity": "v2", "limit": 5, **span})["job_id"]
    with database.reading(server.engine) as db:
        asked = job_state.get(db, id).arguments
    assert (asked["from_ms"], asked["to_ms"]) == (1_767_225_600_000, 1_767_225_600_002)
    refused = [
        ({"served_entity": "v2", "limit": 10_001}, "limit"),
        ({"served_entity": "v2", "from": span["to"], "to": span["from"]}, "from: 2026-01-01T"),
        ({"served_entity": "v2", "from": "yesterday"}, "from: 'yesterday' is not an RFC 3339"),
        ({}, "served_entity"),
    ]
    for body, told in refused:
        status, message = server.refused("POST", path, body)
        assert (status, told in message) == (400, True), message
