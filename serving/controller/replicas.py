"""Heartbeats: who a replica says it is, whether it answers, whether it works or is frozen.

One task per replica asks once a second (at first every 5 ms, until the first answer) over its own
socket. A probe that is not answered in its second stays open and the silence grows by what was
waited; it is measured by waiting, not by comparing two times, so a controller or machine that slept
takes nobody for frozen.
"""

import asyncio
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from capture import logline
from serving import processes, wire

log = logline.logger(__name__)

BEAT_SECONDS = 1.0
FIRST_BEAT_SECONDS = 0.02
# A fork of a template answers after 0.03 s.
EAGER_BEATS, EAGER_BEAT_SECONDS = 40, 0.005
GROWING_BYTES = 32 << 20  # between two looks


@dataclass(slots=True)
class Pulse:
    """What is known of a living replica. Memory and processor time are of its whole group."""

    process: processes.Identity
    socket_path: str
    served_entity_id: str
    answered: bool = False
    silent_seconds: float = 0.0
    usage: processes.Usage = processes.NO_USAGE
    rss_bytes_at_ready: int = 0
    growing: bool = False
    report: dict[str, Any] = field(default_factory=dict)

    def used(self, usage: processes.Usage) -> None:
        """Note what the group uses; work is a sign of life."""
        if usage.cpu_seconds > self.usage.cpu_seconds:
            self.silent_seconds = 0.0
        self.growing = usage.rss_bytes - self.usage.rss_bytes > GROWING_BYTES
        self.usage = usage

    def grown(self, rss_bytes: int) -> None:
        """Note what the leading process alone holds, if that is more than the group had."""
        self.growing = rss_bytes - self.usage.rss_bytes > GROWING_BYTES
        if rss_bytes > self.usage.rss_bytes:
            self.usage = self.usage._replace(rss_bytes=rss_bytes)


async def follow(pulse: Pulse, wake: Callable[[], None]) -> None:
    """Ask this replica for as long as the task lives; `wake` is called at the first answer."""
    beats = 0
    while True:
        started = time.monotonic()
        beats += 1
        try:
            await _converse(pulse, wake)
        except (OSError, EOFError, ValueError, wire.BrokenStream) as error:
            log.debug("probe_failed", socket=pulse.socket_path, reason=str(error))
        first = EAGER_BEAT_SECONDS if beats <= EAGER_BEATS else FIRST_BEAT_SECONDS
        await asyncio.sleep(BEAT_SECONDS if pulse.answered else first)
        pulse.silent_seconds += min(time.monotonic() - started, 2 * BEAT_SECONDS)


async def _converse(pulse: Pulse, wake: Callable[[], None]) -> None:
    """Probe over one connection until it breaks."""
    async with asyncio.timeout(BEAT_SECONDS):
        reader, writer = await asyncio.open_unix_connection(pulse.socket_path)
    try:
        frames = wire.answer_reader()
        number = 0
        while True:
            number += 1
            writer.write(wire.pack_probe(number))
            answer = await _answer(pulse, reader, frames)
            _check(pulse, answer)
            first, pulse.answered, pulse.silent_seconds = not pulse.answered, True, 0.0
            if first:
                wake()
            await asyncio.sleep(BEAT_SECONDS)
    finally:
        writer.close()


async def _answer(
    pulse: Pulse, reader: asyncio.StreamReader, frames: wire.Reader[wire.Answer]
) -> wire.Answer:
    while True:
        read = asyncio.ensure_future(reader.read(65_536))
        try:
            while not read.done():
                await asyncio.wait({read}, timeout=BEAT_SECONDS)
                if not read.done():
                    pulse.silent_seconds += BEAT_SECONDS
        finally:
            read.cancel()
        data = read.result()
        if not data:
            raise EOFError("The replica closed the connection.")
        found = frames.feed(data)
        if found:
            return found[0]


def _check(pulse: Pulse, answer: wire.Answer) -> None:
    """The handshake: this is the process we started, for the entity we started it for."""
    if answer.status != 200:
        raise ValueError(f"Probe answered {answer.status}.")
    report = json.loads(answer.body)
    found = report.get("served_entity_id"), report.get("pid")
    if found != (pulse.served_entity_id, pulse.process.pid):
        raise ValueError(f"A stranger answers: {found}.")
    pulse.report = report
