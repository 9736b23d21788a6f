"""New endpoint: a form whose state is its address, checked by the server before it is sent."""

from typing import Any

import pytest

from tests.dashboard import provider as standin
from tests.dashboard.reading import said

SERVING = "/api/2.0/serving-endpoints"
MODEL = "main.flights.flight_delay"


def test_the_first_model_and_its_newest_version_can_be_made_at_once(
    opened: Any, provider: Any
) -> None:
    app = opened("create", endpoint="")
    assert not app.exception and not app.error
    told = said(app)
    assert "sklearn model; a request sends distance (double), carrier (string)." in told
    assert "The server has checked it" in told
    [(method, path, tried)] = provider.sent
    assert (method, path, tried["name"]) == ("POST", SERVING, "flight_delay")
    app.button(key="create").click().run()
    assert provider.sent[1] == ("POST", SERVING, tried)
    [entity] = tried["config"]["served_entities"]
    assert (entity["name"], entity["entity_name"], entity["entity_version"]) == ("v3", MODEL, "3")
    assert tried["config"]["auto_capture_config"]["schema_name"] == "flights"


def test_a_link_fills_the_form(opened: Any, provider: Any) -> None:
    asked = {"model": MODEL, "serve": "2", "beside": "3", "share": "25", "name": "delay"}
    app = opened("create", zero="yes", size="Medium", watch="classes", schema="f", **asked)
    assert not app.exception
    body = provider.sent[-1][2]
    assert body["name"] == "delay"
    assert [e["entity_version"] for e in body["config"]["served_entities"]] == ["2", "3"]
    assert body["config"]["served_entities"][0]["workload_size"] == "Medium"
    assert body["config"]["served_entities"][0]["scale_to_zero_enabled"] is True
    shares = [r["traffic_percentage"] for r in body["config"]["traffic_config"]["routes"]]
    assert shares == [75, 25]
    app.button(key="create").click().run()
    method, path, monitor = provider.sent[-1]
    assert (method, path) == (
        "POST",
        "/api/2.1/unity-catalog/tables/main.f.delay_unpacked/monitor",
    )
    assert monitor["inference_log"]["problem_type"] == "PROBLEM_TYPE_CLASSIFICATION"


def test_more_is_sent_as_it_was_written_and_stays_out_of_the_address(
    opened: Any, provider: Any
) -> None:
    app = opened("create", endpoint="", machine="CPU_LARGE", numbers="yes")
    app.text_area(key="create_variables").set_value("KEY={{secrets/s/k}}")
    app.text_area(key="create_tags").set_value("team=pricing")
    app.number_input(key="create_most").set_value(32)
    app.number_input(key="create_calls").set_value(600).run()
    assert not app.exception
    assert "The server has checked it" in said(app)
    body = provider.sent[-1][2]
    [entity] = body["config"]["served_entities"]
    assert entity["workload_type"] == "CPU_LARGE"
    assert entity["max_provisioned_concurrency"] == 32 and "workload_size" not in entity
    assert entity["environment_vars"] == {"KEY": "{{secrets/s/k}}"}
    assert body["tags"] == [{"key": "team", "value": "pricing"}]
    assert body["ai_gateway"]["rate_limits"][0]["calls"] == 600
    assert '"GPU' not in said(app) and '"calls": 600' in said(app)
    assert not any("secrets" in str(value) for value in app.query_params.values())
    app.button(key="create").click().run()
    assert provider.sent[-1] == ("POST", SERVING, body)


def test_a_wrong_line_under_more_is_said_before_the_server_is_asked(
    opened: Any, provider: Any
) -> None:
    app = opened("create", endpoint="")
    asked = len(provider.sent)
    app.text_area(key="create_variables").set_value("LOG_LEVEL").run()
    assert "Environment variables, line 1: write name=value" in said(app)
    assert app.button(key="create").disabled
    assert len(provider.sent) == asked


def test_what_the_server_refuses_cannot_be_sent_and_is_said(opened: Any, provider: Any) -> None:
    provider.modes[SERVING] = "conflict"
    provider.overrides[SERVING] = {"endpoints": []}
    app = opened("create", endpoint="", name="shop")
    assert app.button(key="create").disabled
    app = opened("create", endpoint="", name="my shop")
    assert "1 to 63 letters" in said(app)
    assert app.button(key="create").disabled


def test_kinds_that_are_not_offered_say_so(opened: Any, provider: Any) -> None:
    app = opened("create", type="external model")
    assert "Only custom models are offered so far" in said(app)
    assert provider.sent == []


def test_an_empty_registry_leads_to_a_first_model(opened: Any, provider: Any) -> None:
    provider.modes["/models"] = "empty"
    app = opened("create", endpoint="")
    assert not app.exception
    assert "No model is registered yet" in said(app)
    assert "registered_model_name" in said(app)


@pytest.mark.parametrize(
    ("mode", "told"),
    [("error", "Could not read the registered models"), ("denied", "You may not see")],
)
def test_a_registry_that_does_not_answer_is_told(
    opened: Any, provider: Any, mode: str, told: str
) -> None:
    provider.modes["/models"] = mode
    app = opened("create", endpoint="")
    assert not app.exception
    assert told in said(app)


def test_markup_in_the_registry_stays_text(opened: Any, provider: Any) -> None:
    evil = standin.HOSTILE
    version = {"version": "1", "aliases": [evil]}
    provider.overrides["/api/1.0/models"] = {"models": [{"name": evil, "versions": [version]}]}
    provider.overrides["/versions/1"] = {"columns": [{"name": evil, "type": evil}]}
    app = opened("create", endpoint="")
    assert not app.exception
    shown = [str(e.value) for kind in ("markdown", "caption") for e in getattr(app, kind)]
    assert not any("[x](http" in text or "<script>" in text for text in shown)
