"""The Alerts page: new rules, and the receivers of what happens."""

from typing import Any

import pytest

from tests.dashboard import provider as standin
from tests.dashboard.reading import said

RECEIVER = {
    "id": "w1",
    "url": "https://example.org/<b>hook</b>",
    "events": ["alert.*"],
    "format": "standard",
    "description": None,
    "created_time": "2013-07-01T00:00:00Z",
}


@pytest.fixture
def admin(provider: Any) -> Any:
    provider.overrides["/me"] = {"user": "ann", "is_admin": True}
    provider.overrides["/webhooks"] = {"webhooks": [RECEIVER]}
    return provider


def press(app: Any, label: str) -> Any:
    return next(b for b in app.button if b.label == label).click().run()


def test_a_rule_can_watch_a_slice_of_a_version_for_several_windows(
    opened: Any, provider: Any
) -> None:
    app = opened("alerts")
    app.text_input(key="rule_slice").set_value(" carrier=AA ")
    app.text_input(key="rule_version").set_value("v2")
    app.number_input(key="rule_windows").set_value(3)
    app.selectbox(key="rule_enabled").set_value("off")
    press(app, "Create the rule")
    method, path, rule = provider.sent[-1]
    assert (method, path) == ("POST", "/api/1.0/alert-rules")
    assert (rule["slice"], rule["served_entity"]) == ("carrier=AA", "v2")
    assert (rule["windows"], rule["enabled"]) == (3, False)
    assert "column" not in rule


def test_who_is_no_administrator_is_told_whose_receivers_are(opened: Any, provider: Any) -> None:
    app = opened("alerts")
    assert "Receivers hear of every endpoint" in said(app)
    assert not [path for path, _ in provider.queries if path.endswith("/webhooks")]


def test_a_new_receiver_s_secret_is_shown_once(opened: Any, admin: Any) -> None:
    app = opened("alerts")
    app.text_input(key="receiver_url").set_value("https://example.org/hook")
    app = press(app, "Add the receiver")
    assert admin.sent[-1] == (
        "POST",
        "/api/1.0/webhooks",
        {"url": "https://example.org/hook", "events": ["alert.*"], "format": "standard"},
    )
    assert standin.WEBHOOK_SECRET in [code.value for code in app.code]
    app = press(app, "I have copied it")
    assert standin.WEBHOOK_SECRET not in [code.value for code in app.code]


def test_an_address_the_server_refuses_is_said_where_it_was_typed(opened: Any, admin: Any) -> None:
    app = opened("alerts")
    app.text_input(key="receiver_url").set_value("ftp://example.org/hook")
    app = press(app, "Add the receiver")
    assert any("an http or https address" in error.value for error in app.error)


def test_without_receivers_the_page_says_what_one_is(opened: Any, admin: Any) -> None:
    admin.overrides["/webhooks"] = {"webhooks": []}
    assert "Nobody is told" in said(opened("alerts"))


def test_a_slice_is_named_where_an_alert_has_no_words_of_its_own(
    opened: Any, provider: Any
) -> None:
    bare = standin.alert("open") | {"message": None, "slice": "carrier=AA"}
    provider.overrides["/alerts"] = {"alerts": [bare]}
    assert "where carrier=AA" in said(opened("alerts"))
