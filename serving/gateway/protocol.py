"""HTTP: uvicorn's own protocol, with a short way for queries and with deadlines.

A POST to a target of the route table goes from the parser to `DataPlane.handle` and back, without
scope, task or future; one whose head came before (heads.py) does without the parser, too.
Everything else goes to uvicorn, and everything unusual does: a pipelined request, Upgrade, Expect,
HTTP/1.0. There the same `handle` answers through plain ASGI.

uvicorn never ends a client that trickles its headers or its body, nor one that does not read; here
each phase of a connection has a deadline, checked four times a second. Limits are counted while
bytes come in, so that nothing large is ever held.
"""

import asyncio
import functools
from collections.abc import Callable
from typing import Any

import httptools
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)
from uvicorn.server import ServerState

from capture import errors, logline
from serving.gateway import heads, invoke, twin

log = logline.logger(__name__)

MAX_REQUEST_LINE_BYTES = 8_192
MAX_HEADERS = 200
LINGER_SECONDS = 1.0  # a draining server's patience with a connection that is just being used
MAX_PIPELINED = 100


def bound(plane: invoke.DataPlane) -> Callable[..., "GatewayProtocol"]:
    """What makes the protocols of one data plane, for uvicorn's `http` setting."""
    return functools.partial(GatewayProtocol, plane)


