"""The safe twin of the short way: the same `handle`, through plain ASGI.

uvicorn's own path leads here for everything unusual, and for all queries by a setting.
"""

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, NamedTuple, Protocol

import orjson

from capture import errors
from capture.settings import Settings
from serving.gateway import heads

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

JSON_HEADER = b"content-type: application/json\r\n"


class Request(NamedTuple):
    """A whole request. `peer`: the client's address."""

    head: heads.Head
    body: bytes
    peer: str

    @property
    def target(self) -> bytes:
        """Path as sent, without query."""
        return self.head.target


class Reply(NamedTuple):
    """What goes back. `headers`: lines as HTTP/1.1 has them, each with its CRLF, names in lower
    case; without `content-length` and what belongs to the connection."""

    status: int
    headers: bytes
    body: bytes


class Cancels(Protocol):
    """A call whose client may hang up."""

    def cancel(self) -> None: ...


class Handles(Protocol):
    """The data plane."""

    @property
    def settings(self) -> Settings: ...
    def handle(self, request: Request, reply: Callable[[Reply], None]) -> Cancels: ...


def refusal(error: errors.InferlakeError) -> Reply:
    """A reply that tells an error, for what never became a call."""
    lines = [f"{name.lower()}: {value}\r\n" for name, value in errors.headers(error).items()]
    headers = JSON_HEADER + "".join(lines).encode()
    return Reply(error.status, headers, orjson.dumps(errors.envelope(error)))


async def answer(plane: Handles, scope: Scope, receive: Receive, send: Send) -> None:
    """One query."""
    body = await _whole_body(receive, plane.settings.max_body_bytes)
    if body is None:
        await _send_reply(send, _body_too_large(plane.settings.max_body_bytes))
        return
    replied: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
    client = scope.get("client")
    head = heads.Head(scope.get("raw_path") or scope["path"].encode(), scope["headers"])
    request = Request(head, body, client[0] if client else "")
    call = plane.handle(request, lambda r: None if replied.done() else replied.set_result(r))
    gone: asyncio.Future[Any] = asyncio.ensure_future(_until_gone(receive))
    either: set[asyncio.Future[Any]] = {replied, gone}
    try:
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if not replied.done():
            call.cancel()
            return
        await _send_reply(send, replied.result())
    finally:
        gone.cancel()


def _body_too_large(most_bytes: int) -> Reply:
    """The answer to a body over the limit, after which the connection is closed."""
    found = refusal(errors.BadRequest(f"Body over {most_bytes} bytes."))
    return Reply(found.status, found.headers + b"connection: close\r\n", found.body)


async def _whole_body(receive: Receive, most_bytes: int) -> bytes | None:
    """The body, or None as soon as it is too large."""
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return b"".join(parts)
        part = message.get("body", b"")
        size += len(part)
        if size > most_bytes:
            return None
        parts.append(part)
        if not message.get("more_body", False):
            return b"".join(parts)


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _send_reply(send: Send, reply: Reply) -> None:
    headers = [tuple(line.split(b": ", 1)) for line in reply.headers.splitlines()]
    headers.append((b"content-length", b"%d" % len(reply.body)))
    await send({"type": "http.response.start", "status": reply.status, "headers": headers})
    await send({"type": "http.response.body", "body": reply.body})
