"""The tabs of an endpoint: while it starts, how it does, what happened, who may use it."""

from datetime import timedelta
from typing import Any

import pytest

from tests.dashboard import provider as standin
from tests.dashboard.reading import said

ENDPOINT = "/serving-endpoints/flight-delay"


def starting(update: str, **more: Any) -> dict[str, Any]:
    """A new endpoint whose first configuration is not live yet."""
    endpoint = standin.endpoint()
    began = int((standin.now() - timedelta(minutes=30)).timestamp() * 1000)
    endpoint["pending_config"] = endpoint.pop("config") | {"start_time": began}
    return endpoint | {"state": {"ready": "NOT_READY", "config_update": update}} | more


def test_a_start_is_told_step_by_step_with_its_seconds(opened: Any, provider: Any) -> None:
    provider.overrides[ENDPOINT] = starting("IN_PROGRESS")
    running = standin.replicas()
    since = standin.iso(standin.now() - timedelta(seconds=12))
    running["entities"][0] |= {
        "deployment": "DEPLOYMENT_CREATING",
        "message": f"Resolving packages {standin.HOSTILE}",
        "since": since,
    }
    provider.overrides["/replicas"] = running
    app = opened("endpoint")
    assert not app.exception
    told = said(app)
    assert "Configuration 2 starts** · 30 min so far" in told
    assert "✓ find the model → ● environment" in told
    assert "It goes on when this page is closed" in told
    send = next(b for b in app.button if b.label == "Send")
    assert send.disabled and "No version is ready yet" in send.help


def test_a_failed_start_shows_the_models_last_lines(opened: Any, provider: Any) -> None:
    message = "Served entity 'v1' did not start. It broke:\nValueError: no such column"
    provider.overrides[ENDPOINT] = starting("UPDATE_FAILED", update_message=message)
    app = opened("endpoint")
    told = said(app)
    assert "Served entity 'v1' did not start. ValueError: no such column" in told
    assert "Nothing is served yet." in told
    assert any("ValueError: no such column" in str(code.value) for code in app.code)


def test_the_load_is_told_per_version(opened: Any) -> None:
    app = opened("endpoint", tab="Metrics")
    assert not app.exception
    table = app.dataframe[0].value
    assert list(table["version"]) == ["v1", "v2"]
    assert set(table["memory"]) == {"123 MB"}
    assert set(table["replicas"]) == {"1 ready"}
    assert "Where the time goes" in said(app)


def test_the_way_to_a_model_is_told_and_why_no_faster_one_is_taken(
    opened: Any, provider: Any
) -> None:
    running = standin.replicas()
    running["entities"][1]["replicas"][0] |= {"ways": None, "calls": None}
    provider.overrides["/replicas"] = running
    app = opened("endpoint", tab="Metrics")
    assert not app.exception
    (told,) = [str(each.value) for each in app.caption if "is called by" in str(each.value)]
    assert told.startswith("**v1** is called by a typed table (frame)")
    assert "Requests answered: 1,204 by frame, 3 by mlflow." in told
    assert "numpy (not all columns are double)" in told


def test_parts_and_codes_are_asked_for(opened: Any, provider: Any) -> None:
    opened("endpoint", tab="Metrics", by="per version")
    asked = [query for path, query in provider.queries if path.endswith("/timeseries")]
    assert {query.get("by") for query in asked} == {"served_entity", "status_code"}
    assert "gateway,queue,features,predict" in asked[0]["metrics"]


def test_metrics_of_an_unrecorded_endpoint_say_so_and_how_to_switch_the_record_on(
    opened: Any, provider: Any
) -> None:
    nothing = {"step_seconds": None, "series": [], "events": []}
    provider.overrides["/timeseries"] = nothing | {"recorded": False}
    app = opened("endpoint", tab="Metrics")
    assert not app.exception
    told = said(app)
    assert "Requests of this endpoint are not recorded" in told
    assert "/flight-delay/ai-gateway" in told and "inference_table_config" in told
    assert "No request in this time range" not in told
    provider.overrides["/timeseries"] = nothing | {"recorded": True}
    told = said(opened("endpoint", tab="Metrics"))
    assert "No request in this time range" in told
    assert "are not recorded" not in told


def test_events_tell_who_what_how_long_and_why(opened: Any) -> None:
    app = opened("endpoint", tab="Events")
    assert not app.exception
    table = app.dataframe[0].value
    assert table["what"].iloc[0] == "Configuration 3 failed"
    assert list(table["took"]) == ["12 s", "–"]
    assert list(table["by"]) == ["–", "ann"]
    assert len(opened("endpoint", tab="Events", kind="alerts").dataframe) == 0


