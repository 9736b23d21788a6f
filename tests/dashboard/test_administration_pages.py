"""Usage and cost, Audit, Settings: each in its four states, and what each is for."""

from typing import Any

import pytest

from tests.dashboard import administration
from tests.dashboard import provider as standin
from tests.dashboard.reading import said

ENDPOINT = standin.NAME
# (page, section) -> (part of the path, what it says, what it says when there is nothing)
PAGES = {
    ("usage", ""): ("/usage", "2 rows", "Nothing was used in this time"),
    ("audit", ""): ("/audit", "newest first", "No change in this time"),
    ("settings", "tokens"): ("/tokens", "Its text is shown once", "No token yet"),
    ("settings", "users"): ("/grants", "These are your own grants", "No grant"),
    ("settings", "secrets"): ("/scopes/list", "never shown", "No scope yet"),
    ("settings", "prices"): ("/prices", "Set by admin", "No price is set"),
    ("settings", "storage"): ("/tables", "Only an administrator", "auto_capture_config"),
}


def administrator(provider: Any) -> None:
    provider.overrides["/me"] = {"user": "admin", "is_admin": True}


def page_of(opened: Any, page: str, section: str, **query: str) -> Any:
    query |= {"section": section} if section else {}
    return opened(page, **query)


@pytest.mark.parametrize(("page", "section"), PAGES)
def test_a_page_answers_its_question_without_an_error(opened: Any, page: str, section: str) -> None:
    app = page_of(opened, page, section, **({"by": "day"} if page == "usage" else {}))
    assert not app.exception
    assert not app.error
    told = said(app) + "".join(str(info.value) for info in app.info)
    assert PAGES[page, section][1] in told.replace("\\", "")


@pytest.mark.parametrize(("page", "section"), PAGES)
def test_an_empty_page_offers_the_next_step(
    opened: Any, provider: Any, page: str, section: str
) -> None:
    part, _, next_step = PAGES[page, section]
    provider.overrides[part] = {"total": {}}
    app = page_of(opened, page, section)
    assert not app.exception
    assert not app.error
    assert next_step in said(app)


@pytest.mark.parametrize(("page", "section"), PAGES)
def test_errors_and_refusals_are_told_with_the_way_on(
    opened: Any, provider: Any, page: str, section: str
) -> None:
    provider.modes[PAGES[page, section][0]] = "error"
    app = page_of(opened, page, section)
    assert not app.exception
    told = "\n".join(str(error.value) for error in app.error).replace("\\", "")
    assert "Could not read" in told and "request id req-17" in told
    assert any(button.label == "Try again" for button in app.button)
    provider.modes[PAGES[page, section][0]] = "denied"
    app = page_of(opened, page, section)
    assert not app.exception
    told = "\n".join(str(warning.value) for warning in app.warning).replace("\\", "")
    assert "administrator, can grant it" in told


def test_usage_says_numbers_with_units_and_why_a_cost_is_unknown(
    opened: Any, provider: Any
) -> None:
    provider.overrides["/usage"] = administration.DAYS
    app = opened("usage")
    assert [(m.label, m.value) for m in app.metric] == [
        ("Requests", "4,200"),
        ("Errors", "21 (0.50 %)"),
        ("Limits hit", "7"),
        ("Replica-hours", "48.00"),
        ("Cost", "12.50 EUR"),
    ]
    assert provider.asked("/usage")["endpoint"] == ENDPOINT
    unknown = administration.TOTAL | {"cost": None, "cost_reason": "no price is set"}
    provider.overrides["/usage"] = {"usage": [], "total": unknown, "currency": None}
    app = opened("usage")
    assert [m.value for m in app.metric][-1] == "–"
    assert "The cost is not known: no price is set." in said(app)


def test_usage_asks_for_the_period_and_the_dimension_of_the_url(opened: Any, provider: Any) -> None:
    opened("usage", by="user", range="24h")
    asked = provider.asked("/usage")
    assert (asked["by"], asked["order_by"], asked["page_size"]) == ("user", "requests", "100")
    assert asked["from"].endswith(":00Z")


def test_who_is_no_administrator_chooses_an_endpoint_first(opened: Any, provider: Any) -> None:
    provider.overrides["/api/2.0/serving-endpoints"] = {
        "endpoints": [standin.endpoint(), standin.endpoint() | {"name": "other"}]
    }
    app = opened("usage", endpoint="")
    assert "Choose an endpoint above" in "".join(str(info.value) for info in app.info)


