"""`/api/1.0/models`: what of the registry can be served. Any signed-in user."""

from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from capture import errors
from serving import registered, registry, replies
from serving.api import envelope, reading
from serving.api.context import Context

BASE = "/api/1.0/models"


class Models:
    """The routes of one server."""

    def __init__(self, context: Context) -> None:
        self.context = context

    def router(self) -> APIRouter:
        router = APIRouter(prefix=BASE, tags=["models"])
        for path, handler in (("", self.listed), ("/{name}/versions/{version}", self.version)):
            router.add_api_route(path, handler, methods=["GET"], response_model=None)
        return router

    def listed(self, request: Request) -> Response:
        """Registered models by name, with their versions and aliases; `name_contains` narrows."""
        given = reading.query(request, ("name_contains", *reading.PAGE))
        page = reading.page(given)
        found = registered.models(
            self.context.settings, page.size + 1, page.after or "", given.get("name_contains", "")
        )
        reply: dict[str, Any] = {"models": [_model(each) for each in found[: page.size]]}
        if len(found) > page.size:
            reply["next_page_token"] = reading.token(found[page.size - 1].name)
        return envelope.Json(reply)

    def version(self, request: Request, name: str, version: str) -> Response:
        """What a version, or `@alias`, asks for: columns that a client sends, columns that are
        looked up, and the input it was logged with."""
        reading.query(request, ())
        number = version.isascii() and version.isdigit() and len(version) <= 18
        if not (number or version.startswith("@")):
            raise errors.DoesNotExist(f"Model '{name[:200]}' has no version '{version[:200]}'.")
        found = registry.find(self.context.settings, name, version)
        columns = registry.sent_columns(found).items()
        return envelope.Json(
            {
                "name": found.name,
                "version": found.version,
                "flavours": list(found.flavours),
                "columns": [{"name": c, "type": kind, "required": r} for c, (kind, r) in columns],
                "looked_up": list(found.looked_up_columns),
                "example": registered.example(found.folder),
            }
        )


def _model(found: registered.Listed) -> dict[str, Any]:
    return {
        "name": found.name,
        "versions": [
            {
                "version": str(each.number),
                "aliases": list(each.aliases),
                "created_time": replies.rfc3339(each.created_ms),
                "description": each.description,
            }
            for each in found.versions
        ],
    }
