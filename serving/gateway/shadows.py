"""Copies of requests for the version in the shadow: asked once the client has its reply, recorded
as rows of their own, dropped whenever they would be in somebody's way.

Rules:

- A copy is sent to a replica only within its concurrency and while nobody waits in its line, so
  that no live request of that version ever stands behind a copy in line.
- A few copies wait here for that; what comes on top of them, or while the version has no replica,
  is dropped and counted. If the version sleeps, one copy waits for it as a request would: it wakes.
- A copy's row has the id of its original with the last bit turned (`names.copy_of`), and the
  original's time, so that the two lie side by side. A model that fails on a copy is a row as well;
  a copy that was dropped is none.
- Nothing here is counted as a request: no limit, no usage, no number of the version's traffic.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import orjson

from capture import errors, exchanges, logline, names, wal
from capture.settings import Settings
from serving import state, wire
from serving.gateway import counts, recorded, replicas, routing

log = logline.logger(__name__)

MOST_WAITING, MOST_WAITING_BYTES = 100, 32 << 20
ANSWERED, FAILED = "answered", "failed"
QUEUE_FULL, NOT_READY = "dropped_queue_full", "dropped_not_ready"
NOT_RECORDED = "dropped_not_recorded"


class Copy(NamedTuple):
    """A request that was answered, and who is to answer it again. `content_type`: the wire's
    number; `content_header`: as it was sent; `number`, `time_ns`: of the original; `usage_context`:
    JSON."""

    endpoint: state.EndpointView
    entity: state.EntityView
    capture: state.CaptureView
    number: int
    time_ns: int
    body: bytes
    content_type: int
    content_header: bytes | None
    client_request_id: str | None
    usage_context: bytes | None
    requester: str
    unit_id: str | None

    @property
    def key(self) -> counts.Key:
        """Whose copies are counted together."""
        return counts.Key(self.endpoint.name, self.entity.name)


class Recorded(NamedTuple):
    """A copy that was answered, on its way into the log."""

    copy: Copy
    error_source: str | None
    exchange: exchanges.Exchange


class Shadows:
    """The copies of one gateway. For its event loop. awaken: tells the controller that somebody
    waits for an entity."""

    def __init__(
        self,
        settings: Settings,
        record: wal.Log,
        lines: replicas.Lines,
        tally: counts.Counts,
        awaken: Callable[[str], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._cap_bytes = settings.payload_cap_bytes
        self._record = record
        self._lines = lines
        self._tally = tally
        self._awaken = awaken
        self._waiting: dict[str, deque[Copy]] = {}
        self._waiting_bytes = 0
        self._pump_asked = False
        self._finished: list[Recorded] = []
        self._contexts = recorded.Contexts()

    def offer(self, copy: Copy) -> None:
        """Have a copy answered later, or drop it."""
        waiting = self._waiting.setdefault(copy.entity.id, deque())
        if self._record.is_full:
            self._drop(copy, NOT_RECORDED)
        elif (
            len(waiting) >= MOST_WAITING
            or self._waiting_bytes + len(copy.body) > MOST_WAITING_BYTES
        ):
            self._drop(copy, QUEUE_FULL)
        else:
            waiting.append(copy)
            self._waiting_bytes += len(copy.body)
            self._pump_soon()

    def sweep(self, _now: float) -> None:
        """Look after copies whose version has lost its replicas; a few times a second."""
        if self._waiting:
            self._pump()

    async def ask(self, entity: state.EntityView, body: bytes, content_type: int) -> wire.Answer:
        """A version's answer to a request of the past, recorded nowhere. Raises Unavailable while
        live requests need its replicas, and what a line raises."""
        line = self._lines.by_entity.get(entity.id)
        if line is None or (line.ready and not line.has_room):
            raise errors.Unavailable(f"'{entity.name}' is busy; live requests come first.")
        answered: asyncio.Future[wire.Answer] = self._loop.create_future()

        def done(answer: wire.Answer | None, error: errors.InferlakeError | None) -> None:
            if answered.done():
                return
            if answer is not None:
                answered.set_result(answer)
            else:
                gone = errors.Unavailable(f"'{entity.name}' has left the configuration.")
                answered.set_exception(error or gone)

        number = int(names.new_request_id().replace("-", ""), 16)
        ask = self._submit(line, number, body, content_type, done)
        try:
            return await answered
        finally:
            ask.cancel()

    # -- going out

    def _pump_soon(self) -> None:
        # Not in the turn of the original: its reply is on its way first.
        if not self._pump_asked:
            self._pump_asked = True
            self._loop.call_soon(self._pump)

    def _pump(self) -> None:
        self._pump_asked = False
        for entity_id, waiting in list(self._waiting.items()):
            self._send(self._lines.by_entity.get(entity_id), waiting)
            if not waiting:
                del self._waiting[entity_id]

    def _send(self, line: replicas.Line | None, waiting: deque[Copy]) -> None:
        while waiting:
            if line is not None and line.ready and not line.has_room:
                return
            copy = waiting.popleft()
            self._waiting_bytes -= len(copy.body)
            wakes = line is not None and not line.view.replicas and not line.waiting
            if line is None or not (line.ready or wakes):
                self._drop(copy, NOT_READY)
                continue
            done = partial(self._answered, copy)
            self._submit(line, copy.number, copy.body, copy.content_type, done)

    def _submit(
        self,
        line: replicas.Line,
        number: int,
        body: bytes,
        content_type: int,
        done: Callable[[wire.Answer | None, errors.InferlakeError | None], None],
    ) -> replicas.Ask:
        now = self._loop.time()
        ask = replicas.Ask(number & 0xFFFFFFFFFFFFFFFF, body, content_type, done, now)
        if line.view.percentage:
            # No second try, which would be alone on its replica, where the version is live.
            ask.losses = 1
        line.submit(ask, now, time.time_ns() // 1_000_000)
        if line.waiting:
            self._awaken(line.view.id)
        return ask

    def _drop(self, copy: Copy, why: str) -> None:
        self._tally.copied(copy.key, why)

    # -- coming back

    def _answered(
        self, copy: Copy, answer: wire.Answer | None, error: errors.InferlakeError | None
    ) -> None:
        self._pump_soon()
        came = answer or error
        if came is None or came.status == errors.Unavailable.status:
            # It never came to a model: that says nothing of the version.
            self._drop(copy, NOT_READY)
            return
        if answer is not None:
            response, source = answer.body, answer.error_source
        else:
            assert error is not None  # one of the two came
            response, source = orjson.dumps(errors.envelope(error)), "server"
        if not self._finished:
            self._loop.call_soon(self._write)
        exchange = self._exchange(copy, came.status, response, answer, source)
        self._finished.append(Recorded(copy, source, exchange))

    def _exchange(
        self,
        copy: Copy,
        status: int,
        response: bytes,
        answer: wire.Answer | None,
        error_source: str | None,
    ) -> exchanges.Exchange:
        choice = routing.choice(copy.entity, unit_id=copy.unit_id)
        came = answer or recorded.NO_ANSWER
        return exchanges.exchange(
            self._contexts.of(
                copy.endpoint, copy.capture, choice, copy.requester, copy.content_header, True
            ),
            copy.time_ns,
            names.copy_number(copy.number),
            status,
            copy.body,
            response,
            self._cap_bytes,
            0,
            came.queue_us,
            came.features_us,
            came.predict_us,
            error_source,
            copy.client_request_id,
            copy.unit_id,
            copy.usage_context,
            came.looked_up,
        )

    def _write(self) -> None:
        """Record the copies of one turn, by table."""
        finished, self._finished = self._finished, []
        groups: dict[str, list[Recorded]] = {}
        for one in finished:
            groups.setdefault(one.copy.capture.table, []).append(one)
        for table, group in groups.items():
            self._append(table, group)

    def _append(self, table: str, group: list[Recorded]) -> None:
        try:
            self._record.append(table, "payload", [one.exchange for one in group])
        except errors.LogFull:
            for one in group:
                self._drop(one.copy, NOT_RECORDED)
            return
        except Exception as error:  # noqa: BLE001  a row that cannot be encoded is lost alone
            if len(group) > 1:
                for one in group:
                    self._append(table, [one])
                return
            log.error("copy_not_recorded", error=f"{type(error).__name__}: {error}"[:500])
            self._drop(group[0].copy, NOT_RECORDED)
            return
        for one in group:
            failed = one.error_source in ("model", "server")
            self._tally.copied(one.copy.key, FAILED if failed else ANSWERED)
