"""A small HTTP/1.1 client for the replay: kept connections, one request at a time on each, little
CPU.

The control calls of the demo go through httpx2; this one sends the flights, hundreds a second, from
the same two cores that serve them."""

import asyncio
from collections import deque
from dataclasses import dataclass
from types import TracebackType

import httptools


@dataclass(frozen=True, slots=True)
class Answer:
    """Status, served entity (header `served-model-name`) and body of one reply."""

    status: int
    served_entity: str | None
    body: bytes


class ConnectionLost(Exception):
    """The server closed a connection before its answer was complete."""


class _Connection(asyncio.Protocol):
    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.waiter: asyncio.Future[Answer] | None = None
        self._reset()

    def _reset(self) -> None:
        self.parser = httptools.HttpResponseParser(self)
        self.served_entity: str | None = None
        self.body = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_exception(ConnectionLost("The server closed the connection."))

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"served-model-name":
            self.served_entity = value.decode("latin-1")

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        answer = Answer(self.parser.get_status_code(), self.served_entity, bytes(self.body))
        waiter, self.waiter = self.waiter, None
        self._reset()
        if waiter is not None and not waiter.done():
            waiter.set_result(answer)

    async def exchange(self, request: bytes) -> Answer:
        if self.transport is None:
            raise ConnectionLost("The connection is closed.")
        self.waiter = asyncio.get_running_loop().create_future()
        self.transport.write(request)
        return await self.waiter


class Client:
    """At most `connections` open requests to one host; the rest wait their turn."""

    def __init__(self, host: str, port: int, token: str, connections: int) -> None:
        self.host, self.port = host, port
        self.head = f"Host: {host}:{port}\r\nAuthorization: Bearer {token}\r\n".encode()
        self.free: deque[_Connection] = deque()
        self.slots = asyncio.Semaphore(connections)

    async def post(self, path: str, body: bytes) -> Answer:
        """Send JSON and wait for the answer. Raises ConnectionLost; nothing is sent twice."""
        request = (
            (
                f"POST {path} HTTP/1.1\r\nContent-Type: application/json\r\n"
                f"Content-Length: {len(body)}\r\n"
            ).encode()
            + self.head
            + b"\r\n"
            + body
        )
        async with self.slots:
            connection = await self._connection()
            answer = await connection.exchange(request)
            self.free.append(connection)
            return answer

    async def _connection(self) -> _Connection:
        while self.free:
            connection = self.free.popleft()
            if connection.transport is not None:
                return connection
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(_Connection, self.host, self.port)
        return connection

    async def __aenter__(self) -> "Client":
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for connection in self.free:
            if connection.transport is not None:
                connection.transport.close()
