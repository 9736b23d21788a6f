"""`POST /api/1.0/endpoints/{name}/labels`: truth that came later."""

import time
from collections.abc import Sequence

from fastapi import APIRouter, Depends
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from capture import catalog, database, errors, labels, logline, names, rows
from serving.api import envelope, reading
from serving.api.context import Context

log = logline.logger(__name__)

PATH = "/api/1.0/endpoints/{name}/labels"
PARQUET = ("application/x-parquet", "application/vnd.apache.parquet", "application/octet-stream")


class Labels:
    """The route of one server."""

    def __init__(self, context: Context) -> None:
        self.context = context

    def router(self) -> APIRouter:
        router = APIRouter(tags=["endpoints"])
        router.add_api_route(PATH, self.labels, methods=["POST"], response_model=None)
        return router

    async def labels(
        self, request: Request, name: str, body: bytes = Depends(reading.raw)
    ) -> Response:
        """Labels as JSON or Parquet, all of them or none. The reply goes out once they are in the
        log; labels of unknown requests are kept, and counted as unmatched (null: not known now)."""
        who = await run_in_threadpool(self.context.require, request, name, "CAN_QUERY")
        recorded = await run_in_threadpool(self._recorded, name)
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        parse = labels.parse_parquet if kind in PARQUET else labels.parse_json
        received_us = time.time_ns() // 1000
        parsed = await run_in_threadpool(parse, body, received_us, who.user)
        if parsed:
            table = names.table_name(recorded.full_name).sibling("labels")
            # On the loop, which owns the log.
            self.context.data_plane.log.append(str(table), "labels", parsed)
        unmatched = await self._unmatched(recorded.full_name, parsed)
        return envelope.Json({"accepted": len(parsed), "unmatched": unmatched})

    def _recorded(self, name: str) -> catalog.RecordedTable:
        with database.reading(self.context.engine) as db:
            found = catalog.of_endpoint(db, name)
        if found is None:
            raise errors.BadRequest(
                f"Endpoint '{name}' records no requests, so labels have nothing to belong to; "
                "switch its inference table on first."
            )
        return found

    async def _unmatched(self, table: str, parsed: Sequence[rows.Label]) -> int | None:
        """How many labels name a request that is neither of lately nor in the table."""
        recent = self.context.data_plane.recent_ids
        unknown: list[dict[str, str | None]] = []
        for label in parsed:
            if label.databricks_request_id is not None:
                if not recent.has_request(label.databricks_request_id):
                    unknown.append({"databricks_request_id": label.databricks_request_id})
            elif label.client_request_id is None or not recent.has(label.client_request_id):
                unknown.append({"client_request_id": label.client_request_id})
        if not unknown:
            return 0
        try:
            asked = {"table": table, "ids": unknown}
            answer = await self.context.read("unmatched", asked)
        except errors.Unavailable as error:
            # The labels are in the log: the client must not send them again for a mere number.
            log.warning("unmatched_not_counted", table=table, error=error.message)
            return None
        return int(answer["unmatched"])
