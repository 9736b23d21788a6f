"""Rows of the fault matrix: clients that trickle, never read, or hang up."""

import asyncio
import contextlib
import json
import socket
import time
from pathlib import Path

from faults_ground import SUM, WILD, Figure, House, clocked, entity, failed, p99, plus, until, wild

MIB = 1 << 20


def slow_clients(
    house: House, clients: int = 400, most_seconds: float = 75, step_seconds: float = 1.0
) -> list[Figure]:
    """A third sends its headers a byte a step, a third its body, a third never reads: all are cut
    off, and nobody else notices."""
    house.create("patient", entity(SUM))
    with house.load("patient", 50, plus(1)) as load:
        until(lambda: load.first_good_after(0))
        ends = asyncio.run(_trickle(house, clients, most_seconds + 15, step_seconds))
    open_still = sum(end is None for end in ends)
    longest = max((end for end in ends if end is not None), default=float("inf"))
    return [
        Figure("never cut off", open_still, most=0),
        clocked("cut off after, s", longest, most=most_seconds),
        Figure("failed beside", failed(load.answers), most=0),
        clocked("p99 beside, ms", p99(load.answers) * 1000, most=250),
    ]


async def _trickle(house: House, count: int, patience: float, step: float) -> list[float | None]:
    """Seconds after which each was cut off; None: never."""
    small = house.clients("patient").request(plus(1))
    body_at = small.index(b"\r\n\r\n") + 4
    rows = {"dataframe_split": {"columns": ["a", "b"], "data": [[1.0, 2.0]] * 2_000}}
    large = house.clients("patient").request(json.dumps(rows).encode())

    async def one(number: int) -> float | None:
        begun = time.monotonic()
        await asyncio.sleep(0.002 * number)  # no more at one instant than a listener's line holds
        with contextlib.suppress(OSError):
            try:
                async with asyncio.timeout(patience):
                    if number % 3 == 0:
                        await _byte_by_byte(house.port, b"", small[:-1], step)
                    elif number % 3 == 1:
                        await _byte_by_byte(house.port, small[:body_at], small[body_at:-1], step)
                    else:
                        await _never_read(house.port, large)
            except TimeoutError:
                return None
        return time.monotonic() - begun

    return list(await asyncio.gather(*map(one, range(count))))


async def _byte_by_byte(port: int, at_once: bytes, rest: bytes, step: float) -> None:
    """Until the server closes; when the bytes are all sent, in silence."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    ended = asyncio.ensure_future(reader.read(-1))
    try:
        writer.write(at_once)
        for byte in rest:
            writer.write(bytes([byte]))
            if (await asyncio.wait({ended}, timeout=step))[0]:
                return
        await ended
    finally:
        ended.cancel()
        writer.close()


async def _never_read(port: int, request: bytes) -> None:
    """Ask again and again without reading an answer, until the connection is broken."""
    loop = asyncio.get_running_loop()
    with socket.socket() as line:
        line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        line.setblocking(False)
        await loop.sock_connect(line, ("127.0.0.1", port))
        while True:
            await loop.sock_sendall(line, request)
            await asyncio.sleep(0.5)


def hang_ups(house: House, clients: int = 300) -> list[Figure]:
    """Clients that hang up with their request in the model, in line, or half sent: every slot, file
    and byte comes back."""
    house.create("left", entity(WILD))
    until(lambda: house.ask("left", wild())[0].status == 200)
    asyncio.run(_hang_up(house, 50))
    until(lambda: house.busy() == 0)
    gateway = house.pid("gateway")
    files, memory = _files(gateway), _rss(gateway)
    asyncio.run(_hang_up(house, clients))
    until(lambda: house.busy() == 0)
    until(lambda: _files(gateway) <= files + 2, 10)
    answers = house.ask("left", *[wild(x=float(number)) for number in range(20)])
    return [
        Figure("slots not given back", house.busy(), most=0),
        Figure("files not closed", max(0, _files(gateway) - files), most=2),
        Figure("memory kept, MiB", (_rss(gateway) - memory) / MIB, most=32),
        Figure("failed afterwards", failed(answers), most=0),
    ]


async def _hang_up(house: House, count: int) -> None:
    request = house.clients("left").request(wild("sleep:0.01"))

    async def one(number: int) -> None:
        _, writer = await asyncio.open_connection("127.0.0.1", house.port)
        writer.write(request if number % 3 else request[: len(request) // 2])
        await asyncio.sleep(0.05 + 0.001 * (number % 50))
        writer.transport.abort()  # type: ignore[attr-defined]

    await asyncio.gather(*map(one, range(count)))


def _files(pid: int | None) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def _rss(pid: int | None) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096


ROWS = {each.__name__: each for each in (slow_clients, hang_ups)}
