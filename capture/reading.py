"""Reads in a child process: polars and Delta stay out of the process that answers requests.

The parent holds a `Reader`, the child runs `serve`. Between them is a socket pair, the child's end
as its standard input: frames of a 4-byte length and JSON, `{"id", "operation", "arguments"}` there;
back, in any order, a length, the id, whether it failed, and JSON: the result, or
`{"class", "message"}`. The child ends when the socket closes. A child that died, or whose threads
are all held by reads that nobody waits for any more, is replaced by the next question.
"""

import asyncio
import os
import socket
import struct
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import orjson

from capture import errors, logline
from capture.settings import Settings

log = logline.logger(__name__)

Operation = Callable[[Settings, dict[str, Any]], Any]
THREADS = 2
NICENESS = 5  # a read may wait a moment for the requests that are being answered
LENGTH = struct.Struct("<I")
ANSWER = struct.Struct("<IQ?")  # length of the JSON, id of the question, whether it failed
ERRORS: dict[str, type[errors.InferlakeError]] = {
    name: found
    for name, found in vars(errors).items()
    if isinstance(found, type) and issubclass(found, errors.InferlakeError)
}


@dataclass(slots=True, eq=False)
class _Child:
    process: asyncio.subprocess.Process
    incoming: asyncio.StreamReader
    outgoing: asyncio.StreamWriter
    waiting: dict[int, asyncio.Future[bytes]] = field(default_factory=dict)
    abandoned: set[int] = field(default_factory=set)  # asked, unanswered, and nobody waits
    ended: bool = False


class Reader:
    """The parent's handle; for one event loop."""

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str] | None = None
    ) -> None:
        """command: what runs `serve`; environment: of the child, by default the own one."""
        self._command = list(command)
        self._environment = None if environment is None else dict(environment)
        self._child: _Child | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._starting = asyncio.Lock()
        self._last_id = 0

    async def start(self) -> None:
        """Start the child ahead of the first question: it imports for about a second."""
        await self._running()

    async def ask(
        self, operation: str, arguments: dict[str, Any], deadline_seconds: float = 10
    ) -> Any:
        """The operation's result as JSON values.

        Raises what the operation raised; Unavailable when it takes too long or the child ends.
        """
        return orjson.loads(await self.relay(operation, arguments, deadline_seconds))

    async def relay(
        self, operation: str, arguments: dict[str, Any], deadline_seconds: float = 10
    ) -> bytes:
        """The operation's result as JSON text, to be passed on: megabytes taken apart here would
        hold up the requests that this loop answers. Raises like `ask`."""
        child = await self._running()
        self._last_id += 1
        number = self._last_id
        future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        child.waiting[number] = future
        question = {"id": number, "operation": operation, "arguments": arguments}
        child.outgoing.write(_frame(question))
        try:
            async with asyncio.timeout(deadline_seconds):
                return await future
        except TimeoutError:
            child.abandoned.add(number)
            if len(child.abandoned) >= THREADS:
                child.process.kill()
            raise errors.Unavailable(
                f"Reading ({operation}) took longer than {deadline_seconds:g} seconds."
            ) from None
        except asyncio.CancelledError:
            child.abandoned.add(number)
            raise
        finally:
            del child.waiting[number]

    async def close(self) -> None:
        """End the child; what is being asked fails as Unavailable."""
        child, self._child = self._child, None
        if child is not None:
            child.outgoing.close()
            if not child.ended:
                child.process.kill()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _running(self) -> _Child:
        async with self._starting:
            if self._child is None or self._child.ended:
                self._child = await self._spawn()
            return self._child

    async def _spawn(self) -> _Child:
        ours, theirs = socket.socketpair()
        with theirs:
            process = await asyncio.create_subprocess_exec(
                *self._command,
                stdin=theirs.fileno(),
                stdout=asyncio.subprocess.DEVNULL,
                env=self._environment,
                start_new_session=True,
            )
        incoming, outgoing = await asyncio.open_connection(sock=ours)
        child = _Child(process, incoming, outgoing)
        task = asyncio.create_task(self._listen(child))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return child

    async def _listen(self, child: _Child) -> None:
        """Hand answers to those who wait until the child ends, then fail the rest."""
        try:
            while True:
                head = await child.incoming.readexactly(ANSWER.size)
                length, number, failed = ANSWER.unpack(head)
                _hand_over(child, number, failed, await child.incoming.readexactly(length))
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the child closed its end: it is over
        finally:
            child.ended = True
            for future in child.waiting.values():
                if not future.done():
                    future.set_exception(errors.Unavailable("Reading was interrupted."))
            child.outgoing.close()
        code = await child.process.wait()
        if self._child is child:
            log.warning("reader_ended", returncode=code)


def _hand_over(child: _Child, number: int, failed: bool, body: bytes) -> None:
    child.abandoned.discard(number)
    future = child.waiting.get(number)
    if future is None or future.done():
        return
    if not failed:
        future.set_result(body)
        return
    failure = orjson.loads(body)
    known = ERRORS.get(failure["class"], errors.InternalError)
    future.set_exception(known(failure["message"]))


def _json(value: Any) -> bytes:
    # Times become RFC 3339 with Z; NaN and infinity become null.
    return orjson.dumps(value, option=orjson.OPT_NAIVE_UTC | orjson.OPT_UTC_Z)


def _frame(question: dict[str, Any]) -> bytes:
    body = _json(question)
    return LENGTH.pack(len(body)) + body


def serve(operations: Mapping[str, Operation], settings: Settings | None = None) -> None:
    """The child: answer questions from standard input until the parent closes it.

    settings: by default those of the environment."""
    known = settings or Settings()
    connection = socket.socket(fileno=os.dup(0))
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.nice(NICENESS)
    sending = threading.Lock()

    def work(question: dict[str, Any]) -> None:
        answer = _answer(operations, known, question)
        with sending:
            connection.sendall(answer)

    pool = ThreadPoolExecutor(THREADS)
    while (question := _receive(connection)) is not None:
        pool.submit(work, question)
    # The parent is gone or wants no more: do not wait for reads that nobody will see.
    os._exit(0)


def _answer(
    operations: Mapping[str, Operation], settings: Settings, question: dict[str, Any]
) -> bytes:
    name = question["operation"]
    try:
        if name not in operations:
            raise errors.InvalidParameter(f"There is no read '{name}'.")
        body, failed = _json(operations[name](settings, question["arguments"])), False
    except errors.InferlakeError as error:
        body, failed = _json({"class": type(error).__name__, "message": error.message}), True
    except BaseException as error:  # noqa: BLE001  polars panics outside of Exception
        log.error("read_failed", operation=name, error=f"{type(error).__name__}: {error}")
        body, failed = (
            _json({"class": "InternalError", "message": f"Reading ({name}) failed."}),
            True,
        )
    return ANSWER.pack(len(body), question["id"], failed) + body


def _receive(connection: socket.socket) -> dict[str, Any] | None:
    """The next question; None at the end."""
    head = _exactly(connection, LENGTH.size)
    body = None if head is None else _exactly(connection, LENGTH.unpack(head)[0])
    return None if body is None else orjson.loads(body)


def _exactly(connection: socket.socket, size: int) -> bytes | None:
    parts = bytearray()
    while len(parts) < size:
        try:
            part = connection.recv(size - len(parts))
        except ConnectionError:
            return None
        if not part:
            return None
        parts += part
    return bytes(parts)
