"""The application as a gateway assembles it."""

import asyncio
import subprocess
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import httpx2
import pytest
import sqlalchemy as sa
from fastapi import FastAPI
from pydantic import SecretStr

from capture import wal
from capture.settings import Settings
from serving import app
from serving.gateway import invoke

HEAVY = ("mlflow", "pandas", "polars", "scipy", "sklearn", "deltalake")
TOKEN = {"Authorization": "Bearer admin-token"}

Act = Callable[[FastAPI, httpx2.AsyncClient], Awaitable[Any]]


def inside(settings: Settings, engine: sa.Engine, act: Act) -> Any:
    """What `act` gives, with an application on a running data plane."""
    settings = settings.model_copy(update={"admin_token": SecretStr("admin-token")})

    async def run() -> Any:
        plane = invoke.DataPlane(settings, wal.Log(settings.wal_dir, settings), engine)
        built = app.build(settings, plane, engine)
        plane.start()
        transport = httpx2.ASGITransport(built)
        async with httpx2.AsyncClient(
            transport=transport, base_url="http://server", headers=TOKEN
        ) as client:
            try:
                return await act(built, client)
            finally:
                await plane.close()

    return asyncio.run(run())


def test_a_gateway_loads_no_numbers_library() -> None:
    script = "import sys, serving.app; print(*{name.split('.')[0] for name in sys.modules})"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert set(done.stdout.split()).isdisjoint(HEAVY)


def test_our_own_bug_is_a_500_with_an_id_and_no_detail(
    settings: Settings, state: sa.Engine, capfd: pytest.CaptureFixture[str]
) -> None:
    async def act(built: FastAPI, client: httpx2.AsyncClient) -> Any:
        def broken() -> None:
            raise ZeroDivisionError("secret detail")

        built.add_api_route("/broken", broken)
        return await client.get("/broken")

    answer = inside(settings, state, act)
    request_id = answer.headers["x-request-id"]
    assert answer.status_code == 500
    assert answer.json() == {
        "error_code": "INTERNAL_ERROR",
        "message": f"Internal error, request id {request_id}.",
    }
    told = capfd.readouterr().err
    assert request_id in told and "ZeroDivisionError" in told


def test_a_database_that_fails_is_a_503_that_says_when_to_come_again(
    settings: Settings, state: sa.Engine
) -> None:
    async def act(_: FastAPI, client: httpx2.AsyncClient) -> Any:
        with state.begin() as connection:
            connection.execute(sa.text("DROP TABLE secret_scopes"))
        return await client.get("/api/2.0/secrets/scopes/list")

    answer = inside(settings, state, act)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert answer.json()["error_code"] == "TEMPORARILY_UNAVAILABLE"
    assert "secret_scopes" not in answer.text


def test_a_query_reaches_the_data_plane_through_the_twin(
    settings: Settings, state: sa.Engine
) -> None:
    async def act(_: FastAPI, client: httpx2.AsyncClient) -> Any:
        path = "/serving-endpoints/nobody/invocations"
        return (
            await client.post(path, json={"inputs": [1]}),
            await client.post(path, json={"inputs": [1]}, headers={"Authorization": "Bearer no"}),
            await client.get(path),
        )

    known, wrong, method = inside(settings, state, act)
    assert (known.status_code, known.json()["error_code"]) == (404, "RESOURCE_DOES_NOT_EXIST")
    assert wrong.status_code == 403
    assert (method.status_code, method.json()["error_code"]) == (405, "ENDPOINT_NOT_FOUND")


def test_wrong_tokens_are_limited_per_address(settings: Settings, state: sa.Engine) -> None:
    async def act(_: FastAPI, client: httpx2.AsyncClient) -> Any:
        wrong = {"Authorization": "Bearer wrong"}
        return [await client.get("/api/1.0/me", headers=wrong) for _ in range(25)] + [
            await client.get("/api/1.0/me")
        ]

    *refused, valid = inside(settings, state, act)
    codes = [answer.status_code for answer in refused]
    assert codes[:20] == [403] * 20 and codes[-1] == 429
    assert int(refused[-1].headers["retry-after"]) >= 1
    assert valid.status_code == 200
