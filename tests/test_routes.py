"""Every registered route under every method without a token: two routes are open, by name."""

import asyncio
import re
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
import sqlalchemy as sa
from pydantic import SecretStr
from starlette.routing import BaseRoute

from capture import wal
from capture.settings import Settings
from serving import app
from serving.gateway import invoke

METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "TRACE", "QUERY")
OPEN = {("GET", "/health"): 200, ("GET", "/.well-known/databricks-config"): 404}
KNOWN = (
    "/api/2.0/serving-endpoints/{name}/config",
    "/api/2.0/permissions/serving-endpoints/{endpoint_id}",
    "/api/2.0/secrets/get",
    "/api/2.1/unity-catalog/tables/{table}/monitor",
    "/api/1.0/endpoints/{name}/promote",
    "/api/1.0/requests.csv",
    "/serving-endpoints/{name}/invocations",
    "/openapi.json",
    "/metrics",
)


def paths(routes: list[BaseRoute]) -> Iterator[str]:
    """Path of every route, those of included and mounted applications too."""
    for route in routes:
        inner = getattr(route, "routes", None) or getattr(
            getattr(route, "original_router", None), "routes", None
        )
        path = getattr(route, "path", None)
        if inner:
            prefix = path or ""
            yield from (prefix + each for each in paths(list(inner)))
        elif path is not None:
            yield path


async def walk(settings: Settings, engine: sa.Engine) -> tuple[list[str], dict[Any, Any]]:
    """All paths, and the answer to each of them under each method."""
    plane = invoke.DataPlane(settings, wal.Log(settings.wal_dir, settings), engine)
    built = app.build(settings, plane, engine)
    plane.start()
    transport = httpx2.ASGITransport(built)
    found: dict[Any, Any] = {}
    listed = sorted(set(paths(list(built.routes))))
    async with httpx2.AsyncClient(transport=transport, base_url="http://server") as client:
        for path in listed:
            filled = re.sub(r"\{[^}]*\}", "x", path)
            for spelling in (filled, filled.rstrip("/") + "/"):
                for method in METHODS:
                    found[method, path, spelling] = await client.request(method, spelling)
    await plane.close()
    return listed, found


@pytest.fixture
def guarded(settings: Settings) -> Settings:
    """Settings with both bootstrap tokens set, as `up` sets them."""
    secrets = {"admin_token": SecretStr("admin-token"), "service_token": SecretStr("service-token")}
    return settings.model_copy(update=secrets)


def test_nothing_answers_without_a_token_but_health_and_discovery(
    guarded: Settings, state: sa.Engine
) -> None:
    listed, found = asyncio.run(walk(guarded, state))
    assert set(KNOWN) < set(listed)
    assert {path for _, path in OPEN} < set(listed)
    for (method, path, spelling), answer in found.items():
        wanted = OPEN.get((method, path), 401)
        assert answer.status_code == wanted, (method, spelling, answer.text)
        if wanted == 401 and method != "HEAD":
            assert answer.json()["error_code"] == "UNAUTHENTICATED", (method, spelling)