def test_logs_are_searched_per_replica(opened: Any, provider: Any) -> None:
    text = "==> replica-a1.log <==\nready\nslow start\n==> replica-b2.log <==\nfailed to bind\n"
    provider.overrides["/logs"] = {"logs": text}
    app = opened("endpoint", tab="Logs", of="v2", find="FAILED")
    assert not app.exception
    assert "1 line." in said(app)
    assert any(str(code.value) == "failed to bind" for code in app.code)
    app = opened("endpoint", tab="Logs")
    app.selectbox(key="replica_v1_service").select("a1").run()
    assert any(str(code.value) == "ready\nslow start" for code in app.code)


def test_a_change_as_json_is_checked_and_sent(opened: Any, provider: Any) -> None:
    app = opened("endpoint", tab="Configuration", edit="JSON")
    assert not app.exception
    assert "Nothing is changed yet." in said(app)
    field = next(t for t in app.text_area if t.label == "Configuration")
    field.set_value(field.value.replace('"Small"', '"Large"', 1)).run()
    assert "The server has checked it." in said(app)
    app.button(key="edit_send").click().run()
    method, path, body = provider.sent[-1]
    assert (method, path) == ("PUT", "/api/2.0/serving-endpoints/flight-delay/config")
    assert [e["workload_size"] for e in body["served_entities"]] == ["Large", "Small"]
    assert "state" not in body["served_entities"][0]
    field.set_value("{").run()
    assert "This is no JSON" in said(app)


def test_limits_are_set_for_all_and_for_each_user(opened: Any, provider: Any) -> None:
    app = opened("endpoint", tab="Configuration")
    app.number_input[0].set_value(600)
    next(b for b in app.button if b.label == "Set the limits").click().run()
    method, path, body = provider.sent[-1]
    assert (method, path.rpartition("/")[2]) == ("PUT", "ai-gateway")
    assert body == {"rate_limits": [{"key": "endpoint", "calls": 600, "renewal_period": "minute"}]}


def test_what_is_set_beside_the_configuration_is_shown(opened: Any, provider: Any) -> None:
    tags = [{"key": "team", "value": "pricing"}]
    gateway = {"usage_tracking_config": {"enabled": True}}
    provider.overrides[ENDPOINT] = standin.endpoint() | {"tags": tags, "ai_gateway": gateway}
    app = opened("endpoint", tab="Configuration")
    assert not app.exception
    table = next(d.value for d in app.dataframe if "set to" in d.value)
    assert dict(zip(table["what"], table["set to"], strict=True)) == {
        "tags": "team=pricing",
        "usage tracking": "on",
    }


def test_a_grant_is_given_and_taken_away(opened: Any, provider: Any) -> None:
    app = opened("endpoint", tab="Permissions")
    assert not app.exception
    assert list(app.dataframe[0].value["who"]) == ["admin", "bob", "admins"]
    app.text_input(key="grant_who").set_value("eve")
    next(b for b in app.button if b.label == "Grant").click().run()
    method, path, body = provider.sent[-1]
    assert (method, path) == ("PATCH", "/api/2.0/permissions/serving-endpoints/" + "0f" * 16)
    assert body["access_control_list"] == [{"user_name": "eve", "permission_level": "CAN_QUERY"}]
    next(b for b in app.button if b.label == "Revoke").click().run()
    method, _, body = provider.sent[-1]
    assert method == "PUT"
    assert body["access_control_list"] == [{"user_name": "admin", "permission_level": "CAN_MANAGE"}]


@pytest.mark.parametrize("tab", ["Configuration", "Permissions"])
def test_what_a_viewer_may_not_do_is_disabled_with_the_reason(
    opened: Any, provider: Any, tab: str
) -> None:
    provider.level = "CAN_VIEW"
    app = opened("endpoint", tab=tab)
    label = {"Configuration": "Set the limits", "Permissions": "Grant"}[tab]
    button = next(b for b in app.button if b.label == label)
    assert button.disabled and "Needs CAN_MANAGE" in button.help


@pytest.mark.parametrize(
    ("tab", "path"),
    [
        ("Metrics", "/replicas"),
        ("Events", "/events"),
        ("Logs", "/logs"),
        ("Configuration", "/versions"),
        ("Permissions", "/permissions"),
    ],
)
def test_a_part_that_fails_leaves_the_rest_of_the_page(
    opened: Any, provider: Any, tab: str, path: str
) -> None:
    provider.modes[path] = "error"
    app = opened("endpoint", tab=tab)
    assert not app.exception
    assert "Could not read" in said(app)
    assert "configuration 2" in said(app)
