"""The outermost layer of the API: authentication closed by default, one error envelope for all,
both spellings of a path.

`Envelope` wraps the whole application. A request without a valid token goes no further, unless its
path opted out by name; queries of endpoints are let through, since the data plane has its own door.
"""

import re
import time
from typing import Any, Protocol

import orjson
import sqlalchemy as sa
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from capture import audit, errors, logline, names
from serving import access, state

log = logline.logger(__name__)

OPEN = frozenset({("GET", "/health"), ("GET", "/.well-known/databricks-config")})
# Its body holds a one-time code, which is checked like a token: without one it answers 401.
SIGN_IN = ("POST", "/api/1.0/sign-in")
# The data plane checks token, grant and body of these by itself.
QUERY = re.compile(r"/serving-endpoints/[^/]+(/served-models/[^/]+)?/invocations")
_ODD = re.compile(rb"%2f|%5c|%00", re.IGNORECASE)


class Knows(Protocol):
    """Of the data plane: who may come in, and what it knows now."""

    @property
    def door(self) -> access.Door: ...
    @property
    def snapshot(self) -> state.Snapshot: ...


class Json(Response):
    """A JSON reply; NaN and infinities become null."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return orjson.dumps(content, option=orjson.OPT_NON_STR_KEYS)


def refusal(error: errors.InferlakeError) -> Json:
    """The reply that tells an error."""
    return Json(errors.envelope(error), error.status, errors.headers(error))


class Envelope:
    """ASGI middleware around everything; see above. max_body_bytes: counted while reading."""

    def __init__(self, app: ASGIApp, data_plane: Knows, max_body_bytes: int) -> None:
        self._app = app
        self._data_plane = data_plane
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = _Exchange(scope, receive, send, self._data_plane, self._max_body_bytes)
        audit.address.set(address(scope) or None)
        try:
            exchange.admit()
            await self._app(exchange.scope, exchange.receive, exchange.send)
        except ClientDisconnect:
            return
        except Exception as error:  # noqa: BLE001 - the last line: whatever it is has an envelope
            await exchange.refuse(error)


class _Exchange:
    """One request and its reply."""

    def __init__(
        self, scope: Scope, receive: Receive, send: Send, data_plane: Knows, most: int
    ) -> None:
        self.id = names.new_request_id()
        self.scope = {**scope, "state": {**scope.get("state", {}), "request_id": self.id}}
        self._receive, self._send = receive, send
        self._data_plane, self._most = data_plane, most
        self._read = 0
        self._started = False

    def admit(self) -> None:
        """Authenticate, then make the path regular. Raises what the caller must be told."""
        method, path = self.scope["method"], self.scope["path"]
        regular = path.rstrip("/") or "/"
        query = method == "POST" and QUERY.fullmatch(regular)
        if not query and (method, regular) not in (*OPEN, SIGN_IN):
            self.scope["state"]["caller"] = self._caller()
        raw = self.scope.get("raw_path") or path.encode()
        odd = _ODD.search(raw) or "\ufffd" in path or not path.isprintable()
        if odd or any(part in (".", "..") for part in path.split("/")):
            raise errors.RouteNotFound(f"No route {method} {path[:200]!r}.")
        self.scope["path"] = regular
        self.scope["raw_path"] = regular.encode()

    def _caller(self) -> access.Caller:
        header = next((v for k, v in self.scope["headers"] if k == b"authorization"), None)
        return self._data_plane.door.caller(
            None if header is None else header.decode("latin-1"),
            address(self.scope),
            self._data_plane.snapshot,
            time.time_ns() // 1_000_000,
            time.monotonic(),
        )

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.request":
            self._read += len(message.get("body", b""))
            if self._read > self._most:
                raise errors.BadRequest(f"Body over {self._most} bytes.")
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._started = True
            extra = [(b"x-request-id", self.id.encode()), (b"cache-control", b"no-store")]
            known = {key for key, _ in message.get("headers", ())}
            extra = [(key, value) for key, value in extra if key not in known]
            message = {**message, "headers": [*message.get("headers", ()), *extra]}
        await self._send(message)

    async def refuse(self, error: Exception) -> None:
        told = self._told(error)
        if not self._started:
            await refusal(told)(self.scope, self.receive, self.send)

    def _told(self, error: Exception) -> errors.InferlakeError:
        if isinstance(error, errors.InferlakeError):
            return error
        facts = {"method": self.scope["method"], "path": self.scope["path"], "request_id": self.id}
        if isinstance(error, sa.exc.OperationalError | sa.exc.TimeoutError):
            log.error("state_database_failed", error=repr(error.__cause__ or error), **facts)
            return errors.Unavailable("The state database does not answer; try again.")
        log.error("internal_error", error=repr(error), at=_places(error), **facts)
        return errors.InternalError(f"Internal error, request id {self.id}.")


def address(scope: Scope) -> str:
    """Network address of the client, for the count of failed logins and the audit."""
    client = scope.get("client")
    return client[0] if client else ""


def _places(error: BaseException) -> list[str]:
    places, trace = [], error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        places.append(f"{code.co_filename}:{trace.tb_lineno} {code.co_name}")
        trace = trace.tb_next
    return places[-12:]


def translate(app: FastAPI) -> None:
    """Let the framework's own refusals speak our envelope."""

    async def http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        path = request.scope["path"][:200]
        told: errors.InferlakeError
        if error.status_code == 405:
            told = errors.MethodNotAllowed(f"{path} does not offer {request.method}.")
        elif error.status_code == 404:
            told = errors.RouteNotFound(f"No route {request.method} {path}.")
        else:
            told = errors.BadRequest(str(error.detail))
        reply = refusal(told)
        reply.headers.update(error.headers or {})
        return reply

    async def validation(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"][1:]) or str(first["loc"][0])
        return refusal(errors.InvalidParameter(f"{where}: {first['msg']}."))

    async def ours(_: Request, error: Exception) -> Response:
        assert isinstance(error, errors.InferlakeError)
        return refusal(error)

    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(RequestValidationError, validation)
    app.add_exception_handler(errors.InferlakeError, ours)
