"""The one dialog that changes traffic."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from dashboard import actions
from tests.dashboard import provider as standin
from tests.dashboard.reading import said

SHARES = st.lists(st.integers(0, 100), min_size=2, max_size=10)


def open_dialog(opened: Any, label: str, page: str = "experiment") -> Any:
    app = opened(page)
    next(b for b in app.button if b.label.startswith(label)).click().run()
    return app


def submit(app: Any) -> Any:
    return next(b for b in app.button if b.label == "Change traffic").click().run()


# what will be sent


@given(SHARES, st.integers(0, 100), st.data())
def test_shares_sum_to_100_whatever_is_moved(shares: list[int], percentage: int, data: Any) -> None:
    before = tuple((f"v{place}", float(share)) for place, share in enumerate(shares))
    entity = data.draw(st.sampled_from([name for name, _ in before]))
    after = dict(actions.moved(before, entity, percentage))
    assert sum(after.values()) == 100
    assert after[entity] == percentage
    assert all(share >= 0 and share == int(share) for share in after.values())


def test_others_share_the_rest_in_their_proportions() -> None:
    before = (("v1", 60.0), ("v2", 30.0), ("v3", 10.0))
    assert actions.moved(before, "v3", 40) == (("v1", 40.0), ("v2", 20.0), ("v3", 40.0))
    idle = (("v1", 0.0), ("v2", 0.0), ("v3", 100.0))
    assert actions.moved(idle, "v3", 50) == (("v1", 25.0), ("v2", 25.0), ("v3", 50.0))


def test_a_version_without_a_route_is_shown_with_nothing() -> None:
    config = standin.configuration(1, {"v1": 100, "v2": 0})
    config["traffic_config"]["routes"].pop()
    assert actions.routes(config) == (("v1", 100.0), ("v2", 0.0))
    assert actions.routes({"served_entities": [{"name": "only"}]}) == (("only", 100.0),)
    assert actions.routes(None) == ()


def test_the_same_request_can_be_copied_without_the_token() -> None:
    text = actions.curl("POST", "http://127.0.0.1:8000/x", {"reason": "it's time"})
    assert "$INFERLAKE_TOKEN" in text
    assert "'\"'\"'" in text
    assert standin.TOKEN not in text


# the dialog


def test_the_dialog_sends_the_version_it_was_shown(opened: Any, provider: Any) -> None:
    app = open_dialog(opened, "Promote")
    next(t for t in app.text_input if t.key == "change_reason").set_value("decided")
    submit(app)
    assert provider.sent[-1] == (
        "POST",
        "/api/1.0/endpoints/flight-delay/promote",
        {
            "served_entity": "v2",
            "traffic_percentage": 90,
            "if_config_version": 2,
            "reason": "decided",
        },
    )


def test_the_dialog_shows_what_it_is_based_on_and_the_request(opened: Any) -> None:
    app = open_dialog(opened, "Promote")
    assert "- v2 against v1 on log loss" in said(app)
    assert "curl -X POST" in said(app)


def test_giving_everything_to_one_version_asks_for_the_name(opened: Any, provider: Any) -> None:
    app = open_dialog(opened, "Roll back to v1")
    submit(app)
    assert "nothing was changed" in said(app)
    assert provider.sent == []
    next(t for t in app.text_input if t.key == "change_name").set_value("flight-delay")
    submit(app)
    assert provider.sent[-1][2]["traffic_percentage"] == 100


def test_a_shift_is_chosen_with_a_slider(opened: Any, provider: Any) -> None:
    app = open_dialog(opened, "Shift traffic")
    app.slider(key="change_share_v2").set_value(20).run()
    submit(app)
    assert provider.sent[-1][2]["traffic_percentage"] == 20


def test_success_says_what_stands_now_and_can_be_undone(opened: Any, provider: Any) -> None:
    app = submit(open_dialog(opened, "Promote"))
    assert "flight-delay: v2 90 %, v1 10 %." in said(app)
    next(b for b in app.button if b.label == "Undo").click().run()
    method, path, body = provider.sent[-1]
    assert (method, path) == ("POST", "/api/1.0/endpoints/flight-delay/rollback")
    assert (body["to_config_version"], body["if_config_version"]) == (2, 3)
    assert "Undone." in said(app)


def test_an_undo_never_undoes_what_somebody_did_later(opened: Any, provider: Any) -> None:
    app = submit(open_dialog(opened, "Promote"))
    provider.modes["/rollback"] = "conflict"
    next(b for b in app.button if b.label == "Undo").click().run()
    assert "Not undone, somebody changed it since" in said(app)


def test_a_conflict_changes_nothing_and_shows_both(opened: Any, provider: Any) -> None:
    app = open_dialog(opened, "Promote")
    provider.modes["/promote"] = "conflict"
    moved = standin.endpoint() | {"config": standin.configuration(3, {"v1": 70, "v2": 30})}
    provider.overrides["/serving-endpoints/flight-delay"] = moved
    submit(app)
    assert "You were shown configuration 2: v1 50 %, v2 50 %" in said(app)
    assert "It is now configuration 3: v1 70 %, v2 30 %" in said(app)
    assert provider.sent == []


def test_a_recommendation_is_applied_through_the_same_dialog(opened: Any, provider: Any) -> None:
    app = submit(open_dialog(opened, "Apply", "recommendations"))
    assert provider.sent[-1] == (
        "POST",
        "/api/1.0/recommendations/rec-1/apply",
        {"if_config_version": 2},
    )
    assert "flight-delay: v2 90 %, v1 10 %." in said(app)


def test_a_message_is_gone_on_the_next_page(opened: Any) -> None:
    app = submit(open_dialog(opened, "Promote"))
    app.switch_page("views/quality.py")
    app.run()
    assert "v2 90 %, v1 10 %." not in said(app)
