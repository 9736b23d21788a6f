"""Every refusal has one shape, and nothing is open by accident."""

import gzip
import json
from typing import Any

import pytest

ENDPOINTS = "/api/2.0/serving-endpoints"


def test_health_and_discovery_need_no_token(server: Any) -> None:
    assert server.send("GET", "/health", token=None).status_code == 200
    discovery = server.send("GET", "/.well-known/databricks-config", token=None)
    assert discovery.status_code == 404
    assert discovery.json()["error_code"] == "ENDPOINT_NOT_FOUND"


@pytest.mark.parametrize("path", ["/metrics", ENDPOINTS, "/openapi.json", "/nope", "/docs", "/"])
def test_everything_else_does(server: Any, path: str) -> None:
    told = server.send("GET", path, token=None)
    assert (told.status_code, told.json()["error_code"]) == (401, "UNAUTHENTICATED")
    wrong = server.send("GET", path, token="il_0123456789abcdef_" + "A" * 43)
    assert (wrong.status_code, wrong.json()["error_code"]) == (403, "PERMISSION_DENIED")


@pytest.mark.parametrize("header", [{"Cookie": "token=x"}, {"X-Api-Key": "bootstrap-admin-token"}])
def test_a_token_is_taken_from_its_header_alone(server: Any, header: dict[str, str]) -> None:
    for path in (ENDPOINTS, f"{ENDPOINTS}?access_token=bootstrap-admin-token"):
        assert server.send("GET", path, token=None, headers=header).status_code == 401


@pytest.mark.parametrize(
    "path", ["/nope", f"{ENDPOINTS}/%2e%2e/x", f"{ENDPOINTS}/a%2fb", f"{ENDPOINTS}/a%00", "/%ff/x"]
)
def test_odd_paths_are_no_routes(server: Any, path: str) -> None:
    told = server.send("GET", path)
    assert (told.status_code, told.json()["error_code"]) == (404, "ENDPOINT_NOT_FOUND")


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH"])
def test_a_method_that_is_not_offered_is_405(server: Any, method: str) -> None:
    told = server.send(method, ENDPOINTS)
    assert (told.status_code, told.json()["error_code"]) == (405, "ENDPOINT_NOT_FOUND")


def test_both_spellings_of_a_path_are_one(server: Any) -> None:
    for path in ("/api/1.0/me", f"{ENDPOINTS}", "/health"):
        assert server.send("GET", f"{path}/").json() == server.send("GET", path).json()


def test_every_answer_has_an_id_and_is_not_to_be_stored(server: Any) -> None:
    one, two = server.send("GET", "/api/1.0/me"), server.send("GET", "/nope")
    assert one.headers["x-request-id"] != two.headers["x-request-id"]
    assert one.headers["cache-control"] == two.headers["cache-control"] == "no-store"
    assert "access-control-allow-origin" not in one.headers


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"name":', "Body is not valid JSON: unexpected end of data at byte 8."),
        ('{"é": tru}'.encode(), "Body is not valid JSON: invalid literal, expected 'true' at byte"),
        (b'{"name": NaN}', "Body is not valid JSON"),
        (b'{"name": 1e400}', "Body is not valid JSON: number is infinity"),
        (b'{"name": "\\ud800"}', "Body is not valid JSON: no low surrogate"),
        (b"\xff\xfe{\x00}\x00", "Body is not valid JSON"),
        (b"{} {}", "unexpected content after document at byte 3"),
        (b'{"name":"x",}', "trailing comma is not allowed"),
        (b'{"a":' + b"[" * 250 + b"]" * 250 + b"}", "Nesting over 200"),
        (b"[" * 5000, "Body is not valid JSON: depth limit exceeded"),
        (json.dumps(dict.fromkeys(map(str, range(100_001)))).encode(), "Over 100000 keys"),
    ],
)
def test_a_body_that_is_no_json_is_told_where(server: Any, body: bytes, message: str) -> None:
    told = server.send("POST", ENDPOINTS, content=body)
    assert (told.status_code, told.json()["error_code"]) == (400, "BAD_REQUEST")
    assert message in told.json()["message"]


def test_a_body_over_the_limit_is_refused(server: Any) -> None:
    most = server.settings.max_body_bytes
    status, message = server.refused("POST", ENDPOINTS, content=b" " * (most + 1))
    assert (status, message) == (400, f"Body over {most} bytes.")


def test_a_compressed_body_is_read_within_the_limit(server: Any) -> None:
    gzipped = {"Content-Encoding": "gzip"}

    def refused(content: bytes, headers: dict[str, str]) -> str:
        status, message = server.refused("POST", ENDPOINTS, content=content, headers=headers)
        assert status == 400
        return str(message)

    assert "name: expected 1 to 63" in refused(gzip.compress(b'{"name": "a b"}'), gzipped)
    assert "Body over" in refused(gzip.compress(b" " * (17 << 20)), gzipped)
    assert "not valid gzip" in refused(b"nope", gzipped)
    assert "ends too early" in refused(gzip.compress(b'{"name": "x"}')[:-4], gzipped)
    assert "'zpaq' is not supported" in refused(b"x", {"Content-Encoding": "zpaq"})


def test_openapi_describes_ours_and_everything(server: Any) -> None:
    ours = server.ok("GET", "/api/1.0/openapi.json")["paths"]
    everything = server.ok("GET", "/openapi.json")["paths"]
    assert ours and all(path.startswith("/api/1.0/") for path in ours)
    assert set(ours) < set(everything)
    assert "/api/2.0/serving-endpoints/{name}/config" in everything
