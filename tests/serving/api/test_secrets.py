"""Secret scopes over HTTP."""

import base64
from typing import Any

import pytest

BASE = "/api/2.0/secrets"
VALUE = "a-very-secret-value-4711"


def opened(server: Any, scope: str, token: str | None = None) -> dict[str, Any]:
    """A scope of this token's user, with one secret."""
    as_user = {} if token is None else {"token": token}
    server.ok("POST", f"{BASE}/scopes/create", {"scope": scope}, **as_user)
    body = {"scope": scope, "key": "k", "string_value": VALUE}
    server.ok("POST", f"{BASE}/put", body, **as_user)
    return as_user


def test_a_secret_is_written_listed_read_and_removed(server: Any) -> None:
    opened(server, "s1")
    assert "s1" in [s["name"] for s in server.ok("GET", f"{BASE}/scopes/list")["scopes"]]
    listed = server.ok("GET", f"{BASE}/list?scope=s1")["secrets"]
    assert [each["key"] for each in listed] == ["k"]
    assert VALUE not in str(listed)
    found = server.ok("GET", f"{BASE}/get?scope=s1&key=k")
    assert base64.b64decode(found["value"]).decode() == VALUE
    encoded = base64.b64encode(b"other").decode()
    server.ok("POST", f"{BASE}/put", {"scope": "s1", "key": "k", "bytes_value": encoded})
    assert server.ok("GET", f"{BASE}/get?scope=s1&key=k")["value"] == encoded
    assert server.ok("POST", f"{BASE}/delete", {"scope": "s1", "key": "k"}) == {}
    assert server.refused("GET", f"{BASE}/get?scope=s1&key=k")[0] == 404
    assert server.refused("POST", f"{BASE}/delete", {"scope": "s1", "key": "k"})[0] == 404
    assert server.ok("POST", f"{BASE}/scopes/delete", {"scope": "s1"}) == {}
    assert server.refused("GET", f"{BASE}/list?scope=s1")[0] == 404


def test_a_scope_is_its_owners(server: Any) -> None:
    owner, other = server.token("scope-owner"), server.token("scope-other")
    opened(server, "s2", owner)
    for method, path, body in (
        ("GET", "/get?scope=s2&key=k", None),
        ("GET", "/list?scope=s2", None),
        ("POST", "/put", {"scope": "s2", "key": "k", "string_value": "x"}),
        ("POST", "/delete", {"scope": "s2", "key": "k"}),
        ("POST", "/scopes/delete", {"scope": "s2"}),
    ):
        assert server.refused(method, f"{BASE}{path}", body, token=other)[0] == 404
    assert "s2" not in str(server.ok("GET", f"{BASE}/scopes/list", token=other))
    assert "s2" in str(server.ok("GET", f"{BASE}/scopes/list", token=owner))


def test_a_value_is_nowhere_but_in_the_answer_that_asks_for_it(server: Any) -> None:
    opened(server, "s3")
    folder = server.settings.data_dir
    places = [*folder.glob("inferlake.db*"), folder / "gateway.out"]
    assert all(VALUE.encode() not in path.read_bytes() for path in places)
    assert (folder / "secret-key").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"scope": "s4"}, "key: a value is needed"),
        ({"scope": "s4", "key": "k"}, "Exactly one of string_value, bytes_value"),
        ({"scope": "s4", "key": "k", "string_value": "a", "bytes_value": "YQ=="}, "Exactly one"),
        ({"scope": "s4", "key": "k", "string_value": ""}, "1 to 131072 bytes"),
        ({"scope": "s4", "key": "k", "string_value": 5}, "string_value: expected a string"),
        ({"scope": "s4", "key": "k", "bytes_value": "###"}, "UTF-8 text in base64"),
        ({"scope": "s/4", "key": "k", "string_value": "a"}, "scope: expected 1 to 128 letters"),
    ],
)
def test_a_bad_secret_is_told_without_repeating_it(server: Any, body: Any, message: str) -> None:
    status, told = server.refused("POST", f"{BASE}/put", body)
    assert status == 400 and message in told


def test_a_scope_is_opened_once(server: Any) -> None:
    opened(server, "s5")
    told = server.send("POST", f"{BASE}/scopes/create", {"scope": "s5"})
    assert (told.status_code, told.json()["error_code"]) == (400, "RESOURCE_ALREADY_EXISTS")
