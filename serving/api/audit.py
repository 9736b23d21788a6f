"""`/api/1.0/audit`: who did what, as pages and as a file."""

import csv
import io
import json
from collections.abc import Iterator
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from capture import audit, database
from serving import replies
from serving.api import envelope, reading
from serving.api.context import Context, caller

BASE = "/api/1.0/audit"
FILTERS = ("endpoint", "actor", "action", "from", "to")
COLUMNS = ("id", "time", "actor", "address", "action", "endpoint", "before", "after", "reason")
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # what spreadsheets would run begins so
CHUNK = 1000


class Audit:
    """The routes of one server. Of an endpoint for who manages it, of all for administrators."""

    def __init__(self, context: Context) -> None:
        self.context = context

    def router(self) -> APIRouter:
        router = APIRouter(tags=["administration"])
        for path, handler in ((BASE, self.page), (f"{BASE}.csv", self.csv)):
            router.add_api_route(path, handler, methods=["GET"], response_model=None)
        return router

    def page(self, request: Request) -> Response:
        """Who did what from where, newest first, with the state before and after; filtered by
        `endpoint`, `actor`, `action` (a name, or what names begin with: `token.*`), `from`, `to`.
        """
        given = reading.query(request, (*FILTERS, *reading.PAGE))
        page = reading.page(given)
        asked = self._asked(request, given)
        with database.reading(self.context.engine) as db:
            found = audit.read(db, page.size + 1, below_id=reading.whole(page.after), **asked)
        reply: dict[str, Any] = {"audit": [_shown(entry) for entry in found[: page.size]]}
        if len(found) > page.size:
            reply["next_page_token"] = reading.token(found[page.size - 1].id)
        return envelope.Json(reply)

    def csv(self, request: Request) -> Response:
        """The entries of a filter as CSV, newest first; `before` and `after` are JSON."""
        asked = self._asked(request, reading.query(request, FILTERS))
        headers = {"content-disposition": 'attachment; filename="audit.csv"'}
        return StreamingResponse(self._lines(asked), 200, headers, "text/csv; charset=utf-8")

    def _asked(self, request: Request, given: dict[str, str]) -> dict[str, Any]:
        """What `audit.read` is asked for, once the caller may see it."""
        if not caller(request).is_admin:
            self.context.require(request, given.get("endpoint"), "CAN_MANAGE")
        return {
            "endpoint": given.get("endpoint"),
            "actor": given.get("actor"),
            "action": given.get("action"),
            "from_ms": reading.moment(given, "from"),
            "to_ms": reading.moment(given, "to"),
        }

    def _lines(self, asked: dict[str, Any]) -> Iterator[str]:
        yield _line(COLUMNS)
        below: int | None = None
        while True:
            with database.reading(self.context.engine) as db:
                found = audit.read(db, CHUNK, below_id=below, **asked)
            shown = (_shown(entry) for entry in found)
            yield "".join(_line([_cell(row[name]) for name in COLUMNS]) for row in shown)
            if len(found) < CHUNK:
                return
            below = found[-1].id


def _shown(entry: audit.Entry) -> dict[str, Any]:
    return {
        "id": entry.id,
        "time": replies.rfc3339(entry.time_ms),
        "actor": entry.actor,
        "address": entry.address,
        "action": entry.action,
        "endpoint": entry.endpoint,
        "before": entry.before,
        "after": entry.after,
        "reason": entry.reason,
    }


def _cell(value: Any) -> str:
    """Text of a cell; one that a spreadsheet would run as a formula begins with an apostrophe."""
    if value is None:
        return ""
    text = json.dumps(value) if isinstance(value, dict) else str(value)
    return f"'{text}" if text.startswith(FORMULA) else text


def _line(cells: Any) -> str:
    line = io.StringIO()
    csv.writer(line).writerow(cells)
    return line.getvalue()
