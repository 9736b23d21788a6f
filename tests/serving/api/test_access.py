"""Tokens, sign-in, permissions and grants over HTTP."""

import time
from typing import Any

import pytest

from capture import audit, database
from serving import access, access_state

BASE = "/api/2.0/serving-endpoints"
OURS = "/api/1.0"


def permissions(endpoint: Any) -> str:
    return f"/api/2.0/permissions/serving-endpoints/{endpoint['id']}"


def test_a_token_works_in_the_very_next_request(server: Any) -> None:
    for number in range(5):
        token = server.token(f"user-{number}")
        assert server.ok("GET", f"{OURS}/me", token=token)["user"] == f"user-{number}"


def test_a_revoked_token_is_worth_nothing(server: Any) -> None:
    made = server.ok("POST", f"{OURS}/tokens", {"user": "leaver", "comment": "laptop"})
    listed = {t["id"]: t for t in server.ok("GET", f"{OURS}/tokens?page_size=1000")["tokens"]}
    assert listed[made["id"]]["comment"] == "laptop"
    assert "token" not in listed[made["id"]]
    server.ok("DELETE", f"{OURS}/tokens/{made['id']}")
    assert server.refused("GET", f"{OURS}/me", token=made["token"])[0] == 403
    assert server.refused("DELETE", f"{OURS}/tokens/{made['id']}")[0] == 404


def test_a_token_ends_with_its_lifetime(server: Any) -> None:
    token = server.token("brief", lifetime_seconds=1)
    ends = time.monotonic() + 30
    while server.send("GET", f"{OURS}/me", token=token).status_code == 200:
        assert time.monotonic() < ends
    assert server.refused("GET", f"{OURS}/me", token=token)[0] == 403


def test_users_make_and_see_their_own_tokens_only(server: Any) -> None:
    ann = server.token("ann")
    own = server.ok("POST", f"{OURS}/tokens", {"comment": "second"}, token=ann)
    assert own["user"] == "ann"
    seen = server.ok("GET", f"{OURS}/tokens", token=ann)["tokens"]
    assert {each["user"] for each in seen} == {"ann"} and len(seen) == 2
    assert server.refused("POST", f"{OURS}/tokens", {"user": "bob"}, token=ann)[0] == 403
    other = server.ok("POST", f"{OURS}/tokens", {"user": "bob"})
    assert server.refused("DELETE", f"{OURS}/tokens/{other['id']}", token=ann)[0] == 404
    assert server.ok("DELETE", f"{OURS}/tokens/{own['id']}", token=ann) == {}


def test_tokens_are_paged(server: Any) -> None:
    for _ in range(3):
        server.token("paged")
    seen: list[str] = []
    path = f"{OURS}/tokens?page_size=2"
    while path:
        page = server.ok("GET", path)
        seen += [each["id"] for each in page["tokens"]]
        after = page.get("next_page_token")
        path = f"{OURS}/tokens?page_size=2&page_token={after}" if after else ""
    everything = server.ok("GET", f"{OURS}/tokens?page_size=1000")["tokens"]
    assert seen == [each["id"] for each in everything]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"user": "service"}, "user: expected a name other than that of the service"),
        ({"lifetime_seconds": 0}, "lifetime_seconds: expected an integer 1.."),
        ({"nope": 1}, "nope: unknown field; allowed: comment, user, lifetime_seconds."),
    ],
)
def test_a_bad_token_request_is_told(server: Any, body: Any, message: str) -> None:
    status, told = server.refused("POST", f"{OURS}/tokens", body)
    assert status == 400 and message in told


@pytest.mark.parametrize(
    "query", ["page_size=0", "page_size=1001", "page_size=x", "page_token=%21"]
)
def test_a_bad_page_is_told(server: Any, query: str) -> None:
    assert server.refused("GET", f"{OURS}/tokens?{query}")[0] == 400


def test_a_sign_in_code_gives_one_token(server: Any) -> None:
    code = "a-code-from-a-link"
    soon = time.time_ns() // 1_000_000 + 60_000
    with database.transaction(server.engine) as db:
        access_state.add_sign_in_code(db, access.token_hash(code), "admin", soon)
    made = server.ok("POST", f"{OURS}/sign-in", {"code": code}, token=None)
    who = server.ok("GET", f"{OURS}/me", token=made["token"])
    assert (who["user"], who["is_admin"]) == ("admin", True)
    assert made["expires_time"].endswith("Z")
    assert server.refused("POST", f"{OURS}/sign-in", {"code": code}, token=None)[0] == 403


@pytest.mark.parametrize("body", [None, {}, {"code": 5}, [], {"code": ""}])
def test_sign_in_without_a_code_is_unauthenticated(server: Any, body: Any) -> None:
    assert server.refused("POST", f"{OURS}/sign-in", body, token=None)[0] == 401


def test_an_endpoint_without_a_grant_does_not_exist(server: Any) -> None:
    made = server.ok("POST", BASE, {"name": "hers"}, token=server.token("owner"))
    eve = server.token("eve")
    assert made["name"] not in str(server.ok("GET", BASE, token=eve))
    for method, path in (
        ("GET", f"{BASE}/hers"),
        ("DELETE", f"{BASE}/hers"),
        ("GET", f"{OURS}/endpoints/hers/versions"),
        ("POST", f"{OURS}/endpoints/hers/stop"),
        ("GET", permissions(made)),
        ("POST", "/serving-endpoints/hers/invocations"),
    ):
        assert server.refused(method, path, {}, token=eve)[0] == 404, path


