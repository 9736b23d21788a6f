"""`POST /api/1.0/endpoints/{name}/replay`: logged requests asked again of another version."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pydantic
from fastapi import APIRouter, Depends
from starlette.requests import Request

from capture import catalog, database, errors
from monitors import contract, job_state, routing_context
from monitors.routing_context import Context

PATH = "/api/1.0/endpoints/{name}/replay"
DAY_MS = 86_400_000
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MOST_REQUESTS = 10_000


class ReplayRequest(contract.Shape):
    """from: a day before `to`, to: now, unless given; of these the newest `limit` requests."""

    served_entity: str = pydantic.Field(min_length=1, max_length=63)
    from_: str | None = pydantic.Field(default=None, alias="from")
    to: str | None = None
    limit: int = pydantic.Field(default=1000, ge=1, le=MOST_REQUESTS)


class Replays:
    """The route of one server."""

    def __init__(self, context: Context) -> None:
        self.context = context

    def router(self) -> APIRouter:
        router = APIRouter(tags=["experiments"])
        router.add_api_route(PATH, self.replay, methods=["POST"])
        return router

    def replay(
        self, request: Request, name: str, raw: bytes = Depends(routing_context.raw_body)
    ) -> dict[str, Any]:
        """Start the job; its result compares both versions, answer by answer."""
        caller = self.context.access.require(request, name, "CAN_MANAGE")
        asked = contract.parse(ReplayRequest, contract.body(raw))
        now = routing_context.now_ms()
        # Whole milliseconds that hold the time: down to the first, up to the last.
        to = now if asked.to is None else -_ms(-_at(asked.to, "to"))
        start = to - DAY_MS if asked.from_ is None else _ms(_at(asked.from_, "from"))
        if start >= to:
            raise errors.InvalidParameter(
                f"from: {contract.rfc3339(start)} is not before {contract.rfc3339(to)}, its end."
            )
        with database.transaction(self.context.engine) as connection:
            table = catalog.of_endpoint(connection, name)
            if table is None:
                raise errors.InvalidParameter(f"Endpoint '{name}' has recorded no requests.")
            arguments = {
                "endpoint": name,
                "table": table.full_name,
                "served_entity": asked.served_entity,
                "from_ms": start,
                "to_ms": to,
                "limit": asked.limit,
            }
            job_id = job_state.create(
                connection, "replay", arguments, name, table.full_name, caller.user, now
            )
        return {"job_id": job_id}


def _at(text: str, field: str) -> timedelta:
    """A time, as long since 1970."""
    return contract.moment(text, field) - EPOCH


def _ms(since: timedelta) -> int:
    return since // timedelta(milliseconds=1)