def test_the_audit_filters_by_the_url_and_pages_by_key(opened: Any, provider: Any) -> None:
    app = opened("audit", what="traffic", who="ann", before="OQ==")
    asked = provider.asked("/audit")
    assert asked["action"] == "endpoint.*" and asked["actor"] == "ann"
    assert asked["endpoint"] == ENDPOINT and asked["page_token"] == "OQ=="
    table = app.dataframe[0].value
    assert table["change"][0] == "config_version: 1 → 2, split.v1: 90 → 50, split.v2: 10 → 50"
    assert table["from"][0] == "10.0.0.7"
    next(b for b in app.button if b.label == "Older").click()
    app.run()
    assert app.query_params["before"] == "OQ=="


def test_a_new_token_is_shown_once(opened: Any, provider: Any) -> None:
    provider.overrides["/me"] = {"user": "admin", "is_admin": True}
    app = opened("settings")
    text = "il_00ff00ff00ff00ff_" + "x" * 43
    sent: list[Any] = []
    written = provider._written

    def made(last: str, body: Any) -> Any:
        sent.append(body)
        return (
            (200, administration.TOKEN | {"token": text})
            if last == "tokens"
            else written(last, body)
        )

    provider._written = made
    try:
        app.text_input(key="token_comment").input("ci")
        app.text_input(key="token_user").input("bob")
        next(b for b in app.button if b.label == "Create token").click()
        app.run()
    finally:
        provider._written = written
    assert not app.error and not app.exception
    assert sent == [{"comment": "ci", "user": "bob", "lifetime_seconds": 90 * 86_400}]
    assert text in said(app)
    app.button(key="token_copied").click()
    app.run()
    assert text not in said(app)


def test_what_needs_an_administrator_is_disabled_with_the_reason(opened: Any) -> None:
    app = opened("settings", section="prices")
    assert all(field.disabled for field in (*app.number_input, *app.text_input))
    assert "Only an administrator may do this." in "".join(str(i.value) for i in app.info)
    app = opened("settings", section="tokens")
    assert app.text_input(key="token_user").disabled


def test_a_price_is_put_beside_the_others(opened: Any, provider: Any) -> None:
    administrator(provider)
    app = opened("settings", section="prices")
    app.selectbox(key="price_type").select("GPU_SMALL")
    app.number_input(key="price_hour").set_value(1.5)
    next(b for b in app.button if b.label == "Set").click()
    app.run()
    assert not app.error and not app.exception
    method, path, table = provider.sent[-1]
    assert (method, path) == ("PUT", "/api/1.0/prices")
    assert table["replica_hours"] == [
        *administration.PRICES["replica_hours"],
        {"workload_type": "GPU_SMALL", "workload_size": None, "price": 1.5},
    ]
    assert (table["currency"], table["per_1000_requests"]) == ("EUR", 0.02)


def test_a_secret_is_written_and_never_asked_for(opened: Any, provider: Any) -> None:
    app = opened("settings", section="secrets")
    app.text_input(key="secret_key").input("pass")
    app.text_input(key="secret_value").input("hidden-value")
    next(b for b in app.button if b.label == "Save").click()
    app.run()
    assert provider.sent[-1][2] == {
        "scope": "models",
        "key": "pass",
        "string_value": "hidden-value",
    }
    assert "hidden-value" not in said(app)
    assert not [path for path, _ in provider.queries if path.endswith("/secrets/get")]


def test_a_grant_joins_the_others_of_its_user(opened: Any, provider: Any) -> None:
    administrator(provider)
    kept = {"endpoint": "elsewhere", "level": "CAN_MANAGE"}
    provider.overrides["/grants"] = {"user": "admin", "grants": [kept]}
    app = opened("settings", section="users")
    next(b for b in app.button if b.label == "Save").click()
    app.run()
    method, path, body = provider.sent[-1]
    assert (method, path) == ("PUT", "/api/1.0/users/admin/grants")
    assert body == {"grants": [kept, {"endpoint": ENDPOINT, "level": "CAN_QUERY"}]}


def test_a_full_disk_and_a_late_log_are_said_in_words(opened: Any, provider: Any) -> None:
    administrator(provider)
    full = {"wal_bytes": 3 << 30, "disk_free_bytes": 1 << 30}
    provider.overrides["/storage"] = administration.REPLIES["/storage"] | full
    app = opened("settings", section="storage")
    told = "\n".join(str(error.value) for error in app.error).replace("\\", "")
    assert "The record is behind: 75 %" in told and "The disk is nearly full" in told