def test_grants_bite_in_the_very_next_request_and_say_what_is_missing(server: Any) -> None:
    made = server.ok("POST", BASE, {"name": "shared"})
    bob = server.token("bob-of-grants")
    acl = {"access_control_list": [{"user_name": "bob-of-grants", "permission_level": "CAN_VIEW"}]}
    server.ok("PATCH", permissions(made), acl)
    assert server.ok("GET", f"{BASE}/shared", token=bob)["permission_level"] == "CAN_VIEW"
    status, message = server.refused("DELETE", f"{BASE}/shared", token=bob)
    assert status == 403
    assert message == "CAN_MANAGE on endpoint 'shared' is needed; you have CAN_VIEW."
    status, message = server.refused("POST", "/serving-endpoints/shared/invocations", {}, token=bob)
    assert (status, message) == (
        403,
        "CAN_QUERY on endpoint 'shared' is needed; you have CAN_VIEW.",
    )
    server.ok("PUT", permissions(made), {"access_control_list": []})
    assert server.refused("GET", f"{BASE}/shared", token=bob)[0] == 404


def test_permissions_are_shown_as_databricks_shows_them(server: Any) -> None:
    made = server.ok("POST", BASE, {"name": "listed-rights"}, token=server.token("carol"))
    acl = [
        {"group_name": "users", "permission_level": "CAN_QUERY"},
        {"service_principal_name": "ci", "permission_level": "CAN_MANAGE"},
        {"user_name": "carol", "permission_level": "CAN_VIEW"},
    ]
    shown = server.ok("PUT", permissions(made), {"access_control_list": acl})
    assert shown["object_id"] == f"/serving-endpoints/{made['id']}"
    assert shown["object_type"] == "serving-endpoint"
    levels = {
        each.get("user_name") or each.get("group_name") or each["service_principal_name"]: each[
            "all_permissions"
        ][0]["permission_level"]
        for each in shown["access_control_list"]
    }
    assert levels == {
        "users": "CAN_QUERY",
        "ci": "CAN_MANAGE",
        "carol": "CAN_MANAGE",  # the creator keeps it
        "admins": "CAN_MANAGE",
    }
    assert server.ok("GET", permissions(made)) == shown
    anybody = server.token("anybody")
    assert (
        server.ok("GET", f"{BASE}/listed-rights", token=anybody)["permission_level"] == "CAN_QUERY"
    )
    found = server.ok("GET", f"{permissions(made)}/permissionLevels")["permission_levels"]
    assert [each["permission_level"] for each in found] == ["CAN_VIEW", "CAN_QUERY", "CAN_MANAGE"]


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ({"permission_level": "CAN_VIEW"}, "exactly one of user_name, group_name"),
        ({"user_name": "a", "permission_level": "CAN_FLY"}, "expected one of CAN_VIEW, CAN_QUERY"),
        ({"group_name": "ops", "permission_level": "CAN_VIEW"}, "expected one of users, admins"),
        ({"user_name": "a"}, "permission_level: a value is needed"),
    ],
)
def test_a_bad_grant_is_told(server: Any, item: Any, message: str) -> None:
    made = server.send("POST", BASE, {"name": "bad-grants"})
    found = server.ok("GET", f"{BASE}/bad-grants") if made.status_code == 400 else made.json()
    body = {"access_control_list": [item]}
    status, told = server.refused("PATCH", permissions(found), body)
    assert status == 400 and message in told


def test_an_unknown_id_is_404(server: Any) -> None:
    assert server.refused("GET", permissions({"id": "0" * 32}))[0] == 404


def test_a_users_grants_are_read_and_replaced(server: Any) -> None:
    for name in ("g1", "g2"):
        server.ok("POST", BASE, {"name": name})
    path = f"{OURS}/users/dave/grants"
    body = {
        "grants": [
            {"endpoint": "g1", "level": "CAN_VIEW"},
            {"endpoint": "g2", "level": "CAN_QUERY"},
        ]
    }
    assert server.ok("PUT", path, body) == {"user": "dave", **body}
    dave = server.token("dave")
    assert server.ok("GET", path, token=dave) == {"user": "dave", **body}
    assert server.refused("PUT", path, {"grants": []}, token=dave)[0] == 403
    assert server.refused("GET", f"{OURS}/users/admin/grants", token=dave)[0] == 403
    assert server.ok("PUT", path, {"grants": []}) == {"user": "dave", "grants": []}
    status, _ = server.refused("PUT", path, {"grants": [{"endpoint": "no", "level": "CAN_VIEW"}]})
    assert status == 404


def test_who_made_which_token_stands_in_the_audit_without_its_text(server: Any) -> None:
    made = server.ok("POST", f"{OURS}/tokens", {"user": "audited"})
    with database.reading(server.engine) as db:
        row = next(r for r in audit.read(db, 50) if (r.after or {}).get("id") == made["id"])
    assert (row.actor, row.action) == ("admin", "token.create")
    assert made["token"] not in str(row)
