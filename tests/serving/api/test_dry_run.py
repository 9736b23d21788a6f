"""`?dry_run=true` checks what would be made, and makes nothing."""

from typing import Any

from tests.serving.api.test_endpoints import BASE, entity, make, split

DRY = "?dry_run=true"


def test_a_dry_run_shows_what_would_be_made_and_makes_nothing(server: Any) -> None:
    config = {"served_entities": [entity("@champion")], "auto_capture_config": {}}
    body = {"name": "dry", "config": config}
    shown = server.ok("POST", f"{BASE}{DRY}", body)
    assert shown["state"]["config_update"] == "IN_PROGRESS"
    assert shown["pending_config"]["served_entities"][0]["entity_version"] == "2"
    assert shown["pending_config"]["traffic_config"]["routes"][0]["traffic_percentage"] == 100
    assert server.refused("GET", f"{BASE}/dry")[0] == 404
    assert server.ok("GET", "/api/1.0/audit?endpoint=dry")["audit"] == []
    assert server.ok("POST", BASE, body)["name"] == "dry"  # the name and its table are still free


def test_a_dry_run_refuses_what_the_real_one_would(server: Any) -> None:
    server.ok("POST", BASE, {"name": "taken"})
    for body in (
        {"name": "taken"},
        {"name": "no spaces"},
        {"name": "dry2", "config": {"served_entities": [entity("77")]}},
        {"name": "dry2", "config": {"served_entities": [entity(workload_size="Huge")]}},
    ):
        dry, real = server.refused("POST", f"{BASE}{DRY}", body), server.refused("POST", BASE, body)
        assert dry == real
    assert server.refused("POST", f"{BASE}?dry_run=perhaps", {"name": "dry2"})[0] == 400


def test_a_dry_run_of_a_change_leaves_the_configuration(server: Any) -> None:
    make(server, "dry-change")
    path = f"{BASE}/dry-change/config"
    would = server.ok("PUT", f"{path}{DRY}", {"traffic_config": split(v1=20, v2=80)})
    assert would["config"]["config_version"] == 2
    assert [r["traffic_percentage"] for r in would["config"]["traffic_config"]["routes"]] == [
        20,
        80,
    ]
    assert server.ok("GET", f"{BASE}/dry-change")["config"]["config_version"] == 1
    assert server.refused("PUT", f"{path}{DRY}", {"traffic_config": split(v1=20, v2=70)})[0] == 400


def test_logs_of_an_update_are_read_while_it_waits(server: Any) -> None:
    make(server, "dry-logs")
    new = {"served_entities": [entity("3", name="v3")]}
    server.ok("PUT", f"{BASE}/dry-logs/config", new)
    for kind in ("logs", "build-logs"):
        for name in ("v1", "v3"):
            path = f"{BASE}/dry-logs/served-models/{name}/{kind}"
            assert server.ok("GET", path) == {"logs": ""}
    assert server.refused("GET", f"{BASE}/dry-logs/served-models/v9/logs")[0] == 404
