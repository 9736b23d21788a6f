"""What every page stands in."""

from typing import Any

from dashboard import frame
from tests.dashboard import provider as standin
from tests.dashboard.reading import said


def test_without_a_token_there_is_a_form_and_nothing_else(opened: Any) -> None:
    app = opened("overview", token=None)
    assert [button.label for button in app.button] == ["Sign in"]
    assert "flight-delay" not in said(app)


def test_a_one_time_code_signs_in_and_leaves_the_url(opened: Any) -> None:
    app = opened("overview", token=None, code="good")
    assert app.session_state["token"] == standin.TOKEN
    assert "code" not in app.query_params
    assert "Signed in as **ann**" in said(app)


def test_an_old_code_says_so(opened: Any) -> None:
    app = opened("overview", token=None, code="old")
    assert "was used already or is older than 10 minutes" in said(app)
    assert "token" not in app.session_state


def test_a_wrong_token_is_refused(opened: Any) -> None:
    app = opened("overview", token=None)
    app.text_input[0].set_value("il_wrong")
    app.button[0].click().run()
    assert "does not know this token" in said(app)


def test_a_token_signs_in(opened: Any) -> None:
    app = opened("overview", token=None)
    app.text_input[0].set_value(standin.TOKEN)
    app.button[0].click().run()
    assert "What needs me?" in said(app)


def test_a_token_that_ended_leads_back_to_the_form(opened: Any) -> None:
    app = opened("overview", token="il_ended")
    assert "Your sign-in has ended" in said(app)


def test_signing_out_forgets_the_token(opened: Any) -> None:
    app = opened("overview")
    next(b for b in app.button if b.label == "Sign out").click().run()
    assert "token" not in app.session_state
    assert "Sign in to inferlake" in said(app)


def test_the_address_survives_a_change_of_page(opened: Any) -> None:
    app = opened("drift", range="7d", version="v2")
    app.query_params.clear()
    app.switch_page("views/quality.py")
    app.run()
    assert app.query_params["range"] == "7d"
    assert app.query_params["version"] == "v2"
    assert app.selectbox(key="header_endpoint").value == "flight-delay"


def test_a_choice_in_the_strip_changes_the_url(opened: Any) -> None:
    app = opened("quality")
    app.selectbox(key="header_version").set_value("v2").run()
    assert app.query_params["version"] == "v2"


def test_a_range_of_ones_own_is_in_utc(opened: Any) -> None:
    app = opened(
        "requests", **{"range": "own", "from": "2013-10-08T01:00", "to": "2013-10-10T01:00"}
    )
    assert app.query_params["from"] == "2013-10-08T01:00"
    assert not app.exception


def test_the_server_that_goes_away_leaves_old_values_marked_as_old(
    opened: Any, provider: Any
) -> None:
    app = opened("recommendations")
    provider.modes["/recommendations"] = "error"
    app.run()
    told = said(app)
    assert "v2 90 %, v1 10 %" in told
    assert "not current" in told
    assert not app.exception


def test_data_age_is_a_word_and_a_colour(opened: Any, provider: Any) -> None:
    def ask(reply: dict[str, Any]) -> str:
        provider.overrides["/capture"] = reply
        return said(opened("quality"))

    old = standin.iso(standin.now().replace(year=2020))
    fresh = standin.iso(standin.now())
    assert ":green-badge" in ask({"table": "t", "last_commit_time": fresh, "lag_seconds": 0.1})
    assert ":orange-badge" in ask({"table": "t", "last_commit_time": old, "lag_seconds": 0.1})
    behind = ask({"table": "t", "last_commit_time": old, "lag_seconds": 900.0})
    assert ":red-badge" in behind
    assert "record 15 min behind" in behind
    assert "no rows yet" in ask({"table": "t", "last_commit_time": None, "lag_seconds": None})
    assert "age unknown" in ask({"table": "t", "last_commit_time": None, "committed_rows": 7})


def test_the_url_of_the_server_has_no_slash_at_its_end(monkeypatch: Any) -> None:
    monkeypatch.setenv("INFERLAKE_URL", "http://127.0.0.1:8000/")
    assert frame.server_url() == "http://127.0.0.1:8000"
