"""`/api/1.0/requests`: recorded requests, page by page, one by one, and as a file."""

import os
from collections.abc import Iterator
from typing import Any, BinaryIO

from fastapi import APIRouter
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from capture import catalog, database, errors, names
from serving.api import envelope
from serving.api.context import Context, caller

BASE = "/api/1.0/requests"
EXPORT_SECONDS = 120.0
CHUNK_BYTES = 1 << 18
TYPES = {"parquet": "application/vnd.apache.parquet", "csv": "text/csv; charset=utf-8"}


class Requests:
    """The routes of one server. What clients sent and got needs CAN_MANAGE."""

    def __init__(self, context: Context) -> None:
        self.context = context

    def router(self) -> APIRouter:
        router = APIRouter(tags=["requests"])
        for path, handler in (
            (f"{BASE}.parquet", self.parquet),
            (f"{BASE}.csv", self.csv),
            (BASE, self.page),
            (f"{BASE}/{{request_id}}", self.detail),
        ):
            router.add_api_route(path, handler, methods=["GET"], response_model=None)
        return router

    async def page(self, request: Request) -> Response:
        """Rows of the unpacked tables, newest first, filtered: `endpoint`, `from`, `to`, `status`
        (200, 2xx to 5xx, or `failed`: 5xx, or the model raised), `served_entity`,
        `client_request_id`, `text`, `feature.<column>=lo..hi` (or `=>lo`, `=<hi`, a value)."""
        asked = _asked(request)
        asked["endpoint"] = await run_in_threadpool(self._endpoints, request, asked)
        if not asked["endpoint"]:
            return envelope.Json({"requests": []})
        return envelope.Json(await self.context.read("requests_page", asked))

    async def detail(self, request: Request, request_id: str) -> Response:
        """One request as it was received, with its answer, features, times and label."""
        mine = await run_in_threadpool(self._endpoints, request, {})
        if not mine:
            raise errors.DoesNotExist(f"Request '{request_id[:100]}' is not recorded.")
        asked = {"id": request_id, "endpoint": mine}
        return envelope.Json(await self.context.read("request_detail", asked))

    async def parquet(self, request: Request) -> Response:
        """The rows of a filter as a Parquet file, oldest first; more than 1,000,000: refused."""
        return await self._export(request, "parquet")

    async def csv(self, request: Request) -> Response:
        """The rows of a filter as CSV, oldest first, in which no cell is a formula to a
        spreadsheet; more than 1,000,000: refused."""
        return await self._export(request, "csv")

    async def _export(self, request: Request, form: str) -> Response:
        asked = _asked(request)
        if not asked.get("endpoint"):
            raise errors.InvalidParameter("endpoint: an export is of one endpoint; name it.")
        asked["endpoint"] = await run_in_threadpool(self._endpoints, request, asked)
        if not asked["endpoint"]:
            raise errors.DoesNotExist("The endpoint has no recorded requests.")
        path = self.context.settings.run_dir / f"export-{names.new_id()}.{form}"
        try:
            await self.context.read(
                "export", {**asked, "format": form, "path": str(path)}, EXPORT_SECONDS
            )
            file = path.open("rb")
        finally:
            # Whoever has it open can read on; nobody finds it, and a crash leaves nothing.
            path.unlink(missing_ok=True)
        headers = {
            "Content-Disposition": f'attachment; filename="requests.{form}"',
            "Content-Length": str(os.fstat(file.fileno()).st_size),
        }
        return StreamingResponse(_chunks(file), media_type=TYPES[form], headers=headers)

    def _endpoints(self, request: Request, asked: dict[str, Any]) -> list[str]:
        """Names of the recorded endpoints that are asked for and whose payloads the caller may
        see: the one that is named, else all of them. Raises as `require`."""
        named = asked.get("endpoint")
        if named:
            self.context.require(request, named, "CAN_MANAGE")
        who, snapshot = caller(request), self.context.data_plane.snapshot
        ids = {view.name: view.id for view in snapshot.endpoints}
        with database.reading(self.context.engine) as db:
            recorded = {table.endpoint_name for table in catalog.everything(db)}
        if named:
            return [named] if named in recorded else []
        mine = (name for name in recorded if self.context.manages(who, ids.get(name)))
        return sorted(mine)


def _asked(request: Request) -> dict[str, Any]:
    return {key: value for key, value in request.query_params.items() if value != ""}


def _chunks(file: BinaryIO) -> Iterator[bytes]:
    with file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk
