"""The HTTP application of one gateway: control API, monitors' API, the twin of queries."""

import contextlib
import sys
from collections.abc import AsyncIterator
from typing import Any

import sqlalchemy as sa
from fastapi import Depends, FastAPI
from fastapi.openapi.utils import get_openapi
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from capture import database, errors, reading
from capture import settings as capture_settings
from monitors import api as monitors_api
from monitors import routing_context
from serving import contract, promotion
from serving.api import (
    access,
    administration,
    audit,
    costs,
    endpoints,
    envelope,
    labels,
    models,
    operations,
    record,
    requests,
    running,
    secrets,
    shadows,
    tables,
)
from serving.api import context as api_context
from serving.api import reading as api_reading

READER = [sys.executable, "-m", "monitors.reads"]
OURS = "/api/1.0"
QUERY = "/serving-endpoints/{name}/invocations"
QUERY_ENTITY = "/serving-endpoints/{name}/served-models/{entity}/invocations"


def build(
    settings: capture_settings.Settings,
    data_plane: api_context.DataPlane,
    engine: sa.Engine | None = None,
    reader: reading.Reader | None = None,
) -> FastAPI:
    """The application. data_plane: started by the caller; engine, reader: own ones if not given.

    What it keeps open (reader's child, engine, alias mover) closes at the end of its lifespan."""
    own_engine = engine is None
    engine = engine or database.open_engine(settings)
    reader = reader or reading.Reader(READER)
    aliases = promotion.Aliases(settings, engine)
    context = api_context.Context(settings, engine, data_plane, reader, aliases)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await reader.close()
        await run_in_threadpool(aliases.close)
        if own_engine:
            engine.dispose()

    app = FastAPI(
        title="inferlake",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
    )
    envelope.translate(app)
    actions = operations.Operations(context)
    for part in (
        endpoints.Endpoints(context),
        actions,
        shadows.Shadows(context),
        labels.Labels(context),
        models.Models(context),
        running.Running(context),
        requests.Requests(context),
        record.Record(context),
        costs.Costs(context),
        audit.Audit(context),
        tables.Tables(context),
        access.Access(context),
        secrets.Secrets(context),
        administration.Administration(context),
    ):
        app.include_router(part.router())
    judged = routing_context.Context(engine, settings, reader, context, actions.promoted)
    app.include_router(monitors_api.router(judged))
    _describe(app)
    _watch(app, context)
    _refuse(app)
    _query(app, data_plane)
    app.add_middleware(
        envelope.Envelope, data_plane=data_plane, max_body_bytes=settings.max_body_bytes
    )
    return app


def _watch(app: FastAPI, context: api_context.Context) -> None:
    """Health, metrics, discovery."""

    async def health() -> Response:
        """200 when able to serve."""
        return envelope.Json({"status": "ok"})

    async def metrics() -> Response:
        """Prometheus text of this gateway."""
        return PlainTextResponse(context.data_plane.metrics())

    async def discovery() -> Response:
        """No other issuer of tokens; clients ask before they have one."""
        raise errors.RouteNotFound("No route GET /.well-known/databricks-config.")

    app.add_api_route("/health", health, tags=["server"])
    app.add_api_route("/metrics", metrics, tags=["server"])
    app.add_api_route("/.well-known/databricks-config", discovery, include_in_schema=False)


def _describe(app: FastAPI) -> None:
    """OpenAPI documents: ours, and everything."""

    async def ours() -> Response:
        """OpenAPI of what is ours."""
        document = app.openapi()
        paths = {path: what for path, what in document["paths"].items() if path.startswith(OURS)}
        return envelope.Json({**document, "paths": paths})

    async def everything() -> Response:
        """OpenAPI of every route."""
        return envelope.Json(app.openapi())

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = get_openapi(title=app.title, version="1.0", routes=app.routes)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]
    app.add_api_route(f"{OURS}/openapi.json", ours, tags=["server"])
    app.add_api_route("/openapi.json", everything, tags=["server"])


def _refuse(app: FastAPI) -> None:
    """Routes that are known to the contract and not offered here."""

    def language_models(request: Request, body: Any = Depends(api_reading.json)) -> Response:
        """Language models are known, checked, and not offered."""
        task = request.scope["path"].removeprefix("/serving-endpoints/")
        raise contract.language_model(body, task)

    def connections(body: Any = Depends(api_reading.json)) -> Response:
        """Connections to external services are known, checked, and not offered."""
        raise contract.external_function(body)

    for task in contract.LLM_TASKS:
        app.add_api_route(
            f"/serving-endpoints/{task}",
            language_models,
            methods=["POST"],
            tags=["unoffered"],
            response_model=None,
        )
    path = "/api/2.0/external-function"
    app.add_api_route(path, connections, methods=["POST"], tags=["unoffered"], response_model=None)


class _Twin:
    """Queries through plain ASGI. A class, since Starlette hands instances the bare protocol."""

    def __init__(self, data_plane: api_context.DataPlane) -> None:
        self._data_plane = data_plane

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._data_plane.asgi(scope, receive, send)


def _query(app: FastAPI, data_plane: api_context.DataPlane) -> None:
    for path in (QUERY, QUERY_ENTITY):
        app.router.routes.append(Route(path, _Twin(data_plane), methods=["POST"]))
