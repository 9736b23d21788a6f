"""The record of an endpoint, configured in each of the three styles alike: switched off and on
again, thinned out, never renamed while it is on."""

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

from capture import catalog, database

BASE = "/api/2.0/serving-endpoints"
ENTITY = {"name": "v1", "entity_name": "main.f.m", "entity_version": "1"}


class Style(NamedTuple):
    """How a table is asked for: (method, path, body) of a prefix and a sampling fraction, or of
    None for no table."""

    name: str
    request: Callable[[str | None, float], tuple[str, str, dict[str, Any]]]


def legacy(prefix: str | None, fraction: float) -> tuple[str, str, dict[str, Any]]:
    table = _four_fields(prefix, fraction)
    return "PUT", "config", {"auto_capture_config": table}


def gateway(prefix: str | None, fraction: float) -> tuple[str, str, dict[str, Any]]:
    return "PUT", "ai-gateway", {"inference_table_config": _four_fields(prefix, fraction)}


def telemetry(prefix: str | None, fraction: float) -> tuple[str, str, dict[str, Any]]:
    if prefix is None:
        return "PATCH", "telemetry-config", {}
    table = {"name": f"main.f.{prefix}", "sampling_fraction": fraction}
    return "PATCH", "telemetry-config", {"telemetry_config": {"inference_table_config": table}}


def _four_fields(prefix: str | None, fraction: float) -> dict[str, Any]:
    if prefix is None:
        return {"enabled": False}
    return {
        "catalog_name": "main",
        "schema_name": "f",
        "table_name_prefix": prefix,
        "sampling_fraction": fraction,
        "enabled": True,
    }


STYLES = [Style("legacy", legacy), Style("gateway", gateway), Style("telemetry", telemetry)]


@pytest.fixture(params=STYLES, ids=lambda style: style.name, scope="module")
def style(request: pytest.FixtureRequest, server: Any) -> Style:
    """A style, and a ready endpoint of its name that records nothing."""
    found: Style = request.param
    config = {"served_entities": [ENTITY]}
    server.ok("POST", BASE, {"name": f"by-{found.name}", "config": config})
    server.complete(f"by-{found.name}")
    server.until(f"{BASE}/by-{found.name}", lambda e: e["state"]["ready"] == "READY")
    return found


def record(server: Any, style: Style, prefix: str | None, fraction: float = 1) -> None:
    method, path, body = style.request(prefix, fraction)
    server.ok(method, f"{BASE}/by-{style.name}/{path}", body)
    server.complete(f"by-{style.name}")


def ask(server: Any, style: Style) -> str:
    """A query that is refused for its content type; its id."""
    path = f"/serving-endpoints/by-{style.name}/invocations"
    answer = server.send("POST", path, content=b"{}", headers={"Content-Type": "text/plain"})
    assert answer.status_code == 400
    request_id: str = answer.headers["databricks-request-id"]
    return request_id


def recorded(server: Any, style: Style, last: str) -> list[str]:
    """Ids in the endpoint's table, oldest first, once the last one is there."""
    name = f"by-{style.name}"
    page = server.until(
        f"/api/1.0/requests?endpoint={name}",
        lambda page: last in [row["databricks_request_id"] for row in page["requests"]],
    )
    return [row["databricks_request_id"] for row in page["requests"]][::-1]


def test_a_table_goes_on_after_it_was_switched_off_and_on_again(server: Any, style: Style) -> None:
    record(server, style, f"{style.name}_t")
    first = ask(server, style)
    record(server, style, None)
    ask(server, style)
    record(server, style, f"{style.name}_t")
    last = ask(server, style)
    assert recorded(server, style, last) == [first, last]
    table = server.ok("GET", f"/api/1.0/endpoints/by-{style.name}/capture")
    assert (table["table"], table["enabled"]) == (f"main.f.{style.name}_t_payload", True)


def test_a_table_that_is_on_keeps_its_name(server: Any, style: Style) -> None:
    record(server, style, f"{style.name}_t")
    method, path, body = style.request("another", 1)
    status, message = server.refused(method, f"{BASE}/by-{style.name}/{path}", body)
    assert status == 400
    assert "another" in message and f"{style.name}_t" in message
    assert "switch the table off first" in message
    kept = ask(server, style)
    assert kept in recorded(server, style, kept)


def test_a_fraction_of_the_requests_is_recorded(server: Any, style: Style) -> None:
    record(server, style, f"{style.name}_t", 0)
    for _ in range(3):
        ask(server, style)
    record(server, style, f"{style.name}_t", 1)
    before = recorded(server, style, last := ask(server, style))
    record(server, style, f"{style.name}_t", 0.5)
    ids = [ask(server, style) for _ in range(60)]
    record(server, style, f"{style.name}_t", 1)
    found = recorded(server, style, last2 := ask(server, style))
    assert before[-1] == last
    kept = set(found) & set(ids)
    assert 10 <= len(kept) <= 50  # chance of less or more: 1e-7
    assert found[-1] == last2


def test_a_table_that_is_off_may_change_its_name(server: Any, style: Style) -> None:
    record(server, style, f"{style.name}_t")
    record(server, style, None)
    record(server, style, f"{style.name}_new")
    last = ask(server, style)
    assert recorded(server, style, last)[-1] == last
    with database.reading(server.engine) as db:
        old = catalog.get(db, f"main.f.{style.name}_t_payload")
        new = catalog.get(db, f"main.f.{style.name}_new_payload")
    assert old is not None and not old.enabled
    assert new is not None and new.enabled


def test_a_gateway_that_is_switched_on_again_needs_no_names(server: Any) -> None:
    table = {"schema_name": "f", "table_name_prefix": "kept_name"}
    body = {"inference_table_config": table}
    config = {"served_entities": [ENTITY]}
    server.ok("POST", BASE, {"name": "again", "config": config, "ai_gateway": body})
    for enabled in (False, True):
        only = {"inference_table_config": {"enabled": enabled}}
        stored = server.ok("PUT", f"{BASE}/again/ai-gateway", only)
        assert stored == {"inference_table_config": {**table, "enabled": enabled}}


def test_the_reply_of_the_legacy_style_names_the_table(server: Any) -> None:
    table = {"schema_name": "f", "table_name_prefix": "shown"}
    config = {"served_entities": [ENTITY], "auto_capture_config": table}
    server.ok("POST", BASE, {"name": "shown", "config": config})
    server.complete("shown")
    state = server.ok("GET", f"{BASE}/shown")["config"]["auto_capture_config"]["state"]
    assert state["payload_table"] == {"name": "shown_payload", "status": "READY"}
    server.ok("PUT", f"{BASE}/shown/config", {"auto_capture_config": {"enabled": False}})
    server.complete("shown")
    state = server.ok("GET", f"{BASE}/shown")["config"]["auto_capture_config"]["state"]
    assert state["payload_table"]["name"] == "shown_payload"
    assert "Switched off" in state["payload_table"]["status_message"]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("ai-gateway", {"inference_table_config": {"catalog_name": "system"}}),
        (
            "telemetry-config",
            {"telemetry_config": {"inference_table_config": {"name": "system.serving.x"}}},
        ),
    ],
)
def test_the_catalog_of_the_server_is_nobodys(server: Any, path: str, body: Any) -> None:
    if server.send("GET", f"{BASE}/modest").status_code == 404:
        server.ok("POST", BASE, {"name": "modest"})
    method = "PATCH" if path == "telemetry-config" else "PUT"
    status, message = server.refused(method, f"{BASE}/modest/{path}", body)
    assert status == 400 and "a catalog other than 'system'" in message