class GatewayProtocol(HttpToolsProtocol):
    """One connection of a client."""

    def __init__(
        self,
        plane: invoke.DataPlane,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.plane = plane
        settings = plane.settings
        self._direct = not settings.plain_asgi
        self._max_body_bytes = settings.max_body_bytes
        self._max_header_bytes = settings.max_headers_bytes
        self._header_seconds = settings.header_timeout_seconds
        self._body_seconds = settings.body_timeout_seconds
        self._idle_seconds = settings.keep_alive_seconds
        # What comes in
        self._in_message = False
        self._in_headers = False
        self._short = False
        self._refused = False
        self._first = b""  # the bytes that a message began with
        self._head: heads.Head | None = None  # of the query that is coming in, once it is known
        self._missing_bytes = 0  # of its body, where the parser does without it
        self._parts: list[bytes] = []
        self._body_bytes = self._header_bytes = self._hosts = 0
        # The query that is being answered on the short way
        self._busy = False
        self._keep = True
        self._call: invoke.Call | None = None
        # Time
        self._deadline = 0.0
        self._write_deadline = 0.0
        self._draining = False

    # -- connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._deadline = self.loop.time() + self._idle_seconds

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        call, self._call = self._call, None
        if call is not None:
            call.cancel()

    def sweep(self, now: float) -> None:
        """Close what is over its time. now: the loop's."""
        if self._write_deadline and now > self._write_deadline:
            self.transport.abort()
        elif self._deadline and now > self._deadline:
            self._deadline = 0.0
            self.transport.close()

    def shutdown(self) -> None:
        """The server ends: answer what is under way, and what is just arriving, then close."""
        self._draining = True
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.keep_alive = False
        elif not (self._busy or self._in_message):
            self._deadline = self.loop.time() + LINGER_SECONDS

    def pause_writing(self) -> None:
        """Who does not read its answers may not ask more, and has a minute to begin."""
        super().pause_writing()
        self._write_deadline = self.loop.time() + self._body_seconds
        self.flow.pause_reading()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._write_deadline = 0.0
        if not self.pipeline:
            self.flow.resume_reading()

    # -- bytes in

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        if self._refused:
            return
        if self._missing_bytes:
            self._more_of_body(data)
            return
        if not self._in_message:
            if self._begin_with_known_head(data):
                return
            # The first bytes of a message: from here on its headers are under way.
            self._first = data
            self._in_message = self._in_headers = True
            self._header_bytes = 0
            self._deadline = self.loop.time() + self._header_seconds
        if self._in_headers:
            self._header_bytes += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            pass  # not offered: the request was answered without it
        except httptools.HttpParserError:
            self._refuse(errors.BadRequest("Ambiguous message framing."))
            return
        if self._in_headers and self._header_bytes > self._max_header_bytes:
            self._refuse(errors.BadRequest(f"Headers over {self._max_header_bytes} bytes."))

    def _begin_with_known_head(self, data: bytes) -> bool:
        """Whether a query began that needs no parser: on a connection that does nothing else, its
        head came before, and nothing comes after it."""
        if not (self._direct and self._is_free()):
            return False
        head = self.plane.heads.start(data)
        if head is None:
            return False
        start = len(head.raw)
        missing = start + head.body_bytes - len(data)
        if missing < 0:
            return False
        self._head, self._keep = head, True
        if missing == 0:
            self._deadline = 0.0
            self._query(data[start:])
            return True
        self._in_message, self._missing_bytes = True, missing
        self._parts = [data[start:]]
        self._deadline = self.loop.time() + self._body_seconds
        return True

    def _more_of_body(self, data: bytes) -> None:
        """Bytes of a body whose head the parser did not see."""
        missing = self._missing_bytes
        self._parts.append(data[:missing])
        self._missing_bytes = max(0, missing - len(data))
        if self._missing_bytes:
            return
        self._in_message = False
        self._deadline = 0.0
        self._query(b"".join(self._parts))
        if len(data) > missing:
            self.data_received(data[missing:])

    def on_message_begin(self) -> None:
        self._in_message = self._in_headers = True
        self._short = False
        self._body_bytes = self._hosts = 0
        self._parts = []
        self.url = b""
        self.headers = []
        self.expect_100_continue = False

    def on_url(self, url: bytes) -> None:
        self.url = self.url + url
        if len(self.url) > MAX_REQUEST_LINE_BYTES:
            self._refuse(errors.BadRequest(f"Request line over {MAX_REQUEST_LINE_BYTES} bytes."))

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        self.headers.append((name, value))
        if name == b"host":
            self._hosts += 1
        elif name == b"expect" and value.lower() == b"100-continue":
            self.expect_100_continue = True

    def on_headers_complete(self) -> None:
        if self._refused:
            return
        self._in_headers = False
        headers = self.headers
        length = 0
        for name, value in headers:
            length += len(name) + len(value) + 4
            if (
                name == b"content-length"
                and value.isdigit()
                and (len(value) > 18 or int(value) > self._max_body_bytes)
            ):
                self._refuse_body()
                return
        if length > self._max_header_bytes or len(headers) > MAX_HEADERS:
            self._refuse(
                errors.BadRequest(
                    f"Headers over {self._max_header_bytes} bytes, or over {MAX_HEADERS} of them."
                )
            )
            return
        if self._hosts != 1 and (self._hosts or self.parser.get_http_version() == "1.1"):
            self._refuse(errors.BadRequest("Ambiguous message framing."))
            return
        self._deadline = self.loop.time() + self._body_seconds
        if self._is_query():
            self._short = True
            self._head = self._read_head()
        else:
            self._begin_with_uvicorn()

    def _is_query(self) -> bool:
        parser = self.parser
        return (
            self._direct
            and self.url in self.plane.table.targets
            and parser.get_method() == b"POST"
            and parser.get_http_version() == "1.1"
            and not parser.should_upgrade()
            and not self.expect_100_continue
            and self._is_free()
        )

    def _is_free(self) -> bool:
        """Whether nothing that came before waits for its answer."""
        return (
            not self._busy
            and (self.cycle is None or self.cycle.response_complete)
            and not self.pipeline
        )

    def _read_head(self) -> heads.Head:
        """The head that was just read, with its bytes if it may be kept."""
        first, self._first = self._first, b""
        end = first.find(heads.END, 0, heads.MOST_HEAD_BYTES) + len(heads.END)
        raw, headers = first[:end], self.headers
        if not (self.parser.should_keep_alive() and heads.is_plain(raw, headers)):
            return heads.Head(self.url, headers)
        return heads.Head(self.url, headers, raw)

    def _begin_with_uvicorn(self) -> None:
        if len(self.pipeline) > MAX_PIPELINED:
            self._refuse(errors.BadRequest("Too many requests without waiting for answers."))
            return
        url, headers, expect = self.url, self.headers, self.expect_100_continue
        super().on_message_begin()  # makes the scope, which the short way does without
        self.url, self.expect_100_continue = url, expect
        self.headers.extend(headers)
        super().on_headers_complete()
        if self._draining:
            self.cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        if self._refused:
            return
        self._body_bytes += len(body)
        if self._body_bytes > self._max_body_bytes:
            self._refuse_body()
        elif self._short:
            self._parts.append(body)
        else:
            super().on_body(body)

    def on_message_complete(self) -> None:
        if self._refused:
            return
        self._in_message = False
        self._deadline = 0.0
        if not self._short:
            super().on_message_complete()
            return
        parts = self._parts
        self._keep = self.parser.should_keep_alive()
        self._query(parts[0] if len(parts) == 1 else b"".join(parts))

    def _query(self, body: bytes) -> None:
        """The query whose head was read is whole."""
        head, self._head, self._parts = self._head, None, []
        assert head is not None  # read before its body
        self._busy = True
        peer = self.client[0] if self.client else ""
        call = self.plane.handle(twin.Request(head, body, peer), self._answer)
        if self._busy:
            self._call = call

    # -- bytes out

    def _answer(self, reply: twin.Reply) -> None:
        """Write the reply to the query that is under way."""
        self._call = None
        self._busy = False
        if self.transport.is_closing():
            return
        self._write(reply, self._keep and not self._draining and not self._refused)
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        if self.pipeline:
            self.flow.resume_reading()
            cycle, app = self.pipeline.pop()
            super()._start_asgi_task(cycle, app)
        elif not self._in_message:
            self._deadline = self.loop.time() + self._idle_seconds

    def _write(self, reply: twin.Reply, keep: bool) -> None:
        content = [STATUS_LINE[reply.status], reply.headers]
        for name, value in self.server_state.default_headers:
            content += (name, b": ", value, b"\r\n")
        if not keep:
            content.append(b"connection: close\r\n")
        content += (b"content-length: %d\r\n\r\n" % len(reply.body), reply.body)
        self.transport.write(b"".join(content))
        if not keep:
            self.transport.close()

    def _refuse(self, error: errors.InferlakeError) -> None:
        """Answer what never became a request, and close: the rest of the stream means nothing."""
        if self._refused:
            return
        self._refused = True
        under_way = self.cycle is not None and not self.cycle.response_complete
        in_its_body = self._in_message and not self._in_headers
        if under_way and in_its_body and not self.cycle.response_started:
            # The body of this very request is wrong or too large: its application need not answer.
            self.cycle.disconnected = True
            self.cycle.message_event.set()
            under_way = False
        if self._busy:
            return  # the answer under way closes the connection
        if under_way:
            self.cycle.keep_alive = False
            return
        self._write(twin.refusal(error), keep=False)

    def _refuse_body(self) -> None:
        self._refuse(errors.BadRequest(f"Body over {self._max_body_bytes} bytes."))

    # -- pipelined requests wait for the query before them

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        if self._busy:
            self.flow.pause_reading()
            self.pipeline.appendleft((cycle, app))
        else:
            super()._start_asgi_task(cycle, app)
